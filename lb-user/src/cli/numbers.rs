//! Counters and rates in columns of nine.

use std::fmt::Write as _;

/// Appends a number in nine columns, in thousands and so on from 100,000,000 upwards.
pub fn write(out: &mut String, value: u64, exact: bool) {
    // Writing to a String cannot fail.
    let _ = match value {
        ..100_000_000 => write!(out, "{value:>9}"),
        _ if exact => write!(out, " {value}"),
        100_000_000..1_000_000_000 => write!(out, "{:>8}K", value / 1_000),
        1_000_000_000..100_000_000_000 => write!(out, "{:>8}M", value / 1_000_000),
        100_000_000_000..100_000_000_000_000 => write!(out, "{:>8}G", value / 1_000_000_000),
        _ => write!(out, "{:>8}T", value / 1_000_000_000_000),
    };
}

#[cfg(test)]
mod tests {
    #[test]
    fn units_begin_where_nine_digits_do() {
        for (value, scaled, exact) in [
            (0, "        0", "        0"),
            (99_999_999, " 99999999", " 99999999"),
            (100_000_000, "  100000K", " 100000000"),
            (999_999_999, "  999999K", " 999999999"),
            (1_000_000_000, "    1000M", " 1000000000"),
            (99_999_999_999, "   99999M", " 99999999999"),
            (100_000_000_000, "     100G", " 100000000000"),
            (100_000_000_000_000, "     100T", " 100000000000000"),
            (u64::MAX, "18446744T", " 18446744073709551615"),
        ] {
            let mut out = String::new();
            super::write(&mut out, value, false);
            assert_eq!(out, scaled);
            out.clear();
            super::write(&mut out, value, true);
            assert_eq!(out, exact);
        }
    }
}
