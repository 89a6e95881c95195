//! Counters in netlink's attributes, in the 64-bit nest where the kernel has one (since 4.1), else in the old one.
//!
//! IPVS counterpart: `ip_vs_genl_fill_stats` and `ip_vs_genl_fill_stats64`.

use netlink_packet_core::{DecodeError, parse_u32, parse_u64};

use super::message::each;
use crate::table::Stats;

/// Reads either nest: its numbers are told apart by their size.
pub fn decode(nest: &[u8]) -> Result<Stats, DecodeError> {
    let mut stats = Stats::default();
    each(nest, |kind, value| {
        let field = match kind {
            1 => &mut stats.connections,
            2 => &mut stats.in_packets,
            3 => &mut stats.out_packets,
            4 => &mut stats.in_bytes,
            5 => &mut stats.out_bytes,
            6 => &mut stats.connection_rate,
            7 => &mut stats.in_packet_rate,
            8 => &mut stats.out_packet_rate,
            9 => &mut stats.in_byte_rate,
            10 => &mut stats.out_byte_rate,
            _ => return Ok(()),
        };
        *field = if value.len() == 4 { parse_u32(value)?.into() } else { parse_u64(value)? };
        Ok(())
    })?;
    Ok(stats)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::director::kernel::message::Attributes;

    #[test]
    fn both_widths_are_read_and_padding_is_not() {
        let mut old = Attributes::default();
        let mut new = Attributes::default();
        for kind in 1..=10u16 {
            // In the old nest only the byte counters are wide.
            old = match kind {
                4 | 5 => old.put(kind, &(u64::from(kind) << 40).to_ne_bytes()),
                _ => old.put_u32(kind, kind.into()),
            };
            new = new.put(kind, &(u64::from(kind) << 40).to_ne_bytes()).put(11, &[]);
        }
        let old = decode(&old.0).unwrap();
        assert_eq!((old.connections, old.in_bytes, old.out_byte_rate), (1, 4 << 40, 10));
        let wide = |kind: u64| kind << 40;
        assert_eq!(
            decode(&new.0).unwrap(),
            Stats {
                connections: wide(1),
                in_packets: wide(2),
                out_packets: wide(3),
                in_bytes: wide(4),
                out_bytes: wide(5),
                connection_rate: wide(6),
                in_packet_rate: wide(7),
                out_packet_rate: wide(8),
                in_byte_rate: wide(9),
                out_byte_rate: wide(10),
            }
        );
    }
}
