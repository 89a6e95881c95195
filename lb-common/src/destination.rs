//! A destination as it lies in the maps.
//!
//! IPVS counterpart: `struct ip_vs_dest`.

use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout};

use crate::forward::ForwardingMethod;

use crate::connection::is_past;

/// A destination's number: its slot in the destination map.
pub type DestinationId = u32;

/// [`Destination::status`]: the slot holds a destination, configured or deleted.
pub const IN_USE: u8 = 1;
/// [`Destination::status`]: configured, not deleted.
pub const AVAILABLE: u8 = 2;
/// [`Destination::status`]: the service is of IPv6, whatever the destination is.
pub const OF_IPV6: u8 = 4;
/// [`Destination::status`]: its connections end at [`Load::date`].
pub const DRAINING: u8 = 8;

/// A slot of the destination map: a line that is read when a connection begins or is looked at whole, and a line that is written when a
/// connection begins, ends or changes state.
#[derive(Debug, Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C, align(64))]
pub struct Destination {
    /// Address; an IPv4 address in the first four bytes. Network order.
    pub address: [u8; 16],
    /// The service's address, by which a deleted destination is recognised when it comes back.
    pub virtual_address: [u8; 16],
    /// Port in network order, loaded natively; 0 keeps the packet's port.
    pub port: u16,
    /// The service's port in network order, loaded natively.
    pub virtual_port: u16,
    /// The service's protocol.
    pub protocol: u8,
    /// [`IN_USE`], [`AVAILABLE`], [`OF_IPV6`], [`DRAINING`].
    pub status: u8,
    /// Number of the forwarding method.
    pub method: u8,
    /// Number of the tunnel type.
    pub tunnel: u8,
    /// Share of new connections.
    pub weight: u32,
    /// Slot of its service; kept when either is deleted.
    pub service: u32,
    /// Upper threshold; 0 is none.
    pub upper_threshold: u32,
    /// Lower threshold as configured.
    pub lower_threshold: u32,
    /// The last weight that was not 0, which Maglev hashing goes by; 0 if there was none.
    pub last_weight: u32,
    /// Tunnel port, native order.
    pub tunnel_port: u16,
    /// Number of the tunnel's checksum choice.
    pub tunnel_checksum: u8,
    /// Family of the address: 4 or 6; 0 in a free slot.
    pub family: u8,
    /// What changes with connections.
    pub load: Load,
}

/// The part of a destination that connections change.
#[derive(Debug, Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Load {
    /// Connections in an active state.
    pub active: u32,
    /// All connections.
    pub total: u32,
    /// Persistence templates.
    pub persistent: u32,
    /// Not 0 while above its thresholds.
    pub overloaded: u16,
    /// One more than its position in its service's set, if that has a tree of winners; 0 if it has none.
    pub place: u16,
    /// Tick of its deletion, or, while it drains, by which its connections are to end.
    pub date: u32,
    /// Number of the service's making, which tells a service from one that had its slot before.
    pub service_serial: u32,
    /// Counters at the last `-Z`.
    pub baseline: Counters,
}

/// What is counted for a destination, on each CPU apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Counters {
    /// Connections scheduled.
    pub connections: u64,
    /// Packets from clients.
    pub in_packets: u64,
    /// Packets from servers.
    pub out_packets: u64,
    /// Bytes from clients, from the IP header on.
    pub in_bytes: u64,
    /// Bytes from servers, from the IP header on.
    pub out_bytes: u64,
}

/// What a packet of a destination says of it, by which those that masquerade are found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct DestinationKey {
    /// Address, loaded natively as two words; an IPv4 address in the first four bytes.
    pub address: [u64; 2],
    /// Port in network order, loaded natively.
    pub port: u16,
    /// The protocol of its service; 0 for one of a firewall mark, which has any.
    pub protocol: u8,
    /// 4 or 6.
    pub family: u8,
    /// Always 0.
    pub reserved: u32,
}

/// What there is at a [`DestinationKey`].
#[doc(alias = "ip_vs_has_real_service")]
#[derive(Debug, Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Masquerading {
    /// The director's address towards it, as in the key; zeroes for none.
    pub source: [u64; 2],
    /// How many destinations there are.
    pub count: u32,
    /// The one of them that was added last, as far as that is known.
    pub last: DestinationId,
}

impl Destination {
    /// What connections without a destination have in the place of one, in the map's last slot, which no service gets: so
    /// they are handled as all are, and what they count is nobody's.
    pub fn bypass() -> Self {
        Self {
            status: IN_USE | AVAILABLE,
            method: ForwardingMethod::Bypass.number(),
            weight: 1,
            ..Self::new_zeroed()
        }
    }

    /// What its packets say of it, if it is configured and masquerades.
    pub fn masquerading(&self) -> Option<DestinationKey> {
        let is_one = self.status & AVAILABLE != 0 && self.method == ForwardingMethod::Masquerade.number();
        is_one.then(|| DestinationKey {
            address: zerocopy::transmute!(self.address),
            port: self.port,
            protocol: self.protocol,
            family: self.family,
            reserved: 0,
        })
    }

    /// The family of its service, as [`Destination::family`] has its own.
    pub const fn service_family(&self) -> u8 {
        if self.status & OF_IPV6 != 0 { 6 } else { 4 }
    }
}

/// Whether a destination drains and the time for that is over: then it has no connections and templates any more.
#[inline(always)]
pub const fn has_drained(status: u8, date: u32, now: u32) -> bool {
    status & DRAINING != 0 && is_past(date, now)
}

impl Counters {
    /// Adds what another set counted.
    #[inline(always)]
    pub fn add(&mut self, other: &Self) {
        self.connections = self.connections.wrapping_add(other.connections);
        self.in_packets = self.in_packets.wrapping_add(other.in_packets);
        self.out_packets = self.out_packets.wrapping_add(other.out_packets);
        self.in_bytes = self.in_bytes.wrapping_add(other.in_bytes);
        self.out_bytes = self.out_bytes.wrapping_add(other.out_bytes);
    }

    /// What was counted since `base`.
    #[inline(always)]
    #[must_use]
    pub fn since(&self, base: &Self) -> Self {
        Self {
            connections: self.connections.wrapping_sub(base.connections),
            in_packets: self.in_packets.wrapping_sub(base.in_packets),
            out_packets: self.out_packets.wrapping_sub(base.out_packets),
            in_bytes: self.in_bytes.wrapping_sub(base.in_bytes),
            out_bytes: self.out_bytes.wrapping_sub(base.out_bytes),
        }
    }
}

/// Where packets of clients go: the way to a destination, as one CPU looked it up.
#[doc(alias = "ip_vs_dest_dst")]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Hop {
    /// Tick until which it is good.
    pub until: u32,
    /// Interface; 0 while nothing was looked up.
    pub interface: u32,
    /// As [`crate::connection::Entry::link`].
    pub link: [u32; 3],
    /// As [`crate::connection::Entry::mtu`].
    pub mtu: u16,
    /// As [`crate::connection::Entry::vlan`].
    pub vlan: u16,
}

/// What a CPU has of a destination, a cache line: slot `cpu * destinations + destination`.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C, align(64))]
pub struct CounterLine {
    /// The counters.
    pub counters: Counters,
    /// The way there, for new connections.
    pub hop: Hop,
}

const _: () = assert!(size_of::<Destination>() == 128 && size_of::<CounterLine>() == 64);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_drain_is_over_at_its_date() {
        let status = IN_USE | AVAILABLE | DRAINING;
        assert!(!has_drained(status, 100, 99) && has_drained(status, 100, 100));
        assert!(!has_drained(status & !DRAINING, 100, 200));
        assert!(has_drained(status, u32::MAX, 5));
    }
}
