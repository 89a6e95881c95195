//! The words of an IPVS table: services and destinations, as configured and as observed.
//!
//! Configured and observed are different types: [`Service`] is what an operator asked for,
//! [`ServiceReport`] what a director says about it. Nothing here talks to a kernel.
//! IPVS counterpart: `ip_vs_service_user` and its relatives in `include/uapi/linux/ip_vs.h`.

use std::net::IpAddr;

use lb_common::forward::{ForwardingMethod, TunnelChecksum, TunnelType};
use lb_common::mark::Rule;
use lb_common::protocol::Protocol;
pub use lb_common::service::flags as service_flags;
use lb_common::sync;
use serde::{Deserialize, Serialize};

/// An address family.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Family {
    /// The family of an address.
    pub fn of(address: IpAddr) -> Self {
        if address.is_ipv4() { Self::V4 } else { Self::V6 }
    }
}

/// What identifies a virtual service.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ServiceKey {
    /// By protocol, address and port; port 0 is any port.
    Address {
        /// The transport protocol.
        protocol: Protocol,
        /// The virtual address.
        address: IpAddr,
        /// The virtual port, 0 for any.
        port: u16,
    },
    /// By firewall mark; the same mark may exist once in each family.
    Mark {
        /// The mark, not 0.
        mark: u32,
        /// The family of the packets it takes.
        family: Family,
    },
}

impl ServiceKey {
    /// The family of the service's packets.
    pub fn family(&self) -> Family {
        match self {
            Self::Address { address, .. } => Family::of(*address),
            Self::Mark { family, .. } => *family,
        }
    }
}

/// The persistence mask of a service, which every service has, persistent or not.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Netmask {
    /// An IPv4 mask as a number, most significant octet first; IPVS does not ask that it be contiguous.
    V4(u32),
    /// An IPv6 prefix length, 1 to 128.
    V6(u32),
}

impl Netmask {
    /// The mask that keeps every client apart: the default.
    pub fn full(family: Family) -> Self {
        match family {
            Family::V4 => Self::V4(u32::MAX),
            Family::V6 => Self::V6(128),
        }
    }
}

/// A virtual service as configured.
#[doc(alias = "ip_vs_service_user")]
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Service {
    /// What identifies it.
    pub key: ServiceKey,
    /// The scheduler's name, at most 15 characters; a director refuses one that it has not.
    pub scheduler: String,
    /// [`service_flags`], without `HASHED`.
    pub flags: u32,
    /// Persistence timeout in seconds; 0 if never set, kept although the service may not be persistent.
    pub timeout: u32,
    /// Persistence mask.
    pub netmask: Netmask,
    /// Persistence engine, at most 16 characters.
    pub engine: Option<String>,
    /// Timeouts of its own, 0 where the general one holds; `None` where they are of no concern: a director that cannot have any
    /// says so, and an edit leaves them as they are.
    pub own_timeouts: Option<Timeouts>,
}

impl Service {
    /// A service with ipvsadm's defaults: `wlc`, not persistent, full mask.
    pub fn new(key: ServiceKey) -> Self {
        Self {
            key,
            scheduler: "wlc".into(),
            flags: 0,
            timeout: 0,
            netmask: Netmask::full(key.family()),
            engine: None,
            own_timeouts: None,
        }
    }

    /// Whether an edit would change anything.
    #[must_use]
    pub fn differs_from(&self, wanted: &Self) -> bool {
        let differs = |is, to| matches!((is, to), (Some(is), Some(to)) if is != to);
        let own_timeouts = self.own_timeouts;
        differs(own_timeouts, wanted.own_timeouts) || *self != Self { own_timeouts, ..wanted.clone() }
    }
}

/// What identifies a destination inside its service.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct DestinationKey {
    /// The real server's address.
    pub address: IpAddr,
    /// The real server's port, 0 for the port that the packet has.
    pub port: u16,
}

/// The tunnel of a destination, meaningful with [`ForwardingMethod::Tunnel`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Tunnel {
    /// The encapsulation.
    pub kind: TunnelType,
    /// The UDP port of a GUE tunnel, else 0.
    pub port: u16,
    /// The checksum choice.
    pub checksum: TunnelChecksum,
}

/// A destination (a real server) as configured.
#[doc(alias = "ip_vs_dest_user")]
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Destination {
    /// What identifies it.
    pub key: DestinationKey,
    /// How packets get there.
    pub method: ForwardingMethod,
    /// Share of new connections, 0 to 2147483647; 0 takes none.
    pub weight: u32,
    /// No new connections from this many on; 0 is no limit.
    pub upper_threshold: u32,
    /// New connections again below this many; 0 is three quarters of the upper one.
    pub lower_threshold: u32,
    /// The tunnel.
    pub tunnel: Tunnel,
}

impl Destination {
    /// A destination with ipvsadm's defaults: direct routing, weight 1, no thresholds.
    pub fn new(key: DestinationKey) -> Self {
        Self {
            key,
            method: ForwardingMethod::DirectRoute,
            weight: 1,
            upper_threshold: 0,
            lower_threshold: 0,
            tunnel: Tunnel::default(),
        }
    }
}

/// A service with its destinations, as configured.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct TableEntry {
    /// The service.
    pub service: Service,
    /// Its destinations, newest first, which is the order that schedulers walk; no key occurs twice.
    pub destinations: Vec<Destination>,
}

/// All that is configured of a table: what a plan compares.
///
/// The order of the services means nothing; no key occurs twice.
#[derive(Debug, Clone, Default, Hash)]
pub struct Table {
    /// The services with their destinations.
    pub entries: Vec<TableEntry>,
    /// The timeouts; `None` where they are of no concern, as in saved rules.
    pub timeouts: Option<Timeouts>,
    /// The rules that mark packets; `None` where netfilter marks them.
    pub marks: Option<Vec<Rule>>,
}

/// Counters and their rates, of a destination, a service or everything.
#[doc(alias = "ip_vs_stats")]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Stats {
    /// Connections scheduled.
    pub connections: u64,
    /// Packets from clients.
    pub in_packets: u64,
    /// Packets from servers.
    pub out_packets: u64,
    /// Bytes from clients, counted from the IP header on.
    pub in_bytes: u64,
    /// Bytes from servers, counted from the IP header on.
    pub out_bytes: u64,
    /// Connections a second.
    pub connection_rate: u64,
    /// Packets from clients a second.
    pub in_packet_rate: u64,
    /// Packets from servers a second.
    pub out_packet_rate: u64,
    /// Bytes from clients a second.
    pub in_byte_rate: u64,
    /// Bytes from servers a second.
    pub out_byte_rate: u64,
}

/// A virtual service as a director reports it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServiceReport {
    /// What was configured.
    pub service: Service,
    /// What it has done.
    pub stats: Stats,
}

/// A destination as a director reports it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DestinationReport {
    /// What was configured.
    pub destination: Destination,
    /// What it has done.
    pub stats: Stats,
    /// Connections in an active state.
    pub active: u32,
    /// All other connections.
    pub inactive: u32,
    /// Persistence templates.
    pub persistent: u32,
    /// Seconds until its connections end, if it drains.
    pub drains_in: Option<u32>,
}

/// A service with its destinations, as a director reports them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EntryReport {
    /// The service.
    pub service: ServiceReport,
    /// Its destinations, newest first.
    pub destinations: Vec<DestinationReport>,
}

/// A table as a director reports it.
#[derive(Debug, Clone)]
pub struct TableReport {
    /// The services with their destinations, in the director's own order.
    pub entries: Vec<EntryReport>,
    /// The timeouts.
    pub timeouts: Timeouts,
    /// The rules that mark packets; `None` where netfilter marks them.
    pub marks: Option<Vec<Rule>>,
}

impl TableReport {
    /// What of it is configured.
    pub fn configured(&self) -> Table {
        let entries = self.entries.iter().map(|entry| TableEntry {
            service: entry.service.service.clone(),
            destinations: entry.destinations.iter().map(|report| report.destination.clone()).collect(),
        });
        Table { entries: entries.collect(), timeouts: Some(self.timeouts), marks: self.marks.clone() }
    }
}

/// The three timeouts that `--set` sets, in seconds.
#[doc(alias = "ip_vs_timeout_user")]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Timeouts {
    /// TCP connections in ESTABLISHED.
    pub tcp: u32,
    /// TCP connections in FIN_WAIT.
    pub tcp_fin: u32,
    /// UDP.
    pub udp: u32,
}

impl Timeouts {
    /// None of the three.
    pub const NONE: Self = Self { tcp: 0, tcp_fin: 0, udp: 0 };
}

impl Default for Timeouts {
    /// IPVS's own: 900, 120 and 300 seconds.
    fn default() -> Self {
        Self { tcp: 900, tcp_fin: 120, udp: 300 }
    }
}

/// The role of a sync daemon, numbered as in IPVS's interface.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[repr(u8)]
pub enum SyncRole {
    /// Sends its connections.
    Master = 1,
    /// Takes the connections of a master.
    Backup = 2,
}

impl SyncRole {
    /// Both, in the order in which they are listed.
    pub const ALL: [Self; 2] = [Self::Master, Self::Backup];

    /// The word for it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Master => "master",
            Self::Backup => "backup",
        }
    }
}

/// A connection synchronisation daemon, as configured; a director fills in what is 0 or `None`.
#[doc(alias = "ip_vs_daemon_user")]
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SyncDaemon {
    /// What it does.
    pub role: SyncRole,
    /// The interface it speaks on, at most 15 characters.
    pub interface: String,
    /// Its group of directors, 0 to 255; 0 takes all.
    pub sync_id: u32,
    /// Largest message in bytes, without IP and UDP headers; 0 for the default.
    pub max_length: u16,
    /// Multicast group; `None` for 224.0.0.81.
    pub group: Option<IpAddr>,
    /// UDP port; 0 for 8848.
    pub port: u16,
    /// Multicast time to live; 0 for 1.
    pub ttl: u8,
}

impl SyncDaemon {
    /// Shortest message that a backup makes room for.
    const BACKUP_LEAST_LENGTH: u16 = 1024;

    /// The same with what is left open filled in, on an interface whose largest packet has so many bytes.
    #[must_use]
    pub fn completed(&self, mtu: u32) -> Self {
        let group = self.group.unwrap_or(sync::GROUP.into());
        // The headers in front of a message: IPv4 20 bytes, IPv6 40, UDP 8.
        let headers = if group.is_ipv4() { 28 } else { 48 };
        let mtu = match self.role {
            SyncRole::Master => 1500,
            SyncRole::Backup => mtu.clamp(1500, 65535) as u16,
        };
        let max_length = match (self.max_length, self.role) {
            (0, _) => mtu - headers,
            (length, SyncRole::Backup) => length.max(Self::BACKUP_LEAST_LENGTH),
            (length, SyncRole::Master) => length,
        };
        Self {
            role: self.role,
            interface: self.interface.clone(),
            sync_id: self.sync_id,
            max_length: max_length.min(u16::MAX - headers),
            group: Some(group),
            port: if self.port == 0 { sync::PORT } else { self.port },
            ttl: self.ttl.max(1),
        }
    }
}

/// A connection as a director reports it, a row of `-L -c`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConnectionReport {
    /// The protocol's name as listed: `TCP`, `UDP`, `SCTP`, or `IP` for templates of fwmark services.
    pub protocol: String,
    /// The client's address (masked, for a template).
    pub client: IpAddr,
    /// The client's port, 0 for a template.
    pub client_port: u16,
    /// The virtual address; for a fwmark template the mark in its first 32 bits.
    pub virtual_address: IpAddr,
    /// The virtual port.
    pub virtual_port: u16,
    /// The destination's address.
    pub destination: IpAddr,
    /// The destination's port.
    pub destination_port: u16,
    /// The state's name, such as `ESTABLISHED`.
    pub state: String,
    /// Seconds until it expires.
    pub expires: u32,
    /// The persistence engine's name and data, if the entry has any; the latter are whatever clients send.
    pub engine: Option<(String, Vec<u8>)>,
}

/// What a director says of itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Info {
    /// IPVS version as `major.minor.patch` in three bytes: 0x010201.
    pub version: u32,
    /// Size of the connection table.
    pub table_size: u32,
}
