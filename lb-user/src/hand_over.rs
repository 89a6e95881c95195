//! Connections handed over to kernel IPVS, through its own backup sync daemon.
//!
//! The only way to make a connection in kernel IPVS without a packet is to be its master. A backup daemon acknowledges
//! nothing, and drops what it has no room for; so its connection list is read, and what is not there is sent again.
//! Connections only: the table is `mirror`'s. IPVS counterpart: `ip_vs_sync.c`.

use std::collections::HashSet;
use std::io;
use std::net::IpAddr;
use std::thread::sleep;
use std::time::{Duration, Instant};

use lb_common::protocol::Protocol;
use lb_common::sync::{self, LENGTH, Record};

use crate::director::kernel::Kernel;
use crate::director::{Director, Error, Result};
use crate::sync::socket::{self, Interface, Line, Sent};
use crate::table::{ConnectionReport, SyncDaemon, SyncRole};

/// The interface of a daemon that is started for this alone: messages do not leave the machine.
const INTERFACE: &str = "lo";
const PAUSE: Duration = Duration::from_millis(5);
/// How long nothing may arrive before what is missing is given up.
const PATIENCE: Duration = Duration::from_secs(5);

/// What became of connections that were to be handed over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HandedOver {
    /// In kernel IPVS now.
    pub arrived: usize,
    /// Not there.
    pub missing: usize,
}

/// A connection, as one listing tells it from another.
type Key = (u8, IpAddr, u16, IpAddr, u16, IpAddr, u16, Option<Vec<u8>>);

/// Hands connections over to kernel IPVS, whose table must have their services and destinations. A backup daemon that runs
/// is used; else one is started, and stopped in the end.
///
/// # Errors
///
/// When no daemon can be started, or reached.
pub fn hand_over(records: &[Record<'_>], kernel: &mut Kernel) -> Result<HandedOver> {
    let running = kernel.daemons()?.into_iter().find(|daemon| daemon.role == SyncRole::Backup);
    let started = running.is_none();
    let daemon = match running {
        Some(daemon) => daemon,
        None => start_daemon(kernel)?,
    };
    let handed_over = send_all(records, kernel, &daemon);
    if started {
        kernel.stop_daemon(SyncRole::Backup)?;
    }
    handed_over
}

fn start_daemon(kernel: &mut Kernel) -> Result<SyncDaemon> {
    let daemon = SyncDaemon {
        role: SyncRole::Backup,
        interface: INTERFACE.into(),
        sync_id: 0,
        max_length: 0,
        group: Some(sync::GROUP.into()),
        port: sync::PORT,
        ttl: 1,
    };
    kernel.start_daemon(&daemon)?;
    Ok(daemon)
}

fn send_all(records: &[Record<'_>], kernel: &mut Kernel, daemon: &SyncDaemon) -> Result<HandedOver> {
    let failed = |error: io::Error| Error::Unavailable(format!("cannot reach the sync daemon: {error}"));
    let to = socket::group(daemon, &Interface::find(&daemon.interface)?);
    let socket = socket::sender(&to, &daemon.interface, 1, true).map_err(failed)?;
    let line = Line { socket: &socket, to, sync_id: daemon.sync_id as u8, max_length: LENGTH };
    let mut missing: Vec<&Record<'_>> = records.iter().collect();
    let mut progress = Instant::now();
    while !missing.is_empty() && progress.elapsed() < PATIENCE {
        // What has no form stays missing.
        line.send(missing.iter().copied(), &mut Sent::default()).map_err(failed)?;
        sleep(PAUSE);
        let there: HashSet<Key> = kernel.connections()?.iter().filter_map(listed).collect();
        let before = missing.len();
        missing.retain(|record| !there.contains(&key(record)));
        if missing.len() < before {
            progress = Instant::now();
        }
    }
    Ok(HandedOver { arrived: records.len() - missing.len(), missing: missing.len() })
}

fn key(record: &Record<'_>) -> Key {
    let Record { protocol, client, client_port, virtual_address, virtual_port, .. } = *record;
    (
        protocol,
        client,
        client_port,
        virtual_address,
        virtual_port,
        record.destination,
        record.destination_port,
        record.engine_data.map(Into::into),
    )
}

fn listed(connection: &ConnectionReport) -> Option<Key> {
    let protocol = Protocol::ALL.into_iter().find(|protocol| protocol.name() == connection.protocol);
    // Templates of firewall marks have none.
    let is_known = protocol.is_some() || connection.protocol == "IP";
    is_known.then_some((
        protocol.map_or(0, Protocol::number),
        connection.client,
        connection.client_port,
        connection.virtual_address,
        connection.virtual_port,
        connection.destination,
        connection.destination_port,
        connection.engine.as_ref().map(|(_, data)| data.clone()),
    ))
}
