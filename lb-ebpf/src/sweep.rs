//! The sweep: deletes dead connections, a slice of the table a tick, with no process running.
//!
//! One kernel timer drives it. A tick visits `Settings::sweep_stride` sets and reads one line of each, so that
//! it never holds a CPU for long. The estimator of rates has its turn with it.

use core::ffi::{c_int, c_void};
use core::ptr::addr_of_mut;

use aya_ebpf::bindings::bpf_timer;
use aya_ebpf::helpers::generated::{bpf_loop, bpf_timer_init, bpf_timer_set_callback, bpf_timer_start};

use lb_common::sysctl::Sysctl;

use crate::maps::{SWEEPER, Sweeper, settings};
use crate::{clock, connection, defence, stats};

/// Nanoseconds between two ticks of the sweep: 128 a second.
const PERIOD: u64 = 1_000_000_000 / 128;
const CLOCK_MONOTONIC: u64 = 1;
const EBUSY: i64 = -16;

/// Arms the timer. Harmless when it is armed already.
#[inline(always)]
pub fn start() -> bool {
    let Some(sweeper) = SWEEPER.get_ptr_mut(0) else { return false };
    // SAFETY: the timer is the map element's own, the map the one it lies in.
    unsafe {
        let timer = addr_of_mut!((*sweeper).timer);
        let map = core::ptr::from_ref(&SWEEPER).cast_mut().cast();
        let made = bpf_timer_init(timer, map, CLOCK_MONOTONIC);
        if made != 0 && made != EBUSY {
            return false;
        }
        bpf_timer_set_callback(timer, tick as *mut c_void) == 0 && bpf_timer_start(timer, PERIOD, 0) == 0
    }
}

/// One tick: a slice of the table, then the timer again.
extern "C" fn tick(_map: *mut c_void, _key: *mut c_int, sweeper: *mut Sweeper) -> c_int {
    let settings = settings();
    let now = clock::now(settings);
    let drops = defence::acts(settings, Sysctl::DropEntry).into();
    let mut slice = Slice { first: settings.sweep_position(), now, spares: 0, occupied: 0, drops };
    let stride = settings.sweep_stride();
    visit(&mut slice, stride);
    let next = slice.first.wrapping_add(stride) & settings.set_mask();
    settings.set_sweep(next, now);
    settings.add_occupied(slice.occupied, stride != 0 && next <= slice.first);
    stats::take_turn(settings);
    // SAFETY: the kernel hands the callback its own map element.
    unsafe { bpf_timer_start(addr_of_mut!((*sweeper).timer).cast::<bpf_timer>(), PERIOD, 0) };
    0
}

/// Sweeps the whole table at once.
#[inline(always)]
pub fn all() -> bool {
    let settings = settings();
    let now = clock::now(settings);
    let mut slice = Slice { first: 0, now, spares: 1, occupied: 0, drops: 0 };
    visit(&mut slice, settings.set_mask().wrapping_add(1));
    // Templates last, when no connection is counted that has died.
    (slice.spares, slice.occupied) = (0, 0);
    visit(&mut slice, settings.set_mask().wrapping_add(1));
    settings.set_sweep(settings.sweep_position(), now);
    settings.set_occupied(slice.occupied);
    true
}

// Aligned so that two fields written at once are.
#[repr(C, align(8))]
#[derive(Clone, Copy)]
struct Slice {
    first: u32,
    now: u32,
    /// Not 0: templates are left alone.
    spares: u32,
    /// Places with an entry so far.
    occupied: u32,
    /// Not 0: `drop_entry` comes by.
    drops: u32,
}

#[inline(always)]
fn visit(slice: &mut Slice, sets: u32) {
    // SAFETY: the callback has the signature that the helper calls, and gets the pointer it expects.
    unsafe { bpf_loop(sets, visit_set as *mut c_void, core::ptr::from_mut(slice).cast(), 0) };
}

extern "C" fn visit_set(index: u32, slice: *mut Slice) -> i64 {
    // SAFETY: `visit` passes a live slice.
    let Slice { first, now, spares, drops, .. } = unsafe { *slice };
    let settings = settings();
    let set = first.wrapping_add(index) & settings.set_mask();
    let occupied = connection::connection_sweep_set(set, now, spares);
    // SAFETY: as above.
    unsafe { (*slice).occupied = (*slice).occupied.wrapping_add(occupied) };
    if settings.sysctl(Sysctl::ExpireNodestConn) != 0 || settings.draining() != 0 {
        connection::connection_abandon(set, now);
    }
    if drops != 0 && defence::comes_by() {
        defence::defence_drop_entries(set, now);
    }
    0
}
