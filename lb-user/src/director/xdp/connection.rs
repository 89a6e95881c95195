//! The connection table, listed.

use std::net::{IpAddr, Ipv4Addr};

use lb_common::connection::{Entry, SERVER_SIDE, TEMPLATE};
use lb_common::persistence::template_protocol;
use lb_common::protocol::{Protocol, state};

use super::maps::Maps;
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
    let listed = entries.iter().filter(|(entry, _)| entry.role != SERVER_SIDE);
    Ok(listed.map(|(entry, deadline)| report(entry, seconds(*deadline))).collect())
}

fn report(entry: &Entry, expires: u32) -> ConnectionReport {
    let tuple = entry.tuple();
    // Templates of firewall marks have none.
    let protocol = if entry.role == TEMPLATE { template_protocol(entry.protocol) } else { entry.protocol };
    ConnectionReport {
        protocol: Protocol::from_number(protocol).map_or("IP", Protocol::name).into(),
        client: tuple.source().into(),
        client_port: tuple.source_port(),
        virtual_address: tuple.destination().into(),
        virtual_port: tuple.destination_port(),
        destination: IpAddr::V4(Ipv4Addr::from(entry.address.to_ne_bytes())),
        destination_port: u16::from_be(entry.port),
        state: state::name(entry.state).into(),
        expires,
        engine: None,
    }
}
