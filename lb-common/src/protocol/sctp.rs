//! SCTP: the states of an association as the director sees it, their timeouts, and what counts as active.
//!
//! Only the first chunk of a packet is looked at, and the second where it may abort. Three tables by
//! [`Direction`], as TCP has. IPVS counterpart: `ip_vs_proto_sctp.c`.

pub use super::Direction;

/// An SCTP association's state, numbered as in IPVS's sync messages.
#[doc(alias = "ip_vs_sctp_states")]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[repr(u8)]
pub enum State {
    /// No packet was seen yet.
    #[default]
    None = 0,
    /// The client's first INIT.
    Init1 = 1,
    /// The client's INIT again.
    Init = 2,
    /// The server has sent its cookie.
    CookieSent = 3,
    /// The client has sent the cookie back.
    CookieReplied = 4,
    /// The server opens, and waits for the client's cookie.
    CookieWait = 5,
    /// The client has sent its cookie.
    Cookie = 6,
    /// The server has sent the cookie back.
    CookieEchoed = 7,
    /// Data flows.
    Established = 8,
    /// The server shuts down.
    ShutdownSent = 9,
    /// The client shuts down.
    ShutdownReceived = 10,
    /// The server has acknowledged the shutdown.
    ShutdownAckSent = 11,
    /// Aborted before it was established.
    Rejected = 12,
    /// Over.
    Closed = 13,
}

/// How many states there are.
const STATES: usize = 14;

/// What a packet means for the state.
#[doc(alias = "sctp_events")]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Event {
    /// DATA, SACK, HEARTBEAT and whatever has no other meaning.
    Data,
    /// INIT.
    Init,
    /// INIT ACK.
    InitAck,
    /// COOKIE ECHO.
    CookieEcho,
    /// COOKIE ACK.
    CookieAck,
    /// SHUTDOWN.
    Shutdown,
    /// SHUTDOWN ACK.
    ShutdownAck,
    /// SHUTDOWN COMPLETE.
    ShutdownComplete,
    /// ERROR.
    Error,
    /// ABORT.
    Abort,
}

impl Event {
    /// The event of a packet whose first chunk has this type. `next` is the type of the chunk after it,
    /// if there is one; it matters only where [`Event::needs_next`] says so.
    #[doc(alias = "sctp_events")]
    #[inline(always)]
    pub const fn of(first: u8, next: Option<u8>) -> Self {
        const ABORT: u8 = 6;
        match (first, next) {
            (10 | 11, Some(ABORT)) | (ABORT, _) => Self::Abort,
            (1, _) => Self::Init,
            (2, _) => Self::InitAck,
            (7, _) => Self::Shutdown,
            (8, _) => Self::ShutdownAck,
            (9, _) => Self::Error,
            (10, _) => Self::CookieEcho,
            (11, _) => Self::CookieAck,
            (14, _) => Self::ShutdownComplete,
            _ => Self::Data,
        }
    }

    /// The event with this number; of others there are none.
    #[inline(always)]
    pub const fn from_number(number: u8) -> Self {
        match number {
            1 => Self::Init,
            2 => Self::InitAck,
            3 => Self::CookieEcho,
            4 => Self::CookieAck,
            5 => Self::Shutdown,
            6 => Self::ShutdownAck,
            7 => Self::ShutdownComplete,
            8 => Self::Error,
            9 => Self::Abort,
            _ => Self::Data,
        }
    }

    /// Whether the chunk after a first one of this type can change the event: COOKIE ECHO, COOKIE ACK.
    #[inline(always)]
    pub const fn needs_next(first: u8) -> bool {
        matches!(first, 10 | 11)
    }
}

impl State {
    /// The state with this number, 0 to 13.
    #[inline(always)]
    pub const fn from_number(number: u8) -> Option<Self> {
        Some(match number {
            0 => Self::None,
            1 => Self::Init1,
            2 => Self::Init,
            3 => Self::CookieSent,
            4 => Self::CookieReplied,
            5 => Self::CookieWait,
            6 => Self::Cookie,
            7 => Self::CookieEchoed,
            8 => Self::Established,
            9 => Self::ShutdownSent,
            10 => Self::ShutdownReceived,
            11 => Self::ShutdownAckSent,
            12 => Self::Rejected,
            13 => Self::Closed,
            _ => return None,
        })
    }

    /// Whether an association in this state counts as active; else it counts as inactive.
    #[inline(always)]
    pub const fn is_active(self) -> bool {
        matches!(self, Self::Established)
    }

    /// Seconds without a packet until an association in this state expires; none can be set.
    #[doc(alias = "sctp_timeouts")]
    #[inline(always)]
    pub const fn timeout(self) -> u32 {
        match self {
            Self::None => 2,
            Self::Init1 | Self::Rejected => 4,
            Self::Established => 900,
            _ => 61,
        }
    }

    /// Whether a sync master tells its backups about an association in this state.
    #[inline(always)]
    pub const fn is_sync_eligible(self) -> bool {
        matches!(
            self,
            Self::Established
                | Self::ShutdownSent
                | Self::ShutdownReceived
                | Self::ShutdownAckSent
                | Self::Closed
        )
    }

    /// The name in listings' `state` column.
    pub const fn name(self) -> &'static str {
        match self {
            Self::None => "NONE",
            Self::Init1 => "INIT1",
            Self::Init => "INIT",
            Self::CookieSent => "C-SENT",
            Self::CookieReplied => "C-REPLIED",
            Self::CookieWait => "C-WAIT",
            Self::Cookie => "COOKIE",
            Self::CookieEchoed => "C-ECHOED",
            Self::Established => "ESTABLISHED",
            Self::ShutdownSent => "S-SENT",
            Self::ShutdownReceived => "S-RECEIVED",
            Self::ShutdownAckSent => "S-ACK-SENT",
            Self::Rejected => "REJECTED",
            Self::Closed => "CLOSED",
        }
    }
}

/// The state after a packet.
#[doc(alias = "set_sctp_state")]
#[inline(always)]
pub const fn transition(direction: Direction, event: Event, state: State) -> State {
    let column = match direction {
        Direction::In => column!(IN, event),
        Direction::Out => column!(OUT, event),
        Direction::InputOnly => column!(INPUT_ONLY, event),
    };
    match State::from_number((column >> (4 * state as u32)) as u8 & 0xf) {
        Some(next) => next,
        None => state,
    }
}

/// The column of a table for an event, each as a constant of the code.
macro_rules! column {
    ($table:ident, $event:expr) => {
        match $event {
            Event::Data => const { $table.column(Event::Data) },
            Event::Init => const { $table.column(Event::Init) },
            Event::InitAck => const { $table.column(Event::InitAck) },
            Event::CookieEcho => const { $table.column(Event::CookieEcho) },
            Event::CookieAck => const { $table.column(Event::CookieAck) },
            Event::Shutdown => const { $table.column(Event::Shutdown) },
            Event::ShutdownAck => const { $table.column(Event::ShutdownAck) },
            Event::ShutdownComplete => const { $table.column(Event::ShutdownComplete) },
            Event::Error => const { $table.column(Event::Error) },
            Event::Abort => const { $table.column(Event::Abort) },
        }
    };
}
use column;

/// Numbers of next states of one direction: a row for each state that is left, in the order of their
/// numbers; columns are DATA, INIT, INIT ACK, COOKIE ECHO, COOKIE ACK, SHUTDOWN, SHUTDOWN ACK,
/// SHUTDOWN COMPLETE, ERROR, ABORT.
///
/// Only read at compile time, as TCP's.
struct Table([[u8; 10]; STATES]);

impl Table {
    const fn column(&self, event: Event) -> u64 {
        let mut column = 0;
        let mut state = 0;
        while state < STATES {
            let next = match self.0[state][event as usize] {
                ST => state as u64,
                next => next as u64,
            };
            column |= next << (4 * state);
            state += 1;
        }
        column
    }
}

/// The state stays.
const ST: u8 = u8::MAX;

#[rustfmt::skip]
const IN: Table = Table([
    [ 8,  1,  5,  4,  8, 10, 13, 13, 13, 13], // NONE
    [ST,  2,  5,  2, ST, ST,  2, 13, ST, 13], // INIT1
    [ST, ST,  5, ST, ST, ST, ST, 13, ST, 13], // INIT
    [ST, ST, ST,  4, ST, ST, ST, ST, ST, 13], // C-SENT
    [ST, ST, ST, ST, ST, ST, ST, ST, ST, 13], // C-REPLIED
    [ST, ST,  6, ST, ST, ST, ST, ST, ST, 12], // C-WAIT
    [ST, ST, ST, ST, ST, ST, ST, ST, ST, 13], // COOKIE
    [ST, ST, ST, ST,  8, ST, ST, ST, 13, 13], // C-ECHOED
    [ST, ST, ST, ST, ST, 10, ST, ST, ST, 13], // ESTABLISHED
    [ST, ST, ST, ST, ST, ST, 13, ST, ST, 13], // S-SENT
    [ST, ST, ST, ST, ST, ST, ST, ST, ST, 13], // S-RECEIVED
    [ST, ST, ST, ST, ST, ST, 13, 13, ST, 13], // S-ACK-SENT
    [ST,  2, ST, ST, ST, ST, ST, ST, ST, 13], // REJECTED
    [ST,  2, ST, ST, ST, ST, ST, ST, ST, ST], // CLOSED
]);

#[rustfmt::skip]
const OUT: Table = Table([
    [ 8,  5,  3,  7,  8,  9, 11, 13, 13, 13], // NONE
    [ST,  5,  3,  7,  8,  9, 11, ST, 13, 12], // INIT1
    [ST,  5,  3,  7,  8,  9, 11, ST, 13, 13], // INIT
    [ST,  5, ST,  7,  8,  9, 11, ST, 13, 13], // C-SENT
    [ST,  5, ST,  7,  8,  9, 11, ST, 13, 13], // C-REPLIED
    [ST, ST, ST,  7,  8,  9, ST, ST, ST, 13], // C-WAIT
    [ST,  5, ST,  7,  8,  9, ST, ST, ST, 13], // COOKIE
    [ST,  5, ST, ST,  8,  9, ST, ST, ST, 13], // C-ECHOED
    [ST, ST, ST, ST, ST,  9, ST, ST, ST, 13], // ESTABLISHED
    [ST,  5, ST, ST, ST, ST, 11, ST, ST, 13], // S-SENT
    [ST,  5, ST, ST, ST, ST, 11, ST, ST, 13], // S-RECEIVED
    [ST,  5, ST, ST, ST, ST, ST, ST, ST, 13], // S-ACK-SENT
    [ST,  5, ST, ST, ST, ST, ST, ST, ST, 13], // REJECTED
    [ST,  5, ST, ST, ST, ST, ST, ST, ST, ST], // CLOSED
]);

#[rustfmt::skip]
const INPUT_ONLY: Table = Table([
    [ 8,  1,  7,  8,  8, 10, 13, 13, 13, 13], // NONE
    [ST,  2,  7,  8, ST, ST,  2, 13, ST, 13], // INIT1
    [ST, ST,  7,  8, ST, ST, ST, 13, ST, 13], // INIT
    [ST,  2,  7,  8,  8, ST, ST, 13, ST, 13], // C-SENT
    [ST,  2,  7,  8,  8, ST, ST, 13, ST, 13], // C-REPLIED
    [ 8,  2,  7,  8, ST, ST, ST, ST, ST, 12], // C-WAIT
    [ST, ST, ST, ST,  8, ST, ST, ST, ST, 13], // COOKIE
    [ST, ST, ST, ST,  8, ST, ST, ST, ST, 13], // C-ECHOED
    [ST, ST, ST, ST, ST, 10, 13, ST, ST, 13], // ESTABLISHED
    [ST, ST, ST, ST, ST, ST, 13, ST, ST, 13], // S-SENT
    [ST, ST, ST, ST, ST, ST, ST, 13, ST, 13], // S-RECEIVED
    [ST, ST, ST, ST, ST, ST, 13, 13, ST, 13], // S-ACK-SENT
    [ST,  2, ST, ST, ST, ST, ST, ST, ST, 13], // REJECTED
    [ST,  2, ST, ST, ST, ST, ST, ST, ST, ST], // CLOSED
]);

#[cfg(test)]
mod tests {
    use std::vec::Vec;

    use super::Direction::{In, InputOnly, Out};
    use super::*;

    fn states() -> impl Iterator<Item = State> {
        (0..STATES as u8).map(|number| State::from_number(number).unwrap())
    }

    #[test]
    fn chunk_types() {
        // RFC 9260, section 3.2, and ECNE and CWR, which it reserves.
        let expected = [
            Event::Data,
            Event::Init,
            Event::InitAck,
            Event::Data,
            Event::Data,
            Event::Data,
            Event::Abort,
            Event::Shutdown,
            Event::ShutdownAck,
            Event::Error,
            Event::CookieEcho,
            Event::CookieAck,
            Event::Data,
            Event::Data,
            Event::ShutdownComplete,
            Event::Data,
        ];
        for (first, event) in (0..).zip(expected) {
            assert_eq!(Event::of(first, None), event, "{first}");
            assert_eq!(Event::of(first, Some(0)), event, "{first}");
            let before_abort = if Event::needs_next(first) { Event::Abort } else { event };
            assert_eq!(Event::of(first, Some(6)), before_abort, "{first}");
        }
        assert_eq!(Event::of(192, Some(6)), Event::Data);
    }

    /// The states that an association goes through.
    fn life(packets: &[(Direction, u8)]) -> Vec<&'static str> {
        let next = |state: &mut State, (direction, chunk): &(Direction, u8)| {
            *state = transition(*direction, Event::of(*chunk, None), *state);
            Some(state.name())
        };
        packets.iter().scan(State::None, next).collect()
    }

    #[test]
    fn observed_life_by_direct_routing() {
        assert_eq!(
            life(&[1, 1, 10, 0, 7, 14].map(|chunk| (InputOnly, chunk))),
            ["INIT1", "INIT", "ESTABLISHED", "ESTABLISHED", "S-RECEIVED", "CLOSED"]
        );
    }

    #[test]
    fn life_behind_nat() {
        assert_eq!(
            life(&[(In, 1), (Out, 2), (In, 10), (Out, 11), (In, 0), (In, 7), (Out, 8), (In, 14)]),
            [
                "INIT1",
                "C-SENT",
                "C-REPLIED",
                "ESTABLISHED",
                "ESTABLISHED",
                "S-RECEIVED",
                "S-ACK-SENT",
                "CLOSED"
            ]
        );
        assert_eq!(life(&[(In, 1), (Out, 6)]), ["INIT1", "REJECTED"]);
        // The server opens.
        assert_eq!(
            life(&[(Out, 1), (In, 2), (Out, 10), (In, 11), (Out, 7), (In, 8)]),
            ["C-WAIT", "COOKIE", "C-ECHOED", "ESTABLISHED", "S-SENT", "CLOSED"]
        );
    }

    #[test]
    fn an_abort_ends_everything_but_the_end() {
        for direction in [In, Out, InputOnly] {
            for state in states() {
                let next = transition(direction, Event::Abort, state);
                assert!(matches!(next, State::Closed | State::Rejected), "{direction:?} {state:?}");
            }
        }
    }

    #[test]
    fn every_cell_is_its_tables() {
        let events: Vec<Event> = [0, 1, 2, 10, 11, 7, 8, 14, 9, 6].map(|first| Event::of(first, None)).into();
        for (direction, table) in [(In, &IN), (Out, &OUT), (InputOnly, &INPUT_ONLY)] {
            for (state, row) in states().zip(table.0) {
                for (event, next) in events.iter().zip(row) {
                    let next = State::from_number(next).unwrap_or(state);
                    assert_eq!(
                        transition(direction, *event, state),
                        next,
                        "{direction:?} {event:?} {state:?}"
                    );
                }
            }
        }
    }

    #[test]
    fn timeouts_activity_and_sync() {
        let timeouts: Vec<_> = states().map(State::timeout).collect();
        assert_eq!(timeouts, [2, 4, 61, 61, 61, 61, 61, 61, 900, 61, 61, 61, 4, 61]);
        let active: Vec<_> = states().filter(|state| state.is_active()).collect();
        assert_eq!(active, [State::Established]);
        let synced: Vec<_> =
            states().filter(|state| state.is_sync_eligible()).map(|state| state as u8).collect();
        assert_eq!(synced, [8, 9, 10, 11, 13]);
    }
}
