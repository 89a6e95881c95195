//! Measures what `cargo xtask bench` prints: `measure YARDSTICKS ROUNDS EXTENT PART...`, answer as JSON.
//!
//! Not for use by hand: it says nothing about what it found but numbers.

use std::path::Path;

use anyhow::{Context, Result, bail};
use tests::bench::feeder::Feeder;
use tests::bench::known::{KINDS, Kind};
use tests::bench::stage::Record;
use tests::bench::topology;
use tests::bench::world::World;
use tests::bench::{connections, growth, known, new, path};

/// How much is measured.
struct Extent {
    /// Sets of the connection table, seven entries each.
    sets: u32,
    known: &'static [u32],
    kinds: &'static [Kind],
    new: &'static [u32],
    schedulers: &'static [&'static str],
}

/// A table with room for 917,504 entries, as the yardsticks' hash map has for 1,048,576; twice what is made by default.
const FULL: Extent = Extent {
    sets: 1 << 17,
    known: &[1, 1000, 1 << 16],
    kinds: &KINDS,
    new: &[1000, 1 << 16],
    schedulers: &["rr", "wrr", "lc", "wlc", "sed", "nq", "sh", "dh", "mh", "fo", "ovf", "twos"],
};
/// What budgets are for.
const QUICK: Extent = Extent {
    known: &[1, 1 << 16],
    kinds: &[KINDS[0], KINDS[1]],
    new: &[1 << 16],
    schedulers: &["rr", "wlc"],
    ..FULL
};

/// Packets of a round on the whole way, and new connections: so many that what a round costs once is a hundredth.
const PACKETS: u32 = 60_000;

fn main() -> Result<()> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let [object, rounds, extent, parts @ ..] = &words[..] else {
        bail!("not the words that `cargo xtask bench` says")
    };
    let extent = match extent.as_str() {
        "full" => FULL,
        "quick" => QUICK,
        other => bail!("no extent {other}"),
    };
    let (object, rounds) = (Path::new(object), rounds.parse().context("rounds")?);
    topology::enter()?;
    let mut record = Record::default();
    for part in parts {
        match part.as_str() {
            "known" => known(object, &extent, rounds, &mut record)?,
            "new" => new(object, &extent, rounds, &mut record)?,
            "path" | "instructions" => {
                let counts_instructions = part == "instructions";
                let extent = path::Extent { packets: PACKETS, rounds, counts_instructions };
                path::measure(object, extent, &mut record)?;
            }
            "growth" => {
                growth::with_services(object, rounds, &mut record)?;
                growth::with_cpus(object, rounds, &mut record)?;
                growth::with_connections(object, rounds, &mut record)?;
            }
            "destinations" => growth::with_destinations(object, extent.schedulers, rounds, &mut record)?,
            "connections" => connections::measure(rounds, &mut record)?,
            other => bail!("no part {other}"),
        }
    }
    println!("{}", serde_json::to_string(&record.measured)?);
    Ok(())
}

fn known(object: &Path, extent: &Extent, rounds: u32, record: &mut Record) -> Result<()> {
    let mut feeder = Feeder::load(object)?;
    let mut world = World::load(extent.sets)?;
    record.measured.programs = world.programs()?;
    known::prepare(&mut world)?;
    for flows in extent.known {
        eprintln!("measuring {flows} known flows");
        known::measure(&mut world, object, extent.kinds, *flows, rounds, &mut feeder, record)?;
        known::measure_strangers(&world, object, *flows, rounds, &mut feeder, record)?;
    }
    world.unload()
}

fn new(object: &Path, extent: &Extent, rounds: u32, record: &mut Record) -> Result<()> {
    let mut feeder = Feeder::load(object)?;
    let mut world = World::load(extent.sets)?;
    new::prepare(&mut world, extent.schedulers)?;
    for flows in extent.new {
        eprintln!("measuring {flows} new flows");
        new::measure(&mut world, object, extent.schedulers, *flows, rounds, &mut feeder, record)?;
    }
    world.unload()
}
