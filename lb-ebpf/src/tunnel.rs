//! Tunnels: the outer headers around a packet, and the packets that need more than that.
//!
//! A packet of IPv4 in its flow's steady state is wrapped in IPv4 where it is. What has to be summed, what is too large for
//! the way, what waits for a neighbour and what IPv6 has a part in is the business of programs of their own.
//! IPVS counterpart: `ip_vs_tunnel_xmit`.

use aya_ebpf::helpers::generated::bpf_get_prandom_u32;
use aya_ebpf::programs::XdpContext;
use lb_common::checksum::Sum;
use lb_common::connection::{Entry, octets};
use lb_common::destination::DestinationId;
use lb_common::forward::{take_hop, take_hop_ipv6};
use lb_common::packet::{Family, Frame, IPV4, IPV6, Packet};
use lb_common::reason::Reason;
use lb_common::sysctl::Sysctl;
use lb_common::tunnel::{self as rules, Inner, Tunnel};

use crate::forward::{self, DONT_FRAGMENT, Verdict};
use crate::maps::{self, DestinationRef, SettingsRef, Tunnelling};
use crate::packet::{Window, move_head};
use crate::sum;

/// Most bytes of a link header: Ethernet and two tags.
pub const LINK: usize = 22;

/// The largest packet that a connection's tunnel takes.
#[inline(always)]
pub fn mtu(entry: &Entry) -> Option<u16> {
    let destination = DestinationRef::at(entry.destination)?;
    destination.tunnel().mtu(destination.version(), entry.mtu)
}

/// Bytes that the headers of a destination's tunnel take, if [`send_at_once`] can write them.
#[inline(always)]
pub fn room_at_once(destination: DestinationRef) -> Option<usize> {
    let tunnel = destination.tunnel();
    let simple = !tunnel.has_checksum() && destination.version() == Family::V4;
    simple.then_some(tunnel.room(Family::V4))
}

/// Sends a packet that its way takes into a tunnel that sums nothing; its next hop is known.
#[inline(always)]
pub fn send_at_once(
    context: &XdpContext,
    settings: SettingsRef,
    packet: &Packet,
    entry: &Entry,
    destination: DestinationRef,
) -> Result<Verdict, Reason> {
    let tunnel = destination.tunnel();
    let inner = take::<false>(context, settings, packet)?;
    let at = forward::write_link(context, packet, entry, Family::V4, tunnel.room(Family::V4))?;
    let ends = [entry.tunnel_source(), entry.address];
    let hash = packet.tuple.hash(settings.seed()) as u32;
    let mut window = Window::of(context);
    write_ipv4(window.bytes_mut(at).ok_or(Reason::Malformed)?, tunnel, inner, ends);
    rules::write_between(window.bytes_mut(at + IPV4).ok_or(Reason::Malformed)?, tunnel, inner, hash, None);
    Ok(forward::out(context, entry.interface))
}

/// Takes a hop off the packet inside, and says what the outer header wants to know of it.
#[inline(always)]
fn take<const INNER_IPV6: bool>(
    context: &XdpContext,
    settings: SettingsRef,
    packet: &Packet,
) -> Result<Inner, Reason> {
    let mut window = Window::of(context);
    if INNER_IPV6 {
        take_hop_ipv6(window.bytes_mut(packet.network.into()).ok_or(Reason::Malformed)?);
        return Ok(Inner {
            family: Family::V6,
            length: packet.length,
            service_type: packet.service_type,
            time_to_live: packet.time_to_live - 1,
            dont_fragment: false,
        });
    }
    let header = window.bytes_mut::<IPV4>(packet.network.into()).ok_or(Reason::Malformed)?;
    take_hop(header);
    Ok(Inner {
        family: Family::V4,
        length: packet.length,
        // Read here, so that packets that need no tunnel need not put them aside.
        service_type: header[1],
        time_to_live: header[8],
        dont_fragment: header[6] & DONT_FRAGMENT != 0 && settings.sysctl(Sysctl::PmtuDisc) != 0,
    })
}

/// Writes an outer header of IPv4, between two addresses in network order, loaded natively; the sum of UDP's pseudo-header.
#[inline(always)]
pub fn write_ipv4(header: &mut [u8; IPV4], tunnel: Tunnel, inner: Inner, ends: [u32; 2]) -> Sum {
    // SAFETY: the helper takes nothing.
    let identification = unsafe { bpf_get_prandom_u32() } as u16;
    let [source, destination] = ends.map(u32::to_ne_bytes);
    rules::write_ipv4(header, tunnel, inner, source, destination, identification);
    rules::pseudo_ipv4(source, destination, inner.length)
}

/// The same of IPv6, to a destination.
#[inline(always)]
pub fn write_ipv6(
    header: &mut [u8; IPV6],
    tunnel: Tunnel,
    inner: Inner,
    id: DestinationId,
    destination: DestinationRef,
) -> Sum {
    let (source, destination) = (octets(maps::tunnel_source_ipv6(id)), octets(destination.address_ipv6()));
    rules::write_ipv6(header, tunnel, inner, source, destination);
    rules::pseudo_ipv6(source, destination, inner.length)
}

/// Sends the packet of a known flow, which both lie in the scratch room, into its tunnel.
#[inline(always)]
pub fn send<const INNER_IPV6: bool>(context: &XdpContext) -> Result<Verdict, Reason> {
    let destination = DestinationRef::at(maps::scratch()?.client_side.destination).ok_or(Reason::Internal)?;
    match destination.version() {
        Family::V4 => send_over::<INNER_IPV6, false>(context, destination),
        Family::V6 => send_over::<INNER_IPV6, true>(context, destination),
    }
}

/// [`send`], over the network of a family.
#[inline(always)]
fn send_over<const INNER_IPV6: bool, const OUTER_IPV6: bool>(
    context: &XdpContext,
    destination: DestinationRef,
) -> Result<Verdict, Reason> {
    let outer = if OUTER_IPV6 { Family::V6 } else { Family::V4 };
    let settings = maps::settings();
    let scratch = maps::scratch()?;
    let packet = scratch.kept::<INNER_IPV6>();
    let entry = &scratch.client_side;
    let tunnel = destination.tunnel();
    let room = tunnel.room(outer);
    let mut inner = take::<INNER_IPV6>(context, settings, &packet)?;
    let by_stack = if scratch.tunnelling == Tunnelling::NoNeighbour {
        Some(Reason::NeighbourByStack)
    } else if packet.length > tunnel.mtu(outer, entry.mtu).ok_or(Reason::NoRoute)? {
        inner.may_be_cut(outer)?;
        Some(Reason::FragmentedByStack)
    } else {
        None
    };
    let payload = if tunnel.has_checksum() {
        let inside = sum::sum(context, packet.network.into(), packet.length.into());
        Some(inside.ok_or(Reason::Malformed)?)
    } else {
        None
    };
    let hash = packet.tuple.hash(settings.seed()) as u32;
    let at = if by_stack.is_some() {
        // The stack takes a hop off the outer header when it forwards the packet.
        inner.time_to_live = inner.time_to_live.saturating_add(1);
        make_room(context, &packet, outer, room)?
    } else {
        forward::write_link(context, &packet, entry, outer, room)?
    };
    let mut window = Window::of(context);
    let pseudo = if OUTER_IPV6 {
        let header = window.bytes_mut(at).ok_or(Reason::Malformed)?;
        write_ipv6(header, tunnel, inner, entry.destination, destination)
    } else {
        let header = window.bytes_mut(at).ok_or(Reason::Malformed)?;
        write_ipv4(header, tunnel, inner, [entry.tunnel_source(), destination.address()])
    };
    let at = at + room - tunnel.encapsulation();
    let sums = payload.map(|payload| (payload, pseudo));
    rules::write_between(window.bytes_mut(at).ok_or(Reason::Malformed)?, tunnel, inner, hash, sums);
    by_stack.map_or_else(|| Ok(forward::out(context, entry.interface)), Err)
}

/// Makes room behind the link header, which stays as it is but for the family, for the stack; returns where it begins.
#[inline(always)]
fn make_room(context: &XdpContext, packet: &Packet, family: Family, room: usize) -> Result<usize, Reason> {
    let link: [u8; LINK] = *Window::of(context).bytes(0).ok_or(Reason::Malformed)?;
    if !move_head(context, -(room as i32)) {
        return Err(Reason::Internal);
    }
    let mut window = Window::of(context);
    // Where the header is shorter the rest is written over.
    *window.bytes_mut(0).ok_or(Reason::Malformed)? = link;
    let at = usize::from(packet.network);
    *window.bytes_mut(at - 2).ok_or(Reason::Malformed)? = family.ethertype();
    Ok(at)
}
