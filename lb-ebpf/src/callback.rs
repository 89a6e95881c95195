//! Connections that a destination begins: calls to clients of a service with the persistence engine `sip`, and its answers in
//! one-packet scheduling, of which there is no connection.
//!
//! A datagram from address and port of a masquerading destination that no connection has makes one with whom it is for, as
//! if that one had begun it, and its call's template. For a persistent service it does so only with a Call-ID.
//! IPVS counterpart: `ip_vs_new_conn_out`.

use aya_ebpf::programs::{TcContext, XdpContext};
use lb_common::connection::{self as rules, Addresses, CLIENT_SIDE, Entry, INACTIVE};
use lb_common::destination::{AVAILABLE, DestinationId, DestinationKey};
use lb_common::packet::Packet;
use lb_common::protocol::Protocol;
use lb_common::reason::Reason;
use lb_common::service::flags;
use lb_common::settings::Program;
use lb_common::tuple::{Tuple, handle};

use crate::connection::{self, Inserted};
use crate::forward::{self, NoHop, Verdict};
use crate::maps::{self, Counted, DestinationRef, Scratch, ServiceRef, SettingsRef, settings};
use crate::persistence;
use crate::{balance, clock, local_out, open};

/// Whether a packet is one that a destination could begin a connection with, if it comes from one.
#[inline(always)]
pub fn may_begin(settings: SettingsRef, packet: &Packet) -> bool {
    settings.engines() != 0
        && packet.tuple.transport() == Protocol::Udp.number()
        && !packet.is_later_fragment()
}

/// Makes a connection for the datagram in the scratch room if a destination begins it, and sends that on; gives any other back
/// to who balances any packet.
#[inline(always)]
pub fn open<const IPV6: bool>(context: &XdpContext) -> Result<Verdict, Reason> {
    let (settings, scratch) = (maps::settings(), maps::scratch()?);
    let packet = scratch.kept::<IPV6>();
    let now = clock::now(settings);
    // There, as there is no room for them on the stack.
    scratch.server_addresses = balance::addresses::<IPV6>(context, &packet)?;
    // What has no hop left comes no further in the stack than to where it is forwarded, and is no call.
    match caller(&packet, scratch) {
        Caller::Unread => return Ok(Verdict::GoOn(Program::Sip)),
        Caller::Known(id, destination, service) if packet.time_to_live > 1 => {
            prepare::<IPV6>(id, now)?;
            if is_elsewhere(context, &packet)? {
                if begin(settings, id, destination, service, now)? {
                    // Which finds it now, and sends the datagram on as an answer.
                    return Ok(Verdict::GoOn(Program::Slow));
                }
                maps::count_part(settings, id, Counted::Out, &packet);
                let Scratch { server_side: answer, server_addresses, .. } = maps::scratch()?;
                return match forward::resolve(context, settings, &packet, answer, server_addresses, now) {
                    Ok(()) => forward::send(context, &packet, answer, server_addresses),
                    Err(why) => forward::without_hop(context, &packet, answer, server_addresses, why),
                };
            }
        }
        Caller::Known(..) | Caller::Nobody => {}
    }
    maps::scratch()?.is_no_callback = true;
    Ok(Verdict::GoOn(Program::Slow))
}

/// [`open`], for a datagram of the director itself, whose addresses are in the scratch room in the place of the server side's.
#[inline(always)]
pub fn own<const IPV6: bool>(context: &TcContext) -> Result<local_out::Verdict, Reason> {
    let (settings, scratch) = (maps::settings(), maps::scratch()?);
    let packet = scratch.kept::<IPV6>();
    let now = clock::now(settings);
    match caller(&packet, scratch) {
        Caller::Unread => return Ok(local_out::Verdict::GoOn(Program::Sip)),
        Caller::Known(id, destination, service) => {
            prepare::<IPV6>(id, now)?;
            if begin(settings, id, destination, service, now)? {
                return Ok(local_out::Verdict::GoOn(Program::Slow));
            }
            maps::count_part(settings, id, Counted::Out, &packet);
            let scratch = maps::scratch()?;
            // Where it would be if the connection had been found.
            scratch.client_side = scratch.server_side;
            scratch.client_addresses = scratch.server_addresses;
            return local_out::send::<IPV6>(context, &packet);
        }
        Caller::Nobody => {}
    }
    (scratch.caller, scratch.call) = (0, 0);
    Ok(local_out::Verdict::GoOn(Program::Open))
}

/// Who begins a connection.
enum Caller {
    /// Nobody who may.
    Nobody,
    /// A destination, perhaps: the Call-ID has to be read first.
    Unread,
    /// This destination of this service.
    Known(DestinationId, DestinationRef, ServiceRef),
}

/// Who begins a connection with a datagram, whose addresses are in the scratch room in the place of the server side's.
#[inline(always)]
fn caller(packet: &Packet, scratch: &mut Scratch) -> Caller {
    let Some((id, destination, service)) = sender(packet, &scratch.server_addresses) else {
        return Caller::Nobody;
    };
    let is_read = scratch.caller != 0;
    scratch.caller = id.wrapping_add(1);
    if service.flags() & flags::PERSISTENT == 0 || scratch.call != 0 {
        Caller::Known(id, destination, service)
    } else if is_read {
        Caller::Nobody
    } else {
        Caller::Unread
    }
}

/// The destination that a datagram comes from, and its service, if it may begin connections.
#[inline(always)]
fn sender(packet: &Packet, seen: &Addresses) -> Option<(DestinationId, DestinationRef, ServiceRef)> {
    let tuple = packet.tuple;
    let (address, family) = if tuple.is_ipv6() {
        (seen.source, 6)
    } else {
        let [a, b, c, d] = tuple.raw_source().to_ne_bytes();
        ([u64::from_ne_bytes([a, b, c, d, 0, 0, 0, 0]), 0], 4)
    };
    let (port, protocol) = (tuple.raw_source_port(), tuple.transport());
    let id = maps::sender(&DestinationKey { address, port, protocol, family, reserved: 0 })?;
    let destination = DestinationRef::at(id)?;
    let service = ServiceRef::at(destination.service())?;
    let may_begin = destination.status() & AVAILABLE != 0
        && port != 0
        && destination.virtual_port() != 0
        && service.serial() == destination.service_serial()
        && service.has_engine();
    may_begin.then_some((id, destination, service))
}

/// Puts both sides of the connection into the scratch room; 0 if there is no such destination.
#[inline(always)]
fn prepare<const IPV6: bool>(id: DestinationId, now: u32) -> Result<(), Reason> {
    if callback_prepare(id, now, IPV6.into()) == 0 { Err(Reason::Internal) } else { Ok(()) }
}

/// [`prepare`], once for all.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn callback_prepare(id: u32, now: u32, ipv6: u32) -> u32 {
    let settings = settings();
    let (Ok(scratch), Some(destination)) = (maps::scratch(), DestinationRef::at(id)) else { return 0 };
    let packet = if ipv6 == 0 { scratch.kept::<false>() } else { scratch.kept::<true>() };
    let tuple = client_tuple(settings, &packet.tuple, destination);
    // Before the destination is looked at: who deletes it begins an epoch afterwards.
    let epoch = settings.epoch();
    if ipv6 != 0 {
        let seen = &scratch.server_addresses;
        scratch.client_addresses = Addresses {
            source: seen.destination,
            destination: destination.virtual_address(),
            other: seen.source,
            reserved: [0; 2],
        };
    }
    let port = packet.tuple.raw_source_port();
    let its = open::client_side(settings, &tuple, &scratch.client_addresses, id, destination, port, now);
    let next = rules::advance(tuple.protocol, 0, INACTIVE, 0, true, false);
    maps::lay(&mut scratch.client_side, &Entry { state: next.state, flags: next.flags, epoch, ..its });
    lay_answer(scratch, now);
    1
}

/// Whether the datagram goes on to another host, as the director itself nobody calls.
#[inline(always)]
fn is_elsewhere(context: &XdpContext, packet: &Packet) -> Result<bool, Reason> {
    let Scratch { server_side: answer, server_addresses, .. } = maps::scratch()?;
    let interface = context.ingress_ifindex() as u32;
    let way = forward::ask(context.ctx.cast(), interface, packet, answer, server_addresses);
    Ok(matches!(way, Ok(_) | Err(NoHop::Neighbour)))
}

/// Puts the server side of the connection into the scratch room, by the client side that is there.
#[inline(always)]
fn lay_answer(scratch: &mut Scratch, now: u32) {
    maps::lay(&mut scratch.server_side, &open::answer_to(&scratch.client_side, now));
    scratch.server_addresses = scratch.client_addresses.twin(CLIENT_SIDE);
}

/// Makes the connection that was prepared; whether it is in the table, as of one packet only its sides lie in the scratch room.
#[inline(always)]
fn begin(
    settings: SettingsRef,
    id: DestinationId,
    destination: DestinationRef,
    service: ServiceRef,
    now: u32,
) -> Result<bool, Reason> {
    let scratch = maps::scratch()?;
    let tuple = scratch.client_side.tuple();
    let once = service.flags() & flags::ONE_PACKET != 0;
    if service.flags() & flags::PERSISTENT != 0 {
        let (slot, seen) = (destination.service(), &scratch.client_addresses);
        let chosen = persistence::choose_or(slot, &tuple, seen, !once, now, || Some(id))?;
        scratch.client_side.template = chosen.template;
        // The template took its room.
        lay_answer(scratch, now);
    }
    let entry = &mut scratch.client_side;
    if once {
        if entry.template != 0 {
            persistence::persistence_confirm(entry.template);
        }
        connection::join_destination(entry, destination);
        connection::leave_destination(entry);
        maps::count_connection(settings, id);
        scratch.is_once = true;
        return Ok(false);
    }
    // One that the client has with another destination makes way: its packets go where one entry says.
    connection::remove(&tuple);
    let deadline = now.wrapping_add(settings.timeout(entry.state));
    let stored = open::store(settings, entry, deadline, now);
    if stored == Inserted::Stored {
        connection::join_destination(entry, destination);
        maps::count_connection(settings, id);
    } else {
        persistence::release(entry.template);
        if stored == Inserted::Full {
            return Err(Reason::TableFull);
        }
    }
    Ok(true)
}

/// The client's flow that a datagram of a destination is an answer of.
#[inline(always)]
fn client_tuple(settings: SettingsRef, tuple: &Tuple, destination: DestinationRef) -> Tuple {
    let virtual_address = if tuple.is_ipv6() {
        handle(destination.virtual_address(), settings.seed())
    } else {
        let [[a, b, c, d, ..], _] = destination.virtual_address().map(u64::to_ne_bytes);
        u32::from_ne_bytes([a, b, c, d])
    };
    let client = (tuple.raw_destination(), tuple.raw_destination_port());
    Tuple::from_raw(tuple.protocol, client, (virtual_address, destination.virtual_port()))
}
