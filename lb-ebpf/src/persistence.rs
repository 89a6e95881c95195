//! Persistence templates: found, made, claimed, given back, swept.
//!
//! A connection knows the place of the template that controls it. The template stays there as long as it controls
//! any, whatever becomes of its key, so that nobody has to look it up to give it back.
//! IPVS counterpart: `ip_vs_sched_persist`.

use lb_common::connection::{
    self as rules, Addresses, DISPLACED, Entry, INACTIVE, NO_OUTPUT, TEMPLATE, TIMEOUT,
};
use lb_common::destination::{DestinationId, has_drained};
use lb_common::persistence::{EXTENSION, INVALID_PORT, Kind, network_ipv6, serves};
use lb_common::protocol::state;
use lb_common::reason::Reason;
use lb_common::service::flags;
use lb_common::sip;
use lb_common::sysctl::Sysctl;
use lb_common::tuple::{Tuple, handle};

use crate::connection::{self, Found, Inserted};
use crate::maps::{DestinationRef, ServiceRef, SetRef, SettingsRef, scratch, settings};
use crate::{clock, scheduler};

/// What a service's templates are for.
#[inline(always)]
pub fn kind(service: ServiceRef) -> Kind {
    Kind { mark: service.mark(), port: service.port(), mask: service.netmask().to_be() }
}

/// The network of an IPv6 client, by the service's prefix length.
#[inline(always)]
fn client_network(service: ServiceRef, addresses: &Addresses) -> [u64; 2] {
    network_ipv6(addresses.source, service.netmask())
}

/// The key of the template for a packet. Two networks of IPv6 with the same handle share a template, and so their
/// clients a destination, which does no harm.
#[inline(always)]
fn key(settings: SettingsRef, service: ServiceRef, packet: &Tuple, network: [u64; 2], call: u64) -> Tuple {
    let key = if packet.is_ipv6() {
        let source = (handle(network, settings.seed()), packet.raw_source_port());
        let destination = (packet.raw_destination(), packet.raw_destination_port());
        Kind { mask: u32::MAX, ..kind(service) }.key(&Tuple::from_raw(packet.protocol, source, destination))
    } else {
        kind(service).key(packet)
    };
    // Of no call it is the key as it was.
    sip::key(key, call)
}

/// A destination that a template leads to.
pub struct Choice {
    /// The destination.
    pub destination: DestinationId,
    /// Where the template lies.
    pub template: u32,
}

/// [`choose_or`], with a destination that the scheduler chooses.
#[inline(always)]
pub fn choose(
    service: u32,
    tuple: &Tuple,
    seen: &Addresses,
    control: bool,
    now: u32,
) -> Result<Choice, Reason> {
    choose_or(service, tuple, seen, control, now, || scheduler::schedule(service, tuple, seen))
}

/// The destination of a new connection to a persistent service: that of the client's template, or of a new one, which is for
/// the destination that `schedule` has. The template counts the connection as one that it controls until [`release`], if
/// `control` says so.
#[inline(always)]
pub fn choose_or(
    service: u32,
    tuple: &Tuple,
    seen: &Addresses,
    control: bool,
    now: u32,
    schedule: impl FnOnce() -> Option<DestinationId>,
) -> Result<Choice, Reason> {
    let Tuple { addresses, ports, protocol } = *tuple;
    let word = u32::from(protocol) | u32::from(control) << 8;
    let mut claimed = persistence_claim(service, addresses, ports, word, now);
    if claimed == NOBODY {
        let id = schedule().ok_or(Reason::NoDestination)?;
        let make = || persistence_make(service, addresses, ports, protocol.into(), id) != 0;
        if !make() {
            let (settings, service) = (settings(), ServiceRef::at(service).ok_or(Reason::Internal)?);
            let key = key(settings, service, tuple, client_network(service, seen), scratch()?.call);
            if !connection::make_room(&key, settings, now, false) || !make() {
                return Err(Reason::TableFull);
            }
        }
        claimed = persistence_claim(service, addresses, ports, word, now);
    }
    if claimed == NOBODY {
        return Err(Reason::Internal);
    }
    Ok(Choice { destination: claimed as u32, template: (claimed >> 32) as u32 })
}

const NOBODY: u64 = u64::MAX;

/// Finds the template for a packet and begins its time anew; the destination in the lower half, the place in the
/// upper. In `word` is the packet's protocol, and in bit 8 whether the template gets a connection to control.
/// What serves no more makes way, and so does what leads elsewhere than to the destination that begins the connection.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn persistence_claim(service: u32, addresses: u64, ports: u32, word: u32, now: u32) -> u64 {
    let settings = settings();
    let Some(service) = ServiceRef::at(service) else { return NOBODY };
    let Ok(scratch) = scratch() else { return NOBODY };
    let packet = Tuple { addresses, ports, protocol: word as u8 };
    let network = client_network(service, &scratch.client_addresses);
    let key = key(settings, service, &packet, network, scratch.call);
    let home = connection::home(&key, settings);
    let Some(found) = connection::find(&key, home) else { return NOBODY };
    let id = found.entry().destination();
    let Some(destination) = DestinationRef::at(id) else { return NOBODY };
    let caller = scratch.caller;
    let valid = (caller == 0 || caller == id.wrapping_add(1))
        && serves(
            destination.status(),
            destination.weight(),
            settings.sysctl(Sysctl::ExpireQuiescentTemplate) != 0,
        )
        && !has_drained(destination.status(), destination.date(), now);
    let extension = EXTENSION.wrapping_mul(settings.ticks_per_second());
    let (set, slot) = (found.set, found.slot);
    let outcome = set.locked(|| {
        let entry = set.entry(slot);
        if !found.holds(&key) || entry.destination() != id {
            return GONE;
        }
        let flags = entry.flags();
        let over = rules::is_past(set.deadline(slot), now);
        if over && entry.controls() == 0 {
            set.set_tag(slot, 0);
            return DEAD | u32::from(flags) << 8;
        }
        if !valid {
            // Nobody finds it any more. It lives until it controls no connection and its time is over.
            set.set_tag(slot, rules::unfindable(slot));
            entry.set_ports(invalid_ports(), INVALID_PORT, flags & !DISPLACED);
            return INVALID | u32::from(flags) << 8;
        }
        if over {
            entry.set_own_timeout(extension);
        }
        if word & 0x100 != 0 {
            entry.add_controls(1);
        }
        set.set_deadline(slot, now.wrapping_add(entry.own_timeout()));
        CLAIMED
    });
    if outcome == CLAIMED {
        return u64::from(found.place()) << 32 | u64::from(id);
    }
    if outcome >> 8 & u32::from(DISPLACED) != 0
        && let Some(set) = SetRef::at(home.set)
    {
        set.add_displaced(-1);
    }
    if outcome & 0xff == DEAD {
        destination.add_persistent(-1);
    }
    NOBODY
}

const GONE: u32 = 0;
const DEAD: u32 = 1;
const INVALID: u32 = 2;
const CLAIMED: u32 = 3;

/// The ports of a template that serves no more: client 0, virtual 65535.
#[inline(always)]
fn invalid_ports() -> u32 {
    Tuple::from_raw(0, (0, 0), (0, INVALID_PORT)).ports
}

/// Stores a template for a packet; 0 if there is no room.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn persistence_make(service: u32, addresses: u64, ports: u32, protocol: u32, id: u32) -> u32 {
    let settings = settings();
    let Some(service) = ServiceRef::at(service) else { return 0 };
    let (Ok(scratch), Some(destination)) = (scratch(), DestinationRef::at(id)) else { return 0 };
    let now = clock::now(settings);
    let packet = Tuple { addresses, ports, protocol: protocol as u8 };
    let kind = kind(service);
    let network = client_network(service, &scratch.client_addresses);
    let call = scratch.call;
    let key = key(settings, service, &packet, network, call);
    if packet.is_ipv6() {
        let other = destination.address_ipv6();
        let destination = kind.address_ipv6(scratch.client_addresses.destination);
        scratch.server_addresses = Addresses { source: network, destination, other, reserved: [0; 2] };
    }
    // Answers have no entry yet when the connection's destination is chosen: their room is free.
    let entry = &mut scratch.server_side;
    *entry = Entry {
        port: kind.template_port(packet.raw_destination_port(), destination.port()),
        ..template(settings, &key, service, id, destination, now)
    };
    entry.set_call(call);
    let deadline = now.wrapping_add(entry.link[TIMEOUT]);
    match insert(entry, settings, destination, deadline) {
        Inserted::Full => 0,
        // Another CPU was faster; its template serves as well.
        Inserted::Exists | Inserted::Stored => 1,
    }
}

/// A template that nothing has confirmed, without a port.
#[inline(always)]
pub fn template(
    settings: SettingsRef,
    key: &Tuple,
    service: ServiceRef,
    id: DestinationId,
    destination: DestinationRef,
    now: u32,
) -> Entry {
    let address = if key.is_ipv6() {
        handle(destination.address_ipv6(), settings.seed())
    } else {
        destination.address()
    };
    let timeout = service.timeout().wrapping_mul(settings.ticks_per_second());
    Entry {
        addresses: key.addresses,
        ports: key.ports,
        protocol: key.protocol,
        role: TEMPLATE,
        method: destination.method(),
        state: 0,
        sequence: 0,
        destination: id,
        address,
        port: 0,
        network_delta: 0,
        transport_delta: 0,
        flags: INACTIVE | NO_OUTPUT,
        epoch: 0,
        interface: 0,
        link: [0, timeout, 0],
        hop_until: now,
        mtu: 0,
        vlan: 0,
        template: 0,
    }
}

/// Puts the template in the scratch room into the table, and counts it at its destination.
#[inline(always)]
pub fn insert(
    entry: &mut Entry,
    settings: SettingsRef,
    destination: DestinationRef,
    deadline: u32,
) -> Inserted {
    let stored = connection::insert(entry, settings, deadline);
    if stored == Inserted::Stored {
        destination.add_persistent(1);
    }
    stored
}

/// Has a connection's template control it, whose time does not begin anew: the one for its flow, if it leads to the
/// same destination. The template's place, or 0.
#[inline(always)]
pub fn join(service: u32, tuple: &Tuple, destination: DestinationId) -> u32 {
    persistence_join(service, tuple.addresses, tuple.ports, tuple.protocol.into(), destination)
}

/// [`join`], with the addresses of a flow of IPv6 in the scratch room.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn persistence_join(service: u32, addresses: u64, ports: u32, protocol: u32, id: u32) -> u32 {
    let settings = settings();
    let Some(service) = ServiceRef::at(service) else { return 0 };
    let Ok(scratch) = scratch() else { return 0 };
    // Nobody tells which call it was of.
    if service.flags() & flags::PERSISTENT == 0 || service.has_engine() {
        return 0;
    }
    let packet = Tuple { addresses, ports, protocol: protocol as u8 };
    let key = key(settings, service, &packet, client_network(service, &scratch.client_addresses), 0);
    let Some(found) = connection::find(&key, connection::home(&key, settings)) else { return 0 };
    let (set, slot) = (found.set, found.slot);
    let joined = set.locked(|| {
        let entry = set.entry(slot);
        if !found.holds(&key) || entry.destination() != id {
            return false;
        }
        entry.add_controls(1);
        true
    });
    if joined { found.place() } else { 0 }
}

/// Takes a connection that has ended off its template, if it has one.
#[inline(always)]
pub fn release(template: u32) {
    if let Some(Found { set, slot, .. }) = Found::at(template) {
        let _held = set.hold();
        set.entry(slot).add_controls(-1);
    }
}

/// Confirms a connection's template.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn persistence_confirm(template: u32) -> u32 {
    let Some(found) = Found::at(template) else { return 0 };
    found.entry().confirm(state::ASSURED);
    1
}

/// Has a template's time be over: it goes if it controls no connection. Whether it did.
#[inline(always)]
pub fn end(template: u32, now: u32) -> bool {
    if let Some(Found { set, slot, .. }) = Found::at(template) {
        set.set_deadline(slot, now);
    }
    persistence_expire(template, now) != 0
}

/// Gives a template the state and timeout that another director has for it.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn persistence_renew(template: u32, state: u32, timeout: u32) -> u32 {
    let settings = settings();
    let Some(Found { set, slot, .. }) = Found::at(template) else { return 0 };
    let now = clock::now(settings);
    set.locked(|| {
        let entry = set.entry(slot);
        if set.tag(slot) == 0 {
            return 0;
        }
        if state != 0 {
            entry.confirm(state as u8);
        }
        entry.set_own_timeout(timeout);
        set.set_deadline(slot, now.wrapping_add(timeout));
        1
    })
}

/// [`persistence_expire`], of one that was found.
#[inline(always)]
pub fn expire(template: Found, now: u32) {
    persistence_expire(template.place(), now);
}

/// Removes a template whose time is over; one that controls connections goes on for a minute.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn persistence_expire(template: u32, now: u32) -> u32 {
    let settings = settings();
    let Some(Found { set, slot, .. }) = Found::at(template) else { return 0 };
    let extension = EXTENSION.wrapping_mul(settings.ticks_per_second());
    let removed = set.locked(|| {
        let entry = set.entry(slot);
        if set.tag(slot) == 0 || !rules::is_past(set.deadline(slot), now) {
            return None;
        }
        if entry.controls() != 0 {
            entry.set_own_timeout(extension);
            set.set_deadline(slot, now.wrapping_add(extension));
            return None;
        }
        set.set_tag(slot, 0);
        Some(entry.copy())
    });
    let Some(entry) = removed else { return 0 };
    if entry.flags & DISPLACED != 0
        && let Some(home) = SetRef::at(connection::home(&entry.tuple(), settings).set)
    {
        home.add_displaced(-1);
    }
    if let Some(destination) = DestinationRef::at(entry.destination) {
        destination.add_persistent(-1);
    }
    1
}
