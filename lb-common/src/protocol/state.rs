//! One numbering for the connection states of all protocols.
//!
//! A connection stores its state in a byte, and its timeout is one lookup by that byte whatever the
//! protocol: TCP's states have IPVS's own numbers from 0, UDP's single state is 16, a template's
//! confirmed one 17, SCTP's begin at 32.

use super::{Protocol, sctp, tcp};

/// Numbers that a state can have.
pub const COUNT: usize = 64;

/// The state of every UDP connection.
pub const UDP: u8 = 16;

/// The state of a persistence template from its first confirmed connection on; before, it is that of number 0.
#[doc(alias = "IP_VS_CTPL_S_ASSURED")]
pub const ASSURED: u8 = 17;

/// Number of SCTP's first state.
pub const SCTP: u8 = 32;

/// The name of a state as listings print it; `ERR!` for a number that no protocol has.
pub const fn name(state: u8) -> &'static str {
    match state {
        ASSURED => "ASSURED",
        SCTP.. => Protocol::Sctp.state_name(state - SCTP),
        UDP.. => Protocol::Udp.state_name(state - UDP),
        _ => Protocol::Tcp.state_name(state),
    }
}

/// The number of the state that a protocol's listing prints by this name.
pub fn from_name(protocol: Protocol, name_there: &str) -> Option<u8> {
    let numbers = match protocol {
        Protocol::Tcp => 0..UDP,
        Protocol::Udp => UDP..UDP + 1,
        Protocol::Sctp => SCTP..COUNT as u8,
    };
    numbers.into_iter().find(|number| name(*number) == name_there)
}

/// The number that a protocol itself has for a state, as sync messages give it.
pub const fn number_in_protocol(state: u8) -> u8 {
    match state {
        SCTP.. => state - SCTP,
        UDP.. => state - UDP,
        _ => state,
    }
}

/// Whether a connection in this state counts as an active one.
pub fn is_active(state: u8) -> bool {
    match state {
        SCTP.. => sctp::State::from_number(state - SCTP).is_some_and(sctp::State::is_active),
        UDP.. => false,
        _ => tcp::State::from_number(state).is_some_and(tcp::State::is_active),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_by_number() {
        assert_eq!([0, 1, 10, 11].map(name), ["NONE", "ESTABLISHED", "SYNACK", "ERR!"]);
        assert_eq!([UDP, ASSURED, ASSURED + 1].map(name), ["UDP", "ASSURED", "ERR!"]);
        assert_eq!(
            [SCTP, SCTP + 8, SCTP + 13, SCTP + 14].map(name),
            ["NONE", "ESTABLISHED", "CLOSED", "ERR!"]
        );
        assert_eq!(name(u8::MAX), "ERR!");
    }

    #[test]
    fn numbers_by_name() {
        for protocol in Protocol::ALL {
            for number in (0..COUNT as u8).filter(|number| name(*number) != "ERR!") {
                let own = match protocol {
                    Protocol::Tcp => number < UDP,
                    Protocol::Udp => number == UDP,
                    Protocol::Sctp => number >= SCTP,
                };
                let found = from_name(protocol, name(number));
                assert!(found == Some(number) || !own, "{protocol} {number}");
                assert!(found.is_none_or(|found| name(found) == name(number)));
                assert!(!own || protocol.state_name(number_in_protocol(number)) == name(number));
            }
        }
        assert_eq!(from_name(Protocol::Tcp, "UDP"), None);
        assert!(is_active(1) && !is_active(5) && !is_active(UDP) && is_active(SCTP + 8));
    }
}
