//! Taking over a connection, or a persistence template, that another director made.
//!
//! User space knows it from a listing; the packet that the program is run on describes it. It goes into the table as one
//! that a packet made: with both its entries, counted at its destination, controlled by its client's template, and in the
//! place of one that is half-open or closed where no other is left. IPVS counterpart: `ip_vs_proc_conn` of the backup
//! sync daemon.

use aya_ebpf::programs::XdpContext;
use lb_common::connection::{
    Addresses, Adopted, Adoption, CLIENT_SIDE, Entry, INACTIVE, PACKETS, RENEW, SYNCED, TEMPLATE, TIMEOUT,
    is_past,
};
use lb_common::packet::Frame as _;
use lb_common::tuple::Tuple;

use crate::clock;
use crate::connection::{self, Found, Inserted};
use crate::maps::{self, DestinationRef, Scratch, ServiceRef, SettingsRef};
use crate::open::{client_side, store};
use crate::packet::Window;
use crate::persistence;

/// Takes over what the packet describes; whether also if its flow has a connection already is its policy's to say.
#[inline(always)]
pub fn adopt(context: &XdpContext) -> Adopted {
    take_over(context).unwrap_or(Adopted::Failed)
}

#[inline(always)]
fn take_over(context: &XdpContext) -> Option<Adopted> {
    let window = Window::of(context);
    let wanted = Adoption::from_bytes(window.bytes(0)?);
    let settings = maps::settings();
    let now = clock::now(settings);
    let tuple = Tuple { addresses: wanted.addresses, ports: wanted.ports, protocol: wanted.protocol };
    let is_template = wanted.role == TEMPLATE;
    if let Some(found) = connection::find(&tuple, connection::home(&tuple, settings)) {
        let is_dead = is_past(found.deadline(), now);
        let is_its = found.entry().leads_to(wanted.destination, wanted.port);
        if !is_dead && wanted.policy == RENEW && is_its {
            return Some(renew(&wanted, &tuple, found));
        }
        let makes_way = is_dead || wanted.policy == RENEW && wanted.flags & INACTIVE == 0;
        if !makes_way {
            return Some(Adopted::Known);
        }
        if is_template {
            persistence::expire(found, now);
        } else {
            connection::remove(&tuple);
        }
    }
    let destination = DestinationRef::at(wanted.destination)?;
    let service = ServiceRef::at(wanted.service)?;
    let scratch = maps::scratch().ok()?;
    scratch.client_addresses = Addresses { other: destination.address_ipv6(), ..wanted.beside };
    let stored = if is_template {
        take_over_template(settings, &wanted, &tuple, service, destination, scratch, now)
    } else {
        take_over_connection(settings, &wanted, &tuple, destination, scratch, now)
    };
    Some(match stored {
        Inserted::Stored => Adopted::Taken,
        Inserted::Exists => Adopted::Known,
        Inserted::Full => Adopted::Failed,
    })
}

/// Gives a connection or template that is there the state and lifetime of the one that was told of.
#[inline(always)]
fn renew(wanted: &Adoption, tuple: &Tuple, found: Found) -> Adopted {
    if wanted.role == TEMPLATE {
        persistence::persistence_renew(found.place(), wanted.state.into(), wanted.lifetime);
        return Adopted::Renewed;
    }
    let word = u32::from(wanted.state) | u32::from(wanted.flags) << 8 | u32::from(tuple.protocol) << 16;
    match connection::connection_renew(tuple.addresses, tuple.ports, word, wanted.lifetime) {
        0 => Adopted::Failed,
        _ => Adopted::Renewed,
    }
}

#[inline(always)]
fn take_over_connection(
    settings: SettingsRef,
    wanted: &Adoption,
    tuple: &Tuple,
    destination: DestinationRef,
    scratch: &mut Scratch,
    now: u32,
) -> Inserted {
    let Scratch { client_side: entry, client_addresses, server_addresses, .. } = scratch;
    *server_addresses = client_addresses.twin(CLIENT_SIDE);
    *entry = Entry {
        state: wanted.state,
        // Nobody knows how many packets it has had.
        flags: wanted.flags | PACKETS,
        template: persistence::join(wanted.service, tuple, wanted.destination),
        ..client_side(settings, tuple, client_addresses, wanted.destination, destination, wanted.port, now)
    };
    let deadline = now.wrapping_add(wanted.lifetime);
    let stored = store(settings, entry, deadline, now);
    if stored == Inserted::Stored {
        connection::join_destination(entry, destination);
    } else {
        persistence::release(entry.template);
    }
    stored
}

/// The template begins its time anew with what its service has for it, or with what the other director said.
#[inline(always)]
fn take_over_template(
    settings: SettingsRef,
    wanted: &Adoption,
    key: &Tuple,
    service: ServiceRef,
    destination: DestinationRef,
    scratch: &mut Scratch,
    now: u32,
) -> Inserted {
    let Scratch { server_side: entry, client_addresses, server_addresses, .. } = scratch;
    *server_addresses = *client_addresses;
    let template = persistence::template(settings, key, service, wanted.destination, destination, now);
    *entry = Entry { state: wanted.state, port: wanted.port, ..template };
    entry.set_call(wanted.call);
    if wanted.flags & SYNCED != 0 {
        entry.link[TIMEOUT] = wanted.lifetime;
    }
    let deadline = now.wrapping_add(wanted.lifetime);
    let stored = persistence::insert(entry, settings, destination, deadline);
    if stored == Inserted::Full && connection::make_room(key, settings, now, false) {
        return persistence::insert(entry, settings, destination, deadline);
    }
    stored
}
