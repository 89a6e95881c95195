//! IPVS's sysctls, each by what it does to packets.

use lb_common::reason::Reason;

use super::fixture::{Action, CLIENTS, Counted, Expected, Fixture, VIP, client, server, to_server};
use super::frame::{ACK, FIN, Frame, RST, SYN};

const TWO: &str = "-A -t 192.168.1.100:80 -s rr
                   -a -t 192.168.1.100:80 -r 10.0.0.11:80 -m
                   -a -t 192.168.1.100:80 -r 10.0.0.12:80 -m";

fn configured(sysctls: &[(&str, u32)]) -> Fixture {
    let mut fixture = Fixture::configured(TWO);
    for (name, value) in sysctls {
        fixture.director.set_sysctl(name, *value).unwrap();
    }
    fixture
}

/// The server that a client's segment goes to, 0 for none.
fn to(fixture: &Fixture, port: u16, flags: u8) -> u8 {
    let outcome = fixture.send(CLIENTS, &Frame::tcp(client(port), VIP, flags).bytes());
    if outcome.action == Action::Redirect { outcome.bytes[33] - 10 } else { 0 }
}

#[test]
fn sloppy_tcp_takes_a_connection_in_its_middle() {
    let mut fixture = configured(&[("sloppy_tcp", 1)]);
    for (port, flags) in [(40000, ACK), (40002, FIN | ACK), (40004, 0)] {
        assert_eq!(to(&fixture, port, flags), 2, "{flags:#x}");
        assert_eq!(to(&fixture, port + 1, flags), 1, "{flags:#x}");
    }
    assert_eq!(fixture.states()[&client(40000)], "ESTABLISHED");
    let reset = Frame::tcp(client(41000), VIP, RST | ACK);
    fixture.expect("reset", CLIENTS, &reset, Expected::Pass(Reason::NoConnection), &[]);
}

#[test]
fn drop_packet_refuses_one_of_so_many_new_connections() {
    let mut fixture = configured(&[("am_droprate", 3), ("drop_packet", 3)]);
    let opened: Vec<bool> = (40000..40009).map(|port| to(&fixture, port, SYN) != 0).collect();
    assert_eq!(opened, [false, true, true, false, true, true, false, true, true]);
    let syn = Frame::tcp(client(40009), VIP, SYN);
    fixture.expect("tenth", CLIENTS, &syn, Expected::Drop(Reason::DropPacket), &[]);
    // Connections that are there are left alone.
    for _ in 0..4 {
        assert_ne!(to(&fixture, 40001, ACK), 0);
    }
    fixture.director.set_sysctl("drop_packet", 0).unwrap();
    assert!((41000..41009).all(|port| to(&fixture, port, SYN) != 0));
}

#[test]
fn expire_nodest_conn_ends_connections_of_a_deleted_destination() {
    let mut fixture = configured(&[("expire_nodest_conn", 1)]);
    for port in [40000, 40002, 40004] {
        assert_eq!([to(&fixture, port, SYN), to(&fixture, port, ACK)], [2, 2]);
        assert_eq!(to(&fixture, port + 1, SYN), 1);
    }
    fixture.ipvsadm("-d -t 192.168.1.100:80 -r 10.0.0.12:80");
    let ack = Frame::tcp(client(40000), VIP, ACK);
    fixture.expect("segment", CLIENTS, &ack, Expected::Pass(Reason::NoConnection), &[]);
    let syn = Frame::tcp(client(40002), VIP, SYN);
    let out = syn.clone().destination(server(1, 80)).sent(to_server(1));
    let counted = [(server(1, 80), Counted::opened(&syn))];
    fixture.expect("SYN", CLIENTS, &syn, Expected::Redirect(out), &counted);
    // What sends nothing is swept.
    assert_eq!(fixture.states().len(), 5);
    fixture.sweep();
    assert_eq!(fixture.states().len(), 4);
    fixture.ipvsadm("-a -t 192.168.1.100:80 -r 10.0.0.12:80 -m");
    let counted = fixture.counted()[&server(2, 80)];
    assert_eq!((counted.active, counted.inactive), (0, 0));
}

#[test]
fn expire_nodest_conn_moves_a_new_handshake_off_weight_zero() {
    for (value, wanted) in [(0, 2), (1, 1)] {
        let mut fixture = configured(&[("expire_nodest_conn", value)]);
        assert_eq!([to(&fixture, 40000, SYN), to(&fixture, 40000, ACK)], [2, 2]);
        fixture.ipvsadm("-e -t 192.168.1.100:80 -r 10.0.0.12:80 -m -w 0");
        assert_eq!(to(&fixture, 40000, ACK), 2);
        assert_eq!(to(&fixture, 40000, SYN), wanted);
    }
}

#[test]
fn what_is_not_there_is_refused_by_name() {
    let mut fixture = Fixture::new();
    for (name, value, said) in [
        (
            "conntrack",
            1,
            "The XDP director does not have conntrack: packets do not reach connection tracking",
        ),
        ("drop_packet", 4, "drop_packet=4: it can be 0 or 1 or 2 or 3 here"),
        ("dorp_packet", 1, "dorp_packet: IPVS has no such sysctl"),
    ] {
        assert_eq!(fixture.director.set_sysctl(name, value).unwrap_err().to_string(), said);
    }
    fixture.director.set_sysctl("conn_reuse_mode", 2).unwrap();
    let listed: Vec<_> = fixture
        .director
        .sysctls()
        .unwrap()
        .into_iter()
        .map(|(sysctl, value)| (sysctl.name(), value))
        .collect();
    assert_eq!(
        listed,
        [
            ("am_droprate", 10),
            ("amemthresh", 1024),
            ("cache_bypass", 0),
            ("conn_reuse_mode", 2),
            ("drop_entry", 0),
            ("drop_packet", 0),
            ("expire_nodest_conn", 0),
            ("expire_quiescent_template", 0),
            ("lblc_expiration", 86_400),
            ("lblcr_expiration", 86_400),
            ("nat_icmp_send", 0),
            ("pmtu_disc", 1),
            ("schedule_icmp", 0),
            ("secure_tcp", 0),
            ("sloppy_sctp", 0),
            ("sloppy_tcp", 0),
            ("sync_persist_mode", 0),
            ("sync_refresh_period", 0),
            ("sync_retries", 0)
        ]
    );
}
