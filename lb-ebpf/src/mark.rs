//! From a packet to its mark, by the rules of `xipvs mark`.
//!
//! IPVS counterpart: none; netfilter has done it before.

use core::ffi::c_void;

use aya_ebpf::helpers::generated::bpf_loop;

use crate::maps::{self, settings};

/// The mark that rules give the packet in the scratch room, which comes in on an interface; 0 if none does. Of IPv6 the
/// addresses of the client side must be the packet's.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn mark_of(interface: u32) -> u32 {
    let settings = settings();
    let (first, count) = settings.mark_rules();
    let mut marking = Marking { interface, first, mark: 0 };
    // SAFETY: the callback has the signature that the helper calls, and gets the pointer it expects.
    unsafe { bpf_loop(count, look as *mut c_void, core::ptr::from_mut(&mut marking).cast(), 0) };
    marking.mark
}

/// What the loop's callback gets: where the rules are, and the mark that the packet has so far.
struct Marking {
    interface: u32,
    first: u32,
    mark: u32,
}

/// The loop's callback: one rule.
extern "C" fn look(index: u32, marking: *mut Marking) -> i64 {
    // SAFETY: `mark_of` passes a live marking, and nothing else has it during the loop.
    let marking = unsafe { &mut *marking };
    let Ok(scratch) = maps::scratch() else { return 1 };
    if let Some(rule) = maps::mark_rule(marking.first.wrapping_add(index))
        && rule.matches(&scratch.packet.tuple, &scratch.client_addresses, marking.interface)
    {
        marking.mark = rule.mark;
    }
    0
}
