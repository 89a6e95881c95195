//! A program of the machine's that serves in a namespace until it is dropped.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

/// How long it may take until it serves.
const PATIENCE: Duration = Duration::from_secs(10);

/// A running program; dropping it ends it.
#[derive(Debug)]
pub struct Program {
    process: Child,
    log: PathBuf,
}

impl Program {
    /// Starts a command, what it says going to a file, and waits until it serves.
    pub fn start(mut command: Command, log: &Path, serves: impl Fn() -> bool) -> Result<Self> {
        let file = File::create(log).with_context(|| log.display().to_string())?;
        command.stdout(file.try_clone()?).stderr(file);
        let process = command.spawn().with_context(|| format!("{command:?}"))?;
        let mut program = Self { process, log: log.to_owned() };
        let deadline = Instant::now() + PATIENCE;
        while !serves() {
            let ended = program.process.try_wait()?.is_some();
            if ended || Instant::now() > deadline {
                bail!("{command:?} does not serve: {}", program.said());
            }
            thread::sleep(Duration::from_millis(10));
        }
        Ok(program)
    }

    /// Returns what it has said so far.
    pub fn said(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default().trim_end().to_owned()
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
