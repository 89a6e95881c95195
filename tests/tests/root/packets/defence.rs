//! The defences against floods: when they act, and what they do to packets and connections.

use std::net::SocketAddrV4;
use std::time::{Duration, Instant};

use lb_common::reason::Reason;
use lb_common::sysctl::Sysctl;

use super::fixture::{CLIENTS, Fixture, VIP, client, server};
use super::frame::{ACK, Frame, SYN};

/// The table has 448 places, of which 56 are to stay free.
const SETS: u32 = 64;

fn configured(words: &str, sysctls: &[(&str, u32)]) -> Fixture {
    let mut fixture = Fixture::with_sets(SETS);
    fixture.ipvsadm("-A -t 192.168.1.100:80 -s rr");
    fixture.ipvsadm(&format!("-a -t 192.168.1.100:80 -r 10.0.0.11:80 {words}"));
    for (name, value) in sysctls {
        fixture.director.set_sysctl(name, *value).unwrap();
    }
    fixture
}

/// What `xipvs set` shows.
fn shown(fixture: &mut Fixture, sysctl: Sysctl) -> u32 {
    fixture.director.sysctls().unwrap().into_iter().find(|(other, _)| *other == sysctl).unwrap().1
}

fn send(fixture: &Fixture, from: SocketAddrV4, flags: u8) -> Option<Reason> {
    fixture.send(CLIENTS, &Frame::tcp(from, VIP, flags).bytes()).reason
}

fn datagram(fixture: &Fixture, port: u16) -> Option<Reason> {
    fixture.send(CLIENTS, &Frame::udp(client(port), VIP).bytes()).reason
}

/// Opens connections until so many places have an entry, as the sweep counts.
fn fill(fixture: &Fixture, occupied: u32) {
    for number in 0..20_000 {
        if number % 10 == 0 {
            fixture.sweep();
        }
        if fixture.settings().occupied >= occupied {
            return;
        }
        let from = SocketAddrV4::new((0x0b00_0000 + number).into(), 1024 + (number % 60_000) as u16);
        send(fixture, from, SYN);
    }
    panic!("{} of {occupied}", fixture.settings().occupied);
}

/// How many of so many SYNs are refused.
fn refused(fixture: &Fixture, ports: std::ops::Range<u16>) -> usize {
    let reasons = ports.map(|port| send(fixture, client(port), SYN));
    reasons.filter(|reason| *reason == Some(Reason::DropPacket)).count()
}

#[test]
fn drop_packet_acts_by_itself_while_places_are_scarce() {
    for mode in [1, 2] {
        let mut fixture = configured("-g", &[("drop_packet", mode)]);
        fixture.sweep();
        assert_eq!(shown(&mut fixture, Sysctl::DropPacket), 1);
        assert_eq!(refused(&fixture, 40000..40020), 0);
        // From 393 on fewer than 56 are free; of 56 / (56 - 28) one in two is refused at 420.
        fixture.director.set_sysctl("drop_packet", 0).unwrap();
        fill(&fixture, 420);
        fixture.director.set_sysctl("drop_packet", mode).unwrap();
        assert_eq!(shown(&mut fixture, Sysctl::DropPacket), 2);
        let free = 448 - fixture.settings().occupied;
        let rate = (56 / (56 - free)) as usize;
        assert_eq!(refused(&fixture, 41000..41020), 20usize.div_ceil(rate), "{free} free");
        // None is to stay free: no place is scarce.
        fixture.director.set_sysctl("amemthresh", 0).unwrap();
        assert_eq!(shown(&mut fixture, Sysctl::DropPacket), 1);
        assert_eq!(refused(&fixture, 42000..42020), 0);
        fixture.director.set_sysctl("amemthresh", 1024).unwrap();
        assert_eq!(shown(&mut fixture, Sysctl::DropPacket), 2);
        // The flood is over.
        fixture.wait(61_000);
        fixture.sweep();
        assert_eq!(fixture.settings().occupied, 0);
        assert_eq!(shown(&mut fixture, Sysctl::DropPacket), 1);
        assert_eq!(refused(&fixture, 43000..43020), 0);
    }
}

#[test]
fn secure_tcp_acts_by_itself_while_places_are_scarce() {
    let mut fixture = configured("-g", &[("secure_tcp", 1)]);
    assert_eq!(send(&fixture, client(40000), SYN), None);
    fill(&fixture, 420);
    assert_eq!(shown(&mut fixture, Sysctl::SecureTcp), 2);
    // One that gives way to no other has its own place: the table is not full.
    assert_eq!(send(&fixture, client(40001), SYN), None);
    let states = fixture.states();
    assert_eq!((states[&client(40000)], states[&client(40001)]), ("SYN_RECV", "SYNACK"));
    fixture.wait(121_000);
    fixture.sweep();
    assert_eq!(shown(&mut fixture, Sysctl::SecureTcp), 1);
    assert_eq!(send(&fixture, client(40002), SYN), None);
    assert_eq!(fixture.states()[&client(40002)], "SYN_RECV");
}

#[test]
fn the_timer_counts_how_full_the_table_is() {
    let fixture = configured("-m", &[]);
    for port in 40000..40020 {
        assert_eq!(send(&fixture, client(port), SYN), None);
    }
    fixture.sweep_by_timer(4);
    // A NAT connection has two entries.
    wait_until(|| fixture.settings().occupied == 40);
    fixture.sweep_by_timer(0);
}

/// Waits in earnest, as the timer does.
fn wait_until(condition: impl Fn() -> bool) {
    let begin = Instant::now();
    while !condition() {
        assert!(begin.elapsed().as_secs() < 60);
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// The clients of connections, when the timer's sweep has come around so many times.
fn left_after(fixture: &Fixture, turns: u32) -> Vec<u16> {
    let turn = || fixture.settings().estimator_turn;
    // Whole table at each tick, so that a second is as good as a hundred.
    fixture.sweep_by_timer(SETS);
    let begin = turn();
    wait_until(|| turn().wrapping_sub(begin) > turns);
    fixture.sweep_by_timer(0);
    fixture.states().into_keys().map(|client| client.port()).collect()
}

/// So many turns that what falls at every second look has fallen: one in 32 sets is come by. It has not once in a million runs.
const MANY: u32 = 900;

#[test]
fn half_open_connections_fall_to_drop_entry() {
    for (method, words, entries) in [("-m", "", 40), ("-g", "", 20), ("-m", "-p 300", 41)] {
        let mut fixture = Fixture::with_sets(SETS);
        let before = fixture.director.maps().fell();
        fixture.ipvsadm(&format!("-A -t 192.168.1.100:80 -s rr {words}"));
        fixture.ipvsadm(&format!("-a -t 192.168.1.100:80 -r 10.0.0.11:80 {method}"));
        for port in 40000..40020 {
            assert_eq!([SYN, ACK].map(|flags| send(&fixture, client(port), flags)), [None; 2]);
        }
        for number in 0..60 {
            let from = SocketAddrV4::new((0x0b00_0000 + number).into(), 1024 + number as u16);
            assert_eq!(send(&fixture, from, SYN), None);
        }
        // Off, and idle.
        assert_eq!(left_after(&fixture, 100).len(), 80);
        fixture.director.set_sysctl("drop_entry", 1).unwrap();
        assert_eq!(left_after(&fixture, 100).len(), 80);
        fixture.director.set_sysctl("drop_entry", 3).unwrap();
        fixture.sweep_by_timer(SETS);
        wait_until(|| fixture.director.maps().fell() - before == 60);
        assert_eq!(left_after(&fixture, 100), (40000..40020).collect::<Vec<_>>(), "{method} {words}");
        // Both sides are gone, and the templates of those; nothing is counted for them any more.
        assert_eq!(fixture.director.maps().entries().unwrap().len(), entries);
        assert_eq!(fixture.director.maps().fell() - before, 60);
        let counted = fixture.counted()[&server(1, 80)];
        assert_eq!((counted.active, counted.inactive), (20, 0));
        assert_eq!(fixture.displaced(), 0);
    }
}

#[test]
fn idle_connections_of_few_packets_fall_to_drop_entry() {
    let mut fixture = configured("-m", &[]);
    fixture.ipvsadm(
        "-A -u 192.168.1.100:80 -s rr
         -a -u 192.168.1.100:80 -r 10.0.0.12:80 -m",
    );
    // As many as the director looks at whole: one a second, and those of the handshake.
    for (port, packets) in [(40000, 2), (40001, 8), (40002, 9), (40003, 30)] {
        assert_eq!(send(&fixture, client(port), SYN), None);
        for _ in 1..packets {
            assert_eq!(send(&fixture, client(port), ACK), None);
            fixture.wait(1100);
        }
    }
    for (port, packets) in [(41000, 1), (41001, 8), (41002, 9)] {
        for _ in 0..packets {
            assert_eq!(datagram(&fixture, port), None);
            fixture.wait(1100);
        }
    }
    fixture.director.set_sysctl("drop_entry", 3).unwrap();
    fixture.wait(61_000);
    // Each has sent a packet just now but these two.
    for port in [40001, 40002, 40003] {
        assert_eq!(send(&fixture, client(port), ACK), None);
    }
    assert_eq!([41001, 41002].map(|port| datagram(&fixture, port)), [None; 2]);
    assert_eq!(left_after(&fixture, MANY), [40001, 40002, 40003, 41001, 41002]);
    fixture.wait(61_000);
    // Those of eight have had their ninth packet.
    assert_eq!(left_after(&fixture, 300), [40001, 40002, 40003, 41001, 41002]);
}

#[test]
fn templates_of_one_packet_scheduling_do_not_fall() {
    let mut fixture = Fixture::with_sets(SETS);
    fixture.ipvsadm(
        "-A -u 192.168.1.100:80 -s rr -o -p 300
         -a -u 192.168.1.100:80 -r 10.0.0.12:80 -m",
    );
    assert_eq!(datagram(&fixture, 40000), None);
    fixture.director.set_sysctl("drop_entry", 3).unwrap();
    fixture.wait(61_000);
    left_after(&fixture, 300);
    assert_eq!(fixture.director.maps().entries().unwrap().len(), 1);
}
