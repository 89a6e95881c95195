//! Tunnels: the outer headers around a packet, and the packets that need more than that.
//!
//! A packet in its flow's steady state is wrapped where it is. What has to be summed, what is too large for the way and
//! what waits for a neighbour is the business of a program of its own.
//! IPVS counterpart: `ip_vs_tunnel_xmit`.

use aya_ebpf::helpers::generated::bpf_get_prandom_u32;
use aya_ebpf::programs::XdpContext;
use lb_common::checksum::Sum;
use lb_common::connection::Entry;
use lb_common::forward::take_hop;
use lb_common::packet::{Frame, IPV4, Packet};
use lb_common::reason::Reason;
use lb_common::sysctl::Sysctl;
use lb_common::tunnel::{self as rules, Family, Inner, Tunnel};

use crate::forward::{self, DONT_FRAGMENT, Verdict};
use crate::maps::{self, DestinationRef, SettingsRef, Tunnelling};
use crate::packet::{Window, move_head};
use crate::sum;

/// Most bytes of a link header: Ethernet and two tags.
pub const LINK: usize = 22;

/// Bytes that the headers of a connection's tunnel take.
#[inline(always)]
pub fn room(entry: &Entry) -> usize {
    let tunnel = DestinationRef::at(entry.destination).map(DestinationRef::tunnel);
    IPV4 + tunnel.map_or(0, Tunnel::encapsulation)
}

/// Bytes that the headers of a destination's tunnel take, if [`send_at_once`] can write them.
#[inline(always)]
pub fn room_at_once(destination: DestinationRef) -> Option<usize> {
    let tunnel = destination.tunnel();
    (!tunnel.has_checksum()).then_some(IPV4 + tunnel.encapsulation())
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
    let inner = take(context, settings, packet)?;
    let at = forward::write_link(context, packet, entry, IPV4 + tunnel.encapsulation())?;
    let hash = packet.tuple.hash(settings.seed()) as u32;
    write(context, at, tunnel, inner, entry, hash, None).ok_or(Reason::Malformed)?;
    Ok(forward::out(context, entry))
}

/// Takes a hop off the packet inside, and says what the outer header wants to know of it.
#[inline(always)]
fn take(context: &XdpContext, settings: SettingsRef, packet: &Packet) -> Result<Inner, Reason> {
    let mut window = Window::of(context);
    let header = window.bytes_mut::<IPV4>(packet.network.into()).ok_or(Reason::Malformed)?;
    let dont_fragment = header[6] & DONT_FRAGMENT != 0;
    take_hop(header);
    Ok(Inner {
        family: Family::V4,
        length: packet.length,
        service_type: packet.service_type,
        time_to_live: packet.time_to_live - 1,
        dont_fragment: dont_fragment && settings.sysctl(Sysctl::PmtuDisc) != 0,
    })
}

/// Writes the headers at an offset; `payload` is the sum over what is inside if they want it.
#[inline(always)]
fn write(
    context: &XdpContext,
    at: usize,
    tunnel: Tunnel,
    inner: Inner,
    entry: &Entry,
    hash: u32,
    payload: Option<Sum>,
) -> Option<()> {
    let (source, destination) = (entry.tunnel_source().to_ne_bytes(), entry.address.to_ne_bytes());
    // SAFETY: the helper takes nothing.
    let identification = unsafe { bpf_get_prandom_u32() } as u16;
    let mut window = Window::of(context);
    rules::write_ipv4(window.bytes_mut(at)?, tunnel, inner, source, destination, identification);
    let at = at + IPV4;
    match (tunnel.encapsulation(), payload) {
        (4, _) => rules::write_gre(window.bytes_mut(at)?, inner.family),
        (8, Some(sum)) => rules::write_gre_checked(window.bytes_mut(at)?, inner.family, sum),
        (12, sum) => {
            let header = window.bytes_mut(at)?;
            rules::write_gue(header, tunnel, inner, hash);
            if let Some(sum) = sum {
                rules::write_gue_checksum(
                    header,
                    rules::pseudo_ipv4(source, destination, inner.length).and(sum),
                );
            }
        }
        _ => {}
    }
    Some(())
}

/// Sends the packet of a known flow, which both lie in the scratch room, into its tunnel.
#[inline(always)]
pub fn send(context: &XdpContext) -> Result<Verdict, Reason> {
    let settings = maps::settings()?;
    let scratch = maps::scratch()?;
    let packet = scratch.kept::<false>();
    let entry = &scratch.client_side;
    let tunnel = DestinationRef::at(entry.destination).ok_or(Reason::Internal)?.tunnel();
    let room = IPV4 + tunnel.encapsulation();
    let inner = take(context, settings, &packet)?;
    let by_stack = if scratch.tunnelling == Tunnelling::NoNeighbour {
        Some(Reason::NeighbourByStack)
    } else if u32::from(packet.length) + room as u32 > entry.mtu.into() {
        if inner.dont_fragment {
            return Err(Reason::TooBig);
        }
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
    let Some(reason) = by_stack else {
        let at = forward::write_link(context, &packet, entry, room)?;
        write(context, at, tunnel, inner, entry, hash, payload).ok_or(Reason::Malformed)?;
        return Ok(forward::out(context, entry));
    };
    let at = make_room(context, &packet, room)?;
    // The stack takes a hop off the outer header when it forwards the packet.
    let inner = Inner { time_to_live: inner.time_to_live.saturating_add(1), ..inner };
    write(context, at, tunnel, inner, entry, hash, payload).ok_or(Reason::Malformed)?;
    Err(reason)
}

/// Makes room behind the link header, which stays as it is, for the stack; returns where it begins.
#[inline(always)]
fn make_room(context: &XdpContext, packet: &Packet, room: usize) -> Result<usize, Reason> {
    let link: [u8; LINK] = *Window::of(context).bytes(0).ok_or(Reason::Malformed)?;
    if !move_head(context, -(room as i32)) {
        return Err(Reason::Internal);
    }
    // Where the header is shorter the rest is written over.
    *Window::of(context).bytes_mut(0).ok_or(Reason::Malformed)? = link;
    Ok(packet.network.into())
}
