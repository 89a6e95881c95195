//! A director in memory: the table of IPVS and what the kernel refuses, in the kernel's order.
//!
//! For tests, for reading saved rules and for planning. It forwards nothing, so connections and counters
//! are what a caller put there. What the kernel asks of its host (interfaces, local addresses) is in
//! [`Host`]. IPVS counterpart: `ip_vs_ctl.c`, and the start of a daemon in `ip_vs_sync.c`.

use std::collections::{HashMap, HashSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use lb_common::forward::{ForwardingMethod, TunnelType};
use lb_common::mark::Rule;
use lb_common::scheduler::Scheduler;

use super::newest::Newest;
use super::{Director, Error, Result, marked_elsewhere};
use crate::table::{
    ConnectionReport, Destination, DestinationKey, DestinationReport, Family, Info, Netmask, Service,
    ServiceKey, ServiceReport, Stats, SyncDaemon, SyncRole, TableReport, Timeouts, service_flags,
};

/// A network interface, as far as sync daemons ask.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Interface {
    /// Largest packet in bytes.
    pub mtu: u32,
    /// Whether it is up.
    pub up: bool,
}

/// What IPVS asks of the host that it runs on.
#[derive(Debug, Clone)]
pub struct Host {
    /// The interfaces by name.
    pub interfaces: HashMap<String, Interface>,
    /// The host's own addresses.
    pub local: HashSet<IpAddr>,
    /// Broadcast addresses of the networks that it is connected to.
    pub broadcast: HashSet<Ipv4Addr>,
    /// The schedulers that its kernel has.
    pub schedulers: HashSet<String>,
}

impl Default for Host {
    /// A host that has its loopback interface only, and a kernel as Debian builds it: every scheduler but `twos`.
    fn default() -> Self {
        let schedulers = Scheduler::NAMES.iter().filter(|(kind, _)| *kind != Scheduler::TwoChoices);
        Self {
            schedulers: schedulers.map(|(_, name)| (*name).to_owned()).collect(),
            interfaces: HashMap::from([("lo".into(), Interface { mtu: 65536, up: true })]),
            local: HashSet::from([Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()]),
            broadcast: HashSet::from([Ipv4Addr::new(127, 255, 255, 255)]),
        }
    }
}

impl Host {
    /// What the kernel checks of a service's settings, whether it adds or edits.
    fn check_service(&self, service: &Service) -> Result<()> {
        if service.scheduler.len() > 15 {
            return Err(Error::Invalid);
        }
        if !self.schedulers.contains(&service.scheduler) {
            return Err(Error::UnknownScheduler);
        }
        if service.engine.as_deref().is_some_and(|engine| engine != "sip") {
            return Err(Error::UnknownScheduler);
        }
        match (service.key.family(), service.netmask) {
            (Family::V6, Netmask::V6(1..=128)) | (Family::V4, Netmask::V4(_)) => Ok(()),
            _ => Err(Error::Invalid),
        }
    }

    /// Whether IPVS takes the address for a destination: unicast or local, and in IPv6 not link-local.
    fn takes(&self, address: IpAddr) -> bool {
        if self.local.contains(&address) {
            return true;
        }
        match address {
            IpAddr::V4(address) => {
                !(address.is_unspecified()
                    || address.is_multicast()
                    || address.is_broadcast()
                    || self.broadcast.contains(&address))
            }
            IpAddr::V6(address) => {
                !(address.is_unspecified()
                    || address.is_multicast()
                    || address.is_unicast_link_local()
                    || address.to_ipv4_mapped().is_some())
            }
        }
    }
}

#[derive(Debug, Clone)]
struct Entry {
    report: ServiceReport,
    destinations: Newest<DestinationKey, DestinationReport>,
}

/// The director in memory.
#[derive(Debug, Clone)]
pub struct Memory {
    /// What it says of itself.
    pub info: Info,
    /// The host that it pretends to run on.
    pub host: Host,
    /// Whether the caller may use it; if not it refuses to say what it is, which every command asks first.
    pub permitted: bool,
    /// The connections that it reports.
    pub connections: Vec<ConnectionReport>,
    services: Newest<ServiceKey, Entry>,
    marks: Option<Vec<Rule>>,
    timeouts: Timeouts,
    daemons: [Option<SyncDaemon>; 2],
}

impl Default for Memory {
    fn default() -> Self {
        Self::new(Host::default())
    }
}

impl Memory {
    /// An empty table on such a host, with IPVS's version and the table size of Debian's kernel 6.1.
    pub fn new(host: Host) -> Self {
        Self {
            info: Info { version: 0x01_02_01, table_size: 4096 },
            host,
            permitted: true,
            connections: Vec::new(),
            services: Newest::default(),
            marks: Some(Vec::new()),
            timeouts: Timeouts::default(),
            daemons: [None, None],
        }
    }

    /// A copy of another director's table, with its counters, that takes further changes.
    ///
    /// What is there is not checked again, and a scheduler that is in use is one that the host has.
    pub fn holding(table: &TableReport) -> Self {
        let mut memory = Self { timeouts: table.timeouts, marks: table.marks.clone(), ..Self::default() };
        for entry in table.entries.iter().rev() {
            let service = &entry.service.service;
            memory.host.schedulers.insert(service.scheduler.clone());
            let mut destinations = Newest::default();
            for report in entry.destinations.iter().rev() {
                destinations.add(report.destination.key, report.clone());
            }
            memory.services.add(service.key, Entry { report: entry.service.clone(), destinations });
        }
        memory
    }

    /// Gives every service and destination these counters, as traffic would.
    pub fn set_stats(&mut self, stats: Stats) {
        for entry in self.services.values_mut() {
            entry.report.stats = stats;
            entry.destinations.values_mut().for_each(|report| report.stats = stats);
        }
    }

    fn entry(&mut self, key: &ServiceKey) -> Result<&mut Entry> {
        self.services.get_mut(key).ok_or(Error::NoSuchService)
    }

    /// What the kernel checks of a destination before it looks whether it is there.
    fn check_destination(&self, service: &ServiceKey, destination: &Destination) -> Result<()> {
        if !self.services.has(service) {
            return Err(Error::NoSuchService);
        }
        let mixed = Family::of(destination.key.address) != service.family();
        let synced = self.daemons.iter().any(Option::is_some);
        if mixed && (synced || destination.method != ForwardingMethod::Tunnel) {
            return Err(Error::Invalid);
        }
        if destination.weight > i32::MAX as u32 || destination.lower_threshold > destination.upper_threshold {
            return Err(Error::OutOfRange);
        }
        if destination.upper_threshold > i32::MAX as u32
            || destination.tunnel.kind == TunnelType::Gue && destination.tunnel.port == 0
        {
            return Err(Error::Invalid);
        }
        Ok(())
    }

    fn has_mixed_families(&self) -> bool {
        self.services.values().any(|entry| {
            let family = entry.report.service.key.family();
            entry.destinations.values().any(|report| Family::of(report.destination.key.address) != family)
        })
    }
}

/// The service as it is kept; without timeouts of its own it has those that there were.
fn stored(service: &Service, own_timeouts: Option<Timeouts>) -> Service {
    let own_timeouts = service.own_timeouts.or(own_timeouts);
    Service { flags: service.flags & !service_flags::HASHED, own_timeouts, ..service.clone() }
}

impl Director for Memory {
    fn info(&mut self) -> Result<Info> {
        if self.permitted { Ok(self.info) } else { Err(Error::PermissionDenied) }
    }

    fn services(&mut self) -> Result<Vec<ServiceReport>> {
        // The kernel lists marks last. The order of its hash buckets is random; here all are one bucket.
        let reports = self.services.values().map(|entry| &entry.report);
        let (marks, addresses): (Vec<_>, Vec<_>) =
            reports.partition(|report| matches!(report.service.key, ServiceKey::Mark { .. }));
        Ok(addresses.into_iter().chain(marks).cloned().collect())
    }

    fn service(&mut self, key: &ServiceKey) -> Result<ServiceReport> {
        self.entry(key).map(|entry| entry.report.clone())
    }

    fn destinations(&mut self, service: &ServiceKey) -> Result<Vec<DestinationReport>> {
        let entry = self.services.get(service);
        Ok(entry.map_or_else(Vec::new, |entry| entry.destinations.values().cloned().collect()))
    }

    fn add_service(&mut self, service: &Service) -> Result<()> {
        if self.services.has(&service.key) {
            return Err(Error::ServiceExists);
        }
        self.host.check_service(service)?;
        let report =
            ServiceReport { service: stored(service, Some(Timeouts::NONE)), stats: Stats::default() };
        self.services.add(service.key, Entry { report, destinations: Newest::default() });
        Ok(())
    }

    fn edit_service(&mut self, service: &Service) -> Result<()> {
        self.entry(&service.key)?;
        self.host.check_service(service)?;
        let report = &mut self.entry(&service.key)?.report;
        report.service = stored(service, report.service.own_timeouts);
        Ok(())
    }

    fn delete_service(&mut self, key: &ServiceKey) -> Result<()> {
        self.services.remove(key).map(drop).ok_or(Error::NoSuchService)
    }

    fn flush(&mut self) -> Result<()> {
        self.services = Newest::default();
        Ok(())
    }

    fn add_destination(&mut self, service: &ServiceKey, destination: &Destination) -> Result<()> {
        self.check_destination(service, destination)?;
        let takes = self.host.takes(destination.key.address);
        let entry = self.entry(service)?;
        if entry.destinations.has(&destination.key) {
            return Err(Error::DestinationExists);
        }
        if !takes {
            return Err(Error::Invalid);
        }
        let report = DestinationReport {
            destination: destination.clone(),
            stats: Stats::default(),
            active: 0,
            inactive: 0,
            persistent: 0,
            drains_in: None,
        };
        entry.destinations.add(destination.key, report);
        Ok(())
    }

    fn edit_destination(&mut self, service: &ServiceKey, destination: &Destination) -> Result<()> {
        self.check_destination(service, destination)?;
        let found = self.entry(service)?.destinations.get_mut(&destination.key);
        found.ok_or(Error::NoSuchDestination)?.destination = destination.clone();
        Ok(())
    }

    fn delete_destination(&mut self, service: &ServiceKey, destination: &DestinationKey) -> Result<()> {
        let removed = self.entry(service)?.destinations.remove(destination);
        removed.map(drop).ok_or(Error::NoSuchDestination)
    }

    fn zero(&mut self, service: Option<&ServiceKey>) -> Result<()> {
        let Some(key) = service else {
            self.set_stats(Stats::default());
            return Ok(());
        };
        let entry = self.entry(key)?;
        entry.report.stats = Stats::default();
        entry.destinations.values_mut().for_each(|report| report.stats = Stats::default());
        Ok(())
    }

    fn timeouts(&mut self) -> Result<Timeouts> {
        Ok(self.timeouts)
    }

    fn set_timeouts(&mut self, timeouts: &Timeouts) -> Result<()> {
        let keep = |new: u32, old: u32| if new == 0 { old } else { new };
        self.timeouts = Timeouts {
            tcp: keep(timeouts.tcp, self.timeouts.tcp),
            tcp_fin: keep(timeouts.tcp_fin, self.timeouts.tcp_fin),
            udp: keep(timeouts.udp, self.timeouts.udp),
        };
        Ok(())
    }

    fn daemons(&mut self) -> Result<Vec<SyncDaemon>> {
        Ok(self.daemons.iter().flatten().cloned().collect())
    }

    fn start_daemon(&mut self, daemon: &SyncDaemon) -> Result<()> {
        if daemon.group.is_some_and(|group| !group.is_multicast()) || self.has_mixed_families() {
            return Err(Error::Invalid);
        }
        let Some(interface) = self.host.interfaces.get(&daemon.interface).copied() else {
            return Err(Error::Errno(libc::ENODEV));
        };
        let place = &mut self.daemons[daemon.role as usize - 1];
        if place.is_some() {
            return Err(Error::DaemonRuns);
        }
        if daemon.role == SyncRole::Master && !interface.up {
            return Err(Error::Errno(libc::ENETUNREACH));
        }
        *place = Some(daemon.completed(interface.mtu));
        Ok(())
    }

    fn stop_daemon(&mut self, role: SyncRole) -> Result<()> {
        self.daemons[role as usize - 1].take().map(drop).ok_or(Error::NoDaemon)
    }

    fn mark_rules(&mut self) -> Result<Option<Vec<Rule>>> {
        Ok(self.marks.clone())
    }

    fn change_mark_rules(&mut self, change: &mut dyn FnMut(&mut Vec<Rule>) -> Result<()>) -> Result<()> {
        match &mut self.marks {
            Some(rules) => change(rules),
            None => Err(marked_elsewhere()),
        }
    }

    fn connections(&mut self) -> Result<Vec<ConnectionReport>> {
        Ok(self.connections.clone())
    }
}

#[cfg(test)]
mod tests {
    use lb_common::protocol::Protocol;

    use super::*;

    fn key(port: u16) -> ServiceKey {
        ServiceKey::Address { protocol: Protocol::Tcp, address: [10, 0, 0, 1].into(), port }
    }

    fn destination(address: &str) -> Destination {
        Destination::new(DestinationKey { address: address.parse().unwrap(), port: 80 })
    }

    fn with_service() -> Memory {
        let mut memory = Memory::default();
        memory.add_service(&Service::new(key(80))).unwrap();
        memory
    }

    #[test]
    fn the_service_counts_before_its_scheduler() {
        let mut memory = with_service();
        let unknown = |port| Service { scheduler: "nosuch".into(), ..Service::new(key(port)) };
        assert!(matches!(memory.add_service(&unknown(80)), Err(Error::ServiceExists)));
        assert!(matches!(memory.add_service(&unknown(81)), Err(Error::UnknownScheduler)));
        assert!(matches!(memory.edit_service(&unknown(81)), Err(Error::NoSuchService)));
    }

    #[test]
    fn thresholds_count_before_the_destination_and_that_before_its_address() {
        let mut memory = with_service();
        let bad = Destination { lower_threshold: 1, ..destination("10.0.0.2") };
        assert!(matches!(memory.edit_destination(&key(80), &bad), Err(Error::OutOfRange)));
        assert!(matches!(memory.add_destination(&key(81), &bad), Err(Error::NoSuchService)));
        assert!(matches!(memory.add_destination(&key(80), &destination("224.0.0.1")), Err(Error::Invalid)));
        memory.add_destination(&key(80), &destination("10.0.0.2")).unwrap();
        let again = memory.add_destination(&key(80), &destination("10.0.0.2"));
        assert!(matches!(again, Err(Error::DestinationExists)));
    }

    #[test]
    fn the_newest_destination_is_first_and_an_edited_one_keeps_its_place() {
        let mut memory = with_service();
        for address in ["10.0.0.2", "10.0.0.3", "10.0.0.4"] {
            memory.add_destination(&key(80), &destination(address)).unwrap();
        }
        let edited = Destination { weight: 9, ..destination("10.0.0.3") };
        memory.edit_destination(&key(80), &edited).unwrap();
        let weights: Vec<_> =
            memory.destinations(&key(80)).unwrap().iter().map(|report| report.destination.weight).collect();
        assert_eq!(weights, [1, 9, 1]);
    }

    #[test]
    fn a_daemon_needs_an_interface_that_is_up_to_send() {
        let mut memory = Memory::default();
        memory.host.interfaces.insert("down0".into(), Interface { mtu: 1500, up: false });
        let daemon = |role, interface: &str| SyncDaemon {
            role,
            interface: interface.into(),
            sync_id: 0,
            max_length: 0,
            group: None,
            port: 0,
            ttl: 0,
        };
        let start = memory.start_daemon(&daemon(SyncRole::Master, "down0"));
        assert!(matches!(start, Err(Error::Errno(libc::ENETUNREACH))));
        memory.start_daemon(&daemon(SyncRole::Backup, "lo")).unwrap();
        assert_eq!(memory.daemons().unwrap()[0].max_length, 65507);
    }
}
