//! Real clients and real servers around a director that is steered by commands alone; none of them runs meanwhile.

mod bridge;
mod changes;
mod dns;
mod download;
mod flood;
mod ftp;
mod generic;
mod http;
mod mtu;
mod offload;
mod one_arm;
mod own_tunnels;
mod sctp;
mod spread;
mod traffic;
mod tunnel_ends;
