//! The persistence engine `sip`: messages of a call follow its first.

use std::net::{Ipv4Addr, SocketAddrV4};

use lb_common::connection::Adopted;
use lb_common::reason::Reason;
use lb_common::sync::Record;
use xipvs::director::Director;
use xipvs::director::xdp::adopt::{Places, Policy};
use xipvs::director::xdp::sync::Told;

use super::fixture::{CLIENTS, Counted, Expected, Fixture, SERVERS, TO_CLIENT, client, server, to_server};
use super::frame::{ACK, Frame, SYN};

pub const SIP: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(192, 168, 1, 100), 5060);
pub const RULES: &str = "-A -u 192.168.1.100:5060 -s rr -p 300 --pe sip
                     -a -u 192.168.1.100:5060 -r 10.0.0.11:5080 -m
                     -a -u 192.168.1.100:5060 -r 10.0.0.12:5060 -g";

/// A message with such a header field.
fn message(from: SocketAddrV4, field: &str) -> Frame {
    Frame::udp(from, SIP).payload(format!("INVITE sip:bob@example.com SIP/2.0\r\n{field}\r\n\r\n"))
}

/// What is counted of a message that makes a connection.
fn made(frame: &Frame, to: SocketAddrV4) -> [(SocketAddrV4, Counted); 1] {
    [(to, Counted { connections: 1, ..Counted::packet_in(frame) }.and_now(0, 1))]
}

/// The templates: client, destination and Call-ID.
pub fn templates(fixture: &mut Fixture) -> Vec<String> {
    let listed = fixture.director.connections().unwrap().into_iter().filter(|row| row.client_port == 0);
    let mut rows: Vec<_> = listed
        .map(|row| {
            let (engine, data) = row.engine.unwrap_or_default();
            let data = data.escape_ascii();
            format!("{} {} {} {engine} {data}", row.protocol, row.client, row.destination)
        })
        .collect();
    rows.sort();
    rows
}

#[test]
fn messages_follow_the_first_of_their_call() {
    let mut fixture = Fixture::configured(RULES);
    for (port, field, number) in [
        (40000, "Call-ID: one@example.com", 2),
        (40001, "Call-ID: two@example.com", 1),
        // In other words the same call.
        (40002, "i :one@example.com", 2),
        (40003, "CALL-ID:two@example.com", 1),
        (40004, "Via: SIP/2.0/UDP x\r\nCall-Info: y\r\ncall-id\t: two@example.com", 1),
        (40005, "Call-ID: One@example.com", 2),
    ] {
        let frame = message(client(port), field);
        let (to, out) = match number {
            1 => (server(1, 5080), frame.clone().destination(server(1, 5080)).sent(to_server(1))),
            _ => (server(2, 5060), frame.clone().sent(to_server(2))),
        };
        fixture.expect(field, CLIENTS, &frame, Expected::Redirect(out), &made(&frame, to));
    }
    assert_eq!(
        templates(&mut fixture),
        [
            "UDP 192.168.1.10 10.0.0.11 sip two@example.com",
            "UDP 192.168.1.10 10.0.0.12 sip One@example.com",
            "UDP 192.168.1.10 10.0.0.12 sip one@example.com",
        ]
    );
    // Another client's call is another one, whatever it is called.
    let other = SocketAddrV4::new(Ipv4Addr::new(203, 0, 113, 9), 40000);
    let frame = message(other, "Call-ID: one@example.com");
    let out = frame.clone().destination(server(1, 5080)).sent(to_server(1));
    fixture.expect("another", CLIENTS, &frame, Expected::Redirect(out), &made(&frame, server(1, 5080)));
    // A connection is where it is: what it carries is not looked at again.
    let frame = message(client(40001), "Call-ID: one@example.com");
    let out = frame.clone().destination(server(1, 5080)).sent(to_server(1));
    let counted = [(server(1, 5080), Counted::packet_in(&frame))];
    fixture.expect("known", CLIENTS, &frame, Expected::Redirect(out), &counted);
    let answer = Frame::udp(server(1, 5080), client(40001));
    let out = answer.clone().source(SIP).sent(TO_CLIENT);
    let counted = [(server(1, 5080), Counted::packet_out(&answer))];
    fixture.expect("answer", SERVERS, &answer, Expected::Redirect(out), &counted);
}

#[test]
fn without_a_call_id_nothing_begins() {
    let mut fixture = Fixture::configured(RULES);
    let long = format!("Call-ID: {}", "x".repeat(256));
    let late = format!("Subject: {}\r\nCall-ID: x", "x".repeat(1300));
    for field in ["Max-Forwards: 70", "Call-ID:", "Call-ID: two words", " Call-ID: folded", &long] {
        let frame = message(client(40000), field);
        fixture.expect(field, CLIENTS, &frame, Expected::Drop(Reason::NoCallId), &[]);
    }
    // The line's end is the link's, behind the packet.
    let mut padded = Frame::udp(client(40000), SIP).payload("INVITE\r\nCall-ID: x").bytes();
    padded.extend(b"\r\n\r\n");
    assert_eq!(fixture.send(CLIENTS, &padded).reason, Some(Reason::NoCallId));
    let empty = Frame::udp(client(40000), SIP).payload([]);
    fixture.expect("empty", CLIENTS, &empty, Expected::Drop(Reason::NoCallId), &[]);
    assert!(fixture.director.maps().entries().unwrap().is_empty());
    // What stands far behind is found, and the longest there may be.
    let frame = message(client(40000), &late);
    let out = frame.clone().sent(to_server(2));
    fixture.expect("late", CLIENTS, &frame, Expected::Redirect(out), &made(&frame, server(2, 5060)));
    let longest = "x".repeat(255);
    let frame = message(client(40001), &format!("Call-ID: {longest}"));
    let out = frame.clone().destination(server(1, 5080)).sent(to_server(1));
    fixture.expect("longest", CLIENTS, &frame, Expected::Redirect(out), &made(&frame, server(1, 5080)));
    assert!(templates(&mut fixture).contains(&format!("UDP 192.168.1.10 10.0.0.11 sip {longest}")));
}

#[test]
fn only_udp_has_calls() {
    let mut fixture = Fixture::configured(
        "-A -t 192.168.1.100:5060 -s rr -p 300 --pe sip
         -a -t 192.168.1.100:5060 -r 10.0.0.11:5060 -m",
    );
    let syn = Frame::tcp(client(40000), SIP, SYN);
    fixture.expect("tcp", CLIENTS, &syn, Expected::Drop(Reason::NoCallId), &[]);
    // Connections that are there go on when the service gets the engine, and without it all is as ever.
    fixture.ipvsadm("-E -t 192.168.1.100:5060 -s rr -p 300");
    let out = syn.clone().destination(server(1, 5060)).sent(to_server(1));
    let counted = [(server(1, 5060), Counted { connections: 1, ..Counted::packet_in(&syn) }.and_now(1, 0))];
    fixture.expect("without", CLIENTS, &syn, Expected::Redirect(out), &counted);
    fixture.ipvsadm("-E -t 192.168.1.100:5060 -s rr -p 300 --pe sip");
    let ack = Frame::tcp(client(40000), SIP, ACK);
    assert_eq!(fixture.send(CLIENTS, &ack.bytes()).reason, None);
}

#[test]
fn templates_of_calls_end_and_make_way() {
    let mut fixture = Fixture::configured(RULES);
    for number in 0..20 {
        let frame = message(client(40000 + number), &format!("Call-ID: {number}@example.com"));
        assert_eq!(fixture.send(CLIENTS, &frame.bytes()).reason, None);
    }
    assert_eq!(templates(&mut fixture).len(), 20);
    // Connections have as much time as their templates, which go on for a minute more while there are any.
    for _ in 0..4 {
        fixture.wait(301_000);
        fixture.sweep();
    }
    assert!(fixture.director.maps().entries().unwrap().is_empty());
    assert_eq!(fixture.displaced(), 0);
}

#[test]
fn calls_go_on_where_another_director_had_them() {
    let mut fixture = Fixture::configured(RULES);
    // The third with a letter of Latin-1, which alone is no text to most.
    let calls: [&[u8]; 3] = [b"one@example.com", b"two@example.com", b"thr\xe9e@example.com"];
    let of_call = |port, call: &[u8]| {
        Frame::udp(client(port), SIP).payload([b"INVITE\r\nCall-ID: ", call, b"\r\n\r\n"].concat())
    };
    for (port, call) in (40000..).zip(calls) {
        assert_eq!(fixture.send(CLIENTS, &of_call(port, call).bytes()).reason, None);
    }
    let wanted = templates(&mut fixture);
    let listed = fixture.director.connections().unwrap();
    let (told, lost) = fixture.director.sync_records().unwrap();
    assert_eq!((told.len(), listed.len(), lost), (6, 6, 0));
    drop(fixture);

    for is_listed in [false, true] {
        let mut fixture = Fixture::configured(RULES);
        if is_listed {
            let takeover = fixture.director.adopt(&listed).unwrap();
            assert_eq!((takeover.taken, takeover.left.len()), (6, 0), "{takeover:?}");
        } else {
            let records: Vec<Record<'_>> = told.iter().map(Told::record).collect();
            for fate in [Adopted::Taken, Adopted::Renewed] {
                let places = &mut Places::default();
                let fates = fixture.director.adopt_records(places, &records, Policy::Renew).unwrap();
                assert!(fates.iter().all(|its| *its == Ok(fate)), "{fates:?}");
            }
        }
        assert_eq!(templates(&mut fixture), wanted);
        // The first that nobody was told of begins the turn of destinations.
        let [one, two, three] = calls;
        for (port, call, number) in
            [(41000, two, 1), (41001, one, 2), (41002, three, 2), (41003, two, 1), (41004, b"four", 2)]
        {
            let frame = of_call(port, call);
            let (to, out) = match number {
                1 => (server(1, 5080), frame.clone().destination(server(1, 5080)).sent(to_server(1))),
                _ => (server(2, 5060), frame.clone().sent(to_server(2))),
            };
            let what = call.escape_ascii().to_string();
            fixture.expect(&what, CLIENTS, &frame, Expected::Redirect(out), &made(&frame, to));
        }
        // They belong to calls: a service without the engine has nothing of them.
        fixture.ipvsadm("-E -u 192.168.1.100:5060 -s rr -p 300");
        let frame = Frame::udp(client(41005), SIP);
        assert_eq!(fixture.send(CLIENTS, &frame.bytes()).reason, None);
        let without = |row: &String| row.ends_with("  ");
        assert_eq!(templates(&mut fixture).iter().filter(|row| without(row)).count(), 1);
    }
}
