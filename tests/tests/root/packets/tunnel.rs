//! Tunnels: every byte of the headers around a packet, steady and not, and what is too large for the way.

use std::net::{Ipv4Addr, SocketAddrV4};

use etherparse::{IpNumber, Ipv4Header, UdpHeader};
use lb_common::reason::Reason;

use super::fixture::{Action, CLIENTS, Counted, Expected, Fixture, TO_VLAN, VIP, client, server, to_server};
use super::frame::{ACK, Change, Frame, PSH, SYN};

/// The director's address on the servers' side.
const DIRECTOR: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 1);

fn web(options: &str) -> Fixture {
    Fixture::configured(&format!(
        "-A -t 192.168.1.100:80 -s rr
         -a -t 192.168.1.100:80 -r 10.0.0.11:80 -i {options}"
    ))
}

/// The outer IPv4 header for a packet as it comes out of the director, with so many bytes between the two.
fn ipv4(inner: &Frame, protocol: u8, between: usize, to: Ipv4Addr) -> Ipv4Header {
    let length = inner.length() as usize + between;
    let mut header =
        Ipv4Header::new(0, inner.time_to_live, IpNumber(protocol), DIRECTOR.octets(), to.octets()).unwrap();
    header.set_payload_len(length).unwrap();
    header.dont_fragment = inner.dont_fragment;
    header.dscp = (inner.service_type >> 2).try_into().unwrap();
    let ecn = if inner.service_type & 3 == 3 { 2 } else { inner.service_type & 3 };
    header.ecn = ecn.try_into().unwrap();
    header.header_checksum = header.calc_header_checksum();
    header
}

type Outer = fn(&Frame) -> Vec<u8>;

fn ipip(inner: &Frame) -> Vec<u8> {
    ipv4(inner, 4, 0, *server(1, 0).ip()).to_bytes().to_vec()
}

fn gre(inner: &Frame) -> Vec<u8> {
    [&ipv4(inner, 47, 4, *server(1, 0).ip()).to_bytes()[..], &[0, 0, 8, 0]].concat()
}

fn gre_checked(inner: &Frame) -> Vec<u8> {
    let header = [0x80, 0, 8, 0, 0, 0, 0, 0];
    let sum = etherparse::checksum::Sum16BitWords::new().add_slice(&header).add_slice(&inner.packet());
    let [high, low] = sum.ones_complement().to_le_bytes();
    let header = [0x80, 0, 8, 0, high, low, 0, 0];
    [&ipv4(inner, 47, 8, *server(1, 0).ip()).to_bytes()[..], &header].concat()
}

/// GUE to port 6080; the source port is the flow's own, which [`port_of`] finds.
fn gue(inner: &Frame) -> Vec<u8> {
    udp(inner, false)
}

fn gue_checked(inner: &Frame) -> Vec<u8> {
    udp(inner, true)
}

fn udp(inner: &Frame, checked: bool) -> Vec<u8> {
    let network = ipv4(inner, 17, 12, *server(1, 0).ip());
    let header = [0, 4, 0, 0];
    let carried = [&header[..], &inner.packet()].concat();
    let mut udp = UdpHeader::without_ipv4_checksum(port_of(inner), 6080, carried.len()).unwrap();
    if checked {
        udp.checksum = udp.calc_checksum_ipv4(&network, &carried).unwrap();
    }
    [&network.to_bytes()[..], &udp.to_bytes(), &header].concat()
}

/// The GUE source port of a flow, under the seed that tests have.
fn port_of(inner: &Frame) -> u16 {
    let (source, destination) = (inner.source, inner.destination);
    let tuple = lb_common::tuple::Tuple::new(
        inner.network().protocol.0,
        (*source.ip(), source.port()),
        (*destination.ip(), destination.port()),
    );
    lb_common::tunnel::source_port(tuple.hash(0x5eed) as u32)
}

#[test]
fn every_kind_of_tunnel_in_every_state_of_a_connection() {
    let rows: [(&str, Outer); 7] = [
        ("", ipip),
        ("--tun-type gre", gre),
        ("--tun-type gre --tun-csum", gre_checked),
        ("--tun-type gue --tun-port 6080 --tun-nocsum", gue),
        ("--tun-type gue --tun-port 6080 --tun-csum", gue_checked),
        // Nothing is left to be offloaded in a packet that comes from a wire.
        ("--tun-type gue --tun-port 6080 --tun-remcsum", gue_checked),
        ("--tun-type ipip", ipip),
    ];
    let changes: [(&str, Change); 9] = [
        ("plain", |frame| frame),
        ("with a tag", |frame| frame.tagged(0x8100, 7)),
        ("with two tags and options", |frame| {
            frame.tagged(0x88a8, 100).tagged(0x8100, 7).options([1, 1, 1, 0])
        }),
        ("odd", |frame| frame.payload([0xa5; 1001])),
        ("a step of the sum", |frame| frame.payload([0xff; 24])),
        ("a byte more", |frame| frame.payload([0xff; 25])),
        ("expedited", |frame| frame.service_type(0xb8)),
        ("ECT(1)", |frame| frame.service_type(0x01)),
        ("congestion experienced", |frame| frame.service_type(0xbb)),
    ];
    for (options, outer) in rows {
        let mut fixture = web(options);
        let server = server(1, 80);
        for (number, (what, change)) in changes.iter().enumerate() {
            let client = client(40000 + number as u16);
            let steps = [(SYN, Counted::opened as fn(&Frame) -> Counted), (ACK, Counted::packet_in)];
            for (flags, counted) in steps.into_iter().chain([(PSH | ACK, Counted::packet_in as _); 2]) {
                let frame = change(Frame::tcp(client, VIP, flags));
                let out = frame.clone().sent(to_server(1));
                let out = out.clone().behind(outer(&out));
                let what = format!("{options}, {what}, flags {flags:#x}");
                fixture.expect(&what, CLIENTS, &frame, Expected::Redirect(out), &[(server, counted(&frame))]);
            }
        }
    }
}

#[test]
fn datagrams_go_through_tunnels_too() {
    let mut fixture = Fixture::configured(
        "-A -u 192.168.1.100:53 -s rr
         -a -u 192.168.1.100:53 -r 10.0.0.11:53 -i --tun-type gre --tun-csum",
    );
    for (length, counted) in
        [(0, Counted::opened_inactive as fn(&Frame) -> Counted), (333, Counted::packet_in)]
    {
        let query = Frame::udp(client(5000), SocketAddrV4::new(*VIP.ip(), 53)).payload(vec![0x7e; length]);
        let out = query.clone().sent(to_server(1));
        let out = out.clone().behind(gre_checked(&out));
        fixture.expect(
            "query",
            CLIENTS,
            &query,
            Expected::Redirect(out),
            &[(server(1, 53), counted(&query))],
        );
    }
}

#[test]
fn a_way_through_a_vlan_gets_its_tag() {
    let mut fixture = Fixture::configured(
        "-A -t 192.168.1.100:80 -s rr
         -a -t 192.168.1.100:80 -r 10.7.0.11:80 -i",
    );
    let server = SocketAddrV4::new(Ipv4Addr::new(10, 7, 0, 11), 80);
    for (flags, counted) in [(SYN, Counted::opened as fn(&Frame) -> Counted), (ACK, Counted::packet_in)] {
        let frame = Frame::tcp(client(40000), VIP, flags);
        let out = frame.clone().sent(TO_VLAN).tagged(0x8100, 7);
        let mut outer = ipv4(&out, 4, 0, *server.ip());
        outer.source = [10, 7, 0, 1];
        outer.header_checksum = outer.calc_header_checksum();
        let out = out.behind(outer.to_bytes().to_vec());
        fixture.expect("frame", CLIENTS, &frame, Expected::Redirect(out), &[(server, counted(&frame))]);
    }
}

#[test]
fn what_may_be_fragmented_has_an_identification() {
    let mut fixture = web("");
    let frame = Frame::tcp(client(40000), VIP, SYN).fragmentable();
    for _ in 0..3 {
        let out = fixture.send(CLIENTS, &frame.bytes());
        assert_eq!(out.action, Action::Redirect);
        let (outer, inner) = Ipv4Header::from_slice(&out.bytes[14..]).unwrap();
        assert_eq!(inner, frame.clone().time_to_live(63).packet());
        assert!(!outer.dont_fragment);
        let identification = outer.identification;
        let mut wanted = ipv4(&frame.clone().time_to_live(63), 4, 0, *server(1, 0).ip());
        wanted.identification = identification;
        wanted.header_checksum = wanted.calc_header_checksum();
        assert_eq!(outer, wanted);
    }
    // Without path MTU discovery the outer packet may always be.
    fixture.director.set_sysctl("pmtu_disc", 0).unwrap();
    let out = fixture.send(CLIENTS, &Frame::tcp(client(40001), VIP, SYN).bytes());
    assert!(!Ipv4Header::from_slice(&out.bytes[14..]).unwrap().0.dont_fragment);
    let _ = fixture.counted();
}

#[test]
fn a_tunnels_settings_hold_for_connections_that_are_there() {
    let mut fixture = web("");
    let frame = |flags| Frame::tcp(client(40000), VIP, flags);
    let out = |flags, outer: Outer| {
        let out = frame(flags).sent(to_server(1));
        Expected::Redirect(out.clone().behind(outer(&out)))
    };
    let server = server(1, 80);
    let (syn, ack) = (frame(SYN), frame(ACK));
    fixture.expect("syn", CLIENTS, &syn, out(SYN, ipip), &[(server, Counted::opened(&syn))]);
    let rows: [(&str, Outer); 4] = [
        ("--tun-type gre", gre),
        ("--tun-type gre --tun-csum", gre_checked),
        ("--tun-type gue --tun-port 6080", gue),
        ("", ipip),
    ];
    for (options, outer) in rows {
        fixture.ipvsadm(&format!("-e -t 192.168.1.100:80 -r 10.0.0.11:80 -i {options}"));
        for _ in 0..2 {
            let counted = [(server, Counted::packet_in(&ack))];
            fixture.expect(options, CLIENTS, &ack, out(ACK, outer), &counted);
        }
    }
    // Its method is its own.
    fixture.ipvsadm("-e -t 192.168.1.100:80 -r 10.0.0.11:80 -g");
    fixture.expect("now routed", CLIENTS, &ack, out(ACK, ipip), &[(server, Counted::packet_in(&ack))]);
}

#[test]
fn without_a_neighbour_the_stack_gets_the_outer_packet() {
    let mut fixture = Fixture::configured(
        "-A -t 192.168.1.100:80 -s rr
         -a -t 192.168.1.100:80 -r 10.0.0.99:80 -i",
    );
    let server = SocketAddrV4::new(Ipv4Addr::new(10, 0, 0, 99), 80);
    let changes: [(Change, u16); 2] =
        [(|frame| frame, 40000), (|frame| frame.tagged(0x88a8, 100).tagged(0x8100, 7), 40001)];
    for (change, port) in changes {
        let syn = change(Frame::tcp(client(port), VIP, SYN));
        let inner = syn.clone().time_to_live(63);
        // The stack takes a hop off the outer header when it forwards the packet.
        let outer = ipv4(&syn, 4, 0, *server.ip()).to_bytes().to_vec();
        let expected = Expected::PassChanged(Reason::NeighbourByStack, inner.behind(outer));
        fixture.expect("syn", CLIENTS, &syn, expected, &[(server, Counted::opened(&syn))]);
    }
}

#[test]
fn a_destination_that_is_the_director_gets_the_packet_as_it_is() {
    let mut fixture = Fixture::configured(
        "-A -t 192.168.1.100:80 -s rr
         -a -t 192.168.1.100:80 -r 10.0.0.1:80 -i",
    );
    let server = SocketAddrV4::new(DIRECTOR, 80);
    let syn = Frame::tcp(client(40000), VIP, SYN);
    let expected = Expected::Pass(Reason::LocalDestination);
    fixture.expect("syn", CLIENTS, &syn, expected, &[(server, Counted::opened(&syn))]);
}

#[test]
fn what_is_too_large_is_refused_or_cut_by_the_stack() {
    let rows: [(&str, Outer, usize); 5] = [
        ("", ipip, 20),
        ("--tun-type gre", gre, 24),
        ("--tun-type gre --tun-csum", gre_checked, 28),
        ("--tun-type gue --tun-port 6080", gue, 32),
        ("--tun-type gue --tun-port 6080 --tun-csum", gue_checked, 32),
    ];
    for (options, outer, room) in rows {
        let mut fixture = web(options);
        let server = server(1, 80);
        let largest = 1500 - room - 40;
        let syn = Frame::tcp(client(40000), VIP, SYN).payload(vec![1; largest]);
        let out = syn.clone().sent(to_server(1));
        let out = Expected::Redirect(out.clone().behind(outer(&out)));
        fixture.expect(options, CLIENTS, &syn, out, &[(server, Counted::opened(&syn))]);
        let larger = Frame::tcp(client(40000), VIP, ACK).payload(vec![1; largest + 1]);
        let counted = [(server, Counted::packet_in(&larger))];
        fixture.expect(options, CLIENTS, &larger, Expected::Drop(Reason::TooBig), &counted);
        // Without DF the outer packet is cut.
        let sent = larger.fragmentable();
        let passed = fixture.send(CLIENTS, &sent.bytes());
        assert_eq!((passed.action, passed.reason), (Action::Pass, Some(Reason::FragmentedByStack)));
        let (header, _) = Ipv4Header::from_slice(&passed.bytes[14..]).unwrap();
        assert_eq!((header.time_to_live, header.dont_fragment), (64, false));
        assert_eq!(usize::from(header.total_len), 1501);
        assert!(passed.bytes.ends_with(&sent.time_to_live(63).packet()));
        assert_eq!(header.calc_header_checksum(), header.header_checksum);
    }
}
