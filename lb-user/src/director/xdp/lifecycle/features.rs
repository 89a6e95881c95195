//! What drivers say that they can do for XDP: the generic netlink family `netdev`.
//!
//! *Minimum kernel version:* 6.3. Before that nobody tells.

use netlink_packet_core::{parse_u32, parse_u64};

use super::{failed, refused};
use crate::director::Result;
use crate::director::kernel::message::{Attributes, Message};
use crate::director::kernel::socket::{Answer, Socket};

/// Lists interfaces.
#[doc(alias = "NETDEV_CMD_DEV_GET")]
const GET: u8 = 1;
#[doc(alias = "NETDEV_A_DEV_IFINDEX")]
const INDEX: u16 = 1;
#[doc(alias = "NETDEV_A_DEV_XDP_FEATURES")]
const FEATURES: u16 = 3;
/// The driver sends what XDP redirects to it.
#[doc(alias = "NETDEV_XDP_ACT_NDO_XMIT")]
const TAKES: u64 = 4;

/// Indices of the interfaces whose drivers take, as they are now, what XDP redirects to them; none if the kernel does not tell.
pub fn taking() -> Result<Option<Vec<u32>>> {
    let unasked = |error| refused("cannot ask what drivers can do for XDP", &error);
    let Some(mut socket) = Socket::open("netdev").map_err(unasked)? else { return Ok(None) };
    let question = Message { command: GET, attributes: Attributes::default() };
    let mut taking = Vec::new();
    for answer in socket.ask(question, Answer::Dump).map_err(unasked)? {
        let read = || {
            let index = parse_u32(answer.attributes.find(INDEX)?)?;
            Ok::<_, netlink_packet_core::DecodeError>((index, parse_u64(answer.attributes.find(FEATURES)?)?))
        };
        let (index, features) = read().map_err(|error| failed("netdev", error))?;
        if features & TAKES != 0 {
            taking.push(index);
        }
    }
    Ok(Some(taking))
}
