//! Destinations in the maps: slots, deletion and coming back, reports.
//!
//! A deleted destination keeps its slot while connections refer to it and for two minutes after, as IPVS's
//! trash does. Added again to the same service in that time it is the same destination, with its connections.

use std::collections::{HashMap, HashSet};
use std::mem::offset_of;
use std::net::IpAddr;

use lb_common::connection::is_past;
use lb_common::destination::{
    AVAILABLE, DRAINING, Destination as Record, DestinationId, IN_USE, Load, Masquerading, OF_IPV6,
};
use lb_common::forward::{ForwardingMethod, TunnelChecksum, TunnelType};
use lb_common::scheduler::overload::Thresholds;
use lb_common::service::Service as ServiceRecord;
use lb_common::settings::Settings;
use zerocopy::FromZeros;

use super::maps::Maps;
use super::{address_bytes, address_of, family_of, filter, service};
use crate::director::{Error, Result};
use crate::table::{Destination, DestinationKey, DestinationReport, Tunnel};

/// Seconds that a deleted destination is kept at least.
const KEPT: u32 = 120;

/// What a deleted destination is recognised by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Identity {
    address: [u8; 16],
    port: u16,
    virtual_address: [u8; 16],
    virtual_port: u16,
    protocol: u8,
    service_family: u8,
}

impl Identity {
    fn of(record: &Record) -> Self {
        Self {
            address: record.address,
            port: record.port,
            virtual_address: record.virtual_address,
            virtual_port: record.virtual_port,
            protocol: record.protocol,
            service_family: record.service_family(),
        }
    }
}

/// Every destination, deleted ones that are kept too.
pub fn all(maps: &Maps) -> impl Iterator<Item = (DestinationId, Record)> + '_ {
    (0..maps.settings().destinations_used)
        .filter_map(|id| maps.destinations.read(id).map(|record| (id, record)))
        .filter(|(_, record)| record.status & IN_USE != 0)
}

/// The slots of the destination map that hold no configured destination, as one process knows them.
#[derive(Debug, Default)]
pub struct Slots {
    free: Vec<DestinationId>,
    deleted: HashMap<Identity, DestinationId>,
}

impl Slots {
    /// Finds out from the records.
    pub fn of(maps: &Maps) -> Self {
        let mut slots = Self::default();
        for id in (0..maps.settings().destinations_used).rev() {
            match maps.destinations.read(id) {
                Some(record) if record.status & AVAILABLE != 0 => {}
                Some(record) if record.status & IN_USE != 0 => {
                    slots.deleted.insert(Identity::of(&record), id);
                }
                _ => slots.free.push(id),
            }
        }
        slots
    }

    /// Puts a new destination of a service into a slot: its old one, if it was deleted and is kept still.
    ///
    /// # Errors
    ///
    /// ENOMEM when there is no room.
    pub fn place(
        &mut self,
        maps: &Maps,
        service_slot: u32,
        service: &ServiceRecord,
        destination: &Destination,
        source: Option<IpAddr>,
    ) -> Result<DestinationId> {
        let mut record = Record {
            address: address_bytes(destination.key.address),
            virtual_address: service.address,
            port: destination.key.port.to_be(),
            virtual_port: service.port,
            protocol: service.protocol,
            status: if service.family == 6 { IN_USE | AVAILABLE | OF_IPV6 } else { IN_USE | AVAILABLE },
            service: service_slot,
            family: family_of(destination.key.address),
            ..Record::new_zeroed()
        };
        record.load.service_serial = service.serial;
        // The program must look at packets of this address before the destination can get any.
        filter::concern(maps, record.address, record.family);
        if let Some(id) = self.deleted.remove(&Identity::of(&record)) {
            revive(maps, id, service_slot, service);
            edit(maps, id, destination, source);
            store_last_weight(maps, id, destination.weight);
            store_status(maps, id, record.status);
            return Ok(id);
        }
        let id = self.take(maps)?;
        maps.clear_counters(id);
        maps.destinations.write(id, &Record { status: record.status & OF_IPV6, ..record });
        edit(maps, id, destination, source);
        store_last_weight(maps, id, destination.weight);
        store_status(maps, id, record.status);
        Ok(id)
    }

    /// Takes a free slot: one that was given back, else the first that was never used, else one whose
    /// destination has rested long enough.
    fn take(&mut self, maps: &Maps) -> Result<DestinationId> {
        if let Some(id) = self.free.pop() {
            return Ok(id);
        }
        let settings = maps.settings();
        // The last slot is for connections without a destination.
        if settings.destinations_used < settings.destinations.saturating_sub(1) {
            let id = settings.destinations_used;
            maps.settings.store_u32(0, offset_of!(Settings, destinations_used), id + 1);
            return Ok(id);
        }
        let rested = |id: &DestinationId| {
            maps.destinations.read(*id).is_some_and(|record| {
                let age = settings.swept_at.wrapping_sub(record.load.date);
                record.load.total == 0
                    && record.load.persistent == 0
                    && age / settings.ticks_per_second.max(1) >= KEPT
            })
        };
        self.free = self.deleted.values().copied().filter(rested).collect();
        let free = &self.free;
        self.deleted.retain(|_, id| !free.contains(id));
        self.free.pop().ok_or(Error::Errno(libc::ENOMEM))
    }
}

/// Makes a deleted destination one of a service's again.
fn revive(maps: &Maps, id: DestinationId, service_slot: u32, service: &ServiceRecord) {
    let Some(record) = maps.destinations.read(id) else { return };
    // The service kept what the destination had counted; or it is another service by now, and for that one
    // nothing has been counted yet.
    service::rejoin(maps, service_slot, id);
    if record.load.service_serial != service.serial {
        service::store_baseline(maps, id, &maps.counted(id));
        let serial = offset_of!(Record, load) + offset_of!(Load, service_serial);
        maps.destinations.store_u32(id, serial, service.serial);
    }
    maps.destinations.store_u32(id, offset_of!(Record, service), service_slot);
}

/// Stores the word that has protocol, status, forwarding method and tunnel type.
fn store_word(maps: &Maps, id: DestinationId, status: u8, method: u8, tunnel: u8) {
    if let Some(record) = maps.destinations.read(id) {
        let word = u32::from_ne_bytes([record.protocol, status, method, tunnel]);
        maps.destinations.store_u32(id, offset_of!(Record, protocol), word);
        if super::repair::lists_masquerading(&maps.settings()) {
            let after = Record { status, method, tunnel, ..record };
            let changes: &[_] = if record.masquerading() == after.masquerading() {
                &[(after, 0)]
            } else {
                &[(record, -1), (after, 1)]
            };
            for (record, change) in changes {
                // Without room its packets are left alone, as if nobody asked.
                let _ = count_masquerading(maps, id, record, *change);
            }
        }
    }
}

/// Lists a destination among those that masquerade, if it does, or takes it off that list.
///
/// # Errors
///
/// When there is no room.
pub fn count_masquerading(maps: &Maps, id: DestinationId, record: &Record, change: i32) -> Result<()> {
    let Some(key) = record.masquerading() else { return Ok(()) };
    let source = zerocopy::transmute!(maps.tunnel_sources.read(id).unwrap_or_default());
    let known = maps.masquerading(&key).unwrap_or(Masquerading { source, count: 0, last: id });
    let count = known.count.saturating_add_signed(change);
    let last = if change > 0 {
        id
    } else if change < 0 && known.last == id && count != 0 {
        // The order in which the others were added is not known but by their numbers.
        let is_another = |(other, its): &(_, Record)| *other != id && its.masquerading() == Some(key);
        all(maps).filter(is_another).last().map_or(id, |(other, _)| other)
    } else {
        known.last
    };
    maps.store_masquerading(&key, &Masquerading { source, count, last })
}

fn store_status(maps: &Maps, id: DestinationId, status: u8) {
    if let Some(record) = maps.destinations.read(id) {
        store_word(maps, id, status, record.method, record.tunnel);
    }
}

/// Stores the weight that Maglev hashing goes by: the last that was not 0, or the first.
fn store_last_weight(maps: &Maps, id: DestinationId, weight: u32) {
    maps.destinations.store_u32(id, offset_of!(Record, last_weight), weight);
}

/// Stores what can be edited of a destination, and the address that this machine has towards it.
pub fn edit(maps: &Maps, id: DestinationId, destination: &Destination, source: Option<IpAddr>) {
    let Some(record) = maps.destinations.read(id) else { return };
    maps.tunnel_sources.write(id, &source.map_or([0; 16], address_bytes));
    let Tunnel { kind, port, checksum } = destination.tunnel;
    let [high, low] = port.to_ne_bytes();
    let tunnel = u32::from_ne_bytes([high, low, checksum as u8, record.family]);
    maps.destinations.store_u32(id, offset_of!(Record, tunnel_port), tunnel);
    // Whoever sets the weight again ends the drain.
    store_word(maps, id, record.status & !DRAINING, destination.method.number(), kind as u8);
    note_end_of_drain(maps, &record);
    maps.destinations.store_u32(id, offset_of!(Record, weight), destination.weight);
    if destination.weight != 0 {
        store_last_weight(maps, id, destination.weight);
    }
    let thresholds = Thresholds { upper: destination.upper_threshold, lower: destination.lower_threshold };
    let was = Thresholds { upper: record.upper_threshold, lower: record.lower_threshold };
    if thresholds != was {
        maps.destinations.store_u32(id, offset_of!(Record, upper_threshold), thresholds.upper);
        maps.destinations.store_u32(id, offset_of!(Record, lower_threshold), thresholds.lower);
        let overloaded = thresholds.overloaded_after_edit(record.load.total, record.load.overloaded != 0);
        let word = offset_of!(Record, load) + offset_of!(Load, overloaded);
        maps.destinations.store_u16(id, word, overloaded.into());
    }
}

fn store_date(maps: &Maps, id: DestinationId, date: u32) {
    maps.destinations.store_u32(id, offset_of!(Record, load) + offset_of!(Load, date), date);
}

/// Has a destination's connections end in so many seconds.
pub fn drain(maps: &Maps, id: DestinationId, seconds: u32) {
    let (Some(record), settings) = (maps.destinations.read(id), maps.settings()) else { return };
    store_date(maps, id, settings.swept_at.wrapping_add(seconds.wrapping_mul(settings.ticks_per_second)));
    store_status(maps, id, record.status | DRAINING);
    maps.settings.store_u32(0, offset_of!(Settings, draining), 1);
}

/// Has the packet program know whether a destination drains.
pub fn note_drains(maps: &Maps) {
    let drains = all(maps).any(|(_, record)| record.status & DRAINING != 0);
    maps.settings.store_u32(0, offset_of!(Settings, draining), drains.into());
}

/// [`note_drains`], after a destination was changed that may have drained.
fn note_end_of_drain(maps: &Maps, was: &Record) {
    if was.status & DRAINING != 0 {
        note_drains(maps);
    }
}

/// Ends the steady state of all connections, so that the packet program looks at each of them whole again: for when
/// something is true no more by which entries were made good.
fn begin_epoch(maps: &Maps) {
    let next = maps.settings().epoch.wrapping_add(1);
    maps.settings.store_u32(0, offset_of!(Settings, epoch), next);
}

/// Seconds until a destination has drained, if it drains.
fn drains_in(maps: &Maps, record: &Record) -> Option<u32> {
    (record.status & DRAINING != 0).then(|| {
        let settings = maps.settings();
        if is_past(record.load.date, settings.swept_at) {
            return 0;
        }
        // To the nearest second, and 0 only when it is over.
        let (left, ticks) =
            (record.load.date.wrapping_sub(settings.swept_at), settings.ticks_per_second.max(1));
        ((left + ticks / 2) / ticks).max(1)
    })
}

/// Marks a destination as deleted; its set has it no more. Returns its address.
pub fn delete(maps: &Maps, slots: &mut Slots, id: DestinationId) -> Option<IpAddr> {
    let record = maps.destinations.read(id)?;
    store_status(maps, id, record.status & !(AVAILABLE | DRAINING));
    store_date(maps, id, maps.settings().swept_at);
    note_end_of_drain(maps, &record);
    begin_epoch(maps);
    slots.deleted.insert(Identity::of(&record), id);
    Some(address_of(record.address, record.family))
}

/// Those of the addresses that no configured destination has.
pub fn unused(maps: &Maps, addresses: impl IntoIterator<Item = IpAddr>) -> HashSet<IpAddr> {
    let mut unused: HashSet<IpAddr> = addresses.into_iter().collect();
    for record in (0..maps.settings().destinations_used).filter_map(|id| maps.destinations.read(id)) {
        if unused.is_empty() {
            break;
        }
        if record.status & AVAILABLE != 0 {
            unused.remove(&address_of(record.address, record.family));
        }
    }
    unused
}

/// A destination's address and port.
pub fn key(maps: &Maps, id: DestinationId) -> Option<DestinationKey> {
    maps.destinations.read(id).map(|record| key_of(&record))
}

fn tunnel_of(record: &Record) -> Tunnel {
    Tunnel {
        kind: TunnelType::from_number(record.tunnel).unwrap_or_default(),
        port: record.tunnel_port,
        checksum: TunnelChecksum::from_number(record.tunnel_checksum).unwrap_or_default(),
    }
}

fn key_of(record: &Record) -> DestinationKey {
    DestinationKey { address: address_of(record.address, record.family), port: u16::from_be(record.port) }
}

/// What a listing says of a destination.
pub fn report(maps: &Maps, id: DestinationId) -> Option<DestinationReport> {
    let record = maps.destinations.read(id)?;
    Some(DestinationReport {
        destination: Destination {
            method: ForwardingMethod::from_number(record.method)?,
            weight: record.weight,
            upper_threshold: record.upper_threshold,
            lower_threshold: record.lower_threshold,
            tunnel: tunnel_of(&record),
            ..Destination::new(key_of(&record))
        },
        stats: service::stats(&maps.counted(id).since(&record.load.baseline), &maps.rates(id)),
        active: record.load.active,
        inactive: record.load.total.saturating_sub(record.load.active),
        persistent: record.load.persistent,
        drains_in: drains_in(maps, &record),
    })
}
