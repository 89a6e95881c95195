//! Reading a frame's headers down to a flow: Ethernet, up to two VLAN tags, IPv4 with options, TCP and UDP.
//!
//! The frame is reached through [`Frame`], so that the same reader runs on a packet in the kernel and on
//! a slice on the host. Not here: what to do with the packet.

use crate::protocol::Protocol;
use crate::reason::Reason;
use crate::tuple::Tuple;

/// Bytes of an Ethernet header without tags.
pub const ETHERNET: usize = 14;
/// Bytes of a VLAN tag.
pub const VLAN_TAG: usize = 4;
/// Bytes of an IPv4 header without options.
pub const IPV4: usize = 20;
/// Bytes of a TCP header without options.
pub const TCP: usize = 20;
/// Bytes of a UDP header.
pub const UDP: usize = 8;
/// VLAN tags that are understood; a frame with more is not ours.
pub const MAX_TAGS: usize = 2;

const ETHERTYPE_IPV4: u16 = 0x0800;
const ETHERTYPE_VLAN: u16 = 0x8100;
const ETHERTYPE_QINQ: u16 = 0x88a8;

/// Bounded access to the bytes of a frame.
pub trait Frame {
    /// The `N` bytes from `offset` on, if the frame has them.
    fn bytes<const N: usize>(&self, offset: usize) -> Option<&[u8; N]>;

    /// Bytes in the frame.
    fn length(&self) -> usize;
}

impl Frame for [u8] {
    fn bytes<const N: usize>(&self, offset: usize) -> Option<&[u8; N]> {
        self.get(offset..)?.first_chunk()
    }

    fn length(&self) -> usize {
        self.len()
    }
}

/// What a frame's headers say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Packet {
    /// The flow.
    pub tuple: Tuple,
    /// Where the IPv4 header begins: 14, 18 or 22.
    pub network: u16,
    /// Where the transport header begins.
    pub transport: u16,
    /// The IPv4 total length in bytes: what counters count.
    pub length: u16,
    /// The type-of-service byte.
    pub service_type: u8,
    /// The flag byte of a TCP header, else 0.
    pub tcp_flags: u8,
    /// Time to live as it arrived.
    pub time_to_live: u8,
}

#[inline(always)]
fn be16(bytes: &[u8; 2]) -> u16 {
    u16::from_be_bytes(*bytes)
}

/// Where the header behind the Ethernet header and its tags begins, if it is IPv4.
#[inline(always)]
fn network_offset(frame: &(impl Frame + ?Sized)) -> Result<usize, Reason> {
    let mut offset = ETHERNET;
    let mut kind = be16(frame.bytes(offset - 2).ok_or(Reason::Malformed)?);
    for _ in 0..MAX_TAGS {
        if kind != ETHERTYPE_VLAN && kind != ETHERTYPE_QINQ {
            break;
        }
        offset += VLAN_TAG;
        kind = be16(frame.bytes(offset - 2).ok_or(Reason::Malformed)?);
    }
    if kind == ETHERTYPE_IPV4 { Ok(offset) } else { Err(Reason::NotIpv4) }
}

/// Reads a frame's headers.
///
/// # Errors
///
/// The reason why the frame has no flow that could be balanced. Fragments have none, even the first.
#[inline(always)]
pub fn read(frame: &(impl Frame + ?Sized)) -> Result<Packet, Reason> {
    let network = network_offset(frame)?;
    let header: &[u8; IPV4] = frame.bytes(network).ok_or(Reason::Malformed)?;
    let header_length = usize::from(header[0] & 0x0f) * 4;
    let length = u16::from_be_bytes([header[2], header[3]]);
    if header[0] >> 4 != 4 || header_length < IPV4 {
        return Err(Reason::Malformed);
    }
    // "More fragments", or an offset: all but the "don't fragment" and the reserved bit.
    if u16::from_be_bytes([header[6], header[7]]) & 0x3fff != 0 {
        return Err(Reason::Fragment);
    }
    let protocol = header[9];
    let transport_length = match protocol {
        6 => TCP,
        17 => UDP,
        _ => return Err(Reason::OtherProtocol),
    };
    let transport = network + header_length;
    if usize::from(length) < header_length + transport_length
        || network + usize::from(length) > frame.length()
    {
        return Err(Reason::Malformed);
    }
    let (ports, tcp_flags) = if protocol == Protocol::Tcp.number() {
        let tcp: &[u8; TCP] = frame.bytes(transport).ok_or(Reason::Malformed)?;
        ([tcp[0], tcp[1], tcp[2], tcp[3]], tcp[13])
    } else {
        let udp: &[u8; UDP] = frame.bytes(transport).ok_or(Reason::Malformed)?;
        ([udp[0], udp[1], udp[2], udp[3]], 0)
    };
    Ok(Packet {
        tuple: Tuple {
            addresses: u64::from_ne_bytes([
                header[12], header[13], header[14], header[15], header[16], header[17], header[18],
                header[19],
            ]),
            ports: u32::from_ne_bytes(ports),
            protocol,
        },
        network: network as u16,
        transport: transport as u16,
        length,
        service_type: header[1],
        tcp_flags,
        time_to_live: header[8],
    })
}
