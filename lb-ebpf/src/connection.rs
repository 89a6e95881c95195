//! The connection table: find, insert, advance, remove.
//!
//! Lookups take no lock: an entry says by its sequence number whether a copy of it is whole. Changes are made
//! under the lock of the one set they touch; no lock is held while another is taken.
//!
//! The functions with exported names are what BPF calls global: the verifier checks each once, for any arguments,
//! and not again for every way that leads to a call. Therefore they take and return plain numbers.

use lb_common::connection::{
    self, ALTERNATES, Addresses, CLIENT_SIDE, DISPLACED, Entry, Home, INACTIVE, NO_OUTPUT, SERVER_SIDE,
    SYNCED, TEMPLATE, WAYS, no_hop,
};
use lb_common::destination::{AVAILABLE, DestinationId, has_drained};
use lb_common::persistence::assures;
use lb_common::reason::GAVE_WAY;
use lb_common::sysctl::Sysctl;
use lb_common::tuple::Tuple;

use crate::clock;
use crate::machine::opaque;
use crate::maps::{self, AddressesRef, DestinationRef, EntryRef, SetRef, SettingsRef, scratch, settings};
use crate::{defence, persistence, service, tree};

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
    fn checked_again(self) -> Option<Self> {
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
fn slot_of(set: SetRef, tag: u32) -> Option<usize> {
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

/// All ones if two numbers are equal, else 0. The compiler would see through it and branch.
#[inline(always)]
fn equal(one: u32, other: u32) -> u64 {
    (opaque(u64::from(one ^ other)).wrapping_sub(1) as i64 >> 63) as u64
}

/// The slot of a position that counts from 1, where 0 is none.
#[inline(always)]
fn slot_at(position: u64) -> Option<usize> {
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

/// Sees to it that a flow's entry finds room: if its home set and all alternates are full, one that is half-open or
/// closed gives way; with `one_more` also if a place is free. Whether there is room now.
#[inline(always)]
pub fn make_room(tuple: &Tuple, settings: SettingsRef, now: u32, one_more: bool) -> bool {
    let home = home(tuple, settings);
    let victim = connection_victim(home.tag, home.set, now, one_more.into());
    victim == VACANT || victim != NOBODY && connection_give_way(victim, now) != 0
}

const NOBODY: u32 = 0;
const VACANT: u32 = u32::MAX;

/// The place of the entry that gives way to one of this home: in the first of its sets that has any, the one that has
/// the shortest time left. [`VACANT`] if a place is free already (with `one_more` only if nothing may give way),
/// [`NOBODY`] if all are to stay.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn connection_victim(tag: u32, home: u32, now: u32, one_more: u32) -> u32 {
    let settings = settings();
    let mut none = NOBODY;
    for step in 0..=ALTERNATES {
        let number = Home { tag, set: home }.alternate(step, settings.set_mask());
        let victim = connection_victim_of(number, now);
        if victim == VACANT && one_more != 0 {
            none = VACANT;
        } else if victim != NOBODY {
            return victim;
        }
    }
    none
}

/// [`connection_victim`], of one set.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn connection_victim_of(number: u32, now: u32) -> u32 {
    let Some(set) = SetRef::at(number) else { return NOBODY };
    let (mut victim, mut left) = (NOBODY, i32::MAX);
    for slot in 0..WAYS {
        if set.tag(slot) == 0 {
            return VACANT;
        }
        let its = set.deadline(slot).wrapping_sub(now) as i32;
        if its < left && connection::is_expendable(&set.entry(slot).copy()) {
            (victim, left) = (Entry::place(number, slot), its);
        }
    }
    victim
}

/// Removes the connection or template of the entry at a place, and counts that.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn connection_give_way(place: u32, now: u32) -> u32 {
    let Some(found) = Found::at(place) else { return 0 };
    // Apart, so that few values live over a call: there is no room for more on the stack of `xipvs_ipv6_open`.
    let gone = if found.entry().role() == TEMPLATE {
        persistence::end(place, now)
    } else {
        let tuple = found.set.locked(|| {
            let entry = found.entry().copy();
            if entry.role == SERVER_SIDE { entry.twin() } else { entry.tuple() }
        });
        remove(&tuple)
    };
    if gone {
        maps::count_at(GAVE_WAY);
    }
    gone.into()
}

/// When an entry may be taken out.
#[derive(Clone, Copy, PartialEq, Eq)]
enum When {
    /// Whatever its deadline is.
    Always,
    /// Only if its deadline has come by this tick: another CPU may have moved it, or made the flow anew.
    Dead(u32),
}

/// Takes an entry out of the table, if it is still there, and gives it back.
#[inline(always)]
fn take(tuple: &Tuple, when: When) -> Option<Entry> {
    let found = find(tuple, home(tuple, settings()))?;
    let entry = found.set.locked(|| {
        let lives = match when {
            When::Always => false,
            When::Dead(now) => !connection::is_past(found.set.deadline(found.slot), now),
        };
        if lives || !found.holds(tuple) {
            return None;
        }
        found.set.set_tag(found.slot, 0);
        let entry = found.set.entry(found.slot);
        let copy = entry.copy();
        entry.forget();
        Some(copy)
    })?;
    if entry.flags & DISPLACED != 0 {
        // Computed anew, as it is rare and there is little room on the stack.
        SetRef::at(home(tuple, settings()).set)?.add_displaced(-1);
    }
    Some(entry)
}

/// Removes a connection by its client side: both entries, and what the destination counts of it. Whether it was there.
#[inline(always)]
pub fn remove(tuple: &Tuple) -> bool {
    connection_remove(tuple.addresses, tuple.ports, tuple.protocol.into(), ALWAYS, 0) != 0
}

/// [`remove`], of a connection that makes way for another one of its flow: as in IPVS it counts at its destination until
/// that one is scheduled, and [`leave_late`] is called.
#[inline(always)]
pub fn replace(tuple: &Tuple) {
    connection_remove(tuple.addresses, tuple.ports, tuple.protocol.into(), REPLACED, 0);
}

/// Takes the connection that has made way off its destination's counts, if there is one.
#[inline(always)]
pub fn leave_late() {
    if scratch().is_ok_and(|scratch| scratch.leaving != 0) {
        connection_leave_late();
    }
}

/// [`leave_late`], once for all.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn connection_leave_late() -> u32 {
    let Ok(scratch) = scratch() else { return 0 };
    let (leaving, left_inactive) = (scratch.leaving, scratch.left_inactive);
    scratch.leaving = 0;
    leave(leaving.wrapping_sub(1), left_inactive);
    1
}

/// Removes a connection before its time, and its template with it if that was for nothing else. Whether it was there.
#[inline(always)]
pub fn end(entry: &Entry, now: u32) -> bool {
    let gone = remove(&entry.tuple());
    if gone && let Some(template) = Found::at(entry.template) {
        let copy = template.set.locked(|| template.entry().copy());
        if copy.role == TEMPLATE && connection::is_expendable(&copy) {
            persistence::end(entry.template, now);
        }
    }
    gone
}

/// Removes a connection by its client side if its deadline has come by `now`.
#[inline(always)]
pub fn remove_dead(tuple: &Tuple, now: u32) {
    connection_remove(tuple.addresses, tuple.ports, tuple.protocol.into(), DEAD, now);
}

const ALWAYS: u32 = 0;
const DEAD: u32 = 1;
const REPLACED: u32 = 2;

/// [`remove`], [`remove_dead`] or [`replace`], once for all.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn connection_remove(addresses: u64, ports: u32, protocol: u32, how: u32, now: u32) -> u32 {
    let when = if how == DEAD { When::Dead(now) } else { When::Always };
    let tuple = Tuple { addresses, ports, protocol: protocol as u8 };
    let Some(entry) = take(&tuple, when) else { return 0 };
    if how != REPLACED {
        leave_destination(&entry);
    } else if let Ok(scratch) = scratch() {
        scratch.leaving = entry.destination.wrapping_add(1);
        scratch.left_inactive = entry.flags & INACTIVE != 0;
    }
    persistence::release(entry.template);
    if entry.has_twin() {
        remove_twin(&entry.twin(), &tuple);
    }
    1
}

/// Takes back the client side in the scratch room, which no destination has counted yet.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn connection_take_back() -> u32 {
    let Ok(scratch) = scratch() else { return 0 };
    u32::from(take(&scratch.client_side.tuple(), When::Always).is_some())
}

/// Removes the server side of a connection, unless it belongs to another one by now.
#[inline(always)]
fn remove_twin(twin: &Tuple, of: &Tuple) {
    if let Some(found) = find(twin, home(twin, settings()))
        && let Some(entry) = found.read(twin)
        && entry.role == SERVER_SIDE
        && entry.twin() == *of
    {
        take(twin, When::Always);
    }
}

/// Counts a new connection at its destination.
#[inline(always)]
pub fn join_destination(entry: &Entry, destination: DestinationRef) {
    let total = destination.add_total(1).wrapping_add(1);
    if entry.flags & INACTIVE == 0 {
        destination.add_active(1);
    }
    if destination.thresholds().overloaded_after_bind(total, false) {
        destination.set_overloaded(true);
    }
    tree::touch(entry.destination, destination);
}

/// Takes a connection that has ended off its destination's counts.
#[inline(always)]
pub fn leave_destination(entry: &Entry) {
    leave(entry.destination, entry.flags & INACTIVE != 0);
}

#[inline(always)]
fn leave(id: DestinationId, inactive: bool) {
    if let Some(destination) = DestinationRef::at(id) {
        let total = destination.add_total(-1).wrapping_sub(1);
        if !inactive {
            destination.add_active(-1);
        }
        if !destination.thresholds().overloaded_after_unbind(total, true) {
            destination.set_overloaded(false);
        }
        tree::touch(id, destination);
    }
}

/// Runs a connection's state machine for a packet and moves its deadline: on the client side, which decides,
/// and then on the server side, which follows.
#[inline(always)]
pub fn advance(tuple: &Tuple, tcp_flags: u8, out: bool, now: u32) {
    let event = u32::from(tcp_flags) | u32::from(out) << 8;
    let template = connection_advance(tuple.addresses, tuple.ports, tuple.protocol.into(), event, now);
    if template != 0 {
        persistence::persistence_confirm(template);
    }
    time(tuple, now);
}

/// Gives a connection whose deadline was moved just now the timeout of its service, if that has one of its own.
#[inline(always)]
pub fn time(tuple: &Tuple, now: u32) {
    // Not where the deadline is moved, under the lock, which is no place to look for services; and few have any.
    if settings().own_timeouts() != 0 {
        connection_time(tuple.addresses, tuple.ports, tuple.protocol.into(), now);
    }
}

/// [`time`], once for all.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn connection_time(addresses: u64, ports: u32, protocol: u32, now: u32) -> u32 {
    let tuple = &Tuple { addresses, ports, protocol: protocol as u8 };
    let settings = settings();
    let Some(found) = find(tuple, home(tuple, settings)) else { return 0 };
    let Some(entry) = found.read(tuple) else { return 0 };
    let twin = entry.has_twin().then(|| entry.twin());
    let deadline = now.wrapping_add(service::timeout(settings, entry.destination, entry.state));
    set_deadline(found, tuple, deadline);
    if let Some(twin) = twin
        && let Some(found) = find(&twin, home(&twin, settings))
    {
        set_deadline(found, &twin, deadline);
    }
    1
}

#[inline(always)]
fn set_deadline(found: Found, tuple: &Tuple, deadline: u32) {
    let Some(found) = found.checked_again() else { return };
    let _held = found.set.hold();
    if found.holds(tuple) {
        found.set.set_deadline(found.slot, deadline);
    }
}

/// [`advance`], once for all. `event` has the TCP flags, and in bit 8 whether the packet came from a destination.
/// Returns the place of the template that this confirms, or 0.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn connection_advance(addresses: u64, ports: u32, protocol: u32, event: u32, now: u32) -> u32 {
    let tuple = &Tuple { addresses, ports, protocol: protocol as u8 };
    let settings = settings();
    let Some(found) = find(tuple, home(tuple, settings)) else { return 0 };
    // One number for the stack, which is short here.
    let event = opaque((event | u32::from(defence::acts(settings, Sysctl::SecureTcp)) << 9).into()) as u32;
    let changed = found.set.locked(|| {
        if !found.holds(tuple) {
            return None;
        }
        let place = found.set.entry(found.slot);
        let entry = place.copy();
        let (out, secure) = (event & 0x100 != 0, event & 0x200 != 0);
        let next = connection::advance(entry.protocol, entry.state, entry.flags, event as u8, out, secure);
        place.set_state(next.state, next.flags);
        found.set.set_deadline(found.slot, now.wrapping_add(settings.timeout(next.state)));
        Some((entry, next))
    });
    let Some((entry, next)) = changed else { return 0 };
    if next.active_change != 0
        && let Some(destination) = DestinationRef::at(entry.destination)
    {
        destination.add_active(next.active_change);
        tree::touch(entry.destination, destination);
    }
    if entry.has_twin() {
        let deadline = now.wrapping_add(settings.timeout(next.state));
        follow(&entry.twin(), tuple, next.state, deadline, event & 0x100 != 0, settings);
    }
    if assures(entry.protocol, next.state, event & 0x100 != 0) { entry.template } else { 0 }
}

/// Gives a connection the state and the ticks to live that another director told: state, flags and protocol are the bytes
/// of `word`. What another told is that one's until a packet comes. 0 if the connection has gone.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn connection_renew(addresses: u64, ports: u32, word: u32, lifetime: u32) -> u32 {
    let [state, told, protocol, _] = word.to_le_bytes();
    let tuple = &Tuple { addresses, ports, protocol };
    let settings = settings();
    let now = clock::now(settings);
    let deadline = now.wrapping_add(lifetime);
    let Some(found) = find(tuple, home(tuple, settings)) else { return 0 };
    let renewed = found.set.locked(|| {
        if !found.holds(tuple) {
            return None;
        }
        let place = found.set.entry(found.slot);
        let entry = place.copy();
        place.set_state(state, entry.flags & !INACTIVE | told & INACTIVE | SYNCED);
        place.forget_hop(no_hop(now));
        found.set.set_deadline(found.slot, deadline);
        Some(entry)
    });
    let Some(entry) = renewed else { return 0 };
    if (entry.flags ^ told) & INACTIVE != 0
        && let Some(destination) = DestinationRef::at(entry.destination)
    {
        destination.add_active(if told & INACTIVE == 0 { 1 } else { -1 });
    }
    if entry.has_twin() {
        follow(&entry.twin(), tuple, state, deadline, false, settings);
    }
    1
}

/// Brings the server side's copy of a connection's state and deadline up to date, unless it belongs to another
/// connection by now, whose answers look alike.
#[inline(always)]
fn follow(twin: &Tuple, of: &Tuple, state: u8, deadline: u32, out: bool, settings: SettingsRef) {
    let Some(found) = find(twin, home(twin, settings)) else { return };
    found.set.locked(|| {
        let place = found.set.entry(found.slot);
        let entry = place.copy();
        // The client is the same, as the flow of its answers is.
        let is_its = entry.address == of.raw_destination() && entry.port == of.raw_destination_port();
        if found.holds(twin) && is_its {
            place.set_state(state, if out { entry.flags & !NO_OUTPUT } else { entry.flags });
            found.set.set_deadline(found.slot, deadline);
        }
    });
}

/// Stores the next hop of a flow.
#[inline(always)]
pub fn remember_hop(found: Found, entry: &Entry) {
    let Some(found) = found.checked_again() else { return };
    let tuple = entry.tuple();
    let _held = found.set.hold();
    if found.holds(&tuple) {
        let place = found.set.entry(found.slot);
        let now = place.copy();
        // State and flags may have moved on since the copy was made.
        place.store(&Entry { state: now.state, flags: now.flags, ..*entry });
    }
}

/// Has the next packet of a flow ask for the way.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn connection_forget_hop(addresses: u64, ports: u32, protocol: u32, now: u32) -> u32 {
    let tuple = &Tuple { addresses, ports, protocol: protocol as u8 };
    let settings = settings();
    let Some(found) = find(tuple, home(tuple, settings)).and_then(Found::checked_again) else { return 0 };
    found.set.locked(|| {
        if found.holds(tuple) {
            found.set.entry(found.slot).set_hop_until(connection::no_hop(now));
        }
    });
    1
}

/// Ends in one set what is to end with its destination: connections of deleted ones where `expire_nodest_conn` says so, and
/// connections and templates of those whose drain is over. Called by the sweep.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn connection_abandon(number: u32, now: u32) -> u32 {
    let settings = settings();
    let Some(set) = SetRef::at(number) else { return 0 };
    let abandons = settings.sysctl(Sysctl::ExpireNodestConn) != 0;
    for slot in 0..WAYS {
        let place = set.entry(slot);
        if set.tag(slot) == 0 || place.role() == SERVER_SIDE {
            continue;
        }
        let entry = set.locked(|| place.copy());
        let Some(destination) = DestinationRef::at(entry.destination) else { continue };
        if has_drained(destination.status(), destination.date(), now) {
            if entry.role == TEMPLATE {
                persistence::end(Entry::place(number, slot), now);
            } else {
                remove(&entry.tuple());
            }
        } else if abandons && destination.status() & AVAILABLE == 0 && entry.role == CLIENT_SIDE {
            remove(&entry.tuple());
        }
    }
    1
}

/// Deletes what is dead in one set, but for templates if `spares` is not 0; called by the sweep. Returns how many entries are
/// left, or nearly: one that lies in another set than its connection's client side may go with that.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn connection_sweep_set(number: u32, now: u32, spares: u32) -> u32 {
    let settings = settings();
    let Some(set) = SetRef::at(number) else { return 0 };
    let mut left = 0u32;
    for slot in 0..WAYS {
        if set.tag(slot) == 0 {
            continue;
        }
        if !connection::is_past(set.deadline(slot), now) {
            left += 1;
            continue;
        }
        let place = set.entry(slot);
        let entry = set.locked(|| place.copy());
        let tuple = entry.tuple();
        if entry.role == TEMPLATE {
            if spares == 0 {
                persistence::persistence_expire(Entry::place(number, slot), now);
            }
        } else if entry.role == CLIENT_SIDE {
            remove_dead(&tuple, now);
        } else {
            sweep_server_side(&tuple, &entry.twin(), settings, now);
        }
    }
    left
}

/// A server side whose time has come lives on if its connection does.
#[inline(always)]
fn sweep_server_side(tuple: &Tuple, client_side: &Tuple, settings: SettingsRef, now: u32) {
    if let Some(found) = find(client_side, home(client_side, settings))
        && let Some(entry) = found.read(client_side)
        && entry.twin() == *tuple
        && !connection::is_past(found.deadline(), now)
    {
        follow(tuple, client_side, entry.state, found.deadline(), false, settings);
        return;
    }
    take(tuple, When::Dead(now));
}
