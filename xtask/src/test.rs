//! `cargo xtask test`: every level of tests, from those that need nothing to those that need a virtual machine.
//!
//! A level that cannot run fails; only `--no-vm` leaves one out, because somebody asked for it.

use std::env;

use anyhow::{Context, Result};

use crate::command::{self, run as run_command};
use crate::need::Group;
use crate::{build, setup};

/// The target with the tests that need root.
const ROOT: [&str; 7] = ["test", "--package", "tests", "--features", "root", "--test", "root"];

/// What the virtual machine does before it runs a test: its /sys has no BPF file system yet.
const PREPARE: &str = r#"mount -t bpf bpf /sys/fs/bpf && exec "$@""#;

/// Runs the tests.
#[derive(Debug, clap::Args)]
pub struct Test {
    /// Leave out the tests in the reference VM, which take minutes.
    #[arg(long)]
    no_vm: bool,
}

impl Test {
    /// Carries out `cargo xtask test`.
    pub fn run(&self) -> Result<()> {
        setup::ensure(&[Group::Core])?;
        if !self.no_vm {
            setup::ensure(&[Group::Vm])?;
        }
        build::run()?;
        level("what needs nothing");
        run_command(command::cargo().arg("test"))?;
        level("what needs root");
        anyhow::ensure!(command::is_root(), "the tests of namespaces and of the loaded program need root");
        run_command(command::cargo().args(ROOT))?;
        if self.no_vm {
            return Ok(());
        }
        level("the same on the oldest kernel, in the reference VM");
        let xtask = env::current_exe().context("where this program is")?;
        let runner = [&xtask.display().to_string(), "vm", "--", "sh", "-c", PREPARE, "sh"]
            .map(|word| format!("{word:?}"))
            .join(", ");
        let runner = format!("target.'cfg(all())'.runner = [{runner}]");
        run_command(command::cargo().args(ROOT).args(["--config", &runner]))
    }
}

fn level(what: &str) {
    eprintln!("== tests: {what}");
}
