//! `cargo xtask`: the project's chores. This file only dispatches; each chore has a file of its name.

mod build;
mod command;
mod need;
mod setup;
mod toolchain;
mod vm;

use std::process::ExitCode;

use clap::Parser;

/// The project's chores.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
enum Chore {
    /// Find what building and testing need, and install what is missing.
    Setup {
        /// Also what the reference VM needs.
        #[arg(long)]
        vm: bool,
    },
    /// Build the BPF object and the xipvs binary that carries it.
    Build,
    /// Run a command in the reference VM: Debian's 6.1 kernel, with IPVS, over this file system.
    Vm(vm::Vm),
}

fn main() -> anyhow::Result<ExitCode> {
    match Chore::parse() {
        Chore::Setup { vm } => setup::run(vm)?,
        Chore::Build => build::run()?,
        Chore::Vm(vm) => return vm.run(),
    }
    Ok(ExitCode::SUCCESS)
}
