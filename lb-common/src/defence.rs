//! The defences against floods: when they act, and how hard.
//!
//! IPVS judges once a second by the memory that is free. Tables of a fixed size do not run out of memory but of places, so
//! here the free places of the connection table are judged, in pages of memory too. `secure_tcp` acts in
//! [`crate::protocol::tcp`].
//! IPVS counterpart: `update_defense_level` in `ip_vs_ctl.c`, `ip_vs_random_dropentry` in `ip_vs_conn.c`.

use crate::connection::{Entry, Set, TEMPLATE, WAYS, packets};
use crate::protocol::{Protocol, sctp, state, tcp};

/// Places for entries that a page of memory (4,096 bytes) of the connection table has.
const PER_PAGE: u32 = 4096 / size_of::<Set>() as u32 * WAYS as u32;

/// At most this part of the table counts as a reserve, however many pages are asked for: one in so many places.
const RESERVE: u32 = 8;

/// The defence is off.
pub const OFF: u32 = 0;
/// The defence acts while places are scarce, and they are not.
pub const IDLE: u32 = 1;
/// The defence acts while places are scarce, and they are.
pub const ACTIVE: u32 = 2;
/// The defence acts.
pub const ALWAYS: u32 = 3;

/// How full the connection table is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fill {
    /// Places that have an entry.
    pub occupied: u32,
    /// Sets of [`WAYS`] places.
    pub sets: u32,
}

impl Fill {
    /// Places in the table.
    const fn places(self) -> u32 {
        self.sets.wrapping_mul(WAYS as u32)
    }

    /// Places that are free.
    const fn free(self) -> u32 {
        self.places().saturating_sub(self.occupied)
    }

    /// With fewer free places than this they are scarce; `pages` is the sysctl `amemthresh`.
    const fn threshold(self, pages: u32) -> u32 {
        let (asked, reserve) = (pages.saturating_mul(PER_PAGE), self.places() / RESERVE);
        if asked < reserve { asked } else { reserve }
    }

    /// Whether places are scarce.
    #[inline(always)]
    pub const fn is_scarce(self, pages: u32) -> bool {
        self.free() < self.threshold(pages)
    }

    /// One of how many new connections is refused by itself: of the fewer the fewer places are free, and 0, which
    /// is none, while they are not scarce.
    #[inline(always)]
    pub const fn drop_rate(self, pages: u32) -> u32 {
        let (threshold, free) = (self.threshold(pages), self.free());
        if free < threshold { threshold / (threshold - free) } else { 0 }
    }
}

/// Whether a defence in this mode acts.
#[inline(always)]
pub const fn acts(mode: u32, scarce: bool) -> bool {
    match mode {
        OFF => false,
        IDLE | ACTIVE => scarce,
        _ => true,
    }
}

/// The mode as the sysctl shows it: of [`IDLE`] and [`ACTIVE`], whichever was set, that which is so now.
pub const fn shown(mode: u32, scarce: bool) -> u32 {
    match mode {
        IDLE | ACTIVE if scarce => ACTIVE,
        IDLE | ACTIVE => IDLE,
        other => other,
    }
}

/// One of how many new connections `drop_packet` refuses; 0 is none. `always` is the sysctl `am_droprate`.
#[inline(always)]
pub const fn drop_rate(mode: u32, always: u32, fill: Fill, pages: u32) -> u32 {
    match mode {
        OFF => 0,
        IDLE | ACTIVE => fill.drop_rate(pages),
        _ if always == 0 => 1,
        _ => always,
    }
}

/// The part of the table that `drop_entry` comes by in a second: one in so many of its sets, drawn anew each time.
pub const SHARE: u32 = 32;

/// Seconds without a packet after which `drop_entry` may end a connection that is established.
pub const IDLE_FOR: u32 = 60;

/// Most packets that such a connection can have had.
const FEW_PACKETS: u8 = 8;

/// Whether an entry falls that `drop_entry` comes by: one that is half-open, or a template that nothing has confirmed and that
/// controls nothing; and of connections that few packets came for and none for `idle` seconds one in so many as there
/// came.
///
/// `random` is a random number, `once` whether the template's service does one-packet scheduling: then IPVS goes by the
/// template's packets, and there are none.
#[doc(alias = "todrop_entry")]
#[inline(always)]
pub const fn falls(entry: &Entry, idle: u32, once: bool, random: u32) -> bool {
    const SCTP_ESTABLISHED: u8 = state::SCTP + sctp::State::Established as u8;
    if entry.role == TEMPLATE {
        return !once && entry.state != state::ASSURED && entry.controls() == 0;
    }
    let transport = entry.tuple().transport();
    let (tcp, sctp) = (transport == Protocol::Tcp.number(), transport == Protocol::Sctp.number());
    let half_open = [tcp::State::SynRecv as u8, tcp::State::SynAck as u8];
    if tcp && (entry.state == half_open[0] || entry.state == half_open[1]) {
        return true;
    }
    let half_open = [state::SCTP + sctp::State::Init1 as u8, state::SCTP + sctp::State::Init as u8];
    if sctp && (entry.state == half_open[0] || entry.state == half_open[1]) {
        return true;
    }
    if tcp && entry.state != tcp::State::Established as u8 || sctp && entry.state != SCTP_ESTABLISHED {
        return false;
    }
    let packets = packets(entry.flags);
    idle >= IDLE_FOR && packets != 0 && packets <= FEW_PACKETS && random.is_multiple_of(packets as u32)
}

/// For how many ticks no packet has come, of a connection whose state lasts `timeout` ticks.
#[inline(always)]
pub const fn idle(deadline: u32, timeout: u32, now: u32) -> u32 {
    timeout.saturating_sub(deadline.wrapping_sub(now))
}

#[cfg(test)]
mod tests {
    use std::vec::Vec;

    use zerocopy::FromZeros;

    use super::*;
    use crate::connection::CONTROLS;

    /// The table that a director has unless told otherwise, with so many of its 458,752 places free.
    const fn usual(free: u32) -> Fill {
        Fill { occupied: (1 << 16) * 7 - free, sets: 1 << 16 }
    }

    #[test]
    fn pages_are_places() {
        // 1,024 pages, IPVS's default, are 4 MiB: of the usual table an eighth.
        assert!(!usual(57_344).is_scarce(1024) && usual(57_343).is_scarce(1024));
        assert!(!usual(560).is_scarce(10) && usual(559).is_scarce(10));
        assert!(!usual(0).is_scarce(0));
    }

    #[test]
    fn a_small_table_keeps_an_eighth() {
        let fill = |occupied| Fill { occupied, sets: 64 };
        assert!(!fill(392).is_scarce(1024) && fill(393).is_scarce(1024));
        assert!(!fill(392).is_scarce(u32::MAX) && fill(393).is_scarce(u32::MAX));
        // More than there are, counted while entries moved.
        assert!(fill(500).is_scarce(1024));
    }

    #[test]
    fn the_fewer_places_the_more_is_refused() {
        // amemthresh / (amemthresh - free), as IPVS has it of memory.
        let rates = [57_344, 57_343, 50_000, 40_000, 28_672, 100, 0].map(|free| usual(free).drop_rate(1024));
        assert_eq!(rates, [0, 57_344, 7, 3, 2, 1, 1]);
    }

    #[test]
    fn modes() {
        let of = |mode| [false, true].map(|scarce| (acts(mode, scarce), shown(mode, scarce)));
        assert_eq!(of(OFF), [(false, 0), (false, 0)]);
        assert_eq!(of(IDLE), [(false, 1), (true, 2)]);
        assert_eq!(of(ACTIVE), [(false, 1), (true, 2)]);
        assert_eq!(of(ALWAYS), [(true, 3), (true, 3)]);
    }

    #[test]
    fn drop_packet_goes_by_its_mode() {
        let rate = |mode, always, free| drop_rate(mode, always, usual(free), 1024);
        assert_eq!([rate(0, 10, 0), rate(1, 10, 0), rate(2, 10, 28_672), rate(3, 10, 0)], [0, 1, 2, 10]);
        assert_eq!([rate(1, 10, 60_000), rate(2, 10, 60_000), rate(3, 0, 60_000)], [0, 0, 1]);
    }

    /// The states of a protocol in which a connection falls by a random 0.
    fn falling(
        protocol: Protocol,
        packets: u8,
        idle: u32,
        states: core::ops::Range<u8>,
    ) -> Vec<&'static str> {
        let entry =
            |state| Entry { protocol: protocol.number(), state, flags: packets << 4, ..Entry::new_zeroed() };
        states.filter(|state| falls(&entry(*state), idle, false, 0)).map(state::name).collect()
    }

    #[test]
    fn half_open_connections_fall() {
        let sctp = state::SCTP..state::SCTP + 14;
        assert_eq!(falling(Protocol::Tcp, 1, 0, 0..11), ["SYN_RECV", "SYNACK"]);
        assert_eq!(falling(Protocol::Tcp, 15, 900, 0..11), ["SYN_RECV", "SYNACK"]);
        assert_eq!(falling(Protocol::Sctp, 1, 59, sctp), ["INIT1", "INIT"]);
        assert_eq!(falling(Protocol::Udp, 1, 59, state::UDP..state::UDP + 1), [""; 0]);
    }

    #[test]
    fn others_fall_if_idle_and_of_few_packets() {
        let sctp = state::SCTP..state::SCTP + 14;
        assert_eq!(falling(Protocol::Tcp, 8, 60, 0..11), ["ESTABLISHED", "SYN_RECV", "SYNACK"]);
        assert_eq!(falling(Protocol::Sctp, 8, 60, sctp), ["INIT1", "INIT", "ESTABLISHED"]);
        assert_eq!(falling(Protocol::Udp, 1, 60, state::UDP..state::UDP + 1), ["UDP"]);
        for packets in [0, 9, 15] {
            assert_eq!(falling(Protocol::Udp, packets, 60, state::UDP..state::UDP + 1), [""; 0]);
        }
        let entry = Entry { protocol: 17, state: state::UDP, flags: 3 << 4, ..Entry::new_zeroed() };
        let turns: Vec<u32> = (0..7).filter(|random| falls(&entry, 60, false, *random)).collect();
        assert_eq!(turns, [0, 3, 6]);
    }

    #[test]
    fn templates_fall_that_are_good_for_nothing() {
        let template = Entry { role: TEMPLATE, protocol: !6, ..Entry::new_zeroed() };
        assert!(falls(&template, 0, false, 1) && !falls(&template, 0, true, 0));
        assert!(!falls(&Entry { state: state::ASSURED, ..template }, 900, false, 0));
        let mut controls = template;
        controls.link[CONTROLS] = 1;
        assert!(!falls(&controls, 900, false, 0));
    }

    #[test]
    fn idle_is_what_the_deadline_lacks() {
        assert_eq!(idle(1900, 900, 1000), 0);
        assert_eq!(idle(1900, 900, 1060), 60);
        assert_eq!(idle(20, 900, u32::MAX - 79), 800);
        // Moved on by a longer timeout that there was before.
        assert_eq!(idle(1900, 300, 1000), 0);
    }
}
