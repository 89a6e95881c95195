//! Frames as they are read from an interface: those of IP alone, fragments put together.
//!
//! A director may send fragments on as they came, or put them together and cut the whole anew: what a server makes of
//! them is the same, and so are the words.

use etherparse::{Ipv4HeaderSlice, Ipv6HeaderSlice};
use lb_common::checksum::Sum;

use super::frame::{DESTINATION_OPTIONS, Frame, HOP_BY_HOP, IPV4_IN_IP, IPV6_IN_IP};
use super::packet::Mac;

const IPV4: u16 = 0x0800;
const IPV6: u16 = 0x86dd;
const FRAGMENT: u8 = 44;

/// Puts frames into words, but for what interfaces say by themselves (ARP, multicast).
pub fn read(frames: &[Vec<u8>]) -> Vec<Frame> {
    let packets = frames.iter().filter_map(|bytes| {
        let (link, packet) = bytes.split_first_chunk::<14>()?;
        let to: Mac = link[..6].try_into().ok()?;
        let kind = u16::from_be_bytes([link[12], link[13]]);
        (to[0] & 1 == 0 && (kind == IPV4 || kind == IPV6)).then_some((to, packet))
    });
    let mut read = Vec::new();
    let mut pieces: Vec<(Mac, Piece)> = Vec::new();
    for (to, packet) in packets {
        match Piece::of(packet) {
            Some(piece) => pieces.push((to, piece)),
            None => read.push(Frame::new(to, packet, "")),
        }
    }
    pieces.sort_by(|(_, one), (_, other)| (&one.header, one.offset).cmp(&(&other.header, other.offset)));
    for datagram in pieces.chunk_by(|(_, one), (_, other)| one.header == other.header) {
        let [(to, first), ..] = datagram else { continue };
        let mut whole = first.header.clone();
        let mut there = 0;
        for (_, piece) in datagram.iter().filter(|(_, piece)| piece.outer == first.outer) {
            if piece.offset == there {
                there += piece.body.len();
                whole.extend(&piece.body);
            }
        }
        let complete =
            datagram.last().is_some_and(|(_, last)| !last.more && last.offset + last.body.len() == there);
        let pieces = if complete { format!("in {} pieces ", datagram.len()) } else { "INCOMPLETE ".into() };
        if first.outer > 0 {
            set_length(&mut whole, first.outer);
        }
        set_length(&mut whole, 0);
        read.push(Frame::new(*to, &whole, &pieces));
    }
    // A datagram may go through a tunnel piece by piece, or whole, with the tunnel's packet in pieces.
    for frame in &mut read {
        if let (true, Some((pieces, rest))) =
            (frame.words.contains(" around "), frame.words.split_once(" pieces "))
        {
            let start = pieces.rfind(' ').unwrap_or_default();
            frame.words = format!("{} pieces {rest}", &pieces[..start]);
        }
    }
    read
}

/// Writes how long a packet is that begins at a place of others, and its header's checksum if there was none.
fn set_length(packets: &mut [u8], start: usize) {
    let packet = &mut packets[start..];
    let (ipv4, length) = (packet[0] >> 4 == 4, packet.len() as u16);
    if !ipv4 {
        packet[4..6].copy_from_slice(&(length - 40).to_be_bytes());
        return;
    }
    packet[2..4].copy_from_slice(&length.to_be_bytes());
    if packet[10..12] == [0, 0] {
        let size = usize::from(packet[0] & 15) * 4;
        let sum = Sum::ZERO.with(&packet[..size]).finish();
        packet[10..12].copy_from_slice(&sum);
    }
}

/// A fragment, or one in an IPIP tunnel.
struct Piece {
    /// What all fragments of a packet begin with: without length, offset and checksum.
    header: Vec<u8>,
    /// Bytes of it that are the tunnel's.
    outer: usize,
    offset: usize,
    more: bool,
    body: Vec<u8>,
}

impl Piece {
    fn of(packet: &[u8]) -> Option<Self> {
        let around = match (packet[0] >> 4, packet.get(9), packet.get(6)) {
            (4, Some(&(IPV4_IN_IP | IPV6_IN_IP)), _) => 20,
            (6, _, Some(&(IPV4_IN_IP | IPV6_IN_IP))) => 40,
            _ => 0,
        };
        if around > 0 && Self::bare(packet).is_none() {
            let (outer, inner) = packet.split_at_checked(around)?;
            let mut piece = Self::bare(inner)?;
            // Of a tunnel's headers each is its own: they differ in length and identification.
            let mut outer = outer.to_vec();
            if around == 20 {
                outer[2..6].fill(0);
                outer[10..12].fill(0);
            } else {
                outer[4..6].fill(0);
            }
            piece.header = [outer, piece.header].concat();
            piece.outer = around;
            return Some(piece);
        }
        Self::bare(packet)
    }

    fn bare(packet: &[u8]) -> Option<Self> {
        if let Ok(ip) = Ipv4HeaderSlice::from_slice(packet) {
            if !ip.is_fragmenting_payload() {
                return None;
            }
            let mut header = ip.slice().to_vec();
            header[2..4].fill(0);
            header[6..8].fill(0);
            // As long as the sum is right, it says nothing.
            if Sum::ZERO.with(ip.slice()).finish() == [0, 0] {
                header[10..12].fill(0);
            }
            let offset = usize::from(ip.fragments_offset().value()) * 8;
            let end = usize::from(ip.total_len()).min(packet.len());
            let body = packet.get(header.len()..end)?.to_vec();
            return Some(Self { header, outer: 0, offset, more: ip.more_fragments(), body });
        }
        Ipv6HeaderSlice::from_slice(packet).ok()?;
        let (mut place, mut next) = (6, packet[6]);
        let mut start = 40;
        while matches!(next, HOP_BY_HOP | DESTINATION_OPTIONS) {
            place = start;
            next = *packet.get(place)?;
            start += 8 * (1 + usize::from(*packet.get(place + 1)?));
        }
        if next != FRAGMENT {
            return None;
        }
        let fragment = packet.get(start..start + 8)?;
        let word = u16::from_be_bytes([fragment[2], fragment[3]]);
        let mut header = packet[..start].to_vec();
        header[place] = fragment[0];
        header[4..6].fill(0);
        let body = packet[start + 8..].to_vec();
        Some(Self { header, outer: 0, offset: usize::from(word & !7), more: word & 1 != 0, body })
    }
}
