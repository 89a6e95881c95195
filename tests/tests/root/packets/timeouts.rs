//! Timeouts of a service's own, beside those of all services.

use lb_common::reason::Reason;
use xipvs::director::Director;

use super::fixture::{CLIENTS, Fixture, SERVERS, VIP, client, server};
use super::frame::{ACK, FIN, Frame, SYN};

/// Two TCP services and one of UDP; those of port 80 have timeouts of their own.
const OWN: &str = "-A -t 192.168.1.100:80 -s rr --tcp-timeout 30 --tcp-fin-timeout 5
                   -a -t 192.168.1.100:80 -r 10.0.0.11:80 -m
                   -A -t 192.168.1.100:81 -s rr
                   -a -t 192.168.1.100:81 -r 10.0.0.12:80 -m
                   -A -u 192.168.1.100:80 -s rr --udp-timeout 4
                   -a -u 192.168.1.100:80 -r 10.0.0.13:80 -g";

fn configured() -> Fixture {
    let mut fixture = Fixture::new();
    fixture.xipvs(OWN);
    fixture
}

fn send(fixture: &Fixture, port: u16, to: u16, flags: u8) -> Option<Reason> {
    let service = std::net::SocketAddrV4::new(*VIP.ip(), to);
    fixture.send(CLIENTS, &Frame::tcp(client(port), service, flags).bytes()).reason
}

fn datagram(fixture: &Fixture) -> Option<Reason> {
    fixture.send(CLIENTS, &Frame::udp(client(40000), VIP).bytes()).reason
}

/// Seconds that each entry of the connections with this service's port has to live, rounded.
fn left(fixture: &Fixture, to: u16) -> Vec<u32> {
    fixture.sweep();
    let settings = fixture.settings();
    let mine = fixture.client_sides().filter(|found| found.entry.tuple().destination_port() == to);
    let twins: Vec<_> = mine.map(|found| (found.entry.tuple(), found.entry.twin())).collect();
    let entries = fixture.director.maps().entries().unwrap().into_iter();
    let of = |found: &xipvs::director::xdp::maps::TableEntry| {
        twins.iter().any(|(one, other)| [*one, *other].contains(&found.entry.tuple()))
    };
    let left = |deadline: u32| deadline.wrapping_sub(settings.swept_at);
    let ticks = settings.ticks_per_second;
    entries.filter(of).map(|found| (left(found.deadline) + ticks / 2) / ticks).collect()
}

#[test]
fn each_state_lasts_as_long_as_its_service_says() {
    let fixture = configured();
    for to in [80, 81] {
        assert_eq!(send(&fixture, 40000, to, SYN), None);
    }
    // Half-open connections have no timeout of their own.
    assert_eq!((left(&fixture, 80), left(&fixture, 81)), (vec![60; 2], vec![60; 2]));
    for to in [80, 81] {
        assert_eq!(send(&fixture, 40000, to, ACK), None);
    }
    assert_eq!((left(&fixture, 80), left(&fixture, 81)), (vec![30; 2], vec![900; 2]));
    // Packets of the known flow move the deadline, those of either side.
    fixture.wait(29_000);
    assert_eq!(send(&fixture, 40000, 80, ACK), None);
    assert_eq!(left(&fixture, 80), [30; 2]);
    fixture.wait(29_000);
    let answer = Frame::tcp(server(1, 80), client(40000), ACK);
    assert_eq!(fixture.send(SERVERS, &answer.bytes()).reason, None);
    assert_eq!(left(&fixture, 80), [30; 2]);
    let fin = Frame::tcp(server(1, 80), client(40000), FIN | ACK);
    assert_eq!(fixture.send(SERVERS, &fin.bytes()).reason, None);
    assert_eq!((left(&fixture, 80), left(&fixture, 81)), (vec![5; 2], vec![842; 2]));
    fixture.wait(6_000);
    assert_eq!(send(&fixture, 40000, 80, ACK), Some(Reason::NoConnection));
    assert_eq!(send(&fixture, 40000, 81, ACK), None);
}

#[test]
fn datagrams_begin_with_the_services_own_timeout() {
    let fixture = configured();
    assert_eq!(datagram(&fixture), None);
    assert_eq!(left(&fixture, 80), [4]);
    fixture.wait(3_000);
    assert_eq!(datagram(&fixture), None);
    fixture.wait(3_000);
    assert_eq!(left(&fixture, 80), [1]);
    fixture.wait(2_000);
    fixture.sweep();
    assert!(fixture.states().is_empty());
}

#[test]
fn a_timeout_that_is_edited_counts_from_the_next_packet_on() {
    let mut fixture = configured();
    for flags in [SYN, ACK] {
        assert_eq!(send(&fixture, 40000, 80, flags), None);
    }
    let next = |fixture: &Fixture| {
        fixture.wait(1_100);
        assert_eq!(send(fixture, 40000, 80, ACK), None);
        left(fixture, 80)
    };
    // Whoever does not know of them leaves them alone.
    fixture.ipvsadm("-E -t 192.168.1.100:80 -s wlc");
    assert_eq!(next(&fixture), [30; 2]);
    fixture.xipvs("-E -t 192.168.1.100:80 -s wlc --tcp-timeout 50");
    assert_eq!(next(&fixture), [50; 2]);
    fixture.xipvs("-E -t 192.168.1.100:80 -s wlc --tcp-timeout 0");
    assert_eq!(next(&fixture), [900; 2]);
    assert_eq!(fixture.settings().own_timeouts, 1);
    fixture.ipvsadm("-D -u 192.168.1.100:80");
    assert_eq!(fixture.settings().own_timeouts, 0);
    // A service that comes to the place of another has none of the other's.
    fixture.ipvsadm("-A -u 192.168.1.100:80 -s rr");
    let own = fixture.director.services().unwrap().into_iter().map(|report| report.service.own_timeouts);
    assert!(own.flatten().all(|own| own == xipvs::table::Timeouts::NONE));
}
