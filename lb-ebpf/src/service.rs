//! From a packet to its service.
//!
//! IPVS counterpart: `ip_vs_service_find`.

use lb_common::connection::Addresses;
use lb_common::protocol::Protocol;
use lb_common::service::{ServiceKey, ServiceKeyIpv6};
use lb_common::settings::{WIDE_FTP, WIDE_PORTS};
use lb_common::tuple::Tuple;

use crate::maps::{self, SettingsRef};

/// FTP's ports for data and control.
const FTP_DATA: u16 = 20;
const FTP: u16 = 21;

/// The first port that FTP may use for passive data connections: the default of `ip_unprivileged_port_start`.
const UNPRIVILEGED: u16 = 1024;

/// The slot of the service that a flow goes to: that of its port, of FTP if it may be FTP's, or of all ports. Of a flow of
/// IPv6 its addresses are wanted too.
#[inline(always)]
pub fn find(settings: SettingsRef, tuple: &Tuple, addresses: &Addresses) -> Option<u32> {
    let port = tuple.destination_port();
    let wide = settings.wide_services();
    at(tuple, addresses, port.to_be())
        .or_else(|| {
            let may_be_ftp =
                tuple.transport() == Protocol::Tcp.number() && (port == FTP_DATA || port >= UNPRIVILEGED);
            if wide & WIDE_FTP != 0 && may_be_ftp { at(tuple, addresses, FTP.to_be()) } else { None }
        })
        .or_else(|| if wide & WIDE_PORTS != 0 { at(tuple, addresses, 0) } else { None })
}

#[inline(always)]
fn at(tuple: &Tuple, addresses: &Addresses, port: u16) -> Option<u32> {
    let protocol = tuple.transport();
    if tuple.is_ipv6() {
        let address = addresses.destination;
        return maps::service_slot_ipv6(&ServiceKeyIpv6 { address, port, protocol, reserved: [0; 5] });
    }
    let address = tuple.raw_destination();
    maps::service_slot(&ServiceKey { address, port, protocol, reserved: 0 })
}
