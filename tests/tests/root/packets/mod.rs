//! The loaded program, packet by packet: what goes in, what is decided, what comes out, what is counted.
//!
//! Packets are run through the attached program by `BPF_PROG_TEST_RUN`, in a network namespace that has routes
//! and neighbours for the kernel's own lookups, and steered by ipvsadm's command lines. What is expected of kernel
//! IPVS is meant; wanted differences stand in `COMPATIBILITY.md`.

mod fixture;
mod frame;

mod adopt;
mod agreement;
mod bypass;
mod callback;
mod defence;
mod direct_route;
mod drain;
mod expiry;
mod flood;
mod fragments;
mod full_table;
mod icmp;
mod icmp_ipv6;
mod ipsec;
mod ipv6;
mod large_sets;
mod load;
mod locality;
mod malformed;
mod mark;
mod model;
mod nat;
mod offload;
mod one_packet;
mod opening;
mod persistence;
mod schedulers;
mod sctp;
mod sip;
mod sysctl;
mod table_changes;
mod tcp_states;
mod timeouts;
mod tunnel;
mod tunnel_error;
mod tunnel_ipv6;
