//! Checksums that local senders have left to a network card, where a veth is in its place.
//!
//! What leaves by XDP has a checksum, or the receiver drops it; what the stack gets is as the sender left it, or the stack
//! would add to it: it still knows that the sender has left it.

use aya_ebpf::programs::{TcContext, XdpContext};
use lb_common::offload::Segment;
use lb_common::packet::{self, Family, Frame, IPV4, IPV6};

use crate::maps::{self, Headers, settings};
use crate::packet::{Window, leave_segment, read};
use crate::sum;

/// Computes a packet's checksum if its sender has left that to others, and notes it.
#[inline(always)]
pub fn finish(context: &XdpContext) -> Option<()> {
    let window = Window::of(context);
    let (family, network) = packet::network(&window).ok()?;
    let segment = match family {
        Family::V4 => Segment::of_ipv4(window.bytes::<IPV4>(network)?),
        Family::V6 => Segment::of_ipv6(window.bytes::<IPV6>(network)?),
    }?;
    let transport = network + usize::from(segment.header);
    let place = transport + usize::from(segment.place);
    // A frame with bytes behind its packet comes from a wire.
    if window.length() != transport + usize::from(segment.length) || window.bytes(place)? != &segment.left() {
        return None;
    }
    let checksum = segment.checksum(sum::sum(context, transport, segment.length.into())?)?;
    let director = settings().seed() as u32;
    *Window::of(context).bytes_mut(place)? = checksum;
    if !leave_segment(context, director, segment.header, segment.length) {
        *Window::of(context).bytes_mut(place)? = segment.left();
    }
    Some(())
}

/// Leaves the checksum of a packet that was passed on to others again. Whatever stands before its IP header by now, nothing
/// stands behind it.
#[inline(always)]
pub fn leave(context: &TcContext, header: u16, length: u16) -> Option<()> {
    let network = (context.len() as usize).checked_sub(usize::from(header) + usize::from(length))?;
    let Headers { ipv4, ipv6 } = &mut maps::scratch().ok()?.headers;
    let segment = if read(context, network, ipv4) && ipv4[0] >> 4 == 4 {
        Segment::of_ipv4(ipv4)
    } else if read(context, network, ipv6) {
        Segment::of_ipv6(ipv6)
    } else {
        None
    }?;
    // What the director tells a sender has a piece of its packet, or another one.
    if (segment.header, segment.length) != (header, length) {
        return None;
    }
    context.store(network + usize::from(header) + usize::from(segment.place), &segment.left(), 0).ok()
}
