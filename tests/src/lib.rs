//! What the tests and the demo stand on.
//!
//! [`lab`] has network namespaces with real clients and servers. Tests that need root are in `tests/root`, one
//! module each, and are built with the feature `root`: `cargo xtask test` turns it on. [`bench`] is what
//! `cargo xtask bench` measures and compares; [`golden`] reads the commands that were recorded of the real ipvsadm.

pub mod bench;
#[cfg(feature = "golden")]
pub mod golden;
pub mod lab;
