//! Messages of the generic netlink family `IPVS`: commands, and attributes going in and out. Those of other families are no
//! different, and have a number for their command.
//!
//! What the attributes mean stands with the object that they describe. Framing is rust-netlink's.
//! IPVS counterpart: `IPVS_CMD_*` and the attribute policies of `ip_vs_ctl.c`.

use netlink_packet_core::{
    DecodeError, DefaultNla, Emitable, NLA_HEADER_SIZE, NlasIterator, ParseableParametrized,
};
use netlink_packet_generic::{GenlFamily, GenlHeader};

/// The family's name.
pub const FAMILY: &str = "IPVS";

/// A command of the family, numbered as in its interface.
#[doc(alias = "IPVS_CMD_ATTR_MAX")]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Command {
    NewService = 1,
    SetService = 2,
    DeleteService = 3,
    GetService = 4,
    NewDestination = 5,
    SetDestination = 6,
    DeleteDestination = 7,
    GetDestination = 8,
    NewDaemon = 9,
    DeleteDaemon = 10,
    GetDaemon = 11,
    SetConfig = 12,
    GetConfig = 13,
    GetInfo = 15,
    Zero = 16,
    Flush = 17,
}

/// Attributes at the top level of a message.
pub mod top {
    pub const SERVICE: u16 = 1;
    pub const DESTINATION: u16 = 2;
    pub const DAEMON: u16 = 3;
    pub const TIMEOUT_TCP: u16 = 4;
    pub const TIMEOUT_TCP_FIN: u16 = 5;
    pub const TIMEOUT_UDP: u16 = 6;
}

/// Attributes of the answer to [`Command::GetInfo`], a numbering of their own.
pub mod info {
    pub const VERSION: u16 = 1;
    pub const TABLE_SIZE: u16 = 2;
}

/// A message of the family: a command number and serialized attributes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    pub command: u8,
    pub attributes: Attributes,
}

impl Message {
    pub fn new(command: Command, attributes: Attributes) -> Self {
        Self { command: command as u8, attributes }
    }
}

impl GenlFamily for Message {
    fn family_name() -> &'static str {
        FAMILY
    }

    fn command(&self) -> u8 {
        self.command
    }

    fn version(&self) -> u8 {
        1
    }
}

impl Emitable for Message {
    fn buffer_len(&self) -> usize {
        self.attributes.0.len()
    }

    fn emit(&self, buffer: &mut [u8]) {
        buffer[..self.attributes.0.len()].copy_from_slice(&self.attributes.0);
    }
}

impl ParseableParametrized<[u8], GenlHeader> for Message {
    fn parse_with_param(bytes: &[u8], header: GenlHeader) -> Result<Self, DecodeError> {
        Ok(Self { command: header.cmd, attributes: Attributes(bytes.to_vec()) })
    }
}

/// Serialized attributes, in the order in which they were put.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Attributes(pub Vec<u8>);

impl Attributes {
    /// Adds one with the value's bytes as they are.
    pub fn put(mut self, kind: u16, value: &[u8]) -> Self {
        let attribute = DefaultNla::new(kind, value.to_vec());
        let start = self.0.len();
        self.0.resize(start + attribute.buffer_len(), 0);
        attribute.emit(&mut self.0[start..]);
        self
    }

    /// Adds a number in the host's byte order.
    pub fn put_u16(self, kind: u16, value: u16) -> Self {
        self.put(kind, &value.to_ne_bytes())
    }

    /// Adds a number in the host's byte order.
    pub fn put_u32(self, kind: u16, value: u32) -> Self {
        self.put(kind, &value.to_ne_bytes())
    }

    /// Adds a text with its NUL.
    pub fn put_text(self, kind: u16, text: &str) -> Self {
        let mut value = text.as_bytes().to_vec();
        value.push(0);
        self.put(kind, &value)
    }

    /// Adds attributes inside one.
    pub fn put_nest(self, kind: u16, inside: &Self) -> Self {
        self.put(kind, &inside.0)
    }

    /// The value of the first attribute of a kind.
    pub fn find(&self, kind: u16) -> Result<&[u8], DecodeError> {
        for attribute in NlasIterator::new(self.0.as_slice()) {
            let attribute = attribute?;
            if attribute.kind() == kind {
                // The iterator's items borrow the bytes; the buffer that wraps one does not outlive this turn.
                return Ok(&attribute.into_inner()[NLA_HEADER_SIZE..usize::from(attribute.length())]);
            }
        }
        Err(format!("attribute {kind} is missing").into())
    }
}

/// Calls `with` for each attribute of some bytes, such as a nest's.
pub fn each<'a>(
    bytes: &'a [u8],
    mut with: impl FnMut(u16, &'a [u8]) -> Result<(), DecodeError>,
) -> Result<(), DecodeError> {
    for attribute in NlasIterator::new(bytes) {
        let attribute = attribute?;
        let (kind, end) = (attribute.kind(), usize::from(attribute.length()));
        with(kind, &attribute.into_inner()[NLA_HEADER_SIZE..end])?;
    }
    Ok(())
}
