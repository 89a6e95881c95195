//! Tests that need root: one module each, one binary, run by `cargo xtask test`.
//!
//! Alone: `cargo test -p tests --features root --test root`.

mod end_to_end;
mod golden_xdp;
mod installed;
mod lab;
mod lifecycle;
mod local;
mod packets;
mod speed;
mod sync;
