//! Services by firewall mark: which packets the rules give a mark, and what a service by mark does with them.

use std::net::{IpAddr, SocketAddrV4};

use lb_common::reason::Reason;
use xipvs::director::Director;
use xipvs::table::ConnectionReport;

use super::fixture::{Action, CLIENTS, Fixture, SERVERS, VIP, client, server};
use super::frame::{ACK, Frame, SYN};

/// Has these rules, each as the words of `xipvs mark add`.
pub fn marked(fixture: &mut Fixture, lines: &[&str]) {
    let rule = |line: &&str| xipvs::mark::rule(&line.split(' ').collect::<Vec<_>>()).unwrap();
    let rules: Vec<_> = lines.iter().map(rule).collect();
    fixture
        .director
        .change_mark_rules(&mut |there| {
            there.clone_from(&rules);
            Ok(())
        })
        .unwrap();
}

/// Where a frame was sent on to: the number of the server and the port; 0 for nowhere.
fn to(fixture: &Fixture, frame: &Frame) -> (u8, u16) {
    let outcome = fixture.send(CLIENTS, &frame.bytes());
    if outcome.action != Action::Redirect {
        return (0, 0);
    }
    (outcome.bytes[33] - 10, u16::from_be_bytes([outcome.bytes[36], outcome.bytes[37]]))
}

fn at(address: [u8; 4], port: u16) -> SocketAddrV4 {
    SocketAddrV4::new(address.into(), port)
}

#[test]
fn a_mark_joins_ports_addresses_and_protocols() {
    let mut fixture = Fixture::configured(
        "-A -f 7 -s rr
         -a -f 7 -r 10.0.0.11:0 -m
         -a -f 7 -r 10.0.0.12:8080 -m
         -A -t 192.168.1.100:80 -s rr
         -a -t 192.168.1.100:80 -r 10.0.0.13:80 -m",
    );
    // Without a rule a mark is nobody's.
    assert_eq!(to(&fixture, &Frame::tcp(client(40000), VIP, SYN)), (3, 80));
    marked(
        &mut fixture,
        &["7 --destination 192.168.1.100 --protocol tcp", "7 --destination 198.51.100.0/24"],
    );
    // By mark before by address; a destination with a port has it, the other keeps the packet's.
    assert_eq!(to(&fixture, &Frame::tcp(client(40001), VIP, SYN)), (2, 8080));
    assert_eq!(to(&fixture, &Frame::tcp(client(40001), at([198, 51, 100, 9], 443), SYN)), (1, 443));
    assert_eq!(to(&fixture, &Frame::udp(client(40001), at([198, 51, 100, 255], 53))), (2, 8080));
    assert_eq!(to(&fixture, &Frame::udp(client(40002), at([198, 51, 100, 1], 53))), (1, 53));
    let beside = fixture.send(CLIENTS, &Frame::tcp(client(40001), at([198, 51, 101, 9], 443), SYN).bytes());
    assert!(matches!(beside.reason, Some(Reason::NotOurs | Reason::NoService)), "{beside:?}");
    // Known flows go on, also when the rule is gone; answers come from the address that was asked.
    marked(&mut fixture, &[]);
    assert_eq!(to(&fixture, &Frame::tcp(client(40001), at([198, 51, 100, 9], 443), ACK)), (1, 443));
    let answer = fixture.send(SERVERS, &Frame::tcp(server(1, 443), client(40001), ACK).bytes());
    assert_eq!(answer.bytes[26..30], [198, 51, 100, 9]);
    let new = fixture.send(CLIENTS, &Frame::tcp(client(40003), at([198, 51, 100, 9], 443), SYN).bytes());
    assert_eq!(new.reason, Some(Reason::NoService));
}

#[test]
fn each_part_of_a_rule_counts_and_the_last_match_wins() {
    let mut fixture = Fixture::new();
    for mark in 1..=5 {
        fixture.ipvsadm(&format!("-A -f {mark} -s rr\n-a -f {mark} -r 10.0.0.1{mark}:0 -m"));
    }
    marked(
        &mut fixture,
        &[
            "1",
            "2 --source 203.0.113.0/24 --protocol tcp",
            "3 --protocol udp --destination-ports 1000-1999",
            "4 --protocol tcp --source-ports 5000",
            "5 --interface servers",
            "9 --destination-ports 99",
        ],
    );
    let any = at([8, 8, 8, 8], 80);
    assert_eq!(to(&fixture, &Frame::tcp(client(40000), any, SYN)), (1, 80));
    assert_eq!(to(&fixture, &Frame::tcp(at([203, 0, 113, 7], 40000), any, SYN)), (2, 80));
    assert_eq!(to(&fixture, &Frame::udp(at([203, 0, 113, 7], 40000), any)), (1, 80));
    assert_eq!(to(&fixture, &Frame::udp(client(40000), at([8, 8, 8, 8], 1999))), (3, 1999));
    assert_eq!(to(&fixture, &Frame::udp(client(40000), at([8, 8, 8, 8], 2000))), (1, 2000));
    assert_eq!(to(&fixture, &Frame::tcp(at([203, 0, 113, 7], 5000), any, SYN)), (4, 80));
    let here = fixture.send(SERVERS, &Frame::tcp(client(41000), any, SYN).bytes());
    assert_eq!((here.action, here.bytes[33]), (Action::Transmit, 15));
    // A mark without a service means nothing.
    let nobody = fixture.send(CLIENTS, &Frame::tcp(client(40000), at([8, 8, 8, 8], 99), SYN).bytes());
    assert_eq!(nobody.reason, Some(Reason::NoReplyConnection));
}

#[test]
fn persistence_of_a_mark_spans_all() {
    let mut fixture = Fixture::configured(
        "-A -f 7 -s rr -p 300
         -a -f 7 -r 10.0.0.11:8080 -m
         -a -f 7 -r 10.0.0.12:8080 -m",
    );
    marked(&mut fixture, &["7 --destination 192.168.1.0/24"]);
    for (port, virtual_port) in [(40000, 80), (40001, 443)] {
        let there = at([192, 168, 1, 100], virtual_port);
        assert_eq!(to(&fixture, &Frame::tcp(client(port), there, SYN)), (2, virtual_port));
        assert_eq!(to(&fixture, &Frame::udp(client(port), there)), (2, virtual_port));
        assert_eq!(to(&fixture, &Frame::tcp(client(port), at([192, 168, 1, 7], 80), SYN)), (2, 80));
    }
    assert_eq!(to(&fixture, &Frame::tcp(at([203, 0, 113, 7], 1000), VIP, SYN)), (1, 80));
    let rows = fixture.director.connections().unwrap();
    let row = rows.iter().find(|row| row.protocol == "IP" && row.client == *client(0).ip()).unwrap();
    assert_eq!((row.virtual_address.to_string().as_str(), row.virtual_port), ("0.0.0.7", 0));
    assert_eq!((row.destination.to_string().as_str(), row.destination_port), ("10.0.0.12", 0));
    assert_eq!(rows.iter().filter(|row| row.protocol == "IP").count(), 2);
}

#[test]
fn a_service_by_mark_is_deleted_and_comes_back_with_its_connections() {
    const MARKED: &str = "-A -f 4294967295 -s wlc
                          -a -f 4294967295 -r 10.0.0.11:0 -m";
    let mut fixture = Fixture::configured(MARKED);
    fixture.ipvsadm("-A -t 192.168.1.100:81 -s rr");
    marked(&mut fixture, &["4294967295 --destination 192.168.1.100"]);
    assert_eq!(to(&fixture, &Frame::tcp(client(40000), VIP, SYN)), (1, 80));
    fixture.ipvsadm("-D -f 4294967295");
    let gone = fixture.send(CLIENTS, &Frame::tcp(client(40000), VIP, ACK).bytes());
    assert_eq!(gone.reason, Some(Reason::DestinationDeleted));
    fixture.ipvsadm(MARKED);
    assert_eq!(to(&fixture, &Frame::tcp(client(40000), VIP, ACK)), (1, 80));
    assert_eq!(fixture.counted()[&server(1, 0)].active, 1);
}

#[test]
fn as_many_rules_as_there_can_be() {
    let mut fixture = Fixture::configured("-A -f 1 -s rr\n-a -f 1 -r 10.0.0.11:0 -m");
    let lines: Vec<String> =
        (0..256).map(|number| format!("1 --destination-ports {}", 1000 + number)).collect();
    marked(&mut fixture, &lines.iter().map(String::as_str).collect::<Vec<_>>());
    for port in [1000, 1255] {
        assert_eq!(to(&fixture, &Frame::tcp(client(40000), at([8, 8, 8, 8], port), SYN)), (1, port));
    }
    let one_more = fixture.director.change_mark_rules(&mut |rules| {
        rules.push(xipvs::mark::any(2));
        Ok(())
    });
    assert_eq!(one_more.unwrap_err().to_string(), "no more than 256 rules can mark packets");
    assert_eq!(fixture.director.mark_rules().unwrap().unwrap().len(), 256);
}

/// A listing tells the mark of a template; a connection belongs to the service that has its destination.
#[test]
fn connections_of_another_director_go_on() {
    let mut fixture = Fixture::configured(
        "-A -f 7 -s rr -p 300
         -a -f 7 -r 10.0.0.11:0 -m
         -a -f 7 -r 10.0.0.12:0 -m
         -A -f 7 -6 -s rr -p 300
         -a -f 7 -6 -r [fd00:2::11]:0 -m",
    );
    marked(&mut fixture, &["7 --destination 192.168.1.100", "7 --destination 198.51.100.0/24"]);
    let listed = |client: (IpAddr, u16), virtual_address: (IpAddr, u16), destination: (IpAddr, u16)| {
        let protocol = if client.1 == 0 { "IP" } else { "TCP" };
        ConnectionReport {
            protocol: protocol.into(),
            client: client.0,
            client_port: client.1,
            virtual_address: virtual_address.0,
            virtual_port: virtual_address.1,
            destination: destination.0,
            destination_port: destination.1,
            state: if client.1 == 0 { "ASSURED" } else { "ESTABLISHED" }.into(),
            expires: 100,
            engine: None,
        }
    };
    let (host, second) = ((*client(0).ip()).into(), (*server(2, 0).ip()).into());
    let ip = |text: &str| text.parse::<IpAddr>().unwrap();
    let mut all = [
        listed((host, 0), (ip("0.0.0.7"), 0), (second, 0)),
        listed((ip("fd00:1::10"), 0), (ip("0:7::"), 0), (ip("fd00:2::11"), 0)),
        listed((host, 40000), (ip("198.51.100.9"), 443), (second, 443)),
    ];
    let takeover = fixture.director.adopt(&all).unwrap();
    assert_eq!((takeover.taken, takeover.known, takeover.left.len()), (3, 0, 0), "{takeover:?}");
    let key = |report: &ConnectionReport| (report.client_port, report.client);
    let mut told = fixture.director.connections().unwrap();
    told.sort_by_key(key);
    all.sort_by_key(key);
    let told = told.into_iter().map(|report| ConnectionReport { expires: 100, ..report });
    assert_eq!(told.collect::<Vec<_>>(), all);

    assert_eq!(to(&fixture, &Frame::tcp(client(40000), at([198, 51, 100, 9], 443), ACK)), (2, 443));
    for port in 41000..41003 {
        assert_eq!(to(&fixture, &Frame::tcp(client(port), VIP, SYN)), (2, 80));
    }
}
