//! Draining with a deadline: weight 0 at once, and at the deadline the end of what is left.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use lb_common::protocol::Protocol;
use lb_common::reason::Reason;
use xipvs::director::Director;
use xipvs::table::{DestinationKey, ServiceKey};

use super::fixture::{Action, CLIENTS, Fixture, SERVERS, VIP, client, server};
use super::frame::{ACK, Frame, SYN};

fn configured(words: &str) -> Fixture {
    Fixture::configured(&format!(
        "-A -t 192.168.1.100:80 -s rr {words}
         -a -t 192.168.1.100:80 -r 10.0.0.11:80 -m
         -a -t 192.168.1.100:80 -r 10.0.0.12:80 -m"
    ))
}

/// Server 2 of the only service.
fn two() -> (ServiceKey, DestinationKey) {
    let service =
        ServiceKey::Address { protocol: Protocol::Tcp, address: IpAddr::from(VIP.ip().octets()), port: 80 };
    (service, DestinationKey { address: [10, 0, 0, 12].into(), port: 80 })
}

fn drain(fixture: &mut Fixture, seconds: u32) {
    let (service, destination) = two();
    fixture.sweep();
    fixture.director.drain(&service, &destination, seconds).unwrap();
}

/// Weight of server 2, seconds that its drain has left, and its templates.
fn report(fixture: &mut Fixture) -> (u32, Option<u32>, u32) {
    fixture.sweep();
    let (service, destination) = two();
    let reports = fixture.director.destinations(&service).unwrap();
    let report = reports.into_iter().find(|report| report.destination.key == destination).unwrap();
    (report.destination.weight, report.drains_in, report.persistent)
}

/// The server that a client's segment goes to, 0 for none.
fn to(fixture: &Fixture, port: u16, flags: u8) -> u8 {
    let outcome = fixture.send(CLIENTS, &Frame::tcp(client(port), VIP, flags).bytes());
    if outcome.action == Action::Redirect { outcome.bytes[33] - 10 } else { 0 }
}

/// Four connections, of which the first and the third go to server 2.
fn open(fixture: &Fixture) {
    for (port, wanted) in [(40000, 2), (40001, 1), (40002, 2), (40003, 1)] {
        assert_eq!([SYN, ACK].map(|flags| to(fixture, port, flags)), [wanted; 2]);
    }
}

#[test]
fn connections_go_on_until_the_deadline_and_no_longer() {
    let mut fixture = configured("");
    open(&fixture);
    drain(&mut fixture, 30);
    assert_eq!(report(&mut fixture), (0, Some(30), 0));
    assert_eq!((to(&fixture, 40000, ACK), to(&fixture, 41000, SYN), to(&fixture, 41001, SYN)), (2, 1, 1));
    fixture.wait(29_000);
    assert_eq!(report(&mut fixture), (0, Some(1), 0));
    assert_eq!(to(&fixture, 40000, ACK), 2);
    let answer = Frame::tcp(server(2, 80), client(40002), ACK);
    assert_eq!(fixture.send(SERVERS, &answer.bytes()).reason, None);
    fixture.wait(2_000);
    assert_eq!(report(&mut fixture), (0, Some(0), 0));
    // The stack gets what finds no connection, and resets it.
    let segment = Frame::tcp(client(40000), VIP, ACK).bytes();
    assert_eq!(fixture.send(CLIENTS, &segment).reason, Some(Reason::NoConnection));
    assert_eq!(fixture.send(SERVERS, &answer.bytes()).reason, Some(Reason::NoReplyConnection));
    assert_eq!(to(&fixture, 40001, ACK), 1);
    assert_eq!(to(&fixture, 40000, SYN), 1);
    let counted = fixture.counted();
    assert_eq!((counted[&server(2, 80)].active, counted[&server(2, 80)].inactive), (0, 0));
    assert_eq!(counted[&server(1, 80)].active + counted[&server(1, 80)].inactive, 5);
}

#[test]
fn setting_the_weight_again_takes_it_back() {
    let mut fixture = configured("");
    open(&fixture);
    drain(&mut fixture, 30);
    fixture.ipvsadm("-e -t 192.168.1.100:80 -r 10.0.0.12:80 -m -w 1");
    assert_eq!(report(&mut fixture), (1, None, 0));
    assert_eq!(fixture.settings().draining, 0);
    fixture.wait(31_000);
    fixture.sweep();
    assert_eq!((to(&fixture, 40000, ACK), to(&fixture, 40002, ACK)), (2, 2));
    // Deleted and added again it does not drain either.
    drain(&mut fixture, 30);
    fixture.ipvsadm(
        "-d -t 192.168.1.100:80 -r 10.0.0.12:80
         -a -t 192.168.1.100:80 -r 10.0.0.12:80 -m",
    );
    assert_eq!((report(&mut fixture), fixture.settings().draining), ((1, None, 0), 0));
    fixture.wait(31_000);
    fixture.sweep();
    assert_eq!(to(&fixture, 40000, ACK), 2);
}

#[test]
fn templates_lead_there_until_the_deadline_and_end_with_it() {
    let mut fixture = configured("-p 600");
    assert_eq!([SYN, ACK].map(|flags| to(&fixture, 40000, flags)), [2; 2]);
    drain(&mut fixture, 30);
    // As ever with weight 0.
    assert_eq!((to(&fixture, 40001, SYN), report(&mut fixture)), (2, (0, Some(30), 1)));
    fixture.wait(31_000);
    // Before any sweep the template serves no more.
    assert_eq!(to(&fixture, 40002, SYN), 1);
    assert_eq!(report(&mut fixture), (0, Some(0), 0));
    assert_eq!(to(&fixture, 40000, ACK), 0);
    let entries = fixture.director.maps().entries().unwrap();
    assert!(entries.iter().all(|found| {
        fixture.director.maps().destinations.read(found.entry.destination).unwrap().address[3] == 11
    }));
}

#[test]
fn the_timer_ends_them_with_no_process_doing_anything() {
    let mut fixture = configured("");
    open(&fixture);
    drain(&mut fixture, 1);
    fixture.sweep_by_timer(64);
    let begin = Instant::now();
    while fixture.states().len() != 2 {
        assert!(begin.elapsed().as_secs() < 60);
        std::thread::sleep(Duration::from_millis(10));
    }
    fixture.sweep_by_timer(0);
    assert!(fixture.states().keys().all(|client| client.port() % 2 == 1));
}

#[test]
fn what_is_not_there_cannot_drain() {
    let mut fixture = configured("");
    let (service, mut destination) = two();
    destination.port = 81;
    let refused = fixture.director.drain(&service, &destination, 5).unwrap_err();
    assert_eq!(refused.to_string(), "No such destination");
}
