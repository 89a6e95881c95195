//! The address filter: what the packet program looks at of all that comes in.

use std::mem::offset_of;

use lb_common::settings::{ADDRESS_SLOTS, Settings, SettingsElement};
use lb_common::tuple;

use super::maps::Maps;

/// Replaces the filter, word by word.
pub fn replace(maps: &Maps, filter: &[u8]) {
    for (slot, word) in (0..).step_by(size_of::<u64>()).zip(filter.as_chunks().0) {
        let place = offset_of!(SettingsElement, addresses) + slot;
        maps.filter.store_u64(0, place, u64::from_ne_bytes(*word));
    }
}

/// Has the packet program look at every packet.
pub fn concern_all(maps: &Maps) {
    replace(maps, &vec![1; ADDRESS_SLOTS]);
}

/// The slot of a record's address in the filter.
pub fn slot_of(seed: u64, address: [u8; 16], family: u8) -> usize {
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
    let slot = slot_of(maps.settings().seed, address, family);
    maps.filter.store_u8(0, offset_of!(SettingsElement, addresses) + slot, 1);
}
