//! What the host's routing says of destinations' addresses, asked once an address and process.
//!
//! The check that IPVS makes of an address, and the managed neighbour entries that keep next hops resolved.

use std::collections::{HashMap, HashSet};
use std::net::{IpAddr, Ipv4Addr};

use super::neighbour;
use super::routing::{Routing, Way};
use crate::director::{Error, Result};

/// The host's routing, opened when it is first asked.
#[derive(Debug, Default)]
pub struct NextHops {
    routing: Option<Routing>,
    ways: HashMap<Ipv4Addr, Way>,
    managed: HashSet<Ipv4Addr>,
}

impl NextHops {
    fn routing(&mut self) -> Result<&mut Routing> {
        if self.routing.is_none() {
            self.routing = Some(Routing::open()?);
        }
        self.routing.as_mut().ok_or_else(|| Error::Unavailable("no routing socket".into()))
    }

    /// Refuses an address that is neither unicast nor local. One without a route is fine.
    pub fn check(&mut self, address: IpAddr) -> Result<()> {
        let IpAddr::V4(address) = address else { return Err(Error::Invalid) };
        if address.is_unspecified() || address.is_multicast() || address.is_broadcast() {
            return Err(Error::Invalid);
        }
        if !self.ways.contains_key(&address) {
            // Where the kernel cannot be asked, it cannot be of another opinion.
            let way = self.routing()?.way(address).unwrap_or(Way::None);
            self.ways.insert(address, way);
        }
        if self.ways.get(&address) == Some(&Way::Many) { Err(Error::Invalid) } else { Ok(()) }
    }

    /// Has the kernel keep the next hop towards an address resolved. Where that fails packets find out themselves:
    /// the first ones of a connection may wait for the stack.
    pub fn manage(&mut self, address: IpAddr) {
        let IpAddr::V4(address) = address else { return };
        if self.managed.insert(address)
            && let Ok(routing) = self.routing()
        {
            let _ = neighbour::manage(routing, address);
        }
    }

    /// Gives the entry for an address back that no destination has any more.
    pub fn forget(&mut self, address: IpAddr) {
        let IpAddr::V4(address) = address else { return };
        self.managed.remove(&address);
        if let Ok(routing) = self.routing() {
            let _ = neighbour::forget(routing, address);
        }
    }
}
