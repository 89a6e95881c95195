//! Packets that XDP has passed to the stack with a note before them, where only XDP programs write: the first thing in the
//! stack that sees them (`clsact`) does what it says.
//!
//! Some are done, and XDP cannot send them: their way out has a driver without XDP, as that of a bridge. The stack can send by
//! any interface. Of some the checksum was computed that the stack believes is left to be.

use aya_ebpf::bindings::TC_ACT_UNSPEC;
use aya_ebpf::helpers::generated::bpf_redirect;
use aya_ebpf::programs::TcContext;

use crate::maps::settings;
use crate::offload;
use crate::packet::{take_segment, take_way};

/// Sends a packet out of the interface that XDP has noted; others go on.
#[inline(always)]
pub fn send(context: &TcContext) -> i32 {
    let Some(interface) = take_way(context) else {
        undo::<0>(context);
        // Let those behind decide: not the same as `TC_ACT_OK`.
        return TC_ACT_UNSPEC;
    };
    undo::<1>(context);
    // SAFETY: the helper takes two numbers.
    unsafe { bpf_redirect(interface, 0) as i32 }
}

/// Leaves a checksum to others again that was computed in vain.
#[inline(always)]
fn undo<const NEWER: usize>(context: &TcContext) {
    if let Some((header, length)) = take_segment::<NEWER>(context, settings().seed() as u32) {
        // If it is not there any more nothing is to be done.
        let _ = offload::leave(context, header, length);
    }
}
