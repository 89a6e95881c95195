//! The estimator of rates: all destinations every two seconds, a share of them a turn.
//!
//! IPVS counterpart: `ip_vs_est.c`.

use core::ffi::c_void;

use aya_ebpf::helpers::generated::bpf_loop;
use lb_common::destination::{Counters, DestinationId};
use lb_common::stats::TURNS;

use crate::maps::{self, SettingsRef, settings};

/// Looks at this turn's share: every destination whose number leaves the turn's when divided by [`TURNS`].
#[inline(always)]
pub fn take_turn(settings: SettingsRef) {
    let turn = settings.estimator_turn();
    let mut share = turn & (TURNS - 1);
    let count = settings.destinations_used() / TURNS + 1;
    // SAFETY: the callback has the signature that the helper calls, and gets the pointer it expects.
    unsafe { bpf_loop(count, estimate as *mut c_void, core::ptr::from_mut(&mut share).cast(), 0) };
    settings.set_estimator_turn(turn.wrapping_add(1));
}

/// One destination, as it is summed up.
struct Sum {
    destination: DestinationId,
    counted: Counters,
}

extern "C" fn estimate(index: u32, share: *mut u32) -> i64 {
    let settings = settings();
    // SAFETY: `take_turn` passes a live number.
    let destination = index.wrapping_mul(TURNS).wrapping_add(unsafe { *share });
    if destination >= settings.destinations_used() {
        return 1;
    }
    let mut sum = Sum { destination, counted: Counters::default() };
    // SAFETY: as in `take_turn`.
    unsafe { bpf_loop(settings.cpus(), add_cpu as *mut c_void, core::ptr::from_mut(&mut sum).cast(), 0) };
    maps::estimate(destination, &sum.counted);
    0
}

extern "C" fn add_cpu(cpu: u32, sum: *mut Sum) -> i64 {
    let settings = settings();
    // SAFETY: `estimate` passes a live sum, and nothing else has it during the loop.
    let sum = unsafe { &mut *sum };
    maps::add_counted(settings, cpu, sum.destination, &mut sum.counted);
    0
}
