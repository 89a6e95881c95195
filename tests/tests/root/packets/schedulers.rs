//! The schedulers' sequences, as observed on kernel IPVS, through the director and the program.

use std::net::{Ipv4Addr, SocketAddrV4};

use lb_common::reason::Reason;

use super::fixture::{Action, CLIENTS, Fixture, SERVERS, VIP, client, server};
use super::frame::{Frame, RST, SYN};

/// A fixture with destinations 1, 2, 3 ... of these weights, added in this order.
fn service(scheduler: &str, weights: &[u32]) -> Fixture {
    let mut fixture = Fixture::configured(&format!("-A -t 192.168.1.100:80 -s {scheduler}"));
    for (number, weight) in (11..).zip(weights) {
        fixture.ipvsadm(&format!("-a -t 192.168.1.100:80 -r 10.0.0.{number}:80 -m -w {weight}"));
    }
    fixture
}

/// The number of the destination that a client's new connection gets, 0 for none.
fn connect(fixture: &Fixture, from: SocketAddrV4) -> u8 {
    let outcome = fixture.send(CLIENTS, &Frame::tcp(from, VIP, SYN).bytes());
    match outcome.action {
        Action::Redirect => outcome.bytes[33] - 10,
        _ => {
            assert_eq!(outcome.reason, Some(Reason::NoDestination));
            0
        }
    }
}

/// The destinations that new connections get.
fn sequence(fixture: &Fixture, ports: std::ops::Range<u16>) -> Vec<u8> {
    ports.map(|port| connect(fixture, client(port))).collect()
}

#[test]
fn each_begins_as_the_kernel_does() {
    let rows: [(&str, &[u32], &[u8]); 8] = [
        ("rr", &[1, 1, 1], &[3, 2, 1, 3, 2, 1, 3]),
        ("rr", &[5, 0, 1], &[3, 1, 3, 1]),
        ("wrr", &[3, 1, 2], &[3, 2, 1, 1, 3, 1, 3, 2, 1, 1, 3, 1]),
        ("wrr", &[4, 3, 2], &[3, 2, 1, 1, 2, 1, 3, 2, 1]),
        ("lc", &[3, 1, 2], &[3, 2, 1, 3, 2, 1, 3]),
        ("lc", &[3, 0, 2], &[3, 1, 3, 1]),
        ("wlc", &[3, 1, 2], &[3, 2, 1, 1, 3, 1, 3, 2, 1, 1, 3, 1]),
        ("none", &[1, 1], &[0, 0]),
    ];
    for (scheduler, weights, wanted) in rows {
        let fixture = service(scheduler, weights);
        let got = sequence(&fixture, 40000..40000 + wanted.len() as u16);
        assert_eq!(got, wanted, "{scheduler} {weights:?}");
    }
}

#[test]
fn wrr_goes_on_after_an_edit_as_the_kernel_does() {
    let mut fixture = service("wrr", &[3, 1, 2]);
    assert_eq!(sequence(&fixture, 40000..40004), [3, 2, 1, 1]);
    fixture.ipvsadm("-e -t 192.168.1.100:80 -r 10.0.0.12:80 -m -w 5");
    assert_eq!(sequence(&fixture, 40100..40116), [2, 1, 3, 2, 1, 3, 2, 1, 2, 2, 2, 1, 3, 2, 1, 3]);
}

#[test]
fn rr_keeps_its_place_when_destinations_come_and_go() {
    let mut fixture = service("rr", &[1, 1, 1]);
    assert_eq!(sequence(&fixture, 40000..40002), [3, 2]);
    // A new destination at the head is met after the next wrap.
    fixture.ipvsadm("-a -t 192.168.1.100:80 -r 10.0.0.14:80 -m");
    assert_eq!(sequence(&fixture, 40100..40104), [1, 4, 3, 2]);
    // The one that the cursor stands on goes: the cursor steps back to its predecessor.
    fixture.ipvsadm("-d -t 192.168.1.100:80 -r 10.0.0.12:80");
    assert_eq!(sequence(&fixture, 40200..40204), [1, 4, 3, 1]);
    // Another scheduler and back: from the start.
    fixture.ipvsadm("-E -t 192.168.1.100:80 -s lc\n-E -t 192.168.1.100:80 -s rr");
    assert_eq!(sequence(&fixture, 40300..40303), [4, 3, 1]);
}

#[test]
fn lc_counts_an_active_connection_as_much_as_257_inactive_ones() {
    for (inactive, wanted) in [(256, 2), (258, 1)] {
        let mut fixture = service("lc", &[1]);
        assert_eq!(connect(&fixture, client(30000)), 1);
        fixture.ipvsadm(
            "-e -t 192.168.1.100:80 -r 10.0.0.11:80 -m -w 0
             -a -t 192.168.1.100:80 -r 10.0.0.12:80 -m",
        );
        for port in 40000..40000 + inactive {
            assert_eq!(connect(&fixture, client(port)), 2);
            fixture.send(SERVERS, &Frame::tcp(server(2, 80), client(port), RST).bytes());
        }
        fixture.ipvsadm("-e -t 192.168.1.100:80 -r 10.0.0.11:80 -m -w 1");
        assert_eq!(connect(&fixture, client(30001)), wanted, "{inactive} inactive");
    }
}

#[test]
fn sh_puts_clients_where_the_kernel_does() {
    let clients = [[10, 0, 0, 2], [192, 168, 1, 10], [203, 0, 113, 7]].map(Ipv4Addr::from);
    // Their buckets; buckets 0.. hold 3 3 2 1 1 1, over and over.
    let buckets = [137, 248, 124];
    let mut fixture = service("sh", &[3, 1, 2]);
    for (client, bucket) in clients.into_iter().zip(buckets) {
        let wanted = [3, 3, 2, 1, 1, 1][bucket % 6];
        for port in 40000..40004 {
            assert_eq!(connect(&fixture, SocketAddrV4::new(client, port)), wanted, "{client}");
        }
    }
    // One that weighs nothing keeps a bucket a round, and who hashes there gets none.
    fixture.ipvsadm("-e -t 192.168.1.100:80 -r 10.0.0.11:80 -m -w 0");
    for (client, bucket) in clients.into_iter().zip(buckets) {
        let wanted = [3, 3, 2, 0][bucket % 4];
        assert_eq!(connect(&fixture, SocketAddrV4::new(client, 50000)), wanted, "{client}");
    }
}

#[test]
fn a_service_may_have_many_destinations() {
    let mut fixture = Fixture::configured("-A -t 192.168.1.100:80 -s rr");
    for number in 0..200u8 {
        fixture.ipvsadm(&format!("-a -t 192.168.1.100:80 -r 10.1.0.{number}:80 -m"));
    }
    let numbers: Vec<u8> = (0..400)
        .map(|port| fixture.send(CLIENTS, &Frame::tcp(client(40000 + port), VIP, SYN).bytes()).bytes[33])
        .collect();
    let round: Vec<u8> = (0..200).rev().collect();
    assert_eq!(numbers, [round.clone(), round].concat());
}
