//! The smallest frames of TCP and UDP, of both families, made by the hundred thousand.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4};

/// Flags of a TCP header.
pub const SYN: u8 = 0x02;
/// As above.
pub const ACK: u8 = 0x10;

/// An Ethernet frame, its link header included, as short as it can be: see [`bytes`].
pub type Frame = [u8; 74];

/// Bytes of a frame of IPv4, the fewest that Ethernet has.
const SHORT: usize = 60;

const NETWORK: usize = 14;

/// Returns the bytes of a frame: of IPv4 it has 60, of IPv6 all 74.
pub fn bytes(frame: &Frame) -> &[u8] {
    if is_ipv6(frame) { frame } else { &frame[..SHORT] }
}

fn is_ipv6(frame: &Frame) -> bool {
    frame[12..14] == [0x86, 0xdd]
}

/// Makes a segment with these flags and right checksums. Both addresses are of one family.
pub fn tcp(source: SocketAddr, destination: SocketAddr, flags: u8) -> Frame {
    // Sequence and acknowledgement numbers, header length, flags, window.
    let rest = [0, 0, 3, 232, 0, 0, 7, 208, 0x50, flags, 16, 0];
    packet(source, destination, 6, &rest, 16)
}

/// Makes a datagram with right checksums. Both addresses are of one family.
pub fn udp(source: SocketAddr, destination: SocketAddr) -> Frame {
    packet(source, destination, 17, &[0, 20, 0, 0, b'w', b'h', b'o', b'?', 0, 0, 0, 0], 6)
}

/// Makes a packet whose transport header and data are 20 bytes, `rest` after the ports, with a checksum at an offset.
fn packet(source: SocketAddr, destination: SocketAddr, protocol: u8, rest: &[u8; 12], sum: usize) -> Frame {
    let mut frame = [0; 74];
    frame[..12].copy_from_slice(&[2, 0, 0, 0, 0, 11, 2, 1, 0, 0, 0, 254]);
    let (addresses, transport) = match (source.ip(), destination.ip()) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            let header = [0x08, 0x00, 0x45, 0, 0, 40, 0x12, 0x34, 0x40, 0, 64, protocol, 0, 0];
            frame[12..26].copy_from_slice(&header);
            frame[26..30].copy_from_slice(&from.octets());
            frame[30..34].copy_from_slice(&to.octets());
            let sum = checksum(0, &frame[NETWORK..34]);
            frame[24..26].copy_from_slice(&sum.to_be_bytes());
            (26, 34)
        }
        (from, to) => {
            frame[12..22].copy_from_slice(&[0x86, 0xdd, 0x60, 0, 0, 0, 0, 20, protocol, 64]);
            frame[22..38].copy_from_slice(&octets(from));
            frame[38..54].copy_from_slice(&octets(to));
            (22, 54)
        }
    };
    frame[transport..transport + 2].copy_from_slice(&source.port().to_be_bytes());
    frame[transport + 2..transport + 4].copy_from_slice(&destination.port().to_be_bytes());
    frame[transport + 4..transport + 16].copy_from_slice(rest);
    // The pseudo header: both addresses, the protocol, the length.
    let right = checksum(u32::from(protocol) + 20, &frame[addresses..transport + 20]);
    frame[transport + sum..transport + sum + 2].copy_from_slice(&right.to_be_bytes());
    frame
}

fn octets(address: IpAddr) -> [u8; 16] {
    match address {
        IpAddr::V4(address) => address.to_ipv6_mapped().octets(),
        IpAddr::V6(address) => address.octets(),
    }
}

/// The Internet checksum (RFC 1071) of an even number of bytes and what was summed before.
fn checksum(before: u32, bytes: &[u8]) -> u16 {
    let words = bytes.as_chunks::<2>().0.iter().map(|word| u32::from(u16::from_be_bytes(*word)));
    let mut sum = before + words.sum::<u32>();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

/// Where a TCP or UDP frame goes.
pub fn destination(frame: &Frame) -> SocketAddr {
    let (address, port): (IpAddr, usize) = if is_ipv6(frame) {
        let mut octets = [0; 16];
        octets.copy_from_slice(&frame[38..54]);
        (Ipv6Addr::from(octets).into(), 56)
    } else {
        (Ipv4Addr::new(frame[30], frame[31], frame[32], frame[33]).into(), 36)
    };
    SocketAddr::new(address, u16::from_be_bytes([frame[port], frame[port + 1]]))
}

/// So many different clients, in an order that no prefetcher foresees, the same in every run.
pub fn clients(count: u32) -> Vec<SocketAddrV4> {
    let first = u32::from(Ipv4Addr::new(172, 16, 0, 0));
    let client =
        |number: u32| SocketAddrV4::new((first + number / 16).into(), 10_000 + (number % 16) as u16 * 1999);
    let mut clients: Vec<_> = (0..count).map(client).collect();
    // Marsaglia's xorshift, for Fisher and Yates's shuffle.
    let mut random = 0x2545_f491_4f6c_dd1du64;
    for last in (1..clients.len()).rev() {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        clients.swap(last, (random % (last as u64 + 1)) as usize);
    }
    clients
}

/// A client in the family of whom it talks to.
pub fn in_family(client: SocketAddrV4, to: SocketAddr) -> SocketAddr {
    if to.is_ipv4() {
        return client.into();
    }
    let [a, b, c, d] = client.ip().octets();
    let (high, low) = (u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d]));
    SocketAddr::new(Ipv6Addr::new(0xfd00, 0xc, 0, 0, 0, 0, high, low).into(), client.port())
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn checksums_are_right() {
        let from: SocketAddr = "172.16.9.1:40000".parse().unwrap();
        let to: SocketAddr = "192.168.1.100:80".parse().unwrap();
        // Summed with itself, a right checksum gives zero.
        let segment = tcp(from, to, SYN);
        assert_eq!(checksum(0, &segment[NETWORK..34]), 0);
        assert_eq!(checksum(6 + 20, &segment[26..54]), 0);
        assert_eq!((bytes(&segment).len(), destination(&segment)), (60, to));
        assert_eq!(checksum(17 + 20, &udp(from, to)[26..54]), 0);

        let from: SocketAddr = "[fd00::1]:40000".parse().unwrap();
        let to: SocketAddr = "[fd00::2]:80".parse().unwrap();
        let segment = tcp(from, to, ACK);
        assert_eq!(checksum(6 + 20, &segment[22..74]), 0);
        assert_eq!((bytes(&segment).len(), destination(&segment)), (74, to));
    }

    #[test]
    fn clients_differ() {
        let clients = clients(1 << 16);
        assert_eq!(clients.iter().collect::<HashSet<_>>().len(), 1 << 16);
        let to = "[fd00::2]:80".parse().unwrap();
        assert_eq!(
            clients.iter().map(|client| in_family(*client, to)).collect::<HashSet<_>>().len(),
            1 << 16
        );
        assert_ne!(clients[..16], super::clients(16)[..]);
    }
}
