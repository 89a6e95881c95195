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
const FEWEST: usize = 16_000;
/// Fewest runs before those: caches that were somebody else's fill slowly between so many system calls.
const WARMING: usize = 4000;
/// A run of so many nanoseconds was interrupted: no packet takes a tenth of it.
const INTERRUPTED: u32 = 20_000;
/// Of so many runs one may be interrupted, or the machine is too busy to measure anything.
const QUIET: u64 = 100;

/// What runs took together.
#[derive(Debug, Clone, Copy, Default)]
pub struct Sum {
    nanoseconds: u64,
    runs: u64,
    interrupted: u64,
}

impl Sum {
    fn add(&mut self, other: Self) {
        self.nanoseconds += other.nanoseconds;
        self.runs += other.runs;
        self.interrupted += other.interrupted;
    }

    /// The mean of the runs that were not interrupted, in nanoseconds.
    fn mean(&self) -> f64 {
        self.nanoseconds as f64 / self.runs.max(1) as f64
    }
}

/// What was measured so far, and what the bare program took in this round.
#[derive(Debug, Default)]
pub struct Record {
    /// All of it.
    pub measured: Measured,
    /// Mean nanoseconds of the bare program.
    bare: f64,
}

impl Record {
    /// Notes a round of the bare program, which the others of the round are above.
    pub fn note_bare(&mut self, name: &str, sum: Sum) -> Result<()> {
        self.bare = 0.0;
        self.note(name, 1, sum)?;
        self.bare = sum.mean();
        Ok(())
    }

    /// Notes what a round took above the bare program.
    pub fn note(&mut self, name: &str, flows: u32, sum: Sum) -> Result<()> {
        let Sum { runs, interrupted, .. } = sum;
        ensure!(interrupted <= runs / QUIET, "{name}: {interrupted} of {runs} runs were interrupted");
        self.measured.runs += runs;
        self.measured.interrupted += interrupted;
        let nanoseconds = sum.mean() - self.bare;
        let rows = &mut self.measured.rows;
        match rows.iter_mut().find(|row| row.name == name && row.flows == flows) {
            Some(row) => row.rounds.push(nanoseconds),
            None => rows.push(Row { name: name.into(), flows, rounds: vec![nanoseconds] }),
        }
        Ok(())
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
    /// Runs every frame once; `each` is called before every run, with its number.
    pub fn once(&self, mut each: impl FnMut(usize)) -> Result<Sum> {
        let mut sum = Sum::default();
        for (number, frame) in self.frames.iter().enumerate() {
            each(number);
            let (action, nanoseconds) = run(self.program, self.interface, frame, None)?;
            let wanted = self.action;
            ensure!(action == wanted, "packet {number}: the program answers {action}, not {wanted}");
            sum.add(match nanoseconds {
                INTERRUPTED.. => Sum { interrupted: 1, ..Sum::default() },
                _ => Sum { nanoseconds: nanoseconds.into(), runs: 1, interrupted: 0 },
            });
        }
        Ok(sum)
    }

    /// Runs all frames so often; `before` is called before each pass.
    pub fn passes(&self, passes: usize, mut before: impl FnMut()) -> Result<Sum> {
        let mut sum = Sum::default();
        for _ in 0..passes {
            before();
            sum.add(self.once(|_| {})?);
        }
        Ok(sum)
    }

    /// Runs all frames until there were enough runs, after as many as fill the caches.
    pub fn enough(&self) -> Result<Sum> {
        self.passes(WARMING.div_ceil(self.frames.len()), || {})?;
        self.passes(FEWEST.div_ceil(self.frames.len()), || {})
    }
}
