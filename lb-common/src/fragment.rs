//! Fragments: later ones have no ports, and go where the first one of their datagram went.
//!
//! What is read of a fragment, and what is remembered of a first one. Nothing is put together: each fragment goes
//! on as it came, which is enough for whoever puts them together at the end. IPVS has datagrams put together first
//! (`ip_vs_gather_frags`), and counts them whole; so the counters see here what they would see there.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::packet::{self, Frame, IPV4, Packet};
use crate::reason::Reason;
use crate::tuple::Tuple;

/// Seconds that the ports of a first fragment are remembered: as long as the Linux stack waits for the others
/// (`ipfrag_time`).
pub const REMEMBERED: u32 = 30;

/// What the fragments of a datagram have in common.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Datagram {
    /// [`Tuple::addresses`].
    pub addresses: u64,
    /// The identification, in network order, loaded natively.
    pub identification: u32,
    /// [`Tuple::protocol`].
    pub protocol: u32,
}

/// What a first fragment leaves to later ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Ports {
    /// [`Tuple::ports`].
    pub ports: u32,
    /// The tick until which they hold: identifications come again.
    pub until: u32,
}

/// A fragment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fragment {
    /// Its headers; of a later one without ports, and with [`Packet::NO_TRANSPORT`].
    pub packet: Packet,
    /// The datagram that it is part of.
    pub datagram: Datagram,
}

impl Fragment {
    #[inline(always)]
    fn of(packet: Packet, identification: u32) -> Self {
        let Tuple { addresses, protocol, .. } = packet.tuple;
        Self { packet, datagram: Datagram { addresses, identification, protocol: protocol.into() } }
    }
}

/// Reads an IPv4 fragment, whose header begins at `network`.
///
/// # Errors
///
/// As for [`packet::read_ipv4`].
#[inline(always)]
pub fn read_ipv4(frame: &(impl Frame + ?Sized), network: usize) -> Result<Fragment, Reason> {
    let header: &[u8; IPV4] = frame.bytes(network).ok_or(Reason::Malformed)?;
    let identification = u32::from(u16::from_ne_bytes([header[4], header[5]]));
    Ok(Fragment::of(packet::ipv4::<true>(frame, network)?, identification))
}

/// Reads an IPv6 fragment, whose IPv6 header begins at `network`.
///
/// # Errors
///
/// As for [`packet::read_ipv6`].
#[inline(always)]
pub fn read_ipv6(frame: &(impl Frame + ?Sized), network: usize, seed: u64) -> Result<Fragment, Reason> {
    let (packet, identification) = packet::ipv6::<true>(frame, network, seed)?;
    Ok(Fragment::of(packet, identification))
}
