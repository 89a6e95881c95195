//! Putting an entry into the table.

use lb_common::connection::{ALTERNATES, Addresses, CLIENT_SIDE, DISPLACED, Entry, Home, SERVER_SIDE, WAYS};

use super::find::{equal, home, slot_at, slot_of};
use crate::maps::{AddressesRef, SetRef, SettingsRef, scratch};

/// How an insertion ended.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum Inserted {
    /// The entry is in the table.
    Stored = PUT_STORED,
    /// Another CPU was faster with the same flow.
    Exists = PUT_EXISTS,
    /// The home set and all its alternates are full.
    Full = PUT_FULL,
}

impl Inserted {
    /// The reverse of `as u32`.
    #[inline(always)]
    pub fn from(number: u32) -> Self {
        match number {
            PUT_STORED => Self::Stored,
            PUT_EXISTS => Self::Exists,
            _ => Self::Full,
        }
    }
}

const PUT_STORED: u32 = 0;
const PUT_EXISTS: u32 = 1;
const PUT_FULL: u32 = 2;

/// Puts the scratch entry of a side into one set.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn connection_put(number: u32, tag: u32, deadline: u32, side: u32) -> u32 {
    let Ok(scratch) = scratch() else { return PUT_FULL };
    let (entry, addresses) = if side == u32::from(CLIENT_SIDE) {
        (&scratch.client_side, &scratch.client_addresses)
    } else {
        (&scratch.server_side, &scratch.server_addresses)
    };
    let Some(beside) = AddressesRef::at(number) else { return PUT_FULL };
    put(entry, Some((beside, addresses)), Home { tag, set: number }, deadline)
}

/// [`connection_put`], for who has the entry; without what lies `beside` of IPv4 only.
#[inline(always)]
fn put(entry: &Entry, beside: Option<(AddressesRef, &Addresses)>, home: Home, deadline: u32) -> u32 {
    let Some(set) = SetRef::at(home.set) else { return PUT_FULL };
    let tag = home.tag;
    let _held = set.hold();
    let free = match slot_of(set, tag) {
        None => free_slot(set, home),
        Some(same) if !set.entry(same).has(entry.addresses, entry.ports, entry.protocol) => None,
        Some(_) if entry.role != SERVER_SIDE => return PUT_EXISTS,
        // Two connections whose answers look alike: the newest wins, as in IPVS.
        same => same,
    };
    let Some(free) = free else { return PUT_FULL };
    set.entry(free).begin_store(entry);
    if let Some((beside, addresses)) = beside
        && entry.tuple().is_ipv6()
    {
        beside.line(free).store(addresses);
    }
    set.entry(free).end_store();
    set.set_deadline(free, deadline);
    set.set_tag(free, tag);
    PUT_STORED
}

/// Puts a scratch entry into the table: into its home set, or into an alternate when that is full.
#[inline(always)]
pub fn insert(entry: &mut Entry, settings: SettingsRef, deadline: u32) -> Inserted {
    // It may have been, before somebody made room.
    entry.flags &= !DISPLACED;
    let home = home(&entry.tuple(), settings);
    match connection_put(home.set, home.tag, deadline, entry.role.into()) {
        PUT_FULL => displace(entry, home, settings, deadline),
        done => Inserted::from(done),
    }
}

/// [`insert`], for IPv4 without a function's call where the home set is not full.
#[inline(always)]
pub fn insert_here(entry: &mut Entry, settings: SettingsRef, deadline: u32) -> Inserted {
    if entry.tuple().is_ipv6() {
        return insert(entry, settings, deadline);
    }
    entry.flags &= !DISPLACED;
    let home = home(&entry.tuple(), settings);
    match put(entry, None, home, deadline) {
        PUT_FULL => displace(entry, home, settings, deadline),
        done => Inserted::from(done),
    }
}

/// Puts a scratch entry whose home set is full into an alternate.
#[inline(always)]
fn displace(entry: &mut Entry, home: Home, settings: SettingsRef, deadline: u32) -> Inserted {
    let side = entry.role.into();
    let Some(set) = SetRef::at(home.set) else { return Inserted::Full };
    entry.flags |= DISPLACED;
    // Counted before it is stored, so that whoever could find it looks for it.
    set.add_displaced(1);
    for step in 1..=ALTERNATES {
        let number = home.alternate(step, settings.set_mask());
        if connection_put(number, home.tag, deadline, side) == PUT_STORED {
            return Inserted::Stored;
        }
    }
    set.add_displaced(-1);
    Inserted::Full
}

/// A slot of a set that is free: that of this home if it is, else the last, found without a branch too.
#[inline(always)]
fn free_slot(set: SetRef, home: Home) -> Option<usize> {
    if set.tag(home.slot()) == 0 {
        return Some(home.slot());
    }
    let mut position = 0u64;
    for slot in 0..WAYS {
        let here = slot as u64 + 1;
        let free = equal(set.tag(slot), 0);
        position = position & !free | here & free;
    }
    slot_at(position)
}
