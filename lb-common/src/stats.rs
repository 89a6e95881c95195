//! Rates: what a counter did a second, smoothed over the last few, as `--rate` shows it.
//!
//! Every two seconds an estimator takes the counters; each tick moves the rates a quarter of the way to
//! what was counted since the last one. So a constant rate shows as 25, 44, 58, 68, 76... per cent of itself.
//! Which counters, and when, is not decided here. IPVS counterpart: `ip_vs_est.c`.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::destination::Counters;

/// Seconds between two ticks.
pub const TICK_SECONDS: u64 = 2;

/// Turns in which the kernel side goes through all destinations within a tick, at 128 turns a second.
pub const TURNS: u32 = 256;

/// Binary digits after the point of an estimate, in connections or packets a second.
const COUNT_FRACTION: u32 = 10;
/// Binary digits after the point of an estimate, in bytes a second: fewer, lest it overflow.
const BYTE_FRACTION: u32 = 5;

/// Rates as they are shown, each a second.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Rates {
    /// Connections scheduled.
    #[doc(alias = "cps")]
    pub connections: u64,
    /// Packets from clients.
    #[doc(alias = "inpps")]
    pub in_packets: u64,
    /// Packets from servers.
    #[doc(alias = "outpps")]
    pub out_packets: u64,
    /// Bytes from clients.
    #[doc(alias = "inbps")]
    pub in_bytes: u64,
    /// Bytes from servers.
    #[doc(alias = "outbps")]
    pub out_bytes: u64,
}

/// What is kept from tick to tick.
#[doc(alias = "ip_vs_estimator")]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Estimator {
    last: Counters,
    connections: Estimate<COUNT_FRACTION>,
    in_packets: Estimate<COUNT_FRACTION>,
    out_packets: Estimate<COUNT_FRACTION>,
    in_bytes: Estimate<BYTE_FRACTION>,
    out_bytes: Estimate<BYTE_FRACTION>,
}

impl Rates {
    /// Adds the rates of another estimator.
    pub fn add(&mut self, other: &Self) {
        self.connections += other.connections;
        self.in_packets += other.in_packets;
        self.out_packets += other.out_packets;
        self.in_bytes += other.in_bytes;
        self.out_bytes += other.out_bytes;
    }
}

impl Estimator {
    /// An estimator that begins with these counters and rates of zero. Zeroing statistics starts over so.
    #[doc(alias = "ip_vs_zero_estimator")]
    #[must_use]
    pub fn new(counters: Counters) -> Self {
        Self { last: counters, ..Self::default() }
    }

    /// The estimator after a tick that finds these counters.
    #[doc(alias = "estimation_timer")]
    #[inline(always)]
    #[must_use]
    pub fn tick(self, counters: Counters) -> Self {
        let delta = counters.since(&self.last);
        Self {
            last: counters,
            connections: self.connections.tick(delta.connections),
            in_packets: self.in_packets.tick(delta.in_packets),
            out_packets: self.out_packets.tick(delta.out_packets),
            in_bytes: self.in_bytes.tick(delta.in_bytes),
            out_bytes: self.out_bytes.tick(delta.out_bytes),
        }
    }

    /// The counters at the last tick: what listings show, up to two seconds old.
    pub const fn snapshot(&self) -> Counters {
        self.last
    }

    /// The rates at the last tick.
    #[doc(alias = "ip_vs_read_estimator")]
    pub const fn rates(&self) -> Rates {
        Rates {
            connections: self.connections.shown(),
            in_packets: self.in_packets.shown(),
            out_packets: self.out_packets.shown(),
            in_bytes: self.in_bytes.shown(),
            out_bytes: self.out_bytes.shown(),
        }
    }
}

/// A smoothed rate a second with `FRACTION` binary digits after the point.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(transparent)]
pub struct Estimate<const FRACTION: u32>(u64);

impl<const FRACTION: u32> Estimate<FRACTION> {
    /// Moves a quarter of the way to the rate of `counted` in one tick.
    #[inline(always)]
    const fn tick(self, counted: u64) -> Self {
        let rate = counted.wrapping_mul((1 << FRACTION) / TICK_SECONDS);
        // An arithmetic shift: a falling rate rounds down too.
        let step = (rate as i64).wrapping_sub(self.0 as i64) >> 2;
        Self(self.0.wrapping_add(step as u64))
    }

    /// The rate, rounded to the nearest, a half down.
    const fn shown(self) -> u64 {
        self.0.wrapping_add((1 << (FRACTION - 1)) - 1) >> FRACTION
    }
}

#[cfg(test)]
mod tests {
    use std::vec::Vec;

    use super::*;

    /// Packet rates shown after each tick, by packets counted in each.
    fn packets(counted: &[u64]) -> Vec<u64> {
        let tick = |estimator: &mut Estimator, counted: &u64| {
            let in_packets = estimator.snapshot().in_packets + counted;
            *estimator = estimator.tick(Counters { in_packets, ..Counters::default() });
            Some(estimator.rates().in_packets)
        };
        counted.iter().scan(Estimator::default(), tick).collect()
    }

    fn bytes(counted: &[u64]) -> Vec<u64> {
        let tick = |estimator: &mut Estimator, counted: &u64| {
            let out_bytes = estimator.snapshot().out_bytes + counted;
            *estimator = estimator.tick(Counters { out_bytes, ..Counters::default() });
            Some(estimator.rates().out_bytes)
        };
        counted.iter().scan(Estimator::default(), tick).collect()
    }

    #[test]
    fn constant_rate_climbs_from_a_quarter() {
        assert_eq!(packets(&[200; 6]), [25, 44, 58, 68, 76, 82]);
        assert_eq!(bytes(&[200; 6]), [25, 44, 58, 68, 76, 82]);
    }

    #[test]
    fn observed_kernel_sequence() {
        // A sender of 100 packets a second that had a head start of a sixteenth of a tick, as observed.
        assert_eq!(packets(&[213, 200, 200, 200, 200, 200]), [27, 45, 59, 69, 77, 83]);
    }

    #[test]
    fn steady_state_is_the_rate_itself() {
        assert_eq!(packets(&[200; 60]).last(), Some(&100));
        assert_eq!(bytes(&[2_000_000_000; 90]).last(), Some(&1_000_000_000));
    }

    #[test]
    fn silence_decays_to_zero() {
        let mut counted = [0; 60];
        counted[0] = 8;
        let shown = packets(&counted);
        assert_eq!(shown[..4], [1, 1, 1, 0]);
        assert_eq!(shown.last(), Some(&0));
    }

    #[test]
    fn estimates_by_hand() {
        // 3 packets: 3 * 512 / 4 = 384 of 1024. Then nothing: 384 + (-384 >> 2) = 288.
        let first = Estimate::<COUNT_FRACTION>(0).tick(3);
        assert_eq!((first.0, first.shown()), (384, 0));
        assert_eq!(first.tick(0).0, 288);
        // An uneven step down: 5 + (-5 >> 2) = 5 - 2.
        assert_eq!(Estimate::<COUNT_FRACTION>(5).tick(0).0, 3);
        // 7 bytes: 7 * 16 / 4 = 28 of 32, which is nearest to 1.
        let first = Estimate::<BYTE_FRACTION>(0).tick(7);
        assert_eq!((first.0, first.shown()), (28, 1));
        // A half is shown as less.
        assert_eq!(
            (Estimate::<COUNT_FRACTION>(512).shown(), Estimate::<COUNT_FRACTION>(513).shown()),
            (0, 1)
        );
        assert_eq!((Estimate::<BYTE_FRACTION>(16).shown(), Estimate::<BYTE_FRACTION>(17).shown()), (0, 1));
    }

    #[test]
    fn starting_over_counts_from_there() {
        let counters = Counters { connections: 1000, ..Counters::default() };
        let estimator = Estimator::new(counters);
        assert_eq!(estimator.rates(), Rates::default());
        assert_eq!(estimator.snapshot(), counters);
        let later = Counters { connections: 1200, ..Counters::default() };
        assert_eq!(estimator.tick(later).rates().connections, 25);
    }
}
