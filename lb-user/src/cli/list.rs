//! Listings of services, timeouts and daemons (`-L`).
//!
//! Lines are put together in one buffer that is kept from line to line. The widths, the cuts at 28 and 33
//! columns and the blanks at line ends are part of what monitoring programs parse.

use std::fmt::Write as _;
use std::io::{self, Write};

use lb_common::forward::{ForwardingMethod, TunnelChecksum, TunnelType};
use lb_common::protocol::Protocol;

use super::address::{self, cut, pad};
use super::command::Format;
use super::names::Names;
use super::numbers;
use super::values::scheduler_flag_names;
use crate::table::{
    Destination, DestinationReport, Family, Info, Netmask, Service, ServiceKey, ServiceReport, Stats,
    SyncDaemon, Timeouts, service_flags,
};

/// Columns of a service's name, and where an IPv4 one is cut.
const SERVICE_WIDTH: usize = 33;
/// Columns of a destination's name, and where an IPv4 one is cut.
const DESTINATION_WIDTH: usize = 28;

/// Prints services and their destinations in columns.
pub struct Table<'a> {
    /// The columns.
    pub format: Format,
    /// Numbers in full.
    pub exact: bool,
    /// Who knows names, unless numbers are wanted.
    pub names: Option<&'a dyn Names>,
    /// What ipvsadm has no words for, too.
    pub with_added: bool,
}

impl Table<'_> {
    /// Writes the titles of the columns.
    pub fn titles(&self, to: &mut dyn Write) -> io::Result<()> {
        let service = "Prot LocalAddress:Port";
        let destination = "  -> RemoteAddress:Port";
        match self.format {
            Format::Plain => writeln!(
                to,
                "{service} Scheduler Flags\n{destination}           Forward Weight ActiveConn InActConn"
            ),
            Format::TunnelInfo => writeln!(
                to,
                "{service} Scheduler Flags\n\
                 {destination}           Forward TunnelInfo    Weight ActiveConn InActConn"
            ),
            Format::Stats => writeln!(
                to,
                "{service:<33} {:>8} {:>8} {:>8} {:>8} {:>8}\n{destination}",
                "Conns", "InPkts", "OutPkts", "InBytes", "OutBytes"
            ),
            Format::Rate => writeln!(
                to,
                "{service:<33} {:>8} {:>8} {:>8} {:>8} {:>8}\n{destination}",
                "CPS", "InPPS", "OutPPS", "InBPS", "OutBPS"
            ),
            Format::Thresholds => writeln!(
                to,
                "{service:<33} {:<10} {:<10} {:<10} {:<10}\n{destination}",
                "Uthreshold", "Lthreshold", "ActiveConn", "InActConn"
            ),
            Format::PersistentConn => writeln!(
                to,
                "{service:<33} {:<9} {:<11} {:<10} {:<10}\n{destination}",
                "Weight", "PersistConn", "ActiveConn", "InActConn"
            ),
        }
    }

    /// Appends a service's line.
    pub fn service(&self, out: &mut String, report: &ServiceReport) {
        let start = out.len();
        write_service_name(out, &report.service.key, self.names);
        if report.service.key.family() == Family::V4 {
            cut(out, start, SERVICE_WIDTH);
        }
        match self.format {
            Format::Stats => {
                pad(out, start, SERVICE_WIDTH);
                self.counters(out, &report.stats);
            }
            Format::Rate => {
                pad(out, start, SERVICE_WIDTH);
                let stats = &report.stats;
                for rate in [
                    stats.connection_rate,
                    stats.in_packet_rate,
                    stats.out_packet_rate,
                    stats.in_byte_rate,
                    stats.out_byte_rate,
                ] {
                    numbers::write(out, rate, self.exact);
                }
            }
            _ => {
                write_settings(out, &report.service);
                if self.with_added {
                    write_own_timeouts(out, &report.service);
                }
            }
        }
        out.push('\n');
    }

    /// Appends a destination's line; `protocol` is its service's, none for a mark's.
    pub fn destination(&self, out: &mut String, report: &DestinationReport, protocol: Option<Protocol>) {
        let destination = &report.destination;
        out.push_str("  -> ");
        let start = out.len();
        address::write(out, destination.key.address, destination.key.port, protocol, self.names);
        if destination.key.address.is_ipv4() {
            cut(out, start, DESTINATION_WIDTH);
        }
        pad(out, start, DESTINATION_WIDTH);
        let (active, inactive) = (report.active, report.inactive);
        // Writing to a String cannot fail.
        let _ = match self.format {
            Format::Plain => write!(
                out,
                " {:<7} {:<6} {active:<10} {inactive:<10}",
                destination.method.name(),
                destination.weight
            ),
            Format::TunnelInfo => {
                let _ = write!(out, " {:<7} ", destination.method.name());
                let start = out.len();
                write_tunnel(out, destination);
                pad(out, start, 13);
                write!(out, " {:<6} {active:<10} {inactive:<10}", destination.weight)
            }
            Format::Thresholds => write!(
                out,
                " {:<10} {:<10} {active:<10} {inactive:<10}",
                destination.upper_threshold, destination.lower_threshold
            ),
            Format::PersistentConn => write!(
                out,
                " {:<9} {:<11} {active:<10} {inactive:<10}",
                destination.weight, report.persistent
            ),
            Format::Stats => {
                self.counters(out, &report.stats);
                Ok(())
            }
            Format::Rate => {
                let stats = &report.stats;
                let written = write!(
                    out,
                    " {:>8} {:>8} {:>8}",
                    stats.connection_rate, stats.in_packet_rate, stats.out_packet_rate
                );
                numbers::write(out, stats.in_byte_rate, self.exact);
                numbers::write(out, stats.out_byte_rate, self.exact);
                written
            }
        };
        out.push('\n');
    }

    fn counters(&self, out: &mut String, stats: &Stats) {
        for counter in
            [stats.connections, stats.in_packets, stats.out_packets, stats.in_bytes, stats.out_bytes]
        {
            numbers::write(out, counter, self.exact);
        }
    }
}

/// Writes the first line of a listing of all services.
pub fn write_head(to: &mut dyn Write, info: &Info) -> io::Result<()> {
    let [_, major, minor, patch] = info.version.to_be_bytes();
    writeln!(to, "IP Virtual Server version {major}.{minor}.{patch} (size={})", info.table_size)
}

/// Writes the timeouts.
pub fn write_timeouts(to: &mut dyn Write, timeouts: &Timeouts) -> io::Result<()> {
    let Timeouts { tcp, tcp_fin, udp } = timeouts;
    writeln!(to, "Timeout (tcp tcpfin udp): {tcp} {tcp_fin} {udp}")
}

/// Writes the line of a sync daemon.
pub fn write_daemon(to: &mut dyn Write, daemon: &SyncDaemon) -> io::Result<()> {
    let role = daemon.role.name();
    write!(to, "{role} sync daemon (mcast={}, syncid={}", daemon.interface, daemon.sync_id)?;
    // Kernels before 4.3 report neither length nor address.
    if daemon.max_length != 0 {
        write!(to, ", maxlen={}", daemon.max_length)?;
    }
    if let Some(group) = daemon.group {
        write!(to, ", group={group}, port={}, ttl={}", daemon.port, daemon.ttl)?;
    }
    writeln!(to, ")")
}

/// The protocol by which a service's port names are looked up: none for a mark's, whose ports stay numbers.
pub fn port_protocol(key: &ServiceKey) -> Option<Protocol> {
    match key {
        ServiceKey::Address { protocol, .. } => Some(*protocol),
        ServiceKey::Mark { .. } => None,
    }
}

fn write_service_name(out: &mut String, key: &ServiceKey, names: Option<&dyn Names>) {
    // Writing to a String cannot fail.
    let _ = match *key {
        ServiceKey::Address { protocol, address, port } => {
            let written = write!(out, "{protocol:<4} ");
            address::write(out, address, port, Some(protocol), names);
            written
        }
        ServiceKey::Mark { mark, family: Family::V4 } => write!(out, "FWM  {mark}"),
        ServiceKey::Mark { mark, family: Family::V6 } => write!(out, "FWM  {mark} IPv6"),
    };
}

/// The flags that a listing shows in brackets.
const SCHEDULER_FLAGS: u32 =
    service_flags::SCHEDULER_1 | service_flags::SCHEDULER_2 | service_flags::SCHEDULER_3;

/// Appends scheduler, flags, persistence and one-packet scheduling, each after a blank.
fn write_settings(out: &mut String, service: &Service) {
    out.push(' ');
    out.push_str(&service.scheduler);
    let flags = service.flags;
    if flags & SCHEDULER_FLAGS != 0 {
        // The brackets stand even if none of the flags has a name: flag-3 with sh and mh.
        let names: Vec<&str> = scheduler_flag_names(flags, &service.scheduler).collect();
        let _ = write!(out, " ({})", names.join(","));
    }
    if flags & service_flags::PERSISTENT != 0 {
        let _ = write!(out, " persistent {}", service.timeout);
        if service.netmask != Netmask::full(service.key.family()) {
            let _ = write!(out, " mask {}", service.netmask);
        }
        if let Some(engine) = &service.engine {
            out.push_str(" pe ");
            out.push_str(engine);
        }
    }
    if flags & service_flags::ONE_PACKET != 0 {
        out.push_str(" ops");
    }
}

/// Appends a service's own timeouts, after a blank, if it has any.
fn write_own_timeouts(out: &mut String, service: &Service) {
    let Some(Timeouts { tcp, tcp_fin, udp }) = service.own_timeouts else { return };
    for (name, seconds) in [("tcp", tcp), ("tcp-fin", tcp_fin), ("udp", udp)] {
        if seconds != 0 {
            let _ = write!(out, " {name}-timeout {seconds}");
        }
    }
}

fn write_tunnel(out: &mut String, destination: &Destination) {
    let tunnel = &destination.tunnel;
    let checksum = match tunnel.checksum {
        TunnelChecksum::None => "-c",
        TunnelChecksum::Full => "+c",
        TunnelChecksum::Remote => "r+c",
    };
    let _ = match (destination.method, tunnel.kind) {
        (ForwardingMethod::Tunnel, TunnelType::Ipip) => write!(out, "ipip"),
        (ForwardingMethod::Tunnel, TunnelType::Gue) => write!(out, "gue:{}:{checksum}", tunnel.port),
        (ForwardingMethod::Tunnel, TunnelType::Gre) => write!(out, "gre:{checksum}"),
        _ => write!(out, "n/a"),
    };
}
