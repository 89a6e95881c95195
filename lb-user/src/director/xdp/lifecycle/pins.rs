//! Where the maps, programs and links of a network namespace are pinned, and the lock on it.
//!
//! The directory is named after the namespace's cookie. The lock is the directory's own (`flock`), so that it
//! works wherever the pins can be seen, and the kernel ends it with the process.

use std::fs::{self, DirBuilder, File};
use std::io::{self, ErrorKind};
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

use nix::mount::{MsFlags, mount};
use nix::sys::statfs::{BPF_FS_MAGIC, statfs};

use super::refused;
use crate::director::{Error, Result};
use crate::netns;

/// Where bpffs is mounted by convention.
const BPFFS: &str = "/sys/fs/bpf";
/// What belongs to namespaces and cannot be pinned.
const RECORDS: &str = "/run/xipvs";

/// The place of a network namespace's pins.
#[derive(Debug, Clone)]
pub struct Pins {
    directory: PathBuf,
    records: PathBuf,
}

/// Keeps other commands away while it lives.
#[derive(Debug)]
#[must_use]
pub struct Guard {
    _lock: File,
}

impl Pins {
    /// Finds the place for the calling thread's namespace; nothing needs to be there yet.
    ///
    /// # Errors
    ///
    /// Without the right to administer the network and BPF, or when there is no bpffs and none can be mounted.
    pub fn find() -> Result<Self> {
        if !may_administer() {
            return Err(Error::PermissionDenied);
        }
        let cookie =
            netns::cookie().map_err(|error| refused("no cookie of the network namespace", &error))?;
        let directory = bpffs()?.join("xipvs").join(cookie.to_string());
        let records = records_of(&directory);
        Ok(Self { directory, records })
    }

    /// Returns the directory of the pins.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Returns the directory of what is remembered outside bpffs.
    pub(super) fn records(&self) -> &Path {
        &self.records
    }

    /// Whether maps and programs are there, whole.
    pub fn is_loaded(&self) -> bool {
        // Moved here last.
        self.directory.join("SETTINGS").exists()
    }

    /// Waits for other commands and keeps them away, for a place where nothing needs to be yet.
    ///
    /// # Errors
    ///
    /// When the directory cannot be made or locked.
    pub fn lock(&self) -> Result<Guard> {
        let failed = |error: io::Error| refused(format!("cannot lock {}", self.directory.display()), &error);
        loop {
            DirBuilder::new().recursive(true).mode(0o700).create(&self.directory).map_err(failed)?;
            match self.lock_what_is_there() {
                Ok(Some(guard)) => return Ok(guard),
                Ok(None) => {}
                Err(error) => return Err(failed(error)),
            }
        }
    }

    /// As [`Pins::lock`], but makes no directory: `None` when there is none.
    ///
    /// # Errors
    ///
    /// When the directory cannot be locked.
    pub fn lock_existing(&self) -> Result<Option<Guard>> {
        self.lock_what_is_there()
            .map_err(|error| refused(format!("cannot lock {}", self.directory.display()), &error))
    }

    /// `None` when there is nothing to lock, or what was locked was removed by whoever had it before.
    fn lock_what_is_there(&self) -> io::Result<Option<Guard>> {
        let gone = |error: io::Error| if error.kind() == ErrorKind::NotFound { Ok(None) } else { Err(error) };
        let file = match File::open(&self.directory) {
            Ok(file) => file,
            Err(error) => return gone(error),
        };
        file.lock()?;
        match fs::metadata(&self.directory) {
            Ok(now) if now.ino() == file.metadata()?.ino() => Ok(Some(Guard { _lock: file })),
            Ok(_) => Ok(None),
            Err(error) => gone(error),
        }
    }

    /// Removes every pin, and the directory with them.
    pub(super) fn remove(&self, _guard: &Guard) -> Result<()> {
        let gone = |result: io::Result<()>| match result {
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
            result => result,
        };
        gone(fs::remove_dir_all(&self.directory))
            .and_then(|()| gone(fs::remove_dir_all(&self.records)))
            .map_err(|error| refused(format!("cannot remove {}", self.directory.display()), &error))?;
        // Other namespaces may still have theirs.
        for parent in [&self.directory, &self.records].into_iter().filter_map(|path| path.parent()) {
            let _ = fs::remove_dir(parent);
        }
        Ok(())
    }
}

/// Returns the directory of what belongs to the maps that are pinned in this one and cannot be pinned.
pub fn records_of(directory: &Path) -> PathBuf {
    Path::new(RECORDS).join(directory.file_name().unwrap_or_default())
}

/// Finds bpffs, or mounts it.
///
/// `ip netns exec` mounts a new /sys over the old one for its command alone, so that bpffs is looked for where
/// the processes see it that this one comes from, too. One mounted there would go with the command.
fn bpffs() -> Result<PathBuf> {
    let is_bpffs = |path: &Path| statfs(path).is_ok_and(|about| about.filesystem_type() == BPF_FS_MAGIC);
    let mut is_shared = true;
    let mut process = "self".to_owned();
    let own = fs::read_link("/proc/self/ns/mnt").ok();
    loop {
        let proc = Path::new("/proc").join(&process);
        // The plain path is what messages should show.
        let path = if process == "self" { BPFFS.into() } else { proc.join("root").join(&BPFFS[1..]) };
        if is_bpffs(&path) {
            return Ok(path);
        }
        // What may not be read is not known to be another.
        is_shared &= fs::read_link(proc.join("ns/mnt")).map_or(true, |theirs| Some(theirs) == own);
        match parent(&proc) {
            Some(parent) if parent != "0" => process = parent,
            _ => break,
        }
    }
    if !is_shared {
        let what = format!("no bpffs at {BPFFS} (inside `ip netns exec`, use `xipvs --netns NAME` instead)");
        return Err(Error::Unavailable(what));
    }
    match mount(Some("bpf"), BPFFS, Some("bpf"), MsFlags::empty(), None::<&str>) {
        Ok(()) => Ok(BPFFS.into()),
        Err(error) => Err(refused(format!("no bpffs, and none can be mounted at {BPFFS}"), &error.into())),
    }
}

/// The number of a process's parent.
fn parent(process: &Path) -> Option<String> {
    let status = fs::read_to_string(process.join("status")).ok()?;
    Some(status.lines().find_map(|line| line.strip_prefix("PPid:"))?.trim().to_owned())
}

/// Whether this process may change the network and load programs.
///
/// Asked first, because bpffs lets everybody make directories.
fn may_administer() -> bool {
    const NET_ADMIN: u32 = 12;
    const SYS_ADMIN: u32 = 21;
    const BPF: u32 = 39;
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let Some(Ok(bits)) = effective.map(|bits| u64::from_str_radix(bits.trim(), 16)) else { return false };
    let has = |capability: u32| bits >> capability & 1 == 1;
    has(NET_ADMIN) && (has(BPF) || has(SYS_ADMIN))
}
