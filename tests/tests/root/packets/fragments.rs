//! Fragments go where the first one of their datagram goes; byte by byte, and counted as one datagram.

use std::net::SocketAddrV4;

use etherparse::{IpFragOffset, Ipv4Header, UdpHeader};
use lb_common::reason::Reason;

use super::fixture::{
    Action, CLIENTS, Counted, Fixture, Outcome, SERVERS, TO_CLIENT, VIP, client, server, to_server,
};
use super::frame::{ACK, Frame, SYN};

const WEB: &str = "-A -t 192.168.1.100:80 -s rr
    -a -t 192.168.1.100:80 -r 10.0.0.11:8080 -m
    -A -u 192.168.1.100:53 -s rr
    -a -u 192.168.1.100:53 -r 10.0.0.11:5353 -m";

fn names() -> SocketAddrV4 {
    SocketAddrV4::new(*VIP.ip(), 53)
}

/// A large datagram that may be cut in pieces.
fn datagram(from: SocketAddrV4, to: SocketAddrV4) -> Frame {
    let payload: Vec<u8> = (0..3000u16).map(|place| (place / 7) as u8).collect();
    Frame::udp(from, to).payload(payload).fragmentable()
}

/// The frame in pieces, which end behind so many bytes of what follows the IPv4 header, and at the end of it.
fn pieces(frame: &Frame, ends: &[usize]) -> Vec<Vec<u8>> {
    let whole = frame.bytes();
    let header = frame.network();
    let body = whole.len() - usize::from(header.total_len) + header.header_len();
    let link = &whole[..body - header.header_len()];
    let rest = &whole[body..];
    let starts = [0].into_iter().chain(ends.iter().copied());
    let ends = ends.iter().copied().chain([rest.len()]);
    let piece = |(from, to): (usize, usize)| {
        let mut header: Ipv4Header = header.clone();
        header.fragment_offset = IpFragOffset::try_new((from / 8) as u16).unwrap();
        header.more_fragments = to != rest.len();
        header.set_payload_len(to - from).unwrap();
        header.header_checksum = header.calc_header_checksum();
        [link, &header.to_bytes(), &rest[from..to]].concat()
    };
    starts.zip(ends).map(piece).collect()
}

/// Sends pieces of a frame in this order and expects those of another in their places.
#[track_caller]
fn expect(fixture: &Fixture, what: &str, interface: u32, sent: &Frame, out: &Frame, order: &[usize]) {
    let ends = [1000, 1008, 2400];
    let (sent, out) = (pieces(sent, &ends), pieces(out, &ends));
    for number in order {
        let outcome = fixture.send(interface, &sent[*number]);
        assert_eq!((outcome.action, outcome.reason), (Action::Redirect, None), "{what}: piece {number}");
        assert_eq!(outcome.bytes, out[*number], "{what}: piece {number}");
    }
}

#[track_caller]
fn counts(fixture: &mut Fixture, what: &str, before: Counted, address: SocketAddrV4, wanted: Counted) {
    assert_eq!(fixture.counted()[&address] - before, wanted, "{what}");
}

/// What becomes of pieces from the client, in words.
fn reasons(fixture: &Fixture, pieces: &[Vec<u8>]) -> Vec<Option<Reason>> {
    pieces.iter().map(|piece| fixture.send(CLIENTS, piece).reason).collect()
}

const ORDERS: [[usize; 4]; 4] = [[0, 1, 2, 3], [0, 3, 2, 1], [0, 2, 3, 1], [0, 3, 1, 2]];

#[test]
fn datagrams_are_translated_both_ways() {
    let mut fixture = Fixture::configured(WEB);
    let real = server(1, 5353);
    for (number, order) in (0..).zip(ORDERS) {
        for (what, change) in [
            ("plain", (|frame| frame) as fn(Frame) -> Frame),
            ("options", |frame| frame.options([1, 1, 1, 0])),
            ("no checksum", Frame::without_checksum),
        ] {
            let client = client(40000 + number);
            let before = fixture.counted()[&real];
            let query = change(datagram(client, names()));
            let out = query.clone().destination(real).sent(to_server(1));
            expect(&fixture, what, CLIENTS, &query, &out, &order);
            let answer = change(datagram(real, client));
            let out = answer.clone().source(names()).sent(TO_CLIENT);
            expect(&fixture, what, SERVERS, &answer, &out, &order);
            let opened =
                if what == "plain" { Counted::opened_inactive(&query) } else { Counted::packet_in(&query) };
            counts(&mut fixture, what, before, real, opened + Counted::packet_out(&answer));
        }
    }
}

#[test]
fn segments_move_their_connection_by_their_first_fragment() {
    let mut fixture = Fixture::configured(WEB);
    let (client, real) = (client(40000), server(1, 8080));
    let segment = |from, to, flags| Frame::tcp(from, to, flags).payload(vec![9; 3000]).fragmentable();
    for (flags, state) in [(SYN, "SYN_RECV"), (ACK, "ESTABLISHED"), (ACK, "ESTABLISHED")] {
        let before = fixture.counted()[&real];
        let frame = segment(client, VIP, flags);
        let out = frame.clone().destination(real).sent(to_server(1));
        expect(&fixture, state, CLIENTS, &frame, &out, &ORDERS[1]);
        let wanted = if flags == SYN { Counted::opened(&frame) } else { Counted::packet_in(&frame) };
        counts(&mut fixture, state, before, real, wanted);
        assert_eq!(fixture.states()[&client], state);
    }
    let frame = segment(real, client, ACK);
    let out = frame.clone().source(VIP).sent(TO_CLIENT);
    expect(&fixture, "answer", SERVERS, &frame, &out, &ORDERS[2]);
}

#[test]
fn direct_routing_takes_every_fragment_as_it_is() {
    let mut fixture = Fixture::configured(
        "-A -u 192.168.1.100:53 -s rr
         -a -u 192.168.1.100:53 -r 10.0.0.11:53 -g",
    );
    let query = datagram(client(40000), names());
    let out = query.clone().sent(to_server(1));
    expect(&fixture, "in", CLIENTS, &query, &out, &ORDERS[3]);
    counts(&mut fixture, "in", Counted::NOTHING, server(1, 53), Counted::opened_inactive(&query));
    // Answers that pass by are counted, and nothing more.
    let before = fixture.counted()[&server(1, 53)];
    let answer = datagram(names(), client(40000));
    for piece in pieces(&answer, &[1480]) {
        let outcome = fixture.send(SERVERS, &piece);
        assert_eq!((outcome.reason, outcome.bytes), (Some(Reason::DirectReply), piece));
    }
    counts(&mut fixture, "out", before, server(1, 53), Counted::packet_out(&answer));
}

#[test]
fn tunnels_take_every_fragment_as_it_is() {
    let fixture = Fixture::configured(
        "-A -u 192.168.1.100:53 -s rr
         -a -u 192.168.1.100:53 -r 10.0.0.11:53 -i",
    );
    let query = datagram(client(40000), names());
    let inner = query.clone().sent(to_server(1));
    for (sent, inner) in pieces(&query, &[800, 1600]).iter().zip(pieces(&inner, &[800, 1600])) {
        let outcome = fixture.send(CLIENTS, sent);
        assert_eq!((outcome.action, outcome.reason), (Action::Redirect, None));
        let (outer, rest) = Ipv4Header::from_slice(&outcome.bytes[14..]).unwrap();
        assert_eq!((outer.protocol.0, outer.destination), (4, server(1, 53).ip().octets()));
        assert_eq!(rest, &inner[14..]);
    }
    // With its outer header too large, which the stack cuts.
    let large = pieces(&datagram(client(40001), names()), &[1480]);
    assert_eq!(reasons(&fixture, &large), [Some(Reason::FragmentedByStack); 2]);
}

#[test]
fn without_its_first_a_fragment_is_left_to_the_stack() {
    let fixture = Fixture::configured(WEB);
    let pieces = |port, identification: u16| {
        let mut all = pieces(&datagram(client(port), names()), &[1480, 2960]);
        for piece in &mut all {
            piece[18..20].copy_from_slice(&identification.to_be_bytes());
        }
        all
    };
    let reason = |piece: &[u8]| fixture.send(CLIENTS, piece).reason;
    let one = pieces(40000, 1);
    assert_eq!(reason(&one[1]), Some(Reason::Fragment));
    assert_eq!((reason(&one[0]), reason(&one[1]), reason(&one[2])), (None, None, None));
    // Another datagram between the same two.
    let other = pieces(40001, 2);
    assert_eq!(reason(&other[2]), Some(Reason::Fragment));
    assert_eq!((reason(&other[0]), reason(&other[2]), reason(&one[2])), (None, None, None));
    // Identifications come again.
    fixture.wait(29_000);
    assert_eq!(reason(&one[1]), None);
    fixture.wait(2_000);
    assert_eq!(reason(&one[1]), Some(Reason::Fragment));
}

#[test]
fn what_becomes_of_the_first_becomes_of_all() {
    let mut fixture = Fixture::configured(
        "-A -u 192.168.1.100:53 -s rr
         -A -u 192.168.1.100:54 -s rr -o
         -a -u 192.168.1.100:54 -r 10.0.0.11:54 -m
         -A -u 192.168.1.100:55 -s rr
         -a -u 192.168.1.100:55 -r 10.0.0.11:55 -m",
    );
    let to = |port| SocketAddrV4::new(*VIP.ip(), port);
    let rows = [
        ("no destination", to(53), Some(Reason::NoDestination), Reason::FragmentRefused),
        ("one packet", to(54), None, Reason::FragmentRefused),
        ("no service", to(99), Some(Reason::NoService), Reason::NoService),
        ("not ours", server(50, 1), Some(Reason::NotOurs), Reason::NotOurs),
    ];
    for (what, to, first, later) in rows {
        let seen = reasons(&fixture, &pieces(&datagram(client(40000), to), &[1480, 2960]));
        assert_eq!(seen, [first, Some(later), Some(later)], "{what}");
    }
    let last_hop = pieces(&datagram(client(40000), to(55)).time_to_live(1), &[1480]);
    assert_eq!(reasons(&fixture, &last_hop), [Some(Reason::TimeExceeded); 2]);
    let whole = pieces(&datagram(client(40000), to(55)), &[1480]);
    fixture.send(CLIENTS, &whole[0]);
    fixture.ipvsadm("-d -u 192.168.1.100:55 -r 10.0.0.11:55");
    assert_eq!(reasons(&fixture, &whole), [Some(Reason::DestinationDeleted); 2]);
}

#[test]
fn a_first_fragment_has_a_whole_header() {
    let fixture = Fixture::configured(WEB);
    let reasons = |frame: &Frame, end| reasons(&fixture, &pieces(frame, &[end]));
    let segment = Frame::tcp(client(40000), VIP, SYN).payload([1; 40]).fragmentable();
    assert_eq!(reasons(&segment, 8), [Some(Reason::Malformed), Some(Reason::Fragment)]);
    assert_eq!(reasons(&segment, 24), [None, None]);
    let datagram = datagram(client(40000), names()).payload([1; 500]);
    assert_eq!(reasons(&datagram, UdpHeader::LEN), [None, None]);
    // A frame that ends early.
    let whole = &pieces(&datagram, &[480])[1];
    for length in 14..whole.len() {
        let Outcome { reason, bytes, .. } = fixture.send(CLIENTS, &whole[..length]);
        assert_eq!((reason, &bytes[..]), (Some(Reason::Malformed), &whole[..length]));
    }
}
