//! IPv4 headers, with options.

use super::transport::{Behind, ICMP_NUMBER};
use super::{FRAGMENT_BITS, Frame, IPV4, Packet, field};
use crate::reason::Reason;
use crate::tuple::Tuple;

/// Reads the headers from an IPv4 header on that begins at `network`.
///
/// # Errors
///
/// The reason why the frame has no flow that could be balanced. Fragments have none, even the first.
#[inline(always)]
pub fn read_ipv4(frame: &(impl Frame + ?Sized), network: usize) -> Result<Packet, Reason> {
    ipv4::<false>(frame, network)
}

/// As [`read_ipv4`], of what has no ports too: fragments and IPsec.
#[inline(always)]
pub(crate) fn ipv4<const FRAGMENTS: bool>(
    frame: &(impl Frame + ?Sized),
    network: usize,
) -> Result<Packet, Reason> {
    let header: &[u8; IPV4] = frame.bytes(network).ok_or(Reason::Malformed)?;
    let header_length = usize::from(header[0] & 0x0f) * 4;
    let length = frame.whole(0, u16::from_be_bytes([header[2], header[3]])).ok_or(Reason::Malformed)?;
    if header[0] >> 4 != 4 || header_length < IPV4 {
        return Err(Reason::Malformed);
    }
    let fragment = u16::from_be_bytes([header[6], header[7]]) & FRAGMENT_BITS;
    if !FRAGMENTS && fragment != 0 {
        return Err(Reason::Fragment);
    }
    let later = FRAGMENTS && fragment & 0x1fff != 0;
    let protocol = header[9];
    if protocol == ICMP_NUMBER {
        return Err(Reason::Icmp);
    }
    let (transport, end) = (network + header_length, network + usize::from(length));
    let behind = Behind::read::<FRAGMENTS>(frame, protocol, transport, end, later)?;
    Ok(Packet {
        tuple: Tuple {
            addresses: u64::from_ne_bytes(field(header, 12)),
            ports: behind.ports,
            protocol: behind.protocol,
        },
        network: network as u16,
        transport: behind.transport,
        length,
        counted: if later { length - header_length as u16 } else { length },
        service_type: header[1],
        tcp_flags: behind.tcp_flags,
        time_to_live: header[8],
    })
}
