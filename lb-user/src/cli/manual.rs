//! The manual page and the shell completion, made from the option table.
//!
//! Both are whole files for a package to install. What a value may be is said in the page's own words where the
//! option's line of help does not. IPVS counterpart: `ipvsadm.8`.

use std::io::{self, Write};

use super::options::{Argument, CommandKind, Meaning, OPTIONS, OptionRow};

/// xipvs's own commands, with what the manual says of each.
const OWN: [(&str, &str); 13] = [
    ("attach IFACE ...", "attach the packet program to interfaces, loading it if need be"),
    ("detach [IFACE ...]", "take it off interfaces, or remove everything"),
    ("status [--all]", "show interfaces, how full the tables are, and why packets were not forwarded"),
    ("mark add|delete|list|import", "rules that give packets their firewall mark, for services by mark (-f)"),
    ("set [NAME=VALUE ...]", "set IPVS's sysctls for the XDP program, by the kernel's names, or list them"),
    (
        "drain [-t|-u|-f SERVICE -r SERVER --within SECONDS]",
        "give a server weight 0 and end its connections in so many seconds, or list those that are on their way out",
    ),
    (
        "mirror --to|--from kernel",
        "make one table equal to the other's: the XDP program's, and kernel IPVS's",
    ),
    ("diff [--to|--from kernel]", "show what mirror would change; exit status 1 when that is anything"),
    ("adopt", "take over the live connections of kernel IPVS, whose destinations must be in the table"),
    ("hand-over", "hand the live connections over to kernel IPVS, whose table must have their destinations"),
    (
        "serve --mirror to-kernel|from-kernel",
        "keep them equal until SIGTERM, looking every --interval milliseconds",
    ),
    (
        "sync master|backup",
        "be a sync daemon until SIGTERM, as --start-daemon starts them, with the same options",
    ),
    ("generate man|completion", "print this page, or the completion for bash"),
];

/// Options in front of any command.
const FRONT: [(&str, &str); 2] = [
    ("--netns NAME", "work in this network namespace (a name of ip netns)"),
    ("--director xdp|kernel", "whose table to work on: the XDP program's, or that of the kernel's own IPVS"),
];

/// Writes the manual page of a program (`xipvs` or `ipvsadm`) as roff for section 8.
///
/// # Errors
///
/// What the writer says.
pub fn write_page(to: &mut dyn Write, with_added: bool) -> io::Result<()> {
    let program = if with_added { "xipvs" } else { "ipvsadm" };
    writeln!(to, ".TH {} 8 \"\" \"xipvs {}\"", program.to_uppercase(), env!("CARGO_PKG_VERSION"))?;
    writeln!(to, ".SH NAME\n{program} \\- virtual servers of Linux, balanced by an XDP program")?;
    writeln!(to, ".SH SYNOPSIS\n.B {program}\n.I COMMAND\n[\\fIoption\\fR ...]")?;
    if with_added {
        for (form, _) in OWN {
            writeln!(to, ".br\n.B xipvs\n{}", plain(form))?;
        }
    }
    to.write_all(
        b".SH DESCRIPTION\nA command comes first, its options after it in any order. A service is named by one of\n\
          \\fB\\-t\\fR, \\fB\\-u\\fR and \\fB\\-\\-sctp\\-service\\fR with address:port, or by \\fB\\-f\\fR with a mark. \
          An IPv6 address\nwith a port stands in brackets. Options that do not go with a command are refused.\n",
    )?;
    let shown = |row: &&OptionRow| with_added || !row.added;
    let (commands, options): (Vec<_>, Vec<_>) =
        OPTIONS.iter().filter(shown).partition(|row| matches!(row.meaning, Meaning::Command(_)));
    writeln!(to, ".SH COMMANDS")?;
    commands.iter().try_for_each(|row| write_entry(to, row))?;
    if with_added {
        for (form, help) in OWN {
            writeln!(to, ".TP\n\\fB{}\\fR\n{}.", plain(form), plain(help))?;
        }
    }
    writeln!(to, ".SH OPTIONS")?;
    if with_added {
        writeln!(to, "In front of any command:")?;
        for (form, help) in FRONT {
            writeln!(to, ".TP\n\\fB{}\\fR\n{}.", plain(form), plain(help))?;
        }
        writeln!(to, ".PP\nAfter a command:")?;
    }
    options.iter().try_for_each(|row| write_entry(to, row))?;
    to.write_all(
        b".SH OTHER NAMES\n\
          Called as \\fBipvsadm\\-save\\fR [\\fB\\-n\\fR] the program prints the table as command lines, with \\fB\\-n\\fR \
          in numbers;\ncalled as \\fBipvsadm\\-restore\\fR it empties the table and carries out the command lines on standard \
          input,\nbut for lines that begin with #.\n",
    )?;
    to.write_all(
        b".SH EXIT STATUS\n0 if all went well; 1 for a listing that was refused or could not be written; 2 for a faulty \
          command line;\n255 for a refused change and for an unknown or incomplete option. \
          A restore ends with the status of its last line.\n",
    )
}

fn write_entry(to: &mut dyn Write, row: &OptionRow) -> io::Result<()> {
    let short = row.short.map_or_else(String::new, |letter| format!("\\fB\\-{}\\fR, ", char::from(letter)));
    let argument = match row.argument {
        Argument::None => String::new(),
        Argument::Required(name) => format!(" \\fI{name}\\fR"),
        Argument::Optional(name, _) => format!(" [\\fI{name}\\fR]"),
    };
    writeln!(to, ".TP\n{short}\\fB\\-\\-{}\\fR{argument}\n{}.", plain(row.long), plain(row.help))?;
    let with = with_commands(row);
    if !with.is_empty() {
        writeln!(to, "With {}.", plain(&with))?;
    }
    Ok(())
}

/// The commands that an option goes with, by their letters where they have one.
fn with_commands(row: &OptionRow) -> String {
    let goes = |kind: CommandKind| row.slot().is_some_and(|slot| slot.row().goes_with(kind));
    let mut names: Vec<String> = Vec::new();
    for command in OPTIONS {
        let Meaning::Command(kind) = command.meaning else { continue };
        let repeated = command.short == Some(b'l');
        if goes(kind) && !repeated {
            names.push(
                command.short.map_or_else(
                    || format!("--{}", command.long),
                    |letter| format!("-{}", char::from(letter)),
                ),
            );
        }
    }
    names.join(", ")
}

/// Text as roff wants it: dashes as dashes, and no line that looks like a request.
fn plain(text: &str) -> String {
    text.replace('\\', "\\e").replace('-', "\\-")
}

/// Writes the completion of bash for a program, to be sourced.
///
/// A word after an option that needs a value is completed from [`values`], or not at all.
///
/// # Errors
///
/// What the writer says.
pub fn write_completion(to: &mut dyn Write, with_added: bool) -> io::Result<()> {
    let program = if with_added { "xipvs" } else { "ipvsadm" };
    let words = |commands: bool| {
        let mut words = Vec::new();
        for row in OPTIONS.iter().filter(|row| with_added || !row.added) {
            if matches!(row.meaning, Meaning::Command(_)) == commands {
                words.extend(row.short.map(|letter| format!("-{}", char::from(letter))));
                let long = format!("--{}", row.long);
                if !words.contains(&long) {
                    words.push(long);
                }
            }
        }
        words.join(" ")
    };
    let own = if with_added {
        " attach detach status set mark drain mirror diff serve sync adopt hand-over generate --netns --director"
    } else {
        ""
    };
    writeln!(to, "# bash completion for {program}, made from its option table\n_{program}() {{")?;
    writeln!(to, "    local word=${{COMP_WORDS[COMP_CWORD]}} before=${{COMP_WORDS[COMP_CWORD-1]}}")?;
    writeln!(to, "    case $before in")?;
    for row in OPTIONS.iter().filter(|row| with_added || !row.added) {
        if !matches!(row.argument, Argument::Required(_)) {
            continue;
        }
        let letter = row.short.map_or_else(String::new, |letter| format!("-{}|", char::from(letter)));
        let answer = match values(row) {
            "" => "COMPREPLY=()".to_owned(),
            "$interfaces" => "COMPREPLY=($(compgen -W \"$(ls /sys/class/net)\" -- \"$word\"))".to_owned(),
            words => format!("COMPREPLY=($(compgen -W '{words}' -- \"$word\"))"),
        };
        writeln!(to, "    {letter}--{}) {answer}; return ;;", row.long)?;
    }
    if with_added {
        writeln!(to, "    --director) COMPREPLY=($(compgen -W 'xdp kernel' -- \"$word\")); return ;;")?;
        writeln!(
            to,
            "    --netns) COMPREPLY=($(compgen -W \"$(ls /run/netns 2>/dev/null)\" -- \"$word\")); return ;;"
        )?;
        writeln!(
            to,
            "    attach|detach) COMPREPLY=($(compgen -W \"$(ls /sys/class/net)\" -- \"$word\")); return ;;"
        )?;
        writeln!(to, "    --to|--from) COMPREPLY=($(compgen -W 'kernel' -- \"$word\")); return ;;")?;
        writeln!(
            to,
            "    --mirror) COMPREPLY=($(compgen -W 'to-kernel from-kernel' -- \"$word\")); return ;;"
        )?;
        writeln!(to, "    generate) COMPREPLY=($(compgen -W 'man completion' -- \"$word\")); return ;;")?;
    }
    writeln!(to, "    esac\n    if ((COMP_CWORD == 1)); then")?;
    writeln!(to, "        COMPREPLY=($(compgen -W '{}{own}' -- \"$word\"))", words(true))?;
    writeln!(to, "    else\n        COMPREPLY=($(compgen -W '{}' -- \"$word\"))", words(false))?;
    writeln!(to, "    fi\n}}\ncomplete -F _{program} {program}")
}

/// What an option's value may be, where there are few.
fn values(row: &OptionRow) -> &'static str {
    match row.long {
        "scheduler" => "rr wrr lc wlc lblc lblcr dh sh sed nq fo ovf mh",
        "pe" => "sip",
        "tun-type" => "ipip gue gre",
        "start-daemon" | "stop-daemon" => "master backup",
        "sched-flags" => "flag-1 flag-2 flag-3 sh-fallback sh-port mh-fallback mh-port",
        "mcast-interface" => "$interfaces",
        _ => "",
    }
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use super::*;

    fn page(with_added: bool) -> String {
        let mut text = Vec::new();
        write_page(&mut text, with_added).unwrap();
        String::from_utf8(text).unwrap()
    }

    fn completion(with_added: bool) -> String {
        let mut text = Vec::new();
        write_completion(&mut text, with_added).unwrap();
        String::from_utf8(text).unwrap()
    }

    #[test]
    fn the_page_has_an_entry_for_every_option() {
        for with_added in [true, false] {
            let page = page(with_added);
            for row in OPTIONS {
                let entry = format!("\\fB\\-\\-{}\\fR", plain(row.long));
                let there = page.lines().any(|line| line.contains(&entry));
                assert_eq!(there, with_added || !row.added, "--{}", row.long);
                assert_eq!(page.contains(&format!("\n{}.\n", plain(row.help))), there, "--{}", row.long);
            }
        }
        assert!(page(true).contains("\nWith \\-A, \\-E, \\-D, \\-C, \\-a, \\-e, \\-d, \\-\\-set, \\-R.\n"));
    }

    #[test]
    fn every_line_of_the_page_is_text_or_a_known_request() {
        for line in page(true).lines().chain(page(false).lines()) {
            if line.starts_with(['.', '\'']) {
                let request = line.split(' ').next().unwrap();
                assert!([".TH", ".SH", ".TP", ".PP", ".B", ".I", ".br"].contains(&request), "{line}");
            }
            assert!(!line.is_empty());
        }
    }

    #[test]
    fn the_completion_has_every_option() {
        for with_added in [true, false] {
            let completion = completion(with_added);
            let words: Vec<&str> = completion.split([' ', '\'', '\n', '|', ')']).collect();
            for row in OPTIONS {
                let long = format!("--{}", row.long);
                assert_eq!(words.contains(&long.as_str()), with_added || !row.added, "{long}");
            }
        }
    }

    /// What bash offers after a command line whose last word is not finished.
    fn offered(line: &str) -> String {
        let words: Vec<&str> = line.split(' ').collect();
        let script = format!(
            "{}\nCOMP_WORDS=({}); COMP_CWORD={}; _xipvs; echo ${{COMPREPLY[@]}}",
            completion(true),
            words.iter().map(|word| format!("'{word}'")).collect::<Vec<_>>().join(" "),
            words.len() - 1
        );
        let output = Command::new("bash").args(["-c", &script]).stdin(Stdio::null()).output().expect("bash");
        assert!(output.stderr.is_empty(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap().trim_end().to_owned()
    }

    #[test]
    fn bash_completes_commands_options_and_values() {
        for (line, words) in [
            ("xipvs --add-s", "--add-service --add-server"),
            ("xipvs att", "attach"),
            ("xipvs -A -t 192.0.2.1:80 -s wr", "wrr"),
            ("xipvs -A -t 192.0.2.1:80 --sch", "--scheduler --sched-flags"),
            ("xipvs -A -t 192", ""),
            ("xipvs --start-daemon ma", "master"),
            ("xipvs --director k", "kernel"),
        ] {
            assert_eq!(offered(line), words, "{line}");
        }
    }
}
