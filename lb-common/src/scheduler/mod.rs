//! The schedulers: which destination gets a new connection.
//!
//! Most are a [`Search`] over a service's destinations; `sh`, `dh` and `mh` look into a table that user
//! space fills when the set changes, `lblc` and `lblcr` into a cache that they fill themselves. A scheduler knows nothing of maps, packets or persistence.
//! IPVS counterpart: `ip_vs_sched.c` and one `ip_vs_<name>.c` a scheduler.

use core::fmt;
use core::str::FromStr;

pub mod address;
pub mod cache;
pub mod dh;
pub mod fo;
pub mod lblc;
pub mod lblcr;
pub mod lc;
pub mod mh;
pub mod nq;
pub mod overload;
pub mod ovf;
pub mod rr;
mod search;
pub mod sed;
pub mod sh;
#[cfg(test)]
mod simulation;
pub mod tree;
pub mod twos;
pub mod wlc;
pub mod wrr;

pub use search::{Best, Candidate, Cursor, MAX_PASSES, Rule, Search, run};

/// A scheduler that IPVS has, by its module's name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Scheduler {
    /// `none`: new connections find no destination.
    None = 0,
    /// Round robin.
    RoundRobin = 1,
    /// Weighted round robin.
    WeightedRoundRobin = 2,
    /// Least connections.
    LeastConnections = 3,
    /// Weighted least connections, ipvsadm's default.
    WeightedLeastConnections = 4,
    /// Locality-based least connections.
    LocalityLeastConnections = 5,
    /// Locality-based least connections with replication.
    LocalityLeastConnectionsReplicated = 6,
    /// Destination hashing.
    DestinationHash = 7,
    /// Source hashing.
    SourceHash = 8,
    /// Shortest expected delay.
    ShortestExpectedDelay = 9,
    /// Never queue.
    NeverQueue = 10,
    /// Weighted fail-over.
    WeightedFailOver = 11,
    /// Weighted overflow.
    WeightedOverflow = 12,
    /// Maglev hashing.
    Maglev = 13,
    /// Power of two choices.
    TwoChoices = 14,
}

impl Scheduler {
    /// Every scheduler with the name that `-s` takes.
    pub const NAMES: [(Self, &'static str); 15] = [
        (Self::None, "none"),
        (Self::RoundRobin, "rr"),
        (Self::WeightedRoundRobin, "wrr"),
        (Self::LeastConnections, "lc"),
        (Self::WeightedLeastConnections, "wlc"),
        (Self::LocalityLeastConnections, "lblc"),
        (Self::LocalityLeastConnectionsReplicated, "lblcr"),
        (Self::DestinationHash, "dh"),
        (Self::SourceHash, "sh"),
        (Self::ShortestExpectedDelay, "sed"),
        (Self::NeverQueue, "nq"),
        (Self::WeightedFailOver, "fo"),
        (Self::WeightedOverflow, "ovf"),
        (Self::Maglev, "mh"),
        (Self::TwoChoices, "twos"),
    ];

    /// The scheduler with this number, the reverse of `as u8`.
    pub const fn from_number(number: u8) -> Option<Self> {
        if (number as usize) < Self::NAMES.len() { Some(Self::NAMES[number as usize].0) } else { None }
    }

    /// The name that `-s` takes and listings print.
    pub const fn name(self) -> &'static str {
        Self::NAMES[self as usize].1
    }
}

impl fmt::Display for Scheduler {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// The text is not the name of a scheduler.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UnknownScheduler;

impl FromStr for Scheduler {
    type Err = UnknownScheduler;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::NAMES.iter().find(|(_, name)| *name == text).map(|(kind, _)| *kind).ok_or(UnknownScheduler)
    }
}
