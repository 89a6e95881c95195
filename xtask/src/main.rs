//! `cargo xtask`: the project's chores. This file only dispatches.

mod vm;

use std::process::ExitCode;

use clap::Parser;

/// The project's chores.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask")]
enum Chore {
    /// Run a command in the reference VM: Debian's 6.1 kernel, with IPVS, over this file system.
    Vm(vm::Vm),
}

fn main() -> anyhow::Result<ExitCode> {
    match Chore::parse() {
        Chore::Vm(vm) => vm.run(),
    }
}
