//! SCTP: associations by their chunks, their states and timeouts, and the checksum over the payload under NAT.

use std::net::SocketAddrV4;

use lb_common::reason::Reason;
use xipvs::director::Director;

use super::fixture::{
    Action, CLIENTS, Counted, Expected, Fixture, SERVERS, TO_CLIENT, VIP, client, server, to_server,
};
use super::frame::Frame;

const DATA: u8 = 0;
const INIT: u8 = 1;
const INIT_ACK: u8 = 2;
const ABORT: u8 = 6;
const SHUTDOWN: u8 = 7;
const SHUTDOWN_ACK: u8 = 8;
const COOKIE_ECHO: u8 = 10;
const COOKIE_ACK: u8 = 11;
const SHUTDOWN_COMPLETE: u8 = 14;

fn vip() -> SocketAddrV4 {
    SocketAddrV4::new(*VIP.ip(), 5000)
}

fn fixture(destinations: &str) -> Fixture {
    Fixture::configured(&format!("-A --sctp-service 192.168.1.100:5000 -s rr\n{destinations}"))
}

/// State and seconds left of the one connection.
fn listed(fixture: &mut Fixture) -> (String, u32) {
    let rows = fixture.director.connections().unwrap();
    let [row] = &rows[..] else { panic!("{rows:?}") };
    assert_eq!(row.protocol, "SCTP");
    (row.state.clone(), row.expires)
}

#[test]
fn an_association_is_translated_with_its_checksum() {
    let mut fixture = fixture("-a --sctp-service 192.168.1.100:5000 -r 10.0.0.11:7777 -m");
    let (client, server) = (client(40000), server(1, 7777));
    // Chunk, whether the server sends it, the state after it, and its timeout.
    let steps = [
        (INIT, false, "INIT1", 4),
        (INIT_ACK, true, "C-SENT", 61),
        (COOKIE_ECHO, false, "C-REPLIED", 61),
        (COOKIE_ACK, true, "ESTABLISHED", 900),
        (DATA, false, "ESTABLISHED", 900),
        (DATA, true, "ESTABLISHED", 900),
        (SHUTDOWN, false, "S-RECEIVED", 61),
        (SHUTDOWN_ACK, true, "S-ACK-SENT", 61),
        (SHUTDOWN_COMPLETE, false, "CLOSED", 61),
    ];
    let mut active = 0;
    for (number, (kind, out, state, timeout)) in steps.into_iter().enumerate() {
        let what = format!("chunk {kind}");
        let payload = vec![0x5a; [0, 1, 100, 4, 1400, 333, 0, 0, 0][number]];
        let frame = if out { Frame::sctp(server, client, kind) } else { Frame::sctp(client, vip(), kind) };
        let frame = frame.payload(payload);
        let now_active = i64::from(state == "ESTABLISHED");
        let counted = match (out, number) {
            (_, 0) => Counted::opened_inactive(&frame),
            (true, _) => Counted::packet_out(&frame),
            (false, _) => Counted::packet_in(&frame),
        };
        let counted = counted.and_now(now_active - active, active - now_active);
        active = now_active;
        if out {
            let sent = Frame { source: vip(), ..frame.clone() }.sent(TO_CLIENT);
            fixture.expect(&what, SERVERS, &frame, Expected::Redirect(sent), &[(server, counted)]);
        } else {
            let sent = frame.clone().destination(server).sent(to_server(1));
            fixture.expect(&what, CLIENTS, &frame, Expected::Redirect(sent), &[(server, counted)]);
        }
        assert_eq!(listed(&mut fixture).0, state, "{what}");
        let left = listed(&mut fixture).1;
        assert!((timeout - 1..=timeout).contains(&left), "{what}: {left}");
    }
    // A closed one gives way to a new one.
    let frame = Frame::sctp(client, vip(), INIT);
    assert_eq!(fixture.send(CLIENTS, &frame.bytes()).action, Action::Redirect);
    assert_eq!(listed(&mut fixture).0, "INIT1");
    assert_eq!(fixture.director.table().unwrap().entries[0].service.stats.connections, 2);
}

#[test]
fn direct_routing_changes_nothing_and_knows_the_client_alone() {
    let mut fixture = fixture("-a --sctp-service 192.168.1.100:5000 -r 10.0.0.12:5000 -g");
    // What kernel IPVS made of the same chunks.
    let steps = [
        (INIT, "INIT1"),
        (INIT, "INIT"),
        (COOKIE_ECHO, "ESTABLISHED"),
        (DATA, "ESTABLISHED"),
        (SHUTDOWN, "S-RECEIVED"),
        (SHUTDOWN_COMPLETE, "CLOSED"),
    ];
    for (kind, state) in steps {
        let frame = Frame::sctp(client(40000), vip(), kind).payload([1, 2, 3]);
        let outcome = fixture.send(CLIENTS, &frame.bytes());
        assert_eq!((outcome.action, outcome.bytes), (Action::Redirect, frame.sent(to_server(2)).bytes()));
        assert_eq!(listed(&mut fixture).0, state, "chunk {kind}");
    }
}

#[test]
fn an_init_alone_begins_an_association_unless_told_otherwise() {
    let mut fixture = fixture("-a --sctp-service 192.168.1.100:5000 -r 10.0.0.11:5000 -m");
    let begins = |fixture: &Fixture, port: u16, kind| {
        let outcome = fixture.send(CLIENTS, &Frame::sctp(client(port), vip(), kind).bytes());
        assert!(outcome.reason.is_none_or(|reason| reason == Reason::NoConnection), "{outcome:?}");
        outcome.action == Action::Redirect
    };
    let kinds = [DATA, INIT, INIT_ACK, ABORT, SHUTDOWN, COOKIE_ECHO];
    assert_eq!(
        kinds.map(|kind| begins(&fixture, 40000 + u16::from(kind), kind)),
        [false, true, false, false, false, false]
    );
    fixture.director.set_sysctl("sloppy_sctp", 1).unwrap();
    assert_eq!(
        kinds.map(|kind| begins(&fixture, 41000 + u16::from(kind), kind)),
        [true, true, true, false, true, true]
    );
    // A COOKIE ACK with an ABORT behind it aborts.
    let abort = Frame::sctp(client(40001), vip(), COOKIE_ACK).payload([ABORT, 0, 0, 4]);
    let mut bytes = abort.bytes();
    bytes[14 + 20 + 15] = 4;
    assert_eq!(fixture.send(CLIENTS, &bytes).action, Action::Redirect);
    let rows = fixture.director.connections().unwrap();
    let row = rows.iter().find(|row| row.client_port == 40001).unwrap();
    assert_eq!(row.state, "CLOSED");
}
