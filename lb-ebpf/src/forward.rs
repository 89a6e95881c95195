//! Sending a packet on: its next hop, its translation, its link header.

use core::ffi::c_void;

use aya_ebpf::bindings::bpf_fib_lookup as FibLookup;
use aya_ebpf::helpers::generated::{bpf_fib_lookup, bpf_redirect};
use aya_ebpf::programs::XdpContext;
use lb_common::checksum::Delta;
use lb_common::connection::{Addresses, CLIENT_SIDE, Entry, quantum, steady_state};
use lb_common::forward::{
    End, TCP_PART, mend_sctp, replace_sctp_port, take_hop, take_hop_ipv6, translate_network,
    translate_network_ipv6, translate_tcp, translate_udp,
};
use lb_common::packet::{ETHERNET, Family, IPV4, IPV6, Packet, UDP, VLAN_TAG};
use lb_common::protocol::Protocol;
use lb_common::reason::Reason;
use lb_common::settings::{BACK, Program};

use crate::maps::{self, DestinationRef, Link, SettingsRef, Translation, Tunnelling};
use crate::packet::{Window, leave_way, move_head};
use crate::sctp;

/// What becomes of a packet that is forwarded, or not decided yet.
#[derive(Clone, Copy)]
pub enum Verdict {
    /// Out of the interface that it came in on.
    Transmit,
    /// Out of another interface.
    Redirect(u32),
    /// Another program decides.
    GoOn(Program),
}

/// Sends the packet out of an interface; what the kernel wants to be told then.
#[inline(always)]
pub fn redirect(interface: u32) -> u32 {
    // SAFETY: the helper takes two numbers.
    unsafe { bpf_redirect(interface & !BACK, 0) as u32 }
}

/// In the number of an interface: XDP cannot send out of it, the stack can. Linux numbers interfaces from 1 to 2^31 - 1.
const BY_STACK: u32 = 1 << 31;

/// The verdict for a packet that goes back where it came in.
#[inline(always)]
pub fn back(context: &XdpContext) -> Verdict {
    let interface = context.ingress_ifindex() as u32;
    match maps::way_out(interface) {
        Some(way) if way.interface & BACK != 0 => Verdict::Redirect(way.interface),
        Some(_) => Verdict::Transmit,
        None => Verdict::Redirect(interface | BY_STACK),
    }
}

/// Leaves a packet to the stack that is done but cannot be sent from here: [`crate::way_in`] sends it.
#[inline(always)]
pub fn or_by_stack(context: &XdpContext, outcome: Result<Verdict, Reason>) -> Result<Verdict, Reason> {
    match outcome {
        Ok(Verdict::Redirect(interface)) if interface & BY_STACK != 0 => {
            Err(if leave_way(context, interface & !BY_STACK) {
                Reason::SentByStack
            } else {
                Reason::NotRedirected
            })
        }
        other => other,
    }
}

/// Why a next hop could not be found.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum NoHop {
    /// The neighbour is not resolved.
    Neighbour,
    /// The address is the director's own.
    Local,
    /// No way there, for this reason.
    Refused(Reason),
}

/// In the seventh byte of an IPv4 header.
pub const DONT_FRAGMENT: u8 = 0x40;

const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;
const FIB_SUCCESS: i64 = 0;
const FIB_NOT_FORWARDED: i64 = 4;
const FIB_FORWARDING_DISABLED: i64 = 5;
const FIB_NO_NEIGHBOUR: i64 = 7;
const FIB_TOO_BIG: i64 = 8;

/// Looks up where the packets of an entry go and notes it in the entry, good for a second: for the time that its deadline
/// need not move, as nothing else ends its steady state.
#[inline(always)]
pub fn resolve(
    context: &XdpContext,
    settings: SettingsRef,
    packet: &Packet,
    entry: &mut Entry,
    addresses: &Addresses,
    now: u32,
) -> Result<(), NoHop> {
    // As in IPVS, the way to a destination does not depend on who sends packets there.
    let shared =
        entry.role == CLIENT_SIDE && !packet.tuple.is_ipv6() && !entry.is_tunnelled() && !entry.is_bypass();
    if shared && maps::recall_hop(settings, entry, now) {
        return Ok(());
    }
    let fib = ask(context.ctx.cast(), context.ingress_ifindex() as u32, packet, entry, addresses)?;
    (entry.interface, entry.vlan) = match maps::way_out(fib.ifindex) {
        Some(way) => (way.interface, way.tag),
        None => (fib.ifindex | BY_STACK, 0),
    };
    let ([a, b, c, d, e, f], [g, h, i, j, k, l]) = (fib.dmac, fib.smac);
    entry.link = [[a, b, c, d], [e, f, g, h], [i, j, k, l]].map(u32::from_ne_bytes);
    entry.mtu = if entry.is_tunnelled() && fib.family == AF_INET {
        maps::path_mtu(settings, fib, now)
    } else {
        // SAFETY: reading a plain number out of a union of plain numbers.
        unsafe { fib.__bindgen_anon_1.mtu_result }
    };
    if entry.interface & BY_STACK != 0 {
        // Never good for another packet: so the steady state need not know of such ways. A second ago, for all CPUs.
        entry.hop_until = now.wrapping_sub(settings.ticks_per_second());
        return Ok(());
    }
    let timeout = settings.timeout(steady_state(entry.protocol));
    entry.hop_until = now.wrapping_add(quantum(timeout, settings.ticks_per_second()));
    if shared {
        maps::remember_hop(settings, entry);
    }
    Ok(())
}

/// Asks the kernel the way that packets of an entry take which come from an interface. What it says of a neighbour that it does
/// not know is left where [`maps::lookup`] has it.
#[inline(always)]
pub fn ask(
    context: *mut c_void,
    interface: u32,
    packet: &Packet,
    entry: &mut Entry,
    addresses: &Addresses,
) -> Result<&'static mut FibLookup, NoHop> {
    let client_side = entry.role == CLIENT_SIDE;
    let tuple = packet.tuple;
    let fib = maps::lookup().ok_or(NoHop::Refused(Reason::Internal))?;
    fib.l4_protocol = tuple.transport();
    fib.ifindex = interface;
    // Not 0, so that the kernel tells the MTU; not the packet's own, as the answer serves others too.
    fib.__bindgen_anon_1.tot_len = 1;
    let tunnelled = entry.is_tunnelled();
    (fib.sport, fib.dport) = if tunnelled {
        (0, 0)
    } else if client_side {
        (tuple.raw_source_port(), entry.port)
    } else {
        (entry.port, tuple.raw_destination_port())
    };
    // There was no way when the destination was added, if the director has no address towards it.
    let mut is_lost = false;
    if tunnelled {
        let destination = DestinationRef::at(entry.destination).ok_or(NoHop::Refused(Reason::Internal))?;
        fib.l4_protocol = 0;
        if destination.version() == Family::V6 {
            let source = maps::tunnel_source_ipv6(entry.destination);
            is_lost = source == [0; 2];
            fib.family = AF_INET6;
            fib.__bindgen_anon_2.flowinfo = (u32::from(packet.service_type) << 20).to_be();
            fib.__bindgen_anon_3.ipv6_src = words(source);
            fib.__bindgen_anon_4.ipv6_dst = words(destination.address_ipv6());
        } else {
            let source = maps::tunnel_source(entry.destination);
            is_lost = source == 0;
            entry.set_tunnel_source(source);
            fib.family = AF_INET;
            fib.__bindgen_anon_2.tos = packet.service_type;
            fib.__bindgen_anon_3.ipv4_src = source;
            fib.__bindgen_anon_4.ipv4_dst = destination.address();
        }
    } else if tuple.is_ipv6() {
        let (source, destination) = if client_side {
            (addresses.source, addresses.other)
        } else {
            (addresses.other, addresses.destination)
        };
        fib.family = AF_INET6;
        fib.__bindgen_anon_2.flowinfo = (u32::from(packet.service_type) << 20).to_be();
        fib.__bindgen_anon_3.ipv6_src = words(source);
        fib.__bindgen_anon_4.ipv6_dst = words(destination);
    } else {
        let (source, destination) = if client_side {
            (tuple.raw_source(), entry.address)
        } else {
            (entry.address, tuple.raw_destination())
        };
        fib.family = AF_INET;
        fib.__bindgen_anon_2.tos = packet.service_type;
        fib.__bindgen_anon_3.ipv4_src = source;
        fib.__bindgen_anon_4.ipv4_dst = destination;
    }
    let size = size_of::<FibLookup>() as i32;
    // SAFETY: the caller's context and the structure are live, the size is the structure's own.
    match unsafe { bpf_fib_lookup(context, core::ptr::from_mut(fib), size, 0) } {
        FIB_SUCCESS | FIB_NO_NEIGHBOUR if is_lost => return Err(NoHop::Refused(Reason::NoRoute)),
        FIB_SUCCESS => {}
        FIB_NO_NEIGHBOUR => return Err(NoHop::Neighbour),
        FIB_NOT_FORWARDED => return Err(NoHop::Local),
        FIB_FORWARDING_DISABLED => return Err(NoHop::Refused(Reason::ForwardingDisabled)),
        FIB_TOO_BIG => return Err(NoHop::Refused(Reason::TooBig)),
        _ => return Err(NoHop::Refused(Reason::NoRoute)),
    }
    Ok(fib)
}

/// An IPv6 address as the kernel takes it.
#[inline(always)]
fn words(address: [u64; 2]) -> [u32; 4] {
    let [[a, b, c, d, e, f, g, h], [i, j, k, l, m, n, o, p]] = address.map(u64::to_ne_bytes);
    [[a, b, c, d], [e, f, g, h], [i, j, k, l], [m, n, o, p]].map(u32::from_ne_bytes)
}

/// What is done with a packet whose next hop is not known.
#[inline(always)]
pub fn without_hop(
    context: &XdpContext,
    packet: &Packet,
    entry: &Entry,
    addresses: &Addresses,
    why: NoHop,
) -> Result<Verdict, Reason> {
    let by_stack = match why {
        NoHop::Refused(_) if entry.role != CLIENT_SIDE => return Err(Reason::ReplyByStack),
        NoHop::Refused(reason) => return Err(reason),
        NoHop::Neighbour if entry.is_tunnelled() => {
            return go_on_in_tunnel(Tunnelling::NoNeighbour);
        }
        NoHop::Neighbour => Reason::NeighbourByStack,
        NoHop::Local => Reason::LocalDestination,
    };
    if !entry.has_twin() {
        // The stack would deliver the packet to the director itself: right for a local destination only, unless it has an
        // address of its own to go to.
        let stays = why == NoHop::Local || entry.is_bypass();
        return Err(if stays { by_stack } else { Reason::NeighbourUnresolved });
    }
    // The stack takes the translated packet from here: it resolves the neighbour, or delivers it.
    Err(match translate(&mut Window::of(context), packet, entry, addresses) {
        Some(()) => by_stack,
        None => Reason::Malformed,
    })
}

/// The rest is done by `xipvs_tunnel`.
#[inline(always)]
pub fn go_on_in_tunnel(what: Tunnelling) -> Result<Verdict, Reason> {
    maps::scratch()?.tunnelling = what;
    Ok(Verdict::GoOn(Program::Tunnel))
}

/// Sends a packet to its next hop, which the entry knows. Packet and entry are those in the scratch room.
#[inline(always)]
pub fn send(
    context: &XdpContext,
    packet: &Packet,
    entry: &Entry,
    addresses: &Addresses,
) -> Result<Verdict, Reason> {
    if entry.is_tunnelled() {
        return go_on_in_tunnel(Tunnelling::Send);
    }
    if packet.length > entry.mtu {
        return Err(too_big(context, packet, entry, addresses));
    }
    rewrite(context, packet, entry, addresses)
}

/// What becomes of a packet that is too large for its next link.
#[inline(always)]
fn too_big(context: &XdpContext, packet: &Packet, entry: &Entry, addresses: &Addresses) -> Reason {
    let mut window = Window::of(context);
    if packet.tuple.is_ipv6() {
        if entry.role != CLIENT_SIDE {
            return Reason::ReplyByStack;
        }
        let Some(header) = window.bytes_mut(packet.network.into()) else { return Reason::Malformed };
        take_hop_ipv6(header);
        return Reason::TooBig;
    }
    let Some(header) = window.bytes_mut::<IPV4>(packet.network.into()) else { return Reason::Malformed };
    if header[6] & DONT_FRAGMENT != 0 {
        if entry.role != CLIENT_SIDE {
            return Reason::ReplyByStack;
        }
        // The error quotes the packet with the hop taken off, as IPVS's does.
        take_hop(header);
        return Reason::TooBig;
    }
    if entry.is_bypass() {
        return Reason::FragmentedByStack;
    }
    if !entry.has_twin() {
        return Reason::NotFragmented;
    }
    match translate(&mut window, packet, entry, addresses) {
        Some(()) => Reason::FragmentedByStack,
        None => Reason::Malformed,
    }
}

/// Rewrites a packet that its next hop takes.
#[inline(always)]
pub fn rewrite(
    context: &XdpContext,
    packet: &Packet,
    entry: &Entry,
    addresses: &Addresses,
) -> Result<Verdict, Reason> {
    let mut window = Window::of(context);
    if entry.has_twin() {
        translate(&mut window, packet, entry, addresses).ok_or(Reason::Malformed)?;
    }
    hand_over(context, packet, entry)
}

/// Sends a packet that is translated on to its next hop.
#[inline(always)]
pub fn hand_over(context: &XdpContext, packet: &Packet, entry: &Entry) -> Result<Verdict, Reason> {
    let mut window = Window::of(context);
    if packet.tuple.is_ipv6() {
        take_hop_ipv6(window.bytes_mut(packet.network.into()).ok_or(Reason::Malformed)?);
    } else {
        take_hop(window.bytes_mut::<IPV4>(packet.network.into()).ok_or(Reason::Malformed)?);
    }
    let family = if packet.tuple.is_ipv6() { Family::V6 } else { Family::V4 };
    write_link(context, packet, entry, family, 0)?;
    Ok(out(context, entry.interface))
}

/// The verdict for a packet that is as its next hop wants it.
#[inline(always)]
pub fn out(context: &XdpContext, interface: u32) -> Verdict {
    if interface == context.ingress_ifindex() as u32 {
        Verdict::Transmit
    } else {
        Verdict::Redirect(interface)
    }
}

/// Replaces what NAT replaces in a packet of the plainest shape, see [`read_plain`](lb_common::packet::read_plain).
#[inline(always)]
pub fn translate_plain(window: &mut Window, protocol: u8, out: bool, by: Translation) -> Option<()> {
    // Chosen once: each end has code of its own.
    if out {
        translate_end(window, protocol, End::Source, by)
    } else {
        translate_end(window, protocol, End::Destination, by)
    }
}

#[inline(always)]
fn translate_end(window: &mut Window, protocol: u8, end: End, by: Translation) -> Option<()> {
    translate_network(window.bytes_mut(ETHERNET)?, end, by.address.to_ne_bytes(), by.network);
    let port = by.port.to_ne_bytes();
    if protocol == Protocol::Tcp.number() {
        translate_tcp(window.bytes_mut(ETHERNET + IPV4)?, end, port, by.transport);
    } else {
        translate_udp(window.bytes_mut(ETHERNET + IPV4)?, end, port, by.transport);
    }
    Some(())
}

/// Takes a hop off a packet of the plainest shape, and puts it onto a link without tags.
#[inline(always)]
pub fn address_plain(window: &mut Window, link: Link) -> Option<()> {
    take_hop(window.bytes_mut(ETHERNET)?);
    *window.bytes_mut(0)? = link.first.to_ne_bytes();
    *window.bytes_mut(8)? = link.rest.to_ne_bytes();
    Some(())
}

/// Replaces the address and the port that a NAT connection replaces.
#[inline(always)]
fn translate(window: &mut Window, packet: &Packet, entry: &Entry, addresses: &Addresses) -> Option<()> {
    let end = if entry.role == CLIENT_SIDE { End::Destination } else { End::Source };
    if packet.tuple.is_ipv6() {
        translate_network_ipv6(window.bytes_mut::<IPV6>(packet.network.into())?, end, addresses.other);
    } else {
        let header = window.bytes_mut::<IPV4>(packet.network.into())?;
        translate_network(header, end, entry.address.to_ne_bytes(), Delta::unpack(entry.network_delta));
    }
    if !packet.has_ports() {
        return Some(());
    }
    let port = entry.port.to_ne_bytes();
    let delta = Delta::unpack(entry.transport_delta);
    if packet.tuple.transport() == Protocol::Tcp.number() {
        translate_tcp(window.bytes_mut::<TCP_PART>(packet.transport.into())?, end, port, delta);
    } else if packet.tuple.transport() == Protocol::Sctp.number() {
        let at = packet.transport.into();
        let word = replace_sctp_port(window.bytes_mut(at)?, end, port);
        if word != 0 {
            let length = packet.length.wrapping_sub(packet.transport.wrapping_sub(packet.network));
            let change = sctp::sctp_change(word, length.into());
            mend_sctp(window.bytes_mut(at)?, change);
        }
    } else {
        translate_udp(window.bytes_mut::<UDP>(packet.transport.into())?, end, port, delta);
    }
    Some(())
}

/// Writes the link header for the next hop, with as many tags as its link wants, and makes so much room behind it, which is
/// for a header of a family; returns where that begins.
#[inline(always)]
pub fn write_link(
    context: &XdpContext,
    packet: &Packet,
    entry: &Entry,
    family: Family,
    room: usize,
) -> Result<usize, Reason> {
    let tagged = entry.vlan != 0;
    let wanted = if tagged { ETHERNET + VLAN_TAG } else { ETHERNET };
    let there = usize::from(packet.network);
    let change = there as i32 - (wanted + room) as i32;
    if change != 0 && !move_head(context, change) {
        return Err(Reason::Internal);
    }
    let mut window = Window::of(context);
    let header = window.bytes_mut::<ETHERNET>(0).ok_or(Reason::Malformed)?;
    for (place, word) in header.as_chunks_mut::<4>().0.iter_mut().zip(entry.link) {
        *place = word.to_ne_bytes();
    }
    let kind = family.ethertype();
    [header[12], header[13]] = if tagged { [0x81, 0x00] } else { kind };
    if tagged {
        let header = window.bytes_mut::<{ ETHERNET + VLAN_TAG }>(0).ok_or(Reason::Malformed)?;
        header[14..16].copy_from_slice(&entry.vlan.to_ne_bytes());
        header[16..18].copy_from_slice(&kind);
    }
    Ok(wanted)
}
