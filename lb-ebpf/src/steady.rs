//! The steady state: packets of known flows that change nothing but counters, and packets that are nobody's.
//!
//! Nearly every packet is one of these. Leaves any other to `balance`, and decides nothing that `balance::any` would decide
//! otherwise; it has only less to look at.

use aya_ebpf::programs::XdpContext;
use lb_common::connection::{self as rules, Addresses, Entry, SERVER_SIDE, is_past};
use lb_common::forward::ForwardingMethod;
use lb_common::packet::{self, Family, Packet};
use lb_common::protocol::{Protocol, tcp};
use lb_common::reason::Reason;
use lb_common::settings::Program;

use crate::connection::AtHome;
use crate::forward::{self, Verdict};
use crate::machine::opaque;
use crate::maps::{self, AddressesRef, Counted, DestinationRef, SettingsRef};
use crate::packet::Window;
use crate::{balance, clock, connection, tunnel};

/// Balances a packet of the plainest shape; leaves other shapes to [`general`].
///
/// `act` is done with what comes out, at each end anew: so an end costs nothing that tells it from the others.
#[inline(always)]
pub fn plain(context: &XdpContext, act: impl Fn(Result<Verdict, Reason>) -> u32) -> u32 {
    let settings = match balance::serving() {
        Ok(settings) => settings,
        Err(reason) => return act(Err(reason)),
    };
    let mut window = Window::of(context);
    let Some(packet) = packet::read_plain(&window) else {
        return act(Ok(Verdict::GoOn(Program::General)));
    };
    if !balance::concerns(settings, &packet.tuple) {
        return act(Err(Reason::NotOurs));
    }
    plain_flow(context, settings, &mut window, &packet, &act)
        .unwrap_or_else(|| act(Ok(Verdict::GoOn(Program::Slow))))
}

/// Sends a packet of the plainest shape on, if its flow is in the steady state.
///
/// Looks at the entry where it lies, only at what it needs, and writes the packet once the entry is known to have been
/// whole. Tunnels and tagged links are left to [`flow`].
#[inline(always)]
fn plain_flow(
    context: &XdpContext,
    settings: SettingsRef,
    window: &mut Window,
    packet: &Packet,
    act: &impl Fn(Result<Verdict, Reason>) -> u32,
) -> Option<u32> {
    if packet.time_to_live <= 1 {
        return None;
    }
    let tuple = &packet.tuple;
    // The two that there are, for the compiler.
    let protocol =
        if tuple.protocol == Protocol::Tcp.number() { Protocol::Tcp } else { Protocol::Udp }.number();
    // Now, as a call that comes while the entry is looked at would take the registers for that.
    let now = opaque(clock::now(settings).into()) as u32;
    let mark = opaque(Entry::mark(tuple, rules::steady_state(protocol)));
    let home = connection::home(tuple, settings);
    let (entry, sequence) = match connection::look_at_home(home, tuple.addresses, mark) {
        AtHome::Entry(found) => found,
        AtHome::Nothing if begins(settings, packet) => {
            return Some(act(open(packet::read_plain(&Window::of(context)).as_ref()?)));
        }
        _ => return None,
    };
    let out = entry.role() == SERVER_SIDE;
    if !rules::stays_steady(protocol, entry.flags(), packet.tcp_flags, out)
        || entry.epoch() != settings.epoch()
        || is_past(entry.hop_until(), now)
    {
        return None;
    }
    let method = entry.method();
    if method == ForwardingMethod::Tunnel.number() || entry.vlan() != 0 {
        let copy = entry.try_read(tuple).filter(|copy| copy.sequence == sequence)?;
        return send(context, settings, packet, &copy).map(act);
    }
    if packet.length > entry.mtu() {
        return None;
    }
    let (destination, interface, link) = (entry.destination(), entry.interface(), entry.link());
    let translation = (method == ForwardingMethod::Masquerade.number()).then(|| entry.translation());
    if entry.sequence() != sequence {
        return None;
    }
    if let Some(translation) = translation {
        forward::translate_plain(window, protocol, out, translation)?;
    }
    forward::address_plain(window, link)?;
    let counted = if out { Counted::Out } else { Counted::In };
    maps::count_packet(settings, destination, counted, packet.length);
    Some(act(Ok(forward::out(context, interface))))
}

/// Balances a packet of any shape; leaves IPv6 to [`ipv6`].
#[inline(always)]
pub fn general(context: &XdpContext) -> Result<Verdict, Reason> {
    let (settings, family, network) = balance::begin(context)?;
    if family == Family::V6 {
        return Ok(Verdict::GoOn(Program::Ipv6));
    }
    let packet = match balance::headers::<false>(context, settings, network) {
        Err(Reason::Icmp) => return Ok(Verdict::GoOn(Program::Icmp)),
        Err(Reason::Fragment | Reason::OtherProtocol) => return Ok(Verdict::GoOn(Program::Fragment)),
        other => other?,
    };
    flow(context, settings, &packet).unwrap_or(Ok(Verdict::GoOn(Program::Slow)))
}

/// Balances a packet of IPv6.
#[inline(always)]
pub fn ipv6(context: &XdpContext) -> Result<Verdict, Reason> {
    let (settings, packet) = match balance::read::<true>(context) {
        Err(Reason::Icmp) => return Ok(Verdict::GoOn(Program::Icmp)),
        Err(Reason::Fragment | Reason::OtherProtocol) => return Ok(Verdict::GoOn(Program::Fragment)),
        other => other?,
    };
    flow_ipv6(context, settings, &packet).unwrap_or(Ok(Verdict::GoOn(Program::Slow)))
}

/// Sends a packet of IPv4 on, if its flow is in the steady state.
#[inline(always)]
fn flow(context: &XdpContext, settings: SettingsRef, packet: &Packet) -> Option<Result<Verdict, Reason>> {
    if has_long_checksum(packet) {
        return None;
    }
    let entry = match connection::read_at_home(connection::home(&packet.tuple, settings), &packet.tuple) {
        AtHome::Entry(entry) => entry,
        AtHome::Nothing if begins(settings, packet) => return Some(open(packet)),
        _ => return None,
    };
    if is_steady(settings, packet, &entry) { send(context, settings, packet, &entry) } else { None }
}

/// Sends a packet of IPv4 on, whose flow is in the steady state; none if its way takes more than this.
#[inline(always)]
fn send(
    context: &XdpContext,
    settings: SettingsRef,
    packet: &Packet,
    entry: &Entry,
) -> Option<Result<Verdict, Reason>> {
    if entry.is_tunnelled() {
        let destination = DestinationRef::at(entry.destination)?;
        if packet.length.checked_add(tunnel::room_at_once(destination)? as u16)? > entry.mtu {
            return None;
        }
        count(settings, packet, entry);
        return Some(tunnel::send_at_once(context, settings, packet, entry, destination));
    }
    if packet.length > entry.mtu {
        return None;
    }
    count(settings, packet, entry);
    Some(forward::rewrite(context, packet, entry, &Addresses::default()))
}

/// [`flow`], of IPv6.
#[inline(always)]
fn flow_ipv6(
    context: &XdpContext,
    settings: SettingsRef,
    packet: &Packet,
) -> Option<Result<Verdict, Reason>> {
    if has_long_checksum(packet) {
        return None;
    }
    let home = connection::home(&packet.tuple, settings);
    // Before the slot is known: Linux 6.1 forgets its bounds over a helper's call.
    let beside = AddressesRef::at(home.set)?;
    let found = connection::find_at_home(home, &packet.tuple)?;
    let (entry, known) = found.try_read_ipv6(beside, &packet.tuple)?;
    let seen = balance::addresses::<true>(context, packet).ok()?;
    if known.source != seen.source
        || known.destination != seen.destination
        || !is_steady(settings, packet, &entry)
        || entry.is_tunnelled()
        || packet.length > entry.mtu
    {
        return None;
    }
    count(settings, packet, &entry);
    Some(forward::rewrite(context, packet, &entry, &known))
}

/// Whether a packet of an unknown flow is likely to begin a connection: then it need not be looked for any more. If no
/// service takes it, `open` has it looked at whole. What comes from a virtual address may be an answer.
#[inline(always)]
fn begins(settings: SettingsRef, packet: &Packet) -> bool {
    (packet.tuple.protocol == Protocol::Udp.number()
        || packet.tcp_flags & (tcp::SYN | tcp::RST | tcp::ACK) == tcp::SYN)
        && !settings.concerns(packet.tuple.raw_source())
}

/// Leaves the making of a connection to [`open`](crate::open), with the packet's headers.
#[inline(always)]
fn open(packet: &Packet) -> Result<Verdict, Reason> {
    maps::scratch()?.put(packet);
    Ok(Verdict::GoOn(Program::Open))
}

/// Whether NAT mends the checksum by more than a few instructions: SCTP's. Asked first, or the verifier would follow SCTP
/// through all that comes.
#[inline(always)]
fn has_long_checksum(packet: &Packet) -> bool {
    packet.tuple.transport() == Protocol::Sctp.number()
}

/// Whether all that happens to a packet stands in its flow's entry.
#[inline(always)]
fn is_steady(settings: SettingsRef, packet: &Packet, entry: &Entry) -> bool {
    let out = entry.role == SERVER_SIDE;
    rules::is_steady(entry.protocol, entry.state, entry.flags, packet.tcp_flags, out)
        && entry.epoch == settings.epoch()
        && !is_past(entry.hop_until, clock::now(settings))
        && packet.time_to_live > 1
}

#[inline(always)]
fn count(settings: SettingsRef, packet: &Packet, entry: &Entry) {
    let counted = if entry.role == SERVER_SIDE { Counted::Out } else { Counted::In };
    maps::count_packet(settings, entry.destination, counted, packet.length);
}
