//! The sync daemons of the XDP director: a master tells of its connections, a backup takes what it is told.
//!
//! A daemon is a process of its own that works on the pinned maps; killing it loses nothing but what is not told. What to
//! tell and to take is decided in `lb_common::sync`. Both roles can run beside each other, as in IPVS; what a backup was told
//! its own master keeps to itself until a packet comes. IPVS counterpart: `ip_vs_sync.c`.

mod backup;
mod master;
pub mod socket;

use std::os::fd::{AsFd, BorrowedFd};
use std::time::Duration;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use self::backup::Backup;
use self::master::Master;
use crate::director::xdp::Xdp;
use crate::director::xdp::daemon::{Entered, Tally};
use crate::director::{Error, Result};
use crate::table::{SyncDaemon, SyncRole};

/// A sync daemon: this process.
#[derive(Debug)]
pub struct Daemon {
    xdp: Xdp,
    entered: Entered,
    work: Work,
    told: Tally,
}

#[derive(Debug)]
enum Work {
    Master(Box<Master>),
    Backup(Box<Backup>),
}

impl Daemon {
    /// Makes the calling process the sync daemon of a role, which from then on is listed.
    ///
    /// # Errors
    ///
    /// Those of kernel IPVS, in its order: a group that is not multicast or destinations of two families; ENODEV; a daemon
    /// of that role; ENETUNREACH for the master on an interface that is down.
    pub fn start(mut xdp: Xdp, wanted: &SyncDaemon) -> Result<Self> {
        if wanted.group.is_some_and(|group| !group.is_multicast()) {
            return Err(Error::Invalid);
        }
        let directory = xdp.maps().directory().to_owned();
        let (entered, work) = xdp.enter_daemon(|daemons| {
            let interface = socket::Interface::find(&wanted.interface)?;
            let entered = daemons.enter(wanted.role)?;
            let daemon = wanted.completed(interface.mtu);
            let work = match daemon.role {
                SyncRole::Master => Work::Master(Box::new(Master::new(&daemon, &interface, &directory)?)),
                SyncRole::Backup => Work::Backup(Box::new(Backup::new(&daemon, &interface)?)),
            };
            entered.publish(&daemon)?;
            Ok((entered, work))
        })?;
        Ok(Self { xdp, entered, work, told: Tally::default() })
    }

    /// Works until `stop` can be read.
    ///
    /// # Errors
    ///
    /// When the table is gone or cannot be read.
    pub fn run(&mut self, stop: BorrowedFd<'_>) -> Result<()> {
        loop {
            let tally = match &mut self.work {
                Work::Master(master) => {
                    if wait(stop, &master.readable(), master.rest())? {
                        return Ok(());
                    }
                    self.xdp.check_place()?;
                    master.work(&self.xdp)?;
                    master.tally()
                }
                Work::Backup(backup) => {
                    if wait(stop, &backup.readable(), backup.rest())? {
                        return Ok(());
                    }
                    self.xdp.check_place()?;
                    backup.work(&mut self.xdp)?;
                    backup.tally()
                }
            };
            if *tally != self.told {
                self.entered.tell(tally);
                self.told.clone_from(tally);
            }
        }
    }
}

/// Waits until one of some sockets can be read or a time is over, and says whether `stop` can be.
fn wait(stop: BorrowedFd<'_>, sockets: &[BorrowedFd<'_>], limit: Duration) -> Result<bool> {
    let mut set: Vec<PollFd<'_>> =
        [stop].iter().chain(sockets).map(|fd| PollFd::new(*fd, PollFlags::POLLIN)).collect();
    // Rounded up, so that the time is over afterwards.
    let timeout = PollTimeout::try_from(limit + Duration::from_millis(1)).unwrap_or(PollTimeout::MAX);
    match poll(&mut set, timeout) {
        Ok(_) => Ok(set[0].any().unwrap_or(true)),
        Err(Errno::EINTR) => Ok(false),
        Err(error) => Err(Error::Errno(error as i32)),
    }
}

/// The file descriptors of sockets.
fn descriptors<'a>(sockets: impl IntoIterator<Item = &'a std::net::UdpSocket>) -> Vec<BorrowedFd<'a>> {
    sockets.into_iter().map(AsFd::as_fd).collect()
}
