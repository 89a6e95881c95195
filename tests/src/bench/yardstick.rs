//! The yardsticks: programs that take one step each, on the same frames.

use std::path::Path;

use anyhow::{Context, Result};
use aya::maps::HashMap;
use aya::programs::Xdp;
use aya::{Ebpf, EbpfLoader};

use super::feeder::Feeder;
use super::figure::{BARE, HASH};
use super::frame::{Frame, tcp};
use super::stage::{PASS, Record, Turns};
use super::topology::{CLIENTS, server};

const LINE: &str = "one line of a large array";
const ROUTE: &str = "one bpf_fib_lookup";

/// The programs, loaded.
pub struct Yardsticks {
    ebpf: Ebpf,
    way: Frame,
}

impl Yardsticks {
    /// Loads them from an object file and enters these frames' flows into the hash map.
    pub fn load(object: &Path, frames: &[Frame]) -> Result<Self> {
        let bytes = std::fs::read(object).with_context(|| object.display().to_string())?;
        let mut ebpf = EbpfLoader::new().btf(None).map_max_entries("FRAMES", 1).load(&bytes)?;
        for name in ["bare", "route", "line", "hash"] {
            let program: &mut Xdp = ebpf.program_mut(name).context("no such program")?.try_into()?;
            program.load()?;
        }
        let map = ebpf.map_mut("FLOWS").context("no map FLOWS")?;
        let mut flows: HashMap<_, [u32; 4], u64> = map.try_into()?;
        // In another order than they are looked up in, so that neighbours in time are none in memory.
        let mut keys: Vec<_> = frames.iter().map(key).collect();
        keys.sort_unstable();
        for key in keys {
            flows.insert(key, 1, 0)?;
        }
        let client = super::frame::clients(1)[0];
        let way = tcp(client.into(), (server(1), 80).into(), super::frame::ACK);
        Ok(Self { ebpf, way })
    }

    /// Takes a round: the bare program, a hot lookup, the rest, and lookups of all these frames' flows.
    pub fn round(&self, frames: &[Frame], feeder: &mut Feeder, record: &mut Record) -> Result<()> {
        let mut enough = |name: &str, frames: &[Frame]| {
            let program: &Xdp = self.ebpf.program(name).context("no such program")?.try_into()?;
            let turns = Turns { program, interface: CLIENTS, frames, action: PASS };
            turns.check().context(name.to_owned())?;
            feeder.enough(turns, || {})
        };
        let (one, flows) = (&frames[..1], frames.len() as u32);
        record.note_bare(BARE, 1, &enough("bare", one)?);
        if flows > 1 {
            record.note_bare(BARE, flows, &enough("bare", frames)?);
        }
        record.note(ROUTE, 1, &enough("route", &[self.way])?)?;
        for (name, program) in [(LINE, "line"), (HASH, "hash")] {
            record.note(name, 1, &enough(program, one)?)?;
            if flows > 1 {
                record.note(name, flows, &enough(program, frames)?)?;
            }
        }
        Ok(())
    }
}

/// The hash map's key, as the programs read it from a frame.
fn key(frame: &Frame) -> [u32; 4] {
    let word = |at: usize| u32::from_ne_bytes([frame[at], frame[at + 1], frame[at + 2], frame[at + 3]]);
    [word(26), word(30), word(34), frame[23].into()]
}
