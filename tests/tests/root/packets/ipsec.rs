//! ESP and AH: packets that follow the connection of their key exchange.

use std::net::{Ipv4Addr, SocketAddrV4};

use etherparse::Ipv4Header;
use lb_common::reason::Reason;

use super::fixture::{
    Action, CLIENTS, Counted, Expected, Fixture, SERVERS, TO_CLIENT, VIP, client, server, to_server,
};
use super::frame::{Frame, SYN};
use super::icmp::{Message, expect, telling};
use super::ipv6;

const ESP: u8 = 50;
const AH: u8 = 51;

/// Where the key exchange goes.
fn exchange() -> SocketAddrV4 {
    SocketAddrV4::new(*VIP.ip(), 500)
}

fn gateway(options: &str) -> Fixture {
    telling(&format!(
        "-A -u 192.168.1.100:500 -s rr
         -a -u 192.168.1.100:500 -r 10.0.0.11:500 {options}"
    ))
}

#[test]
fn packets_follow_the_connection_of_their_key_exchange() {
    for options in ["-m", "-g", "-i"] {
        let mut fixture = gateway(options);
        let real = server(1, 500);
        for protocol in [ESP, AH] {
            let frame = Frame::other(protocol, client(0), exchange());
            fixture.expect("before", CLIENTS, &frame, Expected::Pass(Reason::OtherProtocol), &[]);
        }
        // A key exchange of other ports is none.
        fixture.send(CLIENTS, &Frame::udp(client(501), exchange()).bytes());
        let frame = Frame::other(ESP, client(0), exchange());
        fixture.expect("another port", CLIENTS, &frame, Expected::Pass(Reason::OtherProtocol), &[]);
        fixture.send(CLIENTS, &Frame::udp(client(500), exchange()).bytes());
        for protocol in [ESP, AH] {
            let frames = [
                Frame::other(protocol, client(0), exchange()),
                Frame::other(protocol, client(0), exchange()).payload([7; 1300]),
                Frame::other(protocol, client(0), exchange()).payload([]),
                Frame::other(protocol, client(0), exchange()).options([1, 1, 1, 0]).tagged(0x8100, 7),
            ];
            for frame in frames {
                let what = format!("{options} {protocol} {}", frame.payload.len());
                let mut out = frame.clone().sent(to_server(1));
                match options {
                    "-m" => out = out.destination(real),
                    "-i" => {
                        let mut outer = Ipv4Header::new(
                            out.length() as u16,
                            out.time_to_live,
                            etherparse::IpNumber::IPV4,
                            [10, 0, 0, 1],
                            real.ip().octets(),
                        )
                        .unwrap();
                        outer.dont_fragment = true;
                        outer.header_checksum = outer.calc_header_checksum();
                        out = out.behind(outer.to_bytes().to_vec());
                    }
                    _ => {}
                }
                let counted = [(real, Counted::packet_in(&frame))];
                fixture.expect(&what, CLIENTS, &frame, Expected::Redirect(out), &counted);
            }
            let (from, expected): (_, fn(Frame) -> Expected) = if options == "-m" {
                (real, |frame| Expected::Redirect(frame.source(exchange()).sent(TO_CLIENT)))
            } else {
                (exchange(), |_| Expected::Pass(Reason::DirectReply))
            };
            let answer = Frame::other(protocol, from, client(0));
            let counted = [(real, Counted::packet_out(&answer))];
            fixture.expect(options, SERVERS, &answer, expected(answer.clone()), &counted);
        }
        // What has gone too far is told, and what is too large.
        let old = Frame::other(ESP, client(0), exchange()).time_to_live(1);
        let outcome = fixture.send(CLIENTS, &old.bytes());
        assert_eq!((outcome.action, outcome.reason), (Action::Transmit, Some(Reason::TimeExceeded)));
        let large = Frame::other(ESP, client(0), exchange()).payload([7; 1481]);
        assert_eq!(fixture.send(CLIENTS, &large.bytes()).reason, Some(Reason::TooBig));
        // Others of its protocols' kind are nobody's.
        let frame = Frame::other(47, client(0), exchange());
        fixture.expect("gre", CLIENTS, &frame, Expected::Pass(Reason::OtherProtocol), &[]);
    }
}

#[test]
fn they_keep_the_connection_alive() {
    let mut fixture = gateway("-m");
    fixture.send(CLIENTS, &Frame::udp(client(500), exchange()).bytes());
    let there = Frame::other(ESP, client(0), exchange());
    let back = Frame::other(ESP, server(1, 0), client(0));
    for frame in [&there, &back, &there] {
        fixture.wait(299_000);
        let interface = if frame.source == client(0) { CLIENTS } else { SERVERS };
        assert_eq!(fixture.send(interface, &frame.bytes()).action, Action::Redirect);
    }
    fixture.wait(301_000);
    for (interface, frame) in [(CLIENTS, &there), (SERVERS, &back)] {
        assert_eq!(fixture.send(interface, &frame.bytes()).reason, Some(Reason::OtherProtocol));
    }
    // Its destination is deleted.
    fixture.send(CLIENTS, &Frame::udp(client(500), exchange()).bytes());
    fixture.ipvsadm("-d -u 192.168.1.100:500 -r 10.0.0.11:500");
    assert_eq!(fixture.send(CLIENTS, &there.bytes()).reason, Some(Reason::DestinationDeleted));
}

#[test]
fn every_fragment_of_theirs_says_where_it_goes() {
    let mut fixture = gateway("-m");
    let real = server(1, 500);
    fixture.send(CLIENTS, &Frame::udp(client(500), exchange()).bytes());
    let whole = Frame::other(ESP, client(0), exchange()).payload([7; 1000]);
    let cut = |frame: &Frame, from: usize, to: usize| {
        let mut header = frame.network();
        header.dont_fragment = false;
        header.more_fragments = to != 1000;
        header.fragment_offset = (from as u16 / 8).try_into().unwrap();
        header.set_payload_len(to - from).unwrap();
        header.header_checksum = header.calc_header_checksum();
        [&frame.link.concat()[..], &[8, 0], &header.to_bytes(), &frame.payload[from..to]].concat()
    };
    let out = whole.clone().destination(real).sent(to_server(1));
    let before = fixture.counted();
    for (from, to) in [(400, 1000), (0, 400)] {
        let outcome = fixture.send(CLIENTS, &cut(&whole, from, to));
        assert_eq!((outcome.action, outcome.reason), (Action::Redirect, None));
        assert_eq!(outcome.bytes, cut(&out, from, to));
    }
    assert_eq!(fixture.counted()[&real] - before[&real], Counted::packet_in(&whole));
}

#[test]
fn errors_about_them_go_with_the_connection() {
    let mut fixture = gateway("-m");
    let real = server(1, 500);
    fixture.send(CLIENTS, &Frame::udp(client(500), exchange()).bytes());
    let router = Ipv4Addr::new(192, 168, 1, 77);
    let about = |from, to| Frame::other(ESP, from, to).packet();
    let message = Message::new(3, 4, router, *VIP.ip(), about(exchange(), client(0)));
    let out = Message { destination: *real.ip(), quoted: about(real, client(0)), ..message.clone() };
    let expected = (Action::Redirect, None, out.sent(to_server(1)).bytes());
    expect(&mut fixture, "in", CLIENTS, &message.bytes(), expected, &[(real, message.counted_in())]);
    let message = Message::new(3, 4, *real.ip(), *client(0).ip(), about(client(0), real));
    let out = Message { source: *VIP.ip(), quoted: about(client(0), exchange()), ..message.clone() };
    let expected = (Action::Redirect, None, out.sent(TO_CLIENT).bytes());
    expect(&mut fixture, "out", SERVERS, &message.bytes(), expected, &[(real, message.counted_out())]);
}

#[test]
fn esp_of_ipv6_does_as_well() {
    let mut fixture = Fixture::configured(
        "-A -u [fd00:1::100]:500 -s rr
         -a -u [fd00:1::100]:500 -r [fd00:2::11]:500 -m
         -A -t [fd00:1::100]:80 -s rr
         -a -t [fd00:1::100]:80 -r [fd00:2::11]:80 -m",
    );
    let real = ipv6::at("fd00:2::11", 500);
    let esp = |mut bytes: Vec<u8>| {
        bytes[20] = ESP;
        // What was a UDP header, with a checksum that depends on the addresses.
        bytes[54..62].copy_from_slice(&[0x5e; 8]);
        bytes
    };
    let frame = ipv6::Frame::udp(ipv6::client(500), ipv6::vip(500), &[7; 100]);
    let before = fixture.send(CLIENTS, &esp(frame.bytes()));
    assert_eq!((before.action, before.reason), (Action::Pass, Some(Reason::OtherProtocol)));
    assert_eq!(fixture.send(CLIENTS, &frame.bytes()).action, Action::Redirect);
    let counted = ipv6::counted(&mut fixture, 500);
    let there = fixture.send(CLIENTS, &esp(frame.bytes()));
    assert_eq!((there.action, there.reason), (Action::Redirect, None));
    assert_eq!(there.bytes, esp(frame.sent(to_server(1), ipv6::client(500), real)));
    let answer = ipv6::Frame::udp(real, ipv6::client(500), &[7; 200]);
    let back = fixture.send(SERVERS, &esp(answer.bytes()));
    assert_eq!((back.action, back.reason), (Action::Redirect, None));
    assert_eq!(back.bytes, esp(answer.sent(TO_CLIENT, ipv6::vip(500), ipv6::client(500))));
    let mut wanted = counted;
    (wanted[1], wanted[2], wanted[3], wanted[4]) =
        (counted[1] + 1, counted[2] + 148, counted[3] + 1, counted[4] + 248);
    assert_eq!(ipv6::counted(&mut fixture, 500), wanted);
    // AH is an extension header there.
    let syn = ipv6::Frame {
        extensions: vec![(AH, vec![0; 6])],
        ..ipv6::Frame::tcp(ipv6::client(40000), ipv6::vip(80), SYN)
    };
    assert_eq!(fixture.send(CLIENTS, &syn.bytes()).action, Action::Redirect);
}
