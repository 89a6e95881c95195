//! Tunnels that IPv6 has a part in: inside, around, or both. Every byte, steady and not, and what is too large.

use std::net::Ipv6Addr;

use etherparse::{IpNumber, Ipv4Header, Ipv6Header, PacketBuilder, UdpHeader};
use lb_common::reason::Reason;
use lb_common::tunnel::source_port;
use lb_common::tuple::{self, Tuple, handle};
use xipvs::director::Director;

use super::fixture::{Action, CLIENTS, Fixture, to_server};

/// The seed that tests have.
const SEED: u64 = 0x5eed;
const DSCP_AND_CE: u8 = 0xbb;

/// Which family is inside, which around.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Case {
    inside: u8,
    around: u8,
}

const CASES: [Case; 3] =
    [Case { inside: 4, around: 6 }, Case { inside: 6, around: 4 }, Case { inside: 6, around: 6 }];

impl Case {
    fn ethertype(family: u8) -> [u8; 2] {
        if family == 4 { [8, 0] } else { [0x86, 0xdd] }
    }

    fn protocol(self) -> u8 {
        if self.inside == 4 { 4 } else { 41 }
    }

    fn server(self, number: u8) -> String {
        if self.around == 4 { format!("10.0.0.1{number}:80") } else { format!("[fd00:2::1{number}]:80") }
    }

    fn fixture(self, options: &str, number: u8) -> Fixture {
        let service = if self.inside == 4 { "192.168.1.100:80" } else { "[fd00:1::100]:80" };
        let server = self.server(number);
        Fixture::configured(&format!("-A -t {service} -s rr\n-a -t {service} -r {server} -i {options}"))
    }

    /// The client's packet from the IP header on: a segment with so much payload, and hops left.
    fn packet(self, port: u16, flags: [bool; 2], payload: usize, hops: u8) -> Vec<u8> {
        let [syn, ack] = flags;
        let builder = if self.inside == 4 {
            let mut header =
                Ipv4Header::new(0, hops, IpNumber::TCP, [192, 168, 1, 10], [192, 168, 1, 100]).unwrap();
            header.dscp = (DSCP_AND_CE >> 2).try_into().unwrap();
            header.ecn = (DSCP_AND_CE & 3).try_into().unwrap();
            header.dont_fragment = true;
            PacketBuilder::ip(etherparse::IpHeaders::Ipv4(header, Default::default()))
        } else {
            let [source, destination] =
                ["fd00:1::10", "fd00:1::100"].map(|text| text.parse::<Ipv6Addr>().unwrap());
            PacketBuilder::ip(etherparse::IpHeaders::Ipv6(
                Ipv6Header {
                    traffic_class: DSCP_AND_CE,
                    hop_limit: hops,
                    source: source.octets(),
                    destination: destination.octets(),
                    ..Ipv6Header::default()
                },
                Default::default(),
            ))
        };
        let mut tcp = builder.tcp(port, 80, 1000, 4096);
        if syn {
            tcp = tcp.syn();
        }
        if ack {
            tcp = tcp.ack(1);
        }
        let mut packet = Vec::new();
        tcp.write(&mut packet, &vec![7; payload]).unwrap();
        packet
    }

    fn frame(self, packet: &[u8]) -> Vec<u8> {
        [&[4; 6], &[2; 6], &Self::ethertype(self.inside)[..], packet].concat()
    }

    /// What goes around a packet of so many hops: an outer header with this protocol, and what is behind that.
    fn around(self, protocol: u8, between: &[u8], packet: &[u8], hops: u8) -> Vec<u8> {
        let length = between.len() + packet.len();
        let class = DSCP_AND_CE & !3 | 2;
        let outer = if self.around == 4 {
            let mut header =
                Ipv4Header::new(0, hops, IpNumber(protocol), [10, 0, 0, 1], [10, 0, 0, 11]).unwrap();
            header.set_payload_len(length).unwrap();
            header.dont_fragment = false;
            header.dscp = (class >> 2).try_into().unwrap();
            header.ecn = (class & 3).try_into().unwrap();
            header.header_checksum = header.calc_header_checksum();
            header.to_bytes().to_vec()
        } else {
            let [source, destination] =
                ["fd00:2::1", "fd00:2::11"].map(|text| text.parse::<Ipv6Addr>().unwrap());
            Ipv6Header {
                traffic_class: class,
                payload_length: length as u16,
                next_header: IpNumber(protocol),
                hop_limit: hops,
                source: source.octets(),
                destination: destination.octets(),
                ..Ipv6Header::default()
            }
            .to_bytes()
            .to_vec()
        };
        [&outer, between, packet].concat()
    }

    fn gre(self, packet: &[u8], checked: bool) -> Vec<u8> {
        let [high, low] = Self::ethertype(self.inside);
        if !checked {
            return vec![0, 0, high, low];
        }
        let header = [0x80, 0, high, low, 0, 0, 0, 0];
        let sum = etherparse::checksum::Sum16BitWords::new().add_slice(&header).add_slice(packet);
        let [one, two] = sum.ones_complement().to_le_bytes();
        vec![0x80, 0, high, low, one, two, 0, 0]
    }

    fn gue(self, port: u16, packet: &[u8], checked: bool) -> Vec<u8> {
        let header = [0, self.protocol(), 0, 0];
        let carried = [&header[..], packet].concat();
        let mut udp = UdpHeader::without_ipv4_checksum(self.flow_port(port), 6080, carried.len()).unwrap();
        if checked && self.around == 4 {
            udp.checksum = udp.calc_checksum_ipv4_raw([10, 0, 0, 1], [10, 0, 0, 11], &carried).unwrap();
        } else if checked {
            let [source, destination] =
                ["fd00:2::1", "fd00:2::11"].map(|text| text.parse::<Ipv6Addr>().unwrap().octets());
            udp.checksum = udp.calc_checksum_ipv6_raw(source, destination, &carried).unwrap();
        }
        [&udp.to_bytes()[..], &header].concat()
    }

    /// GUE's source port for the client's flow.
    fn flow_port(self, port: u16) -> u16 {
        let words =
            |text: &str| -> [u64; 2] { zerocopy::transmute!(text.parse::<Ipv6Addr>().unwrap().octets()) };
        let tuple = if self.inside == 4 {
            Tuple::new(6, ([192, 168, 1, 10].into(), port), ([192, 168, 1, 100].into(), 80))
        } else {
            let [source, destination] = ["fd00:1::10", "fd00:1::100"].map(|text| handle(words(text), SEED));
            Tuple::from_raw(6 | tuple::IPV6, (source, port.to_be()), (destination, 80u16.to_be()))
        };
        source_port(tuple.hash(SEED) as u32)
    }
}

/// A frame without the identification of an outer IPv4 header that may be cut, and its checksum: they are random.
fn without_identification(mut frame: Vec<u8>) -> Vec<u8> {
    if frame[12] == 8 {
        let (header, _) = Ipv4Header::from_slice(&frame[14..]).unwrap();
        assert_eq!(header.calc_header_checksum(), header.header_checksum);
        frame[18..20].fill(0);
        frame[24..26].fill(0);
    }
    frame
}

const KINDS: [&str; 5] = [
    "",
    "--tun-type gre",
    "--tun-type gre --tun-csum",
    "--tun-type gue --tun-port 6080",
    "--tun-type gue --tun-port 6080 --tun-csum",
];

/// Protocol, and what lies between, for one of [`KINDS`].
fn between(case: Case, kind: usize, port: u16, packet: &[u8]) -> (u8, Vec<u8>) {
    match kind {
        0 => (case.protocol(), Vec::new()),
        1 | 2 => (47, case.gre(packet, kind == 2)),
        _ => (17, case.gue(port, packet, kind == 4)),
    }
}

#[test]
fn every_kind_of_tunnel_for_the_other_families() {
    for case in CASES {
        for (kind, options) in KINDS.into_iter().enumerate() {
            let mut fixture = case.fixture(options, 1);
            let mut bytes = 0;
            for (port, payload) in [(40000, 0), (40001, 33)] {
                for flags in [[true, false], [false, true], [false, true]] {
                    let what = format!("{case:?} {options} {flags:?}");
                    let frame = case.frame(&case.packet(port, flags, payload, 64));
                    let outcome = fixture.send(CLIENTS, &frame);
                    assert_eq!((outcome.action, outcome.reason), (Action::Redirect, None), "{what}");
                    let packet = case.packet(port, flags, payload, 63);
                    let (protocol, between) = between(case, kind, port, &packet);
                    let expected = [
                        &to_server(1).concat()[..],
                        &Case::ethertype(case.around),
                        &case.around(protocol, &between, &packet, 63),
                    ];
                    let expected = without_identification(expected.concat());
                    assert_eq!(without_identification(outcome.bytes), expected, "{what}");
                    bytes += packet.len() as u64;
                }
            }
            let table = fixture.director.table().unwrap();
            let report = &table.entries[0].destinations[0];
            let counted = (report.stats.connections, report.stats.in_packets, report.stats.in_bytes);
            assert_eq!((counted, report.active, report.inactive), ((2, 6, bytes), 2, 0));
            let listed = fixture.director.connections().unwrap();
            assert!(listed.iter().all(|row| row.destination == report.destination.key.address), "{listed:?}");
        }
    }
}

#[test]
fn what_is_too_large_is_refused_by_its_family() {
    for case in CASES {
        for (kind, options) in KINDS.into_iter().enumerate() {
            let mut fixture = case.fixture(options, 1);
            let headers = if case.inside == 4 { 40 } else { 60 };
            let outer = if case.around == 4 { 20 } else { 40 };
            let largest = 1500 - outer - [0, 4, 8, 12, 12][kind] - headers;
            let send = |fixture: &Fixture, payload, fragmentable: bool| {
                let mut packet = case.packet(40000, [true, false], payload, 64);
                if fragmentable {
                    packet[6] = 0;
                    let (header, _) = Ipv4Header::from_slice(&packet).unwrap();
                    packet[10..12].copy_from_slice(&header.calc_header_checksum().to_be_bytes());
                }
                fixture.send(CLIENTS, &case.frame(&packet))
            };
            let fits = send(&fixture, largest, false);
            assert_eq!((fits.action, fits.bytes.len()), (Action::Redirect, 1514), "{case:?} {options}");
            let larger = send(&fixture, largest + 1, false);
            assert_eq!((larger.action, larger.reason), (Action::Drop, Some(Reason::TooBig)));
            if case.inside == 6 {
                // Whatever IPv4's path MTU discovery is.
                fixture.director.set_sysctl("pmtu_disc", 0).unwrap();
                assert_eq!(send(&fixture, largest + 1, false).reason, Some(Reason::TooBig));
            } else {
                let cut = send(&fixture, largest + 1, true);
                assert_eq!((cut.action, cut.reason), (Action::Drop, Some(Reason::NotFragmented)));
            }
        }
    }
}

#[test]
fn without_a_neighbour_the_stack_gets_the_outer_packet() {
    for case in CASES {
        let fixture = case.fixture("", 9);
        for tags in [&[][..], &[0x81, 0, 0, 7]] {
            let packet = case.packet(40000 + tags.len() as u16, [true, false], 0, 64);
            let frame = case.frame(&packet);
            let frame = [&frame[..12], tags, &frame[12..]].concat();
            let outcome = fixture.send(CLIENTS, &frame);
            assert_eq!((outcome.action, outcome.reason), (Action::Pass, Some(Reason::NeighbourByStack)));
            let network = 14 + tags.len();
            let link = [&frame[..network - 2], &Case::ethertype(case.around)].concat();
            assert_eq!(outcome.bytes[..network], link);
            let inner = case.packet(40000 + tags.len() as u16, [true, false], 0, 63);
            assert!(outcome.bytes.ends_with(&inner));
            let outer = &outcome.bytes[network..outcome.bytes.len() - inner.len()];
            // The stack takes a hop off the outer header.
            let (hops, protocol) = match case.around {
                4 => (outer[8], outer[9]),
                _ => (outer[7], outer[6]),
            };
            assert_eq!((hops, protocol), (64, case.protocol()));
        }
    }
}

#[test]
fn a_destination_of_the_other_family_comes_back_with_its_connections() {
    let case = Case { inside: 6, around: 4 };
    let mut fixture = case.fixture("", 1);
    let send =
        |fixture: &Fixture, flags| fixture.send(CLIENTS, &case.frame(&case.packet(40000, flags, 0, 64)));
    assert_eq!(send(&fixture, [true, false]).action, Action::Redirect);
    fixture.ipvsadm("-d -t [fd00:1::100]:80 -r 10.0.0.11:80");
    // Something that makes the filter anew.
    fixture.ipvsadm("-A -t 192.168.1.100:80 -s rr\n-D -t 192.168.1.100:80");
    assert_eq!(send(&fixture, [false, true]).reason, Some(Reason::DestinationDeleted));
    fixture.ipvsadm("-a -t [fd00:1::100]:80 -r 10.0.0.11:80 -i");
    assert_eq!(send(&fixture, [false, true]).action, Action::Redirect);
    let table = fixture.director.table().unwrap();
    assert_eq!(table.entries[0].destinations[0].active, 1);
    let (status, said) = fixture.try_ipvsadm("-a -t [fd00:1::100]:80 -r 10.0.0.12:80 -m");
    assert_ne!((status, said.as_str()), (0, ""));
}
