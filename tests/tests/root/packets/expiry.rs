//! Timeouts: when a connection dies, who notices, and what is given back.

use std::time::{Duration, Instant};

use lb_common::reason::Reason;

use super::fixture::{
    CLIENTS, Counted, Expected, Fixture, SERVERS, TO_CLIENT, VIP, client, server, to_server,
};
use super::frame::{ACK, FIN, Frame, RST, SYN};

const WEB: &str = "-A -t 192.168.1.100:80 -s rr
                   -a -t 192.168.1.100:80 -r 10.0.0.11:80 -m
                   -A -u 192.168.1.100:80 -s rr
                   -a -u 192.168.1.100:80 -r 10.0.0.12:80 -g";

/// Opens a connection of the client with this port to server 1, and establishes it.
fn establish(fixture: &Fixture, port: u16) {
    for flags in [SYN, ACK] {
        assert_eq!(fixture.send(CLIENTS, &Frame::tcp(client(port), VIP, flags).bytes()).reason, None);
    }
}

/// Whether a packet of the client finds its connection.
fn lives(fixture: &Fixture, port: u16) -> bool {
    match fixture.send(CLIENTS, &Frame::tcp(client(port), VIP, ACK).bytes()).reason {
        None => true,
        Some(Reason::NoConnection) => false,
        Some(other) => panic!("{other:?}"),
    }
}

fn load(fixture: &mut Fixture, number: u8) -> (i64, i64) {
    let counted = fixture.counted()[&server(number, 80)];
    (counted.active, counted.inactive)
}

/// The deadline of the only connection.
fn deadline(fixture: &Fixture) -> u32 {
    let mut all = fixture.client_sides();
    let deadline = all.next().unwrap().deadline;
    assert!(all.next().is_none());
    deadline
}

#[test]
fn a_connection_past_its_time_is_dead_before_any_sweep() {
    let mut fixture = Fixture::configured(WEB);
    establish(&fixture, 40000);
    fixture.wait(899_000);
    assert!(lives(&fixture, 40000));
    fixture.wait(901_000);
    // Listed until somebody comes by, but dead.
    assert_eq!(load(&mut fixture, 1), (1, 0));
    assert!(!lives(&fixture, 40000));
    assert_eq!(load(&mut fixture, 1), (0, 0));
    assert_eq!(fixture.director.maps().entries().unwrap(), []);
}

#[test]
fn an_answer_finds_a_dead_connection_dead() {
    let mut fixture = Fixture::configured(WEB);
    establish(&fixture, 40000);
    fixture.wait(901_000);
    let answer = Frame::tcp(server(1, 80), client(40000), ACK);
    let counted = [(server(1, 80), Counted::NOTHING.and_now(-1, 0))];
    fixture.expect("answer", SERVERS, &answer, Expected::Pass(Reason::NoReplyConnection), &counted);
    assert_eq!(fixture.director.maps().entries().unwrap(), []);
}

#[test]
fn a_syn_on_a_dead_connection_makes_a_new_one() {
    let mut fixture = Fixture::configured(WEB);
    establish(&fixture, 40000);
    fixture.wait(901_000);
    let syn = Frame::tcp(client(40000), VIP, SYN);
    let out = syn.clone().destination(server(1, 80)).sent(to_server(1));
    let counted = [(server(1, 80), Counted::opened(&syn).and_now(-1, 0))];
    fixture.expect("syn", CLIENTS, &syn, Expected::Redirect(out), &counted);
    assert_eq!(fixture.states()[&client(40000)], "SYN_RECV");
}

#[test]
fn answers_keep_a_connection_alive() {
    let mut fixture = Fixture::configured(WEB);
    establish(&fixture, 40000);
    for _ in 0..3 {
        fixture.wait(800_000);
        let answer = Frame::tcp(server(1, 80), client(40000), ACK);
        let out = answer.clone().source(VIP).sent(TO_CLIENT);
        let counted = [(server(1, 80), Counted::packet_out(&answer))];
        fixture.expect("answer", SERVERS, &answer, Expected::Redirect(out), &counted);
    }
    fixture.wait(800_000);
    assert!(lives(&fixture, 40000));
}

#[test]
fn requests_keep_the_way_back_alive() {
    let mut fixture = Fixture::configured(WEB);
    establish(&fixture, 40000);
    for _ in 0..3 {
        fixture.wait(800_000);
        assert!(lives(&fixture, 40000));
        fixture.sweep();
    }
    let answer = Frame::tcp(server(1, 80), client(40000), ACK);
    let out = answer.clone().source(VIP).sent(TO_CLIENT);
    let counted = [(server(1, 80), Counted::packet_out(&answer))];
    fixture.expect("answer", SERVERS, &answer, Expected::Redirect(out), &counted);
}

#[test]
fn the_sweep_takes_what_is_dead_and_only_that() {
    let mut fixture = Fixture::configured(WEB);
    // By timeout: 10 s, 60 s, 120 s, 300 s, 900 s.
    fixture.send(CLIENTS, &Frame::tcp(client(40000), VIP, SYN).bytes());
    fixture.send(SERVERS, &Frame::tcp(server(1, 80), client(40000), RST).bytes());
    fixture.send(CLIENTS, &Frame::tcp(client(40001), VIP, SYN).bytes());
    establish(&fixture, 40002);
    fixture.send(SERVERS, &Frame::tcp(server(1, 80), client(40002), FIN | ACK).bytes());
    fixture.send(CLIENTS, &Frame::udp(client(40003), VIP).bytes());
    establish(&fixture, 40004);
    // Seconds of waiting, then what is left: connections, entries, server 1's and server 2's counts.
    let rows = [
        (0, 5, 9, (2, 2), (0, 1)),
        (9, 5, 9, (2, 2), (0, 1)),
        (2, 4, 7, (2, 1), (0, 1)),
        (48, 4, 7, (2, 1), (0, 1)),
        (2, 3, 5, (1, 1), (0, 1)),
        (58, 3, 5, (1, 1), (0, 1)),
        (2, 2, 3, (1, 0), (0, 1)),
        (178, 2, 3, (1, 0), (0, 1)),
        (2, 1, 2, (1, 0), (0, 0)),
        (597, 1, 2, (1, 0), (0, 0)),
        (3, 0, 0, (0, 0), (0, 0)),
    ];
    for (seconds, connections, entries, tcp, udp) in rows {
        fixture.wait(seconds * 1000);
        fixture.sweep();
        let seen = (fixture.states().len(), fixture.director.maps().entries().unwrap().len());
        assert_eq!(seen, (connections, entries), "after {seconds} more");
        assert_eq!((load(&mut fixture, 1), load(&mut fixture, 2)), (tcp, udp), "after {seconds} more");
    }
}

#[test]
fn the_kernels_timer_sweeps_with_no_process_doing_anything() {
    let mut fixture = Fixture::configured(WEB);
    for port in 0..100 {
        establish(&fixture, 40000 + port);
    }
    fixture.wait(901_000);
    // What a director of this size has: the whole table in a second.
    fixture.sweep_by_timer(8);
    let begun = Instant::now();
    while load(&mut fixture, 1) != (0, 0) {
        assert!(begun.elapsed() < Duration::from_secs(10), "nothing sweeps");
        std::thread::sleep(Duration::from_millis(50));
    }
    assert_eq!(fixture.director.maps().entries().unwrap(), []);
}

#[test]
fn a_deadline_is_moved_when_that_makes_more_than_a_second() {
    let mut fixture = Fixture::configured(WEB);
    establish(&fixture, 40000);
    let settings = fixture.settings();
    let first = deadline(&fixture);
    fixture.wait(500);
    assert!(lives(&fixture, 40000));
    assert_eq!(deadline(&fixture), first);
    fixture.wait(1000);
    assert!(lives(&fixture, 40000));
    let moved = deadline(&fixture).wrapping_sub(first);
    // The clock stands still to a few ticks.
    let second = settings.ticks_per_second;
    assert!((second * 3 / 2 - 3..second * 2).contains(&moved), "{moved} ticks");
    let _ = load(&mut fixture, 1);
}

#[test]
fn a_timeout_that_is_set_counts_from_the_next_packet_on() {
    let mut fixture = Fixture::configured(WEB);
    establish(&fixture, 40000);
    fixture.ipvsadm("--set 10 0 0");
    fixture.wait(20_000);
    fixture.sweep();
    assert!(lives(&fixture, 40000));
    fixture.wait(9_000);
    assert!(lives(&fixture, 40000));
    fixture.wait(11_000);
    assert!(!lives(&fixture, 40000));
    // The others are what they were.
    let rows: [(&[u8], u64); 2] = [(&[SYN, ACK, FIN], 120), (&[SYN], 60)];
    for (number, (segments, seconds)) in rows.into_iter().enumerate() {
        let port = 41000 + number as u16;
        for (sent, flags) in segments.iter().enumerate() {
            let of_client = sent < 2;
            let frame = match of_client {
                true => Frame::tcp(client(port), VIP, *flags),
                false => Frame::tcp(server(1, 80), client(port), *flags),
            };
            fixture.send(if of_client { CLIENTS } else { SERVERS }, &frame.bytes());
        }
        fixture.wait(seconds * 1000 - 1000);
        fixture.sweep();
        assert!(fixture.states().contains_key(&client(port)), "{seconds}");
        fixture.wait(2000);
        fixture.sweep();
        assert!(!fixture.states().contains_key(&client(port)), "{seconds}");
    }
    fixture.ipvsadm("--set 0 5 7");
    fixture.send(CLIENTS, &Frame::udp(client(42000), VIP).bytes());
    fixture.wait(6_000);
    fixture.sweep();
    assert_eq!(fixture.states().len(), 1);
    fixture.wait(2_000);
    fixture.sweep();
    assert_eq!(fixture.states().len(), 0);
}

#[test]
fn the_clock_may_wrap() {
    let mut fixture = Fixture::configured(WEB);
    fixture.sweep();
    let settings = fixture.settings();
    // Ten seconds before the wrap.
    fixture.set_clock_offset(0u32.wrapping_sub(settings.swept_at + 10 * settings.ticks_per_second));
    establish(&fixture, 40000);
    for _ in 0..3 {
        fixture.wait(9_000);
        fixture.sweep();
        assert!(lives(&fixture, 40000));
    }
    fixture.wait(901_000);
    fixture.sweep();
    assert_eq!((fixture.states().len(), load(&mut fixture, 1)), (0, (0, 0)));
}
