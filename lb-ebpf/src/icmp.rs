//! ICMP: errors about connections are sent on to whom they concern, and clients are told why a packet goes no further.
//!
//! An error never changes a connection, nor how long it lives. IPVS counterpart: `ip_vs_in_icmp`, `ip_vs_out_icmp`; what
//! the stack does for IPVS with `icmp_send`.

use aya_ebpf::helpers::generated::bpf_get_prandom_u32;
use aya_ebpf::programs::XdpContext;
use lb_common::checksum::{Delta, Sum};
use lb_common::connection::{Addresses, CLIENT_SIDE, Entry, is_past};
use lb_common::destination::DestinationKey;
use lb_common::forward::{End, take_hop, take_hop_ipv6, translate_network_ipv6};
use lb_common::icmp::{self as rules, ERROR, ERROR_IPV6, Message, Received};
use lb_common::packet::{Frame, IPV4, Packet, ipv6_addresses};
use lb_common::protocol::Protocol;
use lb_common::reason::Reason;
use lb_common::settings::Program;
use lb_common::sysctl::Sysctl;

use crate::forward::{self, NoHop, Verdict};
use crate::maps::{self, Counted, Scratch, SettingsRef, Tunnelling};
use crate::packet::{Bytes, Window, cut, move_head};
use crate::tunnel::LINK;
use crate::{balance, clock, connection, sum, tunnel};

/// Leaves it to the program that tells senders why their packets go no further, if there is an error for the reason.
#[inline(always)]
pub fn leave_to_tell<const IPV6: bool>(reason: Reason) -> Result<Program, Reason> {
    if rules::error_for(reason, IPV6).is_none() {
        return Err(reason);
    }
    let scratch = maps::scratch()?;
    if scratch.is_untold {
        return Err(reason);
    }
    scratch.why = reason;
    Ok(Program::Tell)
}

/// Tells the sender of the packet in the scratch room why it goes no further. The error goes back the way that the
/// packet came.
#[inline(always)]
pub fn tell<const IPV6: bool>(context: &XdpContext) -> Result<Verdict, Reason> {
    let settings = maps::settings();
    let scratch = maps::scratch()?;
    let packet = scratch.kept::<IPV6>();
    let reason = scratch.why;
    let (kind, code) = rules::error_for(reason, IPV6).ok_or(reason)?;
    let mtu = if reason == Reason::TooBig { next_mtu(&scratch.client_side) } else { 0 };
    let Addresses { source, mut destination, .. } = balance::addresses::<IPV6>(context, &packet)?;
    let tuple = packet.tuple;
    let (told, mut from) = (tuple.raw_source().to_ne_bytes(), tuple.raw_destination().to_ne_bytes());
    if reason == Reason::ReplyRefused {
        let [a, b, c, d] = told;
        let sender = if IPV6 { source } else { [u64::from_ne_bytes([a, b, c, d, 0, 0, 0, 0]), 0] };
        let own = towards_masquerading::<IPV6>(&packet, sender).ok_or(Reason::NoReplyConnection)?;
        let [[a, b, c, d, ..], _] = own.map(u64::to_ne_bytes);
        (destination, from) = (own, [a, b, c, d]);
        if packet.is_later_fragment() {
            return Err(reason);
        }
        if packet.time_to_live <= 1 {
            return Err(Reason::ReplyByStack);
        }
        // The error quotes the packet as it would have gone on.
        take_hop_of::<IPV6>(context, &packet).ok_or(reason)?;
    }
    if !(if IPV6 { rules::may_be_told_ipv6(source) } else { rules::may_be_told(told) })
        || !scratch.limit.take(clock::now(settings), settings.icmp_rate(), settings.ticks_per_second())
    {
        return Err(reason);
    }
    let quoted = rules::quoted(packet.length, IPV6);
    let room = if IPV6 { ERROR_IPV6 } else { ERROR };
    let network = usize::from(packet.network);
    let link: [u8; LINK] = *Window::of(context).bytes(0).ok_or(reason)?;
    if !cut(context, network + usize::from(quoted)) || !move_head(context, -(room as i32)) {
        return Err(reason);
    }
    let mut window = Window::of(context);
    // Where the link header is shorter the rest is written over.
    let front: &mut [u8; LINK] = window.bytes_mut(0).ok_or(reason)?;
    front[..6].copy_from_slice(&link[6..12]);
    front[6..12].copy_from_slice(&link[..6]);
    front[12..].copy_from_slice(&link[12..]);
    let quote = sum::sum(context, network + room, quoted.into()).ok_or(reason)?;
    let message = Message { kind, code, mtu, quoted, service_type: packet.service_type };
    let mut window = Window::of(context);
    if IPV6 {
        let header = window.bytes_mut(network).ok_or(reason)?;
        rules::write_error_ipv6(header, destination, source, message, quote);
    } else {
        // SAFETY: the helper takes nothing.
        let identification = unsafe { bpf_get_prandom_u32() } as u16;
        let header = window.bytes_mut(network).ok_or(reason)?;
        rules::write_error(header, from, told, identification, message, quote);
    }
    count_told(settings, scratch, reason, room as u16 + quoted);
    Ok(forward::back(context))
}

/// Counts an error of ours, of so many bytes.
///
/// To IPVS, what the director says for the virtual address is an answer of a connection that does not masquerade, if it finds
/// one.
#[inline(always)]
pub fn count_told(settings: SettingsRef, scratch: &Scratch, reason: Reason, length: u16) {
    maps::count(reason);
    let entry = &scratch.client_side;
    if matches!(reason, Reason::TooBig | Reason::TimeExceeded | Reason::NoRoute)
        && !entry.has_twin()
        && !scratch.is_once
    {
        maps::count_packet(settings, entry.destination, Counted::Out, length);
    }
}

/// Takes a hop off a packet.
#[inline(always)]
fn take_hop_of<const IPV6: bool>(context: &XdpContext, packet: &Packet) -> Option<()> {
    let mut window = Window::of(context);
    if IPV6 {
        take_hop_ipv6(window.bytes_mut(packet.network.into())?);
    } else {
        take_hop(window.bytes_mut::<IPV4>(packet.network.into())?);
    }
    Some(())
}

/// The director's address towards the sender of a packet, as two words, if that is a masquerading destination.
#[inline(always)]
fn towards_masquerading<const IPV6: bool>(packet: &Packet, address: [u64; 2]) -> Option<[u64; 2]> {
    let Packet { tuple, .. } = packet;
    let family = if IPV6 { 6 } else { 4 };
    let (port, protocol) = (tuple.raw_source_port(), tuple.transport());
    let mut key = DestinationKey { address, port, protocol, family, reserved: 0 };
    let found = maps::masquerading(&key).or_else(|| {
        // That of a firewall mark takes any protocol.
        key.protocol = 0;
        maps::masquerading(&key)
    });
    found.filter(|own| *own != [0; 2])
}

/// The largest packet of a client that the way to its destination takes.
#[inline(always)]
pub fn next_mtu(entry: &Entry) -> u16 {
    if entry.is_tunnelled() { tunnel::mtu(entry).unwrap_or(0) } else { entry.mtu }
}

/// Sends an ICMP error about a connection to whom it concerns.
#[inline(always)]
pub fn relay<const IPV6: bool>(context: &XdpContext) -> Result<Verdict, Reason> {
    let (settings, _, network) = balance::begin(context)?;
    let now = clock::now(settings);
    let error = keep::<IPV6>(&Window::of(context), settings, network)?;
    if !look::<IPV6>(false) {
        return match about_client::<IPV6>(&Window::of(context), settings) {
            Reason::Icmp if settings.sysctl(Sysctl::ScheduleIcmp) != 0 && may_open(&error) => {
                let scratch = maps::scratch()?;
                if IPV6 {
                    let quoted = ipv6_addresses(&Window::of(context), error.quoted.into());
                    // The other way.
                    let (destination, source) = quoted.ok_or(Reason::Icmp)?;
                    scratch.client_addresses = Addresses { source, destination, ..Addresses::default() };
                }
                scratch.by_error = true;
                Ok(Verdict::GoOn(Program::Open))
            }
            // About the outer packet of a tunnel, perhaps.
            Reason::Icmp if !IPV6 => Ok(Verdict::GoOn(Program::TunnelError)),
            reason => Err(reason),
        };
    }
    let scratch = maps::scratch()?;
    let (packet, error) = (scratch.kept::<IPV6>(), scratch.kept_error());
    let Scratch { client_side: entry, client_addresses: addresses, .. } = scratch;
    if IPV6 && !is_about(&Window::of(context), &error, addresses.destination, addresses.source) {
        return Err(Reason::Icmp);
    }
    let inbound = entry.role == CLIENT_SIDE;
    if entry.has_twin() && !is_intact::<IPV6>(context, &packet)? {
        return Err(Reason::IcmpChecksum);
    }
    let counted = if inbound { Counted::In } else { Counted::Out };
    maps::count_packet(settings, entry.destination, counted, packet.length);
    if packet.time_to_live <= 1 {
        return Err(if inbound { Reason::TimeExceeded } else { Reason::ReplyByStack });
    }
    if is_past(entry.hop_until, now)
        && let Err(why) = forward::resolve(context, settings, &packet, entry, addresses, now)
    {
        return without_hop::<IPV6>(context, &error, entry, addresses, why);
    }
    if entry.is_tunnelled() {
        return forward::go_on_in_tunnel(Tunnelling::Send);
    }
    if entry.has_twin() {
        translate::<IPV6, _>(Window::of(context), &error, entry, addresses).ok_or(Reason::Malformed)?;
    }
    forward::hand_over(context, &packet, entry)
}

/// Puts an ICMP error into the scratch room, and as the packet there what it is to its connection.
#[inline(always)]
pub fn keep<const IPV6: bool>(
    frame: &impl Frame,
    settings: SettingsRef,
    network: usize,
) -> Result<Received, Reason> {
    let error =
        if IPV6 { rules::read_ipv6(frame, network, settings.seed())? } else { rules::read(frame, network)? };
    let scratch = maps::scratch()?;
    scratch.keep_error(error);
    scratch.put(&Packet {
        // About a packet that went to whom it came from: the flow the other way has the entry.
        tuple: error.tuple.reversed(),
        network: error.network,
        transport: error.transport,
        length: error.length,
        counted: error.length,
        service_type: error.service_type,
        tcp_flags: 0,
        time_to_live: error.time_to_live,
    });
    scratch.is_untold = true;
    Ok(error)
}

/// Whether an error about an unknown flow may make a connection: IPsec's never do, nor what no service balances.
#[inline(always)]
fn may_open(error: &Received) -> bool {
    error.ports != rules::NO_PORTS && Protocol::from_number(error.tuple.transport()).is_some()
}

/// Whether the quoted packet, of IPv6, is one between these two: its handles say so only nearly for sure.
#[inline(always)]
pub fn is_about(frame: &impl Frame, error: &Received, source: [u64; 2], destination: [u64; 2]) -> bool {
    ipv6_addresses(frame, error.quoted.into()) == Some((source, destination))
}

/// An error that may be about a packet which goes to its destination as it came: counted, and passed as it is.
#[inline(always)]
pub fn about_client<const IPV6: bool>(frame: &impl Frame, settings: SettingsRef) -> Reason {
    if !look::<IPV6>(true) {
        return Reason::Icmp;
    }
    let Ok(scratch) = maps::scratch() else { return Reason::Internal };
    let error = scratch.kept_error();
    let Scratch { client_side: entry, client_addresses: addresses, .. } = scratch;
    if entry.role != CLIENT_SIDE
        || entry.has_twin()
        || IPV6 && !is_about(frame, &error, addresses.source, addresses.destination)
    {
        return Reason::Icmp;
    }
    maps::count_packet(settings, entry.destination, Counted::Out, error.length);
    Reason::DirectReply
}

/// Finds the living entry of the packet in the scratch room, or of one the other way, and copies it there.
#[inline(always)]
pub fn look<const IPV6: bool>(reversed: bool) -> bool {
    connection::look::<IPV6>(reversed)
        .is_some_and(|deadline| !is_past(deadline, clock::now(maps::settings())))
}

/// What is done with an error whose next hop is not known.
#[inline(always)]
fn without_hop<const IPV6: bool>(
    context: &XdpContext,
    error: &Received,
    entry: &Entry,
    addresses: &Addresses,
    why: NoHop,
) -> Result<Verdict, Reason> {
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
        translate::<IPV6, _>(Window::of(context), error, entry, addresses).ok_or(Reason::Malformed)?;
    }
    Err(reason)
}

/// Whether the message's checksum is right.
#[inline(always)]
pub fn is_intact<const IPV6: bool>(context: &XdpContext, packet: &Packet) -> Result<bool, Reason> {
    let header = packet.transport.wrapping_sub(packet.network);
    let length = packet.length.wrapping_sub(header);
    let sum = sum::sum(context, packet.transport.into(), length.into()).ok_or(Reason::Malformed)?;
    let besides = if IPV6 {
        let Addresses { source, destination, .. } = balance::addresses::<true>(context, packet)?;
        rules::pseudo_header(source, destination, length)
    } else {
        Sum::ZERO
    };
    Ok(sum.and(besides).finish() == [0, 0])
}

/// Replaces the address and the port that a NAT connection replaces: around the message, and in what it quotes at the
/// other end.
#[inline(always)]
pub fn translate<const IPV6: bool, C>(
    mut window: Bytes<C>,
    error: &Received,
    entry: &Entry,
    addresses: &Addresses,
) -> Option<()>
where
    Bytes<C>: Frame,
{
    let (outside, inside) = if entry.role == CLIENT_SIDE {
        (End::Destination, End::Source)
    } else {
        (End::Source, End::Destination)
    };
    let (network, quoted) = (usize::from(error.network), usize::from(error.quoted));
    let port = if error.ports == rules::NO_PORTS {
        Delta::NONE
    } else {
        rules::replace_port(window.bytes_mut(error.ports.into())?, inside, entry.port.to_ne_bytes())
    };
    let delta = if IPV6 {
        let (around, about) = (ipv6_addresses(&window, network)?, ipv6_addresses(&window, quoted)?);
        // The two ends are at opposite ends.
        let replaced = if entry.role == CLIENT_SIDE { (around.1, about.0) } else { (around.0, about.1) };
        translate_network_ipv6(window.bytes_mut(network)?, outside, addresses.other);
        translate_network_ipv6(window.bytes_mut(quoted)?, inside, addresses.other);
        rules::delta_ipv6((replaced.0, addresses.other), (replaced.1, addresses.other), port)
    } else {
        rules::replace_address(window.bytes_mut(network)?, outside, entry.address.to_ne_bytes());
        rules::replace_address(window.bytes_mut(quoted)?, inside, entry.address.to_ne_bytes());
        port
    };
    rules::mend(window.bytes_mut(error.transport.into())?, delta);
    Some(())
}
