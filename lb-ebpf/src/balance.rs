//! The way of a packet, top down: read it, find its connection, send it on. Nearly all packets go a shorter one, see `steady`;
//! making connections is `open`'s part.
//!
//! IPVS counterpart: `ip_vs_core.c`.

use aya_ebpf::programs::XdpContext;
use lb_common::connection::{self as rules, Addresses, CLIENT_SIDE, Entry, SERVER_SIDE, is_past, is_stale};
use lb_common::destination::AVAILABLE;
use lb_common::icmp;
use lb_common::packet::{self, Family, Frame, Packet};
use lb_common::protocol::sctp::Event;
use lb_common::protocol::{Protocol, tcp};
use lb_common::reason::Reason;
use lb_common::settings::Program;
use lb_common::sysctl::Sysctl;
use lb_common::tuple::Tuple;

use crate::connection::{self, Found};
use crate::forward::{self, Verdict};
use crate::maps::{self, Counted, DestinationRef, Scratch, SettingsRef};
use crate::packet::Window;
use crate::{callback, clock, service};

/// What the programs look at first. Most packets in the world are not ours.
#[inline(always)]
pub fn serving() -> Result<SettingsRef, Reason> {
    let settings = maps::settings();
    if settings.services() == 0 { Err(Reason::NotOurs) } else { Ok(settings) }
}

/// The settings, and where the packet's network header begins.
#[inline(always)]
pub fn begin(context: &XdpContext) -> Result<(SettingsRef, Family, usize), Reason> {
    let settings = serving()?;
    let (family, network) = packet::network(&Window::of(context))?;
    Ok((settings, family, network))
}

/// The settings and the packet's headers.
#[inline(always)]
pub fn read<const IPV6: bool>(context: &XdpContext) -> Result<(SettingsRef, Packet), Reason> {
    let (settings, _, network) = begin(context)?;
    Ok((settings, headers::<IPV6>(context, settings, network)?))
}

/// As [`read`], into the scratch room; of what has no ports what `xipvs_fragment` has put there, and of an ICMP error what
/// `xipvs_icmp` has.
#[inline(always)]
pub fn keep<const IPV6: bool>(
    context: &XdpContext,
) -> Result<(SettingsRef, Packet, &'static mut Scratch), Reason> {
    let (settings, _, network) = begin(context)?;
    let packet = headers::<IPV6>(context, settings, network);
    let scratch = maps::scratch()?;
    let packet = match packet {
        Ok(packet) => scratch.keep::<IPV6>(packet),
        Err(Reason::Fragment | Reason::OtherProtocol | Reason::Icmp) => scratch.kept::<IPV6>(),
        Err(reason) => return Err(reason),
    };
    Ok((settings, packet, scratch))
}

/// The packet's headers from the network header on.
#[inline(always)]
pub fn headers<const IPV6: bool>(
    context: &XdpContext,
    settings: SettingsRef,
    network: usize,
) -> Result<Packet, Reason> {
    headers_of::<IPV6>(&Window::of(context), settings, network)
}

/// [`headers`], of any frame.
#[inline(always)]
pub fn headers_of<const IPV6: bool>(
    frame: &impl Frame,
    settings: SettingsRef,
    network: usize,
) -> Result<Packet, Reason> {
    let packet = if IPV6 {
        packet::read_ipv6(frame, network, settings.seed())?
    } else {
        packet::read_ipv4(frame, network)?
    };
    if concerns(settings, &packet.tuple) { Ok(packet) } else { Err(Reason::NotOurs) }
}

/// Whether a flow may be ours.
#[inline(always)]
pub fn concerns(settings: SettingsRef, tuple: &Tuple) -> bool {
    settings.concerns(tuple.raw_destination()) || settings.concerns(tuple.raw_source())
}

/// The addresses of a packet of IPv6; of IPv4 none, which the tuple has.
#[inline(always)]
pub fn addresses<const IPV6: bool>(context: &XdpContext, packet: &Packet) -> Result<Addresses, Reason> {
    addresses_of::<IPV6>(&Window::of(context), packet)
}

/// [`addresses`], of any frame.
#[inline(always)]
pub fn addresses_of<const IPV6: bool>(frame: &impl Frame, packet: &Packet) -> Result<Addresses, Reason> {
    if !IPV6 {
        return Ok(Addresses::default());
    }
    let addresses = packet::ipv6_addresses(frame, packet.network.into());
    let (source, destination) = addresses.ok_or(Reason::Malformed)?;
    Ok(Addresses { source, destination, ..Addresses::default() })
}

/// Balances a packet.
#[inline(always)]
pub fn any<const IPV6: bool>(context: &XdpContext) -> Result<Verdict, Reason> {
    let (settings, packet, scratch) = keep::<IPV6>(context)?;
    let tuple = packet.tuple;
    let now = clock::now(settings);
    let Some(found) = connection::find(&tuple, connection::home(&tuple, settings)) else {
        return unknown::<IPV6>(context, settings, &packet, scratch, now);
    };
    let Some(deadline) = read_to::<IPV6>(found, scratch, &tuple) else {
        return unknown::<IPV6>(context, settings, &packet, scratch, now);
    };
    if is_past(deadline, now) {
        // Dead, though the sweep has not come by.
        connection::remove_dead(&client_side(&scratch.client_side), now);
        return unknown::<IPV6>(context, settings, &packet, scratch, now);
    }
    if IPV6 {
        let seen = addresses::<IPV6>(context, &packet)?;
        let known = &scratch.client_addresses;
        if known.source != seen.source || known.destination != seen.destination {
            return Err(Reason::LooksAlike);
        }
    }
    let entry = &mut scratch.client_side;
    // Before the destination is looked at: who deletes it begins an epoch afterwards.
    let epoch = settings.epoch();
    let good = !is_past(entry.hop_until, now) && entry.epoch == epoch;
    let destination = DestinationRef::at(entry.destination).ok_or(Reason::Internal)?;
    let available = destination.status() & AVAILABLE != 0;
    // Nothing is counted of a destination that is deleted, so that its connections are in no steady state.
    entry.epoch = if available { epoch } else { epoch.wrapping_sub(1) };
    if entry.role == CLIENT_SIDE {
        if ends(settings, &packet, entry, destination) {
            connection::replace(&tuple);
            let outcome = unknown::<IPV6>(context, settings, &packet, scratch, now);
            if !matches!(outcome, Ok(Verdict::GoOn(Program::Open))) {
                connection::leave_late();
            }
            return outcome;
        }
        if !available {
            return Err(Reason::DestinationDeleted);
        }
        maps::count_part(settings, entry.destination, Counted::In, &packet);
    } else if available {
        maps::count_part(settings, entry.destination, Counted::Out, &packet);
    }
    let moves = is_stale(deadline, now, settings.timeout(entry.state), settings.ticks_per_second());
    known(context, settings, &packet, found, (good, moves), scratch, now)
}

/// Whether a packet of a client ends the connection that it belongs to, and may begin another.
#[inline(always)]
pub fn ends(settings: SettingsRef, packet: &Packet, entry: &Entry, destination: DestinationRef) -> bool {
    let opens = is_opening(packet);
    opens
        && entry.template == 0
        && rules::gives_way(entry.state, entry.flags, settings.sysctl(Sysctl::ConnReuseMode))
        || settings.sysctl(Sysctl::ExpireNodestConn) != 0
            && (destination.status() & AVAILABLE == 0 || opens && destination.weight() == 0)
}

/// Copies what was found to the scratch room; its deadline, if it is still that of `tuple`.
#[inline(always)]
pub fn read_to<const IPV6: bool>(found: Found, scratch: &mut Scratch, tuple: &Tuple) -> Option<u32> {
    if IPV6 {
        found.read_ipv6_to(&mut scratch.client_side, &mut scratch.client_addresses, tuple)
    } else {
        found.read_to(&mut scratch.client_side, tuple)
    }
}

/// A packet of a known flow, already counted; whether its entry is `good`, and whether the packet `moves` the deadline.
#[inline(always)]
fn known(
    context: &XdpContext,
    settings: SettingsRef,
    packet: &Packet,
    found: Found,
    (good, moves): (bool, bool),
    scratch: &mut Scratch,
    now: u32,
) -> Result<Verdict, Reason> {
    let Scratch { client_side: entry, client_addresses: addresses, .. } = scratch;
    let out = entry.role == SERVER_SIDE;
    // With the next hop the deadline is renewed, which `steady` does not look at.
    let moves =
        !good || moves || !rules::is_steady(entry.protocol, entry.state, entry.flags, packet.tcp_flags, out);
    // The datagram has moved what it moves by its first fragment.
    if moves && !packet.is_later_fragment() {
        connection::advance(&client_side(entry), packet.tcp_flags, out, now);
    }
    if packet.time_to_live <= 1 {
        return Err(if out { Reason::ReplyByStack } else { Reason::TimeExceeded });
    }
    if !good {
        if let Err(why) = forward::resolve(context, settings, packet, entry, addresses, now) {
            return forward::without_hop(context, packet, entry, addresses, why);
        }
        if !packet.is_later_fragment() {
            connection::remember_hop(found, entry);
        }
    }
    forward::send(context, packet, entry, addresses)
}

/// The client side of an entry's connection.
#[inline(always)]
pub fn client_side(entry: &Entry) -> Tuple {
    if entry.role == CLIENT_SIDE { entry.tuple() } else { entry.twin() }
}

#[inline(always)]
fn is_opening(packet: &Packet) -> bool {
    let transport = packet.tuple.transport();
    (transport == Protocol::Tcp.number() && packet.tcp_flags & tcp::SYN != 0)
        || (transport == Protocol::Sctp.number() && packet.tcp_flags == Event::Init as u8)
}

/// A packet whose flow has no entry: an answer of a direct-routing destination, or the first of a connection,
/// or nothing to do with us.
#[inline(always)]
fn unknown<const IPV6: bool>(
    context: &XdpContext,
    settings: SettingsRef,
    packet: &Packet,
    scratch: &mut Scratch,
    now: u32,
) -> Result<Verdict, Reason> {
    let tuple = packet.tuple;
    let may_answer = settings.concerns(tuple.raw_source());
    if may_answer
        && callback::may_begin(settings, packet)
        && !core::mem::take(&mut scratch.is_no_callback)
        && !scratch.follows
    {
        return Ok(Verdict::GoOn(Program::Callback));
    }
    let addresses = addresses::<IPV6>(context, packet)?;
    // An answer may go where a service is, too: as of a client that has a virtual address itself.
    if may_answer {
        direct_reply::<IPV6>(settings, packet, &addresses, scratch, now)?;
    }
    if IPV6 {
        // Where the rules that mark packets look for them.
        scratch.client_addresses = addresses;
    }
    let follows = scratch.follows;
    if !follows && service::find(settings, &tuple, &addresses, context.ingress_ifindex() as u32).is_some() {
        if packet.is_later_fragment() {
            return Err(Reason::FragmentRefused);
        }
        return Ok(Verdict::GoOn(Program::Open));
    }
    if may_answer && !follows {
        if settings.sysctl(Sysctl::NatIcmpSend) != 0
            && icmp::may_be_refused(tuple.transport(), packet.tcp_flags)
        {
            scratch.why = Reason::ReplyRefused;
            return Ok(Verdict::GoOn(Program::Tell));
        }
        return Err(Reason::NoReplyConnection);
    }
    Err(if follows { Reason::OtherProtocol } else { Reason::NoService })
}

/// An answer that passes the director on its way from a direct-routing destination: the stack forwards it as it is.
#[inline(always)]
fn direct_reply<const IPV6: bool>(
    settings: SettingsRef,
    packet: &Packet,
    addresses: &Addresses,
    scratch: &mut Scratch,
    now: u32,
) -> Result<(), Reason> {
    let tuple = packet.tuple.reversed();
    let Some(found) = connection::find(&tuple, connection::home(&tuple, settings)) else { return Ok(()) };
    let Some(deadline) = read_to::<IPV6>(found, scratch, &tuple) else { return Ok(()) };
    if answers::<IPV6>(settings, packet, addresses, scratch, deadline, now) {
        return Err(Reason::DirectReply);
    }
    Ok(())
}

/// Whether a packet answers the client side in the scratch room, of a destination that does it with the virtual address: then
/// it is counted, and the state machine sees it.
#[inline(always)]
pub fn answers<const IPV6: bool>(
    settings: SettingsRef,
    packet: &Packet,
    addresses: &Addresses,
    scratch: &Scratch,
    deadline: u32,
    now: u32,
) -> bool {
    if IPV6 {
        let known = &scratch.client_addresses;
        if known.source != addresses.destination || known.destination != addresses.source {
            return false;
        }
    }
    let entry = &scratch.client_side;
    if entry.role != CLIENT_SIDE || entry.has_twin() || is_past(deadline, now) {
        return false;
    }
    // As in NAT, of a destination that was deleted nothing is counted.
    if DestinationRef::at(entry.destination).is_some_and(|destination| destination.status() & AVAILABLE != 0)
    {
        maps::count_part(settings, entry.destination, Counted::Out, packet);
    }
    let moves = !rules::is_steady(entry.protocol, entry.state, entry.flags, packet.tcp_flags, true)
        || is_stale(deadline, now, settings.timeout(entry.state), settings.ticks_per_second());
    if moves && !packet.is_later_fragment() {
        connection::advance(&packet.tuple.reversed(), packet.tcp_flags, true, now);
    }
    true
}
