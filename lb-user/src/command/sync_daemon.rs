//! `xipvs sync`: being a sync daemon, for a service manager in the foreground, and for `--start-daemon` in the background.
//!
//! What it does is [`xipvs::sync`]'s to say.

use std::fs::File;
use std::io::{self, Write};
use std::net::IpAddr;
use std::os::fd::AsFd;

use anyhow::Result;
use clap::{Args, ValueEnum};
use xipvs::director::xdp::daemon::Daemons;
use xipvs::sync::Daemon;
use xipvs::table::{SyncDaemon, SyncRole};

use super::exit::FAILED;
use super::{open, signals};

/// Which of the two.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Role {
    /// Tells of its connections.
    Master,
    /// Takes those of masters.
    Backup,
}

/// What the daemon is told; ipvsadm's words.
#[derive(Debug, Args)]
pub struct Words {
    /// Which daemon.
    #[arg(value_enum)]
    role: Role,
    /// The interface that it speaks on.
    #[arg(long = "mcast-interface", value_name = "IFACE", default_value = "eth0")]
    interface: String,
    /// Its group of directors, 0 to 255; a backup with 0 takes all.
    #[arg(long = "syncid", value_name = "N", default_value_t = 0)]
    sync_id: u8,
    /// Bytes of the longest message.
    #[arg(long = "sync-maxlen", value_name = "N", default_value_t = 0, hide_default_value = true)]
    max_length: u16,
    /// The multicast group, 224.0.0.81 unless told otherwise.
    #[arg(long = "mcast-group", value_name = "ADDRESS")]
    group: Option<IpAddr>,
    /// The UDP port, 8848 unless told otherwise.
    #[arg(long = "mcast-port", value_name = "PORT", default_value_t = 0, hide_default_value = true)]
    port: u16,
    /// How many routers messages may pass, and one: 1 unless told otherwise.
    #[arg(long = "mcast-ttl", value_name = "N", default_value_t = 0, hide_default_value = true)]
    ttl: u8,
    /// Say on standard output whether it has started, and leave the terminal.
    #[arg(long, hide = true)]
    background: bool,
}

/// Carries out `xipvs sync`: 0 when it was told to stop.
pub fn run(words: Words) -> Result<u8> {
    if words.background {
        // SAFETY: nothing was opened yet but the three standard files, so that nobody here owns what is closed: what the
        // starter has left open, locks perhaps, which a daemon would keep for ever.
        unsafe { libc::close_range(3, libc::c_uint::MAX, 0) };
    }
    // Before anything may start threads.
    let stop = signals::to_stop()?;
    let daemon = SyncDaemon {
        role: match words.role {
            Role::Master => SyncRole::Master,
            Role::Backup => SyncRole::Backup,
        },
        interface: words.interface,
        sync_id: words.sync_id.into(),
        max_length: words.max_length,
        group: words.group,
        port: words.port,
        ttl: words.ttl,
    };
    let started = open::xdp().and_then(|xdp| Daemon::start(xdp, &daemon));
    if words.background {
        let (started, answer) = match started {
            Ok(daemon) => (Some(daemon), Daemons::answer(&Ok(()))),
            Err(error) => (None, Daemons::answer(&Err(error))),
        };
        leave_the_terminal(&answer)?;
        return match started {
            Some(mut daemon) => Ok(daemon.run(stop.as_fd()).map(|()| 0)?),
            None => Ok(FAILED),
        };
    }
    started?.run(stop.as_fd())?;
    Ok(0)
}

/// Says to whoever started this process how that went, and leaves it alone from then on.
fn leave_the_terminal(answer: &str) -> Result<()> {
    // Where it leads its group already, no terminal is left to leave.
    let _ = rustix::process::setsid();
    rustix::process::chdir("/")?;
    let mut to = io::stdout().lock();
    // Whoever waited may have been killed; the daemon was to run all the same.
    let _ = to.write_all(answer.as_bytes()).and_then(|()| to.flush());
    rustix::stdio::dup2_stdout(File::options().write(true).open("/dev/null")?)?;
    Ok(())
}
