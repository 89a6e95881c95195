//! Connections and persistence templates that another director made, taken over into the connection table, and ours as
//! sync messages tell them.
//!
//! What a listing does not tell is the forwarding method, which is taken to be the destination's; whether an answer by direct
//! routing has come by, which is taken for not so until the next comes; and a template's timeout, which is taken to be the
//! service's. IPVS counterpart: `ip_vs_proc_conn` and `ip_vs_sync_conn`.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;

use lb_common::connection::{self, Addresses, Adopted, Adoption, CLIENT_SIDE, SERVER_SIDE, TEMPLATE};
use lb_common::destination::{AVAILABLE, Destination, DestinationId};
use lb_common::forward::ForwardingMethod;
use lb_common::persistence::{INVALID_PORT, template_protocol};
use lb_common::protocol::{Protocol, state};
use lb_common::service::{Service as ServiceRecord, flags};
use lb_common::settings::Settings;
use lb_common::sync::{self, Record};
use lb_common::tuple::{IPV6, Tuple, handle};

use super::connection::addresses;
use super::maps::{Maps, TableEntry};
use super::{address_bytes, address_of, destination, service, set};
use crate::director::Result;
use crate::table::{ConnectionReport, DestinationKey, Family, ServiceKey};

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

/// The port of FTP's control connections.
const FTP: u16 = 21;

/// Takes over what can be: templates first, so that connections find those that control them.
pub fn adopt(maps: &Maps, connections: &[ConnectionReport]) -> Result<Takeover> {
    let mut takeover = Takeover::default();
    let mut wanted = Vec::new();
    let mut destinations = Destinations::new(maps);
    let settings = maps.settings();
    for connection in connections {
        match adoption(connection, &mut destinations, &settings) {
            Ok(adoption) => wanted.push(adoption),
            Err(reason) => takeover.leave(reason),
        }
    }
    wanted.sort_by_key(|adoption| adoption.role != TEMPLATE);
    for adopted in maps.adopt(&wanted)? {
        match adopted {
            Adopted::Taken => takeover.taken += 1,
            Adopted::Known => takeover.known += 1,
            Adopted::Failed => takeover.leave("no room in the connection table"),
        }
    }
    Ok(takeover)
}

/// A connection or template, as the program takes it.
fn adoption(
    connection: &ConnectionReport,
    destinations: &mut Destinations<'_>,
    settings: &Settings,
) -> std::result::Result<Adoption, Left> {
    const USELESS: Left = "templates that serve no more";
    let is_template = connection.client_port == 0;
    if is_template && connection.virtual_port == INVALID_PORT {
        return Err(USELESS);
    }
    let protocol = Protocol::ALL.into_iter().find(|protocol| protocol.name() == connection.protocol);
    let state = match (protocol, is_template) {
        (_, true) => template_state(&connection.state),
        (Some(protocol), false) => state::from_name(protocol, &connection.state),
        (None, false) => None,
    };
    let state = state.ok_or("in a state that is not known")?;
    let Place { service, is_persistent, id, method } =
        destinations.find(protocol, connection).ok_or("of a destination that is not in the table")?;
    if is_template && !is_persistent {
        return Err(USELESS);
    }
    let family = if connection.client.is_ipv6() { IPV6 } else { 0 };
    let number = protocol.map_or(0, Protocol::number);
    let protocol = if is_template { template_protocol(number) } else { number } | family;
    let raw = |address, port: u16| (raw_address(address, settings.seed), port.to_be());
    let (client, mut virtual_address) = (
        raw(connection.client, connection.client_port),
        raw(connection.virtual_address, connection.virtual_port),
    );
    if let Some(mark) = mark_of_template(connection) {
        virtual_address.0 = mark.to_be();
    }
    let tuple = Tuple::from_raw(protocol, client, virtual_address);
    let inactive = if state::is_active(state) { 0 } else { connection::INACTIVE };
    let no_output = if method == ForwardingMethod::Masquerade { 0 } else { connection::NO_OUTPUT };
    // The listing leaves out the part of the last second.
    let lifetime = connection.expires.saturating_add(1).saturating_mul(settings.ticks_per_second);
    let words = |address| zerocopy::transmute!(address_bytes(address));
    Ok(Adoption {
        addresses: tuple.addresses,
        ports: tuple.ports,
        service,
        destination: id,
        lifetime,
        port: connection.destination_port.to_be(),
        protocol,
        state,
        flags: inactive | no_output,
        role: if is_template { TEMPLATE } else { CLIENT_SIDE },
        reserved: [0; 2],
        beside: Addresses {
            source: words(connection.client),
            destination: words(connection.virtual_address),
            other: [0; 2],
            reserved: [0; 2],
        },
    })
}

/// The number of a template's state by the name that a listing has for it.
fn template_state(name: &str) -> Option<u8> {
    [0, state::ASSURED].into_iter().find(|number| state::name(*number) == name)
}

/// The firewall mark in the place of a template's address.
fn mark_of_template(connection: &ConnectionReport) -> Option<u32> {
    let [a, b, c, d, ..] = address_bytes(connection.virtual_address);
    (connection.protocol == "IP").then_some(u32::from_be_bytes([a, b, c, d]))
}

/// What a tuple has of an address.
fn raw_address(address: IpAddr, seed: u64) -> u32 {
    match address {
        IpAddr::V4(address) => u32::from_ne_bytes(address.octets()),
        IpAddr::V6(address) => handle(zerocopy::transmute!(address.octets()), seed),
    }
}

/// Where a connection belongs.
struct Place {
    /// Its service's slot.
    service: u32,
    /// Whether that one makes templates.
    is_persistent: bool,
    id: DestinationId,
    method: ForwardingMethod,
}

/// A service's slot and record, and its destinations.
type Known = (u32, ServiceRecord, Vec<(DestinationKey, DestinationId)>);

/// The destinations of services, found once each.
struct Destinations<'a> {
    maps: &'a Maps,
    found: HashMap<ServiceKey, Option<Known>>,
    /// The services by firewall mark.
    marks: Vec<ServiceKey>,
}

impl<'a> Destinations<'a> {
    fn new(maps: &'a Maps) -> Self {
        let marks = service::all(maps).map(|(_, record)| service::key(&record));
        let marks = marks.filter(|key| matches!(key, ServiceKey::Mark { .. })).collect();
        Self { maps, found: HashMap::new(), marks }
    }

    /// The destination of a connection or template, by the service that would take it.
    fn find(&mut self, protocol: Option<Protocol>, connection: &ConnectionReport) -> Option<Place> {
        let of_address = protocol.map(|protocol| services_of(protocol, connection));
        let family = if connection.client.is_ipv6() { Family::V6 } else { Family::V4 };
        let wanted = mark_of_template(connection);
        // A listing tells a template's mark, and nothing of a connection's.
        let may_be_its = |key: &&ServiceKey| {
            matches!(key, ServiceKey::Mark { mark, family: its }
                if *its == family && wanted.is_none_or(|wanted| wanted == *mark))
        };
        let mut keys = of_address.into_iter().flatten().chain(self.marks.iter().filter(may_be_its).copied());
        keys.find_map(|key| {
            let known = self.found.entry(key).or_insert_with(|| list(self.maps, &key));
            let (service, record, all) = known.as_ref()?;
            let port = connection.destination_port;
            let is_persistent = record.flags & flags::PERSISTENT != 0;
            // Of a persistent service only packets to its own port get the destination's; one without a port keeps the
            // packet's in any case.
            let any_port =
                is_persistent && (port == 0 || u16::from_be(record.port) != connection.virtual_port);
            let (_, id) = all
                .iter()
                .filter(|(key, _)| key.address == connection.destination)
                .find(|(key, _)| key.port == port || key.port == 0 || any_port)?;
            let method = destination::report(self.maps, *id)?.destination.method;
            Some(Place { service: *service, is_persistent, id: *id, method })
        })
    }
}

/// The services with an address that may have made a connection or template, in the order in which they are asked: that
/// of its port, FTP's, which takes more than that, the one for any.
fn services_of(protocol: Protocol, connection: &ConnectionReport) -> [ServiceKey; 3] {
    let address = connection.virtual_address;
    let ftp = if protocol == Protocol::Tcp { FTP } else { 0 };
    [connection.virtual_port, ftp, 0].map(|port| ServiceKey::Address { protocol, address, port })
}

fn list(maps: &Maps, service: &ServiceKey) -> Option<Known> {
    let (slot, record) = service::find(maps, service).ok()?;
    let ids = set::read(maps, &record).ids;
    let destinations = ids.into_iter().filter_map(|id| Some((destination::key(maps, id)?, id))).collect();
    Some((slot, record, destinations))
}

/// The connections as records of sync messages; those of deleted destinations, which no other director could place, and of
/// destinations of the other family are only counted.
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
        // Sync messages have one family.
        let told = |destination: &Destination| {
            destination.status & AVAILABLE != 0 && destination.family == destination.service_family()
        };
        match destination.filter(told) {
            Some(destination) => {
                let expires = ticks.max(0) as u32 / settings.ticks_per_second.max(1);
                records.push(record(&found, &destination, expires));
            }
            None => lost += 1,
        }
    }
    Ok((records, lost))
}

fn record(found: &TableEntry, destination: &Destination, expires: u32) -> Record<'static> {
    let entry = &found.entry;
    let tuple = entry.tuple();
    let [client, virtual_address] = addresses(found);
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
        mark: service::mark_of(destination),
        // A kernel of which 0 is asked would end the connection at once.
        timeout: Some(expires.max(1)),
        client,
        virtual_address,
        destination: address_of(destination.address, destination.family),
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
