//! The smallest TCP and UDP frames, made by the hundred thousand.

use std::net::{Ipv4Addr, SocketAddrV4};

/// Flags of a TCP header.
pub const SYN: u8 = 0x02;
/// As above.
pub const ACK: u8 = 0x10;

/// An Ethernet frame of the least length: 14 bytes of link header, 20 of IPv4, 20 of TCP, padding.
pub type Frame = [u8; 60];

const NETWORK: usize = 14;
const TRANSPORT: usize = 34;
const END: usize = 54;

/// Makes a segment with these flags and right checksums.
pub fn tcp(source: SocketAddrV4, destination: SocketAddrV4, flags: u8) -> Frame {
    // Sequence and acknowledgement numbers, header length, flags, window.
    let rest = [0, 0, 3, 232, 0, 0, 7, 208, 0x50, flags, 16, 0];
    packet(source, destination, 6, &rest, 16)
}

/// Makes a datagram with right checksums.
pub fn udp(source: SocketAddrV4, destination: SocketAddrV4) -> Frame {
    packet(source, destination, 17, &[0, 20, 0, 0, b'w', b'h', b'o', b'?', 0, 0, 0, 0], 6)
}

/// Makes a packet of 40 bytes whose transport header has `rest` after the ports and a checksum at an offset.
fn packet(source: SocketAddrV4, destination: SocketAddrV4, protocol: u8, rest: &[u8], sum: usize) -> Frame {
    let mut frame = [0; 60];
    frame[..14].copy_from_slice(&[2, 0, 0, 0, 0, 11, 2, 1, 0, 0, 0, 254, 0x08, 0x00]);
    frame[14..26].copy_from_slice(&[0x45, 0, 0, 40, 0x12, 0x34, 0x40, 0, 64, protocol, 0, 0]);
    frame[26..30].copy_from_slice(&source.ip().octets());
    frame[30..34].copy_from_slice(&destination.ip().octets());
    frame[34..36].copy_from_slice(&source.port().to_be_bytes());
    frame[36..38].copy_from_slice(&destination.port().to_be_bytes());
    frame[38..50].copy_from_slice(rest);
    let network = checksum(0, &frame[NETWORK..TRANSPORT]);
    frame[24..26].copy_from_slice(&network.to_be_bytes());
    // The pseudo header: both addresses, the protocol, the length.
    let pseudo = u32::from(protocol) + (END - TRANSPORT) as u32;
    let transport = checksum(pseudo, &frame[26..END]);
    frame[TRANSPORT + sum..TRANSPORT + sum + 2].copy_from_slice(&transport.to_be_bytes());
    frame
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

/// Where a frame goes.
pub fn destination(frame: &Frame) -> SocketAddrV4 {
    SocketAddrV4::new(
        Ipv4Addr::new(frame[30], frame[31], frame[32], frame[33]),
        u16::from_be_bytes([frame[36], frame[37]]),
    )
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

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn checksums_are_right() {
        let from = SocketAddrV4::new(Ipv4Addr::new(172, 16, 9, 1), 40000);
        let to = SocketAddrV4::new(Ipv4Addr::new(192, 168, 1, 100), 80);
        let frame = tcp(from, to, SYN);
        // Summed with itself, a right checksum gives zero.
        assert_eq!(checksum(0, &frame[NETWORK..TRANSPORT]), 0);
        assert_eq!(checksum(6 + 20, &frame[26..END]), 0);
        assert_eq!(destination(&frame), to);
        assert_eq!(checksum(17 + 20, &udp(from, to)[26..END]), 0);
    }

    #[test]
    fn clients_differ() {
        let clients = clients(1 << 16);
        assert_eq!(clients.iter().collect::<HashSet<_>>().len(), 1 << 16);
        assert_ne!(clients[..16], super::clients(16)[..]);
    }
}
