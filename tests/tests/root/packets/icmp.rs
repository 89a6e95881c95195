//! ICMP: what clients are told, and errors about connections on their way to whom they concern.

use std::mem::offset_of;
use std::net::{Ipv4Addr, SocketAddrV4};

use etherparse::{IpNumber, Ipv4Header, checksum::Sum16BitWords};
use lb_common::reason::Reason;
use lb_common::settings::Settings;

use super::fixture::{
    Action, CLIENTS, Counted, Expected, Fixture, SERVERS, TO_CLIENT, VIP, client, server, to_server,
};
use super::frame::{ACK, Frame, Mac, RST, SYN};

const LINK: [Mac; 2] = [[0x02; 6], [0x04; 6]];
/// A router somewhere on the way.
const ROUTER: Ipv4Addr = Ipv4Addr::new(192, 168, 1, 77);

pub fn telling(lines: &str) -> Fixture {
    let fixture = Fixture::configured(lines);
    fixture.director.maps().settings.store_u32(0, offset_of!(Settings, icmp_rate), 1_000_000);
    fixture
}

/// An ICMP message.
#[derive(Clone)]
pub struct Message {
    pub link: [Mac; 2],
    pub tags: Vec<u8>,
    pub source: Ipv4Addr,
    pub destination: Ipv4Addr,
    pub time_to_live: u8,
    pub service_type: u8,
    /// Type, code, and the four bytes behind the checksum.
    pub head: ([u8; 2], [u8; 4]),
    pub quoted: Vec<u8>,
}

impl Message {
    pub fn new(kind: u8, code: u8, from: Ipv4Addr, to: Ipv4Addr, quoted: Vec<u8>) -> Self {
        Self {
            link: LINK,
            tags: Vec::new(),
            source: from,
            destination: to,
            time_to_live: 64,
            service_type: 0,
            head: ([kind, code], [0; 4]),
            quoted,
        }
    }

    pub fn sent(self, link: [Mac; 2]) -> Self {
        Self { link, time_to_live: self.time_to_live - 1, ..self }
    }

    pub fn packet(&self) -> Vec<u8> {
        let body = [&self.head.0[..], &[0, 0], &self.head.1, &self.quoted].concat();
        let sum = Sum16BitWords::new().add_slice(&body).ones_complement().to_le_bytes();
        let body = [&self.head.0[..], &sum, &self.head.1, &self.quoted].concat();
        let (source, destination) = (self.source.octets(), self.destination.octets());
        let mut header = Ipv4Header::new(0, self.time_to_live, IpNumber::ICMP, source, destination).unwrap();
        header.dont_fragment = false;
        header.dscp = (self.service_type >> 2).try_into().unwrap();
        header.ecn = (self.service_type & 3).try_into().unwrap();
        header.set_payload_len(body.len()).unwrap();
        header.header_checksum = header.calc_header_checksum();
        [header.to_bytes().to_vec(), body].concat()
    }

    pub fn bytes(&self) -> Vec<u8> {
        [self.link.concat(), self.tags.clone(), vec![8, 0], self.packet()].concat()
    }

    pub fn counted_in(&self) -> Counted {
        Counted { in_packets: 1, in_bytes: self.packet().len() as i64, ..Counted::NOTHING }
    }

    pub fn counted_out(&self) -> Counted {
        Counted { out_packets: 1, out_bytes: self.packet().len() as i64, ..Counted::NOTHING }
    }
}

/// Sends a message and compares all there is.
#[track_caller]
pub fn expect(
    fixture: &mut Fixture,
    what: &str,
    interface: u32,
    message: &[u8],
    expected: (Action, Option<Reason>, Vec<u8>),
    counted: &[(SocketAddrV4, Counted)],
) {
    let before = fixture.counted();
    let outcome = fixture.send(interface, message);
    assert_eq!((outcome.action, outcome.reason), (expected.0, expected.1), "{what}");
    if expected.0 != Action::Drop {
        assert_eq!(outcome.bytes, expected.2, "{what}");
    }
    for (address, after) in fixture.counted() {
        let wanted = counted.iter().find(|(counted, _)| *counted == address);
        assert_eq!(after - before[&address], wanted.map_or(Counted::NOTHING, |it| it.1), "{what}: {address}");
    }
}

/// What the sender of a frame is told: sent back the way that the frame came.
fn told(frame: &Frame, kind: u8, code: u8, mtu: u16, quoted: &Frame) -> Message {
    let mut quoted = quoted.packet();
    quoted.truncate(548);
    let (mut message, tags) = (
        Message::new(kind, code, *frame.destination.ip(), *frame.source.ip(), quoted),
        frame.tags.iter().flat_map(|(kind, identifier)| [kind.to_be_bytes(), identifier.to_be_bytes()]),
    );
    message.tags = tags.flatten().collect();
    message.link = [frame.link[1], frame.link[0]];
    message.service_type = frame.service_type & 0x1e | 0xc0;
    message.head.1[2..].copy_from_slice(&mtu.to_be_bytes());
    message
}

/// Checks what a client is told; the identification is a random number.
#[track_caller]
fn expect_told(fixture: &Fixture, what: &str, frame: &Frame, reason: Reason, wanted: &Message) {
    expect_told_at(CLIENTS, fixture, what, frame, reason, wanted);
}

/// Checks what a frame's sender is told on the interface that it came in on.
#[track_caller]
fn expect_told_at(
    interface: u32,
    fixture: &Fixture,
    what: &str,
    frame: &Frame,
    reason: Reason,
    wanted: &Message,
) {
    let outcome = fixture.send(interface, &frame.bytes());
    assert_eq!((outcome.action, outcome.reason), (Action::Transmit, Some(reason)), "{what}");
    let network = 14 + frame.tags.len() * 4;
    let (mut header, _) = Ipv4Header::from_slice(&outcome.bytes[network..]).unwrap();
    assert_eq!(header.header_checksum, header.calc_header_checksum(), "{what}");
    header.identification = 0;
    header.header_checksum = header.calc_header_checksum();
    let mut bytes = outcome.bytes.clone();
    bytes[network..network + 20].copy_from_slice(&header.to_bytes());
    assert_eq!(bytes, wanted.bytes(), "{what}");
}

#[test]
fn without_a_destination_the_port_is_unreachable() {
    let fixture = telling(
        "-A -t 192.168.1.100:80 -s rr
         -A -u 192.168.1.100:53 -s rr",
    );
    let names = SocketAddrV4::new(*VIP.ip(), 53);
    let frames = [
        ("syn", Frame::tcp(client(40000), VIP, SYN)),
        ("with data", Frame::tcp(client(40000), VIP, SYN).payload([7; 100])),
        ("quoted in part", Frame::tcp(client(40000), VIP, SYN).payload([7; 1400])),
        ("tags and options", {
            Frame::tcp(client(40000), VIP, SYN).tagged(0x88a8, 9).tagged(0x8100, 7).options([1, 1, 1, 0])
        }),
        ("type of service", Frame::tcp(client(40000), VIP, SYN).service_type(0xfd)),
        ("datagram", Frame::udp(client(5000), names)),
        ("empty datagram", Frame::udp(client(5000), names).payload([])),
    ];
    for (what, frame) in frames {
        expect_told(&fixture, what, &frame, Reason::NoDestination, &told(&frame, 3, 3, 0, &frame));
    }
    let many = Frame::udp(SocketAddrV4::new(Ipv4Addr::new(224, 0, 0, 1), 5000), names);
    assert_eq!(fixture.send(CLIENTS, &many.bytes()).action, Action::Drop);
    // What a link padded is not quoted.
    let frame = Frame::udp(client(5000), names).payload([]);
    let mut padded = frame.bytes();
    padded.resize(60, 0xee);
    let length = fixture.send(CLIENTS, &padded).bytes.len();
    assert_eq!(length, told(&frame, 3, 3, 0, &frame).bytes().len());
}

#[test]
fn a_client_is_told_why_its_packet_goes_no_further() {
    let rows: [(&str, &str, &str, u16); 4] = [
        ("-m", "10.0.0.11:80", "", 1500),
        ("-g", "10.0.0.18:80", "", 600),
        ("-i", "10.0.0.11:80", "", 1480),
        ("-i", "10.0.0.11:80", "--tun-type gue --tun-port 6080 --tun-csum", 1468),
    ];
    for (number, (method, address, options, mtu)) in rows.into_iter().enumerate() {
        let mut fixture = telling(&format!(
            "-A -t 192.168.1.100:80 -s rr
             -a -t 192.168.1.100:80 -r {address} {method} {options}"
        ));
        let what = format!("row {number}");
        let mut wanted = Counted::NOTHING;
        for flags in [SYN, ACK, ACK] {
            let frame = Frame::tcp(client(40000), VIP, flags).payload(vec![1; usize::from(mtu) - 39]);
            // The hop is taken off already.
            let quoted = frame.clone().time_to_live(63);
            let large = told(&frame, 3, 4, mtu, &quoted);
            expect_told(&fixture, &what, &frame, Reason::TooBig, &large);
            let frame = Frame::tcp(client(40001), VIP, flags).time_to_live(1);
            let late = told(&frame, 11, 0, 0, &frame);
            expect_told(&fixture, &what, &frame, Reason::TimeExceeded, &late);
            if method != "-m" {
                wanted = wanted + large.counted_out() + late.counted_out();
            }
        }
        // Where the destination's answers have the virtual address, this is one too.
        let counted = fixture.counted()[&address.parse().unwrap()];
        assert_eq!(
            (counted.out_packets, counted.out_bytes),
            (wanted.out_packets, wanted.out_bytes),
            "{what}"
        );
    }
    let fixture = telling(
        "-A -t 192.168.1.100:80 -s rr
         -a -t 192.168.1.100:80 -r 10.66.0.1:80 -m",
    );
    let frame = Frame::tcp(client(40000), VIP, SYN);
    expect_told(&fixture, "no route", &frame, Reason::NoRoute, &told(&frame, 3, 1, 0, &frame));
}

#[test]
fn there_is_a_limit_to_what_is_told() {
    let fixture = telling("-A -t 192.168.1.100:80 -s rr");
    fixture.director.maps().settings.store_u32(0, offset_of!(Settings, icmp_rate), 1);
    // One at once, and one more every second, which a busy machine does not take to send a frame; what earlier tests left
    // is cut to that at the first look. Waited for is more, as the clock may seem to step back by a tick.
    let syn = Frame::tcp(client(40000), VIP, SYN).bytes();
    let ask = |milliseconds| {
        fixture.wait(milliseconds);
        let outcome = fixture.send(CLIENTS, &syn);
        assert_eq!(outcome.reason, Some(Reason::NoDestination));
        outcome.action
    };
    for _ in 0..20 {
        assert_eq!([ask(1500), ask(0), ask(0)], [Action::Transmit, Action::Drop, Action::Drop]);
    }
}

/// A frame between two.
type Between = fn(SocketAddrV4, SocketAddrV4) -> Frame;

#[test]
fn errors_about_nat_connections_are_translated_both_ways() {
    let mut fixture = Fixture::configured(
        "-A -t 192.168.1.100:80 -s rr
         -a -t 192.168.1.100:80 -r 10.0.0.11:8080 -m
         -A -u 192.168.1.100:53 -s rr
         -a -u 192.168.1.100:53 -r 10.0.0.11:5353 -m",
    );
    let names = SocketAddrV4::new(*VIP.ip(), 53);
    let rows: [(SocketAddrV4, SocketAddrV4, Between); 2] = [
        (VIP, server(1, 8080), |from, to| Frame::tcp(from, to, ACK)),
        (names, server(1, 5353), |from, to| Frame::udp(from, to)),
    ];
    for (vip, real, frame) in rows {
        let client = client(40000);
        let first = if vip == VIP { Frame::tcp(client, vip, SYN) } else { frame(client, vip) };
        fixture.send(CLIENTS, &first.bytes());
        let deadlines =
            |fixture: &Fixture| -> Vec<_> { fixture.client_sides().map(|it| it.deadline).collect() };
        let before = (fixture.states(), deadlines(&fixture));
        for (kind, code) in [(3, 1), (3, 4), (11, 0), (4, 0)] {
            // From the client, or a router, about an answer.
            let about = frame(vip, client).packet();
            for from in [*client.ip(), ROUTER] {
                let mut message = Message::new(kind, code, from, *VIP.ip(), about.clone());
                message.head.1 = [0, 0, 5, 0x78];
                // The quoted transport checksum stays as it was.
                let mut quoted = frame(real, client).packet();
                let length = about.len();
                let checksum = if vip == VIP { 36..38 } else { 26..28 };
                quoted[checksum.clone()].copy_from_slice(&about[checksum]);
                assert_eq!(quoted.len(), length);
                let mut out = Message { destination: *real.ip(), quoted, ..message.clone() };
                out = out.sent(to_server(1));
                let expected = (Action::Redirect, None, out.bytes());
                let counted = [(real, message.counted_in())];
                expect(&mut fixture, "to the server", CLIENTS, &message.bytes(), expected, &counted);
            }
            // From the server, or a router, about a request: all the client sees comes from the virtual address.
            let about = frame(client, real).packet();
            for from in [*real.ip(), Ipv4Addr::new(10, 0, 0, 77)] {
                let message = Message::new(kind, code, from, *client.ip(), about.clone());
                let mut quoted = frame(client, vip).packet();
                let checksum = if vip == VIP { 36..38 } else { 26..28 };
                quoted[checksum.clone()].copy_from_slice(&about[checksum]);
                let out = Message { source: *VIP.ip(), quoted, ..message.clone() }.sent(TO_CLIENT);
                let expected = (Action::Redirect, None, out.bytes());
                let counted = [(real, message.counted_out())];
                expect(&mut fixture, "to the client", SERVERS, &message.bytes(), expected, &counted);
                let mut wrong = message.bytes();
                wrong[47] ^= 1;
                let expected = (Action::Drop, Some(Reason::IcmpChecksum), Vec::new());
                expect(&mut fixture, "wrong", SERVERS, &wrong, expected, &[]);
            }
        }
        // Neither state nor time has moved.
        assert_eq!((fixture.states(), deadlines(&fixture)), before);
    }
}

#[test]
fn errors_about_other_connections_go_to_their_destination_as_they_are() {
    for (options, outer) in [("-g", false), ("-i", true)] {
        let mut fixture = Fixture::configured(&format!(
            "-A -t 192.168.1.100:80 -s rr
             -a -t 192.168.1.100:80 -r 10.0.0.11:80 {options}"
        ));
        let (client, real) = (client(40000), server(1, 80));
        fixture.send(CLIENTS, &Frame::tcp(client, VIP, SYN).bytes());
        let about = Frame::tcp(VIP, client, ACK).packet();
        let message = Message::new(3, 4, ROUTER, *VIP.ip(), about);
        let counted = [(real, message.counted_in())];
        let out = message.clone().sent(to_server(1));
        if outer {
            let before = fixture.counted();
            let sent = fixture.send(CLIENTS, &message.bytes());
            assert_eq!((sent.action, sent.reason), (Action::Redirect, None));
            let (header, inner) = Ipv4Header::from_slice(&sent.bytes[14..]).unwrap();
            assert_eq!((header.protocol.0, header.destination), (4, real.ip().octets()));
            assert_eq!(inner, out.packet());
            assert_eq!(fixture.counted()[&real] - before[&real], counted[0].1);
        } else {
            let expected = (Action::Redirect, None, out.bytes());
            expect(&mut fixture, options, CLIENTS, &message.bytes(), expected, &counted);
        }
        // About a request that went on as it came: whoever sent the error has the client's address already.
        let about = Frame::tcp(client, VIP, ACK).packet();
        let message = Message::new(3, 1, *real.ip(), *client.ip(), about);
        let expected = (Action::Pass, Some(Reason::DirectReply), message.bytes());
        let counted = [(real, message.counted_out())];
        expect(&mut fixture, options, SERVERS, &message.bytes(), expected, &counted);
    }
}

#[test]
fn other_messages_pass() {
    let mut fixture = Fixture::configured(
        "-A -t 192.168.1.100:80 -s rr
         -a -t 192.168.1.100:80 -r 10.0.0.11:8080 -m",
    );
    let syn = Frame::tcp(client(40000), VIP, SYN);
    let out = Expected::Redirect(syn.clone().destination(server(1, 8080)).sent(to_server(1)));
    fixture.expect("syn", CLIENTS, &syn, out, &[(server(1, 8080), Counted::opened(&syn))]);
    let about = Frame::tcp(VIP, client(40000), ACK).packet();
    let (to, from) = (*VIP.ip(), *client(0).ip());
    let mut later = about.clone();
    later[7] = 1;
    let rows = [
        ("echo", Message::new(8, 0, from, to, vec![7; 56])),
        ("redirect", Message::new(5, 1, from, to, about.clone())),
        ("parameter problem", Message::new(12, 0, from, to, about.clone())),
        ("about nothing", Message::new(3, 3, from, to, Vec::new())),
        ("about part of a header", Message::new(3, 3, from, to, about[..19].to_vec())),
        ("about a later fragment", Message::new(3, 3, from, to, later)),
        ("about nobody's", Message::new(3, 3, from, to, Frame::tcp(VIP, client(1), ACK).packet())),
    ];
    for (what, message) in rows {
        let expected = (Action::Pass, Some(Reason::Icmp), message.bytes());
        expect(&mut fixture, what, CLIENTS, &message.bytes(), expected, &[]);
    }
}

#[test]
fn nat_icmp_send_refuses_answers_that_belong_to_nothing() {
    let mut fixture = telling(
        "-A -t 192.168.1.100:80 -s rr
         -a -t 192.168.1.100:80 -r 10.0.0.11:8080 -m
         -a -t 192.168.1.100:80 -r 10.0.0.12:80 -g
         -A -u 192.168.1.100:53 -s rr
         -a -u 192.168.1.100:53 -r 10.0.0.11:53 -m
         -A -f 7 -s rr
         -a -f 7 -r 10.0.0.13:99 -m",
    );
    let director = Ipv4Addr::new(10, 0, 0, 1);
    let refused = |frame: &Frame| {
        // Quoted as it would have gone on.
        let message = told(frame, 3, 3, 0, &frame.clone().time_to_live(63));
        Message { source: director, ..message }
    };
    let answer = Frame::tcp(server(1, 8080), client(40000), ACK);
    let passes = |fixture: &mut Fixture, frame: &Frame| {
        fixture.expect("passes", SERVERS, frame, Expected::Pass(Reason::NoReplyConnection), &[]);
    };
    passes(&mut fixture, &answer);
    fixture.director.set_sysctl("nat_icmp_send", 1).unwrap();
    let tag = |frame: Frame| frame.tagged(0x8100, 7).options([1, 1, 1, 0]).service_type(0xb8);
    let rows = [
        answer.clone(),
        tag(answer.clone()),
        answer.clone().payload([7; 1400]),
        Frame::udp(server(1, 53), client(5000)),
        Frame::tcp(server(3, 99), client(40000), SYN),
        Frame::udp(server(3, 99), client(40000)),
    ];
    for frame in &rows {
        let reason = Reason::ReplyRefused;
        expect_told_at(SERVERS, &fixture, "refused", frame, reason, &refused(frame));
    }
    let old = answer.clone().time_to_live(1);
    fixture.expect("the last hop", SERVERS, &old, Expected::Pass(Reason::ReplyByStack), &[]);
    // Whoever aborts is not answered; other ports, and destinations that do not masquerade, are their own masters.
    for frame in [
        Frame::tcp(server(1, 8080), client(40000), RST),
        Frame::tcp(server(1, 8080), client(40000), RST | ACK),
        Frame::tcp(server(1, 8081), client(40000), ACK),
        Frame::tcp(server(1, 53), client(40000), ACK),
        Frame::udp(server(1, 8080), client(40000)),
        Frame::tcp(server(2, 80), client(40000), ACK),
    ] {
        passes(&mut fixture, &frame);
    }
    // An answer of a connection is one.
    fixture.ipvsadm("-e -t 192.168.1.100:80 -r 10.0.0.12:80 -g -w 0");
    fixture.send(CLIENTS, &Frame::tcp(client(40000), VIP, SYN).bytes());
    assert_eq!(fixture.send(SERVERS, &answer.bytes()).action, Action::Redirect);
    // Changes of the table count at once: of the method, deleted and added again, and twice the same.
    let other = Frame::tcp(server(1, 8080), client(41000), ACK);
    let is_refused = |fixture: &Fixture, frame: &Frame| {
        fixture.send(SERVERS, &frame.bytes()).reason == Some(Reason::ReplyRefused)
    };
    fixture.ipvsadm("-a -t 192.168.1.100:80 -r 10.0.0.14:80 -m");
    assert!(is_refused(&fixture, &Frame::tcp(server(4, 80), client(1), ACK)));
    fixture.ipvsadm("-e -t 192.168.1.100:80 -r 10.0.0.14:80 -g");
    assert!(!is_refused(&fixture, &Frame::tcp(server(4, 80), client(1), ACK)));
    fixture.ipvsadm(
        "-A -t 192.168.1.101:80 -s rr
         -a -t 192.168.1.101:80 -r 10.0.0.11:8080 -m
         -d -t 192.168.1.100:80 -r 10.0.0.11:8080",
    );
    assert!(is_refused(&fixture, &other));
    fixture.ipvsadm("-D -t 192.168.1.101:80");
    assert!(!is_refused(&fixture, &other));
    fixture.ipvsadm("-a -t 192.168.1.100:80 -r 10.0.0.11:8080 -m");
    assert!(is_refused(&fixture, &other));
    fixture.director.set_sysctl("nat_icmp_send", 0).unwrap();
    passes(&mut fixture, &other);
}

#[test]
fn schedule_icmp_has_an_error_make_a_connection() {
    for options in ["-m", "-g", "-i"] {
        let port = if options == "-m" { 8080 } else { 80 };
        let mut fixture = telling(&format!(
            "-A -t 192.168.1.100:80 -s rr
             -a -t 192.168.1.100:80 -r 10.0.0.11:{port} {options}
             -A -t 192.168.1.100:81 -s rr"
        ));
        let (client, real) = (client(40000), server(1, port));
        let message = Message::new(3, 1, ROUTER, *VIP.ip(), Frame::tcp(VIP, client, ACK).packet());
        let passed = (Action::Pass, Some(Reason::Icmp), message.bytes());
        expect(&mut fixture, options, CLIENTS, &message.bytes(), passed, &[]);
        fixture.director.set_sysctl("schedule_icmp", 1).unwrap();
        for number in 0..2 {
            let before = fixture.counted();
            let outcome = fixture.send(CLIENTS, &message.bytes());
            assert_eq!((outcome.action, outcome.reason), (Action::Redirect, None), "{options}");
            assert_eq!(outcome.bytes[..6], to_server(1)[0]);
            let made = Counted { connections: 1, inactive: 1, ..Counted::NOTHING };
            let wanted = message.counted_in() + if number == 0 { made } else { Counted::NOTHING };
            assert_eq!(fixture.counted()[&real] - before[&real], wanted, "{options}");
        }
        assert_eq!(fixture.states()[&client], "NONE");
        // It lives for three seconds, unless a packet of its own comes.
        fixture.wait(2900);
        assert_eq!(fixture.send(CLIENTS, &Frame::tcp(client, VIP, ACK).bytes()).action, Action::Redirect);
        assert_eq!(fixture.states()[&client], "ESTABLISHED");
        let other = super::fixture::client(40001);
        let about = Message::new(3, 1, ROUTER, *VIP.ip(), Frame::tcp(VIP, other, ACK).packet());
        fixture.send(CLIENTS, &about.bytes());
        fixture.wait(3100);
        fixture.sweep();
        assert_eq!(fixture.states().keys().collect::<Vec<_>>(), [&client]);
        // Without a destination it ends here, and nobody is told; about IPsec, other ports and port 20 it passes.
        let to = SocketAddrV4::new(*VIP.ip(), 81);
        let nobody = Message::new(3, 1, ROUTER, *VIP.ip(), Frame::tcp(to, client, ACK).packet());
        let dropped = (Action::Drop, Some(Reason::NoDestination), Vec::new());
        expect(&mut fixture, options, CLIENTS, &nobody.bytes(), dropped, &[]);
        let to = SocketAddrV4::new(*VIP.ip(), 82);
        for (about, reason) in [
            (Frame::tcp(to, client, ACK), Reason::Icmp),
            (Frame::other(50, VIP, client), Reason::Icmp),
            (Frame::tcp(VIP, super::fixture::client(20), ACK), Reason::SourcePort20),
        ] {
            let message = Message::new(3, 1, ROUTER, *VIP.ip(), about.packet());
            let passed = (Action::Pass, Some(reason), message.bytes());
            expect(&mut fixture, options, CLIENTS, &message.bytes(), passed, &[]);
        }
    }
}

#[test]
fn an_error_chooses_the_destination_that_a_client_would_get() {
    // By the client's address, whatever the error's own; dh hashes the client's in the place of the virtual address.
    for (scheduler, by_client) in [("sh", true), ("mh", true), ("dh", false)] {
        let mut fixture = Fixture::configured(&format!("-A -t 192.168.1.100:80 -s {scheduler}"));
        for number in 1..=7 {
            fixture.ipvsadm(&format!("-a -t 192.168.1.100:80 -r 10.0.0.{}:80 -m", 10 + number));
        }
        fixture.director.set_sysctl("schedule_icmp", 1).unwrap();
        let to = |fixture: &Fixture, bytes: &[u8]| {
            let outcome = fixture.send(CLIENTS, bytes);
            assert_eq!(outcome.action, Action::Redirect);
            outcome.bytes[33]
        };
        let mut differs = false;
        for last in 2..12 {
            let from = |port| SocketAddrV4::new(Ipv4Addr::new(192, 0, 2, last), port);
            let syn = Frame::tcp(from(1000), VIP, SYN);
            let about = Frame::tcp(VIP, from(1001), ACK);
            let message = Message::new(3, 1, ROUTER, *VIP.ip(), about.packet());
            let (by_syn, by_error) = (to(&fixture, &syn.bytes()), to(&fixture, &message.bytes()));
            assert!(!by_client || by_syn == by_error, "{scheduler}");
            differs |= by_syn != by_error;
        }
        assert_ne!(differs, by_client, "{scheduler}");
    }
}

#[test]
fn by_locality_an_error_goes_where_its_client_s_address_is_remembered() {
    for scheduler in ["lblc", "lblcr"] {
        let mut fixture = Fixture::configured(&format!(
            "-A -t 192.168.1.100:80 -s {scheduler}
             -a -t 192.168.1.100:80 -r 10.0.0.11:80 -m
             -a -t 192.168.1.100:80 -r 10.0.0.12:80 -m"
        ));
        fixture.director.set_sysctl("schedule_icmp", 1).unwrap();
        let server_of = |last, port| {
            let client = SocketAddrV4::new(Ipv4Addr::new(192, 0, 2, last), port);
            let about = Frame::tcp(VIP, client, ACK);
            let message = Message::new(3, 1, ROUTER, *VIP.ip(), about.packet());
            let outcome = fixture.send(CLIENTS, &message.bytes());
            assert_eq!(outcome.action, Action::Redirect);
            outcome.bytes[33]
        };
        assert_eq!([server_of(2, 1000), server_of(2, 1001), server_of(2, 1002)], [12; 3], "{scheduler}");
        // One who is not remembered goes to the less loaded.
        assert_eq!([server_of(3, 1000), server_of(3, 1001), server_of(2, 1003)], [11, 11, 12], "{scheduler}");
    }
}
