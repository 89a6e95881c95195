//! Tests against real kernel IPVS and the real ipvsadm, to be run where both are: in the reference VM.
//!
//! `cargo xtask test` runs them there. Each test has a network namespace of its own, gone with its thread.

mod command_line;
mod configuration;
mod differential;
mod director;
mod follow;
mod sync;
mod takeover;

use std::fs::File;
use std::io::Write;
use std::ops::{Deref, DerefMut};
use std::process::{Command, Output, Stdio};

use nix::sched::{CloneFlags, unshare};
use tests::lab::binary;
use xipvs::director::Director as _;
use xipvs::director::kernel::Kernel;
use xipvs::director::xdp::Xdp;
use xipvs::director::xdp::lifecycle;
use xipvs::director::xdp::sizes::Sizes;

/// A new network namespace, which the calling thread is in from now on.
fn namespace() -> File {
    unshare(CloneFlags::CLONE_NEWNET).expect("a new network namespace needs root");
    // Without any address there is no routing table, and every destination counts as broadcast.
    shell("ip link set lo up");
    File::open("/proc/thread-self/ns/net").unwrap()
}

/// Kernel IPVS in a network namespace of its own; emptied with this value.
///
/// What is left in a namespace the kernel removes some time later, and from the listings that it makes of other namespaces
/// meanwhile services may be missing.
struct OwnKernel(Kernel);

/// Reaches it in a new network namespace.
fn kernel() -> OwnKernel {
    namespace();
    let kernel = Kernel::open();
    OwnKernel(kernel.expect("these tests need kernel IPVS: `cargo xtask test` runs them in the reference VM"))
}

impl Deref for OwnKernel {
    type Target = Kernel;

    fn deref(&self) -> &Kernel {
        &self.0
    }
}

impl DerefMut for OwnKernel {
    fn deref_mut(&mut self) -> &mut Kernel {
        &mut self.0
    }
}

impl Drop for OwnKernel {
    fn drop(&mut self) {
        let _ = self.0.flush();
    }
}

/// The XDP director in the calling thread's namespace; removed with this value.
struct OwnXdp(Xdp);

/// Loads it.
fn xdp() -> OwnXdp {
    let sizes = Sizes::new(lifecycle::possible_cpus().unwrap());
    let pins =
        lifecycle::load(&sizes).expect("an XDP program: `cargo xtask test` builds it and mounts bpffs");
    OwnXdp(Xdp::open(pins.directory()).unwrap())
}

impl Deref for OwnXdp {
    type Target = Xdp;

    fn deref(&self) -> &Xdp {
        &self.0
    }
}

impl DerefMut for OwnXdp {
    fn deref_mut(&mut self) -> &mut Xdp {
        &mut self.0
    }
}

impl Drop for OwnXdp {
    fn drop(&mut self) {
        let _ = lifecycle::detach_all();
    }
}

/// Runs a line of shell in the calling thread's namespace, where `xipvs` is the one that was built.
fn shell(line: &str) {
    let built = binary();
    let path = format!("{}:{}", built.parent().unwrap().display(), std::env::var("PATH").unwrap_or_default());
    let status = Command::new("sh").args(["-c", line]).env("PATH", path).status().expect("a shell");
    assert!(status.success(), "{line}");
}

/// Runs the real ipvsadm in the calling thread's namespace.
fn ipvsadm(arguments: &[&str], input: &str) -> Output {
    let mut child = Command::new("/sbin/ipvsadm")
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the real ipvsadm");
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    child.wait_with_output().unwrap()
}

/// Runs the real ipvsadm, which must succeed, and returns what it printed.
fn ipvsadm_prints(arguments: &[&str], input: &str) -> String {
    let output = ipvsadm(arguments, input);
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && said.is_empty(), "ipvsadm {arguments:?}: {said}\n{input}");
    String::from_utf8(output.stdout).unwrap()
}
