//! The persistence engine `sip`: connections that a destination begins, and its answers in one-packet scheduling.

use std::net::SocketAddrV4;

use lb_common::reason::Reason;
use xipvs::director::Director;

use super::fixture::{
    Action, CLIENTS, Counted, Expected, Fixture, SERVERS, TO_CLIENT, client, server, to_server,
};
use super::frame::Frame;
use super::ipv6;
use super::sip::{RULES, SIP, templates};

/// A message of a server to a client, of a call or none.
fn call(from: SocketAddrV4, port: u16, call: &str) -> Frame {
    let field = if call.is_empty() { String::new() } else { format!("Call-ID: {call}\r\n") };
    Frame::udp(from, client(port)).payload(format!("INVITE sip:a@example.com SIP/2.0\r\n{field}\r\n"))
}

/// What is counted of a call that makes a connection.
fn begun(frame: &Frame) -> Counted {
    Counted { connections: 1, ..Counted::packet_out(frame) }.and_now(0, 1)
}

/// The connections: client and destination.
fn connections(fixture: &mut Fixture) -> Vec<String> {
    let listed = fixture.director.connections().unwrap().into_iter().filter(|row| row.client_port != 0);
    let mut rows: Vec<_> = listed
        .map(|row| format!("{} {}:{}", row.client_port, row.destination, row.destination_port))
        .collect();
    rows.sort();
    rows
}

#[test]
fn what_a_server_begins_is_a_connection_of_its_client() {
    let mut fixture = Fixture::configured(RULES);
    let from = server(1, 5080);
    let frame = call(from, 7000, "one@example.com");
    let out = frame.clone().source(SIP).sent(TO_CLIENT);
    fixture.expect("call", SERVERS, &frame, Expected::Redirect(out.clone()), &[(from, begun(&frame))]);
    // From then on it is one as any other.
    fixture.expect("again", SERVERS, &frame, Expected::Redirect(out), &[(from, Counted::packet_out(&frame))]);
    let answer = Frame::udp(client(7000), SIP);
    let out = answer.clone().destination(from).sent(to_server(1));
    fixture.expect(
        "answer",
        CLIENTS,
        &answer,
        Expected::Redirect(out),
        &[(from, Counted::packet_in(&answer))],
    );
    assert_eq!(templates(&mut fixture), ["UDP 192.168.1.10 10.0.0.11 sip one@example.com"]);
    let listed = fixture.director.connections().unwrap();
    assert!(listed.iter().any(|row| row.client_port == 0 && row.state == "ASSURED"), "{listed:?}");
    // The client's messages follow it.
    for port in 7001..7004 {
        let frame = Frame::udp(client(port), SIP).payload("OPTIONS\r\nCall-ID: one@example.com\r\n\r\n");
        let out = frame.clone().destination(from).sent(to_server(1));
        let counted = [(from, Counted::opened_inactive(&frame))];
        fixture.expect("follows", CLIENTS, &frame, Expected::Redirect(out), &counted);
    }
}

#[test]
fn what_begins_no_call_passes() {
    let mut fixture = Fixture::configured(RULES);
    let pass = || Expected::Pass(Reason::NoReplyConnection);
    for (what, frame) in [
        ("no Call-ID", call(server(1, 5080), 7000, "")),
        ("empty", Frame::udp(server(1, 5080), client(7000)).payload([])),
        ("another port", call(server(1, 5081), 7000, "x")),
        ("no masquerading", call(server(2, 5060), 7000, "x")),
        ("no hop left", call(server(1, 5080), 7000, "x").time_to_live(1)),
    ] {
        fixture.expect(what, SERVERS, &frame, pass(), &[]);
    }
    // To the director itself nobody calls.
    let own = SocketAddrV4::new([10, 0, 0, 1].into(), 7000);
    let frame = call(server(1, 5080), 7000, "x").destination(own);
    fixture.expect("director", SERVERS, &frame, pass(), &[]);
    // What goes to the service goes where services lead.
    let frame = call(server(1, 5080), 7000, "x").destination(SIP);
    let before = fixture.counted();
    assert_eq!(fixture.send(SERVERS, &frame.bytes()).reason, None);
    let after = fixture.counted();
    let sum =
        |all: &std::collections::BTreeMap<_, Counted>| all.values().map(|its| its.in_packets).sum::<i64>();
    assert_eq!(sum(&after) - sum(&before), 1);
    fixture.ipvsadm("-d -u 192.168.1.100:5060 -r 10.0.0.11:5080");
    fixture.expect("deleted", SERVERS, &call(server(1, 5080), 7000, "x"), pass(), &[]);
    fixture.ipvsadm(
        "-a -u 192.168.1.100:5060 -r 10.0.0.11:5080 -m
         -E -u 192.168.1.100:5060 -s rr -p 300",
    );
    fixture.expect("no engine", SERVERS, &call(server(1, 5080), 7000, "x"), pass(), &[]);
}

#[test]
fn a_call_goes_where_its_last_server_is() {
    let mut fixture = Fixture::configured(RULES);
    fixture.ipvsadm("-a -u 192.168.1.100:5060 -r 10.0.0.13:5060 -m");
    for (number, port) in [(1, 5080), (3, 5060)] {
        let frame = call(server(number, port), 7000, "x");
        assert_eq!(fixture.send(SERVERS, &frame.bytes()).reason, None);
    }
    // A client has one connection from a port: its packets go to the server that spoke last.
    assert_eq!(connections(&mut fixture), ["7000 10.0.0.13:5060"]);
    let frame = Frame::udp(client(7001), SIP).payload("OPTIONS\r\nCall-ID: x\r\n\r\n");
    let out = frame.clone().destination(server(3, 5060)).sent(to_server(3));
    let counted = [(server(3, 5060), Counted::opened_inactive(&frame))];
    fixture.expect("follows", CLIENTS, &frame, Expected::Redirect(out), &counted);
    // The template of the first serves no more, and goes in its time.
    assert_eq!(templates(&mut fixture).len(), 2);
    for _ in 0..4 {
        fixture.wait(301_000);
        fixture.sweep();
    }
    assert!(fixture.director.maps().entries().unwrap().is_empty());
}

#[test]
fn of_services_with_a_server_in_common_the_last_has_its_calls() {
    let mut fixture = Fixture::configured(RULES);
    fixture.ipvsadm(
        "-A -u 192.168.1.101:5060 -s rr -p 300 --pe sip
         -a -u 192.168.1.101:5060 -r 10.0.0.11:5080 -m",
    );
    let from = |fixture: &Fixture, port| {
        let bytes = fixture.send(SERVERS, &call(server(1, 5080), port, "x").bytes()).bytes;
        <[u8; 4]>::try_from(&bytes[26..30]).unwrap()
    };
    assert_eq!(from(&fixture, 7000), [192, 168, 1, 101]);
    // What is edited does not come last by that.
    fixture.ipvsadm("-e -u 192.168.1.100:5060 -r 10.0.0.11:5080 -m -w 5");
    assert_eq!(from(&fixture, 7001), [192, 168, 1, 101]);
    fixture.ipvsadm("-D -u 192.168.1.101:5060");
    assert_eq!(from(&fixture, 7002), [192, 168, 1, 100]);
}

#[test]
fn answers_of_one_packet_are_one_packet() {
    let mut fixture = Fixture::configured(
        "-A -u 192.168.1.100:5060 -s rr -o --pe sip
         -a -u 192.168.1.100:5060 -r 10.0.0.11:5080 -m",
    );
    let from = server(1, 5080);
    for frame in [call(from, 7000, "x"), call(from, 7000, ""), Frame::udp(from, client(7001)).payload([])] {
        let out = frame.clone().source(SIP).sent(TO_CLIENT);
        let counted = Counted { connections: 1, ..Counted::packet_out(&frame) };
        fixture.expect("once", SERVERS, &frame, Expected::Redirect(out), &[(from, counted)]);
    }
    assert!(fixture.director.maps().entries().unwrap().is_empty());
    // With persistence they have a template, and need a call.
    fixture.ipvsadm("-E -u 192.168.1.100:5060 -s rr -o -p 300 --pe sip");
    let frame = call(from, 7000, "x");
    let out = frame.clone().source(SIP).sent(TO_CLIENT);
    let counted = Counted { connections: 1, ..Counted::packet_out(&frame) };
    fixture.expect("once", SERVERS, &frame, Expected::Redirect(out), &[(from, counted)]);
    let none = call(from, 7000, "");
    fixture.expect("no call", SERVERS, &none, Expected::Pass(Reason::NoReplyConnection), &[]);
    assert_eq!(templates(&mut fixture), ["UDP 192.168.1.10 10.0.0.11 sip x"]);
}

#[test]
fn servers_of_ipv6_begin_as_well() {
    for once in ["", "-o"] {
        let mut fixture = Fixture::configured(&format!(
            "-A -u [fd00:1::100]:5060 -s rr {once} -p 300 --pe sip
             -a -u [fd00:1::100]:5060 -r [fd00:2::11]:5080 -m"
        ));
        let from = ipv6::at("fd00:2::11", 5080);
        let with =
            |call: &[u8]| ipv6::Frame::udp(from, ipv6::client(7000), &[b"OK\r\n", call, b"\r\n"].concat());
        for _ in 0..2 {
            let frame = with(b"i: x");
            let outcome = fixture.send(SERVERS, &frame.bytes());
            assert_eq!((outcome.action, outcome.reason), (Action::Redirect, None), "{once}");
            assert_eq!(outcome.bytes, frame.sent(TO_CLIENT, ipv6::vip(5060), ipv6::client(7000)), "{once}");
        }
        let listed = fixture.director.connections().unwrap();
        let templates = listed.iter().filter(|row| row.client_port == 0 && row.state == "ASSURED");
        assert_eq!((templates.count(), listed.len()), (1, if once.is_empty() { 2 } else { 1 }), "{listed:?}");
        if once.is_empty() {
            let answer = ipv6::Frame::udp(ipv6::client(7000), ipv6::vip(5060), b"hello");
            let outcome = fixture.send(CLIENTS, &answer.bytes());
            assert_eq!(outcome.bytes, answer.sent(to_server(1), ipv6::client(7000), from));
        } else {
            assert_eq!(fixture.send(SERVERS, &with(b"").bytes()).reason, Some(Reason::NoReplyConnection));
        }
    }
}
