//! Connections that another director made: taken over, they go on as if they had always been here.

use lb_common::reason::Reason;
use xipvs::director::Director;
use xipvs::table::ConnectionReport;

use super::fixture::{
    CLIENTS, Counted, Expected, Fixture, SERVERS, TO_CLIENT, VIP, client, server, to_server,
};
use super::frame::{ACK, FIN, Frame};

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
    let template = ConnectionReport { client_port: 0, ..listed(1, 1, 8080, "NONE") };
    let connections = [
        listed(40000, 3, 80, "ESTABLISHED"),
        listed(40001, 1, 80, "ESTABLISHED"),
        listed(40002, 1, 8080, "WHATEVER"),
        template,
    ];
    let takeover = fixture.director.adopt(&connections).unwrap();
    assert_eq!((takeover.taken, takeover.known), (0, 0));
    let left: Vec<_> = takeover.left.into_iter().collect();
    assert_eq!(
        left,
        [
            ("in a state that is not known", 1),
            ("of a destination that is not in the table", 2),
            ("persistence template", 1)
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
