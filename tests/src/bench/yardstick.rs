//! The yardsticks: programs that take one step each, on the same frames.

use std::net::{SocketAddr, SocketAddrV4};
use std::path::Path;

use anyhow::{Context, Result};
use aya::maps::HashMap;
use aya::programs::Xdp;
use aya::{Ebpf, EbpfLoader};

use super::feeder::Feeder;
use super::figure::{BARE, HASH};
use super::frame::{ACK, Frame, clients, tcp};
use super::stage::{PASS, Record, Turns};
use super::topology::{CLIENTS, VIP, server};

const LINE: &str = "one line of a large array";
const ROUTE: &str = "one bpf_fib_lookup";

/// The programs, by their names.
const PROGRAMS: [&str; 4] = ["bare", "route", "line", "hash"];

/// The programs, loaded, and the frames of so many flows.
pub struct Yardsticks {
    ebpf: Ebpf,
    frames: Vec<Frame>,
    way: [Frame; 1],
}

impl Yardsticks {
    /// Loads them from an object file, enters so many flows into the hash map, and checks that they find them all.
    pub fn load(object: &Path, flows: u32) -> Result<Self> {
        let bytes = std::fs::read(object).with_context(|| object.display().to_string())?;
        let mut ebpf = EbpfLoader::new().btf(None).map_max_entries("FRAMES", 1).load(&bytes)?;
        for name in PROGRAMS {
            let program: &mut Xdp = ebpf.program_mut(name).context("no such program")?.try_into()?;
            program.load()?;
        }
        let map = ebpf.map_mut("FLOWS").context("no map FLOWS")?;
        let mut known: HashMap<_, [u32; 4], u64> = map.try_into()?;
        let segment = |client: SocketAddrV4, to: SocketAddr| tcp(client.into(), to, ACK);
        let clients = clients(flows);
        let frames: Vec<_> = clients.iter().map(|client| segment(*client, (VIP, 80).into())).collect();
        // In another order than they are looked up in, so that neighbours in time are none in memory.
        let mut keys: Vec<_> = frames.iter().map(key).collect();
        keys.sort_unstable();
        for key in keys {
            known.insert(key, 1, 0)?;
        }
        let way = [segment(clients[0], (server(1), 80).into())];
        let yardsticks = Self { ebpf, frames, way };
        for (name, frames) in
            [("route", &way[..]), ("line", &yardsticks.frames), ("hash", &yardsticks.frames)]
        {
            yardsticks.turns(name, frames)?.check().context(name)?;
        }
        Ok(yardsticks)
    }

    /// Takes a round: the bare program, a route, and a line and a lookup with one flow and with all.
    pub fn round(&self, feeder: &mut Feeder, record: &mut Record) -> Result<()> {
        let mut enough = |name: &str, frames| feeder.enough(self.turns(name, frames)?, || {});
        let (one, all) = (&self.frames[..1], &self.frames[..]);
        let flows = all.len() as u32;
        record.note_bare(BARE, 1, &enough("bare", one)?);
        if flows > 1 {
            record.note_bare(BARE, flows, &enough("bare", all)?);
        }
        record.note(ROUTE, 1, &enough("route", &self.way)?)?;
        for (name, program) in [(LINE, "line"), (HASH, "hash")] {
            record.note(name, 1, &enough(program, one)?)?;
            if flows > 1 {
                record.note(name, flows, &enough(program, all)?)?;
            }
        }
        Ok(())
    }

    fn turns<'a>(&'a self, program: &str, frames: &'a [Frame]) -> Result<Turns<'a>> {
        let program: &Xdp = self.ebpf.program(program).context("no such program")?.try_into()?;
        Ok(Turns { program, interface: CLIENTS, frames, action: PASS })
    }
}

/// The hash map's key, as the programs read it from a frame.
fn key(frame: &Frame) -> [u32; 4] {
    let word = |at: usize| u32::from_ne_bytes([frame[at], frame[at + 1], frame[at + 2], frame[at + 3]]);
    [word(26), word(30), word(34), frame[23].into()]
}
