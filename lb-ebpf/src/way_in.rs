//! Packets that XDP has done and cannot send: their way out has a driver without XDP, as that of a bridge.
//!
//! The first thing in the stack that sees them (`clsact`) sends them, as the stack can by any interface. What XDP wants of it
//! stands before the packet, where only XDP programs write.

use aya_ebpf::bindings::TC_ACT_UNSPEC;
use aya_ebpf::helpers::generated::bpf_redirect;
use aya_ebpf::programs::TcContext;

use crate::packet::take_note;

/// Sends a packet out of the interface that XDP has noted; others go on.
#[inline(always)]
pub fn send(context: &TcContext) -> i32 {
    match take_note(context) {
        // SAFETY: the helper takes two numbers.
        Some(interface) => unsafe { bpf_redirect(interface, 0) as i32 },
        // Let those behind decide: not the same as `TC_ACT_OK`.
        None => TC_ACT_UNSPEC,
    }
}
