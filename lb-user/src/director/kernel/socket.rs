//! A socket of a generic netlink family: one question at a time.
//!
//! The kernel answers a question within the call that sends it, and goes on with a dump within the calls that read it, so
//! that nothing here ever waits.
//!
//! The only place that speaks to the kernel for this director, and to the family `netdev`; it knows nothing of what is asked.
//! IPVS counterpart: `ip_vs_genl_register` and netlink's own dump machinery.

use std::io;

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST, NetlinkDeserializable, NetlinkHeader, NetlinkMessage,
    NetlinkPayload, NetlinkSerializable,
};
use netlink_packet_generic::GenlMessage;
use netlink_packet_generic::ctrl::nlas::GenlCtrlAttrs;
use netlink_packet_generic::ctrl::{GenlCtrl, GenlCtrlCmd};
use netlink_packet_generic::{GenlFamily as _, GenlHeader};
use netlink_sys::SocketAddr;
use netlink_sys::protocols::NETLINK_GENERIC;

use super::message::Message;

/// Room for one datagram; the kernel fills at most 32 KiB in one go.
const BUFFER: usize = 1 << 16;

/// What a request expects.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    /// An acknowledgement, and before it at most one message.
    Single,
    /// A message an object.
    Dump,
}

/// A socket in the network namespace of the thread that opened it.
pub struct Socket {
    socket: netlink_sys::Socket,
    family: u16,
    sequence: u32,
    buffer: Vec<u8>,
}

impl Socket {
    /// Opens it; `None` when the kernel has no such family (yet).
    pub fn open(family: &str) -> io::Result<Option<Self>> {
        let mut socket = netlink_sys::Socket::new(NETLINK_GENERIC)?;
        socket.bind_auto()?;
        socket.connect(&SocketAddr::new(0, 0))?;
        let mut opened = Self { socket, family: 0, sequence: 0, buffer: Vec::with_capacity(BUFFER) };
        let question = GenlMessage::from_payload(GenlCtrl {
            cmd: GenlCtrlCmd::GetFamily,
            nlas: vec![GenlCtrlAttrs::FamilyName(family.into())],
        });
        let answers = match opened.exchange(question, Answer::Single) {
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => return Ok(None),
            answers => answers?,
        };
        let id =
            answers.iter().flat_map(|answer| &answer.payload.nlas).find_map(|attribute| match attribute {
                GenlCtrlAttrs::FamilyId(id) => Some(*id),
                _ => None,
            });
        let unnamed = || io::Error::other(format!("the kernel names no number for the family {family}"));
        opened.family = id.ok_or_else(unnamed)?;
        Ok(Some(opened))
    }

    /// Asks and collects the answer; a refusal is an error with the kernel's number. `EINTR` is the one that the kernel keeps
    /// to itself: a command that ends with it has no answer at all.
    pub fn ask(&mut self, question: Message, answer: Answer) -> io::Result<Vec<Message>> {
        let header = GenlHeader { cmd: question.command(), version: question.version() };
        let answers = self.exchange(GenlMessage::new(header, question, self.family), answer)?;
        Ok(answers.into_iter().map(|answer| answer.payload).collect())
    }

    fn exchange<M>(&mut self, question: M, answer: Answer) -> io::Result<Vec<M>>
    where
        M: NetlinkSerializable + NetlinkDeserializable,
    {
        self.sequence = self.sequence.wrapping_add(1);
        let mut header = NetlinkHeader::default();
        header.sequence_number = self.sequence;
        header.flags = NLM_F_REQUEST
            | match answer {
                Answer::Single => NLM_F_ACK,
                Answer::Dump => NLM_F_DUMP,
            };
        let mut message = NetlinkMessage::new(header, NetlinkPayload::InnerMessage(question));
        message.finalize();
        let mut bytes = vec![0; message.buffer_len()];
        message.serialize(&mut bytes);
        self.socket.send(&bytes, 0)?;

        let mut answers = Vec::new();
        while !self.receive(&mut answers)? {}
        Ok(answers)
    }

    /// Takes one datagram, and says whether the answer is complete.
    fn receive<M: NetlinkDeserializable>(&mut self, answers: &mut Vec<M>) -> io::Result<bool> {
        self.buffer.clear();
        self.socket.recv(&mut self.buffer, libc::MSG_DONTWAIT).map_err(|error| match error.kind() {
            io::ErrorKind::WouldBlock => io::Error::from_raw_os_error(libc::EINTR),
            _ => error,
        })?;
        let mut rest = self.buffer.as_slice();
        while !rest.is_empty() {
            let message = NetlinkMessage::<M>::deserialize(rest).map_err(io::Error::other)?;
            let length = (message.header.length as usize).next_multiple_of(4);
            rest = rest.get(length..).unwrap_or_default();
            if message.header.sequence_number != self.sequence {
                // Left over from a question whose answer was not read to its end.
                continue;
            }
            match message.payload {
                NetlinkPayload::InnerMessage(answer) => answers.push(answer),
                NetlinkPayload::Error(error) => return refusal(error.raw_code()),
                NetlinkPayload::Done(done) => return refusal(done.code),
                _ => {}
            }
        }
        Ok(false)
    }
}

/// What a final code means: zero is the end, anything below an error number.
fn refusal(code: i32) -> io::Result<bool> {
    if code < 0 { Err(io::Error::from_raw_os_error(-code)) } else { Ok(true) }
}
