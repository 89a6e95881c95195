//! Packets of the director itself on their way out, which XDP never sees: answers of destinations that are the director, and
//! its own connections to virtual addresses.
//!
//! Runs at the end of the stack's output (`clsact`), for what comes from a socket; what is forwarded came in on an interface,
//! and was balanced there. Checksums of such packets are mostly still to be computed, which the kernel's helpers know.
//!
//! IPVS counterpart: its hooks in `LOCAL_OUT`.

mod icmp;
mod piece;
mod send;
mod tell;
mod tunnel;

use aya_ebpf::bindings::{
    BPF_F_INGRESS, TC_ACT_SHOT, TC_ACT_STOLEN, TC_ACT_UNSPEC, bpf_redir_neigh as Neighbour,
    bpf_redir_neigh__bindgen_ty_1 as NeighbourAddress,
};
use aya_ebpf::helpers::generated::{bpf_redirect, bpf_redirect_neigh};
use aya_ebpf::programs::TcContext;
use lb_common::connection::{self as rules, Entry, SERVER_SIDE, is_past, is_stale};
use lb_common::destination::AVAILABLE;
use lb_common::packet::{self, Family, Packet};
use lb_common::reason::{Fate, Reason};
use lb_common::settings::Program;

pub use self::icmp::relay;
pub use self::send::send;
pub use self::tell::{or_tell, tell};
pub use self::tunnel::send as send_in_tunnel;
use crate::machine::opaque;
use crate::maps::{self, Counted, DestinationRef, SettingsRef};
use crate::packet::{OutWindow, copy_own, is_own, is_piece, set_handled};
use crate::{balance, callback, clock, connection, fragment, open, sip};

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
const LOOPBACK: u32 = 1;

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
        Err(Reason::Icmp) => return Ok(Verdict::GoOn(Program::Icmp)),
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
    let may_begin = settings.concerns(packet.tuple.raw_source()) && callback::may_begin(settings, packet);
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
