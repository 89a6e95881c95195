//! ICMP errors about the outer packets of tunnels: what the client is told, and what is believed of the way from then on.

use std::net::{Ipv4Addr, SocketAddrV4};

use etherparse::Ipv4Header;
use lb_common::reason::Reason;

use super::fixture::{Action, CLIENTS, Counted, Fixture, SERVERS, TO_CLIENT, VIP, client, server};
use super::frame::{ACK, Frame, SYN};
use super::icmp::{Message, expect, telling};

/// The director's address on the servers' side, and a router there.
const DIRECTOR: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 1);
const ROUTER: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 77);

/// Kinds of tunnel, with the bytes of their headers.
const TUNNELS: [(&str, u16); 5] = [
    ("", 20),
    ("--tun-type gre", 24),
    ("--tun-type gre --tun-csum", 28),
    ("--tun-type gue --tun-port 6080", 32),
    ("--tun-type gue --tun-port 6080 --tun-csum", 32),
];

fn web(options: &str) -> Fixture {
    telling(&format!(
        "-A -t 192.168.1.100:80 -s rr
         -a -t 192.168.1.100:80 -r 10.0.0.11:80 -i {options}"
    ))
}

/// The packet around a client's, as it leaves the director.
fn sent(fixture: &Fixture, frame: &Frame) -> Vec<u8> {
    let outcome = fixture.send(CLIENTS, &frame.bytes());
    assert_eq!(outcome.action, Action::Redirect);
    outcome.bytes[14..].to_vec()
}

/// An error about a packet of the director's.
fn about(kind: u8, code: u8, mtu: u16, packet: &[u8]) -> Message {
    let most = packet.len().min(548);
    let mut message = Message::new(kind, code, ROUTER, DIRECTOR, packet[..most].to_vec());
    message.head.1[2..].copy_from_slice(&mtu.to_be_bytes());
    message
}

/// What the client is told then: as much of its packet as the error quotes.
fn told(error: &Message, mtu: u16, room: usize, frame: &Frame) -> Message {
    let mut packet = frame.clone().time_to_live(63).packet();
    packet.truncate(error.quoted.len() - room);
    let [kind, code] = error.head.0;
    let mut message = Message::new(kind, code, *VIP.ip(), *client(0).ip(), packet);
    message.link = TO_CLIENT;
    message.service_type = frame.service_type & 0x1e | 0xc0;
    message.head.1[2..].copy_from_slice(&mtu.to_be_bytes());
    message
}

/// Sends an error and checks what its client is told and what is counted; the identification is a random number.
#[track_caller]
fn expect_told(fixture: &mut Fixture, what: &str, error: &Message, wanted: &Message) {
    let before = fixture.counted();
    let outcome = fixture.send(SERVERS, &error.bytes());
    assert_eq!((outcome.action, outcome.reason), (Action::Redirect, None), "{what}");
    let (mut header, _) = Ipv4Header::from_slice(&outcome.bytes[14..]).unwrap();
    assert_eq!(header.header_checksum, header.calc_header_checksum(), "{what}");
    header.identification = 0;
    header.header_checksum = header.calc_header_checksum();
    let mut bytes = outcome.bytes.clone();
    bytes[14..34].copy_from_slice(&header.to_bytes());
    assert_eq!(bytes, wanted.bytes(), "{what}");
    let server = server(1, 80);
    // What the error quotes of the client's packet, and what the client is told.
    let quoted = Counted { out_packets: 1, out_bytes: wanted.quoted.len() as i64, ..Counted::NOTHING };
    assert_eq!(fixture.counted()[&server] - before[&server], quoted + wanted.counted_out(), "{what}");
}

#[test]
fn the_client_is_told_what_becomes_of_its_packets_in_a_tunnel() {
    for (options, room) in TUNNELS {
        let mut fixture = web(options);
        sent(&fixture, &Frame::tcp(client(40000), VIP, SYN));
        let frames = [
            Frame::tcp(client(40000), VIP, ACK),
            Frame::tcp(client(40000), VIP, ACK).service_type(0xb8).options([1, 1, 1, 0]),
            Frame::tcp(client(40000), VIP, ACK).payload([7; 1001]),
            Frame::tcp(client(40000), VIP, ACK).tagged(0x8100, 7).fragmentable(),
        ];
        for frame in frames {
            let packet = sent(&fixture, &frame);
            for (kind, code) in [(3, 2), (3, 1), (11, 0), (4, 0)] {
                let error = about(kind, code, 0, &packet);
                let wanted = told(&error, 0, room.into(), &frame);
                expect_told(&mut fixture, options, &error, &wanted);
                let mut wrong = error.bytes();
                wrong[50] ^= 1;
                let dropped = (Action::Drop, Some(Reason::IcmpChecksum), Vec::new());
                expect(&mut fixture, "wrong", SERVERS, &wrong, dropped, &[]);
            }
        }
    }
}

#[test]
fn a_way_that_takes_less_is_believed_and_told() {
    for (options, room) in TUNNELS {
        let mut fixture = web(options);
        let frame = |flags, length: u16| {
            Frame::tcp(client(40000), VIP, flags).payload(vec![1; usize::from(length) - 40])
        };
        sent(&fixture, &frame(SYN, 40));
        let packet = sent(&fixture, &frame(ACK, 1500 - room));
        // What a router believes to be more than is known of the way changes nothing.
        for (said, believed) in [(1600, 1500), (1400, 1400), (1450, 1400), (0, 552)] {
            let error = about(3, 4, said, &packet);
            let wanted = told(&error, believed - room, room.into(), &frame(ACK, 1500 - room));
            expect_told(&mut fixture, options, &error, &wanted);
            // What still goes through does, in the steady state too, and nothing larger.
            for _ in 0..2 {
                assert_eq!(sent(&fixture, &frame(ACK, believed - room)).len(), usize::from(believed));
                let larger = fixture.send(CLIENTS, &frame(ACK, believed - room + 1).bytes());
                assert_eq!(larger.reason, Some(Reason::TooBig), "{options} {said}");
                assert_eq!(larger.bytes[40..42], (believed - room).to_be_bytes());
            }
            // Other connections there hear of it.
            let other = frame(SYN, believed - room + 1).source(client(40001 + said));
            assert_eq!(fixture.send(CLIENTS, &other.bytes()).reason, Some(Reason::TooBig));
        }
        // Ten minutes later the way may be another.
        fixture.wait(601_000);
        assert_eq!(sent(&fixture, &frame(ACK, 1500 - room)).len(), 1500);
    }
}

#[test]
fn what_was_believed_long_ago_is_not_believed_again() {
    let mut fixture = web("");
    let large = |port| Frame::tcp(client(port), VIP, SYN).payload([1; 1440]);
    let packet = sent(&fixture, &large(40000));
    let error = about(3, 4, 1400, &packet);
    let wanted = told(&error, 1380, 20, &large(40000));
    expect_told(&mut fixture, "too large", &error, &wanted);
    // Until ticks have all but come around, an eighth of them at a time.
    let eighth = (1 << 29) / u64::from(fixture.director.maps().settings().ticks_per_second) * 1000;
    for port in 40001..40008 {
        fixture.wait(eighth);
        fixture.sweep();
        assert_eq!(sent(&fixture, &large(port)).len(), 1500);
    }
}

#[test]
fn whoever_lets_its_packets_be_cut_is_not_told() {
    let mut fixture = web("");
    let frame = Frame::tcp(client(40000), VIP, SYN).payload([1; 1400]).fragmentable();
    let packet = sent(&fixture, &frame);
    let error = about(3, 4, 1400, &packet);
    let dropped = (Action::Drop, Some(Reason::TunnelError), Vec::new());
    expect(&mut fixture, "may be cut", SERVERS, &error.bytes(), dropped.clone(), &[]);
    // It is believed all the same.
    assert_eq!(fixture.send(CLIENTS, &frame.bytes()).reason, Some(Reason::FragmentedByStack));
    // And there is the limit.
    let fixture = &mut fixture;
    let offset = std::mem::offset_of!(lb_common::settings::Settings, icmp_rate);
    fixture.director.maps().settings.store_u32(0, offset, 0);
    let error = about(3, 2, 0, &packet);
    let quoted = error.quoted.len() as i64 - 20;
    let counted = [(server(1, 80), Counted { out_packets: 1, out_bytes: quoted, ..Counted::NOTHING })];
    expect(fixture, "limit", SERVERS, &error.bytes(), dropped, &counted);
}

#[test]
fn errors_about_other_packets_of_the_director_pass() {
    let mut fixture = telling(
        "-A -t 192.168.1.100:80 -s rr
         -a -t 192.168.1.100:80 -r 10.0.0.11:80 -i --tun-type gue --tun-port 6080
         -A -t 192.168.1.100:81 -s rr
         -a -t 192.168.1.100:81 -r 10.0.0.11:81 -g",
    );
    let packet = sent(&fixture, &Frame::tcp(client(40000), VIP, SYN));
    let to = |port| SocketAddrV4::new(*VIP.ip(), port);
    fixture.send(CLIENTS, &Frame::tcp(client(40000), to(81), SYN).bytes());
    let mut elsewhere = packet.clone();
    elsewhere[19] = 12;
    let mut other_port = packet.clone();
    other_port[23] ^= 1;
    let inner = |port, to| Frame::tcp(client(port), to, SYN).packet();
    let rows = [
        ("another destination", elsewhere),
        ("another port", other_port),
        ("no connection", [&packet[..32], &inner(40001, VIP)].concat()),
        ("a connection without a tunnel", [&packet[..32], &inner(40000, to(81))].concat()),
        ("too little is quoted", packet[..32 + 27].to_vec()),
        ("another protocol", [&packet[..9], &[4], &packet[10..]].concat()),
    ];
    for (what, packet) in rows {
        let error = about(3, 2, 0, &packet);
        let passed = (Action::Pass, Some(Reason::Icmp), error.bytes());
        expect(&mut fixture, what, SERVERS, &error.bytes(), passed, &[]);
    }
}
