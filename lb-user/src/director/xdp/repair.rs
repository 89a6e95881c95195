//! What follows from the records: the index, the count of services, the address filter, the list of destinations that
//! masquerade. Made anew when a command was killed while it changed the table, and in part after deletions.

use std::collections::HashSet;
use std::mem::offset_of;

use lb_common::destination::AVAILABLE;
use lb_common::settings::{ADDRESS_SLOTS, Settings};
use lb_common::sysctl::Sysctl;

use super::maps::Maps;
use super::{destination, filter, service, set};
use crate::director::Result;

/// Has the packet program know whether a service has timeouts of its own.
pub fn note_own_timeouts(maps: &Maps) {
    let has_some = service::all(maps).any(|(_, record)| record.timeouts != [0; 3]);
    maps.settings.store_u32(0, offset_of!(Settings, own_timeouts), has_some.into());
}

/// Brings the count of services, what is known of all of them and the address filter in line with the records.
///
/// Deleted destinations count while they are kept: packets of their connections are still ours.
pub fn refresh(maps: &Maps) {
    let settings = maps.settings();
    let seed = settings.seed;
    // Connections by firewall marks may have any address: as long as there may be some, nothing is forgotten.
    let marks =
        settings.mark_rules & 0xffff != 0 || destination::all(maps).any(|(_, record)| record.protocol == 0);
    let mut addresses = vec![0; ADDRESS_SLOTS];
    let mut add = |address: [u8; 16], family: u8| {
        if marks {
            filter::concern(maps, address, family);
        } else {
            addresses[filter::slot_of(seed, address, family)] = 1;
        }
    };
    let (mut services, mut wide) = (0, 0);
    for (_, record) in service::all(maps) {
        services += 1;
        wide |= service::wide(&record);
        add(record.address, record.family);
    }
    for (_, record) in destination::all(maps) {
        add(record.address, record.family);
        add(record.virtual_address, record.service_family());
    }
    if !marks {
        filter::replace(maps, &addresses);
    }
    note_own_timeouts(maps);
    destination::note_drains(maps);
    maps.settings.store_u32(0, offset_of!(Settings, wide_services), wide);
    maps.settings.store_u32(0, offset_of!(Settings, services), services);
}

/// Has the packet program know whether a service has a persistence engine; whether that is news to it.
fn store_engines(maps: &Maps) -> bool {
    let has_some = service::all(maps).any(|(_, record)| record.engine != [0; 16]).into();
    let is_news = maps.settings().engines != has_some;
    maps.settings.store_u32(0, offset_of!(Settings, engines), has_some);
    is_news
}

/// [`store_engines`], and lists the masquerading destinations while there is such a service.
///
/// # Errors
///
/// When there is no room for that.
pub fn note_engines(maps: &Maps) -> Result<()> {
    if store_engines(maps) { list_masquerading(maps) } else { Ok(()) }
}

/// Whether the packet program asks which destinations masquerade.
pub fn lists_masquerading(settings: &Settings) -> bool {
    settings.engines != 0 || settings.sysctls[Sysctl::NatIcmpSend as usize] != 0
}

/// Lists the destinations that masquerade, if the packet program asks for them, else none.
///
/// # Errors
///
/// When there is no room.
pub fn list_masquerading(maps: &Maps) -> Result<()> {
    maps.clear_masquerading();
    if !lists_masquerading(&maps.settings()) {
        return Ok(());
    }
    destination::all(maps).try_for_each(|(id, record)| destination::count_masquerading(maps, id, &record, 1))
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
    let orphans: Vec<_> = destination::all(maps)
        .filter(|(id, record)| record.status & AVAILABLE != 0 && !members.contains(id))
        .map(|(id, _)| id)
        .collect();
    let mut slots = destination::Slots::default();
    for id in orphans {
        // Its neighbour entry stays until the end: nothing depends on it.
        let _ = destination::delete(maps, &mut slots, id);
    }
    refresh(maps);
    store_engines(maps);
    list_masquerading(maps)
}
