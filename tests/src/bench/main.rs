//! Measures what `cargo xtask bench` prints: `measure YARDSTICKS full|large|quick ROUNDS`, answer as JSON.
//!
//! Not for use by hand: it says nothing about what it found but numbers.

use std::net::SocketAddrV4;
use std::path::Path;

use anyhow::{Context, Result, bail};
use tests::bench::feeder::Feeder;
use tests::bench::frame::{ACK, clients, tcp};
use tests::bench::stage::Record;
use tests::bench::world::{self, VIP, World};
use tests::bench::yardstick::Yardsticks;
use tests::bench::{known, new};

/// What is measured.
struct Extent {
    /// Sets of the connection table, seven entries each.
    sets: u32,
    known: &'static [u32],
    new: &'static [u32],
    schedulers: &'static [&'static str],
}

/// A table with room for 917,504 entries, as the yardsticks' hash map has for 1,048,576; twice what is made by default.
const FULL: Extent = Extent {
    sets: 1 << 17,
    known: &[1, 1000, 1 << 16],
    new: &[1000, 1 << 16],
    schedulers: &["rr", "wrr", "lc", "wlc", "sh"],
};
/// With half as many flows as fit the yardsticks' hash map, in a table with room for 3,670,016 entries.
const LARGE: Extent = Extent { sets: 1 << 19, known: &[1, 1000, 1 << 16, 1 << 19], ..FULL };
/// What budgets are for.
const QUICK: Extent = Extent { known: &[1, 1 << 16], new: &[1 << 16], schedulers: &["rr", "wlc"], ..FULL };

fn main() -> Result<()> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let [object, extent, rounds] = &words[..] else { bail!("not the words that `cargo xtask bench` says") };
    let extent = match extent.as_str() {
        "full" => FULL,
        "large" => LARGE,
        "quick" => QUICK,
        other => bail!("no extent {other}"),
    };
    let rounds = rounds.parse().context("rounds")?;
    world::enter()?;

    let web = SocketAddrV4::new(VIP, 80);
    let yardsticks = |flows: u32| {
        let frames: Vec<_> = clients(flows).into_iter().map(|client| tcp(client, web, ACK)).collect();
        Yardsticks::load(Path::new(object), &frames)
    };
    let mut feeder = Feeder::load(Path::new(object))?;
    let mut record = Record::default();
    let mut world = World::load(extent.sets)?;
    record.measured.programs = world.programs()?;
    known::prepare(&mut world)?;
    new::prepare(&mut world, extent.schedulers)?;
    for flows in extent.known {
        eprintln!("measuring {flows} known flows");
        known::measure(&mut world, &yardsticks(*flows)?, *flows, rounds, &mut feeder, &mut record)?;
    }
    for flows in extent.new {
        eprintln!("measuring {flows} new flows");
        new::measure(
            &mut world,
            &yardsticks(*flows)?,
            extent.schedulers,
            *flows,
            rounds,
            &mut feeder,
            &mut record,
        )?;
    }
    world.unload()?;
    println!("{}", serde_json::to_string(&record.measured)?);
    Ok(())
}
