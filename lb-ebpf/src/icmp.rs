//! ICMP: errors about connections are sent on to whom they concern, and clients are told why a packet goes no further.
//!
//! An error never changes a connection, nor how long it lives. IPVS counterpart: `ip_vs_in_icmp`, `ip_vs_out_icmp`; what
//! the stack does for IPVS with `icmp_send`.

use aya_ebpf::helpers::generated::bpf_get_prandom_u32;
use aya_ebpf::programs::XdpContext;
use lb_common::connection::{Addresses, CLIENT_SIDE, Entry, is_past};
use lb_common::forward::End;
use lb_common::icmp::{self as rules, ERROR, Message, Received};
use lb_common::packet::{Frame, Packet};
use lb_common::reason::Reason;

use crate::forward::{self, NoHop, Verdict};
use crate::maps::{self, Counted, SettingsRef, Tunnelling};
use crate::packet::{Window, cut, move_head};
use crate::tunnel::LINK;
use crate::{clock, connection, sum, tunnel};

/// Tells the sender of the packet in the scratch room why it goes no further. The error goes back the way that the
/// packet came.
#[inline(always)]
pub fn tell(context: &XdpContext) -> Result<Verdict, Reason> {
    let settings = maps::settings()?;
    let scratch = maps::scratch()?;
    let packet = scratch.kept::<false>();
    let reason = scratch.why;
    let (kind, code) = rules::error_for(reason).ok_or(reason)?;
    let mtu = if reason == Reason::TooBig { next_mtu(&scratch.client_side) } else { 0 };
    let tuple = packet.tuple;
    let source = tuple.raw_source().to_ne_bytes();
    if !rules::may_be_told(source)
        || !scratch.limit.take(clock::now(settings), settings.icmp_rate(), settings.ticks_per_second())
    {
        return Err(reason);
    }
    let quoted = rules::quoted(packet.length);
    let network = usize::from(packet.network);
    let link: [u8; LINK] = *Window::of(context).bytes(0).ok_or(reason)?;
    if !cut(context, network + usize::from(quoted)) || !move_head(context, -(ERROR as i32)) {
        return Err(reason);
    }
    let mut window = Window::of(context);
    // Where the link header is shorter the rest is written over.
    let front: &mut [u8; LINK] = window.bytes_mut(0).ok_or(reason)?;
    front[..6].copy_from_slice(&link[6..12]);
    front[6..12].copy_from_slice(&link[..6]);
    front[12..].copy_from_slice(&link[12..]);
    let quote = sum::sum(context, network + ERROR, quoted.into()).ok_or(reason)?;
    // SAFETY: the helper takes nothing.
    let identification = unsafe { bpf_get_prandom_u32() } as u16;
    let message = Message { kind, code, mtu, quoted, service_type: packet.service_type };
    let from = tuple.raw_destination().to_ne_bytes();
    let mut window = Window::of(context);
    let header = window.bytes_mut(network).ok_or(reason)?;
    rules::write_error(header, from, source, identification, message, quote);
    maps::count(reason);
    Ok(Verdict::Transmit)
}

/// The largest packet of a client that the way to its destination takes.
#[inline(always)]
fn next_mtu(entry: &Entry) -> u16 {
    if entry.is_tunnelled() { tunnel::mtu(entry).unwrap_or(0) } else { entry.mtu }
}

/// Sends an ICMP error about a connection to whom it concerns.
#[inline(always)]
pub fn relay(context: &XdpContext) -> Result<Verdict, Reason> {
    let settings = maps::settings()?;
    let scratch = maps::scratch()?;
    let error = scratch.keep_error(rules::read(&Window::of(context))?);
    let now = clock::now(settings);
    // About a packet that went to whom it came from: the flow the other way has the entry.
    let tuple = error.tuple.reversed();
    let packet = scratch.keep::<false>(Packet {
        tuple,
        network: error.network,
        transport: error.transport,
        length: error.length,
        counted: error.length,
        service_type: error.service_type,
        tcp_flags: 0,
        time_to_live: error.time_to_live,
    });
    scratch.is_untold = true;
    let entry = &mut scratch.client_side;
    let Some(found) = connection::find(&tuple, connection::home(&tuple, settings)) else {
        return Err(about_client(settings, &error, entry, now));
    };
    let deadline = found.read_to(entry, &tuple).ok_or(Reason::Icmp)?;
    if is_past(deadline, now) {
        return Err(Reason::Icmp);
    }
    let inbound = entry.role == CLIENT_SIDE;
    if entry.has_twin() && !is_intact(context, &packet) {
        return Err(Reason::IcmpChecksum);
    }
    let counted = if inbound { Counted::In } else { Counted::Out };
    maps::count_packet(settings, entry.destination, counted, packet.length);
    if packet.time_to_live <= 1 {
        return Err(if inbound { Reason::TimeExceeded } else { Reason::ReplyByStack });
    }
    if is_past(entry.hop_until, now)
        && let Err(why) = forward::resolve(context, settings, &packet, entry, &Addresses::default(), now)
    {
        return without_hop(context, &error, entry, why);
    }
    if entry.is_tunnelled() {
        return forward::go_on_in_tunnel(Tunnelling::Send);
    }
    if entry.has_twin() {
        translate(context, &error, entry).ok_or(Reason::Malformed)?;
    }
    forward::hand_over(context, &packet, entry)
}

/// An error that may be about a packet which goes to its destination as it came: counted, and passed as it is.
#[inline(always)]
fn about_client(settings: SettingsRef, error: &Received, entry: &mut Entry, now: u32) -> Reason {
    let tuple = error.tuple;
    let Some(found) = connection::find(&tuple, connection::home(&tuple, settings)) else {
        return Reason::Icmp;
    };
    let Some(deadline) = found.read_to(entry, &tuple) else { return Reason::Icmp };
    if entry.role != CLIENT_SIDE || entry.has_twin() || is_past(deadline, now) {
        return Reason::Icmp;
    }
    maps::count_packet(settings, entry.destination, Counted::Out, error.length);
    Reason::DirectReply
}

/// What is done with an error whose next hop is not known.
#[inline(always)]
fn without_hop(context: &XdpContext, error: &Received, entry: &Entry, why: NoHop) -> Result<Verdict, Reason> {
    let reason = match why {
        NoHop::Refused(reason) => return Err(reason),
        NoHop::Neighbour if entry.is_tunnelled() => {
            return forward::go_on_in_tunnel(Tunnelling::NoNeighbour);
        }
        NoHop::Neighbour if !entry.has_twin() => return Err(Reason::NeighbourUnresolved),
        NoHop::Neighbour => Reason::NeighbourByStack,
        NoHop::Local => Reason::LocalDestination,
    };
    if entry.has_twin() {
        translate(context, error, entry).ok_or(Reason::Malformed)?;
    }
    Err(reason)
}

/// Whether the message's checksum is right.
#[inline(always)]
fn is_intact(context: &XdpContext, packet: &Packet) -> bool {
    let header = packet.transport.wrapping_sub(packet.network);
    let length = packet.length.wrapping_sub(header);
    sum::sum(context, packet.transport.into(), length.into()).is_some_and(|sum| sum.finish() == [0, 0])
}

/// Replaces the address and the port that a NAT connection replaces: around the message, and in what it quotes at the
/// other end.
#[inline(always)]
fn translate(context: &XdpContext, error: &Received, entry: &Entry) -> Option<()> {
    let (outside, inside) = if entry.role == CLIENT_SIDE {
        (End::Destination, End::Source)
    } else {
        (End::Source, End::Destination)
    };
    let (address, port) = (entry.address.to_ne_bytes(), entry.port.to_ne_bytes());
    let mut window = Window::of(context);
    rules::replace_address(window.bytes_mut(error.network.into())?, outside, address);
    rules::replace_address(window.bytes_mut(error.quoted.into())?, inside, address);
    let delta = rules::replace_port(window.bytes_mut(error.ports.into())?, inside, port);
    rules::mend(window.bytes_mut(error.transport.into())?, delta);
    Some(())
}
