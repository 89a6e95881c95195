//! Reading the Call-ID of a SIP message, for services with the persistence engine `sip`.
//!
//! One loop of the kernel's over a copy of the message; where it has come to is in a map, so that the verifier follows one
//! step. IPVS counterpart: `ip_vs_sip_fill_param`.

use core::ffi::c_void;
use core::ops::Range;

use aya_ebpf::helpers::generated::bpf_loop;
use aya_ebpf::programs::XdpContext;
use lb_common::packet::Packet;
use lb_common::protocol::udp;
use lb_common::reason::Reason;
use lb_common::settings::Program;
use lb_common::sip::MESSAGE;

use crate::forward::Verdict;
use crate::{maps, packet};

/// Reads the Call-ID of a packet of UDP whose headers are in the scratch room, and leaves its number there, for whoever makes
/// the connection: that which a destination begins may have none.
#[inline(always)]
pub fn read<const IPV6: bool>(context: &XdpContext) -> Result<Verdict, Reason> {
    read_by::<IPV6>(|place, buffer| packet::copy(context, place, buffer)).map(Verdict::GoOn)
}

/// [`read`], by who copies a range of the packet; what to go on in.
#[inline(always)]
pub fn read_by<const IPV6: bool>(
    copy: impl FnOnce(Range<usize>, &mut [u8; MESSAGE]) -> Option<usize>,
) -> Result<Program, Reason> {
    let (settings, scratch) = (maps::settings(), maps::scratch()?);
    let Packet { network, transport, length, .. } = scratch.kept::<IPV6>();
    // What follows the packet in the frame is the link's, not the message's.
    let message_at = usize::from(transport) + udp::HEADER..usize::from(network) + usize::from(length);
    let message = maps::message().ok_or(Reason::Internal)?;
    message.call.begin(settings.seed());
    if let Some(length) = copy(message_at, &mut message.bytes) {
        // SAFETY: the callback has the signature that the helper calls, and needs no pointer.
        unsafe { bpf_loop(length as u32, step as *mut c_void, core::ptr::null_mut(), 0) };
    }
    let call = &mut maps::message().ok_or(Reason::Internal)?.call;
    let is_callback = scratch.caller != 0;
    if let Some(number) = call.finish() {
        scratch.call = number;
        maps::remember_call(call);
    } else if !is_callback {
        return Err(Reason::NoCallId);
    }
    Ok(if is_callback { Program::Callback } else { Program::Open })
}

/// Reads the next byte.
extern "C" fn step(place: u32, _: *mut c_void) -> i64 {
    let Some(message) = maps::message() else { return 1 };
    message.call.read(message.bytes[place as usize & (MESSAGE - 1)]).into()
}
