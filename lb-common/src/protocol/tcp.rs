//! TCP: the states of a connection as the director sees it, their timeouts, and what counts as active.
//!
//! A director sees both directions of a NAT connection, and of direct routing only the client's, so
//! there are three tables by [`Direction`]; `secure_tcp` changes a few cells. Sequence numbers are
//! none of its business. IPVS counterpart: `ip_vs_proto_tcp.c`.

pub use super::Direction;

/// A TCP connection's state, numbered as in IPVS's sync messages.
#[doc(alias = "IP_VS_TCP_S_NONE")]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[repr(u8)]
pub enum State {
    /// No segment was seen yet.
    #[default]
    None = 0,
    /// Data flows.
    Established = 1,
    /// The server opens.
    SynSent = 2,
    /// The client opens.
    SynRecv = 3,
    /// One side has closed.
    FinWait = 4,
    /// Both sides have closed.
    TimeWait = 5,
    /// Reset, or not to be understood.
    Close = 6,
    /// The client has closed first.
    CloseWait = 7,
    /// The last FIN waits for its ACK.
    LastAck = 8,
    /// Waiting for a data connection (FTP).
    Listen = 9,
    /// The server has answered the SYN; only with `secure_tcp`.
    SynAck = 10,
}

/// How many states there are.
const STATES: usize = 11;

/// What a segment means for the state.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Event {
    /// RST is set, whatever else is.
    Rst,
    /// SYN is set, without RST.
    Syn,
    /// FIN is set, without RST and SYN.
    Fin,
    /// ACK is set, without RST, SYN and FIN.
    Ack,
    /// None of the four is set.
    None,
}

/// Timeouts that an operator can set, in seconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timeouts {
    /// Of [`State::Established`].
    pub established: u32,
    /// Of [`State::FinWait`].
    pub fin_wait: u32,
}

impl Default for Timeouts {
    /// IPVS's own: 900 and 120 seconds.
    fn default() -> Self {
        Self { established: 900, fin_wait: 120 }
    }
}

/// A flag of a segment: the sender sends no more.
pub const FIN: u8 = 0x01;
/// A flag of a segment: the sender opens the connection.
pub const SYN: u8 = 0x02;
/// A flag of a segment: there is no such connection.
pub const RST: u8 = 0x04;
/// A flag of a segment: what has come so far is to be handed on.
pub const PSH: u8 = 0x08;
/// A flag of a segment: it acknowledges others.
pub const ACK: u8 = 0x10;
/// A flag of a segment: its sender has heard of congestion.
pub const CWR: u8 = 0x80;

impl Event {
    /// The event of a segment with these flags: the fourteenth byte of its header.
    #[doc(alias = "tcp_state_idx")]
    #[inline(always)]
    pub const fn of(flags: u8) -> Self {
        if flags & RST != 0 {
            Self::Rst
        } else if flags & SYN != 0 {
            Self::Syn
        } else if flags & FIN != 0 {
            Self::Fin
        } else if flags & ACK != 0 {
            Self::Ack
        } else {
            Self::None
        }
    }
}

impl State {
    /// The state with this number, 0 to 10.
    #[inline(always)]
    pub const fn from_number(number: u8) -> Option<Self> {
        Some(match number {
            0 => Self::None,
            1 => Self::Established,
            2 => Self::SynSent,
            3 => Self::SynRecv,
            4 => Self::FinWait,
            5 => Self::TimeWait,
            6 => Self::Close,
            7 => Self::CloseWait,
            8 => Self::LastAck,
            9 => Self::Listen,
            10 => Self::SynAck,
            _ => return None,
        })
    }

    /// Whether a connection in this state counts as active; else it counts as inactive.
    #[doc(alias = "tcp_state_active_table")]
    #[inline(always)]
    pub const fn is_active(self) -> bool {
        matches!(self, Self::Established | Self::SynSent | Self::SynRecv | Self::SynAck)
    }

    /// Seconds without a packet until a connection in this state expires.
    #[doc(alias = "tcp_timeouts")]
    #[inline(always)]
    pub const fn timeout(self, timeouts: &Timeouts) -> u32 {
        match self {
            Self::Established => timeouts.established,
            Self::FinWait => timeouts.fin_wait,
            Self::None => 2,
            Self::Close => 10,
            Self::LastAck => 30,
            Self::SynRecv | Self::CloseWait => 60,
            Self::SynSent | Self::TimeWait | Self::Listen | Self::SynAck => 120,
        }
    }

    /// Whether a sync master tells its backups about a connection in this state.
    #[inline(always)]
    pub const fn is_sync_eligible(self) -> bool {
        matches!(self, Self::Established | Self::FinWait | Self::TimeWait | Self::Close | Self::CloseWait)
    }

    /// The name in listings' `state` column.
    pub const fn name(self) -> &'static str {
        match self {
            Self::None => "NONE",
            Self::Established => "ESTABLISHED",
            Self::SynSent => "SYN_SENT",
            Self::SynRecv => "SYN_RECV",
            Self::FinWait => "FIN_WAIT",
            Self::TimeWait => "TIME_WAIT",
            Self::Close => "CLOSE",
            Self::CloseWait => "CLOSE_WAIT",
            Self::LastAck => "LAST_ACK",
            Self::Listen => "LISTEN",
            Self::SynAck => "SYNACK",
        }
    }
}

/// The state after a segment. `secure` is whether the `secure_tcp` defence is in force.
#[doc(alias = "set_tcp_state")]
#[inline(always)]
pub const fn transition(direction: Direction, event: Event, state: State, secure: bool) -> State {
    let column = match (direction, event) {
        (_, Event::None) => return State::Close,
        (Direction::In, Event::Rst) if secure => const { SECURE_IN.column(Event::Rst) },
        (Direction::In, Event::Syn) if secure => const { SECURE_IN.column(Event::Syn) },
        (Direction::In, Event::Fin) if secure => const { SECURE_IN.column(Event::Fin) },
        (Direction::In, Event::Ack) if secure => const { SECURE_IN.column(Event::Ack) },
        (Direction::Out, Event::Syn) if secure => const { SECURE_OUT.column(Event::Syn) },
        (Direction::InputOnly, Event::Syn) if secure => const { SECURE_INPUT_ONLY.column(Event::Syn) },
        (Direction::In, Event::Rst) => const { IN.column(Event::Rst) },
        (Direction::In, Event::Syn) => const { IN.column(Event::Syn) },
        (Direction::In, Event::Fin) => const { IN.column(Event::Fin) },
        (Direction::In, Event::Ack) => const { IN.column(Event::Ack) },
        (Direction::Out, Event::Rst) => const { OUT.column(Event::Rst) },
        (Direction::Out, Event::Syn) => const { OUT.column(Event::Syn) },
        (Direction::Out, Event::Fin) => const { OUT.column(Event::Fin) },
        (Direction::Out, Event::Ack) => const { OUT.column(Event::Ack) },
        (Direction::InputOnly, Event::Rst) => const { INPUT_ONLY.column(Event::Rst) },
        (Direction::InputOnly, Event::Syn) => const { INPUT_ONLY.column(Event::Syn) },
        (Direction::InputOnly, Event::Fin) => const { INPUT_ONLY.column(Event::Fin) },
        (Direction::InputOnly, Event::Ack) => const { INPUT_ONLY.column(Event::Ack) },
    };
    match State::from_number((column >> (4 * state as u32)) as u8 & 0xf) {
        Some(next) => next,
        None => State::Close,
    }
}

/// Next states of one direction: a row for each state that is left, in the order of their numbers;
/// columns are RST, SYN, FIN, ACK.
///
/// Only read at compile time. What runs has a column as one number of four bits a state, so that a
/// transition is a shift and needs no table in memory.
struct Table([[State; 4]; STATES]);

impl Table {
    const fn column(&self, event: Event) -> u64 {
        let mut column = 0;
        let mut state = 0;
        while state < STATES {
            column |= (self.0[state][event as usize] as u64) << (4 * state);
            state += 1;
        }
        column
    }

    /// The table with other cells.
    const fn with(mut self, cells: &[(State, Event, State)]) -> Self {
        let mut cell = 0;
        while cell < cells.len() {
            let (state, event, next) = cells[cell];
            self.0[state as usize][event as usize] = next;
            cell += 1;
        }
        self
    }
}

/// The states under names as short as table cells, which also keep the columns aligned.
mod short {
    use super::State;
    pub(super) const EST: State = State::Established;
    pub(super) const SYN_S: State = State::SynSent;
    pub(super) const SYN_R: State = State::SynRecv;
    pub(super) const FIN_W: State = State::FinWait;
    pub(super) const TIM_W: State = State::TimeWait;
    pub(super) const CLOSE: State = State::Close;
    pub(super) const CLS_W: State = State::CloseWait;
    pub(super) const LST_A: State = State::LastAck;
    pub(super) const LISTN: State = State::Listen;
}
use short::*;

#[rustfmt::skip]
const IN: Table = Table([
    // RST    SYN    FIN    ACK
    [CLOSE, SYN_R, CLOSE, EST  ], // NONE
    [CLOSE, EST,   CLS_W, EST  ], // ESTABLISHED
    [CLOSE, EST,   SYN_S, SYN_S], // SYN_SENT
    [SYN_R, SYN_R, TIM_W, EST  ], // SYN_RECV
    [CLOSE, SYN_R, TIM_W, FIN_W], // FIN_WAIT
    [CLOSE, SYN_R, TIM_W, TIM_W], // TIME_WAIT
    [CLOSE, SYN_R, CLOSE, CLOSE], // CLOSE
    [CLOSE, SYN_R, CLS_W, CLS_W], // CLOSE_WAIT
    [LST_A, SYN_R, LST_A, CLOSE], // LAST_ACK
    [LISTN, SYN_R, LISTN, LISTN], // LISTEN
    [SYN_R, SYN_R, TIM_W, EST  ], // SYNACK
]);

#[rustfmt::skip]
const OUT: Table = Table([
    // RST    SYN    FIN    ACK
    [CLOSE, SYN_S, TIM_W, EST  ], // NONE
    [CLOSE, EST,   FIN_W, EST  ], // ESTABLISHED
    [SYN_S, SYN_S, SYN_S, SYN_S], // SYN_SENT
    [CLOSE, SYN_R, TIM_W, EST  ], // SYN_RECV
    [CLOSE, SYN_S, FIN_W, FIN_W], // FIN_WAIT
    [TIM_W, SYN_S, TIM_W, TIM_W], // TIME_WAIT
    [CLOSE, SYN_S, CLOSE, CLOSE], // CLOSE
    [CLOSE, SYN_S, TIM_W, CLS_W], // CLOSE_WAIT
    [CLOSE, SYN_S, LST_A, LST_A], // LAST_ACK
    [CLOSE, LISTN, LISTN, EST  ], // LISTEN
    [CLOSE, SYN_R, TIM_W, EST  ], // SYNACK
]);

#[rustfmt::skip]
const INPUT_ONLY: Table = Table([
    // RST    SYN    FIN    ACK
    [CLOSE, SYN_R, CLOSE, EST  ], // NONE
    [CLOSE, EST,   FIN_W, EST  ], // ESTABLISHED
    [CLOSE, EST,   SYN_S, SYN_S], // SYN_SENT
    [SYN_R, SYN_R, TIM_W, EST  ], // SYN_RECV
    [CLOSE, SYN_R, FIN_W, FIN_W], // FIN_WAIT
    [CLOSE, SYN_R, TIM_W, TIM_W], // TIME_WAIT
    [CLOSE, SYN_R, CLOSE, CLOSE], // CLOSE
    [CLOSE, SYN_R, CLS_W, CLS_W], // CLOSE_WAIT
    [LST_A, SYN_R, LST_A, CLOSE], // LAST_ACK
    [LISTN, SYN_R, LISTN, LISTN], // LISTEN
    [CLOSE, SYN_R, TIM_W, EST  ], // SYNACK
]);

/// With `secure_tcp` only the server's ACK establishes a connection.
const SECURE_IN: Table = IN.with(&[
    (State::SynAck, Event::Rst, State::Close),
    (State::SynAck, Event::Syn, State::SynAck),
    (State::SynAck, Event::Fin, State::SynAck),
    (State::SynRecv, Event::Ack, State::SynRecv),
    (State::SynAck, Event::Ack, State::SynAck),
]);

const SECURE_OUT: Table =
    OUT.with(&[(State::SynRecv, Event::Syn, State::SynAck), (State::SynAck, Event::Syn, State::SynAck)]);

const SECURE_INPUT_ONLY: Table = INPUT_ONLY.with(&[
    (State::None, Event::Syn, State::SynAck),
    (State::FinWait, Event::Syn, State::SynAck),
    (State::TimeWait, Event::Syn, State::SynAck),
    (State::Close, Event::Syn, State::SynAck),
    (State::CloseWait, Event::Syn, State::SynAck),
    (State::LastAck, Event::Syn, State::SynAck),
    (State::Listen, Event::Syn, State::SynAck),
    (State::SynAck, Event::Syn, State::SynAck),
]);

#[cfg(test)]
mod tests {
    use std::vec::Vec;

    use super::Direction::{In, InputOnly, Out};
    use super::*;

    /// The kernel's table, by names: from, then IN, OUT and input-only, each by RST, SYN, FIN, ACK.
    const KERNEL: &str = "
        NONE       | CLOSE | SYN_RECV | CLOSE | EST | CLOSE | SYN_SENT | TIME_WAIT | EST | CLOSE | SYN_RECV | CLOSE | EST
        EST        | CLOSE | EST | CLOSE_WAIT | EST | CLOSE | EST | FIN_WAIT | EST | CLOSE | EST | FIN_WAIT | EST
        SYN_SENT   | CLOSE | EST | SYN_SENT | SYN_SENT | SYN_SENT | SYN_SENT | SYN_SENT | SYN_SENT | CLOSE | EST | SYN_SENT | SYN_SENT
        SYN_RECV   | SYN_RECV | SYN_RECV | TIME_WAIT | EST | CLOSE | SYN_RECV | TIME_WAIT | EST | SYN_RECV | SYN_RECV | TIME_WAIT | EST
        FIN_WAIT   | CLOSE | SYN_RECV | TIME_WAIT | FIN_WAIT | CLOSE | SYN_SENT | FIN_WAIT | FIN_WAIT | CLOSE | SYN_RECV | FIN_WAIT | FIN_WAIT
        TIME_WAIT  | CLOSE | SYN_RECV | TIME_WAIT | TIME_WAIT | TIME_WAIT | SYN_SENT | TIME_WAIT | TIME_WAIT | CLOSE | SYN_RECV | TIME_WAIT | TIME_WAIT
        CLOSE      | CLOSE | SYN_RECV | CLOSE | CLOSE | CLOSE | SYN_SENT | CLOSE | CLOSE | CLOSE | SYN_RECV | CLOSE | CLOSE
        CLOSE_WAIT | CLOSE | SYN_RECV | CLOSE_WAIT | CLOSE_WAIT | CLOSE | SYN_SENT | TIME_WAIT | CLOSE_WAIT | CLOSE | SYN_RECV | CLOSE_WAIT | CLOSE_WAIT
        LAST_ACK   | LAST_ACK | SYN_RECV | LAST_ACK | CLOSE | CLOSE | SYN_SENT | LAST_ACK | LAST_ACK | LAST_ACK | SYN_RECV | LAST_ACK | CLOSE
        LISTEN     | LISTEN | SYN_RECV | LISTEN | LISTEN | CLOSE | LISTEN | LISTEN | EST | LISTEN | SYN_RECV | LISTEN | LISTEN
        SYNACK     | SYN_RECV | SYN_RECV | TIME_WAIT | EST | CLOSE | SYN_RECV | TIME_WAIT | EST | CLOSE | SYN_RECV | TIME_WAIT | EST";

    /// Where the kernel's other table, of `secure_tcp`, differs.
    const KERNEL_SECURE: &str = "
        IN:SYN SYNACK SYNACK | IN:FIN SYNACK SYNACK | IN:ACK SYN_RECV SYN_RECV | IN:ACK SYNACK SYNACK
        | IN:RST SYNACK CLOSE | OUT:SYN SYN_RECV SYNACK | OUT:SYN SYNACK SYNACK
        | IO:SYN NONE SYNACK | IO:SYN FIN_WAIT SYNACK | IO:SYN TIME_WAIT SYNACK | IO:SYN CLOSE SYNACK
        | IO:SYN CLOSE_WAIT SYNACK | IO:SYN LAST_ACK SYNACK | IO:SYN LISTEN SYNACK | IO:SYN SYNACK SYNACK";

    const COLUMNS: [&str; 12] = [
        "IN:RST", "IN:SYN", "IN:FIN", "IN:ACK", "OUT:RST", "OUT:SYN", "OUT:FIN", "OUT:ACK", "IO:RST",
        "IO:SYN", "IO:FIN", "IO:ACK",
    ];

    fn states() -> impl Iterator<Item = State> {
        (0..STATES as u8).map(|number| State::from_number(number).unwrap())
    }

    fn named(name: &str) -> State {
        let name = if name == "EST" { "ESTABLISHED" } else { name };
        states().find(|state| state.name() == name).unwrap()
    }

    #[test]
    fn every_cell_is_the_kernels() {
        let rows: Vec<_> = KERNEL.trim().lines().collect();
        assert_eq!(rows.len(), STATES);
        let different: Vec<Vec<&str>> =
            KERNEL_SECURE.split('|').map(|cell| cell.split_whitespace().collect()).collect();
        let mut differing = 0;
        for row in rows {
            let mut cells = row.split('|').map(|cell| named(cell.trim()));
            let from = cells.next().unwrap();
            for column in COLUMNS {
                let next = cells.next().unwrap();
                let (direction, event) = column.split_once(':').unwrap();
                let direction = match direction {
                    "IN" => In,
                    "OUT" => Out,
                    _ => InputOnly,
                };
                let event = match event {
                    "RST" => Event::Rst,
                    "SYN" => Event::Syn,
                    "FIN" => Event::Fin,
                    _ => Event::Ack,
                };
                assert_eq!(transition(direction, event, from, false), next, "{column} from {from:?}");
                let secure = different.iter().find(|cell| cell[0] == column && named(cell[1]) == from);
                differing += secure.iter().count();
                let next = secure.map_or(next, |cell| named(cell[2]));
                assert_eq!(transition(direction, event, from, true), next, "secure {column} from {from:?}");
            }
        }
        assert_eq!(differing, different.len());
    }

    #[test]
    fn a_segment_without_any_flag_closes() {
        for state in states() {
            for direction in [In, Out, InputOnly] {
                assert_eq!(transition(direction, Event::of(0x08), state, false), State::Close);
                assert_eq!(transition(direction, Event::of(0x20), state, true), State::Close);
            }
        }
    }

    #[test]
    fn flags_have_an_order() {
        assert_eq!(Event::of(0xff), Event::Rst);
        assert_eq!(Event::of(0x02 | 0x10 | 0x01), Event::Syn);
        assert_eq!(Event::of(0x01 | 0x10), Event::Fin);
        assert_eq!(Event::of(0x10 | 0x08), Event::Ack);
        assert_eq!(Event::of(0), Event::None);
    }

    /// The states that a connection goes through.
    fn life(secure: bool, segments: &[(Direction, Event)]) -> Vec<&'static str> {
        let next = |state: &mut State, (direction, event): &(Direction, Event)| {
            *state = transition(*direction, *event, *state, secure);
            Some(state.name())
        };
        segments.iter().scan(State::None, next).collect()
    }

    #[test]
    fn observed_lives() {
        use Event::{Ack, Fin, Rst, Syn};
        assert_eq!(
            life(false, &[(In, Syn), (Out, Syn), (In, Ack), (Out, Fin), (In, Fin)]),
            ["SYN_RECV", "SYN_RECV", "ESTABLISHED", "FIN_WAIT", "TIME_WAIT"]
        );
        assert_eq!(life(false, &[(In, Syn), (In, Rst)]), ["SYN_RECV", "SYN_RECV"]);
        assert_eq!(
            life(false, &[(InputOnly, Syn), (InputOnly, Ack), (InputOnly, Fin)]),
            ["SYN_RECV", "ESTABLISHED", "FIN_WAIT"]
        );
        assert_eq!(
            life(true, &[(In, Syn), (In, Ack), (Out, Syn), (In, Ack), (Out, Ack)]),
            ["SYN_RECV", "SYN_RECV", "SYNACK", "SYNACK", "ESTABLISHED"]
        );
    }

    #[test]
    fn timeouts_activity_and_sync() {
        let timeouts = Timeouts::default();
        let table: Vec<_> = states()
            .map(|state| (state.timeout(&timeouts), state.is_active(), state.is_sync_eligible()))
            .collect();
        assert_eq!(
            table,
            [
                (2, false, false),
                (900, true, true),
                (120, true, false),
                (60, true, false),
                (120, false, true),
                (120, false, true),
                (10, false, true),
                (60, false, true),
                (30, false, false),
                (120, false, false),
                (120, true, false),
            ]
        );
        let timeouts = Timeouts { established: 7, fin_wait: 5 };
        assert_eq!(State::Established.timeout(&timeouts), 7);
        assert_eq!(State::FinWait.timeout(&timeouts), 5);
        assert_eq!(State::TimeWait.timeout(&timeouts), 120);
    }
}
