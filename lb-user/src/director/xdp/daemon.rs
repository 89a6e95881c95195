//! The sync daemons of a network namespace: which of them run, how they are started and stopped.
//!
//! IPVS's are threads of the kernel; ours are processes. That one runs is a lock on its record, which the kernel gives back
//! however the process ends and which tells the process's number; what the daemon was told to do stands in the record. The
//! lock is of the kind that goes when its process closes the file, whoever in it opened that: a daemon must never look for
//! daemons. What they do is [`crate::sync`]. IPVS counterpart: `start_sync_thread` and `stop_sync_thread`.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use nix::fcntl::{FcntlArg, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use serde::{Deserialize, Serialize};

use super::lifecycle::records_of;
use crate::director::{Error, Result};
use crate::table::{SyncDaemon, SyncRole};

/// What a daemon that was started in the background says on its standard output when it runs.
const RUNS: &str = "runs";
/// What it says before the number of an error.
const ERROR: &str = "error ";

/// Milliseconds that a daemon has to end after it was told to.
const PATIENCE: u16 = 10_000;

/// The daemons of a network namespace.
#[derive(Debug, Clone)]
pub struct Daemons {
    directory: PathBuf,
}

/// What a daemon has done since it was started.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tally {
    /// Messages sent or received.
    pub messages: u64,
    /// Connections and templates in them, each time that it was told.
    pub records: u64,
    /// A backup: put into the table.
    pub taken: u64,
    /// A backup: there already, and brought up to date.
    pub renewed: u64,
    /// A backup: not taken, by reason. A master: not told.
    pub left: BTreeMap<String, u64>,
    /// A backup: waiting for their destination to be added.
    pub waiting: u64,
}

impl Tally {
    /// Counts something that was left.
    pub fn leave(&mut self, reason: &str) {
        match self.left.get_mut(reason) {
            Some(count) => *count += 1,
            None => drop(self.left.insert(reason.into(), 1)),
        }
    }
}

impl Daemons {
    /// Those of the namespace whose maps are pinned in this directory.
    pub fn of(directory: &Path) -> Self {
        Self { directory: records_of(directory) }
    }

    fn record(&self, role: SyncRole) -> PathBuf {
        self.directory.join(format!("sync-{}", role.name()))
    }

    fn tally_file(&self, role: SyncRole) -> PathBuf {
        self.record(role).with_extension("tally")
    }

    /// The daemon of a role, if one runs.
    ///
    /// # Errors
    ///
    /// When its record cannot be read.
    pub fn running(&self, role: SyncRole) -> Result<Option<SyncDaemon>> {
        let Some(mut record) = self.open(role)? else { return Ok(None) };
        if holder(&record).map_err(|error| self.failed(role, &error))?.is_none() {
            return Ok(None);
        }
        let mut text = String::new();
        record.read_to_string(&mut text).map_err(|error| self.failed(role, &error))?;
        // One that has only begun to start has written nothing yet.
        Ok(serde_json::from_str(&text).ok())
    }

    /// Whether any runs.
    ///
    /// # Errors
    ///
    /// As of [`Daemons::running`].
    pub fn any(&self) -> Result<bool> {
        Ok(SyncRole::ALL
            .into_iter()
            .map(|role| self.running(role))
            .collect::<Result<Vec<_>>>()?
            .iter()
            .any(Option::is_some))
    }

    /// What the daemon of a role has done, if it has told that.
    pub fn tally(&self, role: SyncRole) -> Option<Tally> {
        serde_json::from_str(&fs::read_to_string(self.tally_file(role)).ok()?).ok()
    }

    fn open(&self, role: SyncRole) -> Result<Option<File>> {
        match File::open(self.record(role)) {
            Ok(record) => Ok(Some(record)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(self.failed(role, &error)),
        }
    }

    fn failed(&self, role: SyncRole, error: &io::Error) -> Error {
        Error::Unavailable(format!("{}: {error}", self.record(role).display()))
    }

    /// Starts a daemon in the background, by a program that has [`Daemons::enter`] called in the end, and waits until it
    /// runs or has said why not.
    ///
    /// # Errors
    ///
    /// What kernel IPVS says in such a case, or that the program cannot be run.
    pub fn start(program: &Path, daemon: &SyncDaemon) -> Result<()> {
        let failed = |why: String| Error::Unavailable(format!("cannot start the sync daemon: {why}"));
        let mut command = Command::new(program);
        command.arg0("xipvs").arg("sync").arg(daemon.role.name()).arg("--background");
        command.arg(format!("--mcast-interface={}", daemon.interface));
        command.arg(format!("--syncid={}", daemon.sync_id));
        if daemon.max_length != 0 {
            command.arg(format!("--sync-maxlen={}", daemon.max_length));
        }
        if let Some(group) = daemon.group {
            command.arg(format!("--mcast-group={group}"));
        }
        if daemon.port != 0 {
            command.arg(format!("--mcast-port={}", daemon.port));
        }
        if daemon.ttl != 0 {
            command.arg(format!("--mcast-ttl={}", daemon.ttl));
        }
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut child = command.spawn().map_err(|error| failed(error.to_string()))?;
        let mut said = String::new();
        if let Some(mut stdout) = child.stdout.take() {
            stdout.read_to_string(&mut said).map_err(|error| failed(error.to_string()))?;
        }
        if said == RUNS {
            return Ok(());
        }
        // So that the process that did not become a daemon is gone.
        let status = child.wait().map_err(|error| failed(error.to_string()))?;
        match said.strip_prefix(ERROR).map(|number| number.parse()) {
            Some(Ok(libc::EEXIST)) => Err(Error::DaemonRuns),
            Some(Ok(libc::EINVAL)) => Err(Error::Invalid),
            Some(Ok(libc::EPERM)) => Err(Error::PermissionDenied),
            Some(Ok(number)) => Err(Error::Errno(number)),
            _ if said.is_empty() => Err(failed(format!("it ended ({status})"))),
            _ => Err(Error::Unavailable(said)),
        }
    }

    /// What a daemon in the background says of how its start went.
    pub fn answer(started: &Result<()>) -> String {
        let number = match started {
            Ok(()) => return RUNS.into(),
            Err(Error::DaemonRuns) => libc::EEXIST,
            Err(Error::Invalid) => libc::EINVAL,
            Err(Error::PermissionDenied) => libc::EPERM,
            Err(Error::Errno(number)) => *number,
            Err(other) => return other.to_string(),
        };
        format!("{ERROR}{number}")
    }

    /// Makes the calling process the daemon of a role, for as long as the answer lives.
    ///
    /// # Errors
    ///
    /// `DaemonRuns` when there is one already.
    pub fn enter(&self, role: SyncRole) -> Result<Entered> {
        let failed = |error: &io::Error| self.failed(role, error);
        fs::create_dir_all(&self.directory).map_err(|error| failed(&error))?;
        let record = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(self.record(role))
            .map_err(|error| failed(&error))?;
        match fcntl(&record, FcntlArg::F_SETLK(&whole(libc::F_WRLCK))) {
            Ok(_) => {}
            Err(nix::errno::Errno::EAGAIN | nix::errno::Errno::EACCES) => return Err(Error::DaemonRuns),
            Err(error) => return Err(failed(&error.into())),
        }
        // What one before has left.
        record.set_len(0).map_err(|error| failed(&error))?;
        let _ = fs::remove_file(self.tally_file(role));
        Ok(Entered { daemons: self.clone(), role, record })
    }

    /// Stops the daemon of a role, and waits until it has ended.
    ///
    /// # Errors
    ///
    /// `NoDaemon` when there is none; when it does not end.
    pub fn stop(&self, role: SyncRole) -> Result<()> {
        let failed = |error: io::Error| self.failed(role, &error);
        let Some(record) = self.open(role)? else { return Err(Error::NoDaemon) };
        let Some(pid) = holder(&record).map_err(failed)? else { return Err(Error::NoDaemon) };
        let process = match pidfd_open(pid, PidfdFlags::empty()) {
            Ok(process) => process,
            // It has just ended.
            Err(rustix::io::Errno::SRCH) => return Ok(()),
            Err(error) => return Err(failed(error.into())),
        };
        // The number is still its own, and so the descriptor's.
        if holder(&record).map_err(failed)? != Some(pid) {
            return Ok(());
        }
        for signal in [Signal::TERM, Signal::KILL] {
            // It may have ended by itself.
            let _ = pidfd_send_signal(&process, signal);
            let mut set = [PollFd::new(process.as_fd(), PollFlags::POLLIN)];
            if poll(&mut set, PollTimeout::from(PATIENCE)).map_err(|error| failed(error.into()))? > 0 {
                return Ok(());
            }
        }
        Err(Error::Unavailable(format!(
            "the sync daemon does not end (process {pid})",
            pid = pid.as_raw_nonzero()
        )))
    }

    /// Stops those that run.
    ///
    /// # Errors
    ///
    /// As of [`Daemons::stop`].
    pub fn stop_all(&self) -> Result<()> {
        for role in SyncRole::ALL {
            match self.stop(role) {
                Ok(()) | Err(Error::NoDaemon) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

/// Being the daemon of a role.
#[derive(Debug)]
pub struct Entered {
    daemons: Daemons,
    role: SyncRole,
    record: File,
}

impl Entered {
    /// Says what the daemon does: from now on it is listed.
    ///
    /// # Errors
    ///
    /// When the record cannot be written.
    pub fn publish(&self, daemon: &SyncDaemon) -> Result<()> {
        let text = serde_json::to_vec(daemon).map_err(io::Error::from);
        let written = text.and_then(|text| (&self.record).write_all(&text));
        written.map_err(|error| self.daemons.failed(self.role, &error))
    }

    /// Tells what the daemon has done so far.
    pub fn tell(&self, tally: &Tally) {
        let file = self.daemons.tally_file(self.role);
        let new = file.with_extension("new");
        // Nobody's work depends on it.
        let _ = serde_json::to_vec(tally)
            .map_err(io::Error::from)
            .and_then(|text| fs::write(&new, text))
            .and_then(|()| fs::rename(&new, &file));
    }
}

/// A lock of the whole file.
fn whole(kind: libc::c_int) -> libc::flock {
    libc::flock {
        l_type: kind as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: 0,
        l_len: 0,
        l_pid: 0,
    }
}

/// The process that holds the lock of a record.
fn holder(record: &File) -> io::Result<Option<Pid>> {
    let mut lock = whole(libc::F_WRLCK);
    fcntl(record, FcntlArg::F_GETLK(&mut lock))?;
    Ok(if lock.l_type == libc::F_UNLCK as libc::c_short { None } else { Pid::from_raw(lock.l_pid) })
}
