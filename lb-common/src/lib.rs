//! IPVS's vocabulary and rules, as values and pure functions.
//!
//! What is here runs unchanged in the XDP program, in host unit tests, in property tests and in
//! simulation: nothing in it allocates, reads a clock, draws a random number or touches a map.
//! Time, randomness and the CPU number are parameters. The IPVS counterpart of each module is the
//! file of the same name in `net/netfilter/ipvs`.

#![no_std]
#![forbid(unsafe_code)]

#[cfg(test)]
extern crate std;

pub mod checksum;
pub mod connection;
pub mod crc32c;
pub mod defence;
pub mod destination;
pub mod forward;
pub mod fragment;
pub mod icmp;
pub mod mark;
pub mod offload;
pub mod packet;
pub mod persistence;
pub mod piece;
pub mod protocol;
pub mod reason;
pub mod scheduler;
pub mod service;
pub mod settings;
pub mod sip;
pub mod stats;
pub mod sync;
pub mod sysctl;
pub mod tunnel;
pub mod tuple;
