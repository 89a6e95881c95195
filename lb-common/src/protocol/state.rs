//! One numbering for the connection states of all protocols.
//!
//! A connection stores its state in a byte, and its timeout is one lookup by that byte whatever the
//! protocol: TCP's states have IPVS's own numbers from 0, UDP's single state is 16, a template's
//! confirmed one 17, SCTP's begin at 32.

use super::Protocol;

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
}
