//! One numbering for the connection states of all protocols.
//!
//! A connection stores its state in a byte, and its timeout is one lookup by that byte whatever the
//! protocol: TCP's states have IPVS's own numbers from 0, UDP's single state is 16, SCTP's begin at 32.

/// Numbers that a state can have.
pub const COUNT: usize = 64;

/// The state of every UDP connection.
pub const UDP: u8 = 16;

/// Number of SCTP's first state.
pub const SCTP: u8 = 32;
