//! What a packet costs: measured through `BPF_PROG_TEST_RUN`, beside yardsticks of the same run.
//!
//! [`figure`] and [`budget`] are arithmetic on what was measured and are always there. The measuring needs the
//! loaded program and is built with the feature `bench` alone, as the program `measure`, which `cargo xtask bench`
//! runs: the chores themselves must not carry the packet program that they build.

pub mod budget;
#[cfg(feature = "bench")]
pub mod feeder;
pub mod figure;
#[cfg(feature = "bench")]
pub mod frame;
#[cfg(feature = "bench")]
pub mod known;
#[cfg(feature = "bench")]
pub mod new;
#[cfg(feature = "bench")]
pub mod stage;
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
    /// Packets that the rows are means of.
    pub runs: u64,
}

/// What one kind of packet costs.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Row {
    /// What was measured.
    pub name: String,
    /// How many flows took turns.
    pub flows: u32,
    /// Mean nanoseconds a packet above the bare program, for each round; of [`figure::BARE`], in all.
    pub rounds: Vec<f64>,
}

/// What the verifier says of a program.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Program {
    /// Its name.
    pub name: String,
    /// Instructions that the verifier looked at, each as often as it was on its way.
    pub instructions: u32,
}
