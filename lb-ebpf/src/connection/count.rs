//! What a destination counts of its connections, which thresholds and schedulers go by.

use lb_common::connection::{Entry, INACTIVE};
use lb_common::destination::DestinationId;

use crate::maps::DestinationRef;
use crate::scheduler;

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
    scheduler::touch(entry.destination, destination);
}

/// Takes a connection that has ended off its destination's counts.
#[inline(always)]
pub fn leave_destination(entry: &Entry) {
    leave(entry.destination, entry.flags & INACTIVE != 0);
}

#[inline(always)]
pub(super) fn leave(id: DestinationId, inactive: bool) {
    if let Some(destination) = DestinationRef::at(id) {
        let total = destination.add_total(-1).wrapping_sub(1);
        if !inactive {
            destination.add_active(-1);
        }
        if !destination.thresholds().overloaded_after_unbind(total, true) {
            destination.set_overloaded(false);
        }
        scheduler::touch(id, destination);
    }
}
