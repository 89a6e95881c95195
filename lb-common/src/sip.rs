//! The Call-ID of a SIP message, by which the persistence engine `sip` keeps calls together.
//!
//! Header fields are RFC 3261's: section 7.3.1 (names in any case, blanks around the colon), 20.8 (`Call-ID`, in short `i`),
//! 25.1 (a word, or two with an `@` between them). Where kernel IPVS 6.1, which was asked, takes more or less for one, so
//! does this. The message is read byte by byte, so that the packet program can do it in a loop of the kernel's. IPVS counterpart: `ip_vs_pe_sip.c`.

use zerocopy::{FromBytes, FromZeros as _, Immutable, IntoBytes, KnownLayout};

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
/// Behind a carriage return that ends a line.
const RETURN: u32 = 6;
/// Behind the `i` that may be the short name.
const SHORT_NAME: u32 = 7;
/// It is whole.
const FOUND: u32 = 8;
/// There is none.
const NONE: u32 = 9;

/// Where blanks have come to ([`CallId::counted`]): still in the field's first line,
const IN_LINE: u32 = 0;
/// behind a carriage return,
const AT_RETURN: u32 = 1;
/// behind the line's end, where a blank has to follow,
const AT_BEGIN: u32 = 2;
/// or in the next line.
const IN_NEXT_LINE: u32 = 3;

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
    /// Bytes of the field's name that were right; in [`HOST`] bytes behind the `@`; where blanks are, how they go on in another line.
    counted: u32,
    /// Always 0.
    reserved: u32,
    /// Its bytes, followed by zeros or what a longer one has left.
    pub text: [u8; LONGEST + 1],
}

impl CallId {
    /// One whose text is known, with its number under a secret seed; none if it is too long or empty.
    pub fn of(text: &[u8], seed: u64) -> Option<Self> {
        if text.is_empty() || text.len() > LONGEST {
            return None;
        }
        let mut call = Self::new_zeroed();
        call.begin(seed);
        call.state = text.iter().fold(NONE, |_, byte| call.push(*byte, FOUND));
        call.finish().map(|_| call)
    }

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
        self.state = match self.state {
            REST_OF_LINE => self.line(byte),
            RETURN if byte == b'\n' => self.line(byte),
            RETURN => self.first(byte),
            NAME_OF_FIELD if self.counted == 0 => self.first(byte),
            NAME_OF_FIELD => self.name(byte),
            SHORT_NAME if is_letter(byte) => REST_OF_LINE,
            SHORT_NAME => self.blanks(byte, COLON),
            COLON => self.blanks(byte, COLON),
            BLANKS => self.blanks(byte, BLANKS),
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
            WORD if is_of_word(byte) => self.push(byte, WORD),
            _ => NONE,
        };
        self.state >= FOUND
    }

    /// In a line that is of no interest.
    #[inline(always)]
    fn line(&mut self, byte: u8) -> u32 {
        self.counted = 0;
        match byte {
            b'\n' => NAME_OF_FIELD,
            b'\r' => RETURN,
            _ => REST_OF_LINE,
        }
    }

    /// The first byte of a line. It ends none, so that of two line feeds the second is overlooked; behind an empty line that
    /// ends as it should the search goes on.
    #[inline(always)]
    fn first(&mut self, byte: u8) -> u32 {
        self.counted = 0;
        match byte.to_ascii_lowercase() {
            b'c' => {
                self.counted = 1;
                NAME_OF_FIELD
            }
            b'i' => SHORT_NAME,
            _ => REST_OF_LINE,
        }
    }

    /// In a name whose first byte was right.
    #[inline(always)]
    fn name(&mut self, byte: u8) -> u32 {
        if byte.to_ascii_lowercase() != (FIELD >> (8 * (self.counted & 7))) as u8 {
            return self.line(byte);
        }
        self.counted += 1;
        if self.counted < FIELD_LENGTH {
            return NAME_OF_FIELD;
        }
        self.counted = IN_LINE;
        COLON
    }

    /// Before the colon or behind it, as `here` says, where blanks may be, and once a new line that begins with one.
    #[inline(always)]
    fn blanks(&mut self, byte: u8, here: u32) -> u32 {
        let blank = byte == b' ' || byte == b'\t';
        let at_end = self.counted == AT_RETURN || self.counted == AT_BEGIN;
        let folded = match byte {
            _ if blank => {
                if at_end {
                    IN_NEXT_LINE
                } else {
                    self.counted
                }
            }
            b'\n' if self.counted == AT_RETURN || self.counted == IN_LINE => AT_BEGIN,
            b'\r' if self.counted == IN_LINE => AT_RETURN,
            b'\r' | b'\n' => return NONE,
            _ if at_end => return NONE,
            b':' if here == COLON => {
                self.counted = IN_LINE;
                return BLANKS;
            }
            _ if here == COLON => return NONE,
            _ if is_of_word(byte) => return self.push(byte, WORD),
            // No value: another field may have one.
            _ => return self.line(byte),
        };
        self.counted = folded;
        here
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
    is_letter(byte) || byte < 128 && bytes >> (byte & 63) & 1 != 0
}

/// Whether a byte is a letter, of Latin-1 as the kernel has it.
#[inline(always)]
const fn is_letter(byte: u8) -> bool {
    byte.is_ascii_alphabetic() || byte >= 0xc0 && byte != 0xd7 && byte != 0xf7
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

    #[test]
    fn a_call_id_that_is_told_has_the_number_of_one_that_is_read() {
        for text in ["x", "one@example.com", "a".repeat(LONGEST).as_str()] {
            let (read, number) = read(std::format!("INVITE\r\nCall-ID: {text}\r\n").as_bytes()).unwrap();
            let told = CallId::of(text.as_bytes(), SEED).unwrap();
            assert_eq!((told.as_bytes(), told.digest), (read.as_slice(), number));
        }
        assert_eq!(CallId::of(b"", SEED), None);
        assert_eq!(CallId::of(&[b'a'; LONGEST + 1], SEED), None);
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
        ] {
            assert_eq!(text(message), None, "{message:?}");
        }
    }

    /// The Call-ID of a message, each byte a character.
    fn latin(message: &[u8]) -> Option<String> {
        read(message).map(|(text, _)| text.into_iter().map(char::from).collect())
    }

    /// All asked of kernel IPVS 6.1.
    #[test]
    fn a_call_id_is_what_the_kernel_takes_for_one() {
        let rows: &[(&[u8], Option<&str>)] = &[
            (b"INVITE sip:b SIP/2.0\r\nVia: x\r\nCall-ID: abc@host\r\nCSeq: 1\r\n\r\n", Some("abc@host")),
            (b"SIP/2.0 200 OK\r\nCall-ID: abc@host\r\n", Some("abc@host")),
            (b"X\r\ncall-id:abc\n", Some("abc")),
            (b"X\nCALL-ID: \t abc\r", Some("abc")),
            (b"X\rY\rCall-ID: cr@x\r", Some("cr@x")),
            (b"X\r\ni: a/b\r\n", Some("a/b")),
            (b"X\r\nI \t: abc\r\n", Some("abc")),
            (b"\ni:a\n", Some("a")),
            (b"\r\n\r\nCall-ID: abc\r\n", Some("abc")),
            (b"X\r\nCSeq: 1\r\n\r\nCall-ID: body@x\r\n", Some("body@x")),
            (b"X\0\xff\r\ni: abc\r\n", Some("abc")),
            (b"X\r\n \r\ni: abc\r\n", Some("abc")),
            // Folded: once, before the colon or behind it.
            (b"X\r\nCall-ID:\r\n fold@x\r\n", Some("fold@x")),
            (b"X\nCall-ID:\n\tfold\n", Some("fold")),
            (b"X\r\nCall-ID\r\n : fold\r\n", Some("fold")),
            (b"X\nCall-ID:\n \n fold\n", None),
            (b"X\r\nCall-ID: a\r\n more\r\n", Some("a")),
            // Not the beginning of a line.
            (b"Call-ID: abc\r\n", None),
            (b"i: abc\r\nFoo: x\r\n", None),
            (b"X\r\nFoo: Call-ID: abc\r\n", None),
            (b"X\r\nXCall-ID: abc\r\n", None),
            (b"X\r\n Call-ID: abc\r\n", None),
            (b"X\n\ni: abc\n", None),
            (b"X\r\ri: abc\r", None),
            (b"X\n\ri: abc\r\n", None),
            // Not the name.
            (b"X\r\nCall-IDX: abc\r\n", None),
            (b"X\r\nCall-ID-: abc\r\n", None),
            (b"X\r\nid: abc\r\n", None),
            (b"X\r\ni-: abc\r\n", None),
            (b"X\r\nCall-I", None),
            // Without a value, or with one that does not end with its line.
            (b"X\r\nCall-ID: \r\nCall-ID: abc\r\n", None),
            (b"X\r\nCall-ID; x\r\nCall-ID: abc\r\n", None),
            (b"X\r\nCall-ID x\r\ni: abc\r\n", None),
            (b"X\r\nCall-ID: &\r\ni: abc\r\n", Some("abc")),
            (b"X\r\nCall-ID: abc@host", None),
            (b"X\r\nCall-ID: abc \r\n", None),
            (b"X\r\nCall-ID: a b\r\n", None),
            (b"X\r\nCall-ID: a@b@c\r\n", None),
            (b"X\r\nCall-ID: @abc\r\n", None),
            (b"X\r\nCall-ID: abc@\r\n", None),
            (b"X\r\nCall-ID:: x\r\n", None),
            (b"X\r\nCall-ID: :x\r\n", Some(":x")),
            (b"X\r\nCall-ID: x@y:5060\r\n", Some("x@y:5060")),
            (b"X\r\ni:\x0bx\r\n", None),
            (b"X\r\ni:\xa0x\r\n", None),
            (b"hello", None),
            (b"", None),
        ];
        for (message, wanted) in rows {
            assert_eq!(latin(message).as_deref(), *wanted, "{}", message.escape_ascii());
        }
    }

    #[test]
    fn a_call_id_has_the_bytes_that_the_kernel_takes() {
        let takes = |byte: &u8| latin(&[b"X\r\ni: q", &[*byte][..], b"z\r\n"].concat()).is_some();
        let taken: Vec<u8> = (0..=255u8).filter(takes).collect();
        let marks =
            b"\n\r!\"%'()*+-./0123456789:<>?@ABCDEFGHIJKLMNOPQRSTUVWXYZ[\\]_`abcdefghijklmnopqrstuvwxyz{}~";
        let letters = (0xc0..=255u8).filter(|byte| ![0xd7, 0xf7].contains(byte));
        assert_eq!(taken, marks.iter().copied().chain(letters).collect::<Vec<_>>());
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
