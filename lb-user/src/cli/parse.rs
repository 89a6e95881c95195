//! Reads a command line left to right into what was typed.
//!
//! Values are checked here, each with what stands to its left; which option goes with which command is
//! checked afterwards, in `check`. No value depends on what stands to its right.

use std::net::IpAddr;

use lb_common::forward::{ForwardingMethod, TunnelChecksum, TunnelType};
use lb_common::protocol::Protocol;

use super::address;
use super::message::Complaint;
use super::names::Names;
use super::options::{CommandKind, Meaning, OptionRow, Slot};
use super::values::{leading_number, number, tunnel_type};
use super::words::{Token, Words};
use crate::table::{DestinationKey, Family, Netmask, ServiceKey, SyncRole, Timeouts};

/// Longest time that `-p` and `--set` take: 31 days, in seconds.
const LONGEST_TIMEOUT: i64 = 31 * 24 * 60 * 60;

/// Longest time between two listings of `--watch`: a day, in seconds.
const LONGEST_WATCH: i64 = 24 * 60 * 60;

/// What was typed: the command, and each slot that an option filled in.
#[derive(Debug)]
pub struct Typed<'a> {
    /// The command.
    pub command: CommandKind,
    /// The daemon's role, of `--start-daemon` and `--stop-daemon`.
    pub role: Option<SyncRole>,
    present: u64,
    /// The service.
    pub service: Option<ServiceKey>,
    /// The persistence mask, of `-M` or implied by an IPv6 service.
    pub netmask: Option<Netmask>,
    /// The scheduler's name, not empty.
    pub scheduler: Option<&'a [u8]>,
    /// The persistence engine's name, not empty.
    pub engine: Option<&'a [u8]>,
    /// The persistence timeout in seconds.
    pub persistent: Option<u32>,
    /// The list of scheduler flags.
    pub scheduler_flags: Option<&'a [u8]>,
    /// The destination.
    pub destination: Option<DestinationKey>,
    /// The forwarding method.
    pub method: Option<ForwardingMethod>,
    /// The weight.
    pub weight: Option<u32>,
    /// The upper threshold.
    pub upper_threshold: u32,
    /// The lower threshold.
    pub lower_threshold: u32,
    /// The tunnel's type.
    pub tunnel_type: TunnelType,
    /// The tunnel's port.
    pub tunnel_port: u16,
    /// The tunnel's checksum.
    pub tunnel_checksum: TunnelChecksum,
    /// The sync daemon's interface, not empty.
    pub interface: Option<&'a [u8]>,
    /// The sync daemon's group of directors.
    pub sync_id: u32,
    /// The longest sync message, 0 if not given.
    pub max_length: u16,
    /// The sync daemon's multicast group.
    pub group: Option<IpAddr>,
    /// The sync daemon's port, 0 if not given.
    pub port: u16,
    /// The time to live of sync messages, 0 if not given.
    pub ttl: u8,
    /// The timeouts of `--set`.
    pub timeouts: [u32; 3],
    /// Seconds between listings.
    pub watch: Option<u32>,
    /// The service's own timeouts, if any was given.
    pub own_timeouts: Option<Timeouts>,
}

impl<'a> Typed<'a> {
    fn new(command: CommandKind) -> Self {
        Self {
            command,
            role: None,
            present: 0,
            service: None,
            netmask: None,
            scheduler: None,
            engine: None,
            persistent: None,
            scheduler_flags: None,
            destination: None,
            method: None,
            weight: None,
            upper_threshold: 0,
            lower_threshold: 0,
            tunnel_type: TunnelType::default(),
            tunnel_port: 0,
            tunnel_checksum: TunnelChecksum::default(),
            interface: None,
            sync_id: 0,
            max_length: 0,
            group: None,
            port: 0,
            ttl: 0,
            timeouts: [0; 3],
            watch: None,
            own_timeouts: None,
        }
    }

    /// Whether an option filled in the slot.
    pub fn has(&self, slot: Slot) -> bool {
        self.present & (1 << slot as u64) != 0
    }

    /// Takes an option after the command.
    fn take(&mut self, row: &OptionRow, value: &'a [u8], names: &dyn Names) -> Result<(), Complaint> {
        if let Some(slot) = row.slot() {
            if self.has(slot) {
                return Err(Complaint::usage(format!("multiple '{}' options specified", slot.name())));
            }
            self.present |= 1 << slot as u64;
        }
        match row.meaning {
            Meaning::Command(_) | Meaning::Nothing => {}
            Meaning::Service(protocol) => {
                let (address, port) = address::read(value, Some(protocol), names)
                    .ok_or_else(|| Complaint::usage("illegal virtual server address[:port] specified"))?;
                if address.is_ipv6() {
                    self.netmask = Some(Netmask::full(Family::V6));
                }
                self.service = Some(ServiceKey::Address { protocol, address, port: port.unwrap_or(0) });
            }
            Meaning::Mark => {
                let mark = number(value, 1..=i64::from(u32::MAX))
                    .ok_or_else(|| Complaint::quoting("invalid fwmark value `", value, "' specified"))?;
                self.service = Some(ServiceKey::Mark { mark: mark as u32, family: Family::V4 });
            }
            Meaning::Ipv6 => match &mut self.service {
                Some(ServiceKey::Mark { family, .. }) => {
                    *family = Family::V6;
                    self.netmask = Some(Netmask::full(Family::V6));
                }
                _ => return Err(Complaint::usage("-6 used before -f\n")),
            },
            Meaning::Method(method) => self.method = Some(method),
            Meaning::Checksum(checksum) => self.tunnel_checksum = checksum,
            Meaning::Slot(slot) => self.fill(slot, row, value, names)?,
        }
        Ok(())
    }

    fn fill(
        &mut self,
        slot: Slot,
        row: &OptionRow,
        value: &'a [u8],
        names: &dyn Names,
    ) -> Result<(), Complaint> {
        let given = (!value.is_empty()).then_some(value);
        match slot {
            Slot::Scheduler => self.scheduler = given,
            Slot::Engine => self.engine = given,
            Slot::SchedulerFlags => self.scheduler_flags = given,
            Slot::McastInterface => self.interface = given,
            Slot::Persistent => self.persistent = Some(timeout(value, 1)?),
            Slot::Netmask => self.netmask = Some(self.read_netmask(value, names)?),
            Slot::Destination => self.destination = Some(self.read_destination(value, names)?),
            Slot::Weight => self.weight = Some(ranged(value, 0, i32::MAX.into(), row)? as u32),
            Slot::UpperThreshold => self.upper_threshold = ranged(value, 0, i32::MAX.into(), row)? as u32,
            Slot::LowerThreshold => self.lower_threshold = ranged(value, 0, i32::MAX.into(), row)? as u32,
            Slot::SyncId => self.sync_id = ranged(value, 0, 255, row)? as u32,
            Slot::SyncMaxLength => self.max_length = ranged(value, 1, 65507, row)? as u16,
            Slot::McastPort => self.port = ranged(value, 1, 65535, row)? as u16,
            Slot::McastTtl => self.ttl = ranged(value, 1, 255, row)? as u8,
            Slot::McastGroup => self.group = Some(read_group(value)?),
            Slot::TunnelType => {
                self.tunnel_type =
                    tunnel_type(value).ok_or_else(|| Complaint::usage("illegal tunnel type specified"))?;
            }
            Slot::Watch => self.watch = Some(ranged(value, 1, LONGEST_WATCH, row)? as u32),
            Slot::OwnTcpTimeout => self.own().tcp = own_timeout(value, row)?,
            Slot::OwnTcpFinTimeout => self.own().tcp_fin = own_timeout(value, row)?,
            Slot::OwnUdpTimeout => self.own().udp = own_timeout(value, row)?,
            Slot::TunnelPort => self.tunnel_port = ranged(value, 1, 65535, row)? as u16,
            // The rest have no value: that they are there is all they say.
            _ => {}
        }
        Ok(())
    }

    fn own(&mut self) -> &mut Timeouts {
        self.own_timeouts.get_or_insert(Timeouts::NONE)
    }

    fn read_netmask(&self, value: &[u8], names: &dyn Names) -> Result<Netmask, Complaint> {
        if self.service.is_some_and(|service| service.family() == Family::V6) {
            return leading_number(value)
                .map(|(length, _)| length)
                .filter(|length| (1..=128).contains(length))
                .map(|length| Netmask::V6(length as u32))
                .ok_or_else(|| Complaint::usage("illegal ipv6 netmask specified"));
        }
        address::read_host(value, names)
            .map(|mask| Netmask::V4(mask.into()))
            .ok_or_else(|| Complaint::usage("illegal virtual server persistent mask specified"))
    }

    /// Reads `-r`; without a port of its own it has the port of the service to its left.
    fn read_destination(&self, value: &[u8], names: &dyn Names) -> Result<DestinationKey, Complaint> {
        let (protocol, service_port) = match self.service {
            Some(ServiceKey::Address { protocol, port, .. }) => (Some(protocol), port),
            Some(ServiceKey::Mark { .. }) => (Some(Protocol::Tcp), 0),
            None => (None, 0),
        };
        let (address, port) = address::read(value, protocol, names)
            .ok_or_else(|| Complaint::usage("illegal real server address[:port] specified"))?;
        Ok(DestinationKey { address, port: port.unwrap_or(service_port) })
    }
}

/// Reads a command line, without the program's name.
///
/// `inside_restore` refuses a nested restore; `with_added` knows the options that ipvsadm lacks.
pub fn parse<'a>(
    words: &'a [&'a [u8]],
    names: &dyn Names,
    inside_restore: bool,
    with_added: bool,
) -> Result<Typed<'a>, Complaint> {
    let mut tokens = Words::new(words, with_added);
    let mut plain = Vec::new();
    let mut typed: Option<Typed<'a>> = None;
    while let Some(token) = tokens.next() {
        let (row, value) = match token {
            Ok(Token::Word(word)) => {
                plain.push(word);
                continue;
            }
            Ok(Token::Option(row, value)) => (row, value),
            Err(_) if typed.is_none() => return Err(Complaint::Try),
            Err(fault) => {
                return Err(Complaint::Syntax(
                    [tokens.last_word(), b": ", fault.reason().as_bytes()].concat(),
                ));
            }
        };
        match (&mut typed, row.meaning) {
            (None, Meaning::Command(command)) => {
                if inside_restore && command == CommandKind::Restore {
                    return Err(Complaint::Try);
                }
                let first = typed.insert(Typed::new(command));
                first.role = read_role(command, value.unwrap_or_default())?;
                if matches!(command, CommandKind::Help | CommandKind::Version) {
                    return typed.ok_or(Complaint::Try);
                }
            }
            (None, _) => return Err(Complaint::Try),
            (Some(_), Meaning::Command(_)) => {
                return Err(Complaint::quoting("invalid option `", tokens.last_word(), "'"));
            }
            (Some(typed), _) => typed.take(row, value.unwrap_or_default(), names)?,
        }
    }
    let mut typed = typed.ok_or(Complaint::Try)?;
    let mut plain = plain.into_iter();
    if typed.command == CommandKind::Set {
        // That there are three is looked at before what they are.
        if plain.len() < typed.timeouts.len() {
            return Err(Complaint::usage("--set option requires 3 timeout values"));
        }
        for (value, word) in typed.timeouts.iter_mut().zip(&mut plain) {
            *value = timeout(word, 0)?;
        }
    }
    match plain.next() {
        Some(word) => Err(Complaint::quoting("unexpected argument ", word, "")),
        None => Ok(typed),
    }
}

fn read_role(command: CommandKind, value: &[u8]) -> Result<Option<SyncRole>, Complaint> {
    let fault = match command {
        CommandKind::StartDaemon => "illegal start-daemon parameter specified",
        CommandKind::StopDaemon => "illegal start_daemon specified",
        _ => return Ok(None),
    };
    match value {
        b"master" => Ok(Some(SyncRole::Master)),
        b"backup" => Ok(Some(SyncRole::Backup)),
        _ => Err(Complaint::usage(fault)),
    }
}

fn timeout(value: &[u8], least: i64) -> Result<u32, Complaint> {
    number(value, least..=LONGEST_TIMEOUT)
        .map(|seconds| seconds as u32)
        .ok_or_else(|| Complaint::quoting("invalid timeout value `", value, "' specified"))
}

/// A service's own timeout: none, or at least two seconds, as deadlines move only once a second.
fn own_timeout(value: &[u8], row: &OptionRow) -> Result<u32, Complaint> {
    match ranged(value, 0, LONGEST_TIMEOUT, row)? {
        1 => ranged(value, 2, LONGEST_TIMEOUT, row),
        seconds => Ok(seconds),
    }
    .map(|seconds| seconds as u32)
}

/// A number of an option whose message names it by its long name, with the original's spellings.
fn ranged(value: &[u8], least: i64, most: i64, row: &OptionRow) -> Result<i64, Complaint> {
    number(value, least..=most).ok_or_else(|| {
        let name = match row.meaning {
            Meaning::Slot(Slot::UpperThreshold) => "u_threshold",
            Meaning::Slot(Slot::LowerThreshold) => "l_threshold",
            Meaning::Slot(Slot::TunnelPort) => "tunnel port",
            _ => row.long,
        };
        Complaint::usage(format!("illegal {name} specified"))
    })
}

fn read_group(value: &[u8]) -> Result<IpAddr, Complaint> {
    let text = std::str::from_utf8(value).unwrap_or_default();
    let (group, fault) = if value.contains(&b':') {
        (text.parse().ok().map(IpAddr::V6), "invalid IPv6 mcast-group `")
    } else {
        (text.parse().ok().map(IpAddr::V4), "invalid IPv4 mcast-group `")
    };
    group.filter(IpAddr::is_multicast).ok_or_else(|| Complaint::quoting(fault, value, "'"))
}
