//! The help text and the version line, made from the option table.

use std::io::{self, Write};

use super::options::{Argument, Meaning, OPTIONS, OptionRow, Slot};

/// The version line of ipvsadm, whose command line this is.
pub const IPVSADM_VERSION: &str = "ipvsadm v1.31 2019/12/24 (compiled with popt and IPVS v1.2.1)";

/// The version line under the name `xipvs`.
pub const XIPVS_VERSION: &str =
    concat!("xipvs v", env!("CARGO_PKG_VERSION"), " (command line of ipvsadm v1.31, IPVS v1.2.1)");

/// Writes the version line.
pub fn write_version(to: &mut dyn Write, with_added: bool) -> io::Result<()> {
    writeln!(to, "{}", if with_added { XIPVS_VERSION } else { IPVSADM_VERSION })
}

/// Writes the version line and the help text; `program` is the name that the program was called by.
pub fn write(to: &mut dyn Write, program: &[u8], with_added: bool) -> io::Result<()> {
    const FORMS: [&str; 9] = [
        "-A|-E SERVICE [service options]",
        "-D SERVICE",
        "-a|-e SERVICE -r SERVER [server options]",
        "-d SERVICE -r SERVER",
        "-L [SERVICE | -c | --timeout | --daemon] [listing options]",
        "-Z [SERVICE]",
        "-C | -R | -S [-n] | -h | -v",
        "--set TCP TCPFIN UDP",
        "--start-daemon|--stop-daemon master|backup [daemon options]",
    ];
    write_version(to, with_added)?;
    writeln!(to, "\nA command comes first, its options after it:\n")?;
    for form in FORMS {
        to.write_all(b"  ")?;
        to.write_all(program)?;
        writeln!(to, " {form}")?;
    }
    for part in PARTS {
        writeln!(to, "\n{}:", part.title)?;
        for row in OPTIONS.iter().filter(|row| (part.holds)(row) && (with_added || !row.added)) {
            write_row(to, row)?;
        }
    }
    writeln!(
        to,
        "\nSERVICE is one of -t, -u and --sctp-service with address:port, or -f with a mark. An IPv6 address\n\
         with a port stands in brackets: [2001:db8::1]:80."
    )
}

/// A part of the help text: the options of one purpose.
struct Part {
    title: &'static str,
    holds: fn(&OptionRow) -> bool,
}

const PARTS: [Part; 7] = [
    Part { title: "Commands", holds: |row| matches!(row.meaning, Meaning::Command(_)) },
    Part {
        title: "Naming a service",
        holds: |row| matches!(row.meaning, Meaning::Service(_) | Meaning::Mark | Meaning::Ipv6),
    },
    Part { title: "Service options", holds: |row| goes_with(row, Slot::Scheduler) },
    Part {
        title: "Server options",
        holds: |row| goes_with(row, Slot::Weight) || goes_with(row, Slot::Destination),
    },
    Part {
        title: "Daemon options",
        holds: |row| goes_with(row, Slot::McastInterface) || goes_with(row, Slot::SyncId),
    },
    Part { title: "With any change of the table", holds: |row| row.slot() == Some(Slot::DryRun) },
    Part {
        title: "Listing options",
        holds: |row| {
            row.meaning == Meaning::Nothing
                || row.slot().is_some_and(|slot| slot != Slot::SyncId && slot != Slot::Service && lists(slot))
        },
    },
];

/// Whether the option goes with the same commands as the slot.
fn goes_with(row: &OptionRow, like: Slot) -> bool {
    let of = |slot: Slot| (slot.row().may, slot.row().must, slot.row().one);
    row.slot().is_some_and(|slot| of(slot) == of(like))
}

fn lists(slot: Slot) -> bool {
    use super::options::CommandKind::List;
    slot.row().may.has(List) || slot.row().one.has(List)
}

fn write_row(to: &mut dyn Write, row: &OptionRow) -> io::Result<()> {
    let short = row.short.map_or("   ".into(), |letter| format!("-{},", char::from(letter)));
    let argument = match row.argument {
        Argument::None => String::new(),
        Argument::Required(name) => format!(" {name}"),
        Argument::Optional(name, _) => format!(" [{name}]"),
    };
    let long = format!("--{}{argument}", row.long);
    writeln!(to, "  {short} {long:<28} {}", row.help)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_option_stands_in_exactly_one_part() {
        for row in OPTIONS {
            let parts: Vec<_> =
                PARTS.iter().filter(|part| (part.holds)(row)).map(|part| part.title).collect();
            assert_eq!(parts.len(), 1, "--{} stands in {parts:?}", row.long);
        }
    }

    #[test]
    fn what_ipvsadm_lacks_is_not_in_its_help() {
        let mut text = Vec::new();
        write(&mut text, b"ipvsadm", false).unwrap();
        let text = String::from_utf8(text).unwrap();
        assert!(text.starts_with(IPVSADM_VERSION));
        assert!(text.contains("--weight WEIGHT") && !text.contains("--json"));
    }
}
