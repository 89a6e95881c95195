//! What `/proc/net/ip_vs` tells of the configuration, in a form that two looks can be compared by.
//!
//! Services come with scheduler and persistence, destinations with forwarding method and weight, in their order.
//! The numbers of connections are left out. IPVS counterpart: `ip_vs_info_seq_show`.

use std::hash::Hasher;
use std::io::{self, BufRead};

/// Begins the line of a destination, whose last two words are numbers of connections.
const DESTINATION: &[u8] = b"  -> ";

/// Adds the file's lines.
pub fn add_table(mut file: impl BufRead, hasher: &mut impl Hasher) -> io::Result<()> {
    let mut line = Vec::new();
    while file.read_until(b'\n', &mut line)? > 0 {
        let told = if line.starts_with(DESTINATION) { without_last_words(&line, 2) } else { &line };
        hasher.write(told);
        // So that no two lines read like one.
        hasher.write_u8(b'\n');
        line.clear();
    }
    Ok(())
}

/// A line without the blanks at its end and so many words before them.
fn without_last_words(line: &[u8], words: usize) -> &[u8] {
    (0..words).fold(line, |line, _| {
        let line = line.trim_ascii_end();
        let end = line.iter().rposition(|byte| *byte == b' ').map_or(0, |blank| blank + 1);
        &line[..end]
    })
}

#[cfg(test)]
mod tests {
    use std::hash::DefaultHasher;

    use super::*;

    /// As captured from Linux 6.1.
    const TABLE: &str = "\
IP Virtual Server version 1.2.1 (size=4096)
Prot LocalAddress:Port Scheduler Flags
  -> RemoteAddress:Port Forward Weight ActiveConn InActConn
TCP  0A000064:0050 wrr  persistent 300 FFFFFFFF
  -> 0A010103:0050      Masq    3      0          0         
  -> 0A010102:0050      Masq    1      0          0         
";

    fn of(table: &str) -> u64 {
        let mut hasher = DefaultHasher::new();
        add_table(table.as_bytes(), &mut hasher).unwrap();
        hasher.finish()
    }

    #[test]
    fn connections_make_no_difference() {
        let busy = TABLE.replace("1      0          0         ", "1      17         4294967295");
        assert_ne!(busy, TABLE);
        assert_eq!(of(&busy), of(TABLE));
    }

    #[test]
    fn every_configured_word_makes_a_difference() {
        for (from, to) in [
            ("0A000064:0050", "0A000064:0051"),
            ("wrr", "rr"),
            ("persistent 300", "persistent 301"),
            ("0A010102", "0A010104"),
            ("Masq    1", "Masq    2"),
            ("Masq    1", "Route   1"),
        ] {
            let changed = TABLE.replace(from, to);
            assert_ne!(changed, TABLE);
            assert_ne!(of(&changed), of(TABLE), "{from} {to}");
        }
        let turned = {
            let mut lines: Vec<_> = TABLE.lines().collect();
            lines.swap(4, 5);
            lines.join("\n")
        };
        assert_ne!(of(&turned), of(TABLE));
    }
}
