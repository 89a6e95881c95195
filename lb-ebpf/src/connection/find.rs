//! Finding a flow's entry, in its home set or displaced.

use lb_common::connection::{ALTERNATES, Addresses, Entry, Home, WAYS};
use lb_common::tuple::Tuple;

use crate::machine::opaque;
use crate::maps::{AddressesRef, EntryRef, SetRef, SettingsRef, scratch, settings};

/// An entry that was found: where it lies.
#[derive(Clone, Copy)]
pub struct Found {
    /// The set.
    pub set: SetRef,
    /// The slot in it, below [`WAYS`].
    pub slot: usize,
    number: u32,
}

impl Found {
    /// What lies at a place, by its number from [`Found::place`].
    #[inline(always)]
    pub fn at(place: u32) -> Option<Self> {
        let number = place >> 3;
        // One more than the slot, as positions count from 1.
        Some(Self { set: SetRef::at(number)?, slot: slot_at(u64::from(place & 7))?, number })
    }

    /// The place as a number.
    #[inline(always)]
    pub fn place(self) -> u32 {
        Entry::place(self.number, self.slot)
    }

    /// The entry that lies there.
    #[inline(always)]
    pub fn entry(self) -> EntryRef {
        self.set.entry(self.slot)
    }

    /// The tick at which it dies.
    #[inline(always)]
    pub fn deadline(self) -> u32 {
        self.set.deadline(self.slot)
    }

    /// As [`EntryRef::try_read`], with the addresses of a flow of IPv6.
    #[inline(always)]
    pub fn try_read_ipv6(self, beside: AddressesRef, tuple: &Tuple) -> Option<(Entry, Addresses)> {
        let before = self.entry().sequence();
        let addresses = beside.line(self.slot).copy();
        let entry = self.entry().try_read(tuple)?;
        (entry.sequence == before).then_some((entry, addresses))
    }

    /// As [`Found::read_to`], with the addresses of a flow of IPv6.
    #[inline(always)]
    pub fn read_ipv6_to(self, place: &mut Entry, addresses: &mut Addresses, tuple: &Tuple) -> Option<u32> {
        let beside = AddressesRef::at(self.number)?;
        let found = self.checked_again()?;
        let deadline = found.deadline();
        let (entry, line) = (found.set.entry(found.slot).settled(), beside.line(found.slot));
        let held = found.set.hold();
        entry.copy_to(place);
        line.copy_to(addresses);
        drop(held);
        (place.tuple() == *tuple).then_some(deadline)
    }

    /// The same, its slot compared with the bound anew: what the verifier knew of it is lost over a call of a helper.
    #[inline(always)]
    pub fn checked_again(self) -> Option<Self> {
        Some(Self { slot: slot_at(self.slot as u64 + 1)?, ..self })
    }

    /// Copies the entry whole to another place; its deadline, if it is still that of `tuple`.
    #[inline(always)]
    pub fn read_to(self, place: &mut Entry, tuple: &Tuple) -> Option<u32> {
        let deadline = self.deadline();
        let held = self.set.hold();
        self.set.entry(self.slot).copy_to(place);
        drop(held);
        (place.tuple() == *tuple).then_some(deadline)
    }

    /// A whole copy of the entry, if it is still that of `tuple`.
    #[inline(always)]
    pub fn read(self, tuple: &Tuple) -> Option<Entry> {
        // Under the lock, as another CPU may be writing.
        let entry = self.set.entry(self.slot);
        let copy = self.set.locked(|| entry.copy());
        (copy.addresses == tuple.addresses && copy.ports == tuple.ports && copy.protocol == tuple.protocol)
            .then_some(copy)
    }

    /// Whether the slot still holds `tuple`; under the lock.
    #[inline(always)]
    pub fn holds(self, tuple: &Tuple) -> bool {
        self.set.tag(self.slot) != 0
            && self.set.entry(self.slot).has(tuple.addresses, tuple.ports, tuple.protocol)
    }
}

/// The slot of a set that has this tag.
#[inline(always)]
pub(super) fn slot_of(set: SetRef, tag: u32) -> Option<usize> {
    slot_at(positions(set, tag))
}

/// As [`slot_of`], as a position for [`slot_at`]: a function of its own, so that those who need it rarely have the registers
/// for what they do mostly.
#[inline(never)]
fn position_of(set: SetRef, tag: u32) -> u64 {
    positions(set, tag)
}

/// The position, counted from 1, of the slot that has this tag, or 0.
///
/// Written without a branch: tags of a set differ, so that at most one comparison contributes, and the
/// verifier sees one unknown slot instead of seven known ones to follow separately.
#[inline(always)]
fn positions(set: SetRef, tag: u32) -> u64 {
    let mut position = 0u64;
    for slot in 0..WAYS {
        let here = slot as u64 + 1;
        position |= equal(set.tag(slot), tag) & here;
    }
    position
}

/// All ones if two numbers are equal, else 0. The compiler would see through it and branch.
#[inline(always)]
pub(super) fn equal(one: u32, other: u32) -> u64 {
    (opaque(u64::from(one ^ other)).wrapping_sub(1) as i64 >> 63) as u64
}

/// The slot of a position that counts from 1, where 0 is none.
#[inline(always)]
pub(super) fn slot_at(position: u64) -> Option<usize> {
    // A comparison that the compiler cannot turn into another: Linux 6.1 knows no bounds of an `or`, and does not
    // learn from a comparison with 0 that something is at least 1.
    let slot = opaque(position.wrapping_sub(1)) as usize;
    if slot < WAYS { Some(slot) } else { None }
}

/// What is at home of a flow.
pub enum AtHome<T> {
    /// Its entry.
    Entry(T),
    /// Nothing: the table has no such flow.
    Nothing,
    /// One has to look closer: it is displaced, or being written.
    Unclear,
}

/// Looks for a flow's entry at home: what the steady state needs, and nothing that calls a function.
///
/// Looks into the slot first that most entries lie in, so that a packet reads one line of the table.
#[inline(always)]
pub fn read_at_home(home: Home, tuple: &Tuple) -> AtHome<Entry> {
    let Some(set) = SetRef::at(home.set) else { return AtHome::Unclear };
    if let Some(entry) = set.entry(home.slot()).try_read(tuple) {
        return AtHome::Entry(entry);
    }
    match slot_of(set, home.tag) {
        Some(slot) => set.entry(slot).try_read(tuple).map_or(AtHome::Unclear, AtHome::Entry),
        None if set.displaced() == 0 => AtHome::Nothing,
        None => AtHome::Unclear,
    }
}

/// As [`read_at_home`], but leaves the entry where it is, to be read in place: what was read is whole if the sequence number
/// is still this one afterwards. The flow is told by its addresses and its [`Entry::mark`]; in another state it is none.
#[inline(always)]
pub fn look_at_home(home: Home, addresses: u64, mark: u64) -> AtHome<(EntryRef, u32)> {
    let Some(set) = SetRef::at(home.set) else { return AtHome::Unclear };
    let likely = set.entry(home.slot());
    if let Some(sequence) = likely.sequence_of(addresses, mark) {
        return AtHome::Entry((likely, sequence));
    }
    let Some(slot) = slot_at(position_of(set, home.tag)) else {
        return if set.displaced() == 0 { AtHome::Nothing } else { AtHome::Unclear };
    };
    let other = set.entry(slot).settled();
    other.sequence_of(addresses, mark).map_or(AtHome::Unclear, |sequence| AtHome::Entry((other, sequence)))
}

/// Finds the entry of a flow of IPv6 as [`read_at_home`] does.
#[inline(always)]
pub fn find_at_home(home: Home, tuple: &Tuple) -> Option<Found> {
    let set = SetRef::at(home.set)?;
    let slot = if set.entry(home.slot()).has(tuple.addresses, tuple.ports, tuple.protocol) {
        home.slot()
    } else {
        slot_of(set, home.tag)?
    };
    Some(Found { set, slot, number: home.set })
}

/// Where a flow's entry has its home.
#[inline(always)]
pub fn home(tuple: &Tuple, settings: SettingsRef) -> Home {
    Home::of(tuple.hash(settings.seed()), settings.set_mask())
}

/// Finds a flow's entry, dead or alive.
#[inline(always)]
pub fn find(tuple: &Tuple, home: Home) -> Option<Found> {
    let set = SetRef::at(home.set)?;
    if let Some(slot) = slot_of(set, home.tag)
        && set.entry(slot).has(tuple.addresses, tuple.ports, tuple.protocol)
    {
        return Some(Found { set, slot, number: home.set });
    }
    if set.displaced() == 0 {
        return None;
    }
    let location =
        connection_find_displaced(tuple.addresses, tuple.ports, tuple.protocol.into(), home.tag, home.set);
    if location == NOWHERE {
        return None;
    }
    Found::at(location as u32)
}

const NOWHERE: u64 = u64::MAX;

/// Finds the entry of the packet in the scratch room, or of one the other way, and copies it there; its deadline.
#[inline(always)]
pub fn look<const IPV6: bool>(reversed: bool) -> Option<u32> {
    let deadline = connection_look(u32::from(IPV6), u32::from(reversed));
    (deadline != NOWHERE).then_some(deadline as u32)
}

/// [`look`], once for all: in crowded programs Linux 6.1 loses sight of what it has found.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn connection_look(ipv6: u32, reversed: u32) -> u64 {
    let settings = settings();
    let Ok(scratch) = scratch() else { return NOWHERE };
    let tuple = if ipv6 == 0 { scratch.kept::<false>().tuple } else { scratch.kept::<true>().tuple };
    let tuple = if reversed == 0 { tuple } else { tuple.reversed() };
    let Some(found) = find(&tuple, home(&tuple, settings)) else { return NOWHERE };
    let deadline = if ipv6 == 0 {
        found.read_to(&mut scratch.client_side, &tuple)
    } else {
        found.read_ipv6_to(&mut scratch.client_side, &mut scratch.client_addresses, &tuple)
    };
    deadline.map_or(NOWHERE, u64::from)
}

/// Finds an entry that lies outside its full home set: set and position as one number, or [`NOWHERE`].
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn connection_find_displaced(
    addresses: u64,
    ports: u32,
    protocol: u32,
    tag: u32,
    home: u32,
) -> u64 {
    let settings = settings();
    let home = Home { tag, set: home };
    for step in 1..=ALTERNATES {
        let number = home.alternate(step, settings.set_mask());
        let Some(set) = SetRef::at(number) else { return NOWHERE };
        if let Some(slot) = slot_of(set, tag)
            && set.entry(slot).has(addresses, ports, protocol as u8)
        {
            return Entry::place(number, slot).into();
        }
    }
    NOWHERE
}
