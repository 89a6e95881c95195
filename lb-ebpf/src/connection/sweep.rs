//! What the sweep does with one set.

use lb_common::connection::{self, CLIENT_SIDE, Entry, SERVER_SIDE, TEMPLATE, WAYS};
use lb_common::destination::{AVAILABLE, has_drained};
use lb_common::sysctl::Sysctl;
use lb_common::tuple::Tuple;

use super::advance::follow;
use super::end::{When, take};
use super::{find, home, remove, remove_dead};
use crate::maps::{DestinationRef, SetRef, SettingsRef, settings};
use crate::persistence;

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
