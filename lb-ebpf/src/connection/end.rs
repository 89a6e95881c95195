//! Taking entries out of the table.

use lb_common::connection::{self, DISPLACED, Entry, INACTIVE, SERVER_SIDE, TEMPLATE};
use lb_common::tuple::Tuple;

use super::count::{leave, leave_destination};
use super::{Found, find, home};
use crate::maps::{SetRef, scratch, settings};
use crate::persistence;

/// When an entry may be taken out.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum When {
    /// Whatever its deadline is.
    Always,
    /// Only if its deadline has come by this tick: another CPU may have moved it, or made the flow anew.
    Dead(u32),
}

/// Takes an entry out of the table, if it is still there, and gives it back.
#[inline(always)]
pub(super) fn take(tuple: &Tuple, when: When) -> Option<Entry> {
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
