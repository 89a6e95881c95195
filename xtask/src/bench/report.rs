//! What was measured, and where it is from: as a table, as JSON, and in the record.

use std::fs;
use std::io::Write;
use std::path::Path;
use std::time::Duration;

use ::tests::bench::budget::Budget;
use ::tests::bench::{Measured, figure};
use anyhow::Result;

use crate::command::{self, output};

/// What the table cannot say of itself.
const NOTES: &str = "\
Medians of rounds. `ns`, the program alone: means over batches of packets that a program in the kernel feeds to the
measured one, one after the other in one BPF_PROG_TEST_RUN, above the bare program fed with as many flows in the same
round. `hot lookups`: ratio to one hash map lookup with one flow; `lookups`: ratio to one with as many flows, in a map
with room for 1,048,576; the connection table has room for 917,504 entries, of which a flow takes one and a NAT flow
two. Known flows are established and had a packet in the same second, for which the clock is
held, but for the rows that say otherwise: once a second a flow's next hop is looked up anew and its deadline moved.
Flows take turns in an order that no prefetcher foresees.
`ns of CPU`, `packets/s`, `instructions`, the whole way: frames of 60 bytes, of UDP but for new connections, from a generator
(BPF_F_TEST_XDP_LIVE_FRAMES) over veth through the director, and over veth to a sink that counts them, all on one CPU;
generator, both wires and sink included, 16 destinations, wlc. Instructions: Linux 6.1 in the reference VM (-icount).
What was tried where a goal is missed: ARCHITECTURE.md, \"Speed\".";

const HEADER: &str = "\
# Benchmarks

What `cargo xtask bench --record` measured, newest last. Times depend on the machine, ratios hardly.
";

/// A result and where it is from.
pub struct Report<'a> {
    measured: &'a Measured,
    goals: &'a [Budget],
    date: String,
    machine: String,
    kernel: String,
    commit: String,
    command: String,
    seconds: u64,
}

impl<'a> Report<'a> {
    /// Finds out where a result is from that took so long.
    pub fn new(measured: &'a Measured, goals: &'a [Budget], took: Duration) -> Result<Self> {
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
            goals,
            date: say("date", &["--utc", "+%F %H:%M UTC"])?,
            machine: machine(&fs::read_to_string("/proc/cpuinfo")?),
            kernel: fs::read_to_string("/proc/sys/kernel/osrelease")?.trim().to_owned(),
            commit: commit + if changed { ", with changes" } else { "" },
            command: format!("cargo xtask {}", words.join(" ")),
            seconds: took.as_secs(),
        })
    }

    /// The table.
    pub fn text(&self) -> String {
        let Self { machine, kernel, commit, command, seconds, .. } = self;
        format!(
            "{machine}; Linux {kernel}; commit {commit}; `{command}`, {seconds} s\n\n{}\n{NOTES}\n",
            figure::table(self.measured, self.goals)
        )
    }

    /// All of it, for programs.
    pub fn json(&self) -> Result<serde_json::Value> {
        let figures: Vec<_> = figure::figures(self.measured)
            .into_iter()
            .map(|figure| {
                serde_json::json!({
                    "name": figure.name,
                    "size": figure.size,
                    "figure": figure.median,
                    "unit": figure.unit.name(),
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

    /// Adds it to the record.
    pub fn record(&self, file: &Path) -> Result<()> {
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
