//! What a packet costs: measured through `BPF_PROG_TEST_RUN`, beside yardsticks of the same run.
//!
//! [`figure`] and [`budget`] are arithmetic on what was measured and are always there. The measuring needs the
//! loaded program and is built with the feature `bench` alone, as the program `measure`, which `cargo xtask bench`
//! runs: the chores themselves must not carry the packet program that they build.

pub mod budget;
#[cfg(feature = "bench")]
pub mod connections;
#[cfg(feature = "bench")]
pub mod feeder;
pub mod figure;
#[cfg(feature = "bench")]
pub mod frame;
#[cfg(feature = "bench")]
pub mod growth;
#[cfg(feature = "bench")]
pub mod known;
#[cfg(feature = "bench")]
pub mod new;
#[cfg(feature = "bench")]
pub mod path;
#[cfg(feature = "bench")]
pub mod stage;
#[cfg(feature = "bench")]
pub mod topology;
#[cfg(feature = "bench")]
pub mod world;
#[cfg(feature = "bench")]
pub mod yardstick;

use serde::{Deserialize, Serialize};

/// What was measured.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Measured {
    /// Nanoseconds, a row a step.
    pub rows: Vec<Row>,
    /// The programs, in their order on a packet's way.
    pub programs: Vec<Program>,
}

impl Measured {
    /// Adds what another run measured; of what both did, such as yardsticks, the rounds are put together.
    pub fn join(&mut self, other: Self) {
        for row in other.rows {
            row.rounds.iter().for_each(|figure| self.note(&row.name, row.size, row.unit, *figure));
        }
        self.programs.extend(other.programs);
    }

    /// The median of a row's rounds, if there is such a row.
    pub fn median(&self, name: &str, size: u32, unit: Unit) -> Option<f64> {
        let row = self.rows.iter().find(|row| row.name == name && row.size == size && row.unit == unit)?;
        figure::median(&row.rounds)
    }

    /// Notes a round's figure.
    pub fn note(&mut self, name: &str, size: u32, unit: Unit, figure: f64) {
        match self.rows.iter_mut().find(|row| row.name == name && row.size == size && row.unit == unit) {
            Some(row) => row.rounds.push(figure),
            None => self.rows.push(Row { name: name.into(), size, unit, rounds: vec![figure] }),
        }
    }
}

/// What one kind of packet costs.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Row {
    /// What was measured.
    pub name: String,
    /// How many there were: flows that took turns, or what the row's name says.
    pub size: u32,
    /// What the figures count.
    pub unit: Unit,
    /// The figure of each round.
    pub rounds: Vec<f64>,
}

/// What a figure counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Unit {
    /// Nanoseconds a packet in the program, above the bare program but for [`figure::BARE`] itself.
    Nanoseconds,
    /// Instructions a packet on its whole way, the kernel's and the programs', from sending it to counting it.
    Instructions,
    /// Nanoseconds of one CPU for a packet on its whole way.
    CpuNanoseconds,
    /// Packets that arrived in a second.
    PacketsPerSecond,
    /// TCP connections, each with a question and its answer, in a second.
    ConnectionsPerSecond,
    /// Microseconds.
    Microseconds,
    /// Bytes.
    Bytes,
    /// How often one figure has another of the same run in it.
    Times,
}

impl Unit {
    /// How it is called in the table.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Nanoseconds => "ns",
            Self::Instructions => "instructions",
            Self::CpuNanoseconds => "ns of CPU",
            Self::PacketsPerSecond => "packets/s",
            Self::ConnectionsPerSecond => "connects/s",
            Self::Microseconds => "µs",
            Self::Bytes => "bytes",
            Self::Times => "times",
        }
    }
}

/// What the verifier says of a program.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Program {
    /// Its name.
    pub name: String,
    /// Instructions that the verifier looked at, each as often as it was on its way.
    pub instructions: u32,
}
