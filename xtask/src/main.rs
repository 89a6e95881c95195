//! `cargo xtask`: the project's chores. This file only dispatches; each chore has a file of its name.

mod bench;
mod build;
mod command;
mod demo;
mod golden;
mod install;
mod lint;
mod need;
mod setup;
mod test;
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
    /// Build and install xipvs: its four names, manual pages, completions.
    Install(install::Install),
    /// Show it: a client, a director and three real servers, steered as with ipvsadm.
    Demo,
    /// Run all tests.
    Test(test::Test),
    /// Measure what a packet costs, beside what a map lookup costs in the same run.
    Bench(bench::Bench),
    /// Check formatting and lints, the BPF crate's for its own target too.
    Lint,
    /// Do all that has to hold before a change lands: lint, test, and compare speed with its budgets.
    Ci(test::Test),
    /// Run a command in the reference VM: Debian's 6.1 kernel, with IPVS, over this file system.
    Vm(vm::Vm),
    /// Record the commands of tests/golden anew in the reference VM, and show what differs.
    Golden(golden::Golden),
}

fn main() -> ExitCode {
    let done = match Chore::parse() {
        Chore::Setup { vm } => setup::run(vm),
        Chore::Build => build::run(),
        Chore::Install(install) => install.run(),
        Chore::Demo => demo::run(),
        Chore::Test(test) => test.run(),
        Chore::Bench(bench) => bench.run(),
        Chore::Lint => lint::run(),
        Chore::Ci(test) => lint::run().and_then(|()| test.run()).and_then(|()| bench::check(test.uses_vm())),
        Chore::Vm(vm) => return vm.run().unwrap_or_else(failure),
        Chore::Golden(golden) => return golden.run().unwrap_or_else(failure),
    };
    done.map_or_else(failure, |()| ExitCode::SUCCESS)
}

fn failure(error: anyhow::Error) -> ExitCode {
    eprintln!("error: {error:#}");
    ExitCode::FAILURE
}
