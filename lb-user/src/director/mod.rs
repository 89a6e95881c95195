//! The dozen verbs of IPVS, and the directors that carry them out.
//!
//! Everything above this trait (command line, listing, save, restore, plans) works on any director.
//! Checks that ipvsadm makes are made above; what the kernel refuses, a director refuses, in the same
//! order, with an [`Error`] that names the same condition. IPVS counterpart: `ip_vs_ctl.c`.

pub mod kernel;
pub mod memory;
mod newest;
pub mod xdp;

use std::hash::{DefaultHasher, Hash, Hasher};

use lb_common::mark::Rule;

use crate::table::{
    ConnectionReport, Destination, DestinationKey, DestinationReport, EntryReport, Info, Service, ServiceKey,
    ServiceReport, SyncDaemon, SyncRole, TableReport, Timeouts,
};

/// Why a director did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The service is there already (EEXIST).
    #[error("Service already exists")]
    ServiceExists,
    /// There is no such service (ESRCH); worded for the destination commands as "Service not defined".
    #[error("No such service")]
    NoSuchService,
    /// The destination is there already (EEXIST).
    #[error("Destination already exists")]
    DestinationExists,
    /// There is no such destination (ENOENT).
    #[error("No such destination")]
    NoSuchDestination,
    /// The scheduler or the persistence engine is not there (ENOENT).
    #[error("Scheduler or persistence engine not found")]
    UnknownScheduler,
    /// A daemon of that role runs already (EEXIST).
    #[error("Daemon has already run")]
    DaemonRuns,
    /// No daemon of that role runs (ESRCH).
    #[error("No daemon is running")]
    NoDaemon,
    /// A value that the director does not take: an address that is not unicast, a wrong family (EINVAL).
    #[error("Invalid operation.  Possibly wrong module version, address not unicast, ...")]
    Invalid,
    /// A number out of range, such as a lower threshold above the upper one (ERANGE).
    #[error("Numerical result out of range")]
    OutOfRange,
    /// The caller lacks CAP_NET_ADMIN (EPERM).
    #[error("Permission denied (you must be root)")]
    PermissionDenied,
    /// The kernel has no IPVS, nor a module with it (ENOPROTOOPT).
    #[error("this kernel has no IPVS, and no module ip_vs that could be loaded")]
    NoIpvs,
    /// Any other error number of the kernel, with the C library's text.
    #[error("{}", errno_text(*.0))]
    Errno(i32),
    /// The director knows what was asked and cannot do it; the text names it.
    #[error("{0}")]
    Unsupported(String),
    /// The director itself cannot be reached or set up.
    #[error("{0}")]
    Unavailable(String),
}

/// The C library's text for an error number.
fn errno_text(number: i32) -> String {
    let text = std::io::Error::from_raw_os_error(number).to_string();
    match text.rfind(" (os error ") {
        Some(end) => text[..end].into(),
        None => text,
    }
}

/// What a director without rules that mark packets says of them.
fn marked_elsewhere() -> Error {
    Error::Unsupported("Packets for this director are marked by netfilter".into())
}

/// A director's answer.
pub type Result<T> = std::result::Result<T, Error>;

/// A virtual-server table and its connections.
pub trait Director {
    /// Version and table size.
    fn info(&mut self) -> Result<Info>;

    /// All services, in the director's own order.
    fn services(&mut self) -> Result<Vec<ServiceReport>>;

    /// One service.
    fn service(&mut self, key: &ServiceKey) -> Result<ServiceReport>;

    /// A service's destinations, newest first; of a service that does not exist, none.
    fn destinations(&mut self, service: &ServiceKey) -> Result<Vec<DestinationReport>>;

    /// Whether services can have timeouts of their own.
    fn has_own_timeouts(&self) -> bool {
        true
    }

    /// Adds a service.
    fn add_service(&mut self, service: &Service) -> Result<()>;

    /// Replaces all that is configured of a service; destinations and counters stay.
    fn edit_service(&mut self, service: &Service) -> Result<()>;

    /// Deletes a service and its destinations; connections stay until they expire.
    fn delete_service(&mut self, key: &ServiceKey) -> Result<()>;

    /// Deletes every service; connections, timeouts and daemons stay.
    fn flush(&mut self) -> Result<()>;

    /// Adds a destination, at the head of its service's list.
    fn add_destination(&mut self, service: &ServiceKey, destination: &Destination) -> Result<()>;

    /// Replaces all that is configured of a destination; it keeps its place.
    fn edit_destination(&mut self, service: &ServiceKey, destination: &Destination) -> Result<()>;

    /// Deletes a destination; its connections stay until they expire.
    fn delete_destination(&mut self, service: &ServiceKey, destination: &DestinationKey) -> Result<()>;

    /// Zeroes the counters and rates of one service and its destinations, or of everything.
    fn zero(&mut self, service: Option<&ServiceKey>) -> Result<()>;

    /// The timeouts.
    fn timeouts(&mut self) -> Result<Timeouts>;

    /// Sets the timeouts; a 0 keeps what was.
    fn set_timeouts(&mut self, timeouts: &Timeouts) -> Result<()>;

    /// The running sync daemons, master first.
    fn daemons(&mut self) -> Result<Vec<SyncDaemon>>;

    /// Starts a sync daemon.
    fn start_daemon(&mut self, daemon: &SyncDaemon) -> Result<()>;

    /// Stops the sync daemon of a role.
    fn stop_daemon(&mut self, role: SyncRole) -> Result<()>;

    /// The connections and templates, in the director's own order.
    fn connections(&mut self) -> Result<Vec<ConnectionReport>>;

    /// The rules that mark packets, in their order; none where netfilter marks them.
    fn mark_rules(&mut self) -> Result<Option<Vec<Rule>>> {
        Ok(None)
    }

    /// Changes the rules that mark packets, all at once.
    fn change_mark_rules(&mut self, _change: &mut dyn FnMut(&mut Vec<Rule>) -> Result<()>) -> Result<()> {
        Err(marked_elsewhere())
    }

    /// A number that stays the same while nothing is configured anew, for whoever asks again and again.
    ///
    /// A director says what its number does not tell, if it is not everything.
    fn fingerprint(&mut self) -> Result<u64> {
        let mut hasher = DefaultHasher::new();
        self.table()?.configured().hash(&mut hasher);
        Ok(hasher.finish())
    }

    /// The whole table: services with their destinations, the timeouts, and the rules that mark packets.
    fn table(&mut self) -> Result<TableReport> {
        let mut entries = Vec::new();
        for service in self.services()? {
            let destinations = self.destinations(&service.service.key)?;
            entries.push(EntryReport { service, destinations });
        }
        Ok(TableReport { entries, timeouts: self.timeouts()?, marks: self.mark_rules()? })
    }
}
