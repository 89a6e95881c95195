//! Why a packet was not forwarded, and what happens to it then.
//!
//! Every path of the packet program ends in a verdict or in one of these; each is a counter that
//! `xipvs status` lists by its name.

/// What happens to a packet that is not forwarded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// The kernel's network stack gets it, as if xipvs did not exist.
    Pass,
    /// It is dropped.
    Drop,
}

macro_rules! reasons {
    ($($(#[doc = $doc:literal])+ $variant:ident = $number:literal, $name:literal, $fate:ident;)+) => {
        /// Why a packet was not forwarded.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        #[repr(u32)]
        pub enum Reason {
            $($(#[doc = $doc])+ $variant = $number,)+
        }

        impl Reason {
            /// Every reason, in the order of their numbers.
            pub const ALL: &'static [Self] = &[$(Self::$variant),+];

            /// The name that `xipvs status` prints.
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$variant => $name,)+
                }
            }

            /// What happens to the packet.
            #[inline(always)]
            pub const fn fate(self) -> Fate {
                match self {
                    $(Self::$variant => Fate::$fate,)+
                }
            }

            /// One sentence for the operator.
            pub const fn explanation(self) -> &'static str {
                match self {
                    $(Self::$variant => concat!($($doc),+).trim_ascii(),)+
                }
            }
        }
    };
}

reasons! {
    /// Neither an address of a service nor of a destination.
    NotOurs = 0, "not-ours", Pass;
    /// Not IP: another Ethernet protocol, or more than two VLAN tags.
    NotIp = 1, "not-ip", Pass;
    /// IP with a transport protocol that is not balanced, or of IPsec without a connection of its key exchange.
    OtherProtocol = 2, "other-protocol", Pass;
    /// The packet ends before its headers do, or a length field contradicts another.
    Malformed = 3, "malformed", Pass;
    /// A later fragment that came before the first one of its datagram, or whose first one went another way.
    Fragment = 4, "fragment", Pass;
    /// To a virtual address, but no service has that protocol and port.
    NoService = 5, "no-service", Pass;
    /// A TCP segment that opens nothing and belongs to no connection.
    NoConnection = 6, "no-connection", Pass;
    /// From source port 20, which IPVS never schedules.
    SourcePort20 = 7, "source-port-20", Pass;
    /// From a destination, but no connection has that flow; it goes out untranslated.
    NoReplyConnection = 8, "no-reply-connection", Pass;
    /// A reply of a direct-routing destination; counted, then forwarded by the stack.
    DirectReply = 9, "direct-reply", Pass;
    /// The destination is the director itself; the stack delivers the packet.
    LocalDestination = 10, "local-destination", Pass;
    /// No neighbour entry yet; the stack resolves it and forwards the translated packet.
    NeighbourByStack = 11, "neighbour-by-stack", Pass;
    /// The service has no destination that may take a new connection.
    NoDestination = 12, "no-destination", Drop;
    /// The connection's destination was deleted.
    DestinationDeleted = 13, "destination-deleted", Drop;
    /// The time to live ran out.
    TimeExceeded = 14, "time-exceeded", Drop;
    /// No route to the next hop.
    NoRoute = 15, "no-route", Drop;
    /// No neighbour entry for the next hop yet, and the stack cannot help.
    NeighbourUnresolved = 16, "neighbour-unresolved", Drop;
    /// Larger than the next link takes.
    TooBig = 17, "too-big", Drop;
    /// The connection table has no room for a new connection.
    TableFull = 18, "table-full", Drop;
    /// Forwarding is switched off on the interface that the packet came in on.
    ForwardingDisabled = 19, "forwarding-disabled", Drop;
    /// The next hop is behind a VLAN inside a VLAN; not counted any more, as the stack can send there.
    NestedVlan = 20, "nested-vlan", Drop;
    /// The director is being reconfigured or out of memory: a map that must be there is not.
    Internal = 21, "internal", Drop;
    /// Larger than the next link takes, and may be cut in pieces; the stack does that and sends them on.
    FragmentedByStack = 22, "fragmented-by-stack", Pass;
    /// IPv6 with more extension headers than are looked behind.
    ExtensionHeaders = 23, "extension-headers", Pass;
    /// Of two IPv6 flows that look alike to the connection table, which happens once in thousands of millions, the later.
    LooksAlike = 24, "looks-alike", Drop;
    /// One of so many new connections that drop_packet refuses.
    DropPacket = 25, "drop-packet", Drop;
    /// Larger than the next link takes, and may be cut in pieces, which nobody does for direct routing.
    NotFragmented = 26, "not-fragmented", Drop;
    /// A packet of a destination that cannot go on as it is; the stack tells the destination why.
    ReplyByStack = 27, "reply-by-stack", Pass;
    /// ICMP that is no error about a connection of ours.
    Icmp = 28, "icmp", Pass;
    /// An ICMP error about a connection of ours with a wrong checksum.
    IcmpChecksum = 29, "icmp-checksum", Drop;
    /// A later fragment of a datagram that made no connection: it was refused, or is one packet to its service.
    FragmentRefused = 30, "fragment-refused", Drop;
    /// An ICMP error about a packet in a tunnel that its client is not told of: it may be fragmented, or there is the limit.
    TunnelError = 31, "tunnel-error", Drop;
    /// From a masquerading destination, but no connection has that flow; the destination is told, by nat_icmp_send.
    ReplyRefused = 32, "reply-refused", Drop;
    /// A packet of the director itself that would need what only packets that come in get; it is sent as it is.
    OwnLeftAlone = 33, "own-left-alone", Pass;
    /// For a service with the persistence engine sip, without a Call-ID in the first 2,048 bytes of the message.
    NoCallId = 34, "no-call-id", Drop;
    /// Done, and passed to the classifier that sends it: XDP cannot send out of that interface, or did not know it at `attach`.
    SentByStack = 35, "sent-by-stack", Pass;
    /// XDP cannot send out of that interface, and the driver takes no note for the classifier that could.
    NotRedirected = 36, "not-redirected", Drop;
}

/// The place among the counters of reasons where connections are counted that gave way to new ones: no packet's end.
pub const GAVE_WAY: usize = REASON_SLOTS - 1;
/// The place where connections and templates are counted that fell to `drop_entry`.
pub const FELL: usize = REASON_SLOTS - 2;

/// Room for reason counters in the maps; more than there are reasons, so that a new one moves nothing.
pub const REASON_SLOTS: usize = 64;

const _: () = assert!(Reason::ALL.len() <= FELL);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_positions() {
        for (position, reason) in Reason::ALL.iter().enumerate() {
            assert_eq!(*reason as usize, position);
        }
    }

    #[test]
    fn names_differ_and_explanations_are_sentences() {
        for (position, reason) in Reason::ALL.iter().enumerate() {
            assert!(reason.explanation().ends_with('.'));
            assert!(Reason::ALL[..position].iter().all(|other| other.name() != reason.name()));
        }
    }
}
