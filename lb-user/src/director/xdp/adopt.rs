//! Connections that another director made, taken over into the connection table, and ours as sync messages tell them.
//!
//! What a listing does not tell is the destination's forwarding method, which is taken for the connection's, and whether
//! an answer by direct routing has come by, which is taken for not so until the next comes. IPVS counterpart:
//! `ip_vs_proc_conn` and `ip_vs_sync_conn`.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;

use lb_common::connection::{self, Adopted, Adoption, SERVER_SIDE, TEMPLATE};
use lb_common::destination::{AVAILABLE, DestinationId};
use lb_common::forward::ForwardingMethod;
use lb_common::persistence::template_protocol;
use lb_common::protocol::{Protocol, state};
use lb_common::sync::{self, Record};
use lb_common::tuple::{IPV6, Tuple};

use super::connection::addresses;
use super::maps::{Maps, TableEntry};
use super::{destination, service, set};
use crate::director::Result;
use crate::table::{ConnectionReport, DestinationKey, ServiceKey};

/// What became of connections that were to be taken over.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Takeover {
    /// Now in the table.
    pub taken: usize,
    /// In the table already.
    pub known: usize,
    /// Left where they are, by reason.
    pub left: BTreeMap<&'static str, usize>,
}

impl Takeover {
    fn leave(&mut self, reason: &'static str) {
        *self.left.entry(reason).or_default() += 1;
    }
}

/// A reason to leave a connection where it is.
type Left = &'static str;

/// Takes over what can be.
pub fn adopt(maps: &Maps, connections: &[ConnectionReport]) -> Result<Takeover> {
    let mut takeover = Takeover::default();
    let mut wanted = Vec::new();
    let mut destinations = Destinations { maps, found: HashMap::new() };
    let ticks_per_second = maps.settings().ticks_per_second;
    for connection in connections {
        match adoption(connection, &mut destinations, ticks_per_second) {
            Ok(adoption) => wanted.push(adoption),
            Err(reason) => takeover.leave(reason),
        }
    }
    for adopted in maps.adopt(&wanted)? {
        match adopted {
            Adopted::Taken => takeover.taken += 1,
            Adopted::Known => takeover.known += 1,
            Adopted::Failed => takeover.leave("no room in the connection table"),
        }
    }
    Ok(takeover)
}

fn adoption(
    connection: &ConnectionReport,
    destinations: &mut Destinations<'_>,
    ticks_per_second: u32,
) -> std::result::Result<Adoption, Left> {
    let protocol = Protocol::ALL.into_iter().find(|protocol| protocol.name() == connection.protocol);
    let Some(protocol) = protocol.filter(|_| connection.client_port != 0) else {
        return Err("persistence template");
    };
    let (IpAddr::V4(client), IpAddr::V4(virtual_address)) = (connection.client, connection.virtual_address)
    else {
        return Err("of IPv6");
    };
    let state = state::from_name(protocol, &connection.state).ok_or("in a state that is not known")?;
    let (id, method) =
        destinations.find(protocol, connection).ok_or("of a destination that is not in the table")?;
    let tuple = Tuple::new(
        protocol.number(),
        (client, connection.client_port),
        (virtual_address, connection.virtual_port),
    );
    let inactive = if state::is_active(state) { 0 } else { connection::INACTIVE };
    let no_output = if method == ForwardingMethod::Masquerade { 0 } else { connection::NO_OUTPUT };
    // The listing leaves out the part of the last second.
    let lifetime = connection.expires.saturating_add(1).saturating_mul(ticks_per_second);
    Ok(Adoption {
        addresses: tuple.addresses,
        ports: tuple.ports,
        destination: id,
        lifetime,
        port: connection.destination_port.to_be(),
        protocol: protocol.number(),
        state,
        flags: inactive | no_output,
        reserved: [0; 7],
    })
}

/// The destinations of services, found once each.
struct Destinations<'a> {
    maps: &'a Maps,
    found: HashMap<ServiceKey, Vec<(DestinationKey, DestinationId)>>,
}

impl Destinations<'_> {
    /// The destination of a connection, by the service that would take it: the one with its port, else the one for any.
    fn find(
        &mut self,
        protocol: Protocol,
        connection: &ConnectionReport,
    ) -> Option<(DestinationId, ForwardingMethod)> {
        let address = connection.virtual_address;
        let port = connection.destination_port;
        [connection.virtual_port, 0].into_iter().find_map(|virtual_port| {
            let key = ServiceKey::Address { protocol, address, port: virtual_port };
            let all = self.found.entry(key).or_insert_with(|| list(self.maps, &key));
            // One without a port keeps the packet's.
            let (_, id) = all.iter().find(|(key, _)| {
                key.address == connection.destination && (key.port == port || key.port == 0)
            })?;
            let report = destination::report(self.maps, *id)?;
            Some((*id, report.destination.method))
        })
    }
}

fn list(maps: &Maps, service: &ServiceKey) -> Vec<(DestinationKey, DestinationId)> {
    let Ok((_, record)) = service::find(maps, service) else { return Vec::new() };
    let ids = set::read(maps, &record).ids;
    ids.into_iter().filter_map(|id| Some((destination::key(maps, id)?, id))).collect()
}

/// The connections as records of sync messages; those of deleted destinations are only counted, as no other director
/// could place them.
pub fn records(maps: &Maps) -> Result<(Vec<Record<'static>>, usize)> {
    maps.sweep()?;
    let settings = maps.settings();
    let mut lost = 0;
    let mut records = Vec::new();
    let listed = maps.entries()?.into_iter().filter(|found| found.entry.role != SERVER_SIDE);
    for found in listed {
        let TableEntry { entry, deadline, .. } = found;
        let destination = maps.destinations.read(entry.destination);
        let ticks = deadline.wrapping_sub(settings.swept_at) as i32;
        match destination.filter(|destination| destination.status & AVAILABLE != 0) {
            Some(destination) => {
                let expires = ticks.max(0) as u32 / settings.ticks_per_second.max(1);
                records.push(Record { mark: service::mark_of(&destination), ..record(&found, expires) });
            }
            None => lost += 1,
        }
    }
    Ok((records, lost))
}

fn record(found: &TableEntry, expires: u32) -> Record<'static> {
    let entry = &found.entry;
    let tuple = entry.tuple();
    let [client, virtual_address, destination] = addresses(found);
    let flag = |ours: u8, theirs: u32| if entry.flags & ours != 0 { theirs } else { 0 };
    let flags = u32::from(entry.method)
        | flag(connection::INACTIVE, sync::INACTIVE)
        | flag(connection::NO_OUTPUT, sync::NO_OUTPUT);
    let record = Record {
        protocol: tuple.transport(),
        flags,
        state: state::number_in_protocol(entry.state).into(),
        client_port: tuple.source_port(),
        virtual_port: tuple.destination_port(),
        destination_port: u16::from_be(entry.port),
        mark: 0,
        // A kernel of which 0 is asked would end the connection at once.
        timeout: Some(expires.max(1)),
        client,
        virtual_address,
        destination,
        sequences: None,
        engine_name: None,
        engine_data: None,
    };
    if entry.role != TEMPLATE {
        return record;
    }
    // That of a firewall mark has none.
    let protocol = template_protocol(entry.protocol) & !IPV6;
    Record { protocol, flags: flags | sync::INACTIVE | sync::TEMPLATE, ..record }
}
