//! Listings as JSON (`xipvs -L --json`), by the schema in `docs/json.md`.
//!
//! A listing has all that is known, whatever columns were asked for, and numbers instead of names. Fields
//! may be added to the schema; none changes its meaning or goes away without a new `schema` number.

use std::borrow::Cow;
use std::io::{self, Write};
use std::net::{IpAddr, Ipv4Addr};

use lb_common::forward::{ForwardingMethod, TunnelChecksum, TunnelType};
use lb_common::protocol::Protocol;
use serde::Serialize;

use super::values::scheduler_flag_names;
use crate::table::{
    ConnectionReport, DestinationReport, Family, Info, Netmask, ServiceKey, ServiceReport, Stats, SyncDaemon,
    SyncRole, Timeouts, service_flags,
};

/// The number of the schema.
const SCHEMA: u32 = 1;

/// What is inside the outermost braces, beside the schema's number.
#[derive(Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Document<'a> {
    /// `-L --timeout --json`
    Timeouts(TimeoutsFields),
    /// `-L --daemon --json`
    Daemons(Vec<Daemon<'a>>),
    /// `-L -c --json`
    Connections(Vec<Connection<'a>>),
    /// `-L --json`
    #[serde(untagged)]
    Table(TableFields<'a>),
}

impl<'a> Document<'a> {
    /// The table: services in the order wanted, each with its destinations.
    pub fn table(info: &Info, services: Vec<Service<'a>>) -> Self {
        let [_, major, minor, patch] = info.version.to_be_bytes();
        Self::Table(TableFields {
            version: format!("{major}.{minor}.{patch}"),
            size: info.table_size,
            services,
        })
    }

    /// The timeouts.
    pub fn timeouts(timeouts: &Timeouts) -> Self {
        let Timeouts { tcp, tcp_fin, udp } = *timeouts;
        Self::Timeouts(TimeoutsFields { tcp, tcp_fin, udp })
    }

    /// The sync daemons.
    pub fn daemons(daemons: &'a [SyncDaemon]) -> Self {
        Self::Daemons(daemons.iter().map(Daemon::of).collect())
    }

    /// The connections.
    pub fn connections(connections: &'a [ConnectionReport]) -> Self {
        Self::Connections(connections.iter().map(Connection::of).collect())
    }

    /// Writes the document on one line.
    pub fn write(&self, to: &mut dyn Write) -> io::Result<()> {
        #[derive(Serialize)]
        struct Whole<'a> {
            schema: u32,
            #[serde(flatten)]
            document: &'a Document<'a>,
        }
        serde_json::to_writer(&mut *to, &Whole { schema: SCHEMA, document: self })?;
        to.write_all(b"\n")
    }
}

/// The fields of the table.
#[derive(Serialize)]
pub struct TableFields<'a> {
    version: String,
    size: u32,
    services: Vec<Service<'a>>,
}

/// The fields of the timeouts.
#[derive(Serialize)]
pub struct TimeoutsFields {
    tcp: u32,
    tcp_fin: u32,
    udp: u32,
}

/// A service with its destinations.
#[derive(Serialize)]
pub struct Service<'a> {
    #[serde(flatten)]
    key: Key,
    scheduler: &'a str,
    scheduler_flags: Vec<&'static str>,
    persistent: Option<Persistence<'a>>,
    one_packet: bool,
    timeouts: Option<TimeoutsFields>,
    stats: Counters,
    rates: Counters,
    destinations: Vec<Destination>,
}

impl<'a> Service<'a> {
    /// What a director reports of a service, with its destinations in the order wanted.
    pub fn of(report: &'a ServiceReport, destinations: &[&DestinationReport]) -> Self {
        let service = &report.service;
        let persistent = (service.flags & service_flags::PERSISTENT != 0).then(|| Persistence {
            timeout: service.timeout,
            mask: match service.netmask {
                Netmask::V4(mask) => Mask::Bits(mask.into()),
                Netmask::V6(length) => Mask::Length(length),
            },
            engine: service.engine.as_deref(),
        });
        Self {
            key: match service.key {
                ServiceKey::Address { protocol, address, port } => {
                    Key::Address { protocol: protocol_name(protocol), address, port }
                }
                ServiceKey::Mark { mark, family } => Key::Mark {
                    mark,
                    family: match family {
                        Family::V4 => "ipv4",
                        Family::V6 => "ipv6",
                    },
                },
            },
            scheduler: &service.scheduler,
            scheduler_flags: scheduler_flag_names(service.flags, &service.scheduler).collect(),
            persistent,
            one_packet: service.flags & service_flags::ONE_PACKET != 0,
            timeouts: service
                .own_timeouts
                .filter(|own| *own != Timeouts::NONE)
                .map(|Timeouts { tcp, tcp_fin, udp }| TimeoutsFields { tcp, tcp_fin, udp }),
            stats: Counters::totals(&report.stats),
            rates: Counters::rates(&report.stats),
            destinations: destinations.iter().map(|report| Destination::of(report)).collect(),
        }
    }
}

#[derive(Serialize)]
#[serde(untagged)]
enum Key {
    Address { protocol: &'static str, address: IpAddr, port: u16 },
    Mark { mark: u32, family: &'static str },
}

#[derive(Serialize)]
struct Persistence<'a> {
    timeout: u32,
    mask: Mask,
    engine: Option<&'a str>,
}

#[derive(Serialize)]
#[serde(untagged)]
enum Mask {
    Bits(Ipv4Addr),
    Length(u32),
}

#[derive(Serialize)]
struct Counters {
    connections: u64,
    in_packets: u64,
    out_packets: u64,
    in_bytes: u64,
    out_bytes: u64,
}

impl Counters {
    fn totals(stats: &Stats) -> Self {
        Self {
            connections: stats.connections,
            in_packets: stats.in_packets,
            out_packets: stats.out_packets,
            in_bytes: stats.in_bytes,
            out_bytes: stats.out_bytes,
        }
    }

    fn rates(stats: &Stats) -> Self {
        Self {
            connections: stats.connection_rate,
            in_packets: stats.in_packet_rate,
            out_packets: stats.out_packet_rate,
            in_bytes: stats.in_byte_rate,
            out_bytes: stats.out_byte_rate,
        }
    }
}

#[derive(Serialize)]
struct Destination {
    address: IpAddr,
    port: u16,
    method: &'static str,
    tunnel: Option<Tunnel>,
    weight: u32,
    upper_threshold: u32,
    lower_threshold: u32,
    active: u32,
    inactive: u32,
    persistent: u32,
    drains_in: Option<u32>,
    stats: Counters,
    rates: Counters,
}

impl Destination {
    fn of(report: &DestinationReport) -> Self {
        let destination = &report.destination;
        let tunnel = (destination.method == ForwardingMethod::Tunnel).then(|| Tunnel {
            kind: destination.tunnel.kind.name(),
            port: (destination.tunnel.kind == TunnelType::Gue).then_some(destination.tunnel.port),
            checksum: match destination.tunnel.checksum {
                TunnelChecksum::None => "none",
                TunnelChecksum::Full => "full",
                TunnelChecksum::Remote => "remote",
            },
        });
        Self {
            address: destination.key.address,
            port: destination.key.port,
            method: match destination.method {
                ForwardingMethod::Masquerade => "masquerade",
                ForwardingMethod::LocalNode => "local",
                ForwardingMethod::Tunnel => "tunnel",
                ForwardingMethod::DirectRoute => "route",
                ForwardingMethod::Bypass => "bypass",
            },
            tunnel,
            weight: destination.weight,
            upper_threshold: destination.upper_threshold,
            lower_threshold: destination.lower_threshold,
            active: report.active,
            inactive: report.inactive,
            persistent: report.persistent,
            drains_in: report.drains_in,
            stats: Counters::totals(&report.stats),
            rates: Counters::rates(&report.stats),
        }
    }
}

#[derive(Serialize)]
struct Tunnel {
    #[serde(rename = "type")]
    kind: &'static str,
    port: Option<u16>,
    checksum: &'static str,
}

/// A sync daemon.
#[derive(Serialize)]
pub struct Daemon<'a> {
    role: &'static str,
    interface: &'a str,
    sync_id: u32,
    max_length: u16,
    group: Option<IpAddr>,
    port: u16,
    ttl: u8,
}

impl<'a> Daemon<'a> {
    fn of(daemon: &'a SyncDaemon) -> Self {
        Self {
            role: match daemon.role {
                SyncRole::Master => "master",
                SyncRole::Backup => "backup",
            },
            interface: &daemon.interface,
            sync_id: daemon.sync_id,
            max_length: daemon.max_length,
            group: daemon.group,
            port: daemon.port,
            ttl: daemon.ttl,
        }
    }
}

/// A connection.
#[derive(Serialize)]
pub struct Connection<'a> {
    protocol: String,
    client: Endpoint,
    #[serde(rename = "virtual")]
    service: Endpoint,
    destination: Endpoint,
    state: &'a str,
    expires: u32,
    engine: Option<Engine<'a>>,
}

impl<'a> Connection<'a> {
    fn of(report: &'a ConnectionReport) -> Self {
        Self {
            protocol: report.protocol.to_ascii_lowercase(),
            client: Endpoint { address: report.client, port: report.client_port },
            service: Endpoint { address: report.virtual_address, port: report.virtual_port },
            destination: Endpoint { address: report.destination, port: report.destination_port },
            state: &report.state,
            expires: report.expires,
            engine: report
                .engine
                .as_ref()
                .map(|(name, data)| Engine { name, data: String::from_utf8_lossy(data) }),
        }
    }
}

#[derive(Serialize)]
struct Endpoint {
    address: IpAddr,
    port: u16,
}

#[derive(Serialize)]
struct Engine<'a> {
    name: &'a str,
    data: Cow<'a, str>,
}

fn protocol_name(protocol: Protocol) -> &'static str {
    match protocol {
        Protocol::Tcp => "tcp",
        Protocol::Udp => "udp",
        Protocol::Sctp => "sctp",
    }
}
