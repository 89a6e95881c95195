//! Services in the maps: found, made, edited, reported.

use std::mem::offset_of;

use lb_common::destination::{Counters, Destination as DestinationRecord, DestinationId, Load};
use lb_common::protocol::Protocol;
use lb_common::scheduler::Scheduler;
use lb_common::service::Service as Record;
use lb_common::settings::{Settings, WIDE_FTP, WIDE_PORTS};
use lb_common::sip;
use lb_common::stats::Rates;
use zerocopy::{FromZeros, IntoBytes};

use super::maps::{IndexKey, Maps};
use super::{address_bytes, address_of, family_of, filter, number_of, set};
use crate::director::{Error, Result};
use crate::table::{Family, Netmask, Service, ServiceKey, ServiceReport, Stats, Timeouts, service_flags};

/// Every service with its slot.
pub fn all(maps: &Maps) -> impl Iterator<Item = (u32, Record)> + '_ {
    (0..maps.settings().services_used)
        .filter_map(|slot| maps.services.read(slot).map(|record| (slot, record)))
        .filter(|(_, record)| record.family != 0)
}

/// The index key of a service's record.
pub fn index_key(record: &Record) -> IndexKey {
    IndexKey::new(record.family, record.address, record.port, record.protocol)
}

/// What [`Settings::wide_services`] has of a service.
pub fn wide(record: &Record) -> u32 {
    match u16::from_be(record.port) {
        _ if record.mark != 0 => 0,
        0 => WIDE_PORTS,
        21 if record.protocol == Protocol::Tcp.number() => WIDE_FTP,
        _ => 0,
    }
}

/// A record that has nothing but what the service is known by. That of a firewall mark has it in the place of the address,
/// so that its destinations are told from others', and no protocol.
fn identified(key: &ServiceKey) -> Record {
    match *key {
        ServiceKey::Address { protocol, address, port } => Record {
            address: address_bytes(address),
            port: port.to_be(),
            protocol: protocol.number(),
            family: family_of(address),
            ..Record::new_zeroed()
        },
        ServiceKey::Mark { mark, family } => {
            let [a, b, c, d] = mark.to_ne_bytes();
            let mut record = Record { mark, family: number_of(family), ..Record::new_zeroed() };
            record.address[..4].copy_from_slice(&[a, b, c, d]);
            record
        }
    }
}

/// The firewall mark of the service that a destination belongs to; 0 if that has an address.
pub fn mark_of(destination: &DestinationRecord) -> u32 {
    let [a, b, c, d, ..] = destination.virtual_address;
    if destination.protocol == 0 { u32::from_ne_bytes([a, b, c, d]) } else { 0 }
}

/// A service's slot and record.
pub fn find(maps: &Maps, key: &ServiceKey) -> Result<(u32, Record)> {
    let record = identified(key);
    let slot = maps.slot(&index_key(&record)).ok_or(Error::NoSuchService)?;
    Ok((slot, maps.services.read(slot).ok_or(Error::NoSuchService)?))
}

/// What the director checks of a service, whether it is added or edited: what the kernel refuses, in its order,
/// and then what the packet program cannot do yet.
pub fn check(service: &Service) -> Result<Scheduler> {
    if service.scheduler.len() > 15 {
        return Err(Error::Invalid);
    }
    let scheduler: Scheduler = service.scheduler.parse().map_err(|_| Error::UnknownScheduler)?;
    if service.engine.as_deref().is_some_and(|engine| engine != sip::NAME) {
        return Err(Error::UnknownScheduler);
    }
    match (service.key.family(), service.netmask) {
        (Family::V6, Netmask::V6(1..=128)) | (Family::V4, Netmask::V4(_)) => {}
        _ => return Err(Error::Invalid),
    }
    Ok(scheduler)
}

/// Adds a service, checked and not there yet.
pub fn add(maps: &mut Maps, service: &Service, scheduler: Scheduler) -> Result<()> {
    let settings = maps.settings();
    let slot = (settings.services_used < maps.services.count()).then_some(settings.services_used);
    let is_free = |slot: &u32| maps.services.read(*slot).is_some_and(|record| record.family == 0);
    let slot =
        slot.or_else(|| (0..settings.services_used).find(is_free)).ok_or(Error::Errno(libc::ENOMEM))?;
    let serial = take_serial(maps);
    let record = Record { serial, cache: serial, ..identified(&service.key) };
    maps.services.write(slot, &Record { family: 0, ..record });
    store_settings(maps, slot, service, scheduler);
    if service.own_timeouts.is_some_and(|own| own != Timeouts::NONE) {
        maps.settings.store_u32(0, offset_of!(Settings, own_timeouts), 1);
    }
    maps.settings.store_u32(0, offset_of!(Settings, services_used), settings.services_used.max(slot + 1));
    // In use from here on: whatever else is missing now, a repair adds.
    store_identity(maps, slot, &record);
    filter::concern(maps, record.address, record.family);
    maps.settings.store_u32(0, offset_of!(Settings, wide_services), settings.wide_services | wide(&record));
    if let Err(error) = maps.enter(&index_key(&record), slot) {
        free(maps, slot);
        return Err(error);
    }
    maps.settings.store_u32(0, offset_of!(Settings, services), settings.services + 1);
    Ok(())
}

/// A number that nothing was given before.
fn take_serial(maps: &Maps) -> u32 {
    let serial = maps.settings().service_serial;
    maps.settings.store_u32(0, offset_of!(Settings, service_serial), serial.wrapping_add(1));
    serial
}

/// Forgets what lblc or lblcr remember for a service.
pub fn forget_cached(maps: &Maps, slot: u32) {
    let number = take_serial(maps);
    maps.services.store_u32(slot, offset_of!(Record, cache), number);
}

/// Stores the word that has port, protocol and family.
fn store_identity(maps: &Maps, slot: u32, record: &Record) {
    let [a, b] = record.port.to_ne_bytes();
    let word = u32::from_ne_bytes([a, b, record.protocol, record.family]);
    maps.services.store_u32(slot, offset_of!(Record, port), word);
}

/// Stores what can be edited of a service; timeouts of its own only if they are of concern.
pub fn store_settings(maps: &Maps, slot: u32, service: &Service, scheduler: Scheduler) {
    let netmask = match service.netmask {
        Netmask::V4(mask) => mask,
        Netmask::V6(length) => length,
    };
    maps.services.store_u32(slot, offset_of!(Record, flags), service.flags & !service_flags::HASHED);
    maps.services.store_u32(slot, offset_of!(Record, timeout), service.timeout);
    maps.services.store_u32(slot, offset_of!(Record, netmask), netmask);
    maps.services.store_u32(slot, offset_of!(Record, scheduler), scheduler as u32);
    let mut engine = [0; 16];
    let name = service.engine.as_deref().unwrap_or_default().bytes();
    engine.iter_mut().zip(name).for_each(|(place, byte)| *place = byte);
    let engine: [u32; 4] = zerocopy::transmute!(engine);
    for (offset, word) in (offset_of!(Record, engine)..).step_by(4).zip(engine) {
        maps.services.store_u32(slot, offset, word);
    }
    if let Some(Timeouts { tcp, tcp_fin, udp }) = service.own_timeouts {
        for (offset, seconds) in (offset_of!(Record, timeouts)..).step_by(4).zip([tcp, tcp_fin, udp]) {
            maps.services.store_u32(slot, offset, seconds);
        }
    }
}

/// Frees a service's slot.
pub fn free(maps: &Maps, slot: u32) {
    if let Some(record) = maps.services.read(slot) {
        store_identity(maps, slot, &Record { family: 0, ..record });
    }
}

fn counters(maps: &Maps, record: &Record) -> Counters {
    let mut sum = record.departed;
    set::read(maps, record).ids.iter().for_each(|id| sum.add(&maps.counted(*id)));
    sum
}

fn store_departed(maps: &Maps, slot: u32, departed: &Counters) {
    let words =
        departed.as_bytes().chunks_exact(8).map(|word| u64::from_ne_bytes(word.try_into().unwrap_or([0; 8])));
    for (offset, word) in (offset_of!(Record, departed)..).step_by(8).zip(words) {
        maps.services.store_u64(slot, offset, word);
    }
}

/// Keeps for a service what a destination that leaves it has counted.
pub fn part(maps: &Maps, slot: u32, id: DestinationId) {
    if let Some(record) = maps.services.read(slot) {
        let mut departed = record.departed;
        departed.add(&maps.counted(id));
        store_departed(maps, slot, &departed);
    }
}

/// Takes off what [`part`] kept of a destination that comes back with its counters, whichever service kept it.
pub fn rejoin(maps: &Maps, slot: u32, id: DestinationId) {
    if let Some(record) = maps.services.read(slot) {
        store_departed(maps, slot, &record.departed.since(&maps.counted(id)));
    }
}

/// Zeroes what a service and its destinations have counted.
pub fn zero(maps: &Maps, slot: u32) {
    let Some(record) = maps.services.read(slot) else { return };
    let now = counters(maps, &record);
    store_departed(maps, slot, &record.departed.since(&now));
    for id in set::read(maps, &record).ids {
        store_baseline(maps, id, &maps.counted(id));
        maps.clear_rates(id);
    }
}

/// Has a destination's counters begin anew.
pub fn store_baseline(maps: &Maps, id: DestinationId, baseline: &Counters) {
    let words =
        baseline.as_bytes().chunks_exact(8).map(|word| u64::from_ne_bytes(word.try_into().unwrap_or([0; 8])));
    let begin = offset_of!(DestinationRecord, load) + offset_of!(Load, baseline);
    for (offset, word) in (begin..).step_by(8).zip(words) {
        maps.destinations.store_u64(id, offset, word);
    }
}

/// Counters and rates as reports have them.
pub fn stats(counters: &Counters, rates: &Rates) -> Stats {
    Stats {
        connections: counters.connections,
        in_packets: counters.in_packets,
        out_packets: counters.out_packets,
        in_bytes: counters.in_bytes,
        out_bytes: counters.out_bytes,
        connection_rate: rates.connections,
        in_packet_rate: rates.in_packets,
        out_packet_rate: rates.out_packets,
        in_byte_rate: rates.in_bytes,
        out_byte_rate: rates.out_bytes,
    }
}

/// What a service is known by.
pub fn key(record: &Record) -> ServiceKey {
    if record.mark != 0 {
        let family = if record.family == 6 { Family::V6 } else { Family::V4 };
        return ServiceKey::Mark { mark: record.mark, family };
    }
    ServiceKey::Address {
        protocol: Protocol::from_number(record.protocol).unwrap_or(Protocol::Tcp),
        address: address_of(record.address, record.family),
        port: u16::from_be(record.port),
    }
}

/// What a listing says of a service.
pub fn report(maps: &Maps, record: &Record) -> ServiceReport {
    let key = key(record);
    let [tcp, tcp_fin, udp] = record.timeouts;
    let scheduler = u8::try_from(record.scheduler).ok().and_then(Scheduler::from_number);
    let service = Service {
        scheduler: scheduler.unwrap_or(Scheduler::None).name().into(),
        flags: record.flags,
        timeout: record.timeout,
        netmask: if record.family == 6 { Netmask::V6(record.netmask) } else { Netmask::V4(record.netmask) },
        engine: (record.engine != [0; 16]).then(|| sip::NAME.into()),
        own_timeouts: Some(Timeouts { tcp, tcp_fin, udp }),
        ..Service::new(key)
    };
    // Estimators are linear, so that the sum of its destinations' is the service's.
    let mut rates = Rates::default();
    set::read(maps, record).ids.iter().for_each(|id| rates.add(&maps.rates(*id)));
    ServiceReport { service, stats: stats(&counters(maps, record), &rates) }
}
