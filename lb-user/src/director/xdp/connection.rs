//! The connection table, listed.

use std::net::{IpAddr, Ipv4Addr};

use lb_common::connection::{Addresses, SERVER_SIDE, TEMPLATE, octets};
use lb_common::persistence::template_protocol;
use lb_common::protocol::{Protocol, state};
use lb_common::sip;
use lb_common::tuple::IPV6;

use super::address_of;
use super::maps::{Maps, TableEntry};
use crate::director::Result;
use crate::table::ConnectionReport;

/// Every connection that is alive, by its client side, and every template.
pub fn all(maps: &Maps) -> Result<Vec<ConnectionReport>> {
    maps.sweep()?;
    let settings = maps.settings();
    let seconds = |deadline: u32| {
        let ticks = deadline.wrapping_sub(settings.swept_at) as i32;
        ticks.max(0) as u32 / settings.ticks_per_second.max(1)
    };
    let entries = maps.entries()?;
    let listed = entries.iter().filter(|found| found.entry.role != SERVER_SIDE);
    Ok(listed.map(|found| report(maps, found, seconds(found.deadline))).collect())
}

/// The client's and the virtual address of a client side: those of its tuple, or those that lie beside it.
pub fn addresses(found: &TableEntry) -> [IpAddr; 2] {
    let tuple = found.entry.tuple();
    if tuple.is_ipv6() {
        let Addresses { source, destination, .. } = found.addresses;
        return [source, destination].map(|address| IpAddr::from(octets(address)));
    }
    let source = match call(found) {
        Some(call) => Ipv4Addr::from(sip::network(tuple, call).to_ne_bytes()),
        None => tuple.source(),
    };
    [source.into(), tuple.destination().into()]
}

/// The number of the call that a template is for.
pub fn call(found: &TableEntry) -> Option<u64> {
    Some(found.entry.call()).filter(|call| found.entry.role == TEMPLATE && *call != 0)
}

fn report(maps: &Maps, found: &TableEntry, expires: u32) -> ConnectionReport {
    let entry = &found.entry;
    let tuple = entry.tuple();
    let [client, virtual_address] = addresses(found);
    // Of a family of its own, perhaps, which the entry does not tell.
    let destination = maps.destinations.read(entry.destination);
    let destination = match destination {
        Some(destination) if !entry.is_bypass() => address_of(destination.address, destination.family),
        // There is none.
        _ if tuple.is_ipv6() => IpAddr::from([0; 16]),
        _ => IpAddr::from([0; 4]),
    };
    // Templates of firewall marks have none.
    let protocol = match entry.role {
        TEMPLATE => template_protocol(entry.protocol) & !IPV6,
        _ => tuple.transport(),
    };
    ConnectionReport {
        protocol: Protocol::from_number(protocol).map_or("IP", Protocol::name).into(),
        client,
        client_port: if entry.role == TEMPLATE { 0 } else { tuple.source_port() },
        virtual_address,
        virtual_port: tuple.destination_port(),
        destination,
        destination_port: u16::from_be(entry.port),
        state: state::name(entry.state).into(),
        expires,
        engine: call(found).map(|call| {
            let text = maps.call_id(call).map(|id| id.as_bytes().to_vec());
            (sip::NAME.into(), text.unwrap_or_default())
        }),
    }
}
