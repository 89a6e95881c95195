//! Summing a packet's contents: what checksums cost that cover all of it.
//!
//! One loop of the kernel's, a line of bytes a step; where it has come to is in the scratch room, so that the verifier
//! follows one step and not hundreds.

use core::ffi::c_void;

use aya_ebpf::helpers::generated::bpf_loop;
use aya_ebpf::programs::{TcContext, XdpContext};
use lb_common::checksum::Sum;

use crate::maps::{self, Summing};
use crate::packet::{Contents, OutWindow, Window};

/// Bytes that are summed in one step.
const STEP: usize = 32;

/// Sums so many bytes of the packet from an offset on; nothing if it has not so many.
#[inline(always)]
pub fn sum(context: &XdpContext, from: usize, length: usize) -> Option<Sum> {
    sum_of::<Window>(context.ctx, from, length)
}

/// [`sum`], of a packet that the stack has, as far as it lies in one piece.
#[inline(always)]
pub fn sum_own(context: &TcContext, from: usize, length: usize) -> Option<Sum> {
    sum_of::<OutWindow>(context.skb.skb, from, length)
}

#[inline(always)]
fn sum_of<C: Contents>(mut context: *mut C::Context, from: usize, length: usize) -> Option<Sum> {
    // SAFETY: both callers pass the program's own context.
    if from + length > unsafe { C::of_raw(context) }.length() {
        return None;
    }
    let scratch = maps::scratch().ok()?;
    scratch.summing = Summing { from: from as u32, length: length as u32, sum: Sum::ZERO };
    let steps = length.div_ceil(STEP) as u32;
    // SAFETY: the callback has the signature that the helper calls, and gets the pointer it expects.
    unsafe { bpf_loop(steps, step::<C> as *mut c_void, (&raw mut context).cast(), 0) };
    Some(maps::scratch().ok()?.summing.sum)
}

/// Sums one step, or what is left of one.
extern "C" fn step<C: Contents>(number: u32, packet: *mut *mut C::Context) -> i64 {
    // SAFETY: `sum_of` passes the program's context.
    let window = unsafe { C::of_raw(*packet) };
    let Ok(scratch) = maps::scratch() else { return 1 };
    let summing = &mut scratch.summing;
    let done = number as usize * STEP;
    let from = summing.from as usize + done;
    let left = (summing.length as usize).saturating_sub(done);
    if left >= STEP {
        let Some(bytes) = window.far_bytes::<STEP>(from) else { return 1 };
        summing.sum = summing.sum.with(bytes);
        return 0;
    }
    for place in 0..STEP - 1 {
        if place >= left {
            break;
        }
        let Some([byte]) = window.far_bytes(from + place) else { break };
        let pair = if place % 2 == 0 { [*byte, 0] } else { [0, *byte] };
        summing.sum = summing.sum.with(&pair);
    }
    0
}
