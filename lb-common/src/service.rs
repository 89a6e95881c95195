//! A virtual service as it lies in the maps, and the destination set that the scheduler works on.
//!
//! A set is immutable but for its cursor and its tree of winners, and lies in the arena, an array of lines. A change builds a new
//! set beside the old one and moves the service over with one store, so that a packet sees the one or the
//! other. IPVS counterpart: `struct ip_vs_service`.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::destination::Counters;
use crate::protocol::{state, tcp};

/// Numbers in a line of the arena.
pub const LINE: usize = 16;

/// Most destinations that a service can have.
pub const MAX_DESTINATIONS: u32 = 4096;

/// The flag bits of a service, with IPVS's values.
pub mod flags {
    /// Connections follow their client's earlier ones (`-p`).
    #[doc(alias = "IP_VS_SVC_F_PERSISTENT")]
    pub const PERSISTENT: u32 = 0x1;
    /// Kernel-owned: the service is in the table. Seen in dumps, never configured.
    #[doc(alias = "IP_VS_SVC_F_HASHED")]
    pub const HASHED: u32 = 0x2;
    /// One-packet scheduling (`-o`).
    #[doc(alias = "IP_VS_SVC_F_ONEPACKET")]
    pub const ONE_PACKET: u32 = 0x4;
    /// `flag-1`: `sh-fallback`, `mh-fallback`.
    #[doc(alias = "IP_VS_SVC_F_SCHED1")]
    pub const SCHEDULER_1: u32 = 0x8;
    /// `flag-2`: `sh-port`, `mh-port`.
    #[doc(alias = "IP_VS_SVC_F_SCHED2")]
    pub const SCHEDULER_2: u32 = 0x10;
    /// `flag-3`.
    #[doc(alias = "IP_VS_SVC_F_SCHED3")]
    pub const SCHEDULER_3: u32 = 0x20;
}

/// A service's key in the index, for IPv4: address and port in network order, loaded natively.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct ServiceKey {
    /// Virtual address.
    pub address: u32,
    /// Virtual port; 0 is any.
    pub port: u16,
    /// IP protocol number.
    pub protocol: u8,
    /// Always 0.
    pub reserved: u8,
}

impl ServiceKey {
    /// The key of the service of a firewall mark, whose protocol is none.
    #[inline(always)]
    pub const fn of_mark(mark: u32) -> Self {
        Self { address: mark, port: 0, protocol: 0, reserved: 0 }
    }
}

/// A service's key in the index for IPv6.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct ServiceKeyIpv6 {
    /// Virtual address, loaded natively as two words.
    pub address: [u64; 2],
    /// Virtual port in network order, loaded natively; 0 is any.
    pub port: u16,
    /// IP protocol number.
    pub protocol: u8,
    /// Always 0.
    pub reserved: [u8; 5],
}

impl ServiceKeyIpv6 {
    /// As [`ServiceKey::of_mark`].
    #[inline(always)]
    pub const fn of_mark(mark: u32) -> Self {
        let [a, b, c, d] = mark.to_ne_bytes();
        let address = [u64::from_ne_bytes([a, b, c, d, 0, 0, 0, 0]), 0];
        Self { address, port: 0, protocol: 0, reserved: [0; 5] }
    }
}

/// A slot of the service map.
#[derive(Debug, Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C, align(64))]
pub struct Service {
    /// First line of the destination set in the arena; 0 while there is none.
    pub set: u64,
    /// Virtual address; an IPv4 address in the first four bytes. Network order.
    pub address: [u8; 16],
    /// Virtual port in network order, loaded natively.
    pub port: u16,
    /// IP protocol number.
    pub protocol: u8,
    /// 4 or 6; 0 in a free slot.
    pub family: u8,
    /// Firewall mark; 0 for a service that has an address.
    pub mark: u32,
    /// IPVS's service flags.
    pub flags: u32,
    /// Persistence timeout in seconds.
    pub timeout: u32,
    /// Persistence mask: an IPv4 mask, first octet in the highest bits, or an IPv6 prefix length.
    pub netmask: u32,
    /// Number of the scheduler.
    pub scheduler: u32,
    /// Number of its making, never used twice.
    pub serial: u32,
    /// Timeouts of its own in seconds, by [`own_timeout`]; 0 is the general one.
    pub timeouts: [u32; 3],
    /// What destinations that are gone have counted.
    pub departed: Counters,
    /// Name of the persistence engine, zero-padded.
    pub engine: [u8; 16],
    /// Number of what lblc or lblcr remember for it, never used twice.
    pub cache: u32,
    /// Fills the second line.
    pub reserved: u32,
}

/// The place among [`Service::timeouts`] of a state that a service can have a timeout of its own for: ESTABLISHED, FIN_WAIT, UDP.
#[inline(always)]
pub const fn own_timeout(state: u8) -> Option<usize> {
    const ESTABLISHED: u8 = tcp::State::Established as u8;
    const FIN_WAIT: u8 = tcp::State::FinWait as u8;
    match state {
        ESTABLISHED => Some(0),
        FIN_WAIT => Some(1),
        state::UDP => Some(2),
        _ => None,
    }
}

/// First line of a destination set; the lines of destination numbers follow, newest destination first, and
/// then the scheduler's table or tree of winners if it has one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C, align(64))]
pub struct SetHeader {
    /// The scheduler's cursor as one number, compared and swapped by the packet program.
    pub cursor: u64,
    /// Destinations in the set.
    pub length: u32,
    /// Number of the scheduler.
    pub scheduler: u32,
    /// Slot of the service.
    pub service: u32,
    /// Weighted round robin: what a level is lowered by.
    pub divisor: u32,
    /// Weighted round robin: the top level.
    pub top: u32,
    /// Numbers in the scheduler's table; 0 for none.
    pub table: u32,
    /// Lines of the whole set, this one included.
    pub lines: u32,
    /// Where the tree of winners begins, in lines from this one; 0 for none.
    pub tree: u32,
    /// Fills the line.
    pub reserved: [u32; 6],
}

impl SetHeader {
    /// Lines that `length` destinations and a table or tree of `table` numbers take, the header included.
    pub const fn lines(length: u32, table: u32) -> u32 {
        1 + length.div_ceil(LINE as u32) + table.div_ceil(LINE as u32)
    }

    /// The line of the table's or tree's first number, counted from the header.
    #[inline(always)]
    pub const fn table_line(length: u32) -> u32 {
        1 + length.div_ceil(LINE as u32)
    }
}

const _: () = assert!(size_of::<Service>() == 128 && size_of::<SetHeader>() == 64);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn three_states_can_have_timeouts_of_their_own() {
        let named = |state| own_timeout(state).map(|place| (state::name(state), place));
        let all: std::vec::Vec<_> = (0..=u8::MAX).filter_map(named).collect();
        assert_eq!(all, [("ESTABLISHED", 0), ("FIN_WAIT", 1), ("UDP", 2)]);
    }
}
