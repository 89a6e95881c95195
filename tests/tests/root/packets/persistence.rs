//! Persistence: which connections follow which, the templates that a listing shows, and when they end.

use std::net::SocketAddrV4;

use lb_common::reason::Reason;
use xipvs::director::Director;

use super::fixture::{Action, CLIENTS, Fixture, SERVERS, TO_CLIENT, VIP, client, server};
use super::frame::{ACK, FIN, Frame, RST, SYN};

const TWO: &str = "-A -t 192.168.1.100:80 -s rr -p 300
                   -a -t 192.168.1.100:80 -r 10.0.0.11:8080 -m
                   -a -t 192.168.1.100:80 -r 10.0.0.12:8080 -m";

/// Where a frame of a client was sent on to: the number of the server and the port; 0 for nowhere.
fn to(fixture: &Fixture, frame: &Frame) -> (u8, u16) {
    let outcome = fixture.send(CLIENTS, &frame.bytes());
    if outcome.action != Action::Redirect {
        return (0, 0);
    }
    (outcome.bytes[33] - 10, u16::from_be_bytes([outcome.bytes[36], outcome.bytes[37]]))
}

/// The server that a client's SYN goes to.
fn connect(fixture: &Fixture, from: SocketAddrV4) -> u8 {
    to(fixture, &Frame::tcp(from, VIP, SYN)).0
}

/// Client number so and so, each in another network of 24 bits.
fn host(number: u8, port: u16) -> SocketAddrV4 {
    SocketAddrV4::new([203, 0, number, 7].into(), port)
}

/// The templates of a listing: protocol, client, virtual address and port, destination, state, and seconds left.
fn templates(fixture: &mut Fixture) -> Vec<(String, u32)> {
    let mut rows: Vec<_> = fixture
        .director
        .connections()
        .unwrap()
        .into_iter()
        .filter(|row| row.client_port == 0)
        .map(|row| {
            let text = format!(
                "{} {} {}:{} {}:{} {}",
                row.protocol,
                row.client,
                row.virtual_address,
                row.virtual_port,
                row.destination,
                row.destination_port,
                row.state
            );
            (text, row.expires)
        })
        .collect();
    rows.sort();
    rows
}

/// The persistent connections of each destination, over all services, oldest first.
fn persistent(fixture: &mut Fixture) -> Vec<u32> {
    let mut destinations: Vec<_> =
        fixture.director.table().unwrap().entries.into_iter().flat_map(|entry| entry.destinations).collect();
    destinations.sort_by_key(|report| report.destination.key.address);
    destinations.into_iter().map(|report| report.persistent).collect()
}

#[track_caller]
fn lists(fixture: &mut Fixture, wanted: &[(&str, u32)]) {
    let got = templates(fixture);
    assert_eq!(got.len(), wanted.len(), "{got:?}");
    for ((text, expires), (wanted_text, wanted_expires)) in got.iter().zip(wanted) {
        assert_eq!(text, wanted_text);
        // The fixture's clock stands still to a few ticks.
        assert!(expires.abs_diff(*wanted_expires) <= 1, "{text} {expires}, not {wanted_expires}");
    }
}

#[test]
fn a_clients_connections_follow_its_first() {
    let mut fixture = Fixture::configured(TWO);
    // Without persistence they would alternate.
    for port in 40000..40004 {
        assert_eq!(connect(&fixture, host(1, port)), 2);
        assert_eq!(connect(&fixture, host(2, port)), 1);
    }
    assert_eq!(persistent(&mut fixture), [1, 1]);
    lists(
        &mut fixture,
        &[
            ("TCP 203.0.1.7 192.168.1.100:80 10.0.0.12:8080 NONE", 300),
            ("TCP 203.0.2.7 192.168.1.100:80 10.0.0.11:8080 NONE", 300),
        ],
    );
    // Answers are translated as ever.
    let answer = Frame::tcp(server(2, 8080), client(40000), ACK);
    assert_eq!(connect(&fixture, client(40000)), 2);
    let out = answer.clone().source(VIP).sent(TO_CLIENT);
    assert_eq!(fixture.send(SERVERS, &answer.bytes()).bytes, out.bytes());
}

#[test]
fn a_mask_makes_clients_one() {
    let mut fixture = Fixture::configured(TWO);
    fixture.ipvsadm("-E -t 192.168.1.100:80 -s rr -p 300 -M 255.255.0.0");
    for number in 1..5 {
        assert_eq!(connect(&fixture, host(number, 40000)), 2);
    }
    assert_eq!(connect(&fixture, client(40000)), 1);
    lists(
        &mut fixture,
        &[
            ("TCP 192.168.0.0 192.168.1.100:80 10.0.0.11:8080 NONE", 300),
            ("TCP 203.0.0.0 192.168.1.100:80 10.0.0.12:8080 NONE", 300),
        ],
    );
    assert_eq!(persistent(&mut fixture), [1, 1]);
}

#[test]
fn a_templates_time_begins_anew_with_each_new_connection_only() {
    let mut fixture = Fixture::configured(TWO);
    assert_eq!(connect(&fixture, host(1, 40000)), 2);
    assert_eq!(to(&fixture, &Frame::tcp(host(1, 40000), VIP, ACK)), (2, 8080));
    fixture.wait(100_000);
    // Packets of the connection do not count, nor does its end.
    for flags in [ACK, FIN | ACK, RST] {
        assert_eq!(to(&fixture, &Frame::tcp(host(1, 40000), VIP, flags)), (2, 8080));
    }
    let row = "TCP 203.0.1.7 192.168.1.100:80 10.0.0.12:8080";
    lists(&mut fixture, &[(&format!("{row} ASSURED"), 200)]);
    assert_eq!(connect(&fixture, host(1, 40001)), 2);
    lists(&mut fixture, &[(&format!("{row} ASSURED"), 300)]);
    // The service's timeout is for new templates.
    fixture.ipvsadm("-E -t 192.168.1.100:80 -s rr -p 1000");
    assert_eq!(connect(&fixture, host(1, 40002)), 2);
    lists(&mut fixture, &[(&format!("{row} ASSURED"), 300)]);
    // All connections have ended when its time is over.
    fixture.wait(200_000);
    fixture.sweep();
    fixture.wait(101_000);
    lists(&mut fixture, &[]);
    assert_eq!(persistent(&mut fixture), [0, 0]);
    assert_eq!(connect(&fixture, host(1, 40003)), 1, "chosen anew");
    lists(&mut fixture, &[("TCP 203.0.1.7 192.168.1.100:80 10.0.0.11:8080 NONE", 1000)]);
}

#[test]
fn a_connection_that_begins_in_its_middle_confirms_its_template() {
    let mut fixture = Fixture::configured(TWO);
    fixture.director.set_sysctl("sloppy_tcp", 1).unwrap();
    assert_eq!(to(&fixture, &Frame::tcp(host(1, 40000), VIP, ACK)), (2, 8080));
    lists(&mut fixture, &[("TCP 203.0.1.7 192.168.1.100:80 10.0.0.12:8080 ASSURED", 300)]);
}

#[test]
fn a_template_lives_on_by_the_minute_while_it_controls_connections() {
    for swept in [true, false] {
        let mut fixture = Fixture::configured(TWO);
        assert_eq!(connect(&fixture, host(1, 40000)), 2);
        assert_eq!(to(&fixture, &Frame::tcp(host(1, 40000), VIP, ACK)), (2, 8080));
        fixture.wait(301_000);
        let row = "TCP 203.0.1.7 192.168.1.100:80 10.0.0.12:8080 ASSURED";
        if swept {
            lists(&mut fixture, &[(row, 60)]);
        }
        // From then on it is sixty seconds with each new connection.
        fixture.wait(10_000);
        assert_eq!(connect(&fixture, host(1, 40001)), 2);
        lists(&mut fixture, &[(row, 60)]);
        // The connections end (the last 60 seconds after its SYN), and then the template.
        assert_eq!(to(&fixture, &Frame::tcp(host(1, 40000), VIP, RST)), (2, 8080));
        fixture.wait(59_000);
        lists(&mut fixture, &[(row, 1)]);
        fixture.wait(62_000);
        fixture.sweep();
        fixture.wait(61_000);
        lists(&mut fixture, &[]);
        assert_eq!(persistent(&mut fixture), [0, 0]);
        assert!(fixture.director.maps().entries().unwrap().is_empty());
    }
}

#[test]
fn a_template_goes_with_connections_that_died_before_it() {
    let mut fixture = Fixture::configured(TWO);
    for number in 0..100 {
        assert_ne!(connect(&fixture, host(number, 40000)), 0);
    }
    // Nobody has looked for that long; one look tells.
    fixture.wait(301_000);
    lists(&mut fixture, &[]);
    assert_eq!(persistent(&mut fixture), [0, 0]);
}

#[test]
fn templates_serve_at_weight_zero_and_when_overloaded() {
    let mut fixture = Fixture::configured(TWO);
    assert_eq!(connect(&fixture, host(1, 40000)), 2);
    fixture.ipvsadm("-e -t 192.168.1.100:80 -r 10.0.0.12:8080 -m -w 0");
    assert_eq!(connect(&fixture, host(1, 40001)), 2);
    assert_eq!(connect(&fixture, host(2, 40000)), 1);
    fixture.ipvsadm("-e -t 192.168.1.100:80 -r 10.0.0.12:8080 -m -w 1 -x 2");
    assert_eq!(connect(&fixture, host(1, 40002)), 2);
    assert_eq!(connect(&fixture, host(3, 40000)), 1);
    // Unless a sysctl says that a template of weight 0 serves no more.
    fixture.ipvsadm("-e -t 192.168.1.100:80 -r 10.0.0.12:8080 -m -w 0");
    fixture.director.set_sysctl("expire_quiescent_template", 1).unwrap();
    assert_eq!(connect(&fixture, host(1, 40003)), 1);
    lists(
        &mut fixture,
        &[
            ("TCP 203.0.1.7 192.168.1.100:65535 10.0.0.12:65535 NONE", 300),
            ("TCP 203.0.1.7 192.168.1.100:80 10.0.0.11:8080 NONE", 300),
            ("TCP 203.0.2.7 192.168.1.100:80 10.0.0.11:8080 NONE", 300),
            ("TCP 203.0.3.7 192.168.1.100:80 10.0.0.11:8080 NONE", 300),
        ],
    );
    assert_eq!(persistent(&mut fixture), [3, 1]);
    fixture.wait(361_000);
    fixture.sweep();
    fixture.wait(61_000);
    lists(&mut fixture, &[]);
    assert_eq!(persistent(&mut fixture), [0, 0]);
}

#[test]
fn a_deleted_destinations_template_makes_way() {
    let mut fixture = Fixture::configured(TWO);
    assert_eq!(connect(&fixture, host(1, 40000)), 2);
    fixture.ipvsadm("-d -t 192.168.1.100:80 -r 10.0.0.12:8080");
    assert_eq!(connect(&fixture, host(1, 40001)), 1);
    // Its old connection stays with the deleted one, silent.
    assert_eq!(
        fixture.send(CLIENTS, &Frame::tcp(host(1, 40000), VIP, ACK).bytes()).reason,
        Some(Reason::DestinationDeleted)
    );
    // Back again, it does not get the client back.
    fixture.ipvsadm("-a -t 192.168.1.100:80 -r 10.0.0.12:8080 -m");
    assert_eq!(connect(&fixture, host(1, 40002)), 1);
    lists(
        &mut fixture,
        &[
            ("TCP 203.0.1.7 192.168.1.100:65535 10.0.0.12:65535 NONE", 300),
            ("TCP 203.0.1.7 192.168.1.100:80 10.0.0.11:8080 NONE", 300),
        ],
    );
    assert_eq!(persistent(&mut fixture), [1, 1]);
}

#[test]
fn without_a_destination_there_is_no_template() {
    let mut fixture = Fixture::configured("-A -t 192.168.1.100:80 -s rr -p 300");
    let outcome = fixture.send(CLIENTS, &Frame::tcp(client(40000), VIP, SYN).bytes());
    assert_eq!(outcome.reason, Some(Reason::NoDestination));
    lists(&mut fixture, &[]);
}

#[test]
fn a_service_of_all_ports_has_one_template_for_them_and_keeps_the_port() {
    let mut fixture = Fixture::configured(
        "-A -t 192.168.1.100:0 -s rr -p 300
         -a -t 192.168.1.100:0 -r 10.0.0.11:0 -m
         -a -t 192.168.1.100:0 -r 10.0.0.12:0 -m
         -A -t 192.168.1.100:81 -s rr
         -a -t 192.168.1.100:81 -r 10.0.0.13:8081 -m",
    );
    let at = |port| SocketAddrV4::new(*VIP.ip(), port);
    for port in [80, 443, 21, 65535] {
        assert_eq!(to(&fixture, &Frame::tcp(host(1, 40000), at(port), SYN)), (2, port));
    }
    assert_eq!(to(&fixture, &Frame::tcp(host(2, 40000), at(80), SYN)), (1, 80));
    // The service of a port comes before that of all.
    assert_eq!(to(&fixture, &Frame::tcp(host(1, 40000), at(81), SYN)), (3, 8081));
    // Other protocols are none of it.
    let outcome = fixture.send(CLIENTS, &Frame::udp(host(1, 40000), at(80)).bytes());
    assert_eq!(outcome.reason, Some(Reason::NoService));
    lists(
        &mut fixture,
        &[
            ("TCP 203.0.1.7 192.168.1.100:0 10.0.0.12:0 NONE", 300),
            ("TCP 203.0.2.7 192.168.1.100:0 10.0.0.11:0 NONE", 300),
        ],
    );
    fixture.ipvsadm("-D -t 192.168.1.100:0");
    let outcome = fixture.send(CLIENTS, &Frame::tcp(host(3, 40000), at(80), SYN).bytes());
    assert_eq!(outcome.reason, Some(Reason::NoService));
}

#[test]
fn ftps_data_connections_follow_the_control_connection() {
    let mut fixture = Fixture::configured(
        "-A -t 192.168.1.100:21 -s rr -p 300
         -a -t 192.168.1.100:21 -r 10.0.0.11:2121 -m
         -a -t 192.168.1.100:21 -r 10.0.0.12:2121 -m",
    );
    let at = |port| SocketAddrV4::new(*VIP.ip(), port);
    assert_eq!(to(&fixture, &Frame::tcp(host(1, 40000), at(21), SYN)), (2, 2121));
    assert_eq!(to(&fixture, &Frame::tcp(host(2, 40000), at(21), SYN)), (1, 2121));
    for port in [20, 1024, 50_000] {
        assert_eq!(to(&fixture, &Frame::tcp(host(1, 40001), at(port), SYN)), (2, port));
    }
    // Ports that FTP never uses are not its service's, nor is UDP.
    let outcome = fixture.send(CLIENTS, &Frame::tcp(host(1, 40002), at(1023), SYN).bytes());
    assert_eq!(outcome.reason, Some(Reason::NoService));
    let outcome = fixture.send(CLIENTS, &Frame::udp(host(1, 40002), at(50_000)).bytes());
    assert_eq!(outcome.reason, Some(Reason::NoService));
    // Without persistence a high port is passed on to the stack: who knows whose it is.
    fixture.ipvsadm("-E -t 192.168.1.100:21 -s rr");
    let outcome = fixture.send(CLIENTS, &Frame::tcp(host(3, 40000), at(50_000), SYN).bytes());
    assert_eq!(outcome.reason, Some(Reason::NoService));
}

#[test]
fn a_closed_connection_of_a_template_does_not_give_way() {
    let fixture = Fixture::configured(TWO);
    let from = host(1, 40000);
    for flags in [SYN, ACK, RST] {
        assert_eq!(to(&fixture, &Frame::tcp(from, VIP, flags)), (2, 8080));
    }
    assert_eq!(connect(&fixture, from), 2);
    // One connection was counted, not two.
    let mut fixture = fixture;
    assert_eq!(fixture.counted()[&server(2, 8080)].connections, 1);
}

#[test]
fn a_packet_of_port_0_is_not_taken_for_a_template() {
    let mut fixture = Fixture::configured(TWO);
    assert_eq!(connect(&fixture, host(1, 40000)), 2);
    assert_eq!(connect(&fixture, host(1, 0)), 2);
    assert_eq!(fixture.counted()[&server(2, 8080)].connections, 2);
    let stray = fixture.send(CLIENTS, &Frame::tcp(host(2, 0), VIP, ACK).bytes());
    assert_eq!(stray.reason, Some(Reason::NoConnection));
}

#[test]
fn udp_is_assured_by_an_answer() {
    let mut fixture = Fixture::configured(
        "-A -u 192.168.1.100:53 -s rr -p 300
         -a -u 192.168.1.100:53 -r 10.0.0.11:53 -m",
    );
    let at = SocketAddrV4::new(*VIP.ip(), 53);
    assert_eq!(to(&fixture, &Frame::udp(client(40000), at)), (1, 53));
    lists(&mut fixture, &[("UDP 192.168.1.10 192.168.1.100:53 10.0.0.11:53 NONE", 300)]);
    // By its first answer, not by the client's next datagram.
    fixture.wait(5_000);
    assert_eq!(to(&fixture, &Frame::udp(client(40000), at)), (1, 53));
    lists(&mut fixture, &[("UDP 192.168.1.10 192.168.1.100:53 10.0.0.11:53 NONE", 295)]);
    fixture.send(SERVERS, &Frame::udp(server(1, 53), client(40000)).bytes());
    lists(&mut fixture, &[("UDP 192.168.1.10 192.168.1.100:53 10.0.0.11:53 ASSURED", 295)]);
}

#[test]
fn templates_find_no_room_in_a_full_table() {
    let mut fixture = Fixture::with_sets(16);
    fixture.ipvsadm("-A -t 192.168.1.100:80 -s rr -p 300");
    fixture.ipvsadm("-a -t 192.168.1.100:80 -r 10.0.0.11:80 -g");
    let reasons: Vec<_> = (0..200)
        .map(|number| {
            let send =
                |flags| fixture.send(CLIENTS, &Frame::tcp(host(number, 40000), VIP, flags).bytes()).reason;
            // Established, so that nothing of it gives way.
            send(SYN).or_else(|| send(ACK))
        })
        .collect();
    let opened = reasons.iter().filter(|reason| reason.is_none()).count();
    assert!(reasons.iter().all(|reason| matches!(reason, None | Some(Reason::TableFull))));
    assert!(opened > 40, "{opened}");
    let templates = templates(&mut fixture).len();
    let entries = fixture.director.maps().entries().unwrap().len();
    assert_eq!((entries, persistent(&mut fixture)), (opened + templates, vec![templates as u32]));
    // All of it goes, those that control nothing first.
    fixture.wait(901_000);
    fixture.sweep();
    fixture.wait(61_000);
    fixture.sweep();
    assert!(fixture.director.maps().entries().unwrap().is_empty());
    assert_eq!((fixture.displaced(), persistent(&mut fixture)), (0, vec![0]));
}
