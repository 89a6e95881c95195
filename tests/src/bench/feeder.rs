//! Feeding a program with frames from within the kernel: one system call, very many packets.
//!
//! The kernel's test run repeats a program on what that has left of the packet, and tells the mean time of a
//! repetition. So what it repeats is a program of ours that makes the next frame in the packet's place and tail-calls
//! the one that is measured: nothing but these two passes through the caches meanwhile, as in a driver's poll.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use aya::maps::{Array, ProgramArray};
use aya::programs::{TestRun, TestRunOptions, Xdp};
use aya::{Ebpf, EbpfLoader};

use super::frame::{Frame, bytes};
use super::stage::{Turns, incoming};

/// Runs in a batch, at least: so few that most batches are not interrupted.
const BATCH: usize = 1 << 14;
/// Runs in a batch, at most: far less than a second's worth, because the clock goes on meanwhile.
const STRETCH: usize = 1 << 16;
/// Batches that a figure is made of.
const BATCHES: usize = 12;

/// The feeding program, loaded.
pub struct Feeder(Ebpf);

/// What batches took, in nanoseconds a run.
#[derive(Debug, Clone, Default)]
pub struct Batches {
    /// Mean nanoseconds of each.
    pub means: Vec<f64>,
}

impl Batches {
    /// The mean of their middle half: interrupts and the kernel's cutting off of fractions leave it nearly as it is.
    #[must_use]
    pub fn mean(&self) -> f64 {
        let mut sorted = self.means.clone();
        sorted.sort_by(f64::total_cmp);
        let quarter = sorted.len() / 4;
        let middle = &sorted[quarter..sorted.len() - quarter];
        middle.iter().sum::<f64>() / middle.len() as f64
    }
}

impl Feeder {
    /// Loads it from the yardsticks' object file.
    pub fn load(object: &Path) -> Result<Self> {
        let object = std::fs::read(object).with_context(|| object.display().to_string())?;
        let mut loader = EbpfLoader::new();
        // These are the yardsticks'.
        loader.btf(None).map_max_entries("FLOWS", 1).map_max_entries("LINES", 1);
        let mut ebpf = loader.load(&object)?;
        let program: &mut Xdp = ebpf.program_mut("feed").context("no program feed")?.try_into()?;
        program.load()?;
        Ok(Self(ebpf))
    }

    /// Feeds all frames in turn, once unmeasured, then until there were enough runs; `before` is called before each batch.
    pub fn enough(&mut self, turns: Turns<'_>, mut before: impl FnMut()) -> Result<Batches> {
        let count = turns.frames.len();
        self.line_up(turns)?;
        // What is measured then was last touched as many frames ago as there are.
        let mut left = count;
        while left > 0 {
            before();
            let runs = left.min(STRETCH);
            self.batch(turns, runs)?;
            left -= runs;
        }
        let runs = (BATCH.div_ceil(count) * count).min(STRETCH);
        self.measure(turns, runs, BATCHES, before)
    }

    /// Feeds all frames once.
    pub fn once(&mut self, turns: Turns<'_>) -> Result<Batches> {
        self.batches(turns, 1, 1, || {})
    }

    /// Feeds all frames so often in each of so many batches; `before` is called before each of them.
    pub fn batches(
        &mut self,
        turns: Turns<'_>,
        passes: usize,
        batches: usize,
        before: impl FnMut(),
    ) -> Result<Batches> {
        self.line_up(turns)?;
        self.measure(turns, passes * turns.frames.len(), batches, before)
    }

    fn measure(
        &mut self,
        turns: Turns<'_>,
        runs: usize,
        batches: usize,
        mut before: impl FnMut(),
    ) -> Result<Batches> {
        let mut taken = Batches::default();
        for _ in 0..batches {
            before();
            taken.means.push(self.batch(turns, runs)?);
        }
        Ok(taken)
    }

    /// Feeds so many frames from where the last batch ended, and returns the mean nanoseconds of a run.
    fn batch(&self, turns: Turns<'_>, runs: usize) -> Result<f64> {
        let program: &Xdp = self.0.program("feed").context("no program feed")?.try_into()?;
        let context = incoming(turns.interface, &turns.frames[0]);
        let mut options = TestRunOptions::new();
        options.data_in = Some(bytes(&turns.frames[0]));
        options.ctx_in = Some(&context);
        options.repeat = runs as u32;
        let result = program.test_run(options).context("feeding packets to a program")?;
        let (action, wanted) = (result.return_value, turns.action);
        ensure!(action == wanted, "the last packet: the program answers {action}, not {wanted}");
        Ok(result.duration.as_nanos() as f64)
    }

    fn line_up(&mut self, turns: Turns<'_>) -> Result<()> {
        line_up(&mut self.0, turns.frames)?;
        let map = self.0.map_mut("FED").context("no map FED")?;
        Ok(ProgramArray::try_from(map)?.set(0, turns.program.fd()?, 0)?)
    }
}

/// Has these frames, all of one family, take turns in the programs of an object of ours.
pub fn line_up(ebpf: &mut Ebpf, frames: &[Frame]) -> Result<()> {
    let mut map: Array<_, [u64; 10]> = ebpf.map_mut("FRAMES").context("no map FRAMES")?.try_into()?;
    for (number, frame) in (0..).zip(frames) {
        map.set(number, words(frame), 0)?;
    }
    let length = bytes(frames.first().context("no frames")?).len();
    let mut turn: Array<_, [u32; 4]> = ebpf.map_mut("TURN").context("no map TURN")?.try_into()?;
    Ok(turn.set(0, [0, frames.len() as u32, length as u32, 0], 0)?)
}

/// A frame as the feeding program wants it: two bytes at the end of the first word, then words. Of IPv4 the last two
/// bytes of padding never change.
fn words(frame: &Frame) -> [u64; 10] {
    let mut bytes = [0; 80];
    bytes[6..].copy_from_slice(frame);
    let mut words = [0; 10];
    for (word, bytes) in words.iter_mut().zip(bytes.as_chunks::<8>().0) {
        *word = u64::from_ne_bytes(*bytes);
    }
    words
}

#[cfg(test)]
mod tests {
    use super::Batches;

    #[test]
    fn one_disturbed_batch_does_not_count() {
        let batches = Batches { means: vec![20.0, 1000.0, 21.0, 20.0] };
        assert!((batches.mean() - 20.5).abs() < 1e-9);
        assert!((Batches { means: vec![7.0] }.mean() - 7.0).abs() < 1e-9);
    }
}
