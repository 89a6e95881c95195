//! Frames, built from a few words with all their checksums right.
//!
//! What should come out is built the same way, from nothing: so a checksum that the program patches is compared
//! with one that etherparse computes over the whole packet.

use std::net::SocketAddrV4;

use etherparse::{IpNumber, Ipv4Header, TcpHeader, UdpHeader};

pub const FIN: u8 = 0x01;
pub const SYN: u8 = 0x02;
pub const RST: u8 = 0x04;
pub const PSH: u8 = 0x08;
pub const ACK: u8 = 0x10;

/// A link address.
pub type Mac = [u8; 6];

/// Makes one frame of another, as rows of tables do.
pub type Change = fn(Frame) -> Frame;

/// What follows the IPv4 header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transport {
    /// A segment with these flags.
    Tcp(u8),
    /// A datagram, with a checksum or without.
    Udp { checksum: bool },
    /// A packet of SCTP with one chunk of this type.
    Sctp(u8),
    /// Of this IP protocol, with nothing before the payload.
    Other(u8),
}

/// SCTP's checksum: RFC 9260, appendix A, bit by bit.
fn crc32c(bytes: &[u8]) -> u32 {
    let bit = |crc: u32, _| if crc & 1 != 0 { crc >> 1 ^ 0x82f6_3b78 } else { crc >> 1 };
    !bytes.iter().fold(u32::MAX, |crc, byte| (0..8).fold(crc ^ u32::from(*byte), bit))
}

/// A frame in words.
#[derive(Debug, Clone)]
pub struct Frame {
    /// Destination and source of the Ethernet header.
    pub link: [Mac; 2],
    /// VLAN tags with their kind, outermost first.
    pub tags: Vec<(u16, u16)>,
    /// What lies between the link header and the IPv4 header: a tunnel's headers.
    pub outer: Vec<u8>,
    pub source: SocketAddrV4,
    pub destination: SocketAddrV4,
    pub time_to_live: u8,
    pub service_type: u8,
    pub dont_fragment: bool,
    /// IPv4 options, a multiple of four bytes.
    pub options: Vec<u8>,
    pub transport: Transport,
    pub payload: Vec<u8>,
}

impl Frame {
    fn new(source: SocketAddrV4, destination: SocketAddrV4, transport: Transport) -> Self {
        Self {
            link: [[0x02; 6], [0x04; 6]],
            tags: Vec::new(),
            outer: Vec::new(),
            source,
            destination,
            time_to_live: 64,
            service_type: 0,
            dont_fragment: true,
            options: Vec::new(),
            transport,
            payload: Vec::new(),
        }
    }

    /// A segment with these flags and nothing in it.
    pub fn tcp(source: SocketAddrV4, destination: SocketAddrV4, flags: u8) -> Self {
        Self::new(source, destination, Transport::Tcp(flags))
    }

    /// A datagram with a checksum.
    pub fn udp(source: SocketAddrV4, destination: SocketAddrV4) -> Self {
        Self {
            payload: b"query".to_vec(),
            ..Self::new(source, destination, Transport::Udp { checksum: true })
        }
    }

    /// A packet of SCTP with one chunk of a type.
    pub fn sctp(source: SocketAddrV4, destination: SocketAddrV4, kind: u8) -> Self {
        Self::new(source, destination, Transport::Sctp(kind))
    }

    /// A packet of an IP protocol without ports.
    pub fn other(protocol: u8, source: SocketAddrV4, destination: SocketAddrV4) -> Self {
        Self { payload: vec![0x5e; 40], ..Self::new(source, destination, Transport::Other(protocol)) }
    }

    pub fn payload(self, payload: impl Into<Vec<u8>>) -> Self {
        Self { payload: payload.into(), ..self }
    }

    pub fn time_to_live(self, time_to_live: u8) -> Self {
        Self { time_to_live, ..self }
    }

    /// With this type-of-service byte.
    pub fn service_type(self, service_type: u8) -> Self {
        Self { service_type, ..self }
    }

    /// May be cut in pieces.
    pub fn fragmentable(self) -> Self {
        Self { dont_fragment: false, ..self }
    }

    /// Behind a tunnel's headers.
    pub fn behind(self, outer: Vec<u8>) -> Self {
        Self { outer, ..self }
    }

    pub fn options(self, options: impl Into<Vec<u8>>) -> Self {
        Self { options: options.into(), ..self }
    }

    /// Behind one more tag, innermost last.
    pub fn tagged(mut self, kind: u16, identifier: u16) -> Self {
        self.tags.push((kind, identifier));
        self
    }

    pub fn without_checksum(self) -> Self {
        Self { transport: Transport::Udp { checksum: false }, ..self }
    }

    /// The frame a hop further on: this link header, one less to live.
    pub fn sent(self, link: [Mac; 2]) -> Self {
        Self { link, time_to_live: self.time_to_live - 1, tags: Vec::new(), ..self }
    }

    pub fn source(self, source: SocketAddrV4) -> Self {
        Self { source, ..self }
    }

    pub fn destination(self, destination: SocketAddrV4) -> Self {
        Self { destination, ..self }
    }

    /// The IPv4 header, checksum included.
    pub fn network(&self) -> Ipv4Header {
        let protocol = match self.transport {
            Transport::Tcp(_) => IpNumber::TCP,
            Transport::Udp { .. } => IpNumber::UDP,
            Transport::Sctp(_) => IpNumber::SCTP,
            Transport::Other(protocol) => IpNumber(protocol),
        };
        let payload = self.transport_bytes().len() as u16;
        let (source, destination) = (self.source.ip().octets(), self.destination.ip().octets());
        let mut header = Ipv4Header::new(0, self.time_to_live, protocol, source, destination).unwrap();
        header.identification = 0x1234;
        header.dont_fragment = self.dont_fragment;
        header.dscp = (self.service_type >> 2).try_into().unwrap();
        header.ecn = (self.service_type & 3).try_into().unwrap();
        header.options = self.options.as_slice().try_into().unwrap();
        header.set_payload_len(payload.into()).unwrap();
        header.header_checksum = header.calc_header_checksum();
        header
    }

    /// The transport header and what it carries, checksum included.
    fn transport_bytes(&self) -> Vec<u8> {
        let (source, destination) = (self.source.ip().octets(), self.destination.ip().octets());
        let (from, to) = (self.source.port(), self.destination.port());
        let mut bytes = match self.transport {
            Transport::Tcp(flags) => {
                let mut header = TcpHeader::new(from, to, 1000, 4096);
                header.acknowledgment_number = 2000;
                (header.fin, header.syn, header.rst) = (flags & FIN != 0, flags & SYN != 0, flags & RST != 0);
                (header.psh, header.ack) = (flags & PSH != 0, flags & ACK != 0);
                header.checksum = header.calc_checksum_ipv4_raw(source, destination, &self.payload).unwrap();
                header.to_bytes().to_vec()
            }
            Transport::Udp { checksum } => {
                let length = self.payload.len();
                let mut header = UdpHeader::without_ipv4_checksum(from, to, length).unwrap();
                if checksum {
                    header.checksum =
                        header.calc_checksum_ipv4_raw(source, destination, &self.payload).unwrap();
                }
                header.to_bytes().to_vec()
            }
            Transport::Sctp(kind) => {
                let length = 4 + self.payload.len() as u16;
                let (ports, tag) = ([from, to].map(u16::to_be_bytes), [0xca, 0xfe, 0xba, 0xbe]);
                [&ports.concat()[..], &tag, &[0; 4], &[kind, 0], &length.to_be_bytes()].concat()
            }
            Transport::Other(_) => Vec::new(),
        };
        bytes.extend_from_slice(&self.payload);
        if matches!(self.transport, Transport::Sctp(_)) {
            let checksum = crc32c(&bytes);
            bytes[8..12].copy_from_slice(&checksum.to_le_bytes());
        }
        bytes
    }

    /// Length from the IPv4 header on: what is counted.
    pub fn length(&self) -> u64 {
        self.network().total_len.into()
    }

    /// The packet: the frame from the IPv4 header on.
    pub fn packet(&self) -> Vec<u8> {
        [self.network().to_bytes().to_vec(), self.transport_bytes()].concat()
    }

    /// The frame.
    pub fn bytes(&self) -> Vec<u8> {
        let mut bytes = self.link.concat();
        for (kind, identifier) in &self.tags {
            bytes.extend_from_slice(&kind.to_be_bytes());
            bytes.extend_from_slice(&identifier.to_be_bytes());
        }
        bytes.extend_from_slice(&0x0800u16.to_be_bytes());
        bytes.extend_from_slice(&self.outer);
        bytes.extend_from_slice(&self.packet());
        bytes
    }
}
