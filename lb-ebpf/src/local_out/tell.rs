//! Telling the director itself why a packet of its own goes no further: the packet becomes the ICMP error about it, which comes in
//! by `lo`, so that the socket learns of it that has sent the packet.
//!
//! IPVS counterpart: what the stack does for it with `icmp_send`, of packets that it sees in `LOCAL_OUT`.

use aya_ebpf::helpers::generated::bpf_get_prandom_u32;
use aya_ebpf::programs::TcContext;
use lb_common::connection::Addresses;
use lb_common::icmp::{self as rules, ERROR, ERROR_IPV6, Message};
use lb_common::packet::{ETHERNET, Family};
use lb_common::reason::Reason;

use super::{LOOPBACK, Verdict};
use crate::packet::{OutWindow, cut_own, leaves_by, make_room};
use crate::{balance, clock, icmp, maps, sum};

/// Leaves a packet that goes no further to [`tell`], if there is an ICMP error for the reason.
#[inline(always)]
pub fn or_tell<const IPV6: bool>(outcome: Result<Verdict, Reason>) -> Result<Verdict, Reason> {
    outcome.or_else(|reason| icmp::leave_to_tell::<IPV6>(reason).map(Verdict::GoOn))
}

/// Tells the sender of the packet in the scratch room why it goes no further.
#[inline(always)]
pub fn tell<const IPV6: bool>(context: &TcContext) -> Result<Verdict, Reason> {
    let settings = maps::settings();
    let scratch = maps::scratch()?;
    let packet = scratch.kept::<IPV6>();
    let reason = scratch.why;
    let (kind, code) = rules::error_for(reason, IPV6).ok_or(reason)?;
    let mtu = if reason == Reason::TooBig { icmp::next_mtu(&scratch.client_side) } else { 0 };
    let Addresses { source, destination, .. } =
        balance::addresses_of::<IPV6>(&OutWindow::of(context), &packet)?;
    let (told, to) = (packet.tuple.raw_source().to_ne_bytes(), packet.tuple.raw_destination().to_ne_bytes());
    // The stack says that this comes from an address that is its own, and as it does not know of any other, from the very one
    // that it tells.
    let is_local = leaves_by(context) == LOOPBACK;
    let network = usize::from(packet.network);
    // The stack puts tags on later.
    if network != ETHERNET
        || !scratch.limit.take(clock::now(settings), settings.icmp_rate(), settings.ticks_per_second())
    {
        return Err(reason);
    }
    let quoted = rules::quoted(packet.length, IPV6);
    if !cut_own(context, (ETHERNET + usize::from(quoted)) as u32) {
        return Err(reason);
    }
    let quote = sum::sum_own(context, ETHERNET, quoted.into()).ok_or(reason)?;
    let message = Message { kind, code, mtu, quoted, service_type: packet.service_type };
    let room = if IPV6 { ERROR_IPV6 } else { ERROR };
    if !make_room(context, room) {
        return Err(reason);
    }
    // Not on the stack, whose bytes may only be written aligned.
    let front = &mut scratch.front;
    front[..12].fill(0);
    let family = if IPV6 { Family::V6 } else { Family::V4 };
    front[12..ETHERNET].copy_from_slice(&family.ethertype());
    let stored = if IPV6 {
        let header = front.last_chunk_mut().ok_or(reason)?;
        rules::write_error_ipv6(header, if is_local { destination } else { source }, source, message, quote);
        context.store(0, front, 0)
    } else {
        // SAFETY: the helper takes nothing.
        let identification = unsafe { bpf_get_prandom_u32() } as u16;
        let front: &mut [u8; ETHERNET + ERROR] = front.first_chunk_mut().ok_or(reason)?;
        let header = front.last_chunk_mut().ok_or(reason)?;
        rules::write_error(header, if is_local { to } else { told }, told, identification, message, quote);
        context.store(0, front, 0)
    };
    stored.map_err(|_| reason)?;
    icmp::count_told(settings, scratch, reason, room as u16 + quoted);
    Ok(Verdict::ComeIn)
}
