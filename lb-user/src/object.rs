//! The BPF object that this build carries.
//!
//! `build.rs` finds it; `cargo xtask build` makes it. A build without the BPF toolchain carries none, which is
//! known at run time only: everything but loading works without it.

/// Holds the bytes at the alignment of the ELF structures that a loader reads in place.
#[repr(C, align(32))]
struct Aligned<T: ?Sized>(T);

static ALIGNED: &Aligned<[u8]> = &Aligned(*include_bytes!(concat!(env!("OUT_DIR"), "/xipvs.bpf.o")));

/// The XDP program and its maps as an ELF object, or nothing when this xipvs was built without.
pub static OBJECT: Option<&[u8]> = if ALIGNED.0.is_empty() { None } else { Some(&ALIGNED.0) };
