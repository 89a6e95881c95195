//! Frames of scenarios: built from a few words, and put into words again when they come out of a director.
//!
//! The words say all that a director decides or could spoil: link address, addresses, ports, time to live, flags,
//! payload, whether checksums are right. What is drawn at random (identifications of packets that the director itself
//! makes) is left out.

use std::fmt::Write as _;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use etherparse::err::packet::BuildWriteError;
use etherparse::{
    IpHeaders, IpNumber, Ipv4Header, Ipv4HeaderSlice, Ipv6FlowLabel, Ipv6Header, Ipv6HeaderSlice,
    PacketBuilder, PacketBuilderStep, TcpHeader, TcpSlice, UdpSlice,
};
use lb_common::checksum::Sum;

pub const FIN: u8 = 0x01;
pub const SYN: u8 = 0x02;
pub const RST: u8 = 0x04;
pub const PSH: u8 = 0x08;
pub const ACK: u8 = 0x10;
pub const URG: u8 = 0x20;

const IPV4: u16 = 0x0800;
const IPV6: u16 = 0x86dd;
const TIME_TO_LIVE: u8 = 64;
/// Identification of every packet of a scenario, by which a forwarded packet is told from a director's own.
const IDENTIFICATION: u16 = 0x1234;

const ICMP: u8 = 1;
const IPV4_IN_IP: u8 = 4;
const TCP: u8 = 6;
const UDP: u8 = 17;
const IPV6_IN_IP: u8 = 41;
pub const ESP: u8 = 50;
pub const AH: u8 = 51;
const ICMPV6: u8 = 58;

/// A link address.
pub type Mac = [u8; 6];

/// The link address of whoever has an IP address, on either side of the director.
pub fn mac_of(address: IpAddr) -> Mac {
    match address {
        IpAddr::V4(address) => {
            let [a, b, c, d] = address.octets();
            [2, 4, a, b, c, d]
        }
        IpAddr::V6(address) => {
            let [.., a, b, c, d] = address.octets();
            [2, 6, a, b, c, d]
        }
    }
}

/// A packet that a client or a server sends.
#[derive(Debug, Clone)]
pub struct Packet {
    /// Destination and source.
    pub link: [Mac; 2],
    pub from: SocketAddr,
    pub to: SocketAddr,
    pub carried: Carried,
}

/// What is behind the IP header, with so many bytes behind its own.
#[derive(Debug, Clone)]
pub enum Carried {
    Tcp {
        flags: u8,
        payload: usize,
    },
    Udp {
        payload: usize,
    },
    /// Of an IP protocol that is not looked into.
    Other {
        protocol: u8,
        payload: usize,
    },
    /// An ICMP error about a packet, with the MTU that it tells.
    Error {
        kind: u8,
        code: u8,
        mtu: u16,
        about: Vec<u8>,
    },
}

impl Packet {
    /// The frame, with its checksums.
    pub fn bytes(&self) -> Vec<u8> {
        let ip = match (self.from.ip(), self.to.ip()) {
            (IpAddr::V4(from), IpAddr::V4(to)) => {
                let mut header =
                    Ipv4Header { source: from.octets(), destination: to.octets(), ..Ipv4Header::default() };
                header.time_to_live = TIME_TO_LIVE;
                header.identification = IDENTIFICATION;
                header.dont_fragment = true;
                IpHeaders::Ipv4(header, Default::default())
            }
            (IpAddr::V6(from), IpAddr::V6(to)) => IpHeaders::Ipv6(
                Ipv6Header {
                    source: from.octets(),
                    destination: to.octets(),
                    hop_limit: TIME_TO_LIVE,
                    flow_label: Ipv6FlowLabel::ZERO,
                    ..Ipv6Header::default()
                },
                Default::default(),
            ),
            mixed => panic!("{mixed:?}: one packet has one family"),
        };
        let [to, from] = self.link;
        let step = PacketBuilder::ethernet2(from, to).ip(ip);
        let counted = |bytes: usize| (0..bytes).map(|place| place as u8).collect::<Vec<u8>>();
        let mut bytes = Vec::new();
        let (from, to) = (self.from.port(), self.to.port());
        match &self.carried {
            Carried::Tcp { flags, payload } => {
                let mut header = TcpHeader::new(from, to, 1000, 4096);
                let has = |flag| flags & flag != 0;
                (header.fin, header.syn, header.rst) = (has(FIN), has(SYN), has(RST));
                (header.psh, header.ack, header.urg) = (has(PSH), has(ACK), has(URG));
                header.acknowledgment_number = if header.ack { 2000 } else { 0 };
                step.tcp_header(header).write(&mut bytes, &counted(*payload))
            }
            Carried::Udp { payload } => step.udp(from, to).write(&mut bytes, &counted(*payload)),
            Carried::Other { protocol, payload } => {
                step.write(&mut bytes, IpNumber(*protocol), &counted(*payload))
            }
            Carried::Error { kind, code, mtu, about } => {
                let [high, low] = mtu.to_be_bytes();
                let message = [&[*kind, *code, 0, 0, 0, 0, high, low][..], about].concat();
                self.with_checksum(step, &mut bytes, message)
            }
        }
        .expect("a packet of this size");
        bytes
    }

    /// Writes an ICMP message.
    fn with_checksum(
        &self,
        step: PacketBuilderStep<IpHeaders>,
        bytes: &mut Vec<u8>,
        mut message: Vec<u8>,
    ) -> Result<(), BuildWriteError> {
        let ends = (self.from.ip(), self.to.ip());
        let (protocol, sum) = if ends.0.is_ipv4() {
            (ICMP, Sum::ZERO)
        } else {
            (ICMPV6, pseudo_header(ends, ICMPV6, message.len()))
        };
        let checksum = sum.with(&message).finish();
        message[2..4].copy_from_slice(&checksum);
        step.write(bytes, IpNumber(protocol), &message)
    }
}

/// A frame that came out of a director.
#[derive(Debug, Clone)]
pub struct Frame {
    /// What it is.
    pub words: String,
    /// Where it goes on the link.
    pub to: Mac,
    pub icmp: bool,
    /// The addresses and ports that a server sees: the innermost ones. No ports are 0.
    pub from_to: (SocketAddr, SocketAddr),
    /// The packet, from its outermost IP header on.
    packet: Vec<u8>,
}

impl PartialEq for Frame {
    fn eq(&self, other: &Self) -> bool {
        // What the words leave out is not compared.
        (&self.words, self.to, self.icmp, self.from_to) == (&other.words, other.to, other.icmp, other.from_to)
    }
}

impl Eq for Frame {}

impl Frame {
    /// Puts a frame into words; `None` for what interfaces say by themselves (ARP, multicast).
    pub fn read(bytes: &[u8]) -> Option<Self> {
        let (link, packet) = bytes.split_first_chunk::<14>()?;
        let to: Mac = link[..6].try_into().ok()?;
        let kind = u16::from_be_bytes([link[12], link[13]]);
        if to[0] & 1 != 0 || !(kind == IPV4 || kind == IPV6) {
            return None;
        }
        let mut frame = Self {
            words: String::new(),
            to,
            icmp: false,
            from_to: (SocketAddr::new([0, 0, 0, 0].into(), 0), SocketAddr::new([0, 0, 0, 0].into(), 0)),
            packet: packet.to_vec(),
        };
        let next_hop = match to {
            [2, 4, a, b, c, d] => Ipv4Addr::from([a, b, c, d]).to_string(),
            [2, 6, rest @ ..] => format!("{rest:02x?}"),
            other => format!("{other:02x?}"),
        };
        let _ = write!(frame.words, "by {next_hop}: ");
        frame.packet(packet, false);
        Some(frame)
    }

    /// The ends of the packet, outermost IP header, and as much of it as an error of the Linux stack quotes.
    pub fn quote(&self) -> Option<((IpAddr, IpAddr), Vec<u8>)> {
        let v4 = Ipv4HeaderSlice::from_slice(&self.packet);
        let (ends, length, most) = if let Ok(header) = v4 {
            let ends = (header.source_addr().into(), header.destination_addr().into());
            (ends, usize::from(header.total_len()), 548)
        } else {
            let header = Ipv6HeaderSlice::from_slice(&self.packet).ok()?;
            let ends = (header.source_addr().into(), header.destination_addr().into());
            (ends, 40 + usize::from(header.payload_length()), 1232)
        };
        Some((ends, self.packet[..length.min(most).min(self.packet.len())].to_vec()))
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
                Some((addresses, header.next_header().0, 40, end))
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
            ICMP | ICMPV6 => self.icmp(addresses, protocol, rest),
            TCP | UDP => self.transport(addresses, protocol, rest, quoted),
            other => {
                let _ = write!(self.words, "protocol {other} {rest:02x?}");
            }
        }
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
        let (ports, payload) = match protocol {
            TCP => {
                let Ok(tcp) = TcpSlice::from_slice(bytes) else {
                    let _ = write!(self.words, "tcp {bytes:02x?}");
                    return;
                };
                let set = "FSRPAU".chars().enumerate().filter(|(bit, _)| bytes[13] >> bit & 1 != 0);
                let flags: String = set.map(|(_, letter)| letter).collect();
                let (sequence, acknowledged) = (tcp.sequence_number(), tcp.acknowledgment_number());
                let _ = write!(self.words, "tcp {flags} {sequence}/{acknowledged}/{}", tcp.window_size());
                ((tcp.source_port(), tcp.destination_port()), tcp.payload())
            }
            _ => {
                let Ok(udp) = UdpSlice::from_slice_lax(bytes) else {
                    let _ = write!(self.words, "udp {bytes:02x?}");
                    return;
                };
                self.words.push_str("udp");
                ((udp.source_port(), udp.destination_port()), udp.payload())
            }
        };
        let _ = write!(self.words, " {} > {}", ports.0, ports.1);
        if quoted {
            return;
        }
        let spoilt = (0u8..=255).cycle().zip(payload).any(|(expected, byte)| expected != *byte);
        let _ = write!(self.words, " with {} bytes{}", payload.len(), if spoilt { " SPOILT" } else { "" });
        match protocol == UDP && bytes[6..8] == [0, 0] {
            true => self.words.push_str(" without checksum"),
            false => self.checksum(pseudo_header(addresses, protocol, bytes.len()), bytes),
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

/// The sum of what a transport checksum covers besides the segment.
fn pseudo_header(addresses: (IpAddr, IpAddr), protocol: u8, length: usize) -> Sum {
    let sum = match addresses {
        (IpAddr::V4(from), IpAddr::V4(to)) => Sum::ZERO.with(&from.octets()).with(&to.octets()),
        (IpAddr::V6(from), IpAddr::V6(to)) => Sum::ZERO.with(&from.octets()).with(&to.octets()),
        _ => Sum::ZERO,
    };
    sum.with(&[0, protocol]).with(&(length as u16).to_be_bytes())
}
