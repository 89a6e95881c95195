//! UDP: one state, one timeout, never active.
//!
//! IPVS counterpart: `ip_vs_proto_udp.c`.

/// Bytes of the header.
pub const HEADER: usize = 8;

/// The number of the only state, in IPVS's sync messages too.
#[doc(alias = "IP_VS_UDP_S_NORMAL")]
pub const STATE: u8 = 0;

/// The state's name in listings' `state` column.
pub const STATE_NAME: &str = "UDP";

/// Seconds without a packet in either direction until a connection expires, where none are set.
#[doc(alias = "udp_timeouts")]
pub const DEFAULT_TIMEOUT: u32 = 300;

/// Whether connections count as active: never, so that `sed` and `nq` see idle destinations and `ovf`
/// never overflows.
pub const IS_ACTIVE: bool = false;
