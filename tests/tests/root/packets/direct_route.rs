//! Direct routing: the packet as it is but for a hop, to the destination's link address.

use std::net::{Ipv4Addr, SocketAddrV4};

use lb_common::reason::Reason;

use super::fixture::{CLIENTS, Counted, Expected, Fixture, SERVERS, TO_VLAN, VIP, client, server, to_server};
use super::frame::{ACK, Change, FIN, Frame, PSH, SYN};

const WEB: &str = "-A -t 192.168.1.100:80 -s rr
                   -a -t 192.168.1.100:80 -r 10.0.0.11:80 -g";

#[test]
fn nothing_but_the_link_header_and_the_hop_changes() {
    let mut fixture = Fixture::configured(WEB);
    let server = server(1, 80);
    let frames: [Change; 5] = [
        |frame| frame,
        |frame| frame.tagged(0x8100, 7),
        |frame| frame.tagged(0x88a8, 100).tagged(0x8100, 7).options([1, 1, 1, 0]),
        |frame| frame.payload([0x5a; 1460]),
        |frame| frame.payload([0xff; 3]),
    ];
    for (number, change) in frames.into_iter().enumerate() {
        let client = client(40000 + number as u16);
        let steps = [(SYN, Counted::opened as fn(&Frame) -> Counted), (ACK, Counted::packet_in)];
        for (flags, counted) in steps.into_iter().chain([(PSH | ACK, Counted::packet_in as _); 2]) {
            let frame = change(Frame::tcp(client, VIP, flags));
            let out = frame.clone().sent(to_server(1));
            let what = format!("frame {number}, flags {flags:#x}");
            fixture.expect(&what, CLIENTS, &frame, Expected::Redirect(out), &[(server, counted(&frame))]);
        }
    }
}

#[test]
fn the_destinations_port_plays_no_part() {
    let mut fixture = Fixture::configured(
        "-A -u 192.168.1.100:53 -s rr
         -a -u 192.168.1.100:53 -r 10.0.0.11:9999 -g",
    );
    let query = Frame::udp(client(5000), SocketAddrV4::new(*VIP.ip(), 53)).without_checksum();
    // ipvsadm gives a direct-routing destination the service's port.
    let counted = [(server(1, 53), Counted::opened_inactive(&query))];
    let out = query.clone().sent(to_server(1));
    fixture.expect("query", CLIENTS, &query, Expected::Redirect(out), &counted);
}

#[test]
fn a_way_through_a_vlan_gets_its_tag() {
    let mut fixture = Fixture::configured(
        "-A -t 192.168.1.100:80 -s rr
         -a -t 192.168.1.100:80 -r 10.7.0.11:80 -g",
    );
    let server = SocketAddrV4::new(Ipv4Addr::new(10, 7, 0, 11), 80);
    let syn = Frame::tcp(client(40000), VIP, SYN);
    let out = syn.clone().sent(TO_VLAN).tagged(0x8100, 7);
    fixture.expect("syn", CLIENTS, &syn, Expected::Redirect(out), &[(server, Counted::opened(&syn))]);
}

#[test]
fn an_answer_that_comes_by_is_counted_and_left_to_the_stack() {
    let mut fixture = Fixture::configured(WEB);
    let (client, server) = (client(40000), server(1, 80));
    let syn = Frame::tcp(client, VIP, SYN);
    let out = syn.clone().sent(to_server(1));
    fixture.expect("syn", CLIENTS, &syn, Expected::Redirect(out), &[(server, Counted::opened(&syn))]);
    for (flags, change) in [(SYN | ACK, (0, 0)), (ACK, (0, 0)), (ACK, (0, 0)), (FIN | ACK, (-1, 1))] {
        let answer = Frame::tcp(VIP, client, flags);
        let counted = Counted::packet_out(&answer).and_now(change.0, change.1);
        fixture.expect("answer", SERVERS, &answer, Expected::Pass(Reason::DirectReply), &[(server, counted)]);
    }
    let stray = Frame::tcp(VIP, super::fixture::client(40001), ACK);
    fixture.expect("stray", SERVERS, &stray, Expected::Pass(Reason::NoReplyConnection), &[]);
}

#[test]
fn an_answer_that_goes_to_where_a_service_is_opens_nothing() {
    let mut fixture = Fixture::configured(
        "-A -u 192.168.1.100:53 -s rr
         -a -u 192.168.1.100:53 -r 10.0.0.11:53 -g
         -A -u 192.168.1.101:0 -s rr -p 300
         -a -u 192.168.1.101:0 -r 10.0.0.12:0 -g",
    );
    let [virtual_one, client] = [([192, 168, 1, 100], 53), ([192, 168, 1, 101], 4000)]
        .map(|(host, port): ([u8; 4], u16)| SocketAddrV4::new(host.into(), port));
    let query = Frame::udp(client, virtual_one);
    let out = query.clone().sent(to_server(1));
    let counted = [(server(1, 53), Counted::opened_inactive(&query))];
    fixture.expect("query", CLIENTS, &query, Expected::Redirect(out), &counted);
    let answer = Frame::udp(virtual_one, client);
    let counted = [(server(1, 53), Counted::packet_out(&answer))];
    fixture.expect("answer", SERVERS, &answer, Expected::Pass(Reason::DirectReply), &counted);
    // What is none does.
    let other = Frame::udp(SocketAddrV4::new(*virtual_one.ip(), 54), client);
    let out = other.clone().sent(to_server(2));
    let counted = [(server(2, 0), Counted::opened_inactive(&other))];
    fixture.expect("other", SERVERS, &other, Expected::Transmit(out), &counted);
}

#[test]
fn without_a_neighbour_the_packet_is_dropped_by_name_and_counted() {
    let mut fixture = Fixture::configured(
        "-A -t 192.168.1.100:80 -s rr
         -a -t 192.168.1.100:80 -r 10.0.0.99:80 -g",
    );
    let server = SocketAddrV4::new(Ipv4Addr::new(10, 0, 0, 99), 80);
    let syn = Frame::tcp(client(40000), VIP, SYN);
    let expected = || Expected::Drop(Reason::NeighbourUnresolved);
    fixture.expect("syn", CLIENTS, &syn, expected(), &[(server, Counted::opened(&syn))]);
    fixture.expect("again", CLIENTS, &syn, expected(), &[(server, Counted::packet_in(&syn))]);
}

#[test]
fn a_destination_that_is_the_director_gets_the_packet_as_it_is() {
    let mut fixture = Fixture::configured(
        "-A -t 192.168.1.100:80 -s rr
         -a -t 192.168.1.100:80 -r 10.0.0.1:80 -g",
    );
    let server = SocketAddrV4::new(Ipv4Addr::new(10, 0, 0, 1), 80);
    let syn = Frame::tcp(client(40000), VIP, SYN);
    let expected = Expected::Pass(Reason::LocalDestination);
    fixture.expect("syn", CLIENTS, &syn, expected, &[(server, Counted::opened(&syn))]);
}

#[test]
fn both_methods_serve_one_service() {
    let mut fixture = Fixture::configured(
        "-A -t 192.168.1.100:80 -s rr
         -a -t 192.168.1.100:80 -r 10.0.0.11:8080 -m
         -a -t 192.168.1.100:80 -r 10.0.0.12:80 -g",
    );
    for number in 0..6 {
        let syn = Frame::tcp(client(40000 + number), VIP, SYN);
        let (server, out) = match number % 2 {
            0 => (server(2, 80), syn.clone().sent(to_server(2))),
            _ => (server(1, 8080), syn.clone().destination(server(1, 8080)).sent(to_server(1))),
        };
        fixture.expect("syn", CLIENTS, &syn, Expected::Redirect(out), &[(server, Counted::opened(&syn))]);
    }
}
