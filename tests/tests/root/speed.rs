//! How long commands take on a table of 10,000 services with 10 destinations each.
//!
//! The limits are ten times what is promised (restore 5 s, listing 1 s, one service more 20 ms, on two cores), so that
//! a slow and busy machine passes and a command that reads or asks too much does not. What was measured is printed.

use std::fmt::Write as _;
use std::fs::{self, File};
use std::process::Output;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use tests::lab::Lab;

/// Services in the table.
const SERVICES: u32 = 10_000;
/// Destinations of each.
const DESTINATIONS: u32 = 10;
/// How much slower than promised a machine may be.
const SLACK: u32 = 10;
/// How often a short command is measured; the fastest run counts.
const RUNS: u32 = 10;

#[test]
fn a_large_table_is_restored_listed_and_changed_in_time() -> Result<()> {
    let lab = Lab::new("speed", 1)?;
    // Every destination has a way to it, so that each is looked up.
    lab.director.ip(&[&format!("route add default via {}", lab.servers[0].address)])?;
    lab.attach()?;
    let rules = lab.directory().join("rules");
    fs::write(&rules, table())?;

    let (restore, _) =
        timed("restore", 5, || Ok(lab.director.xipvs("-R").stdin(File::open(&rules)?).output()?))?;
    let (list, listed) = timed("list", 1, || lab.xipvs_output("-Ln"))?;
    let lines = listed.stdout.iter().filter(|byte| **byte == b'\n').count() as u32;
    assert_eq!(lines, 3 + SERVICES * (1 + DESTINATIONS), "lines of the listing");

    for (what, words, promised) in [
        ("add a service", "-A -t 10.255.0.RUN:80", 20),
        ("list a service", "-Ln -t 10.255.0.RUN:80", 20),
        // The kernel's routing is asked too, whose lock others may hold.
        ("add a destination", "-a -t 10.255.0.1:80 -r 10.0.0.RUN -m", 100),
    ] {
        let mut fastest = Duration::MAX;
        for run in 1..=RUNS {
            let start = Instant::now();
            lab.xipvs(&words.replace("RUN", &run.to_string()))?;
            fastest = fastest.min(start.elapsed());
        }
        println!("{what}: {fastest:.1?}");
        ensure!(fastest < Duration::from_millis(promised) * SLACK, "{what} takes {fastest:.1?}");
    }
    println!("restore: {restore:.1?}, list: {list:.1?}");
    Ok(())
}

/// Runs a command that must succeed within its promised time and the slack.
fn timed(what: &str, promised: u64, command: impl FnOnce() -> Result<Output>) -> Result<(Duration, Output)> {
    let start = Instant::now();
    let output = command()?;
    let took = start.elapsed();
    ensure!(output.status.success(), "{what}: {}", String::from_utf8_lossy(&output.stderr));
    ensure!(took < Duration::from_secs(promised) * SLACK, "{what} takes {took:.1?}");
    Ok((took, output))
}

fn table() -> String {
    let mut rules = String::new();
    for service in 0..SERVICES {
        let address = format!("10.{}.{}.{}", 100 + service / 10_000, service / 100 % 100, service % 100 + 1);
        let _ = writeln!(rules, "-A -t {address}:80 -s wlc");
        for destination in service * DESTINATIONS..(service + 1) * DESTINATIONS {
            let [_, a, b, c] = destination.to_be_bytes();
            let _ = writeln!(rules, "-a -t {address}:80 -r 192.{a}.{b}.{c}:8080 -m");
        }
    }
    rules
}
