//! `cargo xtask bench`: what a packet costs, in the program alone and on its whole way, beside what else there is.
//!
//! Measuring is the program `measure` of the `tests` crate; here it is built and run, on this machine or in the reference
//! VM, and what it found is printed, kept as JSON, recorded, or compared with the budgets in `tests/budgets.txt`.

mod hardware;
mod report;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Instant;

use ::tests::bench::Measured;
use ::tests::bench::budget::{self, Budget, Measure};
use anyhow::{Context, Result, bail, ensure};
use clap::ValueEnum;

use self::report::Report;
use crate::command::{self, run as run_command};
use crate::need::Group;
use crate::{build, setup};

/// Where recorded results stand.
const RECORDS: &str = "BENCHMARKS.md";
const BUDGETS: &str = "tests/budgets.txt";
/// This program, even if cargo has built another in its place since it began.
const OURSELVES: &str = "/proc/self/exe";
/// Is there where the kernel has IPVS.
const IPVS: &str = "/proc/net/ip_vs";
/// How often budgets are given another chance: a machine may be busy for a moment.
const ATTEMPTS: u32 = 3;
/// How often everything is measured but instructions, which are the same every time: so that all of it takes less than half an hour.
const ROUNDS: u32 = 3;
/// Seconds that the reference VM may take: where it is emulated, loading the program alone takes a minute.
const VM_TIMEOUT: &str = "1500";

/// Measures what a packet costs.
#[derive(Debug, clap::Args)]
pub struct Bench {
    /// Only these parts, instead of all.
    #[arg(long, value_name = "PART", conflicts_with = "check")]
    only: Vec<Part>,
    /// Add the result to BENCHMARKS.md.
    #[arg(long, conflicts_with = "check")]
    record: bool,
    /// Only compare with the budgets in tests/budgets.txt.
    #[arg(long)]
    check: bool,
    /// The whole way and real sockets on this machine, which must have kernel IPVS; tells first what its hardware is like.
    #[arg(long, conflicts_with_all = ["check", "only"])]
    native: bool,
    /// How often everything is measured.
    #[arg(long, value_name = "NUMBER", value_parser = clap::value_parser!(u32).range(1..))]
    rounds: Option<u32>,
}

/// Something to measure.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Part {
    /// The program alone: packets of known flows, and packets that are not ours.
    Known,
    /// The program alone: a new flow with every packet.
    New,
    /// The whole way on this machine, in packets a second and CPU time.
    Path,
    /// The whole way in the reference VM, beside kernel IPVS, in instructions.
    Instructions,
    /// How the cost of a new flow grows with destinations, by scheduler.
    Destinations,
    /// How cost grows with connections, services and CPUs.
    Growth,
    /// Real sockets: connections a second, and what a director adds to an answer's time.
    Connections,
}

impl Bench {
    /// Carries out `cargo xtask bench`.
    pub fn run(&self) -> Result<()> {
        if self.check {
            return check(true);
        }
        let goals = budgets()?;
        let parts: &[Part] = match &self.only[..] {
            _ if self.native => &[Part::Path, Part::Connections],
            [] => Part::value_variants(),
            only => only,
        };
        if self.native {
            print!("{}", hardware::describe());
            ensure!(
                command::output(command::clean("modprobe").arg("ip_vs")).is_ok() || Path::new(IPVS).exists(),
                "--native compares with kernel IPVS, which this kernel has not got"
            );
        }
        let kit = Kit::build()?;
        let began = Instant::now();
        let mut measured = Measured::default();
        for part in parts {
            let rounds = self.rounds.unwrap_or(if *part == Part::Instructions { 1 } else { ROUNDS });
            let part_began = Instant::now();
            measured.join(kit.measure(*part, "full", rounds)?);
            eprintln!("measured  {part:?} in {} s", part_began.elapsed().as_secs());
        }
        let report = Report::new(&measured, &goals, began.elapsed())?;
        print!("{}", report.text());
        let file = command::target().join("bench.json");
        fs::write(&file, serde_json::to_vec_pretty(&report.json()?)?)?;
        println!("\nalso in   {}", file.display());
        if self.record {
            report.record(&command::workspace().join(RECORDS))?;
            println!("recorded  {RECORDS}");
        }
        Ok(())
    }
}

/// Compares with the budgets; `vm` says whether with those too that are held in the reference VM.
pub fn check(vm: bool) -> Result<()> {
    let mut open = budgets()?;
    open.retain(|budget| budget.budget.is_some() && (vm || part_of(budget) != Part::Instructions));
    let kit = Kit::build()?;
    for _ in 0..ATTEMPTS {
        let mut measured = Measured::default();
        for part in Part::value_variants() {
            if open.iter().any(|budget| part_of(budget) == *part) {
                let rounds = if *part == Part::Instructions { 1 } else { 3 };
                measured.join(kit.measure(*part, "quick", rounds)?);
            }
        }
        let exceeded = budget::exceeded(&open, &measured)?;
        exceeded.iter().for_each(|(_, sentence)| eprintln!("exceeded  {sentence}"));
        // What has held once need not hold again.
        open = exceeded.into_iter().map(|(budget, _)| budget).collect();
        if open.is_empty() {
            println!("every budget in {BUDGETS} holds");
            return Ok(());
        }
    }
    bail!("{} of the budgets in {BUDGETS} are exceeded, {ATTEMPTS} times in a row", open.len())
}

fn budgets() -> Result<Vec<Budget>> {
    let text = fs::read_to_string(command::workspace().join(BUDGETS)).context(BUDGETS)?;
    budget::parse(&text).context(BUDGETS)
}

/// The part that measures what a budget is for.
fn part_of(budget: &Budget) -> Part {
    match budget.measure {
        Measure::Instructions => Part::Instructions,
        Measure::Hot | Measure::SameSize if budget.name.starts_with("new flow") => Part::New,
        Measure::Hot | Measure::SameSize => Part::Known,
        Measure::Times if budget.name.contains("destinations") => Part::Destinations,
        Measure::Times => Part::Growth,
    }
}

/// Words that make cargo build the measuring program.
const MEASURE: [&str; 7] = ["--release", "--package", "tests", "--features", "bench", "--bin", "measure"];

/// What measuring needs, built.
struct Kit {
    yardsticks: PathBuf,
}

impl Kit {
    fn build() -> Result<Self> {
        setup::ensure(&[Group::Core])?;
        build::object()?;
        let yardsticks = build::yardsticks()?;
        run_command(command::cargo().args(["build", "--quiet"]).args(MEASURE))?;
        ensure!(command::is_root(), "loading programs and making namespaces needs root");
        Ok(Self { yardsticks })
    }

    /// Measures a part so often.
    fn measure(&self, part: Part, extent: &str, rounds: u32) -> Result<Measured> {
        let program = command::target().join("release/measure");
        let mut command = if part == Part::Instructions {
            setup::ensure(&[Group::Vm])?;
            let mut vm = command::clean(OURSELVES);
            vm.args(["vm", "--count-instructions", "--timeout", VM_TIMEOUT, "--"]).arg(program);
            vm
        } else {
            command::clean(program)
        };
        if part == Part::Path {
            setup::ensure(&[Group::Bench])?;
        }
        let name = part.to_possible_value().context("a part has a name")?;
        command.arg(&self.yardsticks).args([&rounds.to_string(), extent, name.get_name()]);
        // What it says on the way is for whoever waits.
        let said = command::output(command.stderr(Stdio::inherit()))?;
        let line = said.lines().rfind(|line| line.starts_with('{')).context("nothing was measured")?;
        Ok(serde_json::from_str(line)?)
    }
}
