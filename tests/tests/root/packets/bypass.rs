//! `cache_bypass`: what a mark's service has no destination for goes where its sender wanted it to go.

use std::net::SocketAddrV4;

use lb_common::reason::Reason;
use xipvs::director::Director;

use super::fixture::{Action, CLIENTS, Expected, Fixture, SERVERS, client, server, to_server};
use super::frame::{ACK, FIN, Frame, SYN};
use super::ipv6;
use super::mark::marked;

const WEB: &str = "-A -f 7 -s rr
     -A -t 192.168.1.100:80 -s rr";

fn bypassing() -> Fixture {
    let mut fixture = Fixture::configured(WEB);
    marked(
        &mut fixture,
        &["7 --destination-ports 80 --protocol tcp", "7 --protocol udp --destination 10.0.0.0/8"],
    );
    fixture.director.set_sysctl("cache_bypass", 1).unwrap();
    fixture
}

/// The listing's lines of connections: state, virtual address, destination.
fn listed(fixture: &mut Fixture) -> Vec<String> {
    let connections = fixture.director.connections().unwrap();
    let line = |it: &xipvs::table::ConnectionReport| {
        let (there, to) = (it.virtual_address, it.destination);
        format!("{} {there}:{} {to}:{}", it.state, it.virtual_port, it.destination_port)
    };
    connections.iter().map(line).collect()
}

#[test]
fn without_a_destination_a_connection_goes_to_its_own_address() {
    let mut fixture = bypassing();
    // The origin, which is no destination.
    let origin = server(1, 80);
    for (flags, state) in
        [(SYN, "SYN_RECV"), (ACK, "ESTABLISHED"), (ACK, "ESTABLISHED"), (FIN | ACK, "CLOSE_WAIT")]
    {
        let frame = Frame::tcp(client(40000), origin, flags);
        let out = Expected::Redirect(frame.clone().sent(to_server(1)));
        fixture.expect(state, CLIENTS, &frame, out, &[]);
        assert_eq!(listed(&mut fixture), [format!("{state} 10.0.0.11:80 0.0.0.0:0")]);
    }
    // An answer that comes by moves the state, and is left to the stack.
    let answer = Frame::tcp(origin, client(40000), FIN | ACK);
    fixture.expect("answer", SERVERS, &answer, Expected::Pass(Reason::DirectReply), &[]);
    assert_eq!(listed(&mut fixture), ["TIME_WAIT 10.0.0.11:80 0.0.0.0:0"]);
    // Another's way is its own, and datagrams go as well.
    let others = [
        (Frame::tcp(client(40001), server(2, 80), SYN), to_server(2)),
        (Frame::udp(client(40002), server(3, 53)), to_server(3)),
    ];
    for (frame, link) in &others {
        for _ in 0..2 {
            let out = Expected::Redirect(frame.clone().sent(*link));
            fixture.expect("another", CLIENTS, frame, out, &[]);
        }
    }
    // They stay where they are when a destination comes, and new ones do not come.
    fixture.ipvsadm("-a -f 7 -r 10.0.0.14:0 -g");
    for (frame, link) in &others {
        assert_eq!(fixture.send(CLIENTS, &frame.bytes()).bytes, frame.clone().sent(*link).bytes());
    }
    let new = Frame::tcp(client(40005), origin, SYN);
    assert_eq!(fixture.send(CLIENTS, &new.bytes()).bytes[..6], to_server(4)[0]);
    // Weight 0 is none.
    fixture.ipvsadm("-e -f 7 -r 10.0.0.14:0 -g -w 0");
    let new = Frame::tcp(client(40006), origin, SYN);
    assert_eq!(fixture.send(CLIENTS, &new.bytes()).bytes[..6], to_server(1)[0]);
}

#[test]
fn what_stays_as_it_was() {
    let mut fixture = bypassing();
    let refused = |fixture: &mut Fixture, what: &str, to: SocketAddrV4| {
        let frame = Frame::tcp(client(40000), to, SYN);
        fixture.expect(what, CLIENTS, &frame, Expected::Drop(Reason::NoDestination), &[]);
    };
    refused(&mut fixture, "the director's own address", SocketAddrV4::new([192, 168, 1, 100].into(), 80));
    fixture.director.set_sysctl("cache_bypass", 0).unwrap();
    refused(&mut fixture, "switched off", server(1, 80));
    fixture.director.set_sysctl("cache_bypass", 1).unwrap();
    marked(&mut fixture, &[]);
    refused(&mut fixture, "a service with an address", SocketAddrV4::new([192, 168, 1, 100].into(), 80));
    assert_eq!(listed(&mut fixture), Vec::<String>::new());
}

#[test]
fn the_stack_helps_where_it_can() {
    let mut fixture = bypassing();
    // No neighbour yet.
    let far = SocketAddrV4::new([10, 0, 0, 99].into(), 80);
    let syn = Frame::tcp(client(40000), far, SYN);
    fixture.expect("neighbour", CLIENTS, &syn, Expected::Pass(Reason::NeighbourByStack), &[]);
    // Too large, and may be cut or not: a way of 600 bytes.
    let narrow = server(8, 80);
    let syn = Frame::tcp(client(40000), narrow, SYN).payload([1; 700]);
    fixture.expect("large", CLIENTS, &syn, Expected::Drop(Reason::TooBig), &[]);
    let syn = syn.fragmentable();
    fixture.expect("large", CLIENTS, &syn, Expected::Pass(Reason::FragmentedByStack), &[]);
    let last = Frame::tcp(client(40001), server(1, 80), SYN).time_to_live(1);
    fixture.expect("hop", CLIENTS, &last, Expected::Drop(Reason::TimeExceeded), &[]);
}

#[test]
fn ipv6_does_as_well() {
    let mut fixture = Fixture::configured("-A -f 7 -6 -s rr");
    marked(&mut fixture, &["7 --destination-ports 80 --protocol tcp"]);
    fixture.director.set_sysctl("cache_bypass", 1).unwrap();
    let origin = ipv6::at("fd00:2::11", 80);
    for flags in [SYN, ACK, ACK] {
        let frame = ipv6::Frame::tcp(ipv6::client(40000), origin, flags);
        let outcome = fixture.send(CLIENTS, &frame.bytes());
        assert_eq!((outcome.action, outcome.reason), (Action::Redirect, None));
        assert_eq!(outcome.bytes, frame.sent(to_server(1), ipv6::client(40000), origin));
    }
    assert_eq!(listed(&mut fixture), ["ESTABLISHED fd00:2::11:80 :::0"]);
    let own = ipv6::Frame::tcp(ipv6::client(40000), ipv6::at("fd00:1::1", 80), SYN);
    assert_eq!(fixture.send(CLIENTS, &own.bytes()).reason, Some(Reason::NoDestination));
}
