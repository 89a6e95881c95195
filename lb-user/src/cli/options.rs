//! The option table: every command and option of ipvsadm, once, as data.
//!
//! The parser, the check of which option goes with which command, the messages' names and the help text
//! all read these tables; an option is added by adding a row. What a value may be is not said here but in
//! `parse`. IPVS counterpart: the option tables of ipvsadm 1.31.

use lb_common::forward::{ForwardingMethod, TunnelChecksum};
use lb_common::protocol::Protocol;

/// A command of the command line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum CommandKind {
    /// `-A`
    AddService,
    /// `-E`
    EditService,
    /// `-D`
    DeleteService,
    /// `-C`
    Clear,
    /// `-L`, `-l`
    List,
    /// `-a`
    AddDestination,
    /// `-d`
    DeleteDestination,
    /// `-e`
    EditDestination,
    /// `--set`
    Set,
    /// `--start-daemon`
    StartDaemon,
    /// `--stop-daemon`
    StopDaemon,
    /// `-R`
    Restore,
    /// `-S`
    Save,
    /// `-Z`
    Zero,
    /// `-h`
    Help,
    /// `-v`
    Version,
}

impl CommandKind {
    /// The command's name in messages.
    pub const fn name(self) -> &'static str {
        match self {
            Self::AddService => "add-service",
            Self::EditService => "edit-service",
            Self::DeleteService => "delete-service",
            // Not "clear": the message has kept the command's first name.
            Self::Clear => "flush",
            Self::List => "list",
            Self::AddDestination => "add-server",
            Self::DeleteDestination => "delete-server",
            Self::EditDestination => "edit-server",
            Self::Set => "set",
            Self::StartDaemon => "start-daemon",
            Self::StopDaemon => "stop-daemon",
            Self::Restore => "restore",
            Self::Save => "save",
            Self::Zero => "zero",
            Self::Help => "help",
            Self::Version => "version",
        }
    }
}

/// A set of commands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Commands(u16);

impl Commands {
    const NONE: Self = Self(0);

    const fn of(kinds: &[CommandKind]) -> Self {
        let mut bits = 0;
        let mut i = 0;
        while i < kinds.len() {
            bits |= 1 << kinds[i] as u16;
            i += 1;
        }
        Self(bits)
    }

    /// Whether the command is in the set.
    pub const fn has(self, kind: CommandKind) -> bool {
        self.0 & (1 << kind as u16) != 0
    }
}

/// What an option fills in: two options of one slot exclude each other, and each may be given once.
///
/// The order is the order in which illegal and missing options are reported.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
#[allow(missing_docs, reason = "each is named and described by its rows in SLOTS and OPTIONS")]
pub enum Slot {
    Numeric,
    Connection,
    Service,
    Scheduler,
    Persistent,
    Netmask,
    Destination,
    ForwardingMethod,
    Weight,
    UpperThreshold,
    LowerThreshold,
    McastInterface,
    Timeout,
    Daemon,
    Stats,
    Rate,
    Thresholds,
    PersistentConn,
    Nosort,
    SyncId,
    Exact,
    OnePacket,
    Engine,
    SchedulerFlags,
    McastGroup,
    McastPort,
    McastTtl,
    SyncMaxLength,
    TunnelInfo,
    TunnelType,
    TunnelPort,
    TunnelNoChecksum,
    TunnelChecksum,
    TunnelRemoteChecksum,
    Json,
    Watch,
    DryRun,
    OwnTcpTimeout,
    OwnTcpFinTimeout,
    OwnUdpTimeout,
}

/// A row of [`SLOTS`].
#[derive(Debug)]
pub struct SlotRow {
    /// The slot.
    pub slot: Slot,
    /// Its name in messages.
    pub name: &'static str,
    /// Commands that it may go with.
    pub may: Commands,
    /// Commands that it must go with.
    pub must: Commands,
    /// Commands that take at most one of the slots that name them here.
    pub one: Commands,
}

impl SlotRow {
    /// Whether the slot may or must go with the command.
    pub const fn goes_with(&self, kind: CommandKind) -> bool {
        self.may.has(kind) || self.must.has(kind) || self.one.has(kind)
    }
}

const fn may(slot: Slot, name: &'static str, kinds: &[CommandKind]) -> SlotRow {
    SlotRow { slot, name, may: Commands::of(kinds), must: Commands::NONE, one: Commands::NONE }
}

const fn must(slot: Slot, name: &'static str, kinds: &[CommandKind]) -> SlotRow {
    SlotRow { slot, name, may: Commands::NONE, must: Commands::of(kinds), one: Commands::NONE }
}

const fn one(slot: Slot, name: &'static str, kinds: &[CommandKind]) -> SlotRow {
    SlotRow { slot, name, may: Commands::NONE, must: Commands::NONE, one: Commands::of(kinds) }
}

use CommandKind as C;

const SERVICE_EDITS: &[C] = &[C::AddService, C::EditService];
const DESTINATION_EDITS: &[C] = &[C::AddDestination, C::EditDestination];
const LIST: &[C] = &[C::List];
const TABLE_CHANGES: &[C] = &[
    C::AddService,
    C::EditService,
    C::DeleteService,
    C::Clear,
    C::AddDestination,
    C::EditDestination,
    C::DeleteDestination,
    C::Set,
    C::Restore,
];
const START: &[C] = &[C::StartDaemon];

/// Which slot goes with which command, in the order in which faults are reported.
pub const SLOTS: [SlotRow; 40] = [
    may(Slot::Numeric, "numeric", &[C::List, C::Save]),
    one(Slot::Connection, "connection", LIST),
    SlotRow {
        slot: Slot::Service,
        name: "service-address",
        may: Commands::of(&[C::Zero]),
        must: Commands::of(&[
            C::AddService,
            C::EditService,
            C::DeleteService,
            C::AddDestination,
            C::EditDestination,
            C::DeleteDestination,
        ]),
        one: Commands::of(LIST),
    },
    may(Slot::Scheduler, "scheduler", SERVICE_EDITS),
    may(Slot::Persistent, "persistent", SERVICE_EDITS),
    may(Slot::Netmask, "netmask", SERVICE_EDITS),
    must(Slot::Destination, "real-server", &[C::AddDestination, C::EditDestination, C::DeleteDestination]),
    may(Slot::ForwardingMethod, "forwarding-method", DESTINATION_EDITS),
    may(Slot::Weight, "weight", DESTINATION_EDITS),
    may(Slot::UpperThreshold, "u-threshold", DESTINATION_EDITS),
    may(Slot::LowerThreshold, "l-threshold", DESTINATION_EDITS),
    may(Slot::McastInterface, "mcast-interface", START),
    one(Slot::Timeout, "timeout", LIST),
    one(Slot::Daemon, "daemon", LIST),
    may(Slot::Stats, "stats", LIST),
    may(Slot::Rate, "rate", LIST),
    may(Slot::Thresholds, "thresholds", LIST),
    may(Slot::PersistentConn, "persistent-conn", LIST),
    may(Slot::Nosort, "nosort", LIST),
    may(Slot::SyncId, "syncid", &[C::List, C::StartDaemon, C::StopDaemon]),
    may(Slot::Exact, "exact", LIST),
    may(Slot::OnePacket, "ops", SERVICE_EDITS),
    may(Slot::Engine, "pe", SERVICE_EDITS),
    may(Slot::SchedulerFlags, "sched-flags", SERVICE_EDITS),
    may(Slot::McastGroup, "mcast-group", START),
    may(Slot::McastPort, "mcast-port", START),
    may(Slot::McastTtl, "mcast-ttl", START),
    may(Slot::SyncMaxLength, "sync-maxlen", START),
    may(Slot::TunnelInfo, "tun-info", LIST),
    may(Slot::TunnelType, "tun-type", DESTINATION_EDITS),
    may(Slot::TunnelPort, "tun-port", DESTINATION_EDITS),
    may(Slot::TunnelNoChecksum, "tun-nocsum", DESTINATION_EDITS),
    may(Slot::TunnelChecksum, "tun-csum", DESTINATION_EDITS),
    may(Slot::TunnelRemoteChecksum, "tun-remcsum", DESTINATION_EDITS),
    may(Slot::Json, "json", LIST),
    may(Slot::Watch, "watch", LIST),
    may(Slot::DryRun, "dry-run", TABLE_CHANGES),
    may(Slot::OwnTcpTimeout, "tcp-timeout", SERVICE_EDITS),
    may(Slot::OwnTcpFinTimeout, "tcp-fin-timeout", SERVICE_EDITS),
    may(Slot::OwnUdpTimeout, "udp-timeout", SERVICE_EDITS),
];

impl Slot {
    /// The slot's row.
    pub const fn row(self) -> &'static SlotRow {
        &SLOTS[self as usize]
    }

    /// The slot's name in messages.
    pub const fn name(self) -> &'static str {
        self.row().name
    }
}

/// Whether an option takes an argument, and what help calls it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Argument {
    /// None.
    None,
    /// The rest of the bundle, what follows `=`, or else the next word whatever it looks like.
    Required(&'static str),
    /// The same, but not a next word that begins with `-`; without one it has this value.
    Optional(&'static str, &'static str),
}

/// What an option says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Meaning {
    /// It is a command.
    Command(CommandKind),
    /// It names a service by protocol, address and port.
    Service(Protocol),
    /// It names a service by firewall mark.
    Mark,
    /// The mark is for IPv6.
    Ipv6,
    /// It names a forwarding method.
    Method(ForwardingMethod),
    /// It chooses a tunnel's checksum.
    Checksum(TunnelChecksum),
    /// It fills in a slot of its own.
    Slot(Slot),
    /// Nothing: it asks for what happens anyway.
    Nothing,
}

/// A row of [`OPTIONS`].
#[derive(Debug)]
pub struct OptionRow {
    /// The letter, if it has one.
    pub short: Option<u8>,
    /// The long name without its dashes.
    pub long: &'static str,
    /// Its argument.
    pub argument: Argument,
    /// What it says.
    pub meaning: Meaning,
    /// The line of help.
    pub help: &'static str,
    /// Whether ipvsadm lacks it, so that it exists under the name `xipvs` only.
    pub added: bool,
}

impl OptionRow {
    /// The slot that it fills in.
    pub const fn slot(&self) -> Option<Slot> {
        match self.meaning {
            Meaning::Command(_) | Meaning::Ipv6 | Meaning::Nothing => None,
            Meaning::Service(_) | Meaning::Mark => Some(Slot::Service),
            Meaning::Method(_) => Some(Slot::ForwardingMethod),
            Meaning::Checksum(TunnelChecksum::None) => Some(Slot::TunnelNoChecksum),
            Meaning::Checksum(TunnelChecksum::Full) => Some(Slot::TunnelChecksum),
            Meaning::Checksum(TunnelChecksum::Remote) => Some(Slot::TunnelRemoteChecksum),
            Meaning::Slot(slot) => Some(slot),
        }
    }
}

const fn row(
    short: &'static str,
    long: &'static str,
    argument: Argument,
    meaning: Meaning,
    help: &'static str,
) -> OptionRow {
    let short = if short.is_empty() { None } else { Some(short.as_bytes()[0]) };
    OptionRow { short, long, argument, meaning, help, added: false }
}

const fn added(long: &'static str, argument: Argument, meaning: Meaning, help: &'static str) -> OptionRow {
    OptionRow { short: None, long, argument, meaning, help, added: true }
}

use Argument::{None as No, Optional, Required};
use Meaning::{Checksum, Command, Method, Service};

/// Every option, commands first.
#[rustfmt::skip]
pub const OPTIONS: &[OptionRow] = &[
    row("A", "add-service", No, Command(C::AddService), "add a virtual service"),
    row("E", "edit-service", No, Command(C::EditService), "replace all settings of a virtual service"),
    row("D", "delete-service", No, Command(C::DeleteService), "delete a virtual service with its servers"),
    row("C", "clear", No, Command(C::Clear), "delete every virtual service"),
    row("L", "list", No, Command(C::List), "list the table, or one service of it"),
    row("l", "list", No, Command(C::List), "the same as -L"),
    row("a", "add-server", No, Command(C::AddDestination), "add a real server to a service"),
    row("e", "edit-server", No, Command(C::EditDestination), "replace all settings of a real server"),
    row("d", "delete-server", No, Command(C::DeleteDestination), "take a real server out of a service"),
    row("", "set", No, Command(C::Set), "set the timeouts for TCP, TCP after FIN, and UDP (seconds, 0 keeps)"),
    row("", "start-daemon", Required("ROLE"), Command(C::StartDaemon), "start the sync daemon as master or backup"),
    row("", "stop-daemon", Required("ROLE"), Command(C::StopDaemon), "stop the sync daemon, master or backup"),
    row("R", "restore", No, Command(C::Restore), "carry out the command lines on standard input"),
    row("S", "save", No, Command(C::Save), "print the table as command lines for -R"),
    row("Z", "zero", No, Command(C::Zero), "zero the counters of a service, or all of them"),
    row("h", "help", No, Command(C::Help), "print this text"),
    row("v", "version", No, Command(C::Version), "print the version"),
    row("t", "tcp-service", Required("SERVICE"), Service(Protocol::Tcp), "the TCP service address:port"),
    row("u", "udp-service", Required("SERVICE"), Service(Protocol::Udp), "the UDP service address:port"),
    row("", "sctp-service", Required("SERVICE"), Service(Protocol::Sctp), "the SCTP service address:port"),
    row("f", "fwmark-service", Required("MARK"), Meaning::Mark, "the service of packets with this firewall mark"),
    row("6", "ipv6", No, Meaning::Ipv6, "after -f: the mark's IPv6 packets"),
    row("s", "scheduler", Required("NAME"), Meaning::Slot(Slot::Scheduler), "how servers are chosen (wlc)"),
    row("", "pe", Required("ENGINE"), Meaning::Slot(Slot::Engine), "persistence engine, such as sip"),
    row("p", "persistent", Optional("SECONDS", "360"), Meaning::Slot(Slot::Persistent), "a client stays with its server for so long (360)"),
    row("M", "netmask", Required("MASK"), Meaning::Slot(Slot::Netmask), "how much of a client's address persistence looks at"),
    row("r", "real-server", Required("SERVER"), Meaning::Slot(Slot::Destination), "the real server address[:port]"),
    row("g", "gatewaying", No, Method(ForwardingMethod::DirectRoute), "forward by direct routing (default)"),
    row("i", "ipip", No, Method(ForwardingMethod::Tunnel), "forward through a tunnel"),
    row("m", "masquerading", No, Method(ForwardingMethod::Masquerade), "forward by NAT"),
    row("", "tun-type", Required("TYPE"), Meaning::Slot(Slot::TunnelType), "the tunnel: ipip (default), gue or gre"),
    row("", "tun-port", Required("PORT"), Meaning::Slot(Slot::TunnelPort), "destination port of a gue tunnel"),
    row("", "tun-nocsum", No, Checksum(TunnelChecksum::None), "tunnel without checksum (default)"),
    row("", "tun-csum", No, Checksum(TunnelChecksum::Full), "tunnel with checksum"),
    row("", "tun-remcsum", No, Checksum(TunnelChecksum::Remote), "gue tunnel with remote checksum offload"),
    row("w", "weight", Required("WEIGHT"), Meaning::Slot(Slot::Weight), "the server's share, 0 for no new connections (1)"),
    row("x", "u-threshold", Required("N"), Meaning::Slot(Slot::UpperThreshold), "no new connections from so many on (0: no limit)"),
    row("y", "l-threshold", Required("N"), Meaning::Slot(Slot::LowerThreshold), "new connections again below so many"),
    row("", "mcast-interface", Required("IFACE"), Meaning::Slot(Slot::McastInterface), "interface of the sync daemon (eth0)"),
    row("", "syncid", Required("ID"), Meaning::Slot(Slot::SyncId), "the sync daemon's group of directors, 0 to 255 (0)"),
    row("", "sync-maxlen", Required("BYTES"), Meaning::Slot(Slot::SyncMaxLength), "longest sync message"),
    row("", "mcast-group", Required("ADDRESS"), Meaning::Slot(Slot::McastGroup), "multicast group of the sync daemon (224.0.0.81)"),
    row("", "mcast-port", Required("PORT"), Meaning::Slot(Slot::McastPort), "UDP port of the sync daemon (8848)"),
    row("", "mcast-ttl", Required("TTL"), Meaning::Slot(Slot::McastTtl), "time to live of sync messages (1)"),
    row("c", "connection", No, Meaning::Slot(Slot::Connection), "list connections instead"),
    row("", "timeout", No, Meaning::Slot(Slot::Timeout), "list the timeouts instead"),
    row("", "daemon", No, Meaning::Slot(Slot::Daemon), "list the sync daemons instead"),
    row("", "stats", No, Meaning::Slot(Slot::Stats), "list counters"),
    row("", "rate", No, Meaning::Slot(Slot::Rate), "list rates a second"),
    row("X", "exact", No, Meaning::Slot(Slot::Exact), "print large numbers in full"),
    row("", "thresholds", No, Meaning::Slot(Slot::Thresholds), "list the servers' thresholds"),
    row("", "persistent-conn", No, Meaning::Slot(Slot::PersistentConn), "list persistence templates; with -c, engine data"),
    row("", "tun-info", No, Meaning::Slot(Slot::TunnelInfo), "list tunnels"),
    row("", "nosort", No, Meaning::Slot(Slot::Nosort), "list in the director's own order"),
    row("", "sort", No, Meaning::Nothing, "list sorted, as is done anyway"),
    row("o", "ops", No, Meaning::Slot(Slot::OnePacket), "schedule every UDP packet anew"),
    row("n", "numeric", No, Meaning::Slot(Slot::Numeric), "addresses and ports as numbers"),
    row("b", "sched-flags", Required("FLAGS"), Meaning::Slot(Slot::SchedulerFlags), "scheduler flags, separated by commas"),
    added("json", No, Meaning::Slot(Slot::Json), "list as JSON"),
    added("watch", Optional("SECONDS", "2"), Meaning::Slot(Slot::Watch), "list again and again, every so many seconds (2)"),
    added("tcp-timeout", Required("SECONDS"), Meaning::Slot(Slot::OwnTcpTimeout), "the service's own for established connections (0: none)"),
    added("tcp-fin-timeout", Required("SECONDS"), Meaning::Slot(Slot::OwnTcpFinTimeout), "the service's own after a FIN (0: none)"),
    added("udp-timeout", Required("SECONDS"), Meaning::Slot(Slot::OwnUdpTimeout), "the service's own for UDP (0: none)"),
    added("dry-run", No, Meaning::Slot(Slot::DryRun), "show what would change, and change nothing"),
];

/// The option with this letter.
pub fn by_letter(letter: u8) -> Option<&'static OptionRow> {
    OPTIONS.iter().find(|row| row.short == Some(letter))
}

/// The option with this long name, written in full.
pub fn by_name(name: &[u8], with_added: bool) -> Option<&'static OptionRow> {
    OPTIONS.iter().find(|row| row.long.as_bytes() == name && (with_added || !row.added))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_stand_in_their_own_order() {
        for (index, row) in SLOTS.iter().enumerate() {
            assert_eq!(row.slot as usize, index, "{}", row.name);
        }
    }

    #[test]
    fn names_and_letters_are_unique() {
        for (index, row) in OPTIONS.iter().enumerate() {
            for other in &OPTIONS[index + 1..] {
                assert!(row.short.is_none() || row.short != other.short, "{} {}", row.long, other.long);
                assert!(row.long != other.long || row.meaning == other.meaning, "{}", row.long);
            }
        }
    }

    #[test]
    fn every_slot_has_an_option_and_a_command() {
        for slot in &SLOTS {
            assert!(OPTIONS.iter().any(|row| row.slot() == Some(slot.slot)), "{}", slot.name);
            assert!(slot.may.0 | slot.must.0 | slot.one.0 != 0, "{}", slot.name);
        }
    }
}
