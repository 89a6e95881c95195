//! What follows from the records: the index, the count of services, the address filter, the list of destinations that
//! masquerade. Made anew when a
//! command was killed while it changed the table, and in part after deletions.

use std::collections::HashSet;
use std::mem::offset_of;

use lb_common::destination::{AVAILABLE, DRAINING, Destination, DestinationId, IN_USE};
use lb_common::settings::{ADDRESS_SLOTS, Settings, SettingsElement};
use lb_common::sysctl::Sysctl;
use lb_common::tuple;

use super::maps::Maps;
use super::{destination, service, set};
use crate::director::Result;

/// Replaces the filter, word by word.
fn store_filter(maps: &Maps, filter: &[u8]) {
    for (slot, word) in (0..).step_by(size_of::<u64>()).zip(filter.as_chunks().0) {
        let place = offset_of!(SettingsElement, addresses) + slot;
        maps.filter.store_u64(0, place, u64::from_ne_bytes(*word));
    }
}

/// Has the packet program look at every packet.
pub fn concern_all(maps: &Maps) {
    store_filter(maps, &vec![1; ADDRESS_SLOTS]);
}

/// The slot of a record's address in the filter.
fn filter_slot(seed: u64, address: [u8; 16], family: u8) -> usize {
    let [a, b, c, d, ..] = address;
    let raw = if family == 6 {
        tuple::handle(zerocopy::transmute!(address), seed)
    } else {
        u32::from_ne_bytes([a, b, c, d])
    };
    Settings::address_slot(raw)
}

/// Has the packet program look at packets from and to an address.
pub fn concern(maps: &Maps, address: [u8; 16], family: u8) {
    let slot = filter_slot(maps.settings().seed, address, family);
    maps.filter.store_u8(0, offset_of!(SettingsElement, addresses) + slot, 1);
}

/// Ends the steady state of all connections, so that the packet program looks at each of them whole again: for when
/// something is true no more by which entries were made good.
pub fn begin_epoch(maps: &Maps) {
    let next = maps.settings().epoch.wrapping_add(1);
    maps.settings.store_u32(0, offset_of!(Settings, epoch), next);
}

fn destinations(maps: &Maps) -> impl Iterator<Item = (DestinationId, Destination)> + '_ {
    (0..maps.settings().destinations_used)
        .filter_map(|id| maps.destinations.read(id).map(|record| (id, record)))
        .filter(|(_, record)| record.status & IN_USE != 0)
}

/// Has the packet program know whether a service has timeouts of its own.
pub fn note_own_timeouts(maps: &Maps) {
    let has_some = service::all(maps).any(|(_, record)| record.timeouts != [0; 3]);
    maps.settings.store_u32(0, offset_of!(Settings, own_timeouts), has_some.into());
}

/// Has the packet program know whether a destination drains.
fn note_drains(maps: &Maps) {
    let drains = destinations(maps).any(|(_, record)| record.status & DRAINING != 0);
    maps.settings.store_u32(0, offset_of!(Settings, draining), drains.into());
}

/// [`note_drains`], after a destination was changed that may have drained.
pub fn note_end_of_drain(maps: &Maps, was: &Destination) {
    if was.status & DRAINING != 0 {
        note_drains(maps);
    }
}

/// Brings the count of services, what is known of all of them and the address filter in line with the records.
///
/// Deleted destinations count while they are kept: packets of their connections are still ours.
pub fn refresh(maps: &Maps) {
    let settings = maps.settings();
    let seed = settings.seed;
    // Connections by firewall marks may have any address: as long as there may be some, nothing is forgotten.
    let marks =
        settings.mark_rules & 0xffff != 0 || destinations(maps).any(|(_, record)| record.protocol == 0);
    let mut filter = vec![0; ADDRESS_SLOTS];
    let mut add = |address: [u8; 16], family: u8| {
        if marks {
            concern(maps, address, family);
        } else {
            filter[filter_slot(seed, address, family)] = 1;
        }
    };
    let (mut services, mut wide) = (0, 0);
    for (_, record) in service::all(maps) {
        services += 1;
        wide |= service::wide(&record);
        add(record.address, record.family);
    }
    for (_, record) in destinations(maps) {
        add(record.address, record.family);
        add(record.virtual_address, record.service_family());
    }
    if !marks {
        store_filter(maps, &filter);
    }
    note_own_timeouts(maps);
    note_drains(maps);
    maps.settings.store_u32(0, offset_of!(Settings, wide_services), wide);
    maps.settings.store_u32(0, offset_of!(Settings, services), services);
}

/// Lists the destinations that masquerade, if the packet program asks for them, else none.
///
/// # Errors
///
/// When there is no room.
pub fn list_masquerading(maps: &Maps) -> Result<()> {
    maps.clear_masquerading();
    if maps.settings().sysctls[Sysctl::NatIcmpSend as usize] == 0 {
        return Ok(());
    }
    destinations(maps).try_for_each(|(id, record)| destination::count_masquerading(maps, id, &record, 1))
}

/// Puts in order what a command left that was killed in the middle of a change.
///
/// # Errors
///
/// When a service cannot be entered into the index.
pub fn repair(maps: &mut Maps) -> Result<()> {
    let services: Vec<_> = service::all(maps).collect();
    let mut members = HashSet::new();
    for (slot, record) in &services {
        maps.enter(&service::index_key(record), *slot)?;
        members.extend(set::read(maps, record).ids);
    }
    // Not yet in a set, or already out of it: either way deleted.
    let orphans: Vec<_> = destinations(maps)
        .filter(|(id, record)| record.status & AVAILABLE != 0 && !members.contains(id))
        .map(|(id, _)| id)
        .collect();
    let mut slots = destination::Slots::default();
    for id in orphans {
        // Its neighbour entry stays until the end: nothing depends on it.
        let _ = destination::delete(maps, &mut slots, id);
    }
    refresh(maps);
    list_masquerading(maps)
}
