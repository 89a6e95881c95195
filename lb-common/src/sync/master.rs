//! What a master tells its backups of, and when.
//!
//! IPVS decides with each packet of a client. Here nothing is decided in a packet's way: about once a second somebody looks
//! at every connection and asks this. A connection that is not told again ends in the backup when its time is over; so it
//! is told when it is first seen, when its state has changed, and when it will live long enough beyond what the backup
//! knows. IPVS counterpart: `ip_vs_sync_conn_needed`.

use crate::connection::{CLIENT_SIDE, Entry, SYNCED, TEMPLATE, TIMEOUT};
use crate::protocol::{Protocol, sctp, state, tcp};

/// Seconds by which a connection that lives long is told late at most, unless half its timeout is more.
#[doc(alias = "ip_vs_sync_conn_needed")]
const STEP: u32 = 10;
/// Seconds: what a backup will forget in that time it is told of in time.
const LEAST: u32 = 2;

/// How a master is set, by IPVS's sysctls; times in ticks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rules {
    /// A connection's end has to move by so much before it is told again; 0 leaves it to its timeout.
    #[doc(alias = "sync_refresh_period")]
    pub refresh_period: u32,
    /// How often a connection is told again that did not change, each an eighth of the refresh period later.
    #[doc(alias = "sync_retries")]
    pub retries: u32,
    /// Of what a template controls only the template is told.
    #[doc(alias = "sync_persist_mode")]
    pub templates_alone: bool,
    /// Ticks in a second.
    pub ticks_per_second: u32,
}

/// What was last told of a connection or template.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Told {
    /// When, as a tick.
    pub at: u32,
    /// The tick at which a backup that heard it forgets it.
    pub until: u32,
    /// The state.
    pub state: u8,
    /// How often it was told again without a change.
    pub again: u8,
}

impl Told {
    /// What is known once an entry was told, which it was before if there is something in `before`.
    pub fn of(entry: &Entry, deadline: u32, now: u32, before: Option<&Self>) -> Self {
        let until = now.wrapping_add(lifetime(entry, deadline, now));
        let repeats = |before: &&Self| before.state == entry.state && ahead(until, before.until) <= 0;
        let again = before.filter(repeats).map_or(0, |before| before.again.saturating_add(1));
        Self { at: now, until, state: entry.state, again }
    }
}

/// Ticks that a backup keeps what it is told of now: what a connection has left; for a template its whole timeout, as that is
/// also what each new connection gives it.
pub fn lifetime(entry: &Entry, deadline: u32, now: u32) -> u32 {
    if entry.role == TEMPLATE { entry.link[TIMEOUT] } else { ahead(deadline, now).max(0) as u32 }
}

/// How far a tick is ahead of another.
const fn ahead(tick: u32, of: u32) -> i32 {
    tick.wrapping_sub(of) as i32
}

/// Whether an entry is one of this director's own: not what a backup daemon was told of, with no packet since. A template
/// is own if a connection is that it controls.
pub fn is_own(entry: &Entry, now: u32) -> bool {
    entry.role == CLIENT_SIDE && (entry.flags & SYNCED == 0 || has_seen_packets(entry, now))
}

/// Whether a packet of the client has come by since the entry was made or told of anew: its next hop was looked up then.
const fn has_seen_packets(entry: &Entry, now: u32) -> bool {
    ahead(entry.hop_until, now) > -(u32::MAX as i64 / 8) as i32
}

/// Whether a backup is told of an entry in this state at all: not of what is not established, which it could not go on with.
#[doc(alias = "ip_vs_sync_conn_needed")]
pub fn is_told(entry: &Entry) -> bool {
    if entry.role == TEMPLATE {
        return true;
    }
    match Protocol::from_number(entry.tuple().transport()) {
        Some(Protocol::Tcp) => {
            use tcp::State as S;
            matches!(
                S::from_number(entry.state),
                Some(S::Established | S::FinWait | S::TimeWait | S::Close | S::CloseWait)
            )
        }
        Some(Protocol::Sctp) => {
            use sctp::State as S;
            let state = S::from_number(entry.state.wrapping_sub(state::SCTP));
            matches!(
                state,
                Some(S::Established | S::ShutdownSent | S::ShutdownReceived | S::ShutdownAckSent | S::Closed)
            )
        }
        Some(Protocol::Udp) => true,
        None => false,
    }
}

/// Whether an own entry of which a backup is told at all has to be told now.
pub fn is_due(entry: &Entry, deadline: u32, now: u32, told: Option<&Told>, rules: &Rules) -> bool {
    if rules.templates_alone && entry.template != 0 {
        return false;
    }
    let Some(told) = told else { return true };
    if told.state != entry.state {
        return true;
    }
    let period = rules.refresh_period;
    if period != 0 && u32::from(told.again) < rules.retries && ahead(now, told.at) >= (period / 8) as i32 {
        return true;
    }
    let moved = ahead(deadline, told.until);
    let is_held = entry.role == TEMPLATE && entry.controls() != 0;
    if moved <= 0 && !is_held {
        return false;
    }
    let seconds = |count: u32| (count * rules.ticks_per_second) as i32;
    let half = (lifetime(entry, deadline, now) / 2) as i32;
    let by_timeout = half.max(seconds(STEP));
    let step = if period == 0 { by_timeout } else { by_timeout.min(period as i32) };
    moved >= step || ahead(told.until, now) <= half.min(seconds(STEP)).max(seconds(LEAST))
}

#[cfg(test)]
mod tests {
    use zerocopy::FromZeros;

    use super::*;
    use crate::connection::{CONTROLS, SERVER_SIDE, no_hop};

    const HZ: u32 = 250;
    const RULES: Rules =
        Rules { refresh_period: 0, retries: 0, templates_alone: false, ticks_per_second: HZ };

    fn entry(protocol: u8, state: u8) -> Entry {
        Entry { protocol, state, ..Entry::new_zeroed() }
    }

    fn template(timeout: u32, controls: u32) -> Entry {
        let mut entry = Entry { role: TEMPLATE, ..entry(!6, state::ASSURED) };
        (entry.link[TIMEOUT], entry.link[CONTROLS]) = (timeout * HZ, controls);
        entry
    }

    /// The seconds in which a connection is told that has a packet a second, and in its state this timeout.
    fn when_busy(timeout: u32, until: u32, rules: &Rules) -> std::vec::Vec<u32> {
        let entry = entry(6, 1);
        let mut told = None;
        // Close to where ticks wrap.
        let start = u32::MAX - 5 * HZ;
        let mut tells = |second: &u32| {
            let now = start.wrapping_add(second * HZ);
            let deadline = now.wrapping_add(timeout * HZ);
            let due = is_due(&entry, deadline, now, told.as_ref(), rules);
            if due {
                told = Some(Told::of(&entry, deadline, now, told.as_ref()));
            }
            due
        };
        (0..until).filter(|second| tells(second)).collect()
    }

    #[test]
    fn a_busy_connection_is_told_again_when_the_backup_has_half_its_time_left() {
        assert_eq!(when_busy(900, 1000, &RULES), [0, 450, 900]);
        assert_eq!(when_busy(120, 200, &RULES), [0, 60, 120, 180]);
    }

    #[test]
    fn the_refresh_period_shortens_that_and_retries_repeat() {
        let rules = Rules { refresh_period: 80 * HZ, ..RULES };
        assert_eq!(when_busy(900, 200, &rules), [0, 80, 160]);
        let entry = entry(6, 1);
        let rules = Rules { retries: 2, ..rules };
        let deadline = 900 * HZ;
        let mut told: Option<Told> = None;
        let mut at = std::vec::Vec::new();
        // No packet comes after the first.
        for second in 0..200 {
            let now = second * HZ;
            if is_due(&entry, deadline, now, told.as_ref(), &rules) {
                at.push(second);
                told = Some(Told::of(&entry, deadline, now, told.as_ref()));
            }
        }
        assert_eq!(at, [0, 10, 20]);
    }

    #[test]
    fn what_ends_soon_in_the_backup_is_told_in_time() {
        for timeout in 1..60 {
            let told = when_busy(timeout, 300, &RULES);
            let longest = told.windows(2).map(|pair| pair[1] - pair[0]).max().unwrap();
            assert!(longest < timeout.max(2), "{timeout}: {told:?}");
        }
    }

    #[test]
    fn a_change_of_state_is_told_at_once_and_silence_never() {
        let told = Told { at: 0, until: 900 * HZ, state: 1, again: 0 };
        let closed = entry(6, tcp::State::FinWait as u8);
        assert!(is_due(&closed, 120 * HZ, HZ, Some(&told), &RULES));
        assert!(!is_due(&entry(6, 1), 900 * HZ, 899 * HZ, Some(&told), &RULES));
    }

    #[test]
    fn which_states_are_told() {
        let told = |protocol, states: core::ops::Range<u8>| {
            states.filter(|state| is_told(&entry(protocol, *state))).collect::<std::vec::Vec<_>>()
        };
        assert_eq!(told(6, 0..16), [1, 4, 5, 6, 7]);
        assert_eq!(told(17, 16..17), [16]);
        let names = told(132, 32..46).into_iter().map(state::name).collect::<std::vec::Vec<_>>();
        assert_eq!(names, ["ESTABLISHED", "S-SENT", "S-RECEIVED", "S-ACK-SENT", "CLOSED"]);
        assert!(!is_told(&entry(50, 0)) && is_told(&template(300, 0)));
    }

    #[test]
    fn templates_alone_are_told_of_what_they_control() {
        let rules = Rules { templates_alone: true, ..RULES };
        let controlled = Entry { template: 9, ..entry(6, 1) };
        assert!(!is_due(&controlled, 900, 0, None, &rules) && is_due(&controlled, 900, 0, None, &RULES));
        assert!(is_due(&entry(6, 1), 900, 0, None, &rules) && is_due(&template(9, 1), 900, 0, None, &rules));
    }

    #[test]
    fn a_template_that_is_held_does_not_end_in_the_backup() {
        let (held, idle) = (template(60, 1), template(60, 0));
        let told = Told { at: 0, until: 60 * HZ, state: state::ASSURED, again: 0 };
        let due = |entry, second: u32| is_due(entry, 60 * HZ, second * HZ, Some(&told), &RULES);
        assert!(!due(&held, 49) && due(&held, 50) && !due(&idle, 59));
        assert_eq!(Told::of(&held, 60 * HZ, 50 * HZ, Some(&told)).until, 110 * HZ);
    }

    #[test]
    fn what_was_told_by_others_is_theirs_until_a_packet_comes() {
        let now = 5;
        let told = Entry { flags: SYNCED, hop_until: no_hop(now), ..entry(6, 1) };
        assert!(!is_own(&told, now) && is_own(&Entry { flags: 0, ..told }, now));
        assert!(!is_own(&told, now.wrapping_add(86_400 * HZ)));
        assert!(is_own(&Entry { hop_until: now + HZ, ..told }, now));
        assert!(!is_own(&Entry { role: SERVER_SIDE, flags: 0, ..told }, now));
    }
}
