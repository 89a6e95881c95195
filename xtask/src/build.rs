//! `cargo xtask build`: the BPF object, then the release binary that carries it.
//!
//! The object stands at `target/xipvs.bpf.o`, from where `lb-user/build.rs` takes it. It is replaced in one step and
//! only when it has changed, so that nothing is compiled again for nothing.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result};

use crate::command::{self, run as run_command};
use crate::toolchain::Toolchain;

const TARGET: &str = "bpfel-unknown-none";
/// The BTF that --btf keeps comes from the debug information; without it no timers and no spin locks.
/// Version 3 of the instructions has 32-bit and atomic ones; packet bytes are read by the word at any address, as the
/// machine can.
const RUSTFLAGS: &str =
    "-C debuginfo=2 -C link-arg=--btf -C target-cpu=v3 -C target-feature=+allows-misaligned-mem-access";

/// Carries out `cargo xtask build`.
pub fn run() -> Result<()> {
    let object = object()?;
    println!("built     {} ({} bytes)", object.display(), object.metadata()?.len());
    run_command(command::cargo().args(["build", "--release", "--package", "lb-user"]))?;
    println!("built     {}", command::target().join("release/xipvs").display());
    Ok(())
}

/// Builds the BPF object and returns where it is.
pub fn object() -> Result<PathBuf> {
    bpf("lb-ebpf", "xipvs.bpf.o")
}

/// Builds the programs that `cargo xtask bench` measures beside it and returns where their object is.
pub fn yardsticks() -> Result<PathBuf> {
    bpf("yardsticks", "yardsticks.bpf.o")
}

/// Builds one binary of the BPF crate and puts it into the build directory.
fn bpf(binary: &str, name: &str) -> Result<PathBuf> {
    let mut cargo = toolchain()?.cargo();
    cargo.args(["build", "--bin", binary]);
    for_bpf(&mut cargo)?;
    run_command(&mut cargo).context(
        "the BPF program was not built; if the linker complains about its input, build it again against \
         LLVM 22: LLVM_PREFIX=/usr/lib/llvm-22 cargo install bpf-linker@0.13.0 --locked \
         --no-default-features --features llvm-22 --force",
    )?;
    let built = command::target().join("bpf").join(TARGET).join("release").join(binary);
    let bytes = fs::read(&built).with_context(|| format!("cannot read {}", built.display()))?;
    let object = command::target().join(name);
    if !fs::read(&object).is_ok_and(|old| old == bytes) {
        let new = object.with_extension("o.new");
        fs::write(&new, &bytes)?;
        fs::rename(&new, &object)?;
    }
    Ok(object)
}

/// Makes a clippy command for the BPF crate.
pub fn clippy() -> Result<Command> {
    let toolchain = toolchain()?;
    let mut clippy = toolchain.clippy();
    clippy.arg("clippy");
    for_bpf(&mut clippy)?;
    Ok(clippy)
}

fn toolchain() -> Result<Toolchain> {
    Toolchain::find().context("no compiler for BPF; run `cargo xtask setup`")
}

/// Adds what the BPF crate's target needs, the same for building and for linting.
fn for_bpf(cargo: &mut Command) -> Result<()> {
    let linker = command::find("bpf-linker").context("no bpf-linker; run `cargo xtask setup`")?;
    cargo
        .args([
            "--release",
            "--package",
            "lb-ebpf",
            "-Z",
            "build-std=core",
            "--target",
            TARGET,
            "--target-dir",
        ])
        .arg(command::target().join("bpf"))
        .env("RUSTFLAGS", format!("{RUSTFLAGS} -C linker={}", linker.display()));
    Ok(())
}
