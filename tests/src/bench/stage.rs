//! Noting what packets took, and running single ones to see that a program answers them rightly.

use anyhow::{Context, Result, ensure};
use aya::programs::{TestRun, TestRunOptions, Xdp};

use super::feeder::Batches;
use super::frame::{Frame, bytes};
use super::{Measured, Unit};

/// `XDP_PASS`.
pub const PASS: u32 = 2;
/// `XDP_REDIRECT`.
pub const REDIRECT: u32 = 4;

/// What was measured so far, and what the bare program took in this round.
#[derive(Debug, Default)]
pub struct Record {
    /// All of it.
    pub measured: Measured,
    /// Mean nanoseconds of the bare program, for each number of frames that took turns.
    bare: Vec<(u32, f64)>,
}

impl Record {
    /// Notes a round of the bare program, which the others of the round with as many flows are above.
    pub fn note_bare(&mut self, name: &str, flows: u32, batches: &Batches) {
        self.bare.retain(|(of, _)| *of != flows);
        self.measured.note(name, flows, Unit::Nanoseconds, batches.mean());
        self.bare.push((flows, batches.mean()));
    }

    /// Notes what a round took above the bare program.
    pub fn note(&mut self, name: &str, flows: u32, batches: &Batches) -> Result<()> {
        let figure = self.above_bare(flows, batches).with_context(|| name.to_owned())?;
        self.measured.note(name, flows, Unit::Nanoseconds, figure);
        Ok(())
    }

    /// What a packet took above the bare program in this round, in nanoseconds.
    pub fn above_bare(&self, flows: u32, batches: &Batches) -> Result<f64> {
        let bare = self.bare.iter().find(|(of, _)| *of == flows);
        let (_, bare) = bare.with_context(|| format!("no bare round of {flows} flows"))?;
        Ok(batches.mean() - bare)
    }
}

/// What a program is told of a frame that comes in at an interface (`struct xdp_md`).
#[must_use]
pub fn incoming(interface: u32, frame: &Frame) -> [u8; 24] {
    let mut context = [0; 24];
    context[4..8].copy_from_slice(&(bytes(frame).len() as u32).to_ne_bytes());
    context[12..16].copy_from_slice(&interface.to_ne_bytes());
    context
}

/// Runs a frame through a program as if it came in at an interface: what the program answers.
pub fn run(program: &Xdp, interface: u32, frame: &Frame, out: Option<&mut Frame>) -> Result<u32> {
    let context = incoming(interface, frame);
    let mut options = TestRunOptions::new();
    options.data_in = Some(bytes(frame));
    options.data_out = out.map(|out| out.as_mut_slice());
    options.ctx_in = Some(&context);
    Ok(program.test_run(options).context("running a packet through a program")?.return_value)
}

/// Frames that take turns in one program, all of which it must answer alike.
#[derive(Clone, Copy)]
pub struct Turns<'a> {
    /// The program.
    pub program: &'a Xdp,
    /// Where they come in.
    pub interface: u32,
    /// Them.
    pub frames: &'a [Frame],
    /// The right answer.
    pub action: u32,
}

impl Turns<'_> {
    /// Runs every frame once by itself and checks the answer.
    pub fn check(&self) -> Result<()> {
        for (number, frame) in self.frames.iter().enumerate() {
            let (action, wanted) = (run(self.program, self.interface, frame, None)?, self.action);
            ensure!(action == wanted, "packet {number}: the program answers {action}, not {wanted}");
        }
        Ok(())
    }
}
