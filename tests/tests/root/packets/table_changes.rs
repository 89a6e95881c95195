//! What happens to packets when the table is changed under them.

use lb_common::reason::Reason;

use super::fixture::{
    CLIENTS, Counted, Expected, Fixture, SERVERS, TO_CLIENT, VIP, client, server, to_server,
};
use super::frame::{ACK, Frame, SYN};

const ONE: &str = "-A -t 192.168.1.100:80 -s rr
                   -a -t 192.168.1.100:80 -r 10.0.0.11:80 -m";
const OTHER: &str = "-A -u 192.168.1.100:53 -s rr";

/// Has the client open a connection to server 1.
fn open(fixture: &mut Fixture) {
    let syn = Frame::tcp(client(40000), VIP, SYN);
    let out = syn.clone().destination(server(1, 80)).sent(to_server(1));
    fixture.expect("open", CLIENTS, &syn, Expected::Redirect(out), &[(server(1, 80), Counted::opened(&syn))]);
}

/// Expects the open connection to carry packets both ways.
fn carries(fixture: &mut Fixture) {
    for _ in 0..2 {
        let ack = Frame::tcp(client(40000), VIP, ACK);
        let out = ack.clone().destination(server(1, 80)).sent(to_server(1));
        let counted = [(server(1, 80), Counted::packet_in(&ack))];
        fixture.expect("request", CLIENTS, &ack, Expected::Redirect(out), &counted);
        let answer = Frame::tcp(server(1, 80), client(40000), ACK);
        let out = answer.clone().source(VIP).sent(TO_CLIENT);
        let counted = [(server(1, 80), Counted::packet_out(&answer))];
        fixture.expect("answer", SERVERS, &answer, Expected::Redirect(out), &counted);
    }
}

/// Expects a new connection to find no destination.
fn refuses(fixture: &mut Fixture) {
    let syn = Frame::tcp(client(40001), VIP, SYN);
    fixture.expect("new", CLIENTS, &syn, Expected::Drop(Reason::NoDestination), &[]);
}

/// Expects the open connection's packets of the client to be dropped, whatever state they would lead to.
fn silent(fixture: &mut Fixture) {
    for flags in [ACK, SYN] {
        let packet = Frame::tcp(client(40000), VIP, flags);
        fixture.expect("request", CLIENTS, &packet, Expected::Drop(Reason::DestinationDeleted), &[]);
    }
}

#[test]
fn a_service_without_destinations_refuses() {
    refuses(&mut Fixture::configured("-A -t 192.168.1.100:80 -s rr"));
}

#[test]
fn weight_zero_drains() {
    let mut fixture = Fixture::configured(ONE);
    open(&mut fixture);
    fixture.ipvsadm("-e -t 192.168.1.100:80 -r 10.0.0.11:80 -m -w 0");
    refuses(&mut fixture);
    carries(&mut fixture);
}

#[test]
fn a_deleted_destinations_connections_go_silent_until_it_comes_back() {
    let mut fixture = Fixture::configured(ONE);
    open(&mut fixture);
    let before = fixture.counted()[&server(1, 80)];
    let deadline = fixture.client_sides().next().unwrap().deadline;
    fixture.ipvsadm("-d -t 192.168.1.100:80 -r 10.0.0.11:80");
    refuses(&mut fixture);
    fixture.wait(5000);
    silent(&mut fixture);
    // Its answers are still translated, but nothing counts them.
    let answer = Frame::tcp(server(1, 80), client(40000), SYN | ACK);
    let out = answer.clone().source(VIP).sent(TO_CLIENT);
    fixture.expect("answer", SERVERS, &answer, Expected::Redirect(out), &[]);
    assert_eq!(fixture.states()[&client(40000)], "SYN_RECV");
    assert!(fixture.client_sides().next().unwrap().deadline >= deadline);
    fixture.ipvsadm("-a -t 192.168.1.100:80 -r 10.0.0.11:80 -m");
    assert_eq!(fixture.counted()[&server(1, 80)], before, "what it had counted is there again");
    carries(&mut fixture);
}

#[test]
fn a_deleted_direct_routing_destinations_answers_are_not_counted() {
    let mut fixture = Fixture::configured(
        "-A -t 192.168.1.100:80 -s rr
         -a -t 192.168.1.100:80 -r 10.0.0.11:80 -g",
    );
    let syn = Frame::tcp(client(40000), VIP, SYN);
    let out = syn.clone().sent(to_server(1));
    fixture.expect("open", CLIENTS, &syn, Expected::Redirect(out), &[(server(1, 80), Counted::opened(&syn))]);
    let before = fixture.counted();
    fixture.ipvsadm("-d -t 192.168.1.100:80 -r 10.0.0.11:80");
    for flags in [SYN | ACK, ACK, ACK] {
        let answer = Frame::tcp(VIP, client(40000), flags);
        fixture.expect("answer", SERVERS, &answer, Expected::Pass(Reason::DirectReply), &[]);
    }
    fixture.ipvsadm("-a -t 192.168.1.100:80 -r 10.0.0.11:80 -g");
    assert_eq!(fixture.counted(), before);
}

#[test]
fn a_silent_connections_time_runs_on() {
    let mut fixture = Fixture::configured(ONE);
    open(&mut fixture);
    fixture.ipvsadm("-d -t 192.168.1.100:80 -r 10.0.0.11:80");
    fixture.wait(59_000);
    silent(&mut fixture);
    fixture.wait(2_000);
    let ack = Frame::tcp(client(40000), VIP, ACK);
    fixture.expect("dead", CLIENTS, &ack, Expected::Pass(Reason::NoConnection), &[]);
    fixture.ipvsadm("-a -t 192.168.1.100:80 -r 10.0.0.11:80 -m");
    let counted = fixture.counted()[&server(1, 80)];
    assert_eq!((counted.active, counted.inactive), (0, 0));
}

#[test]
fn a_deleted_services_connections_go_silent_while_there_are_others() {
    let mut fixture = Fixture::configured(ONE);
    fixture.ipvsadm(OTHER);
    open(&mut fixture);
    fixture.ipvsadm("-D -t 192.168.1.100:80");
    silent(&mut fixture);
    let syn = Frame::tcp(client(40001), VIP, SYN);
    fixture.expect("new", CLIENTS, &syn, Expected::Pass(Reason::NoService), &[]);
    // Made anew it has its old destinations' connections, but none of their counts.
    fixture.ipvsadm(ONE);
    let counted = fixture.counted()[&server(1, 80)];
    assert_eq!(counted, Counted::NOTHING.and_now(1, 0));
    carries(&mut fixture);
}

#[test]
fn without_any_service_everything_passes() {
    let mut fixture = Fixture::configured(ONE);
    open(&mut fixture);
    fixture.ipvsadm("-D -t 192.168.1.100:80");
    for flags in [SYN, ACK] {
        let packet = Frame::tcp(client(40000), VIP, flags);
        fixture.expect("passes", CLIENTS, &packet, Expected::Pass(Reason::NotOurs), &[]);
    }
    let answer = Frame::tcp(server(1, 80), client(40000), ACK);
    fixture.expect("answer", SERVERS, &answer, Expected::Pass(Reason::NotOurs), &[]);
}

#[test]
fn a_connection_keeps_the_method_that_it_was_made_with() {
    let mut fixture = Fixture::configured(ONE);
    open(&mut fixture);
    fixture.ipvsadm("-e -t 192.168.1.100:80 -r 10.0.0.11:80 -g");
    carries(&mut fixture);
    let syn = Frame::tcp(client(40001), VIP, SYN);
    let out = syn.clone().sent(to_server(1));
    fixture.expect("new", CLIENTS, &syn, Expected::Redirect(out), &[(server(1, 80), Counted::opened(&syn))]);
}

#[test]
fn an_upper_threshold_stops_new_connections_only() {
    let mut fixture = Fixture::configured("-A -t 192.168.1.100:80 -s rr");
    fixture.ipvsadm("-a -t 192.168.1.100:80 -r 10.0.0.11:80 -m -x 1");
    open(&mut fixture);
    refuses(&mut fixture);
    carries(&mut fixture);
    fixture.wait(901_000);
    fixture.sweep();
    open(&mut fixture);
}

#[test]
fn zeroing_zeroes_counters_and_not_connections() {
    let mut fixture = Fixture::configured(ONE);
    open(&mut fixture);
    fixture.ipvsadm("-Z");
    assert_eq!(fixture.counted()[&server(1, 80)], Counted::NOTHING.and_now(1, 0));
    carries(&mut fixture);
}
