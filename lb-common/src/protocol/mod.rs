//! The transport protocols that IPVS balances, and what is particular to each.
//!
//! IPVS counterpart: `ip_vs_proto.c` and the `ip_vs_proto_*.c` files.

use core::fmt;

pub mod sctp;
pub mod state;
pub mod tcp;
pub mod udp;

/// A transport protocol that a virtual service can have.
#[doc(alias = "ip_vs_protocol")]
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Protocol {
    /// Transmission Control Protocol, IP protocol 6.
    Tcp = 6,
    /// User Datagram Protocol, IP protocol 17.
    Udp = 17,
    /// Stream Control Transmission Protocol, IP protocol 132.
    Sctp = 132,
}

impl Protocol {
    /// Every protocol, in the order of their numbers.
    pub const ALL: [Self; 3] = [Self::Tcp, Self::Udp, Self::Sctp];

    /// The IP protocol number.
    #[inline]
    pub const fn number(self) -> u8 {
        self as u8
    }

    /// The protocol with this IP protocol number, if IPVS balances it.
    #[inline]
    pub const fn from_number(number: u8) -> Option<Self> {
        match number {
            6 => Some(Self::Tcp),
            17 => Some(Self::Udp),
            132 => Some(Self::Sctp),
            _ => None,
        }
    }

    /// The name as listings print it: `TCP`, `UDP`, `SCTP`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Tcp => "TCP",
            Self::Udp => "UDP",
            Self::Sctp => "SCTP",
        }
    }

    /// The name of a connection's state as listings print it, from the state's number in this protocol
    /// (that of sync messages; [`state`] has one numbering for all).
    /// A number that the protocol has not gives `ERR!`.
    #[doc(alias = "ip_vs_state_name")]
    pub const fn state_name(self, state: u8) -> &'static str {
        const UNKNOWN: &str = "ERR!";
        match self {
            Self::Tcp => match tcp::State::from_number(state) {
                Some(state) => state.name(),
                None => UNKNOWN,
            },
            Self::Udp if state == udp::STATE => udp::STATE_NAME,
            Self::Udp => UNKNOWN,
            Self::Sctp => match sctp::State::from_number(state) {
                Some(state) => state.name(),
                None => UNKNOWN,
            },
        }
    }
}

/// The way of a packet, as far as the state tables tell ways apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Direction {
    /// From the client, where the director sees the answers too.
    #[doc(alias = "IP_VS_DIR_INPUT")]
    In,
    /// From the server.
    #[doc(alias = "IP_VS_DIR_OUTPUT")]
    Out,
    /// From the client, where no answer was ever seen (direct routing, tunnels).
    #[doc(alias = "IP_VS_DIR_INPUT_ONLY")]
    InputOnly,
}

impl Direction {
    /// The direction of a packet that came from the server or not; `no_output` says that nothing has
    /// come from it so far, which is not asked of a NAT connection.
    #[inline(always)]
    pub const fn of(from_server: bool, no_output: bool) -> Self {
        if from_server {
            Self::Out
        } else if no_output {
            Self::InputOnly
        } else {
            Self::In
        }
    }
}

/// The state of a persistence template as listings print it: whether a connection under it was established.
pub const fn template_state_name(assured: bool) -> &'static str {
    if assured { "ASSURED" } else { "NONE" }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_state_has_a_name_by_protocol() {
        assert_eq!(Protocol::Tcp.state_name(3), "SYN_RECV");
        assert_eq!(Protocol::Udp.state_name(0), "UDP");
        assert_eq!(Protocol::Sctp.state_name(3), "C-SENT");
        assert_eq!(Protocol::Tcp.state_name(11), "ERR!");
        assert_eq!(Protocol::Udp.state_name(1), "ERR!");
        assert_eq!(Protocol::Sctp.state_name(14), "ERR!");
    }

    #[test]
    fn directions() {
        assert_eq!(Direction::of(true, true), Direction::Out);
        assert_eq!(Direction::of(true, false), Direction::Out);
        assert_eq!(Direction::of(false, true), Direction::InputOnly);
        assert_eq!(Direction::of(false, false), Direction::In);
    }
}
