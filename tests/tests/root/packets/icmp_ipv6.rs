//! ICMPv6: what clients are told, and errors about connections on their way to whom they concern.

use std::mem::offset_of;
use std::net::{Ipv6Addr, SocketAddrV6};

use etherparse::{IpNumber, Ipv6Header, checksum::Sum16BitWords};
use lb_common::reason::Reason;
use lb_common::settings::Settings;

use super::fixture::{Action, CLIENTS, Fixture, SERVERS, TO_CLIENT, to_server};
use super::frame::{ACK, Mac, SYN};
use super::ipv6::{Frame, WEB, at, client, counted, vip};

const LINK: [Mac; 2] = [[0x02; 6], [0x04; 6]];
/// Routers somewhere on the way.
const ROUTER: &str = "fd00:1::77";
const FAR_ROUTER: &str = "fd00:2::77";

/// An ICMPv6 message.
#[derive(Clone)]
struct Message {
    link: [Mac; 2],
    source: Ipv6Addr,
    destination: Ipv6Addr,
    hop_limit: u8,
    /// Type, code, and the four bytes behind the checksum.
    head: ([u8; 2], u32),
    quoted: Vec<u8>,
}

impl Message {
    fn new(kind: u8, code: u8, from: Ipv6Addr, to: Ipv6Addr, quoted: Vec<u8>) -> Self {
        let head = ([kind, code], 0);
        Self { link: LINK, source: from, destination: to, hop_limit: 64, head, quoted }
    }

    fn sent(self, link: [Mac; 2]) -> Self {
        Self { link, hop_limit: self.hop_limit - 1, ..self }
    }

    fn bytes(&self) -> Vec<u8> {
        let (source, destination) = (self.source.octets(), self.destination.octets());
        let body = [&self.head.0[..], &[0, 0], &self.head.1.to_be_bytes(), &self.quoted].concat();
        let sum = Sum16BitWords::new().add_16bytes(source).add_16bytes(destination);
        let sum = sum.add_2bytes((body.len() as u16).to_be_bytes()).add_2bytes([0, 58]);
        let sum = sum.add_slice(&body).ones_complement().to_le_bytes();
        let header = Ipv6Header {
            source,
            destination,
            hop_limit: self.hop_limit,
            next_header: IpNumber::IPV6_ICMP,
            payload_length: body.len() as u16,
            ..Ipv6Header::default()
        };
        let mut bytes = [&self.link.concat(), &[0x86, 0xdd][..], &header.to_bytes(), &body].concat();
        bytes[56..58].copy_from_slice(&sum);
        bytes
    }

    fn length(&self) -> u64 {
        48 + self.quoted.len() as u64
    }
}

/// The packet in a frame.
fn packet(frame: &Frame) -> Vec<u8> {
    frame.bytes()[14..].to_vec()
}

/// The packet of a frame that a router has changed only the addresses of: its transport checksum is that of another.
fn with_checksum_of(frame: &Frame, other: &[u8]) -> Vec<u8> {
    let mut bytes = packet(frame);
    let checksum = if frame.flags.is_some() { 56..58 } else { 46..48 };
    bytes[checksum.clone()].copy_from_slice(&other[checksum]);
    bytes
}

/// What the sender of a frame is told, sent back the way that it came; `quoted` is the frame as it is quoted.
fn told(frame: &Frame, kind: u8, code: u8, mtu: u32, quoted: &Frame) -> Vec<u8> {
    let mut quoted = packet(quoted);
    quoted.truncate(1232);
    let mut message = Message::new(kind, code, *frame.destination.ip(), *frame.source.ip(), quoted);
    message.link = [frame.link[1], frame.link[0]];
    message.head.1 = mtu;
    message.bytes()
}

#[test]
fn a_client_is_told_why_its_packet_goes_no_further() {
    let mut fixture = Fixture::configured(WEB);
    fixture.ipvsadm(
        "-A -t [fd00:1::100]:90 -s rr
         -A -t [fd00:1::100]:91 -s rr
         -a -t [fd00:1::100]:91 -r [fd00:66::1]:91 -m
         -A -u [fd00:1::100]:90 -s rr
         -A -t [fd00:1::100]:92 -s rr
         -a -t [fd00:1::100]:92 -r [fd00:2::11]:92 -i",
    );
    let open = |port| Frame::tcp(client(40000), vip(port), SYN);
    let large = |port| Frame { payload: vec![3; 1600], ..open(port) };
    let hop = |frame: Frame| Frame { hop_limit: 1, ..frame };
    let extended = Frame { extensions: vec![(0, vec![0; 6])], ..open(90) };
    let rows = [
        ("no destination", open(90), Reason::NoDestination, (1, 4, 0)),
        ("a datagram", Frame::udp(client(40000), vip(90), &[1; 9]), Reason::NoDestination, (1, 4, 0)),
        ("quoted in part", large(90), Reason::NoDestination, (1, 4, 0)),
        ("extension headers", extended, Reason::NoDestination, (1, 4, 0)),
        ("no route", open(91), Reason::NoRoute, (1, 3, 0)),
        ("the last hop", hop(open(80)), Reason::TimeExceeded, (3, 0, 0)),
        ("the last hop again", hop(open(80)), Reason::TimeExceeded, (3, 0, 0)),
        ("too big", large(80), Reason::TooBig, (2, 0, 1500)),
        ("too big for direct routing", large(81), Reason::TooBig, (2, 0, 1500)),
        ("too big for a tunnel", large(92), Reason::TooBig, (2, 0, 1460)),
    ];
    // At first nobody is told anything.
    for (what, frame, reason, _) in &rows {
        let outcome = fixture.send(CLIENTS, &frame.bytes());
        assert_eq!((outcome.action, outcome.reason), (Action::Drop, Some(*reason)), "{what}");
    }
    fixture.director.maps().settings.store_u32(0, offset_of!(Settings, icmp_rate), 1_000_000);
    fixture.wait(1_000);
    for (what, frame, reason, (kind, code, mtu)) in &rows {
        let outcome = fixture.send(CLIENTS, &frame.bytes());
        assert_eq!((outcome.action, outcome.reason), (Action::Transmit, Some(*reason)), "{what}");
        // Of what is too big the hop is taken off already.
        let quoted = Frame { hop_limit: frame.hop_limit - u8::from(*mtu != 0), ..frame.clone() };
        assert_eq!(outcome.bytes, told(frame, *kind, *code, *mtu, &quoted), "{what}");
    }
    for nobody in ["ff02::1", "::", "::1"] {
        let frame = Frame::tcp(at(nobody, 40000), vip(90), SYN);
        assert_eq!(fixture.send(CLIENTS, &frame.bytes()).action, Action::Drop, "{nobody}");
    }
}

/// A frame between two.
type Between = fn(SocketAddrV6, SocketAddrV6) -> Frame;

#[test]
fn errors_about_nat_connections_are_translated_both_ways() {
    let mut fixture = Fixture::configured(WEB);
    let rows: [(u16, SocketAddrV6, Between); 2] = [
        (80, at("fd00:2::11", 8080), |from, to| Frame::tcp(from, to, ACK)),
        (53, at("fd00:2::11", 5353), |from, to| Frame::udp(from, to, &[8; 31])),
    ];
    let from = client(40000);
    for (port, real, frame) in rows {
        let first = if port == 80 { Frame::tcp(from, vip(port), SYN) } else { frame(from, vip(port)) };
        fixture.send(CLIENTS, &first.bytes());
        for (kind, code) in [(1, 0), (2, 0), (3, 0), (4, 1)] {
            // From the client, or a router, about an answer.
            let about = packet(&frame(vip(port), from));
            for sender in [*from.ip(), ROUTER.parse().unwrap()] {
                let mut message = Message::new(kind, code, sender, *vip(port).ip(), about.clone());
                message.head.1 = 1400;
                let quoted = with_checksum_of(&frame(real, from), &about);
                let out = Message { destination: *real.ip(), quoted, ..message.clone() }.sent(to_server(1));
                let before = counted(&mut fixture, port);
                let outcome = fixture.send(CLIENTS, &message.bytes());
                assert_eq!((outcome.action, outcome.reason), (Action::Redirect, None), "{kind}");
                assert_eq!(outcome.bytes, out.bytes(), "{kind}");
                let mut wanted = before;
                wanted[1] += 1;
                wanted[2] += message.length();
                assert_eq!(counted(&mut fixture, port), wanted);
            }
            // From the server, or a router, about a request: all the client sees comes from the virtual address.
            let about = packet(&frame(from, real));
            for sender in [*real.ip(), FAR_ROUTER.parse().unwrap()] {
                let message = Message::new(kind, code, sender, *from.ip(), about.clone());
                let quoted = with_checksum_of(&frame(from, vip(port)), &about);
                let out = Message { source: *vip(port).ip(), quoted, ..message.clone() }.sent(TO_CLIENT);
                let before = counted(&mut fixture, port);
                let outcome = fixture.send(SERVERS, &message.bytes());
                assert_eq!((outcome.action, outcome.reason), (Action::Redirect, None), "{kind}");
                assert_eq!(outcome.bytes, out.bytes(), "{kind}");
                let mut wanted = before;
                wanted[3] += 1;
                wanted[4] += message.length();
                assert_eq!(counted(&mut fixture, port), wanted);
                let mut wrong = message.bytes();
                wrong[60] ^= 1;
                let outcome = fixture.send(SERVERS, &wrong);
                assert_eq!((outcome.action, outcome.reason), (Action::Drop, Some(Reason::IcmpChecksum)));
                assert_eq!(counted(&mut fixture, port), wanted);
            }
        }
    }
}

#[test]
fn errors_about_direct_routing_go_to_their_destination_as_they_are() {
    let mut fixture = Fixture::configured(WEB);
    let from = client(40000);
    fixture.send(CLIENTS, &Frame::tcp(from, vip(81), SYN).bytes());
    let before = counted(&mut fixture, 81);
    let about = packet(&Frame::tcp(vip(81), from, ACK));
    let inbound = Message::new(2, 0, ROUTER.parse().unwrap(), *vip(81).ip(), about);
    let outcome = fixture.send(CLIENTS, &inbound.bytes());
    assert_eq!((outcome.action, outcome.reason), (Action::Redirect, None));
    assert_eq!(outcome.bytes, inbound.clone().sent(to_server(2)).bytes());
    // About a request that went on as it came.
    let about = packet(&Frame::tcp(from, vip(81), ACK));
    let outbound = Message::new(1, 4, "fd00:2::12".parse().unwrap(), *from.ip(), about);
    let outcome = fixture.send(SERVERS, &outbound.bytes());
    assert_eq!((outcome.action, outcome.reason), (Action::Pass, Some(Reason::DirectReply)));
    assert_eq!(outcome.bytes, outbound.bytes());
    let mut wanted = before;
    for (place, more) in [(1, 1), (2, inbound.length()), (3, 1), (4, outbound.length())] {
        wanted[place] += more;
    }
    assert_eq!(counted(&mut fixture, 81), wanted);
}

#[test]
fn other_messages_pass() {
    let mut fixture = Fixture::configured(WEB);
    let from = client(40000);
    fixture.send(CLIENTS, &Frame::tcp(from, vip(80), SYN).bytes());
    let before = counted(&mut fixture, 80);
    let about = packet(&Frame::tcp(vip(80), from, ACK));
    let mut later = about.clone();
    later[6] = 44;
    later[40..48].copy_from_slice(&[6, 0, 0, 8, 0, 0, 0, 1]);
    let stranger = packet(&Frame::tcp(vip(80), client(1), ACK));
    let message = |kind, quoted| Message::new(kind, 0, *from.ip(), *vip(80).ip(), quoted);
    let rows = [
        ("echo", message(128, vec![7; 56])),
        ("neighbour solicitation", message(135, vec![7; 24])),
        ("about nothing", message(1, Vec::new())),
        ("about part of a header", message(1, about[..39].to_vec())),
        ("about a later fragment", message(1, later)),
        ("about nobody's", message(1, stranger)),
    ];
    for (what, message) in rows {
        let outcome = fixture.send(CLIENTS, &message.bytes());
        assert_eq!((outcome.action, outcome.reason), (Action::Pass, Some(Reason::Icmp)), "{what}");
        assert_eq!(outcome.bytes, message.bytes(), "{what}");
    }
    assert_eq!(counted(&mut fixture, 80), before);
    // Two flows that look alike to the table are told apart.
    fixture.change_addresses(|addresses| addresses.source[1] ^= 1);
    let outcome = fixture.send(CLIENTS, &message(1, about).bytes());
    assert_eq!((outcome.action, outcome.reason), (Action::Pass, Some(Reason::Icmp)));
}

#[test]
fn nat_icmp_send_refuses_answers_that_belong_to_nothing() {
    let mut fixture = Fixture::configured(WEB);
    fixture.director.maps().settings.store_u32(0, offset_of!(Settings, icmp_rate), 1_000_000);
    let answers = [
        Frame::tcp(at("fd00:2::11", 8080), client(1), ACK),
        Frame::udp(at("fd00:2::11", 5353), client(1), &[7]),
    ];
    for answer in &answers {
        assert_eq!(fixture.send(SERVERS, &answer.bytes()).reason, Some(Reason::NoReplyConnection));
    }
    fixture.director.set_sysctl("nat_icmp_send", 1).unwrap();
    for answer in &answers {
        let quoted = Frame { hop_limit: 63, ..answer.clone() };
        let mut message =
            Message::new(1, 4, "fd00:2::1".parse().unwrap(), *answer.source.ip(), packet(&quoted));
        message.link = [LINK[1], LINK[0]];
        let outcome = fixture.send(SERVERS, &answer.bytes());
        assert_eq!((outcome.action, outcome.reason), (Action::Transmit, Some(Reason::ReplyRefused)));
        assert_eq!(outcome.bytes, message.bytes());
    }
    // By direct routing, another port, and a reset.
    for frame in [
        Frame::tcp(at("fd00:2::12", 81), client(1), ACK),
        Frame::tcp(at("fd00:2::11", 5353), client(1), ACK),
        Frame::tcp(at("fd00:2::11", 8080), client(1), super::frame::RST),
    ] {
        assert_eq!(fixture.send(SERVERS, &frame.bytes()).reason, Some(Reason::NoReplyConnection));
    }
}

#[test]
fn schedule_icmp_has_an_error_make_a_connection() {
    let mut fixture = Fixture::configured(WEB);
    fixture.director.set_sysctl("schedule_icmp", 1).unwrap();
    let rows = [(80, true, at("fd00:2::11", 8080)), (53, false, at("fd00:2::11", 5353)), (81, true, vip(81))];
    for (port, tcp, inside) in rows {
        let flow = |from, to| if tcp { Frame::tcp(from, to, ACK) } else { Frame::udp(from, to, &[7]) };
        let about = packet(&flow(vip(port), client(40000)));
        // From a router.
        let message = Message::new(1, 0, ROUTER.parse().unwrap(), *vip(port).ip(), about.clone());
        for connections in [1, 0] {
            let before = counted(&mut fixture, port);
            let outcome = fixture.send(CLIENTS, &message.bytes());
            assert_eq!((outcome.action, outcome.reason), (Action::Redirect, None), "{port}");
            let destination = *inside.ip();
            let quoted = with_checksum_of(&flow(inside, client(40000)), &about);
            let out = Message { destination, quoted, ..message.clone() };
            let number = if port == 81 { 2 } else { 1 };
            assert_eq!(outcome.bytes, out.sent(to_server(number)).bytes(), "{port}");
            let mut wanted = before;
            (wanted[0], wanted[1]) = (before[0] + connections, before[1] + 1);
            (wanted[2], wanted[6]) = (before[2] + message.length(), before[6] + connections);
            assert_eq!(counted(&mut fixture, port), wanted, "{port}");
        }
    }
    // Of IPv6 no error is about a tunnel's packet.
    let message = Message::new(
        1,
        0,
        ROUTER.parse().unwrap(),
        *vip(99).ip(),
        packet(&Frame::tcp(vip(99), client(1), ACK)),
    );
    assert_eq!(fixture.send(CLIENTS, &message.bytes()).reason, Some(Reason::Icmp));
}
