//! Room in a full table: what is half-open or closed gives way to what begins.

use lb_common::connection::{self, ALTERNATES, Entry, Home, SERVER_SIDE, TEMPLATE, WAYS};
use lb_common::reason::GAVE_WAY;
use lb_common::tuple::Tuple;

use super::{Found, home, remove};
use crate::maps::{self, SetRef, SettingsRef, settings};
use crate::persistence;

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
