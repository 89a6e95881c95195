//! From a packet to its service.
//!
//! IPVS counterpart: `ip_vs_service_find`.

use lb_common::connection::Addresses;
use lb_common::destination::DestinationId;
use lb_common::protocol::Protocol;
use lb_common::service::{ServiceKey, ServiceKeyIpv6, own_timeout};
use lb_common::settings::{WIDE_FTP, WIDE_PORTS};
use lb_common::tuple::Tuple;

use crate::maps::{self, DestinationRef, ServiceRef, SettingsRef};
use crate::mark;

/// FTP's ports for data and control.
const FTP_DATA: u16 = 20;
const FTP: u16 = 21;

/// The first port that FTP may use for passive data connections: the default of `ip_unprivileged_port_start`.
const UNPRIVILEGED: u16 = 1024;

/// The slot of the service that a flow goes to: that of its mark, of its port, of FTP if it may be FTP's, or of all ports.
/// The packet lies in the scratch room, with its `addresses` if it is of IPv6.
#[inline(always)]
pub fn find(settings: SettingsRef, tuple: &Tuple, addresses: &Addresses, interface: u32) -> Option<u32> {
    // A mark that no service has means nothing.
    if settings.mark_rules().1 != 0
        && let Some(slot) = marked(tuple, mark::mark_of(interface))
    {
        return Some(slot);
    }
    let port = tuple.destination_port();
    let wide = settings.wide_services();
    let may_be_ftp =
        tuple.transport() == Protocol::Tcp.number() && (port == FTP_DATA || port >= UNPRIVILEGED);
    let ports = [(true, port), (wide & WIDE_FTP != 0 && may_be_ftp, FTP), (wide & WIDE_PORTS != 0, 0)];
    let protocol = tuple.transport();
    // One key for all lookups, as the stack is short.
    if tuple.is_ipv6() {
        let address = addresses.destination;
        let mut key = ServiceKeyIpv6 { address, port: 0, protocol, reserved: [0; 5] };
        for (wanted, port) in ports {
            key.port = port.to_be();
            if wanted && let Some(slot) = maps::service_slot_ipv6(&key) {
                return Some(slot);
            }
        }
    } else {
        let mut key = ServiceKey { address: tuple.raw_destination(), port: 0, protocol, reserved: 0 };
        for (wanted, port) in ports {
            key.port = port.to_be();
            if wanted && let Some(slot) = maps::service_slot(&key) {
                return Some(slot);
            }
        }
    }
    None
}

#[inline(always)]
fn marked(tuple: &Tuple, mark: u32) -> Option<u32> {
    if mark == 0 {
        None
    } else if tuple.is_ipv6() {
        maps::service_slot_ipv6(&ServiceKeyIpv6::of_mark(mark))
    } else {
        maps::service_slot(&ServiceKey::of_mark(mark))
    }
}

/// The timeout of a state of a destination's connections in ticks: what its service has for it, or the general one.
#[inline(always)]
pub fn timeout(settings: SettingsRef, destination: DestinationId, state: u8) -> u32 {
    match own_ticks(settings, destination, state) {
        Some(ticks) => ticks,
        None => settings.timeout(state),
    }
}

#[inline(always)]
fn own_ticks(settings: SettingsRef, destination: DestinationId, state: u8) -> Option<u32> {
    let place = own_timeout(state)?;
    if settings.own_timeouts() == 0 {
        return None;
    }
    let destination = DestinationRef::at(destination)?;
    let service = ServiceRef::at(destination.service())?;
    let seconds = service.own_timeout(place);
    // Not another service by now.
    let is_its = service.serial() == destination.service_serial();
    (is_its && seconds != 0).then(|| seconds.wrapping_mul(settings.ticks_per_second()))
}
