//! Every transition of IPVS's TCP table that packets can reach, with the timeout and the count that follow.
//!
//! The cells are typed from the specification, not taken from `lb-common`. NONE is left by the first packet alone;
//! LAST_ACK, LISTEN and (without `secure_tcp`) SYNACK nothing leads to. Of `secure_tcp`'s table only rows are here that differ.

use xipvs::director::xdp::maps::TableEntry;

use super::fixture::{CLIENTS, Fixture, SERVERS, VIP, client, server};
use super::frame::{ACK, FIN, Frame, PSH, RST, SYN};

/// A segment of the client (`C`) or of the server (`S`), by its flags.
#[derive(Clone, Copy)]
enum Segment {
    C(u8),
    S(u8),
}
use Segment::{C, S};

/// RST, SYN, FIN, ACK, none of them; flags that come after in priority are set too.
const EVENTS: [u8; 5] = [RST | ACK, SYN, FIN | ACK, ACK, PSH];

/// From a state, reached by these segments, to a state by each event.
type Row = (&'static str, &'static [Segment], [&'static str; 5]);

const EST: &str = "ESTABLISHED";
const SYN_S: &str = "SYN_SENT";
const SYN_R: &str = "SYN_RECV";
const FIN_W: &str = "FIN_WAIT";
const TIM_W: &str = "TIME_WAIT";
const CLOSE: &str = "CLOSE";
const CLS_W: &str = "CLOSE_WAIT";

const TO_SYN_RECV: &[Segment] = &[C(SYN)];
const TO_ESTABLISHED: &[Segment] = &[C(SYN), C(ACK)];
const NAT_TO_FIN_WAIT: &[Segment] = &[C(SYN), C(ACK), S(FIN)];
const NAT_TO_SYN_SENT: &[Segment] = &[C(SYN), C(ACK), S(FIN), S(SYN)];
const NAT_TO_TIME_WAIT: &[Segment] = &[C(SYN), C(FIN)];
const NAT_TO_CLOSE: &[Segment] = &[C(SYN), S(RST)];
const NAT_TO_CLOSE_WAIT: &[Segment] = &[C(SYN), C(ACK), C(FIN)];

#[rustfmt::skip]
const NAT_IN: [Row; 7] = [
    (SYN_R, TO_SYN_RECV,       [SYN_R, SYN_R, TIM_W, EST,   CLOSE]),
    (EST,   TO_ESTABLISHED,    [CLOSE, EST,   CLS_W, EST,   CLOSE]),
    (SYN_S, NAT_TO_SYN_SENT,   [CLOSE, EST,   SYN_S, SYN_S, CLOSE]),
    (FIN_W, NAT_TO_FIN_WAIT,   [CLOSE, SYN_R, TIM_W, FIN_W, CLOSE]),
    (TIM_W, NAT_TO_TIME_WAIT,  [CLOSE, SYN_R, TIM_W, TIM_W, CLOSE]),
    (CLOSE, NAT_TO_CLOSE,      [CLOSE, SYN_R, CLOSE, CLOSE, CLOSE]),
    (CLS_W, NAT_TO_CLOSE_WAIT, [CLOSE, SYN_R, CLS_W, CLS_W, CLOSE]),
];

#[rustfmt::skip]
const NAT_OUT: [Row; 7] = [
    (SYN_R, TO_SYN_RECV,       [CLOSE, SYN_R, TIM_W, EST,   CLOSE]),
    (EST,   TO_ESTABLISHED,    [CLOSE, EST,   FIN_W, EST,   CLOSE]),
    (SYN_S, NAT_TO_SYN_SENT,   [SYN_S, SYN_S, SYN_S, SYN_S, CLOSE]),
    (FIN_W, NAT_TO_FIN_WAIT,   [CLOSE, SYN_S, FIN_W, FIN_W, CLOSE]),
    (TIM_W, NAT_TO_TIME_WAIT,  [TIM_W, SYN_S, TIM_W, TIM_W, CLOSE]),
    (CLOSE, NAT_TO_CLOSE,      [CLOSE, SYN_S, CLOSE, CLOSE, CLOSE]),
    (CLS_W, NAT_TO_CLOSE_WAIT, [CLOSE, SYN_S, TIM_W, CLS_W, CLOSE]),
];

const DIRECT_TO_FIN_WAIT: &[Segment] = &[C(SYN), C(ACK), C(FIN)];
const DIRECT_TO_TIME_WAIT: &[Segment] = &[C(SYN), C(FIN)];
const DIRECT_TO_CLOSE: &[Segment] = &[C(SYN), C(ACK), C(RST)];

#[rustfmt::skip]
const INPUT_ONLY: [Row; 5] = [
    (SYN_R, TO_SYN_RECV,         [SYN_R, SYN_R, TIM_W, EST,   CLOSE]),
    (EST,   TO_ESTABLISHED,      [CLOSE, EST,   FIN_W, EST,   CLOSE]),
    (FIN_W, DIRECT_TO_FIN_WAIT,  [CLOSE, SYN_R, FIN_W, FIN_W, CLOSE]),
    (TIM_W, DIRECT_TO_TIME_WAIT, [CLOSE, SYN_R, TIM_W, TIM_W, CLOSE]),
    (CLOSE, DIRECT_TO_CLOSE,     [CLOSE, SYN_R, CLOSE, CLOSE, CLOSE]),
];

/// What a server's first packet does that comes by the director.
#[rustfmt::skip]
const DIRECT_OUT: [Row; 5] = [
    (SYN_R, TO_SYN_RECV,         [CLOSE, SYN_R, TIM_W, EST,   CLOSE]),
    (EST,   TO_ESTABLISHED,      [CLOSE, EST,   FIN_W, EST,   CLOSE]),
    (FIN_W, DIRECT_TO_FIN_WAIT,  [CLOSE, SYN_S, FIN_W, FIN_W, CLOSE]),
    (TIM_W, DIRECT_TO_TIME_WAIT, [TIM_W, SYN_S, TIM_W, TIM_W, CLOSE]),
    (CLOSE, DIRECT_TO_CLOSE,     [CLOSE, SYN_S, CLOSE, CLOSE, CLOSE]),
];

const ANSWERED: &[Segment] = &[C(SYN), S(SYN | ACK)];
const ANSWERED_TO_ESTABLISHED: &[Segment] = &[C(SYN), S(SYN | ACK), C(ACK)];
const ANSWERED_TO_CLOSE_WAIT: &[Segment] = &[C(SYN), S(SYN | ACK), C(ACK), C(FIN)];

/// What a client's packets do once one of the server has come by: as with NAT.
#[rustfmt::skip]
const DIRECT_IN: [Row; 3] = [
    (SYN_R, ANSWERED,                [SYN_R, SYN_R, TIM_W, EST,   CLOSE]),
    (EST,   ANSWERED_TO_ESTABLISHED, [CLOSE, EST,   CLS_W, EST,   CLOSE]),
    (CLS_W, ANSWERED_TO_CLOSE_WAIT,  [CLOSE, SYN_R, CLS_W, CLS_W, CLOSE]),
];

const SYN_A: &str = "SYNACK";

/// With `secure_tcp`, which has a NAT connection established by an ACK of the server alone.
#[rustfmt::skip]
const SECURE_IN: [Row; 3] = [
    (SYN_R, TO_SYN_RECV,    [SYN_R, SYN_R, TIM_W, SYN_R, CLOSE]),
    (SYN_A, ANSWERED,       [CLOSE, SYN_A, SYN_A, SYN_A, CLOSE]),
    (EST,   SECURE_TO_EST,  [CLOSE, EST,   CLS_W, EST,   CLOSE]),
];

#[rustfmt::skip]
const SECURE_OUT: [Row; 2] = [
    (SYN_R, TO_SYN_RECV,    [CLOSE, SYN_A, TIM_W, EST,   CLOSE]),
    (SYN_A, ANSWERED,       [CLOSE, SYN_A, TIM_W, EST,   CLOSE]),
];

#[rustfmt::skip]
const SECURE_INPUT_ONLY: [Row; 5] = [
    (SYN_A, TO_SYN_RECV,         [CLOSE, SYN_A, TIM_W, EST,   CLOSE]),
    (EST,   TO_ESTABLISHED,      [CLOSE, EST,   FIN_W, EST,   CLOSE]),
    (FIN_W, DIRECT_TO_FIN_WAIT,  [CLOSE, SYN_A, FIN_W, FIN_W, CLOSE]),
    (TIM_W, DIRECT_TO_TIME_WAIT, [CLOSE, SYN_A, TIM_W, TIM_W, CLOSE]),
    (CLOSE, DIRECT_TO_CLOSE,     [CLOSE, SYN_A, CLOSE, CLOSE, CLOSE]),
];

const SECURE_TO_EST: &[Segment] = &[C(SYN), S(SYN | ACK), C(ACK), S(ACK)];

/// Seconds, and whether the state counts as active.
fn timeout(state: &str) -> (u32, bool) {
    match state {
        EST => (900, true),
        SYN_S | SYN_A => (120, true),
        SYN_R => (60, true),
        FIN_W | TIM_W => (120, false),
        CLOSE => (10, false),
        CLS_W => (60, false),
        other => panic!("{other}"),
    }
}

fn check(method: &str, rows: &[Row], event: fn(u8) -> Segment) {
    check_with(method, &[], rows, event);
}

fn check_with(method: &str, sysctls: &[(&str, u32)], rows: &[Row], event: fn(u8) -> Segment) {
    let mut fixture = Fixture::configured("-A -t 192.168.1.100:80 -s rr");
    fixture.ipvsadm(&format!("-a -t 192.168.1.100:80 -r 10.0.0.11:80 {method}"));
    // So that a SYN goes into the table whatever the state, and does not make a new connection.
    fixture.director.set_sysctl("conn_reuse_mode", 0).unwrap();
    for (name, value) in sysctls {
        fixture.director.set_sysctl(name, *value).unwrap();
    }
    let answers_from = if method == "-m" { server(1, 80) } else { VIP };
    let mut port = 40000;
    let mut wanted = (0, 0);
    for (from, path, after) in rows {
        for (flags, to) in EVENTS.into_iter().zip(after) {
            port += 1;
            let client = client(port);
            let send = |segment| match segment {
                C(flags) => fixture.send(CLIENTS, &Frame::tcp(client, VIP, flags).bytes()),
                S(flags) => fixture.send(SERVERS, &Frame::tcp(answers_from, client, flags).bytes()),
            };
            path.iter().for_each(|segment| drop(send(*segment)));
            assert_eq!(fixture.states()[&client], *from);
            send(event(flags));

            let what = format!("{method} {from} by {flags:#x}");
            let of_client = |found: &TableEntry| found.entry.tuple().source_port() == port;
            let TableEntry { entry, deadline, .. } = fixture.client_sides().find(of_client).unwrap();
            assert_eq!(lb_common::protocol::state::name(entry.state), *to, "{what}");
            fixture.sweep();
            let settings = fixture.settings();
            let (seconds, active) = timeout(to);
            let left = deadline.wrapping_sub(settings.swept_at);
            let whole = seconds * settings.ticks_per_second;
            // The clock stands still but for what the test itself takes between two looks.
            let range = whole - settings.ticks_per_second..whole + settings.ticks_per_second;
            assert!(range.contains(&left), "{what}: {left} of {whole}");
            wanted = if active { (wanted.0 + 1, wanted.1) } else { (wanted.0, wanted.1 + 1) };
            let counted = fixture.counted()[&server(1, 80)];
            assert_eq!((counted.active, counted.inactive), wanted, "{what}");
        }
    }
    assert_eq!(fixture.counted()[&server(1, 80)].connections, (rows.len() * 5) as i64);
}

#[test]
fn of_a_nat_client() {
    check("-m", &NAT_IN, C);
}

#[test]
fn of_a_nat_server() {
    check("-m", &NAT_OUT, S);
}

#[test]
fn of_a_client_whose_server_is_not_seen() {
    check("-g", &INPUT_ONLY, C);
}

#[test]
fn of_a_direct_routing_server_that_is_seen() {
    check("-g", &DIRECT_OUT, S);
}

#[test]
fn of_a_client_whose_direct_routing_server_was_seen() {
    check("-g", &DIRECT_IN, C);
}

const SECURE: &[(&str, u32)] = &[("secure_tcp", 3)];

#[test]
fn of_a_nat_client_under_secure_tcp() {
    check_with("-m", SECURE, &SECURE_IN, C);
}

#[test]
fn of_a_nat_server_under_secure_tcp() {
    check_with("-m", SECURE, &SECURE_OUT, S);
}

#[test]
fn of_a_client_whose_server_is_not_seen_under_secure_tcp() {
    check_with("-g", SECURE, &SECURE_INPUT_ONLY, C);
}

#[test]
fn secure_tcp_that_is_idle_changes_nothing() {
    // The table is empty, so that no place is scarce.
    check_with("-m", &[("secure_tcp", 1)], &NAT_IN, C);
    check_with("-m", &[("secure_tcp", 2)], &NAT_OUT, S);
}
