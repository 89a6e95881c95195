//! The way of a packet, top down: read it, find its connection, send it on. Making connections is `open`'s part.
//!
//! IPVS counterpart: `ip_vs_core.c`.

use aya_ebpf::programs::XdpContext;
use lb_common::connection::{self as rules, CLIENT_SIDE, Entry, SERVER_SIDE, is_past, is_stale};
use lb_common::destination::AVAILABLE;
use lb_common::packet::{self, Packet};
use lb_common::protocol::Protocol;
use lb_common::reason::Reason;
use lb_common::settings::Program;
use lb_common::tuple::Tuple;

use crate::connection::{self, Found};
use crate::forward::{self, Verdict};
use crate::maps::{self, Counted, DestinationRef, SettingsRef};
use crate::packet::Window;
use crate::{clock, service, tunnel};

const SYN: u8 = 0x02;

/// What the programs look at first: the settings and the packet's headers. Most packets in the world are not ours.
#[inline(always)]
pub fn read(context: &XdpContext) -> Result<(SettingsRef, Packet), Reason> {
    let settings = maps::settings()?;
    if settings.services() == 0 {
        return Err(Reason::NotOurs);
    }
    let packet = packet::read(&Window::of(context))?;
    let tuple = packet.tuple;
    if !settings.concerns(tuple.raw_destination()) && !settings.concerns(tuple.raw_source()) {
        return Err(Reason::NotOurs);
    }
    Ok((settings, packet))
}

/// Balances a packet of a flow in its steady state, or says that it is not ours: nearly every packet.
///
/// Leaves any other to [`any`]. Decides nothing that [`any`] would decide otherwise; it has only less to look at.
#[inline(always)]
pub fn steady(context: &XdpContext) -> Result<Verdict, Reason> {
    let (settings, packet) = read(context)?;
    steady_flow(context, settings, &packet).unwrap_or(Ok(Verdict::GoOn(Program::Slow)))
}

#[inline(always)]
fn steady_flow(
    context: &XdpContext,
    settings: SettingsRef,
    packet: &Packet,
) -> Option<Result<Verdict, Reason>> {
    let now = clock::now(settings);
    let found = connection::find_at_home(connection::home(&packet.tuple, settings))?;
    let entry = found.try_read(&packet.tuple)?;
    let out = entry.role == SERVER_SIDE;
    let deadline = found.deadline();
    let timeout = settings.timeout(entry.state);
    if is_past(deadline, now)
        || is_stale(deadline, now, timeout, settings.ticks_per_second())
        || !rules::is_steady(entry.protocol, entry.state, entry.flags, packet.tcp_flags, out)
        || is_past(entry.hop_until, now)
        || packet.time_to_live <= 1
    {
        return None;
    }
    let destination = DestinationRef::at(entry.destination)?;
    let room = if entry.is_tunnelled() { tunnel::room_at_once(destination)? } else { 0 };
    if u32::from(packet.length) + room as u32 > entry.mtu.into() {
        return None;
    }
    // Of a destination that was deleted nothing is counted, and packets of clients are dropped.
    if destination.status() & AVAILABLE == 0 {
        return None;
    }
    let counted = if out { Counted::Out } else { Counted::In };
    maps::count_packet(settings, entry.destination, counted, packet.length);
    Some(if entry.is_tunnelled() {
        tunnel::send_at_once(context, settings, packet, &entry, destination)
    } else {
        forward::rewrite(context, packet, &entry)
    })
}

/// Balances a packet.
#[inline(always)]
pub fn any(context: &XdpContext) -> Result<Verdict, Reason> {
    let (settings, packet) = read(context)?;
    let scratch = maps::scratch()?;
    let packet = scratch.keep(packet);
    let tuple = packet.tuple;
    let now = clock::now(settings);
    let Some(found) = connection::find(&tuple, connection::home(&tuple, settings)) else {
        return unknown(settings, &packet, &mut scratch.client_side, now);
    };
    let entry = &mut scratch.client_side;
    if !found.read_to(entry, &tuple) {
        return unknown(settings, &packet, &mut scratch.client_side, now);
    }
    if is_past(found.deadline(), now) {
        // Dead, though the sweep has not come by.
        connection::remove_dead(&client_side(entry), now);
        return unknown(settings, &packet, &mut scratch.client_side, now);
    }
    let destination = DestinationRef::at(entry.destination).ok_or(Reason::Internal)?;
    let available = destination.status() & AVAILABLE != 0;
    if entry.role == CLIENT_SIDE {
        if is_opening(&packet)
            && entry.template == 0
            && rules::gives_way(entry.state, entry.flags, settings.reuse_mode())
        {
            connection::remove(&tuple);
            return unknown(settings, &packet, &mut scratch.client_side, now);
        }
        if !available {
            return Err(Reason::DestinationDeleted);
        }
        maps::count_packet(settings, entry.destination, Counted::In, packet.length);
    } else if available {
        maps::count_packet(settings, entry.destination, Counted::Out, packet.length);
    }
    known(context, settings, &packet, found, entry, now)
}

/// A packet of a known flow, already counted.
#[inline(always)]
fn known(
    context: &XdpContext,
    settings: SettingsRef,
    packet: &Packet,
    found: Found,
    entry: &mut Entry,
    now: u32,
) -> Result<Verdict, Reason> {
    let out = entry.role == SERVER_SIDE;
    let timeout = settings.timeout(entry.state);
    if !rules::is_steady(entry.protocol, entry.state, entry.flags, packet.tcp_flags, out)
        || is_stale(found.deadline(), now, timeout, settings.ticks_per_second())
    {
        connection::advance(&client_side(entry), packet.tcp_flags, out, now);
    }
    if packet.time_to_live <= 1 {
        return Err(Reason::TimeExceeded);
    }
    if is_past(entry.hop_until, now) {
        if let Err(why) = forward::resolve(context, settings, packet, entry, now) {
            return forward::without_hop(context, packet, entry, why);
        }
        connection::remember_hop(found, entry);
    }
    forward::send(context, packet, entry)
}

/// The client side of an entry's connection.
#[inline(always)]
fn client_side(entry: &Entry) -> Tuple {
    if entry.role == CLIENT_SIDE { entry.tuple() } else { entry.twin() }
}

#[inline(always)]
fn is_opening(packet: &Packet) -> bool {
    packet.tuple.protocol == Protocol::Tcp.number() && packet.tcp_flags & SYN != 0
}

/// A packet whose flow has no entry: an answer of a direct-routing destination, or the first of a connection,
/// or nothing to do with us.
#[inline(always)]
fn unknown(settings: SettingsRef, packet: &Packet, room: &mut Entry, now: u32) -> Result<Verdict, Reason> {
    let tuple = packet.tuple;
    if service::find(settings, &tuple).is_some() {
        return Ok(Verdict::GoOn(Program::Open));
    }
    if settings.concerns(tuple.raw_source()) {
        direct_reply(settings, packet, room, now)?;
        return Err(Reason::NoReplyConnection);
    }
    Err(Reason::NoService)
}

/// An answer that passes the director on its way from a direct-routing destination: counted, and the state
/// machine sees it; the stack forwards it as it is.
#[inline(always)]
fn direct_reply(settings: SettingsRef, packet: &Packet, entry: &mut Entry, now: u32) -> Result<(), Reason> {
    let tuple = packet.tuple.reversed();
    let Some(found) = connection::find(&tuple, connection::home(&tuple, settings)) else { return Ok(()) };
    if !found.read_to(entry, &tuple) {
        return Ok(());
    }
    if entry.role != CLIENT_SIDE || entry.has_twin() || is_past(found.deadline(), now) {
        return Ok(());
    }
    // As in NAT, of a destination that was deleted nothing is counted.
    if DestinationRef::at(entry.destination).is_some_and(|destination| destination.status() & AVAILABLE != 0)
    {
        maps::count_packet(settings, entry.destination, Counted::Out, packet.length);
    }
    if !rules::is_steady(entry.protocol, entry.state, entry.flags, packet.tcp_flags, true)
        || is_stale(found.deadline(), now, settings.timeout(entry.state), settings.ticks_per_second())
    {
        connection::advance(&tuple, packet.tcp_flags, true, now);
    }
    Err(Reason::DirectReply)
}
