//! `cargo xtask test`: every level of tests, from those that need nothing to those that need a virtual machine.
//!
//! A level that cannot run fails; only `--no-vm` leaves one out, because somebody asked for it.

use std::env;
use std::process::Command;

use anyhow::{Context, Result};

use crate::command::{self, run as run_command};
use crate::need::Group;
use crate::{build, setup};

/// What the virtual machine does before it runs tests: it has no BPF file system and no TAP interfaces yet. (It has no
/// IPVS either: xipvs loads it.) Programs are brought into its memory, as they are read page by page and its file system is
/// slow.
const PREPARE: &str = r#"mount -t bpf bpf /sys/fs/bpf && modprobe tun &&
    nearby() { cp "$1" /dev/shm && mount --bind "/dev/shm/${1##*/}" "$1"; } &&
    nearby "$0" && nearby "$1" && exec "$@""#;

/// Which of the tests that need root run on the oldest kernel too: all that look at what the program does with a
/// packet, the recorded commands (two minutes), and some with real traffic. The rest is about commands, not about
/// the kernel, and takes many minutes where every instruction is emulated.
const ON_OLDEST_KERNEL: [&str; 7] = [
    "packets::",
    "lab::",
    "golden_xdp::",
    "end_to_end::changes::a_deleted_server",
    "end_to_end::spread::datagrams",
    // Its tunnels end in the kernel's own devices there.
    "end_to_end::http",
    "end_to_end::sctp",
];

/// Seconds that a level may take in the virtual machine.
const VM_TIMEOUT: &str = "1800";

/// Runs the tests.
#[derive(Debug, clap::Args)]
pub struct Test {
    /// Leave out the tests in the reference VM, which take minutes.
    #[arg(long)]
    no_vm: bool,
}

impl Test {
    /// Whether the reference VM may be used.
    pub fn uses_vm(&self) -> bool {
        !self.no_vm
    }

    /// Carries out `cargo xtask test`.
    pub fn run(&self) -> Result<()> {
        setup::ensure(&[Group::Core, Group::Test])?;
        if !self.no_vm {
            setup::ensure(&[Group::Vm])?;
        }
        build::run()?;
        level("what needs nothing");
        run_command(command::cargo().arg("test"))?;
        anyhow::ensure!(command::is_root(), "the tests of namespaces and of the loaded program need root");
        level("what needs root");
        run_command(&mut cargo_test("root"))?;
        if self.no_vm {
            return Ok(());
        }
        level("the same on the oldest kernel, in the reference VM");
        // Ignored are those for which not every kernel has what they need; this one has.
        in_vm("root", &[&ON_OLDEST_KERNEL[..], &["--include-ignored"]].concat())?;
        level("what needs kernel IPVS and the real ipvsadm, in the reference VM");
        // One after the other: they measure how soon things happen, and ask one kernel for all of it.
        in_vm("reference", &["--test-threads=1"])
    }
}

/// Makes a command that runs the tests of one level; feature and target have its name.
fn cargo_test(level: &str) -> Command {
    let mut cargo = command::cargo();
    cargo.args(["test", "--package", "tests", "--features", level, "--test", level]);
    // What failed is said by the error's own words; frames of the runtime below them hide it in a long log.
    cargo.env("RUST_BACKTRACE", "0");
    cargo
}

/// Runs the tests of one level in the reference VM: cargo builds them here and starts them through `xtask vm`.
fn in_vm(level: &str, words: &[&str]) -> Result<()> {
    let xtask = env::current_exe().context("where this program is")?.display().to_string();
    let xipvs = ::tests::lab::binary().canonicalize()?.display().to_string();
    let runner = [&xtask, "vm", "--timeout", VM_TIMEOUT, "--", "sh", "-c", PREPARE, &xipvs]
        .map(|word| format!("{word:?}"));
    let runner = format!("target.'cfg(all())'.runner = [{}]", runner.join(", "));
    run_command(cargo_test(level).args(["--config", &runner, "--"]).args(words))
}

fn level(what: &str) {
    eprintln!("== tests: {what}");
}
