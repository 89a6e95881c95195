//! Makes a [`Command`] of what was typed, or says what is wrong with it, in ipvsadm's order.
//!
//! After the values: scheduler flags, then the table of which option goes with which command, then what
//! one command asks for. IPVS counterpart: the checks of ipvsadm 1.31 between parsing and the kernel.

use lb_common::forward::{ForwardingMethod, TunnelChecksum, TunnelType};
use lb_common::protocol::Protocol;

use super::command::{Command, Format, Listing, Subject};
use super::message::Complaint;
use super::options::{CommandKind, SLOTS, Slot};
use super::parse::Typed;
use super::values::scheduler_flags;
use crate::table::{
    Destination, DestinationKey, Family, Netmask, Service, ServiceKey, SyncDaemon, SyncRole, Timeouts,
    Tunnel, service_flags,
};

/// Longest scheduler name; a longer one is cut.
const SCHEDULER_LENGTH: usize = 15;
/// Longest name of a persistence engine; a longer one is cut.
const ENGINE_LENGTH: usize = 16;
/// Longest name of an interface; a longer one is cut.
const INTERFACE_LENGTH: usize = 15;

/// The command that was typed.
pub fn check(typed: &Typed<'_>) -> Result<Command, Complaint> {
    let scheduler = typed.scheduler.map_or_else(|| "wlc".into(), |name| text(name, SCHEDULER_LENGTH));
    let flags = match typed.scheduler_flags {
        Some(list) => scheduler_flags(list, &scheduler)?,
        None => 0,
    };
    check_slots(typed)?;
    let command = command(typed, scheduler, flags)?;
    Ok(if typed.has(Slot::DryRun) { Command::Rehearse(Box::new(command)) } else { command })
}

fn command(typed: &Typed<'_>, scheduler: String, flags: u32) -> Result<Command, Complaint> {
    Ok(match typed.command {
        CommandKind::AddService => Command::AddService(service(typed, scheduler, flags)?),
        CommandKind::EditService => Command::EditService(service(typed, scheduler, flags)?),
        CommandKind::DeleteService => Command::DeleteService(service_key(typed)?),
        CommandKind::Clear => Command::Clear,
        CommandKind::List => Command::List(listing(typed)?),
        CommandKind::AddDestination => {
            let service = service_key(typed)?;
            Command::AddDestination(service, destination(typed, &service)?)
        }
        CommandKind::EditDestination => {
            let service = service_key(typed)?;
            Command::EditDestination(service, destination(typed, &service)?)
        }
        CommandKind::DeleteDestination => {
            Command::DeleteDestination(service_key(typed)?, destination_key(typed)?)
        }
        CommandKind::Set => {
            let [tcp, tcp_fin, udp] = typed.timeouts;
            Command::SetTimeouts(Timeouts { tcp, tcp_fin, udp })
        }
        CommandKind::StartDaemon => Command::StartDaemon(daemon(typed, role(typed)?)),
        CommandKind::StopDaemon => Command::StopDaemon(role(typed)?),
        CommandKind::Restore => Command::Restore,
        CommandKind::Save => Command::Save { numeric: typed.has(Slot::Numeric) },
        CommandKind::Zero => Command::Zero(typed.service.filter(|key| !means_everything(key))),
        CommandKind::Help => Command::Help,
        CommandKind::Version => Command::Version,
    })
}

/// Walks the table of options and commands; the first fault in the table's order counts.
fn check_slots(typed: &Typed<'_>) -> Result<(), Complaint> {
    let command = typed.command;
    let mut exclusive = None;
    for row in &SLOTS {
        if !typed.has(row.slot) {
            if row.must.has(command) {
                return Err(Complaint::missing(row.slot, command.name(), "command"));
            }
        } else if row.one.has(command) {
            if let Some(first) = exclusive {
                return Err(Complaint::conflict(row.slot, first, command.name(), "command"));
            }
            exclusive = Some(row.slot);
        } else if !row.may.has(command) && !row.must.has(command) {
            return Err(Complaint::illegal(row.slot, command.name(), "command"));
        }
    }
    Ok(())
}

fn service(typed: &Typed<'_>, scheduler: String, mut flags: u32) -> Result<Service, Complaint> {
    let key = service_key(typed)?;
    if let ServiceKey::Address { protocol, port, .. } = key {
        if port == 0 && typed.persistent.is_none() {
            return Err(Complaint::usage("Zero port specified for non-persistent service"));
        }
        if typed.has(Slot::OnePacket) && protocol != Protocol::Udp {
            return Err(Complaint::usage("One-Packet Scheduling is only for UDP virtual services"));
        }
    }
    if typed.persistent.is_some() {
        flags |= service_flags::PERSISTENT;
    }
    if typed.has(Slot::OnePacket) {
        flags |= service_flags::ONE_PACKET;
    }
    Ok(Service {
        key,
        scheduler,
        flags,
        timeout: typed.persistent.unwrap_or(0),
        netmask: typed.netmask.unwrap_or_else(|| Netmask::full(key.family())),
        engine: typed.engine.map(|name| text(name, ENGINE_LENGTH)),
        own_timeouts: typed.own_timeouts,
    })
}

fn destination(typed: &Typed<'_>, service: &ServiceKey) -> Result<Destination, Complaint> {
    let mut key = destination_key(typed)?;
    let method = typed.method.unwrap_or(ForwardingMethod::DirectRoute);
    if Family::of(key.address) != service.family() && method != ForwardingMethod::Tunnel {
        return Err(Complaint::usage("Different address family is allowed only for tunneling servers"));
    }
    let tunnel = tunnel(typed, method)?;
    // Without NAT the packet reaches the server with the port that it came with.
    if let ServiceKey::Address { port, .. } = service
        && method != ForwardingMethod::Masquerade
    {
        key.port = *port;
    }
    Ok(Destination {
        key,
        method,
        weight: typed.weight.unwrap_or(1),
        upper_threshold: typed.upper_threshold,
        lower_threshold: typed.lower_threshold,
        tunnel,
    })
}

/// Whether a tunnel option is asked for, allowed or neither, by type.
enum Rule {
    Required,
    OneOf,
    Illegal,
}

fn tunnel(typed: &Typed<'_>, method: ForwardingMethod) -> Result<Tunnel, Complaint> {
    const OPTIONS: [Slot; 4] =
        [Slot::TunnelPort, Slot::TunnelNoChecksum, Slot::TunnelChecksum, Slot::TunnelRemoteChecksum];
    if method != ForwardingMethod::Tunnel {
        let given = typed.has(Slot::TunnelType) || OPTIONS.iter().any(|slot| typed.has(*slot));
        return if given {
            Err(Complaint::usage("Tunnel options conflict with forward method"))
        } else {
            Ok(Tunnel::default())
        };
    }
    let kind = typed.tunnel_type;
    let mut exclusive = None;
    for slot in OPTIONS {
        let rule = match (kind, slot) {
            (TunnelType::Gue, Slot::TunnelPort) => Rule::Required,
            (TunnelType::Gue, _) => Rule::OneOf,
            (TunnelType::Gre, Slot::TunnelNoChecksum | Slot::TunnelChecksum) => Rule::OneOf,
            (TunnelType::Gre | TunnelType::Ipip, _) => Rule::Illegal,
        };
        match (rule, typed.has(slot)) {
            (Rule::Required, false) => return Err(Complaint::missing(slot, kind.name(), "tunnel type")),
            (Rule::Illegal, true) => return Err(Complaint::illegal(slot, kind.name(), "tunnel type")),
            (Rule::OneOf, true) => {
                if let Some(first) = exclusive {
                    return Err(Complaint::conflict(slot, first, kind.name(), "tunnel type"));
                }
                exclusive = Some(slot);
            }
            _ => {}
        }
    }
    let checksum = if kind == TunnelType::Ipip { TunnelChecksum::None } else { typed.tunnel_checksum };
    Ok(Tunnel { kind, port: typed.tunnel_port, checksum })
}

fn listing(typed: &Typed<'_>) -> Result<Listing, Complaint> {
    let (connections, timeouts, daemons) =
        (typed.has(Slot::Connection), typed.has(Slot::Timeout), typed.has(Slot::Daemon));
    let columns = typed.has(Slot::Stats) || typed.has(Slot::Rate) || typed.has(Slot::Thresholds);
    let persistent = typed.has(Slot::PersistentConn);
    if (connections || timeouts || daemons) && columns || (timeouts || daemons) && persistent {
        return Err(Complaint::usage("options conflicts in the list command"));
    }
    let subject = if connections {
        Subject::Connections { engine_data: persistent }
    } else if timeouts {
        Subject::Timeouts
    } else if daemons {
        Subject::Daemons
    } else {
        let formats = [
            (Slot::Stats, Format::Stats),
            (Slot::Rate, Format::Rate),
            (Slot::Thresholds, Format::Thresholds),
            (Slot::PersistentConn, Format::PersistentConn),
            (Slot::TunnelInfo, Format::TunnelInfo),
        ];
        let chosen = formats.iter().find(|(slot, _)| typed.has(*slot));
        Subject::Services {
            only: typed.service,
            format: chosen.map_or(Format::Plain, |(_, format)| *format),
            sorted: !typed.has(Slot::Nosort),
            exact: typed.has(Slot::Exact),
        }
    };
    Ok(Listing {
        subject,
        numeric: typed.has(Slot::Numeric),
        json: typed.has(Slot::Json),
        again: typed.watch,
    })
}

fn daemon(typed: &Typed<'_>, role: SyncRole) -> SyncDaemon {
    SyncDaemon {
        role,
        interface: typed.interface.map_or_else(|| "eth0".into(), |name| text(name, INTERFACE_LENGTH)),
        sync_id: typed.sync_id,
        max_length: typed.max_length,
        group: typed.group,
        port: typed.port,
        ttl: typed.ttl,
    }
}

/// Whether `-Z` of the service means every service: any address, any port.
fn means_everything(key: &ServiceKey) -> bool {
    matches!(key, ServiceKey::Address { address, port: 0, .. } if address.is_unspecified())
}

fn service_key(typed: &Typed<'_>) -> Result<ServiceKey, Complaint> {
    typed.service.ok_or_else(|| Complaint::missing(Slot::Service, typed.command.name(), "command"))
}

fn destination_key(typed: &Typed<'_>) -> Result<DestinationKey, Complaint> {
    typed.destination.ok_or_else(|| Complaint::missing(Slot::Destination, typed.command.name(), "command"))
}

/// The role that the parser has read; without one, what it says of a wrong one.
fn role(typed: &Typed<'_>) -> Result<SyncRole, Complaint> {
    typed.role.ok_or_else(|| Complaint::usage("illegal start-daemon parameter specified"))
}

/// A name, cut to so many bytes.
fn text(name: &[u8], length: usize) -> String {
    String::from_utf8_lossy(&name[..name.len().min(length)]).into_owned()
}
