//! lblc and lblcr: what an address keeps, over edits, deletions, load and time.

use std::net::SocketAddrV4;

use super::fixture::{Action, CLIENTS, Fixture, VIP, client};
use super::frame::{Frame, SYN};
use super::ipv6;
use super::mark::marked;

/// A service of destinations 1, 2, 3 ... of these weights, added in this order.
fn service(scheduler: &str, weights: &[u32]) -> Fixture {
    let mut fixture = Fixture::configured(&format!("-A -t 192.168.1.100:80 -s {scheduler}"));
    for (number, weight) in (1..).zip(weights) {
        destination(&mut fixture, "-a", number, &format!("-w {weight}"));
    }
    fixture
}

/// Carries out a command about a destination.
fn destination(fixture: &mut Fixture, command: &str, number: u8, settings: &str) {
    let method = if command == "-d" { "" } else { "-m" };
    let address = format!("10.0.0.{}:80", 10 + number);
    fixture.ipvsadm(&format!("{command} -t 192.168.1.100:80 -r {address} {method} {settings}"));
}

/// The number of the destination that a new connection gets, 0 for none.
fn connect_to(fixture: &Fixture, port: u16, there: SocketAddrV4) -> u8 {
    let outcome = fixture.send(CLIENTS, &Frame::tcp(client(port), there, SYN).bytes());
    if outcome.action == Action::Redirect { outcome.bytes[33] - 10 } else { 0 }
}

fn connect(fixture: &Fixture, port: u16) -> u8 {
    connect_to(fixture, port, VIP)
}

#[test]
fn an_address_keeps_its_destination_over_changes() {
    let mut fixture = service("lblc", &[9, 9, 9]);
    assert_eq!(connect(&fixture, 40000), 3);
    destination(&mut fixture, "-a", 4, "-w 9");
    assert_eq!(connect(&fixture, 40001), 3);
    // Draining, it serves no more; what takes its place stays.
    destination(&mut fixture, "-e", 3, "-w 0");
    assert_eq!(connect(&fixture, 40002), 4);
    destination(&mut fixture, "-e", 3, "-w 9");
    assert_eq!(connect(&fixture, 40003), 4);
    destination(&mut fixture, "-d", 4, "");
    assert_eq!(connect(&fixture, 40004), 2);
    destination(&mut fixture, "-a", 4, "-w 9");
    assert_eq!(connect(&fixture, 40005), 2);
    // Deleted and added again, between two connections, it is the same one.
    destination(&mut fixture, "-d", 2, "");
    destination(&mut fixture, "-a", 2, "-w 9");
    assert_eq!(connect(&fixture, 40006), 2);
    // Also when nobody was left meanwhile.
    for number in 1..=4 {
        destination(&mut fixture, "-d", number, "");
    }
    assert_eq!(connect(&fixture, 40007), 0);
    for number in [2, 1, 3] {
        destination(&mut fixture, "-a", number, "-w 9");
    }
    assert_eq!(connect(&fixture, 40008), 2);
}

#[test]
fn an_overloaded_destination_keeps_its_addresses() {
    // Of a set it serves no more.
    for (scheduler, wanted) in [("lblc", [2; 4]), ("lblcr", [2, 2, 1, 1])] {
        let mut fixture = service(scheduler, &[9]);
        destination(&mut fixture, "-a", 2, "-w 9 -x 2");
        let got: Vec<u8> = (40000..40004).map(|port| connect(&fixture, port)).collect();
        assert_eq!(got, wanted, "{scheduler}");
    }
}

#[test]
fn another_scheduler_and_another_service_know_nothing() {
    let mut fixture = service("lblc", &[9, 9]);
    assert_eq!([connect(&fixture, 40000), connect(&fixture, 40001)], [2, 2]);
    fixture.ipvsadm("-E -t 192.168.1.100:80 -s lblc -p 300\n-E -t 192.168.1.100:80 -s lblc");
    assert_eq!(connect(&fixture, 40002), 2);
    fixture.ipvsadm("-E -t 192.168.1.100:80 -s lblcr");
    assert_eq!([connect(&fixture, 40003), connect(&fixture, 40004)], [1, 1]);
    fixture.ipvsadm("-E -t 192.168.1.100:80 -s lc\n-E -t 192.168.1.100:80 -s lblcr");
    destination(&mut fixture, "-a", 3, "-w 9");
    assert_eq!(connect(&fixture, 40005), 3);
    fixture.ipvsadm("-D -t 192.168.1.100:80\n-A -t 192.168.1.100:80 -s lblcr");
    for number in 1..=3 {
        destination(&mut fixture, "-a", number, "-w 9");
    }
    // By their connections, which are there still: 3 has 1, 2 has 3, 1 has 2.
    assert_eq!(connect(&fixture, 40006), 3);
    destination(&mut fixture, "-a", 4, "-w 9");
    assert_eq!(connect(&fixture, 40007), 3);
}

#[test]
fn each_address_of_a_mark_has_its_own() {
    for scheduler in ["lblc", "lblcr"] {
        let mut fixture = Fixture::configured(&format!("-A -f 7 -s {scheduler}"));
        for number in 11..=17 {
            fixture.ipvsadm(&format!("-a -f 7 -r 10.0.0.{number}:0 -m -w 100"));
        }
        marked(&mut fixture, &["7 --destination 198.51.0.0/16"]);
        let to = |fixture: &Fixture, port, address: u16| {
            let [high, low] = address.to_be_bytes();
            connect_to(fixture, port, SocketAddrV4::new([198, 51, high, low].into(), 80))
        };
        // Connections cost a seventh of all: each new address goes to the next.
        let first: Vec<u8> = (0..700).map(|address| to(&fixture, 40000, address)).collect();
        assert_eq!(first[..14], [7, 6, 5, 4, 3, 2, 1, 7, 6, 5, 4, 3, 2, 1], "{scheduler}");
        let again: Vec<u8> = (0..700).map(|address| to(&fixture, 40001, address)).collect();
        // Some were hot by then, but nobody idle.
        assert_eq!(first, again, "{scheduler}");
    }
}

#[test]
fn addresses_of_ipv6_are_told_apart() {
    let mut fixture = Fixture::configured("-A -f 7 -6 -s lblc");
    for number in 11..=13 {
        fixture.ipvsadm(&format!("-a -f 7 -6 -r [fd00:2::{number}]:0 -m -w 100"));
    }
    marked(&mut fixture, &["7 --destination 2001:db8::/32"]);
    let to = |port, address: &str| {
        let frame = ipv6::Frame::tcp(ipv6::client(port), ipv6::at(address, 80), SYN);
        let outcome = fixture.send(CLIENTS, &frame.bytes());
        assert_eq!(outcome.action, Action::Redirect);
        outcome.bytes[14 + 39] & 0xf
    };
    for port in 40000..40003 {
        let got = ["2001:db8::1", "2001:db8::2", "2001:db8:0:1::1"].map(|address| to(port, address));
        assert_eq!(got, [3, 2, 1]);
    }
}

#[test]
fn what_is_unused_is_forgotten_at_the_next_half_hour() {
    for scheduler in ["lblc", "lblcr"] {
        let mut fixture = service(scheduler, &[9, 9]);
        fixture.director.set_sysctl(&format!("{scheduler}_expiration"), 60).unwrap();
        fixture.sweep();
        // Just after a half hour, and far from where the clock begins anew.
        let settings = fixture.settings();
        let half_hour = 1800 * settings.ticks_per_second;
        fixture.set_clock_offset(half_hour.wrapping_sub(settings.swept_at) + 1);
        assert_eq!(connect(&fixture, 40000), 2);
        // Long unused, but nobody looked; then it is in use again.
        fixture.wait(1_000_000);
        assert_eq!(connect(&fixture, 40001), 2, "{scheduler}");
        fixture.wait(900_000);
        destination(&mut fixture, "-a", 3, "-w 9");
        assert_eq!(connect(&fixture, 40002), 3, "{scheduler}");
    }
}

#[test]
fn a_set_grows_under_load_and_shrinks_with_time() {
    let mut fixture = service("lblcr", &[4, 4, 4]);
    fixture.director.set_sysctl("lblcr_expiration", 20).unwrap();
    let next = |fixture: &Fixture, ports: std::ops::Range<u16>| {
        ports.map(|port| connect(fixture, port)).collect::<Vec<u8>>()
    };
    // Five are more than four: then another is idle.
    assert_eq!(next(&fixture, 40000..40007), [3, 3, 3, 3, 3, 2, 2]);
    fixture.wait(21_000);
    // The most loaded leaves the set, the least loaded serves.
    assert_eq!(next(&fixture, 41000..41003), [2, 2, 2]);
    // 2 has five now, 3 had them before: it is not in the set any more, and 1 is idle.
    assert_eq!(next(&fixture, 42000..42001), [1]);
    // A second later nothing shrinks, as the set has just changed.
    fixture.wait(1_000);
    assert_eq!(next(&fixture, 43000..43004), [1, 1, 1, 1]);
    // All are hot and none idle: in the set the one with the fewest; not 3, which has as many but is out of it.
    assert_eq!(next(&fixture, 44000..44002), [1, 2]);
}
