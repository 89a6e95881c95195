//! SCTP's checksum where NAT replaces a port.
//!
//! IPVS counterpart: `sctp_nat_csum`.

use core::ffi::c_void;

use aya_ebpf::helpers::generated::bpf_loop;
use lb_common::crc32c::{Mending, STEPS};

/// What the checksum of a packet of so many bytes, from the SCTP header on, changes by when its first word does.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn sctp_change(word: u32, length: u32) -> u32 {
    let mut mending = Mending::new(word, length as u16);
    // SAFETY: the callback has the signature that the helper calls, and gets the pointer it expects.
    unsafe { bpf_loop(STEPS, step as *mut c_void, core::ptr::from_mut(&mut mending).cast(), 0) };
    mending.change()
}

/// The loop's callback: one step.
extern "C" fn step(_number: u32, mending: *mut Mending) -> i64 {
    // SAFETY: `sctp_change` passes a live mending, and nothing else has it during the loop.
    unsafe { (*mending).step() };
    0
}
