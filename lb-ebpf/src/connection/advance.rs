//! What changes of a connection while it lives: state, deadline, next hop.

use lb_common::connection::{self, Entry, INACTIVE, NO_OUTPUT, SYNCED, no_hop};
use lb_common::persistence::assures;
use lb_common::sysctl::Sysctl;
use lb_common::tuple::Tuple;

use super::{Found, find, home};
use crate::machine::opaque;
use crate::maps::{DestinationRef, SettingsRef, settings};
use crate::{clock, defence, persistence, scheduler, service};

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

/// What a connection that was made just now does by its state: one that begins in the middle, as `sloppy_tcp` lets it, confirms its
/// template at once.
#[inline(always)]
pub fn begin(tuple: &Tuple, entry: &Entry, now: u32) {
    if entry.template != 0 && assures(entry.protocol, entry.state, false) {
        persistence::persistence_confirm(entry.template);
    }
    time(tuple, now);
}

/// Gives a connection whose deadline was moved just now the timeout of its service, if that has one of its own.
#[inline(always)]
fn time(tuple: &Tuple, now: u32) {
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
        scheduler::touch(entry.destination, destination);
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
pub(super) fn follow(twin: &Tuple, of: &Tuple, state: u8, deadline: u32, out: bool, settings: SettingsRef) {
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
