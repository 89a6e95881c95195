//! What is behind the headers of either family: ports, flags, or none of them.

use super::{Frame, Packet, SCTP, TCP, UDP};
use crate::protocol::Protocol;
use crate::protocol::sctp::Event;
use crate::reason::Reason;

/// The type of a chunk.
const COOKIE_ACK: u8 = 11;

/// The IP protocol number of ICMP.
pub(crate) const ICMP_NUMBER: u8 = 1;
/// That of ICMPv6.
pub(crate) const ICMPV6_NUMBER: u8 = 58;
/// Encapsulating Security Payload.
const ENCRYPTION: u8 = 50;
/// Authentication Header; of IPv6 it is an extension header.
pub(super) const AUTHENTICATION: u8 = 51;

/// What [`Packet`] has of what is behind the network headers.
pub(super) struct Behind {
    /// Of the connection: that of IPsec is its key exchange's.
    pub protocol: u8,
    pub ports: u32,
    pub tcp_flags: u8,
    /// [`Packet::transport`].
    pub transport: u16,
}

impl Behind {
    /// Reads what begins at `transport` in a packet that ends at `end`; with `FRAGMENTS` also what has no ports: IPsec, and what
    /// is `later` than the first fragment.
    #[inline(always)]
    pub(super) fn read<const FRAGMENTS: bool>(
        frame: &(impl Frame + ?Sized),
        protocol: u8,
        transport: usize,
        end: usize,
        later: bool,
    ) -> Result<Self, Reason> {
        let follows = FRAGMENTS && is_ipsec(protocol);
        let least = if follows { 0 } else { transport_length(protocol)? };
        if transport + if later { 0 } else { least } > end || end > frame.length() {
            return Err(Reason::Malformed);
        }
        let (ports, tcp_flags) = if follows {
            (KEY_EXCHANGE, 0)
        } else if later {
            ([0; 4], 0)
        } else {
            read_transport(frame, protocol, transport)?
        };
        Ok(Self {
            protocol: if follows { Protocol::Udp.number() } else { protocol },
            ports: u32::from_ne_bytes(ports),
            tcp_flags,
            transport: if later {
                Packet::NO_TRANSPORT
            } else if follows {
                Packet::NO_PORTS
            } else {
                transport as u16
            },
        })
    }
}

/// The ports of the key exchange of IPsec, 500 both, whose connection packets of ESP and AH follow.
#[doc(alias = "PORT_ISAKMP")]
pub(crate) const KEY_EXCHANGE: [u8; 4] = [0x01, 0xf4, 0x01, 0xf4];

/// Whether a protocol is one of IPsec. Of IPv6, AH is an extension header, as to IPVS.
#[inline(always)]
pub(crate) const fn is_ipsec(protocol: u8) -> bool {
    protocol == ENCRYPTION || protocol == AUTHENTICATION
}

/// Bytes that the header of a transport protocol has at least.
#[inline(always)]
fn transport_length(protocol: u8) -> Result<usize, Reason> {
    match protocol {
        6 => Ok(TCP),
        17 => Ok(UDP),
        132 => Ok(SCTP),
        _ => Err(Reason::OtherProtocol),
    }
}

/// The ports and the TCP flags of a transport header.
#[inline(always)]
fn read_transport(
    frame: &(impl Frame + ?Sized),
    protocol: u8,
    offset: usize,
) -> Result<([u8; 4], u8), Reason> {
    if protocol == Protocol::Tcp.number() {
        let tcp: &[u8; TCP] = frame.bytes(offset).ok_or(Reason::Malformed)?;
        Ok(([tcp[0], tcp[1], tcp[2], tcp[3]], tcp[13]))
    } else if protocol == Protocol::Sctp.number() {
        let sctp: &[u8; SCTP] = frame.bytes(offset).ok_or(Reason::Malformed)?;
        // The chunk behind a COOKIE ACK, which has nothing in it, may abort. That behind a COOKIE ECHO is not looked for.
        let next = match frame.bytes::<{ SCTP + 1 }>(offset) {
            Some(more) if sctp[12] == COOKIE_ACK => Some(more[SCTP]),
            _ => None,
        };
        Ok(([sctp[0], sctp[1], sctp[2], sctp[3]], Event::of(sctp[12], next) as u8))
    } else {
        let udp: &[u8; UDP] = frame.bytes(offset).ok_or(Reason::Malformed)?;
        Ok(([udp[0], udp[1], udp[2], udp[3]], 0))
    }
}
