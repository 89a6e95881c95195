//! The director whose packets an XDP program forwards: IPVS's verbs on pinned maps.
//!
//! The records of services and destinations are the truth; the index, the counts, the address filter follow from
//! them. Every command works under one lock. A command marks the table while it changes it, so that one that
//! was killed is noticed, and the next puts in order what followed from nothing any more ([`repair`]).
//! IPVS counterpart: `ip_vs_ctl.c`.

pub mod adopt;
mod batch;
pub mod connection;
pub mod daemon;
pub mod destination;
mod filter;
pub mod lifecycle;
mod mapped;
pub mod maps;
mod mark;
pub mod neighbour;
mod next_hops;
pub mod repair;
pub mod routing;
pub mod service;
mod set;
pub mod sizes;
pub mod sync;
pub mod sysctl;

use std::fs::File;
use std::mem::offset_of;
use std::net::IpAddr;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use lb_common::forward::{ForwardingMethod, TunnelType};
use lb_common::mark::Rule;
use lb_common::service::Service as ServiceRecord;
use lb_common::settings::Settings;
use lb_common::sync::Record;

use self::adopt::{Fate, Places, Policy, Takeover};
use self::daemon::Daemons;
use self::destination::Slots;
use self::maps::Maps;
use self::next_hops::NextHops;
use self::set::{Arena, Change, DestinationSet};
use super::{Director, Error, Result};
use crate::table::{
    ConnectionReport, Destination, DestinationKey, DestinationReport, Family, Info, Service, ServiceKey,
    ServiceReport, SyncDaemon, SyncRole, Timeouts,
};

/// The version of IPVS that this director's behaviour is that of.
const VERSION: u32 = 0x01_02_01;

/// What the first line of a listing gives as the table's size: IPVS's default number of hash buckets. Our table has
/// no such buckets, and programs compare that line; how large the table is, `xipvs status` says.
const LISTED_SIZE: u32 = 4096;

/// The director.
#[derive(Debug)]
pub struct Xdp {
    maps: Maps,
    lock: File,
    known: Option<Known>,
    next_hops: NextHops,
    /// What a sync daemon is started by: this program, unless told otherwise.
    program: PathBuf,
}

/// What a process has found out about the table, true as long as the table's revision is the same.
///
/// Each part is found out when it is first asked for: that reads every record, and one command of many needs neither.
#[derive(Debug, Default)]
struct Known {
    revision: u32,
    arena: Option<Arena>,
    slots: Option<Slots>,
}

impl Known {
    fn arena(&mut self, maps: &Maps) -> &mut Arena {
        self.arena.get_or_insert_with(|| Arena::of(maps))
    }

    fn slots(&mut self, maps: &Maps) -> &mut Slots {
        self.slots.get_or_insert_with(|| Slots::of(maps))
    }
}

impl Xdp {
    /// The director whose maps are pinned in a directory.
    ///
    /// # Errors
    ///
    /// When the maps are not there or not of this version.
    pub fn open(directory: &Path) -> Result<Self> {
        let lock = File::open(directory)
            .map_err(|error| Error::Unavailable(format!("{}: {error}", directory.display())))?;
        let (maps, next_hops) = (Maps::open(directory)?, NextHops::default());
        // A program that was replaced meanwhile has no other name any more.
        let program = std::env::current_exe().ok().filter(|program| program.exists());
        let program = program.unwrap_or_else(|| "/proc/self/exe".into());
        Ok(Self { maps, lock, known: None, next_hops, program })
    }

    /// Has sync daemons started by another program than this one, which is not xipvs.
    pub fn start_daemons_by(&mut self, program: PathBuf) {
        self.program = program;
    }

    /// The sync daemons of the namespace.
    pub fn sync_daemons(&self) -> Daemons {
        Daemons::of(self.maps.directory())
    }

    /// The maps.
    pub fn maps(&self) -> &Maps {
        &self.maps
    }

    /// Takes over connections that another director made, each with its state and the time that it has left. The table
    /// must have their services and destinations. What is there already stays as it is.
    ///
    /// # Errors
    ///
    /// When the program that does it cannot be run.
    pub fn adopt(&mut self, connections: &[ConnectionReport]) -> Result<Takeover> {
        self.look(|maps| adopt::adopt(maps, connections))
    }

    /// The connections as sync messages tell them, and how many more there are, of deleted destinations.
    ///
    /// # Errors
    ///
    /// When the table cannot be read.
    pub fn sync_records(&mut self) -> Result<(Vec<sync::Told>, usize)> {
        self.look(sync::records)
    }

    /// Takes over what sync messages tell, and says of each record what became of it.
    ///
    /// # Errors
    ///
    /// When the program that does it cannot be run, or the table is gone.
    pub fn adopt_records(
        &mut self,
        places: &mut Places,
        records: &[Record<'_>],
        policy: Policy,
    ) -> Result<Vec<Fate>> {
        self.look(|maps| adopt::adopt_records(maps, places, records, policy))
    }

    /// Does what makes this process a sync daemon, while nobody adds a destination of the other family, which sync messages
    /// cannot tell: with one there, no daemon starts.
    ///
    /// # Errors
    ///
    /// `Invalid` when there is one, and what `enter` says.
    pub fn enter_daemon<R>(&mut self, enter: impl FnOnce(&Daemons) -> Result<R>) -> Result<R> {
        let daemons = self.sync_daemons();
        self.look(|maps| if has_mixed_families(maps) { Err(Error::Invalid) } else { enter(&daemons) })
    }

    /// Takes a destination out of service: its weight becomes 0, and what connections and templates it has in so many seconds end
    /// then. Setting its weight again takes that back.
    ///
    /// # Errors
    ///
    /// When there is no such service or destination.
    pub fn drain(&mut self, service: &ServiceKey, destination: &DestinationKey, seconds: u32) -> Result<()> {
        let source = self.next_hops.source(destination.address);
        self.change(|maps, known| {
            let (slot, record) = service::find(maps, service)?;
            let set = set::read(maps, &record);
            let position = position(maps, &set, destination).ok_or(Error::NoSuchDestination)?;
            let id = set.ids[position];
            let now = destination::report(maps, id).ok_or(Error::NoSuchDestination)?.destination;
            destination::edit(maps, id, &Destination { weight: 0, ..now }, source);
            known.arena(maps).replace(maps, slot, &set, Change::Edited)?;
            // The deadline counts from now, not from when the timer came by last.
            maps.sweep()?;
            destination::drain(maps, id, seconds);
            Ok(())
        })
    }

    /// Does something that changes nothing while nobody changes anything.
    fn look<R>(&mut self, body: impl FnOnce(&Maps) -> Result<R>) -> Result<R> {
        let failed = |error: std::io::Error| Error::Unavailable(format!("cannot lock the table: {error}"));
        self.lock.lock_shared().map_err(failed)?;
        self.check_place()?;
        let answer = body(&self.maps);
        self.lock.unlock().map_err(failed)?;
        answer
    }

    /// Changes the table while nobody else looks at it.
    fn change<R>(&mut self, body: impl FnOnce(&mut Maps, &mut Known) -> Result<R>) -> Result<R> {
        let failed = |error: std::io::Error| Error::Unavailable(format!("cannot lock the table: {error}"));
        self.lock.lock().map_err(failed)?;
        self.check_place()?;
        let answer = self.changed(body);
        self.lock.unlock().map_err(failed)?;
        answer
    }

    /// Sees to it that the maps are still those of the namespace: another command may have removed them while this
    /// one waited.
    ///
    /// # Errors
    ///
    /// When they are not.
    pub fn check_place(&self) -> Result<()> {
        let inode =
            |metadata: std::io::Result<std::fs::Metadata>| metadata.map(|metadata| metadata.ino()).ok();
        if inode(self.lock.metadata()) == inode(std::fs::metadata(self.maps.directory())) {
            return Ok(());
        }
        Err(Error::Unavailable("the table was removed by `xipvs detach` meanwhile".into()))
    }

    fn changed<R>(&mut self, body: impl FnOnce(&mut Maps, &mut Known) -> Result<R>) -> Result<R> {
        let settings = self.maps.settings();
        if settings.changing != 0 {
            repair::repair(&mut self.maps)?;
        }
        let mut known = match self.known.take() {
            Some(known) if settings.changing == 0 && known.revision == settings.revision => known,
            _ => Known::default(),
        };
        self.maps.settings.store_u32(0, offset_of!(Settings, changing), 1);
        let answer = body(&mut self.maps, &mut known);
        known.revision = settings.revision.wrapping_add(1);
        self.maps.settings.store_u32(0, offset_of!(Settings, revision), known.revision);
        self.maps.settings.store_u32(0, offset_of!(Settings, changing), 0);
        self.known = Some(known);
        answer
    }
}

/// What the kernel checks of a service's destination before it looks whether it is there.
fn check(maps: &Maps, service: &ServiceRecord, destination: &Destination) -> Result<()> {
    let mixed = family_of(destination.key.address) != service.family;
    if mixed && (destination.method != ForwardingMethod::Tunnel || Daemons::of(maps.directory()).any()?) {
        return Err(Error::Invalid);
    }
    if destination.weight > i32::MAX as u32 || destination.lower_threshold > destination.upper_threshold {
        return Err(Error::OutOfRange);
    }
    if destination.upper_threshold > i32::MAX as u32 {
        return Err(Error::Invalid);
    }
    if destination.tunnel.kind == TunnelType::Gue && destination.tunnel.port == 0 {
        return Err(Error::Invalid);
    }
    if matches!(destination.method, ForwardingMethod::LocalNode | ForwardingMethod::Bypass) {
        return Err(Error::Invalid);
    }
    Ok(())
}

impl Director for Xdp {
    fn info(&mut self) -> Result<Info> {
        Ok(Info { version: VERSION, table_size: LISTED_SIZE })
    }

    fn services(&mut self) -> Result<Vec<ServiceReport>> {
        self.look(|maps| {
            let mut records: Vec<_> = service::all(maps).map(|(_, record)| record).collect();
            // As the kernel would that had them all in one hash bucket: newest first, marks last.
            let next = maps.settings().service_serial;
            records.sort_unstable_by_key(|record| (record.mark != 0, next.wrapping_sub(record.serial)));
            Ok(records.iter().map(|record| service::report(maps, record)).collect())
        })
    }

    fn service(&mut self, key: &ServiceKey) -> Result<ServiceReport> {
        self.look(|maps| service::find(maps, key).map(|(_, record)| service::report(maps, &record)))
    }

    fn destinations(&mut self, service: &ServiceKey) -> Result<Vec<DestinationReport>> {
        self.look(|maps| {
            let Ok((_, record)) = service::find(maps, service) else { return Ok(Vec::new()) };
            let ids = set::read(maps, &record).ids;
            Ok(ids.into_iter().filter_map(|id| destination::report(maps, id)).collect())
        })
    }

    fn add_service(&mut self, service: &Service) -> Result<()> {
        self.change(|maps, _| {
            if service::find(maps, &service.key).is_ok() {
                return Err(Error::ServiceExists);
            }
            let scheduler = service::check(service)?;
            service::add(maps, service, scheduler)?;
            if service.engine.is_some() { repair::note_engines(maps) } else { Ok(()) }
        })
    }

    fn edit_service(&mut self, service: &Service) -> Result<()> {
        self.change(|maps, known| {
            let (slot, record) = service::find(maps, &service.key)?;
            let scheduler = service::check(service)?;
            // First what may be refused: then everything stays as it was.
            if record.scheduler != scheduler as u32 {
                let set = set::read(maps, &record);
                known.arena(maps).replace(maps, slot, &set, Change::Rescheduled(scheduler))?;
                service::forget_cached(maps, slot);
            }
            service::store_settings(maps, slot, service, scheduler);
            if service.own_timeouts.is_some() {
                repair::note_own_timeouts(maps);
            }
            if service.engine.is_some() || record.engine != [0; 16] {
                repair::note_engines(maps)?;
            }
            Ok(())
        })
    }

    fn delete_service(&mut self, key: &ServiceKey) -> Result<()> {
        let unused = self.change(|maps, known| {
            let (slot, _) = service::find(maps, key)?;
            let addresses = delete_service(maps, known, slot);
            repair::refresh(maps);
            repair::note_engines(maps)?;
            Ok(destination::unused(maps, addresses))
        })?;
        self.next_hops.forget(unused);
        Ok(())
    }

    fn flush(&mut self) -> Result<()> {
        let unused = self.change(|maps, known| {
            let slots: Vec<u32> = service::all(maps).map(|(slot, _)| slot).collect();
            let addresses: Vec<_> =
                slots.into_iter().flat_map(|slot| delete_service(maps, known, slot)).collect();
            repair::refresh(maps);
            repair::note_engines(maps)?;
            Ok(destination::unused(maps, addresses))
        })?;
        self.next_hops.forget(unused);
        Ok(())
    }

    fn add_destination(&mut self, service: &ServiceKey, destination: &Destination) -> Result<()> {
        let address = destination.key.address;
        let takes = self.next_hops.check(address);
        let source = self.next_hops.source(address);
        self.change(|maps, known| {
            let (slot, record) = service::find(maps, service)?;
            check(maps, &record, destination)?;
            let mut set = set::read(maps, &record);
            if position(maps, &set, &destination.key).is_some() {
                return Err(Error::DestinationExists);
            }
            takes?;
            if set.ids.len() as u32 >= lb_common::service::MAX_DESTINATIONS {
                return Err(Error::Errno(libc::ENOMEM));
            }
            let id = known.slots(maps).place(maps, slot, &record, destination, source)?;
            set.ids.insert(0, id);
            known.arena(maps).replace(maps, slot, &set, Change::Added).inspect_err(|_| {
                destination::delete(maps, known.slots(maps), id);
            })
        })?;
        self.next_hops.manage(address);
        Ok(())
    }

    fn edit_destination(&mut self, service: &ServiceKey, destination: &Destination) -> Result<()> {
        let source = self.next_hops.source(destination.key.address);
        self.change(|maps, known| {
            let (slot, record) = service::find(maps, service)?;
            check(maps, &record, destination)?;
            let set = set::read(maps, &record);
            let position = position(maps, &set, &destination.key).ok_or(Error::NoSuchDestination)?;
            destination::edit(maps, set.ids[position], destination, source);
            known.arena(maps).replace(maps, slot, &set, Change::Edited)
        })
    }

    fn delete_destination(&mut self, service: &ServiceKey, destination: &DestinationKey) -> Result<()> {
        let unused = self.change(|maps, known| {
            let (slot, record) = service::find(maps, service)?;
            let mut set = set::read(maps, &record);
            let position = position(maps, &set, destination).ok_or(Error::NoSuchDestination)?;
            let id = set.ids.remove(position);
            known.arena(maps).replace(maps, slot, &set, Change::Removed(position as u32))?;
            service::part(maps, slot, id);
            let address = destination::delete(maps, known.slots(maps), id);
            Ok(destination::unused(maps, address))
        })?;
        self.next_hops.forget(unused);
        Ok(())
    }

    fn zero(&mut self, service: Option<&ServiceKey>) -> Result<()> {
        self.change(|maps, _| {
            let slots = match service {
                Some(key) => vec![service::find(maps, key)?.0],
                None => service::all(maps).map(|(slot, _)| slot).collect(),
            };
            slots.into_iter().for_each(|slot| service::zero(maps, slot));
            Ok(())
        })
    }

    fn timeouts(&mut self) -> Result<Timeouts> {
        self.look(|maps| Ok(maps.timeouts()))
    }

    fn set_timeouts(&mut self, timeouts: &Timeouts) -> Result<()> {
        self.change(|maps, _| {
            let old = maps.timeouts();
            let keep = |new: u32, old: u32| if new == 0 { old } else { new };
            maps.set_timeouts(&Timeouts {
                tcp: keep(timeouts.tcp, old.tcp),
                tcp_fin: keep(timeouts.tcp_fin, old.tcp_fin),
                udp: keep(timeouts.udp, old.udp),
            });
            Ok(())
        })
    }

    fn daemons(&mut self) -> Result<Vec<SyncDaemon>> {
        let daemons = self.sync_daemons();
        let running = SyncRole::ALL.into_iter().map(|role| daemons.running(role));
        Ok(running.collect::<Result<Vec<_>>>()?.into_iter().flatten().collect())
    }

    fn start_daemon(&mut self, daemon: &SyncDaemon) -> Result<()> {
        Daemons::start(&self.program, daemon)
    }

    fn stop_daemon(&mut self, role: SyncRole) -> Result<()> {
        self.sync_daemons().stop(role)
    }

    fn mark_rules(&mut self) -> Result<Option<Vec<Rule>>> {
        self.look(|maps| Ok(Some(mark::rules(maps))))
    }

    fn change_mark_rules(&mut self, change: &mut dyn FnMut(&mut Vec<Rule>) -> Result<()>) -> Result<()> {
        self.change(|maps, _| {
            let mut rules = mark::rules(maps);
            change(&mut rules)?;
            mark::store(maps, &rules)
        })
    }

    /// The table's revision, and whether a command was killed half-way; it tells everything.
    fn fingerprint(&mut self) -> Result<u64> {
        self.look(|maps| {
            let settings = maps.settings();
            Ok(u64::from(settings.changing) << 32 | u64::from(settings.revision))
        })
    }

    fn connections(&mut self) -> Result<Vec<ConnectionReport>> {
        self.look(connection::all)
    }
}

/// Whether a service has a destination of the other family.
fn has_mixed_families(maps: &Maps) -> bool {
    service::all(maps).any(|(_, record)| {
        let ids = set::read(maps, &record).ids;
        let family = |id| maps.destinations.read(id).map(|destination| destination.family);
        ids.into_iter().any(|id| family(id) != Some(record.family))
    })
}

/// Where a destination stands in its service's set.
fn position(maps: &Maps, set: &DestinationSet, key: &DestinationKey) -> Option<usize> {
    set.ids.iter().position(|id| destination::key(maps, *id) == Some(*key))
}

/// Deletes a service and its destinations, but for what follows from the records. Returns the destinations' addresses.
fn delete_service(maps: &mut Maps, known: &mut Known, slot: u32) -> Vec<IpAddr> {
    let Some(record) = maps.services.read(slot) else { return Vec::new() };
    maps.leave(&service::index_key(&record));
    let set = set::read(maps, &record);
    // No room is needed to have no destinations.
    let emptied = DestinationSet { ids: Vec::new(), ..set.clone() };
    let _ = known.arena(maps).replace(maps, slot, &emptied, Change::Edited);
    let addresses =
        set.ids.iter().filter_map(|id| destination::delete(maps, known.slots(maps), *id)).collect();
    service::free(maps, slot);
    addresses
}

/// An address as it lies in a record: an IPv4 address in the first four bytes.
fn address_bytes(address: IpAddr) -> [u8; 16] {
    match address {
        IpAddr::V4(address) => {
            let [a, b, c, d] = address.octets();
            [a, b, c, d, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]
        }
        IpAddr::V6(address) => address.octets(),
    }
}

/// The number of an address's family in a record.
fn family_of(address: IpAddr) -> u8 {
    number_of(Family::of(address))
}

/// The number of a family in a record.
fn number_of(family: Family) -> u8 {
    match family {
        Family::V4 => 4,
        Family::V6 => 6,
    }
}

/// The address in a record.
fn address_of(bytes: [u8; 16], family: u8) -> IpAddr {
    if family == 4 { IpAddr::from([bytes[0], bytes[1], bytes[2], bytes[3]]) } else { IpAddr::from(bytes) }
}
