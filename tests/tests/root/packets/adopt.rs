//! Connections that another director made: taken over, they go on as if they had always been here.

use lb_common::connection::Adopted;
use lb_common::reason::Reason;
use lb_common::sync::{self, Record};
use xipvs::director::Director;
use xipvs::director::xdp::adopt::{self, Fate, Places, Policy};
use xipvs::table::ConnectionReport;

use super::fixture::{
    CLIENTS, Counted, Expected, Fixture, SERVERS, TO_CLIENT, VIP, client, server, to_server,
};
use super::frame::{ACK, FIN, Frame, SYN};

const RULES: &str = "-A -t 192.168.1.100:80 -s rr
    -a -t 192.168.1.100:80 -r 10.0.0.11:8080 -m
    -a -t 192.168.1.100:80 -r 10.0.0.12:80 -g";

/// A connection as the kernel lists it.
fn listed(port: u16, number: u8, destination_port: u16, state: &str) -> ConnectionReport {
    ConnectionReport {
        protocol: "TCP".into(),
        client: (*client(port).ip()).into(),
        client_port: port,
        virtual_address: (*VIP.ip()).into(),
        virtual_port: VIP.port(),
        destination: (*server(number, 0).ip()).into(),
        destination_port,
        state: state.into(),
        expires: 100,
        engine: None,
    }
}

#[test]
fn a_connection_goes_on_where_it_was() {
    let mut fixture = Fixture::configured(RULES);
    let connections = [
        listed(40000, 1, 8080, "ESTABLISHED"),
        listed(40001, 2, 80, "ESTABLISHED"),
        listed(40002, 1, 8080, "TIME_WAIT"),
    ];
    let takeover = fixture.director.adopt(&connections).unwrap();
    assert_eq!((takeover.taken, takeover.known, takeover.left.len()), (3, 0, 0));
    // With state and time left, the second that the listing left out included.
    let mut told = fixture.director.connections().unwrap();
    told.sort_by_key(|connection| connection.client_port);
    let told: Vec<_> = told
        .into_iter()
        .map(|connection| (connection.expires >= 99 && connection.expires <= 101, connection))
        .map(|(right, connection)| (right, ConnectionReport { expires: 100, ..connection }))
        .collect();
    assert_eq!(told, connections.clone().map(|connection| (true, connection)));

    // NAT, both ways, and direct routing; each step moves the counts as on any other connection.
    let ack = Frame::tcp(client(40000), VIP, ACK);
    let out = ack.clone().destination(server(1, 8080)).sent(to_server(1));
    let counted = [(server(1, 8080), Counted::packet_in(&ack))];
    fixture.expect("nat", CLIENTS, &ack, Expected::Redirect(out), &counted);
    let answer = Frame::tcp(server(1, 8080), client(40000), ACK);
    let out = answer.clone().source(VIP).sent(TO_CLIENT);
    let counted = [(server(1, 8080), Counted::packet_out(&answer))];
    fixture.expect("nat answer", SERVERS, &answer, Expected::Redirect(out), &counted);
    let fin = Frame::tcp(client(40001), VIP, FIN | ACK);
    let out = fin.clone().sent(to_server(2));
    let counted = [(server(2, 80), Counted::packet_in(&fin).and_now(-1, 1))];
    fixture.expect("direct", CLIENTS, &fin, Expected::Redirect(out), &counted);

    let takeover = fixture.director.adopt(&connections).unwrap();
    assert_eq!((takeover.taken, takeover.known), (0, 3));
    let counts = fixture.counted();
    let now = |number, port| {
        let counted = &counts[&server(number, port)];
        (counted.active, counted.inactive)
    };
    assert_eq!((now(1, 8080), now(2, 80)), ((1, 1), (0, 1)));
}

#[test]
fn what_cannot_be_placed_is_left_and_named() {
    let mut fixture = Fixture::configured(RULES);
    // The service is not persistent; and one that the kernel has given up has these ports.
    let template = ConnectionReport { client_port: 0, ..listed(1, 1, 8080, "NONE") };
    let engine = Some(("other".to_owned(), b"a@x".to_vec()));
    let of_call = ConnectionReport { engine, ..template.clone() };
    let given_up = ConnectionReport { virtual_port: 65535, destination_port: 65535, ..template.clone() };
    let connections = [
        listed(40000, 3, 80, "ESTABLISHED"),
        listed(40001, 1, 80, "ESTABLISHED"),
        listed(40002, 1, 8080, "WHATEVER"),
        template,
        given_up,
        of_call,
    ];
    let takeover = fixture.director.adopt(&connections).unwrap();
    assert_eq!((takeover.taken, takeover.known), (0, 0));
    let left: Vec<_> = takeover.left.into_iter().collect();
    assert_eq!(
        left,
        [
            ("in a state that is not known", 1),
            ("of a destination that is not in the table", 2),
            ("of a persistence engine that is not known", 1),
            ("templates that serve no more", 2)
        ]
    );
    let ack = Frame::tcp(client(40000), VIP, ACK);
    fixture.expect("left", CLIENTS, &ack, Expected::Pass(Reason::NoConnection), &[]);
}

#[test]
fn a_time_that_is_over_is_over() {
    let mut fixture = Fixture::configured(RULES);
    fixture.director.adopt(&[listed(40000, 1, 8080, "ESTABLISHED")]).unwrap();
    fixture.wait(102_000);
    assert!(fixture.director.connections().unwrap().is_empty());
    let counted = &fixture.counted()[&server(1, 8080)];
    assert_eq!((counted.active, counted.inactive), (0, 0));
}

/// A template serves its clients, controls their connections, and goes on for a minute while it does.
#[test]
fn a_template_goes_on_with_its_connections() {
    let mut fixture = Fixture::configured(
        "-A -t 192.168.1.100:80 -s rr -p 300 -M 255.255.255.0
         -a -t 192.168.1.100:80 -r 10.0.0.11:8080 -m
         -a -t 192.168.1.100:80 -r 10.0.0.12:8080 -m",
    );
    let template = ConnectionReport {
        client: [192, 168, 1, 0].into(),
        client_port: 0,
        expires: 50,
        ..listed(0, 1, 8080, "ASSURED")
    };
    // The connection first: the order of a listing means nothing.
    let all = [listed(40000, 1, 8080, "ESTABLISHED"), template.clone()];
    let takeover = fixture.director.adopt(&all).unwrap();
    assert_eq!((takeover.taken, takeover.known, takeover.left.len()), (2, 0, 0));
    let takeover = fixture.director.adopt(&all).unwrap();
    assert_eq!((takeover.taken, takeover.known), (0, 2));
    let entry = fixture.director.table().unwrap().entries.remove(0);
    let mut persistent: Vec<_> =
        entry.destinations.iter().map(|report| (report.destination.key.address, report.persistent)).collect();
    persistent.sort();
    assert_eq!(persistent.iter().map(|(_, count)| *count).collect::<Vec<_>>(), [1, 0]);
    let listed = |fixture: &mut Fixture| {
        let all = fixture.director.connections().unwrap();
        all.into_iter().find(|connection| connection.client_port == 0)
    };
    let told = listed(&mut fixture).unwrap();
    assert!(told.expires.abs_diff(50) <= 1, "{told:?}");
    assert_eq!(ConnectionReport { expires: 50, ..told }, template);

    // Its time is over and its connection's is not.
    fixture.wait(53_000);
    let told = listed(&mut fixture).expect("a connection is controlled");
    assert!((50..=60).contains(&told.expires), "{told:?}");
    for port in 41000..41004 {
        let syn = Frame::tcp(client(port), VIP, SYN);
        let out = syn.clone().destination(server(1, 8080)).sent(to_server(1));
        assert_eq!(fixture.send(CLIENTS, &syn.bytes()).bytes, out.bytes());
    }
    // With the last connection it ends as well.
    fixture.wait(130_000);
    assert_eq!(listed(&mut fixture), None);
}

/// What a sync message tells of a connection that `listed` describes.
fn told(
    port: u16,
    number: u8,
    destination_port: u16,
    flags: u32,
    state: u16,
    timeout: u32,
) -> Record<'static> {
    Record {
        protocol: 6,
        flags,
        state,
        client_port: port,
        virtual_port: VIP.port(),
        destination_port,
        mark: 0,
        timeout: Some(timeout),
        client: (*client(port).ip()).into(),
        virtual_address: (*VIP.ip()).into(),
        destination: (*server(number, 0).ip()).into(),
        sequences: None,
        engine_name: None,
        engine_data: None,
    }
}

/// Has a backup take one record.
fn take(fixture: &mut Fixture, record: Record<'_>, policy: Policy) -> Fate {
    fixture.director.adopt_records(&mut Places::default(), &[record], policy).unwrap()[0]
}

/// Destination, state and seconds left of each connection.
fn where_they_go(fixture: &mut Fixture) -> Vec<(std::net::IpAddr, String, u32)> {
    let all = fixture.director.connections().unwrap();
    all.into_iter().map(|one| (one.destination, one.state, one.expires)).collect()
}

#[test]
fn a_backup_renews_and_replaces_what_it_was_told_before() {
    let mut fixture = Fixture::configured(RULES);
    let [one, two] = [1, 2].map(|number| std::net::IpAddr::from(*server(number, 0).ip()));
    let now = |fixture: &mut Fixture| {
        let counts = fixture.counted();
        [(1, 8080), (2, 80)].map(|(number, port)| {
            let counted = &counts[&server(number, port)];
            (counted.active, counted.inactive)
        })
    };
    let established = told(40000, 1, 8080, 0, 1, 900);
    assert_eq!(take(&mut fixture, established, Policy::Renew), Ok(Adopted::Taken));
    assert_eq!(now(&mut fixture), [(1, 0), (0, 0)]);
    // A packet comes, and the answer; then the other director has the connection again.
    let ack = Frame::tcp(client(40000), VIP, ACK);
    let out = ack.clone().destination(server(1, 8080)).sent(to_server(1)).bytes();
    assert_eq!(fixture.send(CLIENTS, &ack.bytes()).bytes, out);
    let closing = told(40000, 1, 8080, sync::INACTIVE, 4, 60);
    assert_eq!(take(&mut fixture, closing, Policy::Keep), Ok(Adopted::Known));
    assert_eq!(now(&mut fixture), [(1, 0), (0, 0)]);
    assert_eq!(take(&mut fixture, closing, Policy::Renew), Ok(Adopted::Renewed));
    assert_eq!(now(&mut fixture), [(0, 1), (0, 0)]);
    let [(destination, state, expires)] = &where_they_go(&mut fixture)[..] else { panic!("one connection") };
    assert_eq!((*destination, state.as_str()), (one, "FIN_WAIT"));
    assert!((59..=60).contains(expires), "{expires}");

    // Where it leads elsewhere the new one wins, unless it is the last that is heard of one that was replaced.
    assert_eq!(
        take(&mut fixture, told(40000, 2, 80, sync::INACTIVE, 5, 10), Policy::Renew),
        Ok(Adopted::Known)
    );
    assert_eq!(take(&mut fixture, told(40000, 2, 80, 0, 1, 900), Policy::Renew), Ok(Adopted::Taken));
    assert_eq!(now(&mut fixture), [(0, 0), (1, 0)]);
    assert_eq!(where_they_go(&mut fixture)[0].0, two);
    let out = ack.clone().sent(to_server(2)).bytes();
    assert_eq!(fixture.send(CLIENTS, &ack.bytes()).bytes, out);
    // The answers' entry went with the first.
    let answer = Frame::tcp(server(1, 8080), client(40000), ACK);
    fixture.expect("gone", SERVERS, &answer, Expected::Pass(Reason::NoReplyConnection), &[]);

    let fate = take(&mut fixture, told(40001, 3, 80, 0, 1, 900), Policy::Renew);
    assert_eq!(fate, Err(adopt::NO_DESTINATION));
    let fate = take(&mut fixture, told(40001, 1, 8080, sync::ONE_PACKET, 1, 900), Policy::Renew);
    assert_eq!(fate, Err("with flags that are not known"));
}

#[test]
fn a_template_that_is_told_has_the_time_that_is_told() {
    let mut fixture = Fixture::configured(
        "-A -t 192.168.1.100:80 -s rr -p 300
         -a -t 192.168.1.100:80 -r 10.0.0.11:8080 -m
         -a -t 192.168.1.100:80 -r 10.0.0.12:8080 -m",
    );
    let template = Record {
        flags: sync::TEMPLATE | sync::INACTIVE,
        client_port: 0,
        client: (*client(0).ip()).into(),
        ..told(0, 2, 8080, 0, 0, 100)
    };
    assert_eq!(take(&mut fixture, template, Policy::Renew), Ok(Adopted::Taken));
    assert_eq!(
        take(&mut fixture, Record { state: 1, timeout: Some(50), ..template }, Policy::Renew),
        Ok(Adopted::Renewed)
    );
    let listed = where_they_go(&mut fixture);
    assert_eq!((listed.len(), listed[0].1.as_str()), (1, "ASSURED"));
    // A new connection follows it, and gives it the same time again.
    fixture.wait(20_000);
    let syn = Frame::tcp(client(41000), VIP, SYN);
    let out = syn.clone().destination(server(2, 8080)).sent(to_server(2));
    assert_eq!(fixture.send(CLIENTS, &syn.bytes()).bytes, out.bytes());
    let expires = where_they_go(&mut fixture).into_iter().find(|listed| listed.1 == "ASSURED").unwrap().2;
    assert!((48..=50).contains(&expires), "{expires}");
}
