//! What makes a connection, what does not, and when a SYN takes the place of an old one.

use std::net::SocketAddrV4;

use lb_common::reason::Reason;

use super::fixture::{
    CLIENTS, Counted, Expected, Fixture, SERVERS, TO_CLIENT, VIP, client, server, to_server,
};
use super::frame::{ACK, FIN, Frame, PSH, RST, SYN};

const TWO: &str = "-A -t 192.168.1.100:80 -s rr
                   -a -t 192.168.1.100:80 -r 10.0.0.11:80 -m
                   -a -t 192.168.1.100:80 -r 10.0.0.12:80 -m";

#[test]
fn a_syn_whatever_else_it_is_but_a_reset_opens() {
    let mut fixture = Fixture::configured(TWO);
    for (number, flags) in [SYN, SYN | ACK, SYN | FIN, SYN | PSH].into_iter().enumerate() {
        let syn = Frame::tcp(client(40000 + number as u16), VIP, flags);
        let to = 2 - (number as u8 & 1);
        let out = syn.clone().destination(server(to, 80)).sent(to_server(to));
        let what = format!("flags {flags:#x}");
        let counted = [(server(to, 80), Counted::opened(&syn))];
        fixture.expect(&what, CLIENTS, &syn, Expected::Redirect(out), &counted);
    }
    for flags in [0, ACK, RST, RST | ACK, FIN, FIN | ACK, PSH | ACK, SYN | RST] {
        let stray = Frame::tcp(client(50000), VIP, flags);
        let what = format!("flags {flags:#x}");
        fixture.expect(&what, CLIENTS, &stray, Expected::Pass(Reason::NoConnection), &[]);
    }
}

#[test]
fn source_port_20_is_not_scheduled() {
    let mut fixture = Fixture::configured(TWO);
    fixture.ipvsadm(
        "-A -u 192.168.1.100:53 -s rr
         -a -u 192.168.1.100:53 -r 10.0.0.13:53 -m",
    );
    let syn = Frame::tcp(client(20), VIP, SYN);
    fixture.expect("TCP", CLIENTS, &syn, Expected::Pass(Reason::SourcePort20), &[]);
    let query = Frame::udp(client(20), SocketAddrV4::new(*VIP.ip(), 53));
    fixture.expect("UDP", CLIENTS, &query, Expected::Pass(Reason::SourcePort20), &[]);
}

#[test]
fn protocols_and_ports_are_told_apart() {
    let mut fixture = Fixture::configured(
        "-A -u 192.168.1.100:80 -s rr
         -a -u 192.168.1.100:80 -r 10.0.0.11:80 -m",
    );
    let syn = Frame::tcp(client(40000), VIP, SYN);
    fixture.expect("TCP", CLIENTS, &syn, Expected::Pass(Reason::NoService), &[]);
    let other = Frame::udp(client(40000), SocketAddrV4::new(*VIP.ip(), 81));
    fixture.expect("another port", CLIENTS, &other, Expected::Pass(Reason::NoService), &[]);
    let query = Frame::udp(client(40000), VIP);
    let out = query.clone().destination(server(1, 80)).sent(to_server(1));
    let counted = [(server(1, 80), Counted::opened_inactive(&query))];
    fixture.expect("UDP", CLIENTS, &query, Expected::Redirect(out), &counted);
}

#[test]
fn a_syn_sent_again_goes_where_the_first_went() {
    let mut fixture = Fixture::configured(TWO);
    let syn = Frame::tcp(client(40000), VIP, SYN);
    let out = syn.clone().destination(server(2, 80)).sent(to_server(2));
    let counted = [(server(2, 80), Counted::opened(&syn))];
    fixture.expect("syn", CLIENTS, &syn, Expected::Redirect(out.clone()), &counted);
    for again in 1..=3 {
        let counted = [(server(2, 80), Counted::packet_in(&syn))];
        let what = format!("again {again}");
        fixture.expect(&what, CLIENTS, &syn, Expected::Redirect(out.clone()), &counted);
    }
    assert_eq!(fixture.states().len(), 1);
}

#[test]
fn a_syn_takes_the_place_of_a_closed_connection_only() {
    /// Segments of client (true) and server, the state they lead to, and whether a SYN then makes a new connection.
    type Row = (&'static [(bool, u8)], &'static str, bool);
    let rows: [Row; 6] = [
        (&[], "SYN_RECV", false),
        (&[(true, ACK)], "ESTABLISHED", false),
        (&[(true, ACK), (false, FIN)], "FIN_WAIT", false),
        (&[(true, ACK), (true, FIN)], "CLOSE_WAIT", false),
        (&[(true, ACK), (false, FIN), (true, FIN)], "TIME_WAIT", true),
        (&[(true, ACK), (true, RST)], "CLOSE", true),
    ];
    for (segments, state, anew) in rows {
        let mut fixture = Fixture::configured(TWO);
        let (client, syn) = (client(40000), Frame::tcp(client(40000), VIP, SYN));
        fixture.send(CLIENTS, &syn.bytes());
        for (of_client, flags) in segments {
            match of_client {
                true => fixture.send(CLIENTS, &Frame::tcp(client, VIP, *flags).bytes()),
                false => fixture.send(SERVERS, &Frame::tcp(server(2, 80), client, *flags).bytes()),
            };
        }
        assert_eq!(fixture.states()[&client], state);
        let was_active = i64::from(["SYN_RECV", "ESTABLISHED"].contains(&state));
        let to = if anew { 1 } else { 2 };
        let out = syn.clone().destination(server(to, 80)).sent(to_server(to));
        let counted = if anew {
            vec![
                (server(2, 80), Counted::NOTHING.and_now(-was_active, was_active - 1)),
                (server(1, 80), Counted::opened(&syn)),
            ]
        } else {
            // Every state from which a SYN leads on is active again.
            vec![(server(2, 80), Counted::packet_in(&syn).and_now(1 - was_active, was_active - 1))]
        };
        fixture.expect(state, CLIENTS, &syn, Expected::Redirect(out), &counted);
        assert_eq!(fixture.states().len(), 1, "{state}");
        // Answers of the one that has the connection are translated, those of the other are not.
        let answer =
            |number| fixture.send(SERVERS, &Frame::tcp(server(number, 80), client, ACK).bytes()).reason;
        assert_eq!((answer(to), answer(3 - to)), (None, Some(Reason::NoReplyConnection)), "{state}");
    }
}

#[test]
fn answers_that_look_alike_belong_to_the_newest_connection() {
    let mut fixture = Fixture::configured(
        "-A -t 192.168.1.100:80 -s rr
         -a -t 192.168.1.100:80 -r 10.0.0.11:8080 -m
         -A -t 192.168.1.100:81 -s rr
         -a -t 192.168.1.100:81 -r 10.0.0.11:8080 -m",
    );
    let (client, server) = (client(40000), server(1, 8080));
    let newest = SocketAddrV4::new(*VIP.ip(), 81);
    for (to, flags) in [(VIP, SYN), (VIP, ACK), (newest, SYN), (VIP, RST)] {
        assert_eq!(fixture.send(CLIENTS, &Frame::tcp(client, to, flags).bytes()).reason, None);
    }
    // The older one is closed, and its ten seconds pass; the newest has sixty.
    fixture.wait(11_000);
    let answer = Frame::tcp(server, client, SYN | ACK);
    let out = answer.clone().source(newest).sent(TO_CLIENT);
    let counted = [(server, Counted::packet_out(&answer))];
    fixture.expect("answer", SERVERS, &answer, Expected::Redirect(out.clone()), &counted);
    fixture.sweep();
    fixture.send(SERVERS, &answer.bytes());
    assert_eq!(fixture.send(SERVERS, &answer.bytes()).bytes, out.bytes());
    assert_eq!(fixture.states().len(), 1);
}
