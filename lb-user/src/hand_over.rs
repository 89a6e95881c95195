//! Connections handed over to kernel IPVS, through its own backup sync daemon.
//!
//! The only way to make a connection in kernel IPVS without a packet is to be its master. A backup daemon acknowledges
//! nothing, and drops what it has no room for; so its connection list is read, and what is not there is sent again.
//! Connections only: the table is `mirror`'s. IPVS counterpart: `ip_vs_sync.c`.

use std::collections::HashSet;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::thread::sleep;
use std::time::{Duration, Instant};

use lb_common::protocol::Protocol;
use lb_common::sync::{self, LENGTH, Record, Writer};
use nix::sys::socket::{setsockopt, sockopt::BindToDevice};

use crate::director::kernel::Kernel;
use crate::director::{Director, Error, Result};
use crate::table::{ConnectionReport, SyncDaemon, SyncRole};

/// The interface of a daemon that is started for this alone: messages do not leave the machine.
const INTERFACE: &str = "lo";
/// Messages that are sent without a pause; a socket's usual buffer holds about ninety.
const BURST: usize = 32;
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
type Key = (u8, IpAddr, u16, IpAddr, u16, IpAddr, u16);

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
    let socket = master(daemon).map_err(failed)?;
    let mut missing: Vec<&Record<'_>> = records.iter().collect();
    let mut progress = Instant::now();
    while !missing.is_empty() && progress.elapsed() < PATIENCE {
        send(&missing, daemon.sync_id as u8, &socket).map_err(failed)?;
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

/// A socket whose datagrams go to the daemon.
fn master(daemon: &SyncDaemon) -> io::Result<UdpSocket> {
    let group = daemon.group.unwrap_or(sync::GROUP.into());
    let any: IpAddr =
        if group.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { std::net::Ipv6Addr::UNSPECIFIED.into() };
    let socket = UdpSocket::bind((any, 0))?;
    setsockopt(&socket, BindToDevice, &daemon.interface.as_str().into())?;
    socket.connect(SocketAddr::new(group, daemon.port))?;
    Ok(socket)
}

/// Sends records in as few messages as they fit.
fn send(records: &[&Record<'_>], sync_id: u8, socket: &UdpSocket) -> io::Result<()> {
    let mut rest = records;
    let mut sent = 0;
    while !rest.is_empty() {
        let mut room = [0; LENGTH];
        let Some(mut message) = Writer::new(&mut room) else { break };
        let fit = rest.iter().take_while(|record| message.push(record)).count();
        // A record without a form is passed over; it stays missing.
        rest = &rest[fit.max(1)..];
        if fit > 0 {
            socket.send(message.finish(sync_id))?;
        }
        sent += 1;
        if sent % BURST == 0 {
            sleep(PAUSE);
        }
    }
    Ok(())
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
    ))
}
