//! From a packet to its service.

use lb_common::service::ServiceKey;
use lb_common::tuple::Tuple;

use crate::maps;

/// The slot of the service that a flow goes to.
#[inline(always)]
pub fn find(tuple: &Tuple) -> Option<u32> {
    maps::service_slot(&ServiceKey {
        address: tuple.raw_destination(),
        port: tuple.raw_destination_port(),
        protocol: tuple.protocol,
        reserved: 0,
    })
}
