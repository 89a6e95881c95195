//! The Call-ID of a SIP message, by which the persistence engine `sip` keeps calls together.
//!
//! Header fields are RFC 3261's: section 7.3.1 (names in any case, blanks around the colon), 20.8 (`Call-ID`, in short `i`),
//! 25.1 (a word, or two with an `@` between them). The message is read byte by byte, so that the packet program can do it in
//! a loop of the kernel's. IPVS counterpart: `ip_vs_pe_sip.c`.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::tuple::Tuple;

/// Name of the persistence engine.
pub const NAME: &str = "sip";

/// Bytes of the longest Call-ID (`IP_VS_PEDATA_MAXLEN`).
pub const LONGEST: usize = 255;

/// Bytes of a message that are looked at; the Call-ID has to end in them.
pub const MESSAGE: usize = 2048;

/// In what will be no header field.
const REST_OF_LINE: u32 = 0;
/// In the name of a header field, `named` bytes of which are those of `Call-ID`.
const NAME_OF_FIELD: u32 = 1;
/// Behind the name, before the colon.
const COLON: u32 = 2;
/// Behind the colon.
const BLANKS: u32 = 3;
/// In the Call-ID's first word.
const WORD: u32 = 4;
/// In the one behind the `@`.
const HOST: u32 = 5;
/// It is whole.
const FOUND: u32 = 6;
/// There is none.
const NONE: u32 = 7;

/// `call-id`, the first byte in the lowest bits.
const FIELD: u64 = u64::from_le_bytes(*b"call-id\0");
/// How long that is.
const FIELD_LENGTH: u32 = 7;

/// What a word may have, by the byte: below 64, and from there on.
const WORD_BYTES: [u64; 2] = {
    let mut bytes = [0; 2];
    let all = b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-.!%*_+`'~()<>:\\\"/[]?{}";
    let mut place = 0;
    while place < all.len() {
        bytes[(all[place] >> 6) as usize] |= 1 << (all[place] & 63);
        place += 1;
    }
    bytes
};

/// A Call-ID that is being read, or was: all zero but for [`CallId::digest`] before the first byte.
#[derive(Debug, Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct CallId {
    /// What was read of it, as a number (FNV-1a of 64 bits, keyed); see [`CallId::finish`].
    pub digest: u64,
    /// Bytes of it.
    pub length: u32,
    /// Where in the message the next byte is.
    state: u32,
    /// Bytes of the field's name that were right; in [`HOST`] bytes behind the `@`.
    counted: u32,
    /// Always 0.
    reserved: u32,
    /// Its bytes, followed by zeros or what a longer one has left.
    pub text: [u8; LONGEST + 1],
}

impl CallId {
    /// Begins a message, under a secret seed.
    #[inline(always)]
    pub fn begin(&mut self, seed: u64) {
        self.digest = 0xcbf2_9ce4_8422_2325 ^ seed;
        (self.length, self.state, self.counted) = (0, REST_OF_LINE, 0);
    }

    /// Reads the next byte; whether no other one matters.
    #[inline(always)]
    pub fn read(&mut self, byte: u8) -> bool {
        let ends_line = byte == b'\r' || byte == b'\n';
        let blank = byte == b' ' || byte == b'\t';
        self.state = match self.state {
            REST_OF_LINE => self.line(byte),
            NAME_OF_FIELD => {
                let lower = byte.to_ascii_lowercase();
                let first = self.counted == 0;
                if lower == (FIELD >> (8 * (self.counted & 7))) as u8 {
                    self.counted += 1;
                    if self.counted == FIELD_LENGTH { COLON } else { NAME_OF_FIELD }
                } else if first && lower == b'i' {
                    COLON
                } else if first && ends_line {
                    // An empty line: the end of the header.
                    NONE
                } else {
                    self.line(byte)
                }
            }
            COLON if blank => COLON,
            COLON if byte == b':' => BLANKS,
            COLON => self.line(byte),
            BLANKS if blank => BLANKS,
            HOST if ends_line && self.counted == 0 => NONE,
            WORD | HOST if ends_line => FOUND,
            WORD if byte == b'@' => {
                self.counted = 0;
                self.push(byte, HOST)
            }
            HOST if is_of_word(byte) => {
                self.counted += 1;
                self.push(byte, HOST)
            }
            BLANKS | WORD if is_of_word(byte) => self.push(byte, WORD),
            _ => NONE,
        };
        self.state >= FOUND
    }

    /// In a line that is of no interest.
    #[inline(always)]
    fn line(&mut self, byte: u8) -> u32 {
        self.counted = 0;
        if byte == b'\n' { NAME_OF_FIELD } else { REST_OF_LINE }
    }

    /// Adds a byte to the Call-ID.
    #[inline(always)]
    fn push(&mut self, byte: u8, state: u32) -> u32 {
        if self.length as usize >= LONGEST {
            return NONE;
        }
        self.text[(self.length & 0xff) as usize] = byte;
        self.length += 1;
        self.digest = (self.digest ^ byte as u64).wrapping_mul(0x0000_0100_0000_01b3);
        state
    }

    /// The number of the Call-ID that was read, if there was one: never 0, and the same for the same Call-ID alone (but
    /// for one pair in 2 to the 63).
    #[inline(always)]
    pub fn finish(&mut self) -> Option<u64> {
        if self.state != FOUND {
            return None;
        }
        // The finaliser of SplitMix64, as in `Tuple::hash`.
        let mut state = (self.digest ^ self.digest >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        state = (state ^ state >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        self.digest = (state ^ state >> 31) | 1;
        Some(self.digest)
    }

    /// Its text, for whoever lists it.
    pub fn as_bytes(&self) -> &[u8] {
        &self.text[..LONGEST.min(self.length as usize)]
    }
}

#[inline(always)]
const fn is_of_word(byte: u8) -> bool {
    let bytes = if byte < 64 { WORD_BYTES[0] } else { WORD_BYTES[1] };
    byte < 128 && bytes >> (byte & 63) & 1 != 0
}

/// The key of the template of a call, by the key of its client's network's: in the place of a port, which templates have not,
/// and all over the source address are 48 bits of the Call-ID's number.
#[inline(always)]
pub fn key(template: Tuple, call: u64) -> Tuple {
    let source = (template.raw_source() ^ call as u32, (call >> 32) as u16);
    Tuple::from_raw(template.protocol, source, (template.raw_destination(), template.raw_destination_port()))
}

/// The client network, loaded natively from network order, in the key of a call's template of IPv4.
pub const fn network(key: Tuple, call: u64) -> u32 {
    key.raw_source() ^ call as u32
}

#[cfg(test)]
mod tests {
    use core::net::Ipv4Addr;
    use std::string::String;
    use std::vec::Vec;

    use proptest::prelude::*;

    use super::*;

    const SEED: u64 = 0x1234_5678_9abc_def0;

    fn read(message: &[u8]) -> Option<(Vec<u8>, u64)> {
        let mut call = CallId::read_from_bytes(&[0xff; size_of::<CallId>()]).unwrap();
        call.begin(SEED);
        message.iter().take(MESSAGE).any(|byte| call.read(*byte));
        let number = call.finish()?;
        Some((call.as_bytes().to_vec(), number))
    }

    fn text(message: &str) -> Option<String> {
        read(message.as_bytes()).map(|(text, _)| String::from_utf8(text).unwrap())
    }

    #[test]
    fn the_field_is_found_however_it_is_written() {
        for line in [
            "Call-ID: a84b4c76e66710@pc33.atlanta.example.com",
            "call-id:a84b4c76e66710@pc33.atlanta.example.com",
            "CALL-ID \t : \t a84b4c76e66710@pc33.atlanta.example.com",
            "i: a84b4c76e66710@pc33.atlanta.example.com",
            "I :a84b4c76e66710@pc33.atlanta.example.com",
        ] {
            let message = std::format!(
                "INVITE sip:bob@example.com SIP/2.0\r\nVia: SIP/2.0/UDP call-id\r\nCall-Info: x\r\n{line}\r\n\r\n"
            );
            let found = text(&message);
            assert_eq!(found.as_deref(), Some("a84b4c76e66710@pc33.atlanta.example.com"), "{line}");
        }
        assert_eq!(text("OPTIONS\ni:x\n").as_deref(), Some("x"));
        let odd = "<\"[]?{}/\\~'`+_*%!.-:()>";
        assert_eq!(text(&std::format!("OPTIONS\r\nCall-ID: {odd}\r\n")).as_deref(), Some(odd));
    }

    #[test]
    fn what_is_none_is_none() {
        for message in [
            "",
            "Call-ID: first@line.is.no.field\r\n\r\n",
            "INVITE\r\nCall-ID: the-end-is-missing",
            "INVITE\r\nCall-ID:\r\n",
            "INVITE\r\nCall-ID: two words\r\n",
            "INVITE\r\nCall-ID: a@b@c\r\n",
            "INVITE\r\nCall-ID: a@\r\n",
            "INVITE\r\nCall-ID: @b\r\n",
            "INVITE\r\nCall-IDs: x\r\nCall\r\nCal-ID: x\r\nid: x\r\nX-Call-ID: x\r\n\r\n",
            "INVITE\r\nContent-Length: 0\r\n\r\nCall-ID: of-the-body\r\n",
        ] {
            assert_eq!(text(message), None, "{message:?}");
        }
    }

    #[test]
    fn the_longest_has_255_bytes() {
        for (length, expected) in [(255, true), (256, false), (1, true)] {
            let message = std::format!("A\r\ni: {}\r\n", "x".repeat(length));
            assert_eq!(text(&message).map(|text| text.len()), expected.then_some(length));
        }
        let late = |blanks| std::format!("A\r\nX: {}\r\ni: x\r\n", " ".repeat(blanks));
        assert!(text(&late(MESSAGE - 13)).is_some());
        assert!(text(&late(MESSAGE - 12)).is_none());
    }

    #[test]
    fn a_key_keeps_the_network() {
        let client = (Ipv4Addr::new(10, 0, 0, 77), 0);
        let of_client = Tuple::new(81, client, (Ipv4Addr::new(10, 0, 0, 100), 5060));
        let (one, other) = (key(of_client, 0x1111_2222_3333_4444), key(of_client, 0x1111_2222_3333_4445));
        assert_ne!(one, other);
        assert_ne!(one, key(of_client, 0x1111_2223_3333_4444));
        assert_eq!(network(one, 0x1111_2222_3333_4444), of_client.raw_source());
        assert_eq!((one.destination_port(), one.destination()), (5060, of_client.destination()));
    }

    proptest! {
        #[test]
        fn different_calls_have_different_numbers(one in "[a-z0-9]{1,40}@[a-z.]{1,20}", other in "[a-z0-9]{1,40}") {
            let number = |id: &str| read(std::format!("A\r\nCall-ID: {id}\r\n").as_bytes()).unwrap();
            prop_assert_eq!(number(&one).0, one.as_bytes());
            prop_assert_eq!(number(&one), number(&one));
            prop_assert_ne!(number(&one).1, number(&other).1);
            prop_assert_ne!(number(&one).1, 0);
        }

        #[test]
        fn nothing_that_comes_is_too_much(message in proptest::collection::vec(any::<u8>(), 0..600)) {
            if let Some((text, _)) = read(&message) {
                prop_assert!(!text.is_empty() && text.len() <= LONGEST);
            }
        }
    }
}
