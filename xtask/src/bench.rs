//! `cargo xtask bench`: what a packet costs, beside what a map lookup costs in the same run.
//!
//! Measuring is the program `measure` of the `tests` crate; here it is built and run, and what it found is printed,
//! kept as JSON, recorded, or compared with the budgets in `tests/budgets.txt`.

use std::fs;
use std::io::Write;
use std::path::Path;
use std::time::{Duration, Instant};

use ::tests::bench::budget::{self, Budget};
use ::tests::bench::{Measured, figure};
use anyhow::{Context, Result, bail, ensure};

use crate::command::{self, output, run as run_command};
use crate::need::Group;
use crate::{build, setup};

/// Where recorded results stand.
const RECORDS: &str = "BENCHMARKS.md";
const BUDGETS: &str = "tests/budgets.txt";
/// How often budgets are given another chance: a machine may be busy for a moment.
const ATTEMPTS: u32 = 3;

/// What the table cannot say of itself.
const NOTES: &str = "\
Medians of rounds, each a mean over batches of packets that a program in the kernel feeds to the measured one, one after
the other in one BPF_PROG_TEST_RUN; nanoseconds above the bare program fed with as many flows in the same round. `hot
lookups`: ratio to one hash map lookup with one flow; `lookups`: ratio to one with as many flows, in a map with room for
1,048,576; the connection table has room for 917,504 entries (with --large for four times as many), of which a flow takes one and a
NAT flow two. Known flows are established and had a packet in the same second, for which the clock is held, but for the
rows that say otherwise: once a second a flow's next hop is looked up anew and its deadline moved. Flows
take turns in an order that no prefetcher foresees.";

const HEADER: &str = "\
# Benchmarks

What `cargo xtask bench --record` measured, newest last. Times depend on the machine, ratios hardly.
";

/// Measures what a packet costs.
#[derive(Debug, clap::Args)]
pub struct Bench {
    /// Also 524,288 flows, in a table that is large enough.
    #[arg(long, conflicts_with = "check")]
    large: bool,
    /// Add the result to BENCHMARKS.md.
    #[arg(long, conflicts_with = "check")]
    record: bool,
    /// Only compare with the budgets in tests/budgets.txt.
    #[arg(long)]
    check: bool,
    /// How often everything is measured.
    #[arg(long, value_name = "NUMBER", value_parser = clap::value_parser!(u32).range(1..))]
    rounds: Option<u32>,
}

impl Bench {
    /// Carries out `cargo xtask bench`.
    pub fn run(&self) -> Result<()> {
        setup::ensure(&[Group::Core])?;
        build::object()?;
        let yardsticks = build::yardsticks()?;
        run_command(command::cargo().args(measure("build")))?;
        ensure!(command::is_root(), "loading programs and making namespaces needs root");
        if self.check {
            return self.check(&yardsticks);
        }
        let extent = if self.large { "large" } else { "full" };
        let began = Instant::now();
        let measured = self.measure(&yardsticks, extent, if self.large { 5 } else { 7 })?;
        let report = Report::new(&measured, began.elapsed())?;
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

    fn measure(&self, yardsticks: &Path, extent: &str, rounds: u32) -> Result<Measured> {
        let rounds = self.rounds.unwrap_or(rounds).to_string();
        let mut cargo = command::cargo();
        cargo.args(measure("run")).arg("--").arg(yardsticks).args([extent, &rounds]);
        Ok(serde_json::from_str(&output(&mut cargo)?)?)
    }

    fn check(&self, yardsticks: &Path) -> Result<()> {
        let text = fs::read_to_string(command::workspace().join(BUDGETS)).context(BUDGETS)?;
        let mut open: Vec<Budget> = budget::parse(&text).context(BUDGETS)?;
        for _ in 0..ATTEMPTS {
            let exceeded = budget::exceeded(&open, &self.measure(yardsticks, "quick", 3)?)?;
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
}

/// Words that make cargo build or run the measuring program.
fn measure(verb: &str) -> [&str; 8] {
    [verb, "--quiet", "--package", "tests", "--features", "bench", "--bin", "measure"]
}

/// A result and where it is from.
struct Report<'a> {
    measured: &'a Measured,
    date: String,
    machine: String,
    kernel: String,
    commit: String,
    command: String,
    seconds: u64,
}

impl<'a> Report<'a> {
    fn new(measured: &'a Measured, took: Duration) -> Result<Self> {
        let say = |program: &str, words: &[&str]| -> Result<String> {
            Ok(output(command::clean(program).args(words))?.trim().to_owned())
        };
        let changed =
            !say("git", &["status", "--porcelain", "--untracked-files=no", "--", ".", ":!BENCHMARKS.md"])?
                .is_empty();
        let commit = say("git", &["rev-parse", "--short", "HEAD"])?;
        let words: Vec<String> = std::env::args().skip(1).collect();
        Ok(Self {
            measured,
            date: say("date", &["--utc", "+%F %H:%M UTC"])?,
            machine: machine(&fs::read_to_string("/proc/cpuinfo")?),
            kernel: fs::read_to_string("/proc/sys/kernel/osrelease")?.trim().to_owned(),
            commit: commit + if changed { ", with changes" } else { "" },
            command: format!("cargo xtask {}", words.join(" ")),
            seconds: took.as_secs(),
        })
    }

    fn text(&self) -> String {
        let Self { machine, kernel, commit, command, seconds, .. } = self;
        format!(
            "{machine}; Linux {kernel}; commit {commit}; `{command}`, {seconds} s\n\n{}\n{NOTES}\n",
            figure::table(self.measured)
        )
    }

    fn json(&self) -> Result<serde_json::Value> {
        let figures: Vec<_> = figure::figures(self.measured)
            .into_iter()
            .map(|figure| {
                serde_json::json!({
                    "name": figure.name,
                    "flows": figure.flows,
                    "nanoseconds": figure.nanoseconds,
                    "hot_lookups": figure.hot,
                    "lookups": figure.same_size,
                })
            })
            .collect();
        Ok(serde_json::json!({
            "date": self.date,
            "machine": self.machine,
            "kernel": self.kernel,
            "commit": self.commit,
            "command": self.command,
            "seconds": self.seconds,
            "figures": figures,
            "measured": serde_json::to_value(self.measured)?,
        }))
    }

    fn record(&self, file: &Path) -> Result<()> {
        let mut open = fs::OpenOptions::new().append(true).create(true).open(file)?;
        if open.metadata()?.len() == 0 {
            open.write_all(HEADER.as_bytes())?;
        }
        write!(open, "\n## {}\n\n{}", self.date, self.text())?;
        Ok(())
    }
}

/// What the processor calls itself and how many there are, from /proc/cpuinfo.
fn machine(cpuinfo: &str) -> String {
    let field = |line: &str, name: &str| {
        let (key, value) = line.split_once(':')?;
        (key.trim() == name).then(|| value.trim().to_owned())
    };
    let model = cpuinfo.lines().find_map(|line| field(line, "model name"));
    let count = cpuinfo.lines().filter(|line| field(line, "processor").is_some()).count();
    format!("{}, {count} CPUs", model.unwrap_or_else(|| "unknown processor".to_owned()))
}

#[cfg(test)]
mod tests {
    use super::machine;

    #[test]
    fn the_machine_is_named_by_its_processor() {
        let text = "processor\t: 0\nmodel name\t: Some CPU\nmodel\t\t: 1\n\nprocessor\t: 1\nmodel name\t: Some CPU\n";
        assert_eq!(machine(text), "Some CPU, 2 CPUs");
        assert_eq!(machine("processor : 0\n"), "unknown processor, 1 CPUs");
    }
}
