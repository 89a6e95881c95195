//! One-packet scheduling: each datagram is a connection, and nothing is kept of it.

use std::net::SocketAddrV4;

use lb_common::reason::Reason;

use super::fixture::{CLIENTS, Counted, Expected, Fixture, SERVERS, client, server, to_server};
use super::frame::{Frame, SYN};
use super::icmp::telling;

const DNS: SocketAddrV4 = SocketAddrV4::new(std::net::Ipv4Addr::new(192, 168, 1, 100), 53);

#[test]
fn each_datagram_is_scheduled_anew() {
    let mut fixture = Fixture::configured(
        "-A -u 192.168.1.100:53 -s rr -o
         -a -u 192.168.1.100:53 -r 10.0.0.11:5353 -m
         -a -u 192.168.1.100:53 -r 10.0.0.12:53 -g",
    );
    let query = Frame::udp(client(40000), DNS);
    for round in 0..3 {
        let counted = |to| [(to, Counted { connections: 1, ..Counted::packet_in(&query) })];
        let out = query.clone().sent(to_server(2));
        fixture.expect("direct", CLIENTS, &query, Expected::Redirect(out), &counted(server(2, 53)));
        let out = query.clone().destination(server(1, 5353)).sent(to_server(1));
        fixture.expect("nat", CLIENTS, &query, Expected::Redirect(out), &counted(server(1, 5353)));
        assert!(fixture.director.maps().entries().unwrap().is_empty(), "{round}");
    }
    // Answers are nobody's, as in the kernel.
    let answer = Frame::udp(server(1, 5353), client(40000));
    fixture.expect("answer", SERVERS, &answer, Expected::Pass(Reason::NoReplyConnection), &[]);
}

#[test]
fn each_datagram_is_under_the_threshold() {
    let mut fixture = Fixture::configured("-A -u 192.168.1.100:53 -s rr -o");
    fixture.ipvsadm("-a -u 192.168.1.100:53 -r 10.0.0.11:53 -m -x 1");
    for _ in 0..3 {
        assert_eq!(fixture.send(CLIENTS, &Frame::udp(client(40000), DNS).bytes()).reason, None);
    }
}

#[test]
fn what_a_client_is_told_is_no_answer_of_it() {
    for method in ["-g", "-i"] {
        let mut fixture = telling(&format!(
            "-A -u 192.168.1.100:53 -s rr -o
             -a -u 192.168.1.100:53 -r 10.0.0.12:53 {method}"
        ));
        let query = Frame::udp(client(40000), DNS).time_to_live(1);
        let before = fixture.counted();
        assert_eq!(fixture.send(CLIENTS, &query.bytes()).reason, Some(Reason::TimeExceeded));
        let server = server(2, 53);
        let wanted = Counted { connections: 1, ..Counted::packet_in(&query) };
        assert_eq!(fixture.counted()[&server] - before[&server], wanted, "{method}");
    }
}

#[test]
fn templates_work_with_it() {
    let fixture = Fixture::configured(
        "-A -u 192.168.1.100:53 -s rr -o -p 60
         -a -u 192.168.1.100:53 -r 10.0.0.11:53 -m
         -a -u 192.168.1.100:53 -r 10.0.0.12:53 -m",
    );
    for port in 40000..40003 {
        let bytes = fixture.send(CLIENTS, &Frame::udp(client(port), DNS).bytes()).bytes;
        assert_eq!(bytes[33], 12);
    }
    // The template is all there is, and controls nothing: its time is its time.
    assert_eq!(fixture.director.maps().entries().unwrap().len(), 1);
    fixture.wait(61_000);
    fixture.sweep();
    assert!(fixture.director.maps().entries().unwrap().is_empty());
    let bytes = fixture.send(CLIENTS, &Frame::udp(client(40000), DNS).bytes()).bytes;
    assert_eq!(bytes[33], 11);
}

#[test]
fn a_service_that_gets_the_flag_keeps_its_connections() {
    let mut fixture = Fixture::configured(
        "-A -u 192.168.1.100:53 -s rr
         -a -u 192.168.1.100:53 -r 10.0.0.11:53 -m
         -a -u 192.168.1.100:53 -r 10.0.0.12:53 -m",
    );
    let to =
        |fixture: &Fixture, port| fixture.send(CLIENTS, &Frame::udp(client(port), DNS).bytes()).bytes[33];
    assert_eq!([to(&fixture, 40000), to(&fixture, 40000)], [12, 12]);
    fixture.ipvsadm("-E -u 192.168.1.100:53 -s rr -o");
    assert_eq!([to(&fixture, 40001), to(&fixture, 40001), to(&fixture, 40000)], [11, 12, 12]);
    let syn = Frame::tcp(client(40000), DNS, SYN);
    assert_eq!(fixture.send(CLIENTS, &syn.bytes()).reason, Some(Reason::NoService));
}
