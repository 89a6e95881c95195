//! Cutting up a packet of the director itself that is several still, where the kernel cannot do it: it computes no checksum of a
//! tunnel.
//!
//! Each piece is a copy of the packet that leaves by the same interface once more. There it is cut down to its own part, and goes
//! its way as any packet of that size.

use core::ffi::c_void;

use aya_ebpf::bindings::{__sk_buff, BPF_F_PSEUDO_HDR};
use aya_ebpf::helpers::generated::{bpf_clone_redirect, bpf_loop};
use aya_ebpf::programs::TcContext;
use lb_common::packet::{Packet, UDP};
use lb_common::piece::{Piece, TCP};
use lb_common::protocol::Protocol;
use lb_common::reason::Reason;

use super::Verdict;
use crate::maps::{self, Cutting, Headers};
use crate::packet::{copy_within, cut_off, leaves_by, read, segment, set_piece};

/// Sends the pieces of a packet, whose headers are in the scratch room, one after the other.
#[inline(always)]
pub fn send(context: &TcContext, packet: &Packet) -> Result<Verdict, Reason> {
    let size = segment(context);
    let transport = usize::from(packet.transport);
    let header = if packet.tuple.transport() == Protocol::Tcp.number() {
        let mut offset = [0; 2];
        if !read(context, transport + 12, &mut offset) {
            return Err(Reason::Malformed);
        }
        usize::from(offset[0] >> 4) * 4
    } else if packet.tuple.transport() == Protocol::Udp.number() {
        UDP
    } else {
        return Err(Reason::NotFragmented);
    };
    let payload = (transport + header) as u32;
    let all = context.len().checked_sub(payload).filter(|_| size != 0).ok_or(Reason::Malformed)?;
    let interface = leaves_by(context);
    maps::scratch()?.cutting = Cutting { number: 0, size, payload, interface };
    set_piece(context);
    let mut packet = context.skb.skb;
    // SAFETY: the callback has the signature that the helper calls, and gets the pointer it expects.
    unsafe { bpf_loop(all.div_ceil(size), each as *mut c_void, (&raw mut packet).cast(), 0) };
    Ok(Verdict::Gone)
}

/// Sends one.
extern "C" fn each(number: u32, packet: *mut *mut __sk_buff) -> i64 {
    let Ok(scratch) = maps::scratch() else { return 1 };
    scratch.cutting.number = number;
    // SAFETY: `send` passes the program's context. What the copy leads to on its way out uses the scratch room as well, but
    // nothing here that it changes. A copy that there is no memory for is lost as on any way.
    unsafe { bpf_clone_redirect(*packet, scratch.cutting.interface, 0) };
    0
}

/// Cuts a copy down to the piece that it is; returns what its IP header says of its length then.
#[inline(always)]
pub fn take<const IPV6: bool>(context: &TcContext, packet: &Packet) -> Result<u16, Reason> {
    let scratch = maps::scratch()?;
    let Cutting { number, size, payload, .. } = scratch.cutting;
    let fails = Reason::NotFragmented;
    let all = context.len().checked_sub(payload).ok_or(fails)?;
    let piece = Piece::at(number, size, all).ok_or(fails)?;
    if piece.from != 0 {
        let room = maps::cut().ok_or(fails)?;
        if !copy_within(context, payload + piece.from, payload, piece.length, room) {
            return Err(fails);
        }
    }
    if !cut_off(context, payload + piece.length) {
        return Err(fails);
    }
    let (network, transport) = (usize::from(packet.network), usize::from(packet.transport));
    let length = (payload + piece.length - network as u32) as u16;
    let Headers { ipv4, ipv6 } = &mut scratch.headers;
    let stored = if IPV6 {
        if !read(context, network, ipv6) {
            return Err(fails);
        }
        piece.cut_ipv6(ipv6, length);
        context.store(network, ipv6, 0)
    } else {
        if !read(context, network, ipv4) {
            return Err(fails);
        }
        piece.cut_ipv4(ipv4, length);
        context.store(network, ipv4, 0)
    };
    stored.map_err(|_| fails)?;
    let checksum = if packet.tuple.transport() == Protocol::Tcp.number() {
        let header: &mut [u8; TCP] = ipv4;
        if !read(context, transport, header) {
            return Err(fails);
        }
        piece.cut_tcp(header);
        context.store(transport, header, 0).map_err(|_| fails)?;
        transport + 16
    } else {
        let bytes = (UDP as u32 + piece.length) as u16;
        context.store(transport + 4, &bytes.to_be_bytes(), 0).map_err(|_| fails)?;
        transport + 6
    };
    // In its place is the sum of the pseudo-header, which has the length.
    let of = |bytes: u32| u64::from(((payload - transport as u32 + bytes) as u16).to_be());
    let change = u64::from(BPF_F_PSEUDO_HDR) | size_of::<u16>() as u64;
    context.l4_csum_replace(checksum, of(all), of(piece.length), change).map_err(|_| fails)?;
    Ok(length)
}
