//! NAT: both directions, tags, options, checksums, and next hops that are not to be had.

use std::net::{Ipv4Addr, SocketAddrV4};

use lb_common::reason::Reason;

use super::fixture::{
    CLIENTS, CLOSED, Counted, Expected, Fixture, NESTED, SERVERS, TO_CLIENT, TO_GATEWAY, TO_NESTED, TO_VLAN,
    VIP, client, server, to_server,
};
use super::frame::{ACK, Change, FIN, Frame, PSH, SYN};

const WEB: &str = "-A -t 192.168.1.100:80 -s rr
                   -a -t 192.168.1.100:80 -r 10.0.0.11:8080 -m";
const NAMES: &str = "-A -u 192.168.1.100:53 -s rr
                     -a -u 192.168.1.100:53 -r 10.0.0.11:5353 -m";
const DNS: SocketAddrV4 = SocketAddrV4::new(*VIP.ip(), 53);

/// Priority 5, no drop eligibility, identifier 7.
const TAG: (u16, u16) = (0x8100, 0xa007);

#[test]
fn a_tcp_conversation_is_translated_both_ways() {
    let mut fixture = Fixture::configured(WEB);
    let (client, server) = (client(40000), server(1, 8080));
    let request = |flags| Frame::tcp(client, VIP, flags);
    let answer = |flags| Frame::tcp(server, client, flags);
    let rows = [
        (request(SYN), Counted::opened(&request(SYN))),
        (answer(SYN | ACK), Counted::packet_out(&answer(SYN | ACK))),
        (request(ACK), Counted::packet_in(&request(ACK))),
        (request(PSH | ACK).payload("GET / HTTP/1.0\r\n\r\n"), Counted::NOTHING),
        (answer(PSH | ACK).payload([0x55; 1400]), Counted::NOTHING),
        (answer(PSH | ACK).payload([0xff; 777]), Counted::NOTHING),
        (answer(FIN | ACK), Counted::packet_out(&answer(FIN)).and_now(-1, 1)),
        (request(FIN | ACK), Counted::packet_in(&request(FIN))),
        (answer(ACK), Counted::packet_out(&answer(ACK))),
    ];
    for (number, (frame, counted)) in rows.into_iter().enumerate() {
        let from_client = frame.destination == VIP;
        let plain = if from_client { Counted::packet_in(&frame) } else { Counted::packet_out(&frame) };
        let counted = if counted == Counted::NOTHING { plain } else { counted };
        let (interface, out) = if from_client {
            (CLIENTS, frame.clone().destination(server).sent(to_server(1)))
        } else {
            (SERVERS, frame.clone().source(VIP).sent(TO_CLIENT))
        };
        let what = format!("segment {number}");
        fixture.expect(&what, interface, &frame, Expected::Redirect(out), &[(server, counted)]);
    }
}

#[test]
fn a_packet_that_leaves_where_it_came_in_is_transmitted() {
    let mut fixture = Fixture::configured(WEB);
    let client = SocketAddrV4::new(Ipv4Addr::new(10, 0, 0, 12), 40000);
    let (syn, answer) = (Frame::tcp(client, VIP, SYN), Frame::tcp(server(1, 8080), client, SYN | ACK));
    let out = syn.clone().destination(server(1, 8080)).sent(to_server(1));
    let counted = [(server(1, 8080), Counted::opened(&syn))];
    fixture.expect("syn", SERVERS, &syn, Expected::Transmit(out), &counted);
    let out = answer.clone().source(VIP).sent(to_server(2));
    let counted = [(server(1, 8080), Counted::packet_out(&answer))];
    fixture.expect("answer", SERVERS, &answer, Expected::Transmit(out), &counted);
}

#[test]
fn tags_options_and_lengths_make_no_difference() {
    const RECORD_ROUTE: [u8; 40] = [
        7, 39, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
        0, 0, 0, 0, 0, 0, 0,
    ];
    let mut fixture = Fixture::configured(WEB);
    let server = server(1, 8080);
    let rows: [(&str, Change); 10] = [
        ("one tag", |frame| frame.tagged(TAG.0, TAG.1)),
        ("two tags", |frame| frame.tagged(0x88a8, 100).tagged(TAG.0, TAG.1)),
        ("two tags of the older kind", |frame| frame.tagged(0x8100, 100).tagged(TAG.0, TAG.1)),
        ("priority tag", |frame| frame.tagged(0x8100, 0)),
        ("four bytes of options", |frame| frame.options([1, 1, 1, 0])),
        ("all options there is room for", |frame| frame.options(RECORD_ROUTE)),
        ("two tags and all options", |frame| {
            frame.tagged(0x88a8, 100).tagged(TAG.0, TAG.1).options(RECORD_ROUTE)
        }),
        ("one byte", |frame| frame.payload([0xff])),
        ("an odd length", |frame| frame.payload([0xa5; 1001])),
        ("as long as the link takes", |frame| frame.payload([0; 1460])),
    ];
    for (number, (what, change)) in rows.into_iter().enumerate() {
        let client = client(40000 + number as u16);
        let syn = change(Frame::tcp(client, VIP, SYN));
        let out = syn.clone().destination(server).sent(to_server(1));
        fixture.expect(what, CLIENTS, &syn, Expected::Redirect(out), &[(server, Counted::opened(&syn))]);
        let answer = change(Frame::tcp(server, client, SYN | ACK));
        let out = answer.clone().source(VIP).sent(TO_CLIENT);
        let counted = [(server, Counted::packet_out(&answer))];
        fixture.expect(what, SERVERS, &answer, Expected::Redirect(out), &counted);
        // The same in the steady state, which another program handles.
        let ack = change(Frame::tcp(client, VIP, ACK));
        let out = ack.clone().destination(server).sent(to_server(1));
        for _ in 0..2 {
            let counted = [(server, Counted::packet_in(&ack))];
            fixture.expect(what, CLIENTS, &ack, Expected::Redirect(out.clone()), &counted);
        }
    }
}

#[test]
fn a_way_through_a_vlan_gets_its_tag() {
    let mut fixture = Fixture::configured(
        "-A -t 192.168.1.100:80 -s rr
         -a -t 192.168.1.100:80 -r 10.7.0.11:80 -m",
    );
    let server = SocketAddrV4::new(Ipv4Addr::new(10, 7, 0, 11), 80);
    for (number, tags) in [&[][..], &[TAG], &[(0x88a8, 100), TAG]].into_iter().enumerate() {
        let client = client(40000 + number as u16);
        let syn = Frame { tags: tags.to_vec(), ..Frame::tcp(client, VIP, SYN) };
        let out = syn.clone().destination(server).sent(TO_VLAN).tagged(0x8100, 7);
        let what = format!("{} tags in", tags.len());
        fixture.expect(&what, CLIENTS, &syn, Expected::Redirect(out), &[(server, Counted::opened(&syn))]);
        let ack = Frame { tags: tags.to_vec(), ..Frame::tcp(client, VIP, ACK) };
        let out = ack.clone().destination(server).sent(TO_VLAN).tagged(0x8100, 7);
        let counted = [(server, Counted::packet_in(&ack))];
        fixture.expect(&what, CLIENTS, &ack, Expected::Redirect(out.clone()), &counted);
        fixture.expect(&what, CLIENTS, &ack, Expected::Redirect(out), &counted);
    }
}

#[test]
fn what_xdp_cannot_send_is_left_to_the_stack_whole_every_time() {
    let mut fixture = Fixture::configured(
        "-A -t 192.168.1.100:80 -s rr
         -a -t 192.168.1.100:80 -r 10.9.0.11:80 -m
         -A -u 192.168.1.100:53 -s rr
         -a -u 192.168.1.100:53 -r 10.9.0.11:53 -g",
    );
    let address = Ipv4Addr::new(10, 9, 0, 11);
    let server = SocketAddrV4::new(address, 80);
    for (flags, first) in [(SYN, true), (ACK, false), (ACK, false), (PSH | ACK, false)] {
        let frame = Frame::tcp(client(40000), VIP, flags);
        let out = frame.clone().destination(server).sent(TO_NESTED);
        let counted = if first { Counted::opened(&frame) } else { Counted::packet_in(&frame) };
        fixture.expect("NAT", CLIENTS, &frame, Expected::ByStack(NESTED, out), &[(server, counted)]);
    }
    let server = SocketAddrV4::new(address, 53);
    for first in [true, false, false] {
        let frame = Frame::udp(client(40000), DNS);
        let out = frame.clone().sent(TO_NESTED);
        let counted = if first { Counted::opened_inactive(&frame) } else { Counted::packet_in(&frame) };
        fixture.expect("direct", CLIENTS, &frame, Expected::ByStack(NESTED, out), &[(server, counted)]);
    }
}

#[test]
fn udp_checksums_follow_and_absent_ones_stay_absent() {
    let mut fixture = Fixture::configured(NAMES);
    let server = server(1, 5353);
    let rows: [(&str, Change); 4] = [
        ("with checksum", |frame| frame),
        // Kernel IPVS computes one; see COMPATIBILITY.md.
        ("without checksum", Frame::without_checksum),
        ("an odd length", |frame| frame.payload([0xfe; 333])),
        ("empty", |frame| frame.payload([])),
    ];
    for (number, (what, change)) in rows.into_iter().enumerate() {
        let client = client(5000 + number as u16);
        let query = change(Frame::udp(client, DNS));
        let out = query.clone().destination(server).sent(to_server(1));
        let counted = [(server, Counted::opened_inactive(&query))];
        fixture.expect(what, CLIENTS, &query, Expected::Redirect(out.clone()), &counted);
        let counted = [(server, Counted::packet_in(&query))];
        fixture.expect(what, CLIENTS, &query, Expected::Redirect(out), &counted);
        let answer = change(Frame::udp(server, client));
        let out = answer.clone().source(DNS).sent(TO_CLIENT);
        let counted = [(server, Counted::packet_out(&answer))];
        for _ in 0..2 {
            fixture.expect(what, SERVERS, &answer, Expected::Redirect(out.clone()), &counted);
        }
    }
}

#[test]
fn a_udp_checksum_that_becomes_zero_is_written_as_ones() {
    let mut fixture = Fixture::configured(NAMES);
    let (client, server) = (client(5000), server(1, 5353));
    // A payload with which the translated datagram's sum is zero, found by trying: etherparse writes 0xffff then.
    let (query, out) = (0..=u16::MAX)
        .map(|word| {
            let query = Frame::udp(client, DNS).payload(word.to_be_bytes());
            (query.clone(), query.destination(server).sent(to_server(1)))
        })
        .find(|(_, out)| out.bytes()[40..42] == [0xff, 0xff])
        .unwrap();
    assert_ne!(query.bytes()[40..42], [0xff, 0xff]);
    let counted = [(server, Counted::opened_inactive(&query))];
    fixture.expect("query", CLIENTS, &query, Expected::Redirect(out), &counted);
}

#[test]
fn a_wrong_checksum_stays_wrong() {
    let fixture = Fixture::configured(WEB);
    let syn = Frame::tcp(client(40000), VIP, SYN);
    let (mut bytes, mut wanted) =
        (syn.bytes(), syn.clone().destination(server(1, 8080)).sent(to_server(1)).bytes());
    // The last byte of the window: the sum is off by one, and so it is afterwards.
    (bytes[49], wanted[49]) = (bytes[49] ^ 1, wanted[49] ^ 1);
    assert_eq!(fixture.send(CLIENTS, &bytes).bytes, wanted);
}

#[test]
fn a_destination_without_a_port_keeps_the_packets() {
    let mut fixture = Fixture::configured(
        "-A -t 192.168.1.100:80 -s rr
         -a -t 192.168.1.100:80 -r 10.0.0.11:0 -m",
    );
    let syn = Frame::tcp(client(40000), VIP, SYN);
    let out = syn.clone().destination(server(1, 80)).sent(to_server(1));
    fixture.expect("syn", CLIENTS, &syn, Expected::Redirect(out), &[(server(1, 0), Counted::opened(&syn))]);
}

#[test]
fn without_a_neighbour_the_stack_gets_the_translated_packet() {
    let mut fixture = Fixture::configured(
        "-A -t 192.168.1.100:80 -s rr
         -a -t 192.168.1.100:80 -r 10.0.0.99:80 -m",
    );
    let server = SocketAddrV4::new(Ipv4Addr::new(10, 0, 0, 99), 80);
    let syn = Frame::tcp(client(40000), VIP, SYN);
    let expected = || Expected::PassChanged(Reason::NeighbourByStack, Frame::tcp(client(40000), server, SYN));
    fixture.expect("syn", CLIENTS, &syn, expected(), &[(server, Counted::opened(&syn))]);
    fixture.expect("again", CLIENTS, &syn, expected(), &[(server, Counted::packet_in(&syn))]);
}

#[test]
fn a_destination_that_is_the_director_gets_the_translated_packet() {
    let mut fixture = Fixture::configured(
        "-A -t 192.168.1.100:80 -s rr
         -a -t 192.168.1.100:80 -r 10.0.0.1:8080 -m",
    );
    let server = SocketAddrV4::new(Ipv4Addr::new(10, 0, 0, 1), 8080);
    let syn = Frame::tcp(client(40000), VIP, SYN);
    let out = Frame::tcp(client(40000), server, SYN);
    let expected = Expected::PassChanged(Reason::LocalDestination, out);
    fixture.expect("syn", CLIENTS, &syn, expected, &[(server, Counted::opened(&syn))]);
}

#[test]
fn where_there_is_no_way_the_packet_is_dropped_by_name_and_counted() {
    let rows = [
        ("no route", "10.66.0.1:80", CLIENTS, 0, Reason::NoRoute),
        ("too big for the link", "10.0.0.11:80", CLIENTS, 1461, Reason::TooBig),
        ("too big for the route", "10.0.0.18:80", CLIENTS, 561, Reason::TooBig),
        ("does not forward", "10.0.0.11:80", CLOSED, 0, Reason::ForwardingDisabled),
    ];
    for (what, address, interface, length, reason) in rows {
        let mut fixture = Fixture::configured("-A -t 192.168.1.100:80 -s rr");
        fixture.ipvsadm(&format!("-a -t 192.168.1.100:80 -r {address} -m"));
        let server: SocketAddrV4 = address.parse().unwrap();
        let syn = Frame::tcp(client(40000), VIP, SYN).payload(vec![0; length]);
        fixture.expect(what, interface, &syn, Expected::Drop(reason), &[(server, Counted::opened(&syn))]);
        // The connection is there, and what fits goes.
        assert_eq!(fixture.states().len(), 1, "{what}");
        if reason == Reason::TooBig {
            let fits = Frame::tcp(client(40000), VIP, ACK).payload(vec![0; length - 1]);
            let number = server.ip().octets()[3] - 10;
            let out = fits.clone().destination(server).sent(to_server(number));
            let counted = [(server, Counted::packet_in(&fits))];
            fixture.expect(what, interface, &fits, Expected::Redirect(out), &counted);
        }
    }
}

#[test]
fn a_time_to_live_that_runs_out_is_dropped_and_counted() {
    let mut fixture = Fixture::configured(WEB);
    let server = server(1, 8080);
    for (number, time_to_live) in [0, 1].into_iter().enumerate() {
        let client = client(40000 + number as u16);
        let syn = Frame::tcp(client, VIP, SYN).time_to_live(time_to_live);
        let what = format!("time to live {time_to_live}");
        let counted = [(server, Counted::opened(&syn))];
        fixture.expect(&what, CLIENTS, &syn, Expected::Drop(Reason::TimeExceeded), &counted);
        assert_eq!(fixture.states()[&client], "SYN_RECV", "{what}");
        let ack = Frame::tcp(client, VIP, ACK).time_to_live(time_to_live);
        let counted = [(server, Counted::packet_in(&ack))];
        fixture.expect(&what, CLIENTS, &ack, Expected::Drop(Reason::TimeExceeded), &counted);
        assert_eq!(fixture.states()[&client], "ESTABLISHED", "{what}");
        let answer = Frame::tcp(server, client, ACK).time_to_live(time_to_live);
        let counted = [(server, Counted::packet_out(&answer))];
        fixture.expect(&what, SERVERS, &answer, Expected::Pass(Reason::ReplyByStack), &counted);
    }
    let two = Frame::tcp(client(50000), VIP, SYN).time_to_live(2);
    let out = two.clone().destination(server).sent(to_server(1));
    fixture.expect("two", CLIENTS, &two, Expected::Redirect(out), &[(server, Counted::opened(&two))]);
}

#[test]
fn clients_behind_a_router_get_answers_through_it() {
    let mut fixture = Fixture::configured(WEB);
    let (client, server) = (SocketAddrV4::new(Ipv4Addr::new(203, 0, 113, 7), 1024), server(1, 8080));
    let syn = Frame::tcp(client, VIP, SYN);
    let out = syn.clone().destination(server).sent(to_server(1));
    fixture.expect("syn", CLIENTS, &syn, Expected::Redirect(out), &[(server, Counted::opened(&syn))]);
    let answer = Frame::tcp(server, client, SYN | ACK);
    let out = answer.clone().source(VIP).sent(TO_GATEWAY);
    fixture.expect(
        "answer",
        SERVERS,
        &answer,
        Expected::Redirect(out),
        &[(server, Counted::packet_out(&answer))],
    );
}

#[test]
fn an_answer_without_a_connection_passes_as_it_is() {
    let mut fixture = Fixture::configured(WEB);
    let answer = Frame::tcp(server(1, 8080), client(40000), ACK);
    fixture.expect("answer", SERVERS, &answer, Expected::Pass(Reason::NoReplyConnection), &[]);
}
