//! Running frames through a program, one kernel run a frame, and noting what it took.

use anyhow::{Context, Result, ensure};
use aya::programs::{TestRun, TestRunOptions, Xdp};

use super::frame::Frame;
use super::{Measured, Row};

/// `XDP_PASS`.
pub const PASS: u32 = 2;
/// `XDP_REDIRECT`.
pub const REDIRECT: u32 = 4;

/// Fewest runs that a mean is taken of.
const FEWEST: usize = 4000;

/// What was measured so far, and what the bare program took in this round.
#[derive(Debug, Default)]
pub struct Record {
    /// All of it.
    pub measured: Measured,
    /// Mean nanoseconds of the bare program.
    pub bare: f64,
}

impl Record {
    /// Notes a round's mean for a row.
    pub fn note(&mut self, name: &str, flows: u32, nanoseconds: f64) {
        let rows = &mut self.measured.rows;
        match rows.iter_mut().find(|row| row.name == name && row.flows == flows) {
            Some(row) => row.rounds.push(nanoseconds),
            None => rows.push(Row { name: name.into(), flows, rounds: vec![nanoseconds] }),
        }
    }

    /// Notes what a round took above the bare program.
    pub fn note_above(&mut self, name: &str, flows: u32, nanoseconds: f64) {
        self.note(name, flows, nanoseconds - self.bare);
    }
}

/// Runs a frame through a program as if it came in at an interface: what the program answers, and nanoseconds.
///
/// The kernel makes the packet anew for each run, and takes the time around the program alone.
pub fn run(program: &Xdp, interface: u32, frame: &Frame, out: Option<&mut Frame>) -> Result<(u32, u32)> {
    let mut context = [0; 24];
    context[4..8].copy_from_slice(&(frame.len() as u32).to_ne_bytes());
    context[12..16].copy_from_slice(&interface.to_ne_bytes());
    let mut options = TestRunOptions::new();
    options.data_in = Some(frame);
    options.data_out = out.map(|out| out.as_mut_slice());
    options.ctx_in = Some(&context);
    let result = program.test_run(options).context("running a packet through a program")?;
    Ok((result.return_value, result.duration.as_nanos() as u32))
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
    /// Runs every frame once and returns the mean in nanoseconds; `each` is called before every run, with its number.
    pub fn once(&self, mut each: impl FnMut(usize)) -> Result<f64> {
        let mut sum = 0u64;
        for (number, frame) in self.frames.iter().enumerate() {
            each(number);
            let (action, nanoseconds) = run(self.program, self.interface, frame, None)?;
            let wanted = self.action;
            ensure!(action == wanted, "packet {number}: the program answers {action}, not {wanted}");
            sum += u64::from(nanoseconds);
        }
        Ok(sum as f64 / self.frames.len() as f64)
    }

    /// Runs all frames until there were enough runs, and returns the mean in nanoseconds.
    pub fn enough(&self) -> Result<f64> {
        let passes = FEWEST.div_ceil(self.frames.len());
        let mut sum = 0.0;
        for _ in 0..passes {
            sum += self.once(|_| {})?;
        }
        Ok(sum / passes as f64)
    }
}
