//! The messages in which a master tells a backup of its connections.
//!
//! Version 1 is written; versions 1 and 0 are read. A message is a header and records; a record is a connection or a
//! persistence template. When to send one is said in [`master`], what to do with one in [`backup`]; how they travel (UDP
//! multicast) is user space's. IPVS counterpart: `ip_vs_sync.c`.

pub mod backup;
pub mod master;

use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// The multicast group that messages go to unless told otherwise.
#[doc(alias = "IP_VS_SYNC_GROUP")]
pub const GROUP: Ipv4Addr = Ipv4Addr::new(224, 0, 0, 81);
/// The UDP port that they go to unless told otherwise.
#[doc(alias = "IP_VS_SYNC_PORT")]
pub const PORT: u16 = 8848;
/// Bytes of the longest message that a master sends unless told otherwise: what a datagram in an Ethernet frame holds.
pub const LENGTH: usize = 1472;

/// [`Record::flags`]: the bits that hold the number of the forwarding method.
#[doc(alias = "IP_VS_CONN_F_FWD_MASK")]
pub const METHOD: u32 = 0x7;
/// [`Record::flags`]: no packet of the destination has come by.
#[doc(alias = "IP_VS_CONN_F_NOOUTPUT")]
pub const NO_OUTPUT: u32 = 0x80;
/// [`Record::flags`]: the state is not an active one.
#[doc(alias = "IP_VS_CONN_F_INACTIVE")]
pub const INACTIVE: u32 = 0x100;
/// [`Record::flags`]: sequence numbers of the server's packets are shifted; [`Record::sequences`] says how.
#[doc(alias = "IP_VS_CONN_F_OUT_SEQ")]
pub const OUT_SEQUENCE: u32 = 0x200;
/// [`Record::flags`]: sequence numbers of the client's packets are shifted; [`Record::sequences`] says how.
#[doc(alias = "IP_VS_CONN_F_IN_SEQ")]
pub const IN_SEQUENCE: u32 = 0x400;
/// [`Record::flags`]: the client's port is not known yet.
#[doc(alias = "IP_VS_CONN_F_NO_CPORT")]
pub const NO_CLIENT_PORT: u32 = 0x800;
/// [`Record::flags`]: a persistence template, not a connection.
#[doc(alias = "IP_VS_CONN_F_TEMPLATE")]
pub const TEMPLATE: u32 = 0x1000;
/// [`Record::flags`]: a connection of one datagram.
#[doc(alias = "IP_VS_CONN_F_ONE_PACKET")]
pub const ONE_PACKET: u32 = 0x2000;

const HEADER: usize = 8;
const OLD_HEADER: usize = 4;
const OLD_RECORD: usize = 24;
/// Bytes of a version 1 record before its addresses.
const FIXED: usize = 24;
/// Bytes of the two directions' sequence numbers.
const SEQUENCES: usize = 24;
const VERSION: u8 = 1;
/// Bit of a record's type that tells IPv6.
const IPV6: u8 = 1;
/// Bits of the word with version and length that are the length.
const RECORD_LENGTH: u16 = 0x0fff;

const OPTION_SEQUENCES: u8 = 1;
const OPTION_ENGINE_DATA: u8 = 2;
const OPTION_ENGINE_NAME: u8 = 3;
/// Bit of an option's type: whoever does not know it may pass over it.
const OPTION_MAY_BE_IGNORED: u8 = 0x40;
const ENGINE_NAME_LENGTH: usize = 16;

/// What a message tells of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Record<'a> {
    /// IP protocol number.
    pub protocol: u8,
    /// [`METHOD`], [`INACTIVE`] and the others; bits that have no name here are kept.
    pub flags: u32,
    /// Connection state, by its number in the protocol.
    pub state: u16,
    /// The client's port; 0 in a template.
    pub client_port: u16,
    /// The virtual port.
    pub virtual_port: u16,
    /// The destination's port.
    pub destination_port: u16,
    /// The firewall mark of the packet that made it; 0 for none, and in version 0.
    pub mark: u32,
    /// Seconds that it lives if no packet comes; none in version 0.
    pub timeout: Option<u32>,
    /// The client's address; masked in a template.
    pub client: IpAddr,
    /// The virtual address.
    pub virtual_address: IpAddr,
    /// The destination's address, of the same family.
    pub destination: IpAddr,
    /// How sequence numbers are shifted, there if a flag says that they are.
    pub sequences: Option<[Sequence; 2]>,
    /// The persistence engine's name and data, each if there is any.
    pub engine_name: Option<&'a [u8]>,
    /// See `engine_name`.
    pub engine_data: Option<&'a [u8]>,
}

/// How one direction's sequence numbers are shifted: the client's first, then the server's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sequence {
    /// From this number on `delta` holds, before it `previous_delta`.
    #[doc(alias = "init_seq")]
    pub from: u32,
    /// What is added.
    pub delta: u32,
    /// What was added before.
    pub previous_delta: u32,
}

/// What xipvs's directors say to each other beside records: in a message of version 1 that has none, which any other backup
/// reads to its end and has nothing to do for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Note {
    /// A backup that has just started asks the masters for all that they have, to be sent to where this comes from.
    Ask,
    /// That was all, of so many records.
    All(u32),
}

/// The bytes that tell a note from whatever else follows the header of a message without records.
const NOTE: [u8; 4] = *b"xips";
/// Bytes of a message with a note.
pub const NOTE_LENGTH: usize = HEADER + NOTE.len() + 8;

impl Note {
    /// The message that says it.
    pub fn message(self, sync_id: u8) -> [u8; NOTE_LENGTH] {
        let (kind, number) = match self {
            Self::Ask => (1u32, 0u32),
            Self::All(records) => (2, records),
        };
        let mut message = [0; NOTE_LENGTH];
        let [head, note] = [[0, sync_id, 0, NOTE_LENGTH as u8], [0, VERSION, 0, 0]];
        for (place, word) in
            message.chunks_exact_mut(4).zip([head, note, NOTE, kind.to_be_bytes(), number.to_be_bytes()])
        {
            place.copy_from_slice(&word);
        }
        message
    }

    fn read(bytes: &[u8]) -> Option<Self> {
        let bytes: &[u8; NOTE_LENGTH - HEADER] = bytes.try_into().ok()?;
        let (words, _) = bytes.as_chunks::<4>();
        match (words[0], u32::from_be_bytes(words[1])) {
            (NOTE, 1) => Some(Self::Ask),
            (NOTE, 2) => Some(Self::All(u32::from_be_bytes(words[2]))),
            _ => None,
        }
    }
}

/// Why a message, or a record in it, is not read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Malformed {
    /// It ends too early, or says another length than it has.
    Length,
    /// A version that is not known.
    Version,
    /// An option that is not known and must be, or is there twice.
    Option,
}

/// A message that is being written, version 1, into room that the caller has.
#[derive(Debug)]
pub struct Writer<'a> {
    room: &'a mut [u8],
    used: usize,
    count: u8,
}

impl<'a> Writer<'a> {
    /// An empty message; none if the room is not even enough for the header.
    pub fn new(room: &'a mut [u8]) -> Option<Self> {
        (room.len() >= HEADER).then_some(Self { room, used: HEADER, count: 0 })
    }

    /// Records in it so far.
    pub fn count(&self) -> u8 {
        self.count
    }

    /// Adds a record if there is room, and says whether there was.
    ///
    /// One with addresses of different families, a name of more than 16 bytes or data of more than 255 has no form, and
    /// never has room.
    pub fn push(&mut self, record: &Record<'_>) -> bool {
        // A record begins at a multiple of four bytes.
        let start = self.used.next_multiple_of(4);
        let length = record.length();
        let Some(place) = self.room.get_mut(start..start.saturating_add(length)) else { return false };
        if self.count == u8::MAX || start + length > usize::from(u16::MAX) || record.write(place).is_none() {
            return false;
        }
        self.room[self.used..start].fill(0);
        self.used = start + length;
        self.count += 1;
        true
    }

    /// The whole message, from the master with this number (the eighth bit and above are lost).
    pub fn finish(self, sync_id: u8) -> &'a [u8] {
        let [high, low] = (self.used as u16).to_be_bytes();
        self.room[..HEADER].copy_from_slice(&[0, sync_id, high, low, self.count, VERSION, 0, 0]);
        &self.room[..self.used]
    }
}

impl Record<'_> {
    /// The same without what belongs to a persistence engine, and so without anything of the message.
    pub fn without_engine(&self) -> Record<'static> {
        let Self {
            protocol, flags, state, client_port, virtual_port, destination_port, mark, timeout, ..
        } = *self;
        let Self { client, virtual_address, destination, sequences, .. } = *self;
        Record {
            protocol,
            flags,
            state,
            client_port,
            virtual_port,
            destination_port,
            mark,
            timeout,
            client,
            virtual_address,
            destination,
            sequences,
            engine_name: None,
            engine_data: None,
        }
    }

    /// Bytes that it takes in a version 1 message, without what fills up to the next.
    fn length(&self) -> usize {
        let addresses = if self.client.is_ipv4() { 3 * 4 } else { 3 * 16 };
        let option = |data: Option<&[u8]>| data.map_or(0, |data| 2 + data.len());
        FIXED
            + addresses
            + self.sequences.map_or(0, |_| 2 + SEQUENCES)
            + option(self.engine_data)
            + option(self.engine_name)
    }

    /// Writes it into room of just its length; `None` if it has no form.
    fn write(&self, room: &mut [u8]) -> Option<()> {
        let kind = if self.client.is_ipv4() { 0 } else { IPV6 };
        let length = u16::try_from(room.len()).ok().filter(|length| *length <= RECORD_LENGTH)?;
        let mut to = Cursor(room);
        to.put(&[kind, self.protocol])?;
        to.put(&length.to_be_bytes())?;
        to.put(&self.flags.to_be_bytes())?;
        for short in [self.state, self.client_port, self.virtual_port, self.destination_port] {
            to.put(&short.to_be_bytes())?;
        }
        to.put(&self.mark.to_be_bytes())?;
        to.put(&self.timeout.unwrap_or(0).to_be_bytes())?;
        match (self.client, self.virtual_address, self.destination) {
            (IpAddr::V4(client), IpAddr::V4(virtual_address), IpAddr::V4(destination)) => {
                for address in [client, virtual_address, destination] {
                    to.put(&address.octets())?;
                }
            }
            (IpAddr::V6(client), IpAddr::V6(virtual_address), IpAddr::V6(destination)) => {
                for address in [client, virtual_address, destination] {
                    to.put(&address.octets())?;
                }
            }
            _ => return None,
        }
        if let Some(sequences) = self.sequences {
            to.put(&[OPTION_SEQUENCES, SEQUENCES as u8])?;
            for word in sequences.iter().flat_map(|way| [way.from, way.delta, way.previous_delta]) {
                to.put(&word.to_be_bytes())?;
            }
        }
        if let Some(data) = self.engine_data {
            to.put(&[OPTION_ENGINE_DATA, u8::try_from(data.len()).ok()?])?;
            to.put(data)?;
        }
        if let Some(name) = self.engine_name.filter(|name| name.len() <= ENGINE_NAME_LENGTH) {
            to.put(&[OPTION_ENGINE_NAME, name.len() as u8])?;
            to.put(name)?;
        }
        to.0.is_empty().then_some(())
    }
}

/// Room that is being filled.
struct Cursor<'a>(&'a mut [u8]);

impl Cursor<'_> {
    fn put(&mut self, bytes: &[u8]) -> Option<()> {
        let (place, rest) = core::mem::take(&mut self.0).split_at_mut_checked(bytes.len())?;
        place.copy_from_slice(bytes);
        self.0 = rest;
        Some(())
    }
}

/// A message that was received.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Message<'a> {
    /// The master's number.
    pub sync_id: u8,
    version: u8,
    count: u8,
    records: &'a [u8],
}

impl<'a> Message<'a> {
    /// Reads the header of a datagram.
    ///
    /// # Errors
    ///
    /// When the datagram has another length than it says, or a version that is neither 0 nor 1.
    pub fn read(bytes: &'a [u8]) -> Result<Self, Malformed> {
        let (header, _) = bytes.split_first_chunk::<OLD_HEADER>().ok_or(Malformed::Length)?;
        let [count, sync_id, high, low] = *header;
        if usize::from(u16::from_be_bytes([high, low])) != bytes.len() {
            return Err(Malformed::Length);
        }
        if let Some((&[0, sync_id, _, _, count, version, 0, 0], records)) =
            bytes.split_first_chunk::<HEADER>()
        {
            // In version 0 a first byte of 0 says that there are no records.
            return if version == VERSION {
                Ok(Self { sync_id, version, count, records })
            } else {
                Err(Malformed::Version)
            };
        }
        Ok(Self { sync_id, version: 0, count, records: &bytes[OLD_HEADER..] })
    }

    /// The note that it is, if it is one.
    pub fn note(&self) -> Option<Note> {
        if self.version == VERSION && self.count == 0 { Note::read(self.records) } else { None }
    }

    /// The records. After one that says a wrong length there are no more, as nobody knows where the next begins.
    pub fn records(&self) -> Records<'a> {
        Records { left: self.count, version: self.version, rest: self.records }
    }
}

/// The records of a message.
#[derive(Debug, Clone)]
pub struct Records<'a> {
    left: u8,
    version: u8,
    rest: &'a [u8],
}

impl<'a> Iterator for Records<'a> {
    type Item = Result<Record<'a>, Malformed>;

    fn next(&mut self) -> Option<Self::Item> {
        self.left = self.left.checked_sub(1)?;
        let read = if self.version == 0 { read_old(self.rest) } else { read_record(self.rest) };
        let (record, length) = match read {
            Ok(read) => read,
            Err(malformed) => {
                self.left = 0;
                return Some(Err(malformed));
            }
        };
        self.rest = self.rest.get(length..).unwrap_or_default();
        Some(record)
    }
}

/// What [`Records`] gives, with the bytes to the beginning of the next; an error if nobody knows those.
type Step<'a> = Result<(Result<Record<'a>, Malformed>, usize), Malformed>;

fn read_record(bytes: &[u8]) -> Step<'_> {
    let length = bytes.get(2..4).ok_or(Malformed::Length)?;
    let word = u16::from_be_bytes([length[0], length[1]]);
    let length = usize::from(word & RECORD_LENGTH);
    let record = bytes.get(..length).ok_or(Malformed::Length)?;
    let next = length.next_multiple_of(4);
    if word & !RECORD_LENGTH != 0 {
        return Ok((Err(Malformed::Version), next));
    }
    let (fixed, rest) = record.split_first_chunk::<FIXED>().ok_or(Malformed::Length)?;
    let (addresses, options) = if fixed[0] & IPV6 == 0 {
        let (bytes, options) = rest.split_first_chunk::<12>().ok_or(Malformed::Length)?;
        (addresses_v4(bytes), options)
    } else {
        let (bytes, options) = rest.split_first_chunk::<48>().ok_or(Malformed::Length)?;
        let (each, _) = bytes.as_chunks::<16>();
        ([each[0], each[1], each[2]].map(|octets| Ipv6Addr::from(octets).into()), options)
    };
    let short = |at: usize| u16::from_be_bytes([fixed[at], fixed[at + 1]]);
    let long = |at: usize| u32::from_be_bytes([fixed[at], fixed[at + 1], fixed[at + 2], fixed[at + 3]]);
    let record = Record {
        protocol: fixed[1],
        flags: long(4),
        state: short(8),
        client_port: short(10),
        virtual_port: short(12),
        destination_port: short(14),
        mark: long(16),
        timeout: Some(long(20)),
        client: addresses[0],
        virtual_address: addresses[1],
        destination: addresses[2],
        sequences: None,
        engine_name: None,
        engine_data: None,
    };
    Ok((read_options(record, options), next))
}

fn read_options<'a>(mut record: Record<'a>, mut rest: &'a [u8]) -> Result<Record<'a>, Malformed> {
    while let Some((&[kind, length], behind)) = rest.split_first_chunk::<2>() {
        let data = behind.get(..length.into()).ok_or(Malformed::Length)?;
        rest = &behind[length.into()..];
        let twice = match kind & !OPTION_MAY_BE_IGNORED {
            OPTION_SEQUENCES => {
                let bytes: &[u8; SEQUENCES] = data.try_into().map_err(|_| Malformed::Length)?;
                record.sequences.replace(sequences(bytes)).is_some()
            }
            OPTION_ENGINE_DATA => record.engine_data.replace(data).is_some(),
            OPTION_ENGINE_NAME if data.len() <= ENGINE_NAME_LENGTH => {
                record.engine_name.replace(data).is_some()
            }
            OPTION_ENGINE_NAME => return Err(Malformed::Length),
            _ => kind & OPTION_MAY_BE_IGNORED == 0,
        };
        if twice {
            return Err(Malformed::Option);
        }
    }
    if rest.is_empty() { Ok(record) } else { Err(Malformed::Length) }
}

fn read_old(bytes: &[u8]) -> Step<'_> {
    let (fixed, rest) = bytes.split_first_chunk::<OLD_RECORD>().ok_or(Malformed::Length)?;
    let short = |at: usize| u16::from_be_bytes([fixed[at], fixed[at + 1]]);
    let flags = u32::from(short(20));
    let (shifted, length) = if flags & (OUT_SEQUENCE | IN_SEQUENCE) == 0 {
        (None, OLD_RECORD)
    } else {
        let (bytes, _) = rest.split_first_chunk::<SEQUENCES>().ok_or(Malformed::Length)?;
        (Some(sequences(bytes)), OLD_RECORD + SEQUENCES)
    };
    let [client, virtual_address, destination] =
        addresses_v4(fixed[8..20].try_into().map_err(|_| Malformed::Length)?);
    let record = Record {
        protocol: fixed[1],
        flags,
        state: short(22),
        client_port: short(2),
        virtual_port: short(4),
        destination_port: short(6),
        mark: 0,
        timeout: None,
        client,
        virtual_address,
        destination,
        sequences: shifted,
        engine_name: None,
        engine_data: None,
    };
    Ok((Ok(record), length))
}

fn addresses_v4(bytes: &[u8; 12]) -> [IpAddr; 3] {
    let (each, _) = bytes.as_chunks::<4>();
    [each[0], each[1], each[2]].map(|octets| Ipv4Addr::from(octets).into())
}

fn sequences(bytes: &[u8; SEQUENCES]) -> [Sequence; 2] {
    let (words, _) = bytes.as_chunks::<4>();
    let way = |at: usize| Sequence {
        from: u32::from_be_bytes(words[at]),
        delta: u32::from_be_bytes(words[at + 1]),
        previous_delta: u32::from_be_bytes(words[at + 2]),
    };
    [way(0), way(3)]
}

#[cfg(test)]
mod tests {
    use std::vec::Vec;

    use proptest::prelude::*;

    use super::*;

    pub(super) fn web() -> Record<'static> {
        Record {
            protocol: 6,
            flags: NO_OUTPUT | 3,
            state: 1,
            client_port: 7001,
            virtual_port: 80,
            destination_port: 80,
            mark: 0,
            timeout: Some(900),
            client: Ipv4Addr::new(10, 0, 0, 77).into(),
            virtual_address: Ipv4Addr::new(10, 0, 0, 100).into(),
            destination: Ipv4Addr::new(10, 1, 1, 9).into(),
            sequences: None,
            engine_name: None,
            engine_data: None,
        }
    }

    /// Captured from Linux 6.1: a persistent connection by direct routing, its template before and after it, from a
    /// master with number 77.
    #[test]
    fn a_captured_message_is_read_and_written() {
        let template = [
            0x00, 0x06, 0x00, 0x24, 0x00, 0x00, 0x11, 0x83, 0x00, 0x01, 0, 0, 0, 0x50, 0, 0x50, 0, 0, 0, 0,
            0, 0, 0x01, 0x2c, 10, 0, 0, 77, 10, 0, 0, 100, 10, 1, 1, 9,
        ];
        let connection = [
            0x00, 0x06, 0x00, 0x24, 0x00, 0x00, 0x00, 0x83, 0x00, 0x01, 0x1b, 0x59, 0, 0x50, 0, 0x50, 0, 0,
            0, 0, 0, 0, 0x03, 0x84, 10, 0, 0, 77, 10, 0, 0, 100, 10, 1, 1, 9,
        ];
        let header = [0x00, 0x4d, 0x00, 0x74, 0x03, 0x01, 0, 0];
        let bytes: Vec<u8> = [&header[..], &template, &connection, &template].concat();

        let message = Message::read(&bytes).unwrap();
        let records: Vec<_> = message.records().map(Result::unwrap).collect();
        let template = Record {
            flags: TEMPLATE | INACTIVE | NO_OUTPUT | 3,
            client_port: 0,
            timeout: Some(300),
            ..web()
        };
        assert_eq!((message.sync_id, &records[..]), (77, &[template, web(), template][..]));

        let mut room = [0xff; LENGTH];
        let mut writer = Writer::new(&mut room).unwrap();
        assert!(records.iter().all(|record| writer.push(record)));
        assert_eq!(writer.finish(77), bytes);
    }

    #[test]
    fn a_message_of_version_0_is_read() {
        let mut bytes = Vec::from([2, 5, 0, 76]);
        let record =
            [0, 6, 0x1b, 0x59, 0, 80, 0, 80, 10, 0, 0, 77, 10, 0, 0, 100, 10, 1, 1, 9, 0, 0x83, 0, 1];
        bytes.extend(record);
        bytes.extend(record);
        bytes[4 + 24 + 20..][..2].copy_from_slice(&[0x02, 0x83]);
        bytes.extend((1u32..=6).flat_map(u32::to_be_bytes));
        let message = Message::read(&bytes).unwrap();
        let records: Vec<_> = message.records().map(Result::unwrap).collect();
        let old = Record { timeout: None, ..web() };
        let shifted = [
            Sequence { from: 1, delta: 2, previous_delta: 3 },
            Sequence { from: 4, delta: 5, previous_delta: 6 },
        ];
        let moved = Record { flags: old.flags | OUT_SEQUENCE, sequences: Some(shifted), ..old };
        assert_eq!((message.sync_id, records), (5, Vec::from([old, moved])));
    }

    #[test]
    fn a_note_is_a_message_without_records() {
        for note in [Note::Ask, Note::All(0x0102_0304)] {
            let bytes = note.message(9);
            let message = Message::read(&bytes).unwrap();
            assert_eq!((message.sync_id, message.note(), message.records().count()), (9, Some(note), 0));
        }
        let mut room = [0; HEADER];
        let empty = Writer::new(&mut room).unwrap().finish(0);
        assert_eq!(Message::read(empty).unwrap().note(), None);
        let mut unknown = Note::Ask.message(0);
        unknown[15] = 3;
        assert_eq!(Message::read(&unknown).unwrap().note(), None);
    }

    #[test]
    fn an_unknown_option_matters_unless_it_says_that_it_does_not() {
        let mut room = [0; 200];
        let mut writer = Writer::new(&mut room).unwrap();
        assert!(writer.push(&Record { engine_name: Some(b"sip"), ..web() }));
        assert!(writer.push(&web()));
        let mut bytes = Vec::from(writer.finish(0));
        for (kind, read) in [(0x43, true), (0x44, true), (0x04, false)] {
            bytes[8 + 36] = kind;
            let mut records = Message::read(&bytes).unwrap().records();
            assert_eq!(records.next().unwrap().is_ok(), read, "{kind:#x}");
            // The next one is there in any case.
            assert_eq!((records.next(), records.next()), (Some(Ok(web())), None));
        }
    }

    #[test]
    fn what_has_no_room_is_not_begun() {
        let mut room = [0; HEADER + 36 + 35];
        let mut writer = Writer::new(&mut room).unwrap();
        assert!(writer.push(&web()) && !writer.push(&web()));
        assert_eq!((writer.count(), writer.finish(1).len()), (1, HEADER + 36));
        assert!(Writer::new(&mut [0; HEADER - 1]).is_none());
        let mixed = Record { destination: Ipv6Addr::LOCALHOST.into(), ..web() };
        assert!(!Writer::new(&mut [0; 400]).unwrap().push(&mixed));
        let long = Record { engine_name: Some(&[b'x'; 17]), ..web() };
        assert!(!Writer::new(&mut [0; 400]).unwrap().push(&long));
    }

    fn addresses() -> impl Strategy<Value = [IpAddr; 3]> {
        prop_oneof![
            any::<[[u8; 4]; 3]>().prop_map(|all| all.map(|octets| Ipv4Addr::from(octets).into())),
            any::<[[u8; 16]; 3]>().prop_map(|all| all.map(|octets| Ipv6Addr::from(octets).into())),
        ]
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(
            addresses in prop::collection::vec(addresses(), 0..20),
            numbers: (u8, u32, u16, u16, u16, u16, u32, u32),
            sequences: Option<([u32; 3], [u32; 3])>,
            name in prop::option::of(prop::collection::vec(any::<u8>(), 0..=16)),
            data in prop::option::of(prop::collection::vec(any::<u8>(), 0..=255)),
            sync_id: u8,
        ) {
            let (protocol, flags, state, client_port, virtual_port, destination_port, mark, timeout) = numbers;
            let way = |[from, delta, previous_delta]: [u32; 3]| Sequence { from, delta, previous_delta };
            let record = |[client, virtual_address, destination]: [IpAddr; 3]| Record {
                protocol, flags, state, client_port, virtual_port, destination_port, mark,
                timeout: Some(timeout),
                client, virtual_address, destination,
                sequences: sequences.map(|(one, other)| [way(one), way(other)]),
                engine_name: name.as_deref(),
                engine_data: data.as_deref(),
            };
            let records: Vec<Record<'_>> = addresses.into_iter().map(record).collect();
            let mut room = Vec::from([0xffu8; 9000]);
            let mut writer = Writer::new(&mut room).unwrap();
            prop_assert!(records.iter().all(|record| writer.push(record)));
            let bytes = writer.finish(sync_id);
            let message = Message::read(bytes).unwrap();
            prop_assert_eq!(message.sync_id, sync_id);
            let read: Vec<_> = message.records().map(Result::unwrap).collect();
            prop_assert_eq!(read, records);
        }

        #[test]
        fn any_bytes_are_read_or_refused(mut bytes in prop::collection::vec(any::<u8>(), 4..200), version in 0u8..=1) {
            let length = (bytes.len() as u16).to_be_bytes();
            bytes[2..4].copy_from_slice(&length);
            if version == 1 && bytes.len() >= HEADER {
                (bytes[0], bytes[5], bytes[6], bytes[7]) = (0, 1, 0, 0);
            }
            if let Ok(message) = Message::read(&bytes) {
                prop_assert!(message.records().count() <= 255);
            }
        }
    }
}
