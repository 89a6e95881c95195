//! `cargo xtask vm -- COMMAND`: runs a command on Debian's 6.1 kernel, over this machine's file system.
//!
//! The guest sees the same files read-only (writes to /tmp, /var, /home and their like are lost with it;
//! `--share` names a directory that really is written), has IPVS and its schedulers, and no network but its own.
//! The command's output and exit status are those of the run; variables whose names begin with XIPVS_ are the guest's too. PyPI's virtme-ng does the booting.

use std::env;
use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, ExitStatus, Stdio};
use std::thread;

use anyhow::Context as _;

use crate::need::{self, Group};
use crate::setup;

/// Seconds in which a guest under KVM must have booted and run `true`; it takes about five.
const PROBE_SECONDS: u32 = 40;

/// Runs a command in the reference VM.
#[derive(Debug, clap::Args)]
pub struct Vm {
    /// Make the guest's time its count of instructions (one CPU, emulated): repeatable costs.
    #[arg(long)]
    count_instructions: bool,

    /// Virtual CPUs.
    #[arg(long, default_value_t = 2, conflicts_with = "count_instructions")]
    cpus: u32,

    /// Memory in GiB.
    #[arg(long, default_value_t = 4)]
    memory: u32,

    /// End the guest after this many seconds, with status 124.
    #[arg(long, default_value_t = 900)]
    timeout: u32,

    /// A directory that the guest can write to.
    #[arg(long, value_name = "DIRECTORY")]
    share: Vec<PathBuf>,

    /// Another kernel image than the newest 6.1 in /boot.
    #[arg(long, value_name = "FILE")]
    kernel: Option<PathBuf>,

    /// The command: one word is a line for the shell, more are a program and its arguments.
    #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
    command: Vec<String>,
}

impl Vm {
    /// Boots, runs, and hands on the command's exit status. Installs what is missing first.
    pub fn run(&self) -> anyhow::Result<ExitCode> {
        setup::ensure_quietly(&[Group::Vm])?;
        let vng = need::vng()?;
        let cache = need::cache();
        fs::create_dir_all(&cache).with_context(|| cache.display().to_string())?;
        let kernel = match &self.kernel {
            Some(kernel) => kernel.clone(),
            None => need::reference_kernel()?,
        };

        // Two guests at once would starve each other where they are emulated.
        let lock = File::create(cache.join("vm.lock"))?;
        lock.lock().context("waiting for another virtual machine to end")?;

        let accelerated = !self.count_instructions && kvm_works(&vng, &kernel, &cache)?;
        let mut guest = guest(&vng, &kernel, accelerated, self.timeout)?;
        guest.arg(format!("--memory={}G", self.memory));
        if self.count_instructions {
            guest.args(["--cpus=1", "--qemu-opts=-icount shift=0,sleep=off"]);
        } else {
            guest.arg(format!("--cpus={}", self.cpus));
        }
        for directory in &self.share {
            let directory = directory.canonicalize().with_context(|| directory.display().to_string())?;
            guest.arg(format!("--rwdir={}", directory.display()));
        }
        let line = exported(env::vars()) + &shell_line(&self.command);
        let status = relay(guest.arg("--").arg(line)).context("running vng")?;
        let code = status.code().context("the virtual machine was killed")?;
        Ok(ExitCode::from(u8::try_from(code).unwrap_or(1)))
    }
}

/// Runs a command with its output handed on through pipes.
///
/// qemu opens what it is given as standard output anew by its name; a regular file, such as a log that others have written
/// to before, would be emptied by that.
fn relay(command: &mut Command) -> io::Result<ExitStatus> {
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    let errors =
        child.stderr.take().map(|mut from| thread::spawn(move || io::copy(&mut from, &mut io::stderr())));
    if let Some(mut from) = child.stdout.take() {
        io::copy(&mut from, &mut io::stdout())?;
    }
    if let Some(Ok(copied)) = errors.map(thread::JoinHandle::join) {
        copied?;
    }
    child.wait()
}

/// The part of the command line that every guest has.
///
/// `timeout` makes the guest a process group of its own and ends all of it; `setpriv` passes our own end on,
/// so that no guest outlives an interrupted run.
fn guest(vng: &Path, kernel: &Path, accelerated: bool, timeout: u32) -> anyhow::Result<Command> {
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig=TERM", "timeout", "--kill-after=10"]).arg(timeout.to_string());
    command.arg(vng).arg("--run").arg(kernel).args(["--force-9p", "--user=root"]);
    if !accelerated {
        command.arg("--disable-kvm");
    }
    // vng starts its helpers by name, from its own directory.
    let directory = vng.parent().context("vng has no directory")?;
    let mut path = directory.as_os_str().to_owned();
    if let Some(rest) = std::env::var_os("PATH") {
        path.push(":");
        path.push(rest);
    }
    command.env("PATH", path).stdin(Stdio::null());
    Ok(command)
}

/// Whether a guest boots under KVM here; /dev/kvm alone does not say so where virtualisation is nested.
///
/// The answer is remembered for the pair of host and guest kernel.
fn kvm_works(vng: &Path, kernel: &Path, cache: &Path) -> anyhow::Result<bool> {
    if File::options().read(true).write(true).open("/dev/kvm").is_err() {
        return Ok(false);
    }
    let host = fs::read_to_string("/proc/sys/kernel/osrelease")?;
    let guest_name = kernel.file_name().unwrap_or_default().to_string_lossy();
    let answer = cache.join(format!("kvm-{}-{guest_name}", host.trim()));
    if let Ok(text) = fs::read_to_string(&answer) {
        return Ok(text.trim() == "works");
    }
    eprintln!("vm: trying KVM (once, at most {PROBE_SECONDS} s)");
    let status = guest(vng, kernel, true, PROBE_SECONDS)?
        .args(["--memory=1G", "--cpus=1", "--", "true"])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .context("starting vng")?;
    let verdict = if status.success() { "works" } else { "fails" };
    eprintln!("vm: KVM {verdict} here; {} remembers it", answer.display());
    writeln!(File::create(&answer)?, "{verdict}")?;
    Ok(status.success())
}

/// A line that gives the guest what tests are told by variables.
fn exported(variables: impl Iterator<Item = (String, String)>) -> String {
    let ours = variables.filter(|(name, _)| name.starts_with("XIPVS_"));
    ours.map(|(name, value)| format!("export {name}={}; ", quoted(&value))).collect()
}

fn quoted(word: &str) -> String {
    format!("'{}'", word.replace('\'', r"'\''"))
}

/// One word as it is; more words quoted, so that the guest's shell sees the same words.
fn shell_line(words: &[String]) -> String {
    if let [line] = words {
        return line.clone();
    }
    words.iter().map(|word| quoted(word)).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variables_of_ours_are_handed_on() {
        let all = [("XIPVS_SEED", "it's 1"), ("HOME", "/root")].map(|(a, b)| (a.to_owned(), b.to_owned()));
        assert_eq!(exported(all.into_iter()), r"export XIPVS_SEED='it'\''s 1'; ");
    }

    #[test]
    fn one_word_is_a_line_and_more_are_quoted() {
        assert_eq!(shell_line(&["a && b".into()]), "a && b");
        assert_eq!(shell_line(&["echo".into(), "it's $HOME".into()]), r"'echo' 'it'\''s $HOME'");
    }
}
