//! Persistence: connections of a client follow its earlier ones, by a template in the connection table.
//!
//! A template is an entry of the table with a key that no packet has ([`key`]). It knows a destination, how many
//! connections it controls, and its own timeout, which begins anew with each connection that is made by it. This
//! decides what a template is for and when it serves; finding and storing it is the caller's.
//! IPVS counterpart: `ip_vs_sched_persist` and `ip_vs_check_template`.

use crate::destination::AVAILABLE;
use crate::protocol::{Protocol, state, tcp};
use crate::tuple::{IPV6, Tuple};

/// Seconds that a template goes on for when its time is over and it still controls connections.
#[doc(alias = "ip_vs_conn_expire")]
pub const EXTENSION: u32 = 60;

/// The port of a template that serves no more.
pub const INVALID_PORT: u16 = 0xffff;

/// The protocol of an entry that is a template for connections of this one (0 for a firewall mark's): none that a
/// packet with ports has, so that nothing a client sends can be taken for a template. The family's bit stays.
#[inline(always)]
pub const fn template_protocol(protocol: u8) -> u8 {
    protocol ^ !IPV6
}

/// The network of an IPv6 address (loaded natively as two words) by the length of its prefix, at most 128.
#[inline(always)]
pub const fn network_ipv6(address: [u64; 2], length: u32) -> [u64; 2] {
    [address[0] & mask_of(length).to_be(), address[1] & mask_of(length.saturating_sub(64)).to_be()]
}

/// So many leading ones, at most 64.
#[inline(always)]
const fn mask_of(bits: u32) -> u64 {
    if bits == 0 {
        0
    } else if bits >= 64 {
        u64::MAX
    } else {
        u64::MAX << (64 - bits)
    }
}

/// What a service has templates for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Kind {
    /// Its firewall mark; 0 for none.
    pub mark: u32,
    /// The service's port in network order, loaded natively; 0 is any.
    pub port: u16,
    /// Its persistence mask, loaded natively from network order.
    pub mask: u32,
}

/// Port 21, whose service takes FTP's data connections too.
const FTP: u16 = 21u16.to_be();

impl Kind {
    /// Whether a packet of this port has a template of its own, not one for all ports of the address.
    #[inline(always)]
    const fn is_single(self, port: u16) -> bool {
        self.mark == 0 && self.port == port && port != FTP && port != 0
    }

    /// The key of the template for a packet: client network, virtual address, virtual port or 0. That of a firewall
    /// mark has the mark for an address, and serves all protocols.
    #[inline(always)]
    pub fn key(self, packet: &Tuple) -> Tuple {
        let client = (packet.raw_source() & self.mask, 0);
        if self.mark != 0 {
            let protocol = template_protocol(packet.protocol & IPV6);
            return Tuple::from_raw(protocol, client, (self.mark.to_be(), 0));
        }
        let port =
            if self.is_single(packet.raw_destination_port()) { packet.raw_destination_port() } else { 0 };
        Tuple::from_raw(template_protocol(packet.protocol), client, (packet.raw_destination(), port))
    }

    /// The address that a template of IPv6 has for a packet's destination, both loaded natively as two words: that of a
    /// firewall mark has the mark in its first four bytes.
    #[inline(always)]
    pub const fn address_ipv6(self, packet: [u64; 2]) -> [u64; 2] {
        if self.mark != 0 { [((self.mark as u64) << 32).to_be(), 0] } else { packet }
    }

    /// The destination's port in the template for a packet.
    #[inline(always)]
    pub const fn template_port(self, packet_port: u16, destination_port: u16) -> u16 {
        if self.is_single(packet_port) { destination_port } else { 0 }
    }

    /// The port that a connection is made to: the destination's only where the packet's is the service's own.
    #[inline(always)]
    pub const fn connection_port(self, packet_port: u16, destination_port: u16) -> u16 {
        if self.mark == 0 && packet_port == self.port && destination_port != 0 {
            destination_port
        } else {
            packet_port
        }
    }
}

/// Whether a template still leads to its destination, by that one's status and weight. Overload does not matter, nor
/// does weight 0 unless the sysctl `expire_quiescent_template` says so.
#[doc(alias = "ip_vs_check_template")]
#[inline(always)]
pub const fn serves(status: u8, weight: u32, expire_quiescent: bool) -> bool {
    status & AVAILABLE != 0 && !(expire_quiescent && weight == 0)
}

/// Whether a template of a connection that comes to this state is confirmed by it: TCP in ESTABLISHED, UDP with its
/// first answer (`out`).
#[doc(alias = "IP_VS_CTPL_S_ASSURED")]
#[inline(always)]
pub const fn assures(protocol: u8, new_state: u8, out: bool) -> bool {
    if protocol & !IPV6 == Protocol::Udp.number() {
        out
    } else if new_state >= state::SCTP {
        new_state == state::SCTP + 8
    } else {
        new_state == tcp::State::Established as u8
    }
}

#[cfg(test)]
mod tests {
    use core::net::Ipv4Addr;

    use super::*;

    const CLIENT: (Ipv4Addr, u16) = (Ipv4Addr::new(10, 0, 0, 77), 7000);
    const VIP: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 100);

    fn kind(port: u16) -> Kind {
        Kind { mark: 0, port: port.to_be(), mask: u32::from_ne_bytes([255, 255, 255, 0]) }
    }

    /// Client, virtual address, virtual port and protocol of a key.
    fn words(key: Tuple) -> (Ipv4Addr, Ipv4Addr, u16, u8) {
        assert_eq!(key.source_port(), 0);
        (key.source(), key.destination(), key.destination_port(), template_protocol(key.protocol))
    }

    #[test]
    fn keys_are_the_kernels() {
        let network = Ipv4Addr::new(10, 0, 0, 0);
        let packet = |port| Tuple::new(6, CLIENT, (VIP, port));
        assert_eq!(words(kind(80).key(&packet(80))), (network, VIP, 80, 6));
        assert_eq!(words(kind(0).key(&packet(80))), (network, VIP, 0, 6));
        assert_eq!(words(kind(21).key(&packet(21))), (network, VIP, 0, 6));
        assert_eq!(words(kind(21).key(&packet(50_000))), (network, VIP, 0, 6));
        let mark = Kind { mark: 7, ..kind(0) };
        assert_eq!(words(mark.key(&packet(80))), (network, Ipv4Addr::new(0, 0, 0, 7), 0, 0));
        assert_eq!(mark.key(&packet(80)), mark.key(&Tuple::new(17, CLIENT, (network, 53))));
    }

    #[test]
    fn no_packet_has_a_templates_key() {
        for protocol in Protocol::ALL.map(Protocol::number).into_iter().chain([0]) {
            for protocol in [protocol, protocol | IPV6] {
                let template = template_protocol(protocol);
                assert_eq!(Protocol::from_number(template & !IPV6), None);
                assert_eq!((template & IPV6, template_protocol(template)), (protocol & IPV6, protocol));
            }
        }
    }

    #[test]
    fn an_ipv6_network_has_the_leading_bits() {
        let words = |text: &str| -> [u64; 2] {
            zerocopy::transmute!(text.parse::<core::net::Ipv6Addr>().unwrap().octets())
        };
        let address = words("2001:db8:1234:5678:9abc:def0:1122:3344");
        let rows = [
            (128, "2001:db8:1234:5678:9abc:def0:1122:3344"),
            (96, "2001:db8:1234:5678:9abc:def0::"),
            (65, "2001:db8:1234:5678:8000::"),
            (64, "2001:db8:1234:5678::"),
            (33, "2001:db8::"),
            (1, "::"),
            (0, "::"),
        ];
        for (length, network) in rows {
            assert_eq!(network_ipv6(address, length), words(network), "{length}");
        }
    }

    #[test]
    fn ports_are_rewritten_for_the_services_own_port_only() {
        let raw = u16::to_be;
        let ports = |kind: Kind, packet: u16| {
            (
                u16::from_be(kind.template_port(raw(packet), raw(8080))),
                u16::from_be(kind.connection_port(raw(packet), raw(8080))),
            )
        };
        assert_eq!(ports(kind(80), 80), (8080, 8080));
        assert_eq!(ports(kind(0), 80), (0, 80));
        assert_eq!(ports(kind(21), 21), (0, 8080));
        assert_eq!(ports(kind(21), 50_000), (0, 50_000));
        assert_eq!(ports(Kind { mark: 7, ..kind(0) }, 80), (0, 80));
        assert_eq!(kind(80).connection_port(raw(80), 0), raw(80));
    }

    #[test]
    fn weight_zero_serves_unless_told_otherwise() {
        assert!(serves(AVAILABLE, 0, false) && serves(AVAILABLE, 1, true));
        assert!(!serves(AVAILABLE, 0, true) && !serves(0, 1, false));
    }

    #[test]
    fn established_or_answered_is_assured() {
        assert!(assures(6, 1, false) && !assures(6, 3, true));
        assert!(assures(17, state::UDP, true) && !assures(17, state::UDP, false));
        assert!(assures(132, state::SCTP + 8, false) && !assures(132, state::SCTP + 1, false));
    }
}
