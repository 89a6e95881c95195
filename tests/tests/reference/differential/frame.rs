//! Frames that come out of a director, put into words.
//!
//! The words say all that a director decides or could spoil: link address, addresses, ports, time to live, flags,
//! payload, whether checksums are right, what is around a tunnelled packet. What is drawn at random (identifications of
//! packets that the director itself makes, a tunnel's source port) is left out.

use std::fmt::Write as _;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use etherparse::{Ipv4HeaderSlice, Ipv6HeaderSlice, TcpSlice, UdpSlice};
use lb_common::checksum::Sum;

use super::packet::{CHUNKS, IDENTIFICATION, Mac, crc32c, pseudo_header};

pub const HOP_BY_HOP: u8 = 0;
const ICMP: u8 = 1;
pub const IPV4_IN_IP: u8 = 4;
const TCP: u8 = 6;
const UDP: u8 = 17;
pub const IPV6_IN_IP: u8 = 41;
const GRE: u8 = 47;
pub const ICMPV6: u8 = 58;
pub const DESTINATION_OPTIONS: u8 = 60;
const SCTP: u8 = 132;

/// The port that GUE goes to in every scenario.
const GUE_PORT: u16 = 6080;

/// A frame that came out of a director, or the fragments that came of one packet.
#[derive(Debug, Clone)]
pub struct Frame {
    /// What it is.
    pub words: String,
    /// Where it goes on the link.
    pub to: Mac,
    pub icmp: bool,
    /// The addresses and ports that a server sees: the innermost ones. No ports are 0.
    pub from_to: (SocketAddr, SocketAddr),
    /// The packet, with what is around it.
    pub packet: Vec<u8>,
}

/// Two frames are the same if they read the same.
impl PartialEq for Frame {
    fn eq(&self, other: &Self) -> bool {
        self.words == other.words
    }
}

impl Frame {
    /// Puts a packet into words; `pieces` is what is to be said of how it came.
    pub fn new(to: Mac, packet: &[u8], pieces: &str) -> Self {
        let nobody = SocketAddr::new([0, 0, 0, 0].into(), 0);
        let mut frame = Self {
            words: String::new(),
            to,
            icmp: false,
            from_to: (nobody, nobody),
            packet: packet.to_vec(),
        };
        let next_hop = match to {
            [2, 4, a, b, c, d] => Ipv4Addr::from([a, b, c, d]).to_string(),
            [2, 6, rest @ ..] => format!("{rest:02x?}"),
            other => format!("{other:02x?}"),
        };
        let _ = write!(frame.words, "by {next_hop}: {pieces}");
        frame.packet(packet, false);
        frame
    }

    /// An IP packet, or the beginning of one that an ICMP message quotes.
    fn packet(&mut self, bytes: &[u8], quoted: bool) {
        let place = match (Ipv4HeaderSlice::from_slice(bytes), Ipv6HeaderSlice::from_slice(bytes)) {
            (Ok(header), _) => {
                let addresses = (header.source_addr().into(), header.destination_addr().into());
                let _ = write!(self.words, "ttl {} tos {}", header.ttl(), bytes[1]);
                if header.identification() == IDENTIFICATION {
                    self.words.push_str(" id as sent");
                }
                if header.dont_fragment() {
                    self.words.push_str(" DF");
                }
                if !header.options().is_empty() {
                    let _ = write!(self.words, " options {:02x?}", header.options());
                }
                if Sum::ZERO.with(header.slice()).finish() != [0, 0] {
                    self.words.push_str(" BAD CHECKSUM");
                }
                let end = usize::from(header.total_len()).min(bytes.len());
                Some((addresses, header.protocol().0, header.slice().len(), end))
            }
            (_, Ok(header)) => {
                let addresses = (header.source_addr().into(), header.destination_addr().into());
                let _ = write!(self.words, "hops {} class {}", header.hop_limit(), header.traffic_class());
                let end = (40 + usize::from(header.payload_length())).min(bytes.len());
                let (mut next, mut start) = (header.next_header().0, 40);
                while let (HOP_BY_HOP | DESTINATION_OPTIONS, Some(extension)) =
                    (next, bytes.get(start..start + 8))
                {
                    let _ = write!(self.words, " extension {next}");
                    (next, start) = (extension[0], start + 8 * (1 + usize::from(extension[1])));
                }
                Some((addresses, next, start, end))
            }
            _ => None,
        };
        let Some((addresses, protocol, start, end)) = place else {
            let _ = write!(self.words, " {bytes:02x?}");
            return;
        };
        let _ = write!(self.words, " {} > {} ", addresses.0, addresses.1);
        if !quoted {
            self.from_to = (SocketAddr::new(addresses.0, 0), SocketAddr::new(addresses.1, 0));
        }
        let rest = bytes.get(start..end).unwrap_or_default();
        match protocol {
            IPV4_IN_IP | IPV6_IN_IP => {
                self.words.push_str("around ");
                self.packet(rest, quoted);
            }
            GRE => self.gre(rest, quoted),
            UDP if rest.get(2..4) == Some(&GUE_PORT.to_be_bytes()) => self.gue(addresses, rest, quoted),
            ICMP | ICMPV6 => self.icmp(addresses, protocol, rest),
            TCP | UDP | SCTP => self.transport(addresses, protocol, rest, quoted),
            other => {
                let _ = write!(self.words, "protocol {other} {rest:02x?}");
            }
        }
    }

    /// A header of GRE, and what it is around.
    fn gre(&mut self, bytes: &[u8], quoted: bool) {
        let Some((header, rest)) = bytes.split_first_chunk::<4>() else { return };
        let _ = write!(self.words, "gre {header:02x?}");
        let summed = header[0] & 0x80 != 0;
        if summed && !quoted {
            self.checksum(Sum::ZERO, bytes);
        }
        self.words.push_str(" around ");
        self.packet(rest.get(if summed { 4 } else { 0 }..).unwrap_or_default(), quoted);
    }

    /// Headers of UDP and GUE, and what they are around.
    fn gue(&mut self, addresses: (IpAddr, IpAddr), bytes: &[u8], quoted: bool) {
        let Some((header, rest)) = bytes.split_first_chunk::<12>() else { return };
        let source = u16::from_be_bytes([header[0], header[1]]);
        let length = usize::from(u16::from_be_bytes([header[4], header[5]]));
        let _ = write!(self.words, "gue {:02x?}", &header[8..]);
        if !(32768..=60999).contains(&source) || (length != bytes.len() && !quoted) {
            let _ = write!(self.words, " FROM {source} OF {length} BYTES");
        }
        match header[6..8] == [0, 0] {
            true => self.words.push_str(" without checksum"),
            false if !quoted => self.checksum(pseudo_header(addresses, UDP, bytes.len()), bytes),
            false => {}
        }
        self.words.push_str(" around ");
        self.packet(rest, quoted);
    }

    fn icmp(&mut self, addresses: (IpAddr, IpAddr), protocol: u8, bytes: &[u8]) {
        self.icmp = true;
        let Some((header, quote)) = bytes.split_first_chunk::<8>() else { return };
        let _ = write!(self.words, "icmp {}/{} {:02x?}", header[0], header[1], &header[4..]);
        let sum = if protocol == ICMP { Sum::ZERO } else { pseudo_header(addresses, protocol, bytes.len()) };
        self.checksum(sum, bytes);
        // Errors quote a packet, everything else has data.
        let error = if protocol == ICMP { matches!(header[0], 3 | 4 | 5 | 11 | 12) } else { header[0] < 128 };
        if error {
            let _ = write!(self.words, " about {} bytes: ", quote.len());
            self.packet(quote, true);
        } else {
            let _ = write!(self.words, " {quote:02x?}");
        }
    }

    fn transport(&mut self, addresses: (IpAddr, IpAddr), protocol: u8, bytes: &[u8], quoted: bool) {
        let (ports, payload, spoilt) = match protocol {
            TCP => {
                let Ok(tcp) = TcpSlice::from_slice(bytes) else {
                    let _ = write!(self.words, "tcp {bytes:02x?}");
                    return;
                };
                let set = "FSRPAU".chars().enumerate().filter(|(bit, _)| bytes[13] >> bit & 1 != 0);
                let flags: String = set.map(|(_, letter)| letter).collect();
                let (sequence, acknowledged) = (tcp.sequence_number(), tcp.acknowledgment_number());
                let _ = write!(self.words, "tcp {flags} {sequence}/{acknowledged}/{}", tcp.window_size());
                ((tcp.source_port(), tcp.destination_port()), tcp.payload(), is_spoilt(tcp.payload()))
            }
            SCTP => {
                let Some((header, chunks)) = bytes.split_first_chunk::<12>() else {
                    let _ = write!(self.words, "sctp {bytes:02x?}");
                    return;
                };
                let kind = chunks.first().and_then(|kind| CHUNKS.get(usize::from(*kind)));
                let _ = write!(self.words, "sctp {} tag {:02x?}", kind.unwrap_or(&"?"), &header[4..8]);
                let port = |place| u16::from_be_bytes([header[place], header[place + 1]]);
                ((port(0), port(2)), chunks, false)
            }
            _ => {
                let Ok(udp) = UdpSlice::from_slice_lax(bytes) else {
                    let _ = write!(self.words, "udp {bytes:02x?}");
                    return;
                };
                self.words.push_str("udp");
                ((udp.source_port(), udp.destination_port()), udp.payload(), is_spoilt(udp.payload()))
            }
        };
        let _ = write!(self.words, " {} > {}", ports.0, ports.1);
        if quoted {
            return;
        }
        let _ = write!(self.words, " with {} bytes{}", payload.len(), if spoilt { " SPOILT" } else { "" });
        match protocol {
            UDP if bytes[6..8] == [0, 0] => self.words.push_str(" without checksum"),
            SCTP => {
                let summed = [&bytes[..8], &[0; 4], payload].concat();
                if bytes[8..12] != crc32c(&summed).to_le_bytes() {
                    self.words.push_str(" BAD CHECKSUM");
                }
            }
            _ => self.checksum(pseudo_header(addresses, protocol, bytes.len()), bytes),
        }
        self.from_to.0.set_port(ports.0);
        self.from_to.1.set_port(ports.1);
    }

    fn checksum(&mut self, sum: Sum, bytes: &[u8]) {
        if sum.with(bytes).finish() != [0, 0] {
            self.words.push_str(" BAD CHECKSUM");
        }
    }
}

/// Whether a payload is another than was sent.
fn is_spoilt(payload: &[u8]) -> bool {
    (0u8..=255).cycle().zip(payload).any(|(expected, byte)| expected != *byte)
}
