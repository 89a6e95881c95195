//! Our connections and persistence templates, as sync messages tell them.
//!
//! IPVS counterpart: `ip_vs_sync_conn`.

use lb_common::connection::{self, SERVER_SIDE, TEMPLATE};
use lb_common::destination::{AVAILABLE, Destination};
use lb_common::persistence::template_protocol;
use lb_common::protocol::state;
use lb_common::settings::Settings;
use lb_common::sip;
use lb_common::sync::{self, Record, master};
use lb_common::tuple::IPV6;

use super::connection::{addresses, call};
use super::maps::{Maps, TableEntry};
use super::{address_of, service};
use crate::director::Result;

/// What a record tells, with what belongs to a persistence engine.
#[derive(Debug, Clone)]
pub struct Told {
    /// All but that.
    record: Record<'static>,
    /// The Call-ID of a template that is for a call.
    call: Option<Box<[u8]>>,
}

impl Told {
    /// What a record tells, beyond the life of its message.
    pub fn of(record: &Record<'_>) -> Self {
        Self { record: record.without_engine(), call: record.engine_data.map(Into::into) }
    }

    /// The record.
    pub fn record(&self) -> Record<'_> {
        let engine_name = self.call.as_ref().map(|_| sip::NAME.as_bytes());
        Record { engine_name, engine_data: self.call.as_deref(), ..self.record }
    }
}

/// The connections as records of sync messages; those of deleted destinations, which no other director could place, of
/// destinations of the other family, and templates whose Call-ID is not known any more are only counted.
pub fn records(maps: &Maps) -> Result<(Vec<Told>, usize)> {
    maps.sweep()?;
    let settings = maps.settings();
    let listed = maps.entries()?.into_iter().filter(|found| found.entry.role != SERVER_SIDE);
    let all: Vec<_> = listed.map(|found| record(maps, &settings, &found, settings.swept_at)).collect();
    let lost = all.iter().filter(|record| record.is_none()).count();
    Ok((all.into_iter().flatten().collect(), lost))
}

/// The record of a client side or template at a tick, if another director could place it.
pub fn record(maps: &Maps, settings: &Settings, found: &TableEntry, now: u32) -> Option<Told> {
    let entry = &found.entry;
    let call = match call(found) {
        // One whose Call-ID is known no more nobody could use.
        Some(call) => Some(maps.call_id(call)?.as_bytes().into()),
        None => None,
    };
    // Sync messages have one family.
    let destination = maps.destinations.read(entry.destination).filter(|destination: &Destination| {
        destination.status & AVAILABLE != 0 && destination.family == destination.service_family()
    })?;
    let ticks = master::lifetime(entry, found.deadline, now);
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
        mark: service::mark_of(&destination),
        // A kernel of which 0 is asked would end the connection at once.
        timeout: Some(ticks.div_ceil(settings.ticks_per_second.max(1)).max(1)),
        client,
        virtual_address,
        destination: address_of(destination.address, destination.family),
        sequences: None,
        engine_name: None,
        engine_data: None,
    };
    if entry.role != TEMPLATE {
        return Some(Told { record, call });
    }
    // That of a firewall mark has none.
    let protocol = template_protocol(entry.protocol) & !IPV6;
    let state = u16::from(entry.state == state::ASSURED);
    let flags = flags | sync::INACTIVE | sync::TEMPLATE;
    // In the key of a call's is something else there.
    let record = Record { protocol, state, flags, client_port: 0, ..record };
    Some(Told { record, call })
}
