//! Values of options that stand for themselves: numbers, masks, flags.
//!
//! Numbers follow the C library's `strtol`: white space before, one sign, decimal digits, nothing after.

use std::net::Ipv4Addr;
use std::ops::RangeInclusive;

use lb_common::forward::TunnelType;

use super::message::Complaint;
use crate::rule;
use crate::table::service_flags::{SCHEDULER_1, SCHEDULER_2, SCHEDULER_3};

/// A decimal number in a range.
pub fn number(text: &[u8], range: RangeInclusive<i64>) -> Option<i64> {
    let (value, rest) = leading_number(text)?;
    (rest.is_empty() && range.contains(&value)).then_some(value)
}

/// The number that a text begins with, and what follows it; a value beyond 64 bits is the nearest one.
pub fn leading_number(text: &[u8]) -> Option<(i64, &[u8])> {
    let text = text.trim_ascii_start_c();
    let (negative, digits) = match text {
        [b'-', rest @ ..] => (true, rest),
        [b'+', rest @ ..] => (false, rest),
        _ => (false, text),
    };
    let length = digits.iter().take_while(|byte| byte.is_ascii_digit()).count();
    if length == 0 {
        return None;
    }
    let size = digits[..length]
        .iter()
        .fold(0i64, |sum, digit| sum.saturating_mul(10).saturating_add(i64::from(digit - b'0')));
    Some((if negative { -size } else { size }, &digits[length..]))
}

/// White space as C's `isspace` has it, which includes the vertical tab.
trait TrimC {
    fn trim_ascii_start_c(&self) -> &Self;
}

impl TrimC for [u8] {
    fn trim_ascii_start_c(&self) -> &Self {
        let blanks = self.iter().take_while(|&&byte| is_space(byte)).count();
        &self[blanks..]
    }
}

/// Whether C's `isspace` takes the byte.
pub fn is_space(byte: u8) -> bool {
    matches!(byte, b' ' | b'\t'..=b'\r')
}

/// An IPv4 address in any form of the C library's `inet_aton`: one to four parts, decimal, octal or
/// hexadecimal, the last part filling what is left; blanks and whatever follows them are ignored.
pub fn aton(text: &[u8]) -> Option<Ipv4Addr> {
    let end = text.iter().position(|&byte| is_space(byte)).unwrap_or(text.len());
    let mut value: u32 = 0;
    let mut parts = text[..end].split(|&byte| byte == b'.').peekable();
    for index in 0..4u32 {
        let part = c_number(parts.next()?)?;
        if parts.peek().is_some() {
            value |= u32::from(u8::try_from(part).ok()?) << (24 - 8 * index);
        } else {
            return (part <= u32::MAX >> (8 * index)).then(|| Ipv4Addr::from(value | part));
        }
    }
    None
}

/// A number as C writes it: hexadecimal after `0x`, octal after `0`, else decimal.
fn c_number(text: &[u8]) -> Option<u32> {
    if !text.first()?.is_ascii_digit() {
        return None;
    }
    let (digits, radix) = match text {
        [b'0', b'x' | b'X', rest @ ..] => (rest, 16),
        [b'0', rest @ ..] if !rest.is_empty() => (rest, 8),
        _ => (text, 10),
    };
    if digits.first() == Some(&b'+') {
        return None;
    }
    u32::from_str_radix(std::str::from_utf8(digits).ok()?, radix).ok()
}

/// The tunnel type of `--tun-type`, exactly as written there.
pub fn tunnel_type(text: &[u8]) -> Option<TunnelType> {
    [TunnelType::Ipip, TunnelType::Gue, TunnelType::Gre]
        .into_iter()
        .find(|kind| kind.name().as_bytes() == text)
}

/// The schedulers that have names of their own for flags.
const FLAG_OWNERS: [&str; 2] = ["sh", "mh"];

/// The bits of the scheduler flags, first to third.
const FLAG_BITS: [u32; 3] = [SCHEDULER_1, SCHEDULER_2, SCHEDULER_3];

/// What a flag's name stands for: its bit, and the scheduler that it belongs to, if it is one's own.
fn scheduler_flag(name: &[u8]) -> Option<(u32, Option<&'static str>)> {
    std::iter::once(None).chain(FLAG_OWNERS.map(Some)).find_map(|owner| {
        let names = rule::scheduler_flag_names(owner.unwrap_or_default());
        let index = names.iter().position(|known| known.as_bytes() == name)?;
        Some((FLAG_BITS[index], owner))
    })
}

/// The flags of a `-b` list, as bits.
pub fn scheduler_flags(list: &[u8], scheduler: &str) -> Result<u32, Complaint> {
    // The original copies the list to a buffer of 128 bytes first.
    let list = &list[..list.len().min(127)];
    let mut bits = 0;
    for item in list.split(|&byte| byte == b',').filter(|item| !item.is_empty()) {
        match scheduler_flag(item) {
            None => return Err(Complaint::quoting("invalid scheduler flag `", item, "'")),
            Some((_, Some(owner))) if owner != scheduler => {
                return Err(Complaint::quoting("incompatible scheduler flag `", item, "'"));
            }
            Some((bit, _)) => bits |= bit,
        }
    }
    Ok(bits)
}

/// The names of the flags that are set, as listings and `-b` write them: a scheduler's own where it has
/// some, and then no others, so that flag-3 has no name with sh and mh.
pub fn scheduler_flag_names(bits: u32, scheduler: &str) -> impl Iterator<Item = &'static str> {
    let named = if FLAG_OWNERS.contains(&scheduler) { 2 } else { 3 };
    FLAG_BITS
        .into_iter()
        .zip(rule::scheduler_flag_names(scheduler))
        .take(named)
        .filter(move |(bit, _)| bits & bit != 0)
        .map(|(_, name)| name)
}

/// Appends the names of the flags that are set, joined by commas, between `before` and `after`; nothing if
/// there are none.
pub fn write_scheduler_flags(out: &mut String, bits: u32, scheduler: &str, before: &str, after: &str) {
    let start = out.len();
    for name in scheduler_flag_names(bits, scheduler) {
        out.push_str(if out.len() == start { before } else { "," });
        out.push_str(name);
    }
    if out.len() > start {
        out.push_str(after);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_strtol_s() {
        for (text, value) in [("+5", 5), (" 5", 5), ("010", 10), ("-0", 0), ("\u{b}7", 7)] {
            assert_eq!(number(text.as_bytes(), 0..=100), Some(value), "{text:?}");
        }
        for text in ["5x", "5 ", "0x10", "1.5", "", "-", "+-5", "101", "99999999999999999999"] {
            assert_eq!(number(text.as_bytes(), 0..=100), None, "{text:?}");
        }
    }

    #[test]
    fn addresses_are_inet_aton_s() {
        for (text, value) in [
            ("10.1", "10.0.0.1"),
            ("10.0.1", "10.0.0.1"),
            ("0x0a000001", "10.0.0.1"),
            ("012.0.0.1", "10.0.0.1"),
            ("12345", "0.0.48.57"),
            ("10.0.0.1 junk", "10.0.0.1"),
            ("255.255.255.255", "255.255.255.255"),
        ] {
            assert_eq!(aton(text.as_bytes()), Some(value.parse().unwrap()), "{text:?}");
        }
        for text in
            ["", "10.0.0.1.", "10..1", "256.1", "1.2.3.4.5", "08", "0x", "1.65536.1", "4294967296", "a"]
        {
            assert_eq!(aton(text.as_bytes()), None, "{text:?}");
        }
    }

    #[test]
    fn flags_need_their_scheduler() {
        assert_eq!(scheduler_flags(b"sh-port,,flag-3", "sh"), Ok(SCHEDULER_2 | SCHEDULER_3));
        assert!(scheduler_flags(b"sh-port", "wlc").is_err());
        assert_eq!(scheduler_flags(b",", "sh"), Ok(0));
    }

    #[test]
    fn flags_have_their_scheduler_s_names() {
        let written = |bits, scheduler| {
            let mut out = String::new();
            write_scheduler_flags(&mut out, bits, scheduler, " (", ")");
            out
        };
        assert_eq!(written(SCHEDULER_1 | SCHEDULER_2 | SCHEDULER_3, "mh"), " (mh-fallback,mh-port)");
        assert_eq!(written(SCHEDULER_1 | SCHEDULER_3, "rr"), " (flag-1,flag-3)");
        assert_eq!(written(SCHEDULER_3, "sh"), "");
    }
}
