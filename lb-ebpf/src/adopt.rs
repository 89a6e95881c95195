//! Taking over a connection that another director made.
//!
//! User space knows it from a listing; the packet that the program is run on describes it. It goes into the table as one
//! that a packet made: with both its entries, counted at its destination. IPVS counterpart: `ip_vs_proc_conn` of the
//! backup sync daemon.

use aya_ebpf::programs::XdpContext;
use lb_common::connection::{Adopted, Adoption, Entry, is_past};
use lb_common::packet::Frame as _;
use lb_common::tuple::Tuple;

use crate::clock;
use crate::connection::{self, Inserted};
use crate::maps::{self, DestinationRef, Scratch};
use crate::open::{client_side, store};
use crate::packet::Window;

/// Takes over the connection that the packet describes, unless its flow has one already.
#[inline(always)]
pub fn adopt(context: &XdpContext) -> Adopted {
    take_over(context).unwrap_or(Adopted::Failed)
}

#[inline(always)]
fn take_over(context: &XdpContext) -> Option<Adopted> {
    let window = Window::of(context);
    let wanted = Adoption::from_bytes(window.bytes(0)?);
    let settings = maps::settings().ok()?;
    let now = clock::now(settings);
    let tuple = Tuple { addresses: wanted.addresses, ports: wanted.ports, protocol: wanted.protocol };
    if let Some(found) = connection::find(&tuple, connection::home(&tuple, settings)) {
        if !is_past(found.deadline(), now) {
            return Some(Adopted::Known);
        }
        connection::remove_dead(&tuple, now);
    }
    let destination = DestinationRef::at(wanted.destination)?;
    let Scratch { client_side: entry, client_addresses, .. } = maps::scratch().ok()?;
    *entry = Entry {
        state: wanted.state,
        flags: wanted.flags,
        ..client_side(settings, &tuple, client_addresses, wanted.destination, destination, wanted.port, now)
    };
    match store(now.wrapping_add(wanted.lifetime), now) {
        Inserted::Stored => {}
        Inserted::Exists => return Some(Adopted::Known),
        Inserted::Full => return Some(Adopted::Failed),
    }
    connection::join_destination(entry);
    Some(Adopted::Taken)
}
