//! Managed neighbours: the kernel keeps the link addresses of next hops resolved by itself.
//!
//! An XDP program cannot wait for ARP, or for neighbour discovery. So the next hop towards each destination gets a neighbour entry that the
//! kernel resolves at once and again whenever it would grow old (`NTF_EXT_MANAGED`, Linux 5.16). Ours bear
//! a protocol number by which they are told from those of others, which are left alone.

use std::collections::HashSet;
use std::fmt::Display;
use std::net::IpAddr;

use rtnetlink::packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourExtFlags, NeighbourMessage, NeighbourState,
};
use rtnetlink::packet_route::route::RouteProtocol;

use super::routing::{Refusal, Routing, Way};
use crate::director::Error;

/// The protocol number of entries for destinations themselves. Like routes, neighbours say who made them; 120 and
/// 121 are nobody else's in iproute2's list.
const DESTINATION: u8 = 120;
/// The protocol number of entries for gateways, which any number of destinations may lie behind.
const GATEWAY: u8 = 121;

/// What was done about a destination's next hop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Managed {
    /// There is an entry, and the kernel keeps it resolved.
    Kept,
    /// There is a permanent entry, which somebody else made.
    Permanent,
    /// The address is this machine's own.
    Local,
    /// There is no way to the address.
    NoRoute,
}

/// Has the kernel keep the next hop towards a destination resolved, which is this way.
///
/// # Errors
///
/// When the kernel refuses, as for an interface that has no neighbours.
pub fn manage(routing: &mut Routing, destination: IpAddr, way: Way) -> Result<Managed, Error> {
    manage_inner(routing, destination, way).map_err(|error| failed(&destination, &error))
}

fn manage_inner(routing: &mut Routing, destination: IpAddr, way: Way) -> Result<Managed, Refusal> {
    let (interface, address) = match way {
        Way::Neighbour { interface, address, .. } => (interface, address),
        Way::Local => return Ok(Managed::Local),
        Way::Many | Way::None => return Ok(Managed::NoRoute),
    };
    let owner = if address == destination { DESTINATION } else { GATEWAY };
    let prepare = |message: &mut NeighbourMessage| {
        message.header.state = NeighbourState::None;
        message.attributes.push(NeighbourAttribute::ExtFlags(NeighbourExtFlags::Managed));
        message.attributes.push(NeighbourAttribute::Protocol(RouteProtocol::from(owner)));
    };
    match routing.add_neighbour(interface, address, false, prepare) {
        Ok(()) => return Ok(Managed::Kept),
        Err(Refusal::Errno(libc::EEXIST)) => {}
        Err(error) => return Err(error),
    }
    let known = routing
        .neighbours()?
        .into_iter()
        .find(|known| known.header.ifindex == interface && address_of(known) == Some(address));
    match known {
        Some(known) if known.header.state == NeighbourState::Permanent => Ok(Managed::Permanent),
        // A gateway's entry stays a gateway's; one that somebody else manages stays theirs.
        Some(known) if is_managed(&known) && !(ours(&known) == Some(DESTINATION) && owner == GATEWAY) => {
            Ok(Managed::Kept)
        }
        // Keeps what the kernel has learned already.
        _ => routing.add_neighbour(interface, address, true, prepare).map(|()| Managed::Kept),
    }
}

/// Gives the entries for destinations that are no more back to the kernel; a gateway's stays until the end.
///
/// # Errors
///
/// When the kernel refuses.
pub fn forget(routing: &mut Routing, destinations: &HashSet<IpAddr>) -> Result<(), Error> {
    let is_one = |entry: &NeighbourMessage| {
        ours(entry) == Some(DESTINATION)
            && address_of(entry).is_some_and(|address| destinations.contains(&address))
    };
    forget_those(routing, is_one).map_err(|error| failed(&"destinations that are no more", &error))
}

/// Gives all entries of ours back.
///
/// # Errors
///
/// When the kernel refuses.
pub fn forget_all(routing: &mut Routing) -> Result<(), Error> {
    forget_those(routing, |entry| ours(entry).is_some())
        .map_err(|error| Error::Unavailable(format!("cannot remove neighbours: {error}")))
}

fn forget_those(routing: &mut Routing, which: impl Fn(&NeighbourMessage) -> bool) -> Result<(), Refusal> {
    for entry in routing.neighbours()?.into_iter().filter(which) {
        match routing.delete_neighbour(entry) {
            // Somebody was faster.
            Ok(()) | Err(Refusal::Errno(libc::ENOENT)) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

fn failed(destination: &dyn Display, error: &Refusal) -> Error {
    Error::Unavailable(format!("no managed neighbour for {destination}: {error}"))
}

fn address_of(entry: &NeighbourMessage) -> Option<IpAddr> {
    entry.attributes.iter().find_map(|attribute| match attribute {
        NeighbourAttribute::Destination(NeighbourAddress::Inet(address)) => Some((*address).into()),
        NeighbourAttribute::Destination(NeighbourAddress::Inet6(address)) => Some((*address).into()),
        _ => None,
    })
}

fn is_managed(entry: &NeighbourMessage) -> bool {
    entry.attributes.iter().any(|attribute| match attribute {
        NeighbourAttribute::ExtFlags(flags) => flags.contains(NeighbourExtFlags::Managed),
        _ => false,
    })
}

/// Our protocol number on an entry that is managed.
fn ours(entry: &NeighbourMessage) -> Option<u8> {
    let protocol = entry.attributes.iter().find_map(|attribute| match attribute {
        NeighbourAttribute::Protocol(protocol) => Some(u8::from(*protocol)),
        _ => None,
    })?;
    (is_managed(entry) && matches!(protocol, DESTINATION | GATEWAY)).then_some(protocol)
}
