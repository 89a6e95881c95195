//! Tunnels of the director's own connections: outer headers around a packet that the stack has.
//!
//! The kernel makes the room and is told what it is for, so that it cuts up what is several packets still, and finds the checksum
//! inside that is left to be computed. With a checksum outside as well, a packet is cut up and summed here.
//! IPVS counterpart: `ip_vs_tunnel_xmit`, called in `LOCAL_OUT`.

use aya_ebpf::EbpfContext;
use aya_ebpf::bindings::{
    BPF_F_ADJ_ROOM_ENCAP_L3_IPV4, BPF_F_ADJ_ROOM_ENCAP_L3_IPV6, BPF_F_ADJ_ROOM_ENCAP_L4_GRE,
    BPF_F_ADJ_ROOM_ENCAP_L4_UDP, BPF_F_ADJ_ROOM_FIXED_GSO, bpf_adj_room_mode::BPF_ADJ_ROOM_MAC,
};
use aya_ebpf::programs::TcContext;
use lb_common::checksum::Sum;
use lb_common::offload::Segment;
use lb_common::packet::{FRAGMENT_BITS, Family, Frame, IPV4, IPV6, Packet};
use lb_common::protocol::Protocol;
use lb_common::reason::Reason;
use lb_common::sysctl::Sysctl;
use lb_common::tunnel::{self as rules, Inner, Tunnel};

use super::send::{exceeds, take_hop};
use super::{LOOPBACK, Verdict, piece};
use crate::forward::{self, DONT_FRAGMENT, NoHop};
use crate::maps::{self, DestinationRef, Scratch};
use crate::packet::{OutWindow, is_piece, leaves_by, segment, write};
use crate::tunnel::{write_ipv4, write_ipv6};
use crate::{clock, sum};

/// The farthest that a packet is summed.
const MOST: usize = 16383;
/// The number of IPv6's extension header of fragments.
const FRAGMENT_HEADER: u8 = 44;

/// Sends the packet of a known flow, which both lie in the scratch room, into its tunnel.
#[inline(always)]
pub fn send<const INNER_IPV6: bool>(context: &TcContext) -> Result<Verdict, Reason> {
    let destination = DestinationRef::at(maps::scratch()?.client_side.destination).ok_or(Reason::Internal)?;
    match destination.version() {
        Family::V4 => send_over::<INNER_IPV6, false>(context, destination),
        Family::V6 => send_over::<INNER_IPV6, true>(context, destination),
    }
}

/// [`send`], over the network of a family.
#[inline(always)]
fn send_over<const INNER_IPV6: bool, const OUTER_IPV6: bool>(
    context: &TcContext,
    destination: DestinationRef,
) -> Result<Verdict, Reason> {
    let outer = if OUTER_IPV6 { Family::V6 } else { Family::V4 };
    let settings = maps::settings();
    let scratch = maps::scratch()?;
    let mut packet = scratch.kept::<INNER_IPV6>();
    let Scratch { client_side: entry, client_addresses: addresses, .. } = scratch;
    let tunnel = destination.tunnel();
    let interface = leaves_by(context);
    let way = match forward::ask(context.as_ptr(), interface, &packet, entry, addresses) {
        Ok(way) => {
            entry.mtu = if OUTER_IPV6 {
                // SAFETY: reading a plain number out of a union of plain numbers.
                unsafe { way.__bindgen_anon_1.mtu_result }
            } else {
                maps::path_mtu(settings, way, clock::now(settings))
            };
            way.ifindex
        }
        // The kernel resolves it; only the largest packet that it takes is not known.
        Err(NoHop::Neighbour) => {
            entry.mtu = u16::MAX;
            maps::lookup().ok_or(Reason::Internal)?.ifindex
        }
        // As it is: no end of a tunnel is asked for.
        Err(NoHop::Local) => {
            return Ok(if interface == LOOPBACK { Verdict::GoOut } else { Verdict::ComeIn });
        }
        Err(NoHop::Refused(reason)) => return Err(reason),
    };
    if packet.time_to_live <= 1 {
        return Err(Reason::TimeExceeded);
    }
    if is_piece(context) {
        packet.length = piece::take::<INNER_IPV6>(context, &packet)?;
    }
    let mut inner = inner::<INNER_IPV6>(context, &packet)?;
    let is_too_large = exceeds(context, &packet, tunnel.mtu(outer, entry.mtu).ok_or(Reason::NoRoute)?);
    if is_too_large && let Err(reason) = inner.may_be_cut(outer) {
        // The error quotes the packet with the hop taken off, as IPVS's does.
        take_hop::<INNER_IPV6>(context, &packet)?;
        return Err(reason);
    }
    if tunnel.has_checksum() && segment(context) != 0 {
        return piece::send(context, &packet);
    }
    take_hop::<INNER_IPV6>(context, &packet)?;
    let payload = if tunnel.has_checksum() { Some(contents::<INNER_IPV6>(context, &packet)?) } else { None };
    if is_too_large {
        // The stack takes a hop off the outer header when it forwards the packet.
        inner.time_to_live += 1;
    }
    make_room::<OUTER_IPV6>(context, tunnel)?;
    let around = &mut scratch.around;
    let (kind, rest) = around.split_first_chunk_mut().ok_or(Reason::Internal)?;
    *kind = outer.ethertype();
    let (pseudo, between) = if OUTER_IPV6 {
        let (header, between) = rest.split_first_chunk_mut().ok_or(Reason::Internal)?;
        (write_ipv6(header, tunnel, inner, entry.destination, destination), between)
    } else {
        let (header, between) = rest.split_first_chunk_mut().ok_or(Reason::Internal)?;
        (write_ipv4(header, tunnel, inner, [entry.tunnel_source(), destination.address()]), between)
    };
    let between = between.first_chunk_mut().ok_or(Reason::Internal)?;
    let hash = packet.tuple.hash(settings.seed()) as u32;
    rules::write_between(between, tunnel, inner, hash, payload.map(|payload| (payload, pseudo)));
    let network = usize::from(packet.network);
    if !write(context, network - 2, around, 2 + tunnel.room(outer)) {
        return Err(Reason::Malformed);
    }
    Ok(if is_too_large { Verdict::ComeIn } else { Verdict::Redirect(way) })
}

/// What the outer header wants to know of the packet inside, with the hop taken off it that it makes.
#[inline(always)]
fn inner<const IPV6: bool>(context: &TcContext, packet: &Packet) -> Result<Inner, Reason> {
    let (length, time_to_live) = (packet.length, packet.time_to_live - 1);
    if IPV6 {
        let service_type = packet.service_type;
        return Ok(Inner { family: Family::V6, length, service_type, time_to_live, dont_fragment: false });
    }
    let window = OutWindow::of(context);
    let header: &[u8; IPV4] = window.bytes(packet.network.into()).ok_or(Reason::Malformed)?;
    Ok(Inner {
        family: Family::V4,
        length,
        service_type: header[1],
        time_to_live,
        dont_fragment: header[6] & DONT_FRAGMENT != 0 && maps::settings().sysctl(Sysctl::PmtuDisc) != 0,
    })
}

/// The sum over a packet as it will be when its checksum is there: that may be left to be computed, and what is in its place until
/// then says what the rest will sum up to with it.
#[inline(always)]
fn contents<const INNER_IPV6: bool>(context: &TcContext, packet: &Packet) -> Result<Sum, Reason> {
    let (network, length) = (usize::from(packet.network), usize::from(packet.length));
    if network + length > MOST {
        return Err(Reason::OwnLeftAlone);
    }
    if context.pull_data((network + length) as u32).is_err() {
        return Err(Reason::Malformed);
    }
    let window = OutWindow::of(context);
    // The checksum of a fragment is there: it is that of its datagram.
    let (addresses, is_fragment) = if INNER_IPV6 {
        let header: &[u8; IPV6] = window.bytes(network).ok_or(Reason::Malformed)?;
        (Sum::ZERO.with(&header[8..]), header[6] == FRAGMENT_HEADER)
    } else {
        let header: &[u8; IPV4] = window.bytes(network).ok_or(Reason::Malformed)?;
        let fragment = u16::from_be_bytes([header[6], header[7]]);
        (Sum::ZERO.with(&header[12..]), fragment & FRAGMENT_BITS != 0)
    };
    let is_whole = packet.has_ports() && !is_fragment;
    let header = if is_whole { usize::from(packet.transport - packet.network) } else { 0 };
    let (transport, length) = (network + header, length.checked_sub(header).ok_or(Reason::Malformed)?);
    let headers = sum::sum_own(context, network, header).ok_or(Reason::Malformed)?;
    let sum = sum::sum_own(context, transport, length).ok_or(Reason::Malformed)?;
    if !is_whole {
        return Ok(sum);
    }
    let window = OutWindow::of(context);
    let protocol = packet.tuple.transport();
    if protocol == Protocol::Sctp.number() && *window.bytes(transport + 8).ok_or(Reason::Malformed)? == [0; 4]
    {
        // What it will be does not follow from any sum.
        return Err(Reason::OwnLeftAlone);
    }
    let Some(segment) = Segment::new(header as u16, length as u16, protocol, addresses) else {
        return Ok(headers.and(sum));
    };
    let place = transport + usize::from(segment.place);
    let is_left = *window.bytes(place).ok_or(Reason::Malformed)? == segment.left();
    Ok(headers.and(if is_left && segment.checksum(sum).is_some() { segment.summed() } else { sum }))
}

/// Makes room for a tunnel's headers before a packet, and has the kernel know what they are.
#[inline(always)]
fn make_room<const OUTER_IPV6: bool>(context: &TcContext, tunnel: Tunnel) -> Result<(), Reason> {
    let (family, outer) = if OUTER_IPV6 {
        (BPF_F_ADJ_ROOM_ENCAP_L3_IPV6, Family::V6)
    } else {
        (BPF_F_ADJ_ROOM_ENCAP_L3_IPV4, Family::V4)
    };
    let between = if tunnel.is_gre() {
        BPF_F_ADJ_ROOM_ENCAP_L4_GRE
    } else if tunnel.is_gue() {
        BPF_F_ADJ_ROOM_ENCAP_L4_UDP
    } else {
        0
    };
    // What it is cut up into fits already.
    let flags = u64::from(BPF_F_ADJ_ROOM_FIXED_GSO | family | between);
    context.adjust_room(tunnel.room(outer) as i32, BPF_ADJ_ROOM_MAC, flags).map_err(|_| Reason::NotFragmented)
}
