//! From a packet to its service.
//!
//! IPVS counterpart: `ip_vs_service_find`.

use lb_common::protocol::Protocol;
use lb_common::service::ServiceKey;
use lb_common::settings::{WIDE_FTP, WIDE_PORTS};
use lb_common::tuple::Tuple;

use crate::maps::{self, SettingsRef};

/// FTP's ports for data and control.
const FTP_DATA: u16 = 20;
const FTP: u16 = 21;

/// The first port that FTP may use for passive data connections: the default of `ip_unprivileged_port_start`.
const UNPRIVILEGED: u16 = 1024;

/// The slot of the service that a flow goes to: that of its port, of FTP if it may be FTP's, or of all ports.
#[inline(always)]
pub fn find(settings: SettingsRef, tuple: &Tuple) -> Option<u32> {
    let port = tuple.destination_port();
    let wide = settings.wide_services();
    at(tuple, port.to_be())
        .or_else(|| {
            let may_be_ftp =
                tuple.protocol == Protocol::Tcp.number() && (port == FTP_DATA || port >= UNPRIVILEGED);
            if wide & WIDE_FTP != 0 && may_be_ftp { at(tuple, FTP.to_be()) } else { None }
        })
        .or_else(|| if wide & WIDE_PORTS != 0 { at(tuple, 0) } else { None })
}

#[inline(always)]
fn at(tuple: &Tuple, port: u16) -> Option<u32> {
    let address = tuple.raw_destination();
    maps::service_slot(&ServiceKey { address, port, protocol: tuple.protocol, reserved: 0 })
}
