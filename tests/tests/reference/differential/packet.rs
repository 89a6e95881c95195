//! Packets that scenarios send: built from a few words, every checksum right unless a wrong one is wanted.

use std::net::{IpAddr, SocketAddr};

use etherparse::{
    IpFragOffset, IpNumber, Ipv4Header, Ipv6FlowLabel, Ipv6FragmentHeader, Ipv6Header, TcpHeader, UdpHeader,
};
use lb_common::checksum::Sum;
use lb_common::protocol::Protocol;

pub const FIN: u8 = 0x01;
pub const SYN: u8 = 0x02;
pub const RST: u8 = 0x04;
pub const PSH: u8 = 0x08;
pub const ACK: u8 = 0x10;
pub const URG: u8 = 0x20;

/// SCTP's chunks by their numbers, as scenarios name them.
pub const CHUNKS: [&str; 15] = [
    "DATA",
    "INIT",
    "INIT-ACK",
    "SACK",
    "HEARTBEAT",
    "HEARTBEAT-ACK",
    "ABORT",
    "SHUTDOWN",
    "SHUTDOWN-ACK",
    "ERROR",
    "COOKIE-ECHO",
    "COOKIE-ACK",
    "ECNE",
    "CWR",
    "SHUTDOWN-COMPLETE",
];
pub const INIT: u8 = 1;

/// IP protocols that go where a flow of datagrams goes.
pub const ESP: u8 = 50;
pub const AH: u8 = 51;

/// Identification of every packet of a scenario, by which a forwarded packet is told from a director's own.
pub const IDENTIFICATION: u16 = 0x1234;
const TIME_TO_LIVE: u8 = 64;

/// Bytes of an offending packet that fit into an ICMP error: RFC 1812 and RFC 4443 make it 576 and 1280 in all.
const QUOTED: [usize; 2] = [576 - 28, 1280 - 48];

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

/// What a packet carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Content {
    /// A segment of TCP with these flags.
    Segment { flags: u8, payload: usize },
    /// A datagram of UDP.
    Datagram { payload: usize },
    /// A message of SIP, of the call with this number, or without a Call-ID.
    Message { call: Option<usize> },
    /// A packet of another protocol, which is not looked into.
    Other { protocol: u8, payload: usize },
    /// A packet of SCTP: a chunk of one kind, and perhaps one more.
    Chunks { first: u8, second: Option<u8>, payload: usize },
}

/// A packet of a protocol that says nothing in particular.
impl From<Protocol> for Content {
    fn from(protocol: Protocol) -> Self {
        match protocol {
            Protocol::Tcp => Self::Segment { flags: ACK, payload: 100 },
            Protocol::Udp => Self::Datagram { payload: 100 },
            Protocol::Sctp => Self::Chunks { first: 0, second: None, payload: 100 },
        }
    }
}

/// What else can be said of a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shape {
    pub time_to_live: u8,
    /// Type of service, or traffic class.
    pub service_type: u8,
    /// Whether IPv4 routers may cut it.
    pub may_be_cut: bool,
    /// IPv4 with an option, or IPv6 with extension headers.
    pub options: bool,
    /// Its checksum is wrong.
    pub spoilt: bool,
    /// Sent in fragments of so many bytes (a multiple of eight) behind the IP header.
    pub pieces: Option<usize>,
    /// Fragments behind the first come last to first.
    pub backwards: bool,
}

impl Shape {
    pub const PLAIN: Self = Self {
        time_to_live: TIME_TO_LIVE,
        service_type: 0,
        may_be_cut: false,
        options: false,
        spoilt: false,
        pieces: None,
        backwards: false,
    };

    /// The packet, or its fragments in the order in which they are sent.
    pub fn packets(&self, from: SocketAddr, to: SocketAddr, content: &Content) -> Vec<Vec<u8>> {
        let (protocol, body) = self.transport(from, to, content);
        self.around(from.ip(), to.ip(), protocol, &body)
    }

    /// An ICMP error: type, code and the word behind the checksum, about the packet that is quoted.
    pub fn icmp(&self, from: IpAddr, to: IpAddr, kind: [u8; 2], word: u32, quote: &[u8]) -> Vec<Vec<u8>> {
        let mut body = [&[kind[0], kind[1], 0, 0][..], &word.to_be_bytes(), quote].concat();
        let protocol = if from.is_ipv4() { IpNumber::ICMP } else { IpNumber::IPV6_ICMP };
        let sum = if from.is_ipv4() { Sum::ZERO } else { pseudo_header((from, to), protocol.0, body.len()) };
        let sum = sum.with(&body).finish();
        body[2..4].copy_from_slice(&sum);
        body[2] ^= u8::from(self.spoilt);
        self.around(from, to, protocol, &body)
    }

    /// Puts what it carries into IP.
    fn around(&self, from: IpAddr, to: IpAddr, protocol: IpNumber, body: &[u8]) -> Vec<Vec<u8>> {
        let size = self.pieces.unwrap_or(body.len().max(1));
        let count = body.len().div_ceil(size);
        let piece = |(place, piece): (usize, &[u8])| {
            let header = match (from, to) {
                (IpAddr::V4(from), IpAddr::V4(to)) => {
                    let mut header = Ipv4Header::new(
                        piece.len() as u16,
                        self.time_to_live,
                        protocol,
                        from.octets(),
                        to.octets(),
                    )
                    .expect("no jumbo packets");
                    header.identification = IDENTIFICATION;
                    header.dont_fragment = !self.may_be_cut && self.pieces.is_none();
                    header.fragment_offset = IpFragOffset::try_new((place * size / 8) as u16).unwrap();
                    header.more_fragments = place + 1 < count;
                    header.dscp = (self.service_type >> 2).try_into().unwrap();
                    header.ecn = (self.service_type & 3).try_into().unwrap();
                    if self.options {
                        // Three times nothing, and the end.
                        header.options = [1, 1, 1, 0].into();
                        header.set_payload_len(piece.len()).unwrap();
                    }
                    header.header_checksum = header.calc_header_checksum();
                    header.to_bytes().to_vec()
                }
                (IpAddr::V6(from), IpAddr::V6(to)) => {
                    // Hop-by-hop, then destination options, each of six bytes of padding.
                    let mut chain = Vec::new();
                    let fragment = self.pieces.map(|_| {
                        let offset = IpFragOffset::try_new((place * size / 8) as u16).unwrap();
                        Ipv6FragmentHeader::new(protocol, offset, place + 1 < count, IDENTIFICATION.into())
                    });
                    let behind =
                        if fragment.is_some() { IpNumber::IPV6_FRAGMENTATION_HEADER } else { protocol };
                    if self.options {
                        chain.extend([IpNumber::IPV6_DESTINATION_OPTIONS.0, 0, 1, 4, 0, 0, 0, 0]);
                        chain.extend([behind.0, 0, 1, 4, 0, 0, 0, 0]);
                    }
                    chain.extend(fragment.iter().flat_map(Ipv6FragmentHeader::to_bytes));
                    let header = Ipv6Header {
                        traffic_class: self.service_type,
                        flow_label: Ipv6FlowLabel::ZERO,
                        payload_length: (chain.len() + piece.len()) as u16,
                        next_header: if self.options { IpNumber::IPV6_HEADER_HOP_BY_HOP } else { behind },
                        hop_limit: self.time_to_live,
                        source: from.octets(),
                        destination: to.octets(),
                    };
                    [&header.to_bytes()[..], &chain].concat()
                }
                mixed => panic!("{mixed:?}: one packet has one family"),
            };
            [&header, piece].concat()
        };
        let mut all: Vec<Vec<u8>> = body.chunks(size).enumerate().map(piece).collect();
        if self.backwards {
            all[1..].reverse();
        }
        all
    }

    /// The segment, datagram or whatever it is, with its checksum.
    fn transport(&self, from: SocketAddr, to: SocketAddr, content: &Content) -> (IpNumber, Vec<u8>) {
        let bytes = |count: usize| (0..count).map(|place| place as u8);
        let (protocol, checksum, mut body) = match *content {
            Content::Segment { flags, payload } => {
                let mut header = TcpHeader::new(from.port(), to.port(), 1000, 4096);
                let has = |flag| flags & flag != 0;
                (header.fin, header.syn, header.rst) = (has(FIN), has(SYN), has(RST));
                (header.psh, header.ack, header.urg) = (has(PSH), has(ACK), has(URG));
                header.acknowledgment_number = if header.ack { 2000 } else { 0 };
                (
                    IpNumber::TCP,
                    16,
                    header.to_bytes().iter().copied().chain(bytes(payload)).collect::<Vec<u8>>(),
                )
            }
            Content::Datagram { payload } => (IpNumber::UDP, 6, datagram(from, to, bytes(payload).collect())),
            Content::Message { call } => {
                let id = call.map(|number| format!("Call-ID: call-{number}@example.com\r\n"));
                let message = format!(
                    "OPTIONS sip:bob@example.com SIP/2.0\r\nMax-Forwards: 70\r\n{}CSeq: 1 OPTIONS\r\n\r\n",
                    id.unwrap_or_default()
                );
                (IpNumber::UDP, 6, datagram(from, to, message.into_bytes()))
            }
            Content::Other { protocol, payload } => return (IpNumber(protocol), bytes(payload).collect()),
            Content::Chunks { first, second, payload } => {
                // Ports, verification tag, checksum; then chunks of type, flags, length, value.
                let mut body =
                    [&from.port().to_be_bytes()[..], &to.port().to_be_bytes(), &[0, 0, 0, 7, 0, 0, 0, 0]]
                        .concat();
                for kind in std::iter::once(first).chain(second) {
                    body.extend([kind, 0]);
                    body.extend((4 + payload as u16).to_be_bytes());
                    body.extend(bytes(payload.next_multiple_of(4)));
                }
                (IpNumber::SCTP, 8, body)
            }
        };
        match protocol {
            IpNumber::SCTP => {
                let sum = crc32c(&body).to_le_bytes();
                body[8..12].copy_from_slice(&sum);
            }
            _ => {
                let sum = pseudo_header((from.ip(), to.ip()), protocol.0, body.len()).with(&body).finish();
                let sum = if protocol == IpNumber::UDP && sum == [0, 0] { [0xff, 0xff] } else { sum };
                body[checksum..checksum + 2].copy_from_slice(&sum);
            }
        }
        body[checksum] ^= u8::from(self.spoilt);
        (protocol, body)
    }
}

/// A frame with a packet of IP.
pub fn frame([to, from]: [Mac; 2], packet: &[u8]) -> Vec<u8> {
    let kind: u16 = if packet[0] >> 4 == 4 { 0x0800 } else { 0x86dd };
    [&to, &from, &kind.to_be_bytes()[..], packet].concat()
}

/// Source and destination of a packet.
pub fn addresses(packet: &[u8]) -> (IpAddr, IpAddr) {
    let read = |start, length| match length {
        4 => IpAddr::from(<[u8; 4]>::try_from(&packet[start..start + length]).unwrap()),
        _ => IpAddr::from(<[u8; 16]>::try_from(&packet[start..start + length]).unwrap()),
    };
    if packet[0] >> 4 == 4 { (read(12, 4), read(16, 4)) } else { (read(8, 16), read(24, 16)) }
}

/// As much of a packet as an ICMP error has room for.
pub fn quotable(packet: &[u8]) -> &[u8] {
    let room = QUOTED[usize::from(packet[0] >> 4 == 6)];
    &packet[..packet.len().min(room)]
}

/// The sum of what a transport checksum covers besides the segment.
pub fn pseudo_header(addresses: (IpAddr, IpAddr), protocol: u8, length: usize) -> Sum {
    let sum = match addresses {
        (IpAddr::V4(from), IpAddr::V4(to)) => Sum::ZERO.with(&from.octets()).with(&to.octets()),
        (IpAddr::V6(from), IpAddr::V6(to)) => Sum::ZERO.with(&from.octets()).with(&to.octets()),
        _ => Sum::ZERO,
    };
    sum.with(&[0, protocol]).with(&(length as u16).to_be_bytes())
}

/// SCTP's checksum: RFC 9260, appendix A, bit by bit.
pub fn crc32c(bytes: &[u8]) -> u32 {
    let bit = |crc: u32, _| if crc & 1 != 0 { crc >> 1 ^ 0x82f6_3b78 } else { crc >> 1 };
    !bytes.iter().fold(u32::MAX, |crc, byte| (0..8).fold(crc ^ u32::from(*byte), bit))
}

/// A datagram of UDP, without its checksum.
fn datagram(from: SocketAddr, to: SocketAddr, payload: Vec<u8>) -> Vec<u8> {
    let length = 8 + payload.len() as u16;
    let header = UdpHeader { source_port: from.port(), destination_port: to.port(), length, checksum: 0 };
    [&header.to_bytes()[..], &payload].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_make_the_whole() {
        let (from, to) = ("198.51.100.7:1000".parse().unwrap(), "192.168.1.100:53".parse().unwrap());
        let content = Content::Datagram { payload: 50 };
        let whole = &Shape::PLAIN.packets(from, to, &content)[0];
        let pieces = Shape { pieces: Some(24), ..Shape::PLAIN }.packets(from, to, &content);
        let joined: Vec<u8> = pieces.iter().flat_map(|piece| piece[20..].to_vec()).collect();
        assert_eq!((pieces.len(), &joined), (3, &whole[20..].to_vec()));
        assert_eq!(
            pieces.iter().map(|piece| piece[6..8].to_vec()).collect::<Vec<_>>(),
            [[0x20, 0], [0x20, 3], [0, 6]]
        );
    }
}
