//! What the host's routing says of destinations' addresses, asked once an address and process.
//!
//! The check that IPVS makes of an address, and the managed neighbour entries that keep next hops resolved.

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;

use super::neighbour;
use super::routing::{Routing, Way};
use crate::director::{Error, Result};

/// The host's routing, opened when it is first asked.
#[derive(Debug, Default)]
pub struct NextHops {
    routing: Option<Routing>,
    ways: HashMap<IpAddr, Way>,
    /// The neighbours that were made managed ones: as destinations themselves, or as gateways.
    managed: HashSet<(IpAddr, bool)>,
}

impl NextHops {
    fn routing(&mut self) -> Result<&mut Routing> {
        if self.routing.is_none() {
            self.routing = Some(Routing::open()?);
        }
        self.routing.as_mut().ok_or_else(|| Error::Unavailable("no routing socket".into()))
    }

    /// The address that this machine has on the way to another; none where there is no way out.
    pub fn source(&mut self, address: IpAddr) -> Option<IpAddr> {
        match self.check(address).ok()? {
            Way::Neighbour { source, .. } => source,
            _ => None,
        }
    }

    /// Refuses an address that is neither unicast nor local. One without a route is fine.
    pub fn check(&mut self, address: IpAddr) -> Result<Way> {
        let never = match address {
            IpAddr::V4(address) => {
                address.is_unspecified() || address.is_multicast() || address.is_broadcast()
            }
            IpAddr::V6(address) => {
                address.is_unspecified() || address.is_multicast() || address.to_ipv4_mapped().is_some()
            }
        };
        if never {
            return Err(Error::Invalid);
        }
        let way = match self.ways.get(&address) {
            Some(way) => *way,
            // Where the kernel cannot be asked, it cannot be of another opinion.
            None => self.routing()?.way(address).unwrap_or(Way::None),
        };
        self.ways.insert(address, way);
        let link_local = matches!(address, IpAddr::V6(address) if address.is_unicast_link_local());
        if way == Way::Many || link_local && way != Way::Local { Err(Error::Invalid) } else { Ok(way) }
    }

    /// Has the kernel keep the next hop towards an address resolved. Where that fails packets find out themselves:
    /// the first ones of a connection may wait for the stack.
    pub fn manage(&mut self, address: IpAddr) {
        let Some(way) = self.ways.get(&address).copied() else { return };
        let next_hop = match way {
            Way::Neighbour { address, .. } => address,
            Way::Local | Way::Many | Way::None => return,
        };
        // Behind one gateway there may be thousands.
        if self.managed.insert((next_hop, next_hop != address))
            && let Ok(routing) = self.routing()
        {
            let _ = neighbour::manage(routing, address, way);
        }
    }

    /// Gives the entries for addresses back that no destination has any more.
    pub fn forget(&mut self, addresses: impl IntoIterator<Item = IpAddr>) {
        let addresses: HashSet<IpAddr> = addresses.into_iter().collect();
        if addresses.is_empty() {
            return;
        }
        self.managed.retain(|(address, is_gateway)| *is_gateway || !addresses.contains(address));
        if let Ok(routing) = self.routing() {
            let _ = neighbour::forget(routing, &addresses);
        }
    }
}
