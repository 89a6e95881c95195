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
    run_command(cargo("build")?.arg("--release")).context(
        "the BPF program was not built; if the linker complains about its input, build it again against \
         LLVM 22: LLVM_PREFIX=/usr/lib/llvm-22 cargo install bpf-linker@0.13.0 --locked \
         --no-default-features --features llvm-22 --force",
    )?;
    let built = command::target().join("bpf").join(TARGET).join("release/lb-ebpf");
    let bytes = fs::read(&built).with_context(|| format!("cannot read {}", built.display()))?;
    let object = command::target().join("xipvs.bpf.o");
    if !fs::read(&object).is_ok_and(|old| old == bytes) {
        let new = object.with_extension("o.new");
        fs::write(&new, &bytes)?;
        fs::rename(&new, &object)?;
    }
    Ok(object)
}

/// Makes a cargo command for the BPF crate, its target and its compiler.
pub fn cargo(verb: &str) -> Result<Command> {
    let toolchain = Toolchain::find().context("no compiler for BPF; run `cargo xtask setup`")?;
    let linker = command::find("bpf-linker").context("no bpf-linker; run `cargo xtask setup`")?;
    let mut cargo = toolchain.cargo();
    cargo
        .args([verb, "--package", "lb-ebpf", "-Z", "build-std=core", "--target", TARGET, "--target-dir"])
        .arg(command::target().join("bpf"))
        // Packet bytes are read by the word at any address, as the machine can.
        // The BTF that --btf keeps comes from the debug information; without it no timers and no spin locks.
        .env("RUSTFLAGS", format!("-C debuginfo=2 -C target-cpu=v3 -C target-feature=+allows-misaligned-mem-access -C link-arg=--btf -C linker={}", linker.display()));
    Ok(cargo)
}
