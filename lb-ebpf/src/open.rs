//! Making a connection: schedule, store both directions, count, send the first packet on.
//!
//! IPVS counterpart: `ip_vs_schedule` and `ip_vs_conn_new`.

use aya_ebpf::programs::XdpContext;
use lb_common::checksum::Delta;
use lb_common::connection::{
    self as rules, Addresses, Advance, CLIENT_SIDE, Entry, INACTIVE, NO_OUTPUT, SERVER_SIDE, no_hop,
};
use lb_common::forward::{ForwardingMethod, translation, translation_ipv6};
use lb_common::packet::Packet;
use lb_common::protocol::sctp::Event;
use lb_common::protocol::{Protocol, tcp};
use lb_common::reason::Reason;
use lb_common::service::flags;
use lb_common::settings::Program;
use lb_common::sysctl::Sysctl;
use lb_common::tuple::{Tuple, handle};

use crate::connection::{self, Inserted};
use crate::forward::{self, NoHop, Verdict};
use crate::maps::{self, Counted, DestinationRef, Scratch, ServiceRef, SettingsRef};
use crate::persistence::{self, Choice};
use crate::{balance, clock, defence, scheduler, service};

/// The port that active FTP's data connections come from; IPVS schedules nothing from it.
const FTP_DATA: u16 = 20;
/// The port of FTP's control connections.
const FTP: u16 = 21;

/// Makes a connection for a packet that a service takes, and sends the packet on. Its headers are in the scratch room, where
/// [`Scratch::put`] has left them.
#[inline(always)]
pub fn open<const IPV6: bool>(context: &XdpContext) -> Result<Verdict, Reason> {
    let (settings, scratch) = (maps::settings(), maps::scratch()?);
    let packet = scratch.kept::<IPV6>();
    let tuple = packet.tuple;
    let now = clock::now(settings);
    let by_error = scratch.by_error;
    if IPV6 && !by_error {
        scratch.client_addresses = balance::addresses::<IPV6>(context, &packet)?;
    }
    let seen = &scratch.client_addresses;
    let Some(slot) = service::find(settings, &tuple, seen, context.ingress_ifindex() as u32) else {
        return if !by_error {
            // It only looked like the beginning of a connection.
            Ok(Verdict::GoOn(Program::Slow))
        } else if IPV6 {
            Err(Reason::Icmp)
        } else {
            Ok(Verdict::GoOn(Program::TunnelError))
        };
    };
    let service = ServiceRef::at(slot).ok_or(Reason::Internal)?;
    if !by_error && !opens(settings, tuple.transport(), packet.tcp_flags) {
        return Err(Reason::NoConnection);
    }
    if tuple.source_port() == FTP_DATA {
        return Err(Reason::SourcePort20);
    }
    if defence::refuses(settings) {
        return Err(Reason::DropPacket);
    }
    let once = is_once(service, &tuple);
    scratch.is_once = once;
    let by_call = is_by_call(service);
    if (once || by_call) && by_error {
        // Of a connection of one packet nothing would be left for the error to go with, and an error names no call.
        return Err(Reason::Icmp);
    }
    if by_call && scratch.call == 0 {
        return if tuple.transport() == Protocol::Udp.number() {
            Ok(Verdict::GoOn(Program::Sip))
        } else {
            Err(Reason::NoCallId)
        };
    }
    // Before the destination is chosen: who deletes it begins an epoch afterwards.
    let epoch = settings.epoch();
    let Choice { destination: id, template } = match choose(slot, service, &tuple, seen, !once, now) {
        Err(Reason::NoDestination) if !by_error && bypasses(settings, service) => {
            Choice { destination: settings.destinations().wrapping_sub(1), template: 0 }
        }
        chosen => chosen?,
    };
    let destination = DestinationRef::at(id).ok_or(Reason::Internal)?;
    let Scratch { client_side: entry, client_addresses, server_addresses, .. } = scratch;
    if IPV6 {
        client_addresses.other =
            if is_bypass(destination) { client_addresses.destination } else { destination.address_ipv6() };
        *server_addresses = client_addresses.twin(CLIENT_SIDE);
    }
    let port = if is_bypass(destination) { 0 } else { port(service, &tuple, destination.port()) };
    let template = if once { 0 } else { template };
    let new = new_entry(settings, &packet, client_addresses, id, destination, port, now);
    maps::lay(entry, &Entry { epoch, template, ..new });
    let mut lifetime = settings.timeout(entry.state);
    let hop = if by_error {
        entry.state = rules::unmoved(tuple.protocol);
        entry.flags |= INACTIVE;
        lifetime = settings.ticks_per_second().wrapping_mul(rules::UNMOVED);
        Ok(())
    } else if packet.time_to_live <= 1 {
        Err(NoHop::Refused(Reason::TimeExceeded))
    } else {
        forward::resolve(context, settings, &packet, entry, client_addresses, now)
    };
    if entry.is_bypass() && hop == Err(NoHop::Local) {
        // Its original address is the director's own.
        return Err(Reason::NoDestination);
    }
    let deadline = now.wrapping_add(lifetime);
    let stored = if once { Inserted::Stored } else { store(settings, entry, deadline, now) };
    if stored != Inserted::Stored {
        persistence::release(entry.template);
        // Another CPU was faster with a packet of the same flow: this one finds the connection now.
        return if stored == Inserted::Exists {
            Ok(Verdict::GoOn(if by_error { Program::Icmp } else { Program::Slow }))
        } else {
            Err(Reason::TableFull)
        };
    }
    connection::join_destination(entry, destination);
    if once {
        connection::leave_destination(entry);
    } else {
        connection::begin(&tuple, entry, now);
    }
    if by_error {
        maps::count_connection(settings, id);
        // Which finds it now, and sends the error on.
        return Ok(Verdict::GoOn(Program::Icmp));
    }
    maps::count_part(settings, id, Counted::New, &packet);
    match hop {
        Ok(()) => forward::send(context, &packet, entry, client_addresses),
        Err(why) => forward::without_hop(context, &packet, entry, client_addresses, why),
    }
}

/// Makes a connection for a packet of the director itself, which lies in the scratch room as its addresses do, and leaves its
/// client side there; whether it could, as of some the Call-ID has to be read first.
// Not one function with `open`: in that there is no byte of stack left.
#[inline(always)]
pub fn own<const IPV6: bool>(settings: SettingsRef, packet: &Packet, now: u32) -> Result<bool, Reason> {
    let scratch = maps::scratch()?;
    let tuple = packet.tuple;
    let seen = &scratch.client_addresses;
    // It has come in on no interface.
    let slot = service::find(settings, &tuple, seen, 0).ok_or(Reason::NoService)?;
    let service = ServiceRef::at(slot).ok_or(Reason::Internal)?;
    if !opens(settings, tuple.transport(), packet.tcp_flags) {
        return Err(Reason::NoConnection);
    }
    if tuple.source_port() == FTP_DATA {
        return Err(Reason::SourcePort20);
    }
    if defence::refuses(settings) {
        return Err(Reason::DropPacket);
    }
    if packet.is_later_fragment() {
        return Err(Reason::FragmentRefused);
    }
    if is_by_call(service) && scratch.call == 0 {
        let has_call = tuple.transport() == Protocol::Udp.number();
        return if has_call { Ok(false) } else { Err(Reason::NoCallId) };
    }
    let once = is_once(service, &tuple);
    scratch.is_once = once;
    // Before the destination is chosen: who deletes it begins an epoch afterwards.
    let epoch = settings.epoch();
    let Choice { destination: id, template } = choose(slot, service, &tuple, seen, !once, now)?;
    let destination = DestinationRef::at(id).ok_or(Reason::Internal)?;
    let Scratch { client_side: entry, client_addresses, server_addresses, .. } = scratch;
    if IPV6 {
        client_addresses.other = destination.address_ipv6();
        *server_addresses = client_addresses.twin(CLIENT_SIDE);
    }
    let template = if once { 0 } else { template };
    let port = port(service, &tuple, destination.port());
    let new = new_entry(settings, packet, client_addresses, id, destination, port, now);
    maps::lay(entry, &Entry { epoch, template, ..new });
    let deadline = now.wrapping_add(settings.timeout(entry.state));
    let stored = if once { Inserted::Stored } else { store(settings, entry, deadline, now) };
    if stored != Inserted::Stored {
        persistence::release(entry.template);
        return if stored == Inserted::Exists {
            // Another CPU was faster with a packet of the same flow.
            connection::look::<IPV6>(false).map(|_| true).ok_or(Reason::TableFull)
        } else {
            Err(Reason::TableFull)
        };
    }
    connection::join_destination(entry, destination);
    if once {
        connection::leave_destination(entry);
    } else {
        connection::begin(&tuple, entry, now);
    }
    maps::count_part(settings, id, Counted::New, packet);
    Ok(true)
}

/// Whether a packet may make a connection: of TCP a SYN, of SCTP an INIT, or by sysctl more; of UDP any.
// A function of its own, as there is no room for it on the stack of `xipvs_ipv6_open`.
#[inline(never)]
fn opens(settings: SettingsRef, transport: u8, flags: u8) -> bool {
    let sloppy = |sysctl| settings.sysctl(sysctl) != 0;
    if transport == Protocol::Tcp.number() {
        flags & tcp::RST == 0 && (flags & tcp::SYN != 0 || sloppy(Sysctl::SloppyTcp))
    } else if transport == Protocol::Sctp.number() {
        flags != Event::Abort as u8 && (flags == Event::Init as u8 || sloppy(Sysctl::SloppySctp))
    } else {
        true
    }
}

/// Whether a service's connections follow earlier ones of their call: the persistence engine `sip`.
#[inline(always)]
fn is_by_call(service: ServiceRef) -> bool {
    service.flags() & flags::PERSISTENT != 0 && service.has_engine()
}

/// Whether what has no destination goes to its original address: `cache_bypass`, for services of firewall marks, behind
/// which transparent caches stand.
#[inline(always)]
fn bypasses(settings: SettingsRef, service: ServiceRef) -> bool {
    service.mark() != 0 && settings.sysctl(Sysctl::CacheBypass) != 0
}

/// Whether this stands in the place of a destination where there is none.
#[inline(always)]
fn is_bypass(destination: DestinationRef) -> bool {
    destination.method() == ForwardingMethod::Bypass.number()
}

/// Whether a packet is a connection of its own, of which nothing is kept: one-packet scheduling, UDP only.
#[inline(always)]
fn is_once(service: ServiceRef, tuple: &Tuple) -> bool {
    service.flags() & flags::ONE_PACKET != 0 && tuple.transport() == Protocol::Udp.number()
}

/// The destination of a new connection, and the template that it follows.
#[inline(always)]
fn choose(
    slot: u32,
    service: ServiceRef,
    tuple: &Tuple,
    seen: &Addresses,
    control: bool,
    now: u32,
) -> Result<Choice, Reason> {
    let is_own_port = service.mark() != 0 || service.port() == tuple.raw_destination_port();
    let chosen = if service.flags() & flags::PERSISTENT != 0 {
        persistence::choose(slot, tuple, seen, control, now)
    } else if is_own_port {
        let destination = scheduler::schedule(slot, tuple, seen).ok_or(Reason::NoDestination);
        destination.map(|destination| Choice { destination, template: 0 })
    } else {
        Err(Reason::NoDestination)
    };
    match chosen {
        // A port that the service takes only because FTP might use it.
        Err(Reason::NoDestination) if !is_own_port && service.port() == FTP.to_be() => Err(Reason::NoService),
        chosen => chosen,
    }
}

/// The port that a new connection goes to.
#[inline(always)]
fn port(service: ServiceRef, tuple: &Tuple, destination: u16) -> u16 {
    let packet = tuple.raw_destination_port();
    if service.flags() & flags::PERSISTENT != 0 {
        persistence::kind(service).connection_port(packet, destination)
    } else if destination == 0 {
        packet
    } else {
        destination
    }
}

/// Stores both sides of a connection, or none: `entry` is its client side, in the scratch room. Where there is no room for them,
/// others give way.
#[inline(always)]
pub fn store(settings: SettingsRef, entry: &Entry, deadline: u32, now: u32) -> Inserted {
    let stored = store_at_once(deadline, now);
    if stored == Inserted::Full && make_room(settings, entry, now) {
        return store_at_once(deadline, now);
    }
    stored
}

/// [`store`], if there is room.
#[inline(always)]
fn store_at_once(deadline: u32, now: u32) -> Inserted {
    let stored = open_store(deadline, now);
    if stored == HALF {
        // From here, as a call from there is one too deep for the stack.
        connection::connection_take_back();
        return Inserted::Full;
    }
    Inserted::from(stored)
}

/// Of [`open_store`]: the client side is in the table, the other has found no room.
const HALF: u32 = u32::MAX;

/// [`store_at_once`], once for all: the client side lies in the scratch room, where this makes the other.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn open_store(deadline: u32, now: u32) -> u32 {
    let Ok(scratch) = maps::scratch() else { return Inserted::Full as u32 };
    let Scratch { client_side: entry, server_side: answer, .. } = scratch;
    let stored = connection::insert_here(entry, maps::settings(), deadline);
    if stored != Inserted::Stored || !entry.has_twin() {
        return stored as u32;
    }
    maps::lay(answer, &answer_to(entry, now));
    if connection::insert_here(answer, maps::settings(), deadline) == Inserted::Full {
        return HALF;
    }
    Inserted::Stored as u32
}

/// Makes room for both sides of a new connection.
#[inline(always)]
fn make_room(settings: SettingsRef, entry: &Entry, now: u32) -> bool {
    // A place that is free for the one may be the only one that is free for the other.
    connection::make_room(&entry.tuple(), settings, now, false)
        && (!entry.has_twin() || connection::make_room(&entry.twin(), settings, now, true))
}

/// The client side of a new connection.
#[inline(always)]
fn new_entry(
    settings: SettingsRef,
    packet: &Packet,
    addresses: &Addresses,
    id: u32,
    destination: DestinationRef,
    port: u16,
    now: u32,
) -> Entry {
    let nat = destination.method() == ForwardingMethod::Masquerade.number();
    let flags = if nat || is_bypass(destination) { INACTIVE } else { INACTIVE | NO_OUTPUT };
    let tuple = &packet.tuple;
    let secure = defence::acts(settings, Sysctl::SecureTcp);
    let Advance { state, flags, .. } =
        rules::advance(tuple.protocol, 0, flags, packet.tcp_flags, false, secure);
    Entry { state, flags, ..client_side(settings, tuple, addresses, id, destination, port, now) }
}

/// The client side of a connection to a destination, by its method; without state and flags.
#[inline(always)]
pub fn client_side(
    settings: SettingsRef,
    tuple: &Tuple,
    addresses: &Addresses,
    id: u32,
    destination: DestinationRef,
    port: u16,
    now: u32,
) -> Entry {
    let method = destination.method();
    let ipv6 = tuple.is_ipv6();
    let address = if ipv6 {
        handle(addresses.other, settings.seed())
    } else if is_bypass(destination) {
        tuple.raw_destination()
    } else {
        destination.address()
    };
    let ports = (tuple.raw_destination_port().to_ne_bytes(), port.to_ne_bytes());
    let (network, transport) = if method != ForwardingMethod::Masquerade.number() {
        (Delta::NONE, Delta::NONE)
    } else if ipv6 {
        let delta = translation_ipv6((addresses.destination, ports.0), (addresses.other, ports.1));
        (Delta::NONE, delta)
    } else {
        translation((tuple.raw_destination().to_ne_bytes(), ports.0), (address.to_ne_bytes(), ports.1))
    };
    Entry {
        addresses: tuple.addresses,
        ports: tuple.ports,
        protocol: tuple.protocol,
        role: CLIENT_SIDE,
        method,
        state: 0,
        sequence: 0,
        destination: id,
        address,
        port,
        network_delta: network.pack(),
        transport_delta: transport.pack(),
        flags: 0,
        epoch: 0,
        interface: 0,
        link: [0; 3],
        hop_until: no_hop(now),
        mtu: 0,
        vlan: 0,
        template: 0,
    }
}

/// The server side of a new NAT connection.
#[inline(always)]
pub fn answer_to(entry: &Entry, now: u32) -> Entry {
    let tuple = entry.twin();
    let client_side = entry.tuple();
    Entry {
        addresses: tuple.addresses,
        ports: tuple.ports,
        role: SERVER_SIDE,
        address: client_side.raw_destination(),
        port: client_side.raw_destination_port(),
        network_delta: Delta::unpack(entry.network_delta).inverse().pack(),
        transport_delta: Delta::unpack(entry.transport_delta).inverse().pack(),
        hop_until: no_hop(now),
        // A datagram's answer confirms the template: the first one is not steady.
        flags: entry.flags & INACTIVE | if entry.template != 0 { NO_OUTPUT } else { 0 },
        template: 0,
        ..*entry
    }
}
