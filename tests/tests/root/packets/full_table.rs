//! A connection table that runs full: nothing is lost that was accepted, nothing is half there, nothing stays.

use lb_common::reason::Reason;

use super::fixture::{CLIENTS, Fixture, SERVERS, VIP, client, server};
use super::frame::{ACK, Frame, SYN};

/// Sets of seven entries; small enough to fill, large enough for all alternates of a set to differ.
const SETS: u32 = 16;
const ENTRIES: usize = 7 * SETS as usize;

fn configured(method: &str) -> Fixture {
    let mut fixture = Fixture::with_sets(SETS);
    fixture.ipvsadm("-A -t 192.168.1.100:80 -s rr");
    fixture.ipvsadm(&format!("-a -t 192.168.1.100:80 -r 10.0.0.11:80 {method}"));
    fixture
}

/// Establishes a connection from each of so many ports, which then does not give way; returns the ports that got one.
fn fill(fixture: &Fixture, ports: std::ops::Range<u16>) -> Vec<u16> {
    let opens = |port: &u16| match fixture.send(CLIENTS, &Frame::tcp(client(*port), VIP, SYN).bytes()).reason
    {
        None => fixture.send(CLIENTS, &Frame::tcp(client(*port), VIP, ACK).bytes()).reason.is_none(),
        Some(Reason::TableFull) => false,
        Some(other) => panic!("{other:?}"),
    };
    ports.filter(opens).collect()
}

/// What the destination counts and the table holds of these connections, no more and no less.
#[track_caller]
fn holds(fixture: &mut Fixture, opened: i64, ports: &[u16], entries_each: usize) {
    let counted = fixture.counted()[&server(1, 80)];
    assert_eq!(counted.connections, opened);
    assert_eq!((counted.active, counted.inactive), (ports.len() as i64, 0));
    assert_eq!(fixture.director.maps().entries().unwrap().len(), ports.len() * entries_each);
    let held: Vec<u16> = fixture.states().keys().map(|client| client.port()).collect();
    assert_eq!(held, ports);
}

fn check(method: &str, entries_each: usize) {
    let mut fixture = configured(method);
    let opened = fill(&fixture, 20000..20000 + 2 * ENTRIES as u16);
    assert!(opened.len() * entries_each > ENTRIES * 9 / 10, "{} of {ENTRIES}", opened.len());
    holds(&mut fixture, opened.len() as i64, &opened, entries_each);
    let displaced = fixture.displaced();
    assert!(displaced > 0, "none lies elsewhere");
    // Every one of them carries packets, both ways, and can be established.
    for port in &opened {
        let ack = Frame::tcp(client(*port), VIP, ACK);
        assert_eq!(fixture.send(CLIENTS, &ack.bytes()).reason, None, "{port}");
        let from = if method == "-m" { server(1, 80) } else { VIP };
        let answer = Frame::tcp(from, client(*port), ACK);
        let wanted = if method == "-m" { None } else { Some(Reason::DirectReply) };
        assert_eq!(fixture.send(SERVERS, &answer.bytes()).reason, wanted, "{port}");
    }
    assert!(fixture.states().values().all(|state| *state == "ESTABLISHED"));
    holds(&mut fixture, opened.len() as i64, &opened, entries_each);
    // Those that were refused have nothing.
    let refused = (20000..20000 + 2 * ENTRIES as u16).filter(|port| !opened.contains(port));
    for port in refused {
        let ack = Frame::tcp(client(port), VIP, ACK);
        assert_eq!(fixture.send(CLIENTS, &ack.bytes()).reason, Some(Reason::NoConnection));
    }
    // All die, all is given back, and there is room again.
    fixture.wait(901_000);
    fixture.sweep();
    holds(&mut fixture, opened.len() as i64, &[], entries_each);
    assert_eq!(fixture.displaced(), 0);
    let again = fill(&fixture, 30000..30000 + 2 * ENTRIES as u16);
    assert!(again.len() * entries_each > ENTRIES * 9 / 10);
    holds(&mut fixture, (opened.len() + again.len()) as i64, &again, entries_each);
}

#[test]
fn direct_routing() {
    check("-g", 1);
}

#[test]
fn nat_both_entries_or_none() {
    check("-m", 2);
}

#[test]
fn a_refused_connection_is_made_when_there_is_room() {
    let mut fixture = configured("-g");
    let opened = fill(&fixture, 20000..20000 + 2 * ENTRIES as u16);
    let refused: Vec<u16> =
        (20000..20000 + 2 * ENTRIES as u16).filter(|port| !opened.contains(port)).collect();
    assert!(!refused.is_empty());
    fixture.wait(901_000);
    // No sweep has come by: only those make room that are looked up.
    let ack = |port: u16| fixture.send(CLIENTS, &Frame::tcp(client(port), VIP, ACK).bytes()).reason;
    assert!(opened.iter().all(|port| ack(*port) == Some(Reason::NoConnection)));
    assert_eq!(fixture.displaced(), 0);
    let now = fill(&fixture, refused[0]..refused[0] + 50);
    assert_eq!(now.len(), 50);
    holds(&mut fixture, (opened.len() + 50) as i64, &now, 1);
}
