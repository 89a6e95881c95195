//! The defences against floods: when they act, and what they do to packets and connections.

use std::net::SocketAddrV4;

use lb_common::reason::Reason;
use lb_common::sysctl::Sysctl;

use super::fixture::{CLIENTS, Fixture, VIP, client};
use super::frame::{Frame, SYN};

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
    let begin = std::time::Instant::now();
    // A NAT connection has two entries.
    while fixture.settings().occupied != 40 {
        assert!(begin.elapsed().as_secs() < 60, "{}", fixture.settings().occupied);
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    fixture.sweep_by_timer(0);
}
