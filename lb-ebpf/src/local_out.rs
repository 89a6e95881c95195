//! Packets of the director itself on their way out, which XDP never sees: answers of destinations that are the director, and
//! its own connections to virtual addresses.
//!
//! Runs at the end of the stack's output (`clsact`), for what comes from a socket; what is forwarded came in on an interface,
//! and was balanced there. Checksums of such packets are mostly still to be computed, which the kernel's helpers know.
//!
//! IPVS counterpart: its hooks in `LOCAL_OUT`.

use aya_ebpf::EbpfContext;
use aya_ebpf::bindings::{
    BPF_F_INGRESS, BPF_F_MARK_MANGLED_0, BPF_F_PSEUDO_HDR, TC_ACT_SHOT, TC_ACT_STOLEN, TC_ACT_UNSPEC,
    bpf_redir_neigh as Neighbour, bpf_redir_neigh__bindgen_ty_1 as NeighbourAddress,
};
use aya_ebpf::helpers::generated::{bpf_redirect, bpf_redirect_neigh};
use aya_ebpf::programs::TcContext;
use lb_common::connection::{self as rules, Addresses, Entry, SERVER_SIDE, is_past, is_stale};
use lb_common::destination::AVAILABLE;
use lb_common::forward::End;
use lb_common::packet::{self, Family, Packet, UDP};
use lb_common::protocol::Protocol;
use lb_common::reason::{Fate, Reason};
use lb_common::settings::Program;

use crate::forward::{self, DONT_FRAGMENT, NoHop};
use crate::machine::opaque;
use crate::maps::{self, Counted, DestinationRef, Scratch, SettingsRef};
use crate::packet::{OutWindow, copy_own, is_own, is_piece, leaves_by, read, segment, set_handled};
use crate::{balance, clock, connection, fragment, open, sip};

/// What the classifiers behind this one, and then the interface, get to see of a packet.
#[derive(Clone, Copy)]
pub enum Verdict {
    /// The packet, on the way that it was on.
    GoOut,
    /// Nothing: it goes out of this interface, to the neighbour that [`maps::lookup`] has.
    Redirect(u32),
    /// Nothing: it comes in, as if from outside.
    ComeIn,
    /// Another program decides.
    GoOn(Program),
    /// Nothing: what it was is sent already.
    Gone,
}

/// Lets those behind decide: not the same as `TC_ACT_OK`.
const ON: i32 = TC_ACT_UNSPEC;

/// `lo`, in every namespace.
pub const LOOPBACK: u32 = 1;

/// Does with a packet what was decided.
///
/// Reasons to leave a packet alone are not counted, as nearly all that a machine sends has one; but for that of its own.
#[inline(always)]
pub fn act<const IPV6: bool>(context: &TcContext, outcome: Result<Verdict, Reason>) -> i32 {
    let reason = match outcome {
        Ok(Verdict::GoOn(program)) => {
            maps::own_goes_on(context, if IPV6 { program.for_ipv6() } else { program });
            // Still here, so that the program is not where it must be.
            Reason::Internal
        }
        Ok(verdict) => {
            set_handled(context);
            return match verdict {
                Verdict::Redirect(interface) => redirect(interface),
                Verdict::ComeIn => come_in(context),
                Verdict::Gone => TC_ACT_STOLEN,
                Verdict::GoOut | Verdict::GoOn(_) => ON,
            };
        }
        Err(reason) => reason,
    };
    let is_dropped = reason.fate() == Fate::Drop;
    if is_dropped || reason == Reason::OwnLeftAlone {
        maps::count(reason);
    }
    if is_dropped { TC_ACT_SHOT } else { ON }
}

/// Sends a packet out of an interface to the neighbour that the last route lookup led to.
#[inline(always)]
fn redirect(interface: u32) -> i32 {
    let Some(way) = maps::lookup() else { return TC_ACT_SHOT };
    // SAFETY: reading plain numbers out of a union of plain numbers; the helper reads a structure of this size.
    unsafe {
        let address = NeighbourAddress { ipv6_nh: way.__bindgen_anon_4.ipv6_dst };
        let mut neighbour = Neighbour { nh_family: way.family.into(), __bindgen_anon_1: address };
        bpf_redirect_neigh(interface, &raw mut neighbour, size_of::<Neighbour>() as i32, 0) as i32
    }
}

/// Has a packet come in by `lo`, which takes what is for no link address.
#[inline(always)]
fn come_in(context: &TcContext) -> i32 {
    // Hidden, or the compiler would put it into a map of constants.
    if context.store(0, &opaque(0), 0).is_err() {
        return TC_ACT_SHOT;
    }
    // SAFETY: the helper takes two numbers.
    unsafe { bpf_redirect(LOOPBACK, BPF_F_INGRESS.into()) as i32 }
}

/// Looks at a packet of the director itself: an answer of a destination that it is, or a packet for a virtual address.
#[inline(always)]
pub fn see<const IPV6: bool>(context: &TcContext) -> Result<Verdict, Reason> {
    let settings = balance::serving()?;
    if !is_own(context) {
        return Err(Reason::NotOurs);
    }
    let frame = &OutWindow::of(context);
    let (family, network) = packet::network(frame)?;
    if (family == Family::V6) != IPV6 {
        return Err(Reason::NotOurs);
    }
    if is_piece(context) {
        return Ok(Verdict::GoOn(Program::Tunnel));
    }
    let packet = match balance::headers_of::<IPV6>(frame, settings, network) {
        Err(Reason::Fragment) => return Ok(Verdict::GoOn(Program::Fragment)),
        packet => packet?,
    };
    let packet = maps::scratch()?.keep::<IPV6>(packet);
    go_on::<IPV6>(context, settings, &packet)
}

/// [`see`], of a fragment: with the ports of its datagram, if its first one has left by here.
#[inline(always)]
pub fn see_fragment<const IPV6: bool>(context: &TcContext) -> Result<Verdict, Reason> {
    let settings = maps::settings();
    let frame = &OutWindow::of(context);
    let (_, network) = packet::network(frame)?;
    let packet = fragment::keep::<IPV6>(frame, settings, network)?;
    if !packet.has_ports() && !packet.is_later_fragment() {
        // Of IPsec.
        return Err(Reason::OtherProtocol);
    }
    go_on::<IPV6>(context, settings, &packet)
}

/// Finds the flow of the packet in the scratch room; what has none may begin one.
#[inline(always)]
fn go_on<const IPV6: bool>(
    context: &TcContext,
    settings: SettingsRef,
    packet: &Packet,
) -> Result<Verdict, Reason> {
    let scratch = maps::scratch()?;
    // There until it is known whose they are: there is no room for them on the stack.
    scratch.server_addresses = balance::addresses_of::<IPV6>(&OutWindow::of(context), packet)?;
    let now = clock::now(settings);
    if let Some(deadline) = connection::look::<IPV6>(false) {
        let scratch = maps::scratch()?;
        let (its, seen) = (&scratch.client_addresses, &scratch.server_addresses);
        if is_past(deadline, now) {
            connection::remove_dead(&balance::client_side(&scratch.client_side), now);
        } else if IPV6 && (its.source != seen.source || its.destination != seen.destination) {
            return Err(Reason::LooksAlike);
        } else if known(settings, packet, deadline, &scratch.client_side, now)? {
            return send::<IPV6>(context, packet);
        }
    } else if let Some(deadline) = connection::look::<IPV6>(true) {
        let scratch = maps::scratch()?;
        if balance::answers::<IPV6>(settings, packet, &scratch.server_addresses, scratch, deadline, now) {
            return Ok(Verdict::GoOut);
        }
    }
    let scratch = maps::scratch()?;
    scratch.client_addresses = scratch.server_addresses;
    let tuple = packet.tuple;
    let may_begin = settings.engines() != 0
        && tuple.transport() == Protocol::Udp.number()
        && !packet.is_later_fragment()
        && settings.concerns(tuple.raw_source());
    Ok(Verdict::GoOn(if may_begin { Program::Callback } else { Program::Open }))
}

/// Makes a connection for a packet of the director itself, if a service takes it, and sends the packet on. It is in the scratch
/// room, where [`see`] has left it and its addresses.
#[inline(always)]
pub fn open<const IPV6: bool>(context: &TcContext) -> Result<Verdict, Reason> {
    let (settings, scratch) = (maps::settings(), maps::scratch()?);
    let packet = scratch.kept::<IPV6>();
    if !open::own::<IPV6>(settings, &packet, clock::now(settings))? {
        return Ok(Verdict::GoOn(Program::Sip));
    }
    send::<IPV6>(context, &packet)
}

/// Reads the Call-ID of a packet of the director itself: as of others, [`sip::read`].
#[inline(always)]
pub fn read_call<const IPV6: bool>(context: &TcContext) -> Result<Verdict, Reason> {
    sip::read_by::<IPV6>(|place, buffer| copy_own(context, place, buffer)).map(Verdict::GoOn)
}

/// Counts a packet of a known flow and lets the state table see it, unless it ends its connection: then it may begin another.
#[inline(always)]
fn known(
    settings: SettingsRef,
    packet: &Packet,
    deadline: u32,
    entry: &Entry,
    now: u32,
) -> Result<bool, Reason> {
    let out = entry.role == SERVER_SIDE;
    let destination = DestinationRef::at(entry.destination).ok_or(Reason::Internal)?;
    let available = destination.status() & AVAILABLE != 0;
    if !out {
        if balance::ends(settings, packet, entry, destination) {
            connection::remove(&packet.tuple);
            return Ok(false);
        }
        if !available {
            return Err(Reason::DestinationDeleted);
        }
    }
    if available {
        let counted = if out { Counted::Out } else { Counted::In };
        maps::count_part(settings, entry.destination, counted, packet);
    }
    let moves = !rules::is_steady(entry.protocol, entry.state, entry.flags, packet.tcp_flags, out)
        || is_stale(deadline, now, settings.timeout(entry.state), settings.ticks_per_second());
    // The datagram has moved what it moves by its first fragment.
    if moves && !packet.is_later_fragment() {
        connection::advance(&balance::client_side(entry), packet.tcp_flags, out, now);
    }
    Ok(true)
}

/// Sends a packet on whose flow's entry is in the scratch room: an answer where it goes anyway, others to their destination.
#[inline(always)]
pub fn send<const IPV6: bool>(context: &TcContext, packet: &Packet) -> Result<Verdict, Reason> {
    let Scratch { client_side: entry, client_addresses: addresses, .. } = maps::scratch()?;
    if entry.role == SERVER_SIDE {
        translate::<IPV6>(context, packet, entry, addresses, End::Source)?;
        return Ok(Verdict::GoOut);
    }
    if entry.is_tunnelled() {
        return Ok(Verdict::GoOn(Program::Tunnel));
    }
    let interface = leaves_by(context);
    let mut is_too_large = false;
    let way = match forward::ask(context.as_ptr(), interface, packet, entry, addresses) {
        Ok(way) => {
            // SAFETY: reading a plain number out of a union of plain numbers.
            entry.mtu = unsafe { way.__bindgen_anon_1.mtu_result };
            is_too_large = exceeds(context, packet, entry.mtu);
            Some(way)
        }
        // The kernel resolves it; only the largest packet that it takes is not known.
        Err(NoHop::Neighbour) => maps::lookup(),
        Err(NoHop::Local) => None,
        Err(NoHop::Refused(reason)) => return Err(reason),
    };
    // What stays here makes no hop.
    if way.is_some() && packet.time_to_live <= 1 {
        return Err(Reason::TimeExceeded);
    }
    if is_too_large && is_whole::<IPV6>(context, packet) {
        // The error quotes the packet with the hop taken off, as IPVS's does.
        take_hop::<IPV6>(context, packet)?;
        return Err(Reason::TooBig);
    }
    if entry.has_twin() {
        translate::<IPV6>(context, packet, entry, addresses, End::Destination)?;
    } else if is_too_large {
        return Err(Reason::NotFragmented);
    }
    if is_too_large {
        // The stack cuts what it forwards.
        return Ok(Verdict::ComeIn);
    }
    let Some(way) = way else {
        // Already on its way to the director itself, or to be turned back.
        return Ok(if interface == LOOPBACK { Verdict::GoOut } else { Verdict::ComeIn });
    };
    take_hop::<IPV6>(context, packet)?;
    Ok(Verdict::Redirect(way.ifindex))
}

/// Whether a packet is larger than its way takes, or those are that it is still.
#[inline(always)]
pub fn exceeds(context: &TcContext, packet: &Packet, mtu: u16) -> bool {
    let payload = segment(context);
    if payload == 0 {
        return packet.length > mtu;
    }
    let protocol = packet.tuple.transport();
    let header = if protocol == Protocol::Tcp.number() {
        let mut offset = [0; 2];
        if !read(context, usize::from(packet.transport) + 12, &mut offset) {
            return false;
        }
        u32::from(offset[0] >> 4) * 4
    } else if protocol == Protocol::Udp.number() {
        UDP as u32
    } else {
        // Those of SCTP are packets of their own, each as large as it is.
        return false;
    };
    u32::from(packet.transport.wrapping_sub(packet.network)) + header + payload > mtu.into()
}

/// Whether nobody may cut a packet on its way.
#[inline(always)]
pub fn is_whole<const IPV6: bool>(context: &TcContext, packet: &Packet) -> bool {
    let mut flags = [0; 2];
    IPV6 || read(context, usize::from(packet.network) + 6, &mut flags) && flags[0] & DONT_FRAGMENT != 0
}

/// Takes a hop off a packet, as IPVS does of the director's own too.
#[inline(always)]
pub fn take_hop<const IPV6: bool>(context: &TcContext, packet: &Packet) -> Result<(), Reason> {
    let (network, hops) = (usize::from(packet.network), packet.time_to_live);
    let at = network + if IPV6 { 7 } else { 8 };
    if !IPV6 {
        let word = |hops| u16::from_ne_bytes([hops, packet.tuple.transport()]);
        let (old, new) = (word(hops), word(hops.wrapping_sub(1)));
        context.l3_csum_replace(network + 10, old.into(), new.into(), 2).map_err(|_| Reason::Malformed)?;
    }
    context.store(at, &hops.wrapping_sub(1), 0).map_err(|_| Reason::Malformed)
}

/// Replaces the address and the port that a NAT connection replaces.
///
/// By the kernel's helpers: they know whether a checksum is there, or only the part of it that network cards want to find.
#[inline(always)]
fn translate<const IPV6: bool>(
    context: &TcContext,
    packet: &Packet,
    entry: &Entry,
    addresses: &Addresses,
    end: End,
) -> Result<(), Reason> {
    let (network, transport) = (usize::from(packet.network), usize::from(packet.transport));
    let is_source = end == End::Source;
    let (from, port_at) = if is_source {
        (packet.tuple.raw_source_port(), transport)
    } else {
        (packet.tuple.raw_destination_port(), transport + 2)
    };
    // Where the checksum is, and how it is written.
    let checksum = match packet.tuple.transport() {
        _ if packet.is_later_fragment() => None,
        number if number == Protocol::Tcp.number() => Some((transport + 16, 0)),
        number if number == Protocol::Udp.number() => Some((transport + 6, u64::from(BPF_F_MARK_MANGLED_0))),
        // SCTP's does not cover addresses; what a new port makes of it depends on whether it is there, and nobody tells.
        _ if from != entry.port => return Err(Reason::OwnLeftAlone),
        _ => None,
    };
    let fails = |_| Reason::Malformed;
    let mend = |from: u32, to: u32, size: u64, pseudo: u64| match checksum {
        Some((at, flags)) => {
            context.l4_csum_replace(at, from.into(), to.into(), flags | pseudo | size).map_err(fails)
        }
        None => Ok(()),
    };
    if IPV6 {
        let old = if is_source { addresses.source } else { addresses.destination };
        let at = network + if is_source { 8 } else { 24 };
        for (old, new) in old.into_iter().zip(addresses.other) {
            mend(old as u32, new as u32, 4, BPF_F_PSEUDO_HDR.into())?;
            mend((old >> 32) as u32, (new >> 32) as u32, 4, BPF_F_PSEUDO_HDR.into())?;
        }
        context.store(at, &addresses.other, 0).map_err(fails)?;
    } else {
        let old = if is_source { packet.tuple.raw_source() } else { packet.tuple.raw_destination() };
        let at = network + if is_source { 12 } else { 16 };
        context.l3_csum_replace(network + 10, old.into(), entry.address.into(), 4).map_err(fails)?;
        mend(old, entry.address, 4, BPF_F_PSEUDO_HDR.into())?;
        context.store(at, &entry.address, 0).map_err(fails)?;
    }
    if from != entry.port && !packet.is_later_fragment() {
        mend(from.into(), entry.port.into(), 2, 0)?;
        context.store(port_at, &entry.port, 0).map_err(fails)?;
    }
    Ok(())
}
