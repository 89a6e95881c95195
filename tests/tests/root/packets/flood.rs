//! A flood of half-open connections: what is established stays, and who completes a handshake gets through.

use std::net::{Ipv4Addr, SocketAddrV4};

use lb_common::reason::Reason;
use xipvs::table::ConnectionReport;

use super::fixture::{CLIENTS, Fixture, SERVERS, VIP, client, server};
use super::frame::{ACK, Frame, RST, SYN};

const SETS: u32 = 64;
const ENTRIES: u32 = 7 * SETS;

fn configured(words: &str) -> Fixture {
    let mut fixture = Fixture::with_sets(SETS);
    fixture.ipvsadm(&format!("-A -t 192.168.1.100:80 -s rr {words}"));
    fixture.ipvsadm("-a -t 192.168.1.100:80 -r 10.0.0.11:80 -m");
    fixture
}

/// A client that nobody ever hears of again.
fn forged(number: u32) -> SocketAddrV4 {
    SocketAddrV4::new((0x0b00_0000 + number).into(), 1024 + (number % 60_000) as u16)
}

fn send(fixture: &Fixture, from: SocketAddrV4, flags: u8) -> Option<Reason> {
    fixture.send(CLIENTS, &Frame::tcp(from, VIP, flags).bytes()).reason
}

/// A whole handshake.
fn establish(fixture: &Fixture, from: SocketAddrV4) {
    assert_eq!(send(fixture, from, SYN), None, "{from}");
    let answer = Frame::tcp(server(1, 80), from, SYN | ACK);
    assert_eq!(fixture.send(SERVERS, &answer.bytes()).reason, None, "{from}");
    assert_eq!(send(fixture, from, ACK), None, "{from}");
}

/// What the destination counts is what the table holds, half for half.
fn is_consistent(fixture: &mut Fixture) {
    let entries = fixture.director.maps().entries().unwrap();
    let (sides, others): (Vec<_>, Vec<_>) = entries.into_iter().partition(|found| found.entry.role == 0);
    assert_eq!(sides.len(), others.iter().filter(|found| found.entry.role == 1).count());
    let counted = fixture.counted()[&server(1, 80)];
    assert_eq!(counted.active + counted.inactive, sides.len() as i64);
}

/// Nothing stays behind when all time is over.
fn ends(fixture: &mut Fixture) {
    for _ in 0..3 {
        fixture.wait(901_000);
        fixture.sweep();
    }
    assert!(fixture.director.maps().entries().unwrap().is_empty());
    assert_eq!(fixture.displaced(), 0);
    is_consistent(fixture);
}

fn survives(words: &str) {
    let mut fixture = configured(words);
    let before = fixture.director.maps().gave_way();
    // A quarter of the table, two entries each.
    let established: Vec<_> = (0..ENTRIES as u16 / 8).map(|number| client(20000 + number)).collect();
    for from in &established {
        establish(&fixture, *from);
    }
    // Four times as many SYNs as there are entries; every now and then somebody comes who means it.
    for number in 0..4 * ENTRIES {
        assert_eq!(send(&fixture, forged(number), SYN), None, "{number}");
        if number % 100 == 0 {
            establish(&fixture, SocketAddrV4::new([203, 0, 113, (number / 100) as u8].into(), 40000));
        }
    }
    is_consistent(&mut fixture);
    let gave_way = fixture.director.maps().gave_way() - before;
    assert!(gave_way > u64::from(2 * ENTRIES), "{gave_way}");
    let late = (0..4 * ENTRIES).step_by(100).map(|number| [203, 0, 113, (number / 100) as u8]);
    for from in established.iter().copied().chain(late.map(|host| SocketAddrV4::new(host.into(), 40000))) {
        assert_eq!(fixture.states()[&from], "ESTABLISHED");
        assert_eq!(send(&fixture, from, ACK), None);
        let answer = Frame::tcp(server(1, 80), from, ACK);
        assert_eq!(fixture.send(SERVERS, &answer.bytes()).reason, None);
    }
    ends(&mut fixture);
}

#[test]
fn established_connections_and_new_clients_survive() {
    survives("");
}

#[test]
fn templates_of_the_flood_give_way_too() {
    survives("-p 300");
}

#[test]
fn what_is_established_never_gives_way() {
    let mut fixture = configured("");
    let before = fixture.director.maps().gave_way();
    let mut reasons = Vec::new();
    for number in 0..ENTRIES {
        let from = forged(number);
        let reason = send(&fixture, from, SYN);
        if reason.is_none() {
            assert_eq!(send(&fixture, from, ACK), None);
        }
        reasons.push(reason);
    }
    let held = reasons.iter().filter(|reason| reason.is_none()).count();
    assert!(reasons.iter().all(|reason| matches!(reason, None | Some(Reason::TableFull))));
    assert!(held as u32 > ENTRIES * 2 / 5, "{held}");
    assert_eq!(fixture.director.maps().gave_way(), before);
    is_consistent(&mut fixture);
    // One that closes makes room at once.
    let first = reasons.iter().position(Option::is_none).unwrap() as u32;
    assert_eq!(send(&fixture, forged(first), RST), None);
    let now =
        (0..2 * ENTRIES).filter(|number| send(&fixture, forged(100_000 + number), SYN).is_none()).count();
    assert!(now > 0);
}

/// What another director had takes the place of what is half-open here, and not of what is established.
#[test]
fn connections_of_another_director_find_room() {
    const MOVED: u32 = ENTRIES / 6;
    let mut fixture = configured("-p 300");
    for number in 0..ENTRIES {
        assert_eq!(send(&fixture, forged(number), SYN), None, "{number}");
    }
    let before = fixture.director.maps().gave_way();
    let address = |number: u32| Ipv4Addr::from(0x0c00_0000 + number);
    let told = |number: u32, port: u16| ConnectionReport {
        protocol: "TCP".into(),
        client: address(number).into(),
        client_port: port,
        virtual_address: (*VIP.ip()).into(),
        virtual_port: VIP.port(),
        destination: (*server(1, 80).ip()).into(),
        destination_port: 80,
        state: if port == 0 { "NONE" } else { "ESTABLISHED" }.into(),
        expires: 100,
        engine: None,
    };
    // With its client's template each has three entries; all together half of the table.
    let connections: Vec<_> = (0..MOVED).flat_map(|number| [told(number, 0), told(number, 40000)]).collect();
    let takeover = fixture.director.adopt(&connections).unwrap();
    assert_eq!((takeover.taken, takeover.left.len()), (connections.len(), 0));
    assert!(fixture.director.maps().gave_way() - before > u64::from(MOVED));
    is_consistent(&mut fixture);
    // Four times as many entries as the table holds: nothing that is established gives way to the rest.
    let connections: Vec<_> = (MOVED..MOVED + 2 * ENTRIES).map(|number| told(number, 40000)).collect();
    let takeover = fixture.director.adopt(&connections).unwrap();
    assert_eq!(takeover.left.values().sum::<usize>(), connections.len() - takeover.taken);
    let states = fixture.states();
    let is_kept = |number: u32| states[&SocketAddrV4::new(address(number), 40000)] == "ESTABLISHED";
    assert!((0..MOVED).all(is_kept));
    assert_eq!(
        states.values().filter(|state| **state == "ESTABLISHED").count(),
        MOVED as usize + takeover.taken
    );
    is_consistent(&mut fixture);
    ends(&mut fixture);
}
