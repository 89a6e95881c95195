//! The BPF object that this build carries.
//!
//! `build.rs` finds it; `cargo xtask build` makes it. A build without the BPF toolchain carries none, which is
//! known at run time only: everything but loading works without it.

use std::os::fd::{AsRawFd as _, BorrowedFd};

use aya_obj::generated::BPF_PSEUDO_MAP_VALUE;
use lb_common::settings::PLACE;
use zerocopy::IntoBytes as _;

/// Holds the bytes at the alignment of the ELF structures that a loader reads in place.
#[repr(C, align(32))]
struct Aligned<T: ?Sized>(T);

static ALIGNED: &Aligned<[u8]> = &Aligned(*include_bytes!(concat!(env!("OUT_DIR"), "/xipvs.bpf.o")));

/// The XDP program and its maps as an ELF object, or nothing when this xipvs was built without.
pub static OBJECT: Option<&[u8]> = if ALIGNED.0.is_empty() { None } else { Some(&ALIGNED.0) };

/// Opcode of the instruction that loads a number of 64 bits, half of it from the eight bytes behind its own eight.
const LOAD: u64 = 0x18;
/// Where such an instruction names its register, which is not looked at.
const REGISTER: u64 = 0x0f00;

/// Returns a copy of the object whose programs have the address of the first element of a map for each [`PLACE`].
///
/// A relocation could only name the map, of which the program would have to look up the element for every packet; and
/// global data, which programs do reach so, the loader fills anew with every load.
#[must_use]
pub fn with_settings(object: &[u8], map: BorrowedFd<'_>) -> Vec<u64> {
    // Of words, as is the alignment that the object needs.
    let mut words = vec![0; object.len().div_ceil(size_of::<u64>())];
    if let Some(bytes) = words.as_mut_bytes().get_mut(..object.len()) {
        bytes.copy_from_slice(object);
    }
    let (low, high) = (PLACE << 32, PLACE >> 32 << 32);
    // The source register says what the number is: the map here, and behind it the offset in its element.
    let map = u64::from(map.as_raw_fd().unsigned_abs()) << 32 | u64::from(BPF_PSEUDO_MAP_VALUE) << 12;
    for at in 1..words.len() {
        if let [.., first, second] = &mut words[..=at]
            && u64::from_le(*first) & !REGISTER == LOAD | low
            && u64::from_le(*second) == high
        {
            *first = (u64::from_le(*first) & (LOAD | REGISTER) | map).to_le();
            *second = 0;
        }
    }
    words
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd as _;

    use super::*;

    #[test]
    fn the_settings_are_put_where_their_place_is_loaded_and_nowhere_else() {
        let file = std::io::stderr();
        let number = u64::from(file.as_fd().as_raw_fd().unsigned_abs());
        let mut object = Vec::new();
        // r7 = the place; r1 = another number; the place as it stands in data.
        object.extend(*b"\x18\x07\0\0SETT\0\0\0\0INGS");
        object.extend(*b"\x18\x01\0\0SETT\0\0\0\0INGZ");
        object.extend(*b"SETTINGS");
        object.extend(*b"odd");
        let placed = with_settings(&object, file.as_fd());
        let bytes = placed.as_bytes();
        assert_eq!(bytes[..8], (0x2718 | number << 32).to_le_bytes());
        assert_eq!(bytes[8..16], [0; 8]);
        assert_eq!(bytes[16..object.len()], object[16..]);
    }
}
