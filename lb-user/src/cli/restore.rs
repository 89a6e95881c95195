//! Command lines from standard input (`-R`), and the two scripts that come with ipvsadm.
//!
//! A line is carried out before the next is read, so that memory does not grow with the input. A refused
//! change does not stop a restore, a faulty line does; nothing is cleared first and nothing taken back.

use std::io::{self, BufRead, Write};

use super::{OUTPUT_FAILED, Session, Streams};

/// What `ipvsadm-save` says when it is asked for anything but `-n`.
const SAVE_USAGE: &str = "ipvsadm-save: Script to save the IPVS table to stdout.\n   \
                          With the -n option, prints out the table in numeric format.\n";

/// Carries out the command lines of the input and returns the exit status, that of the last line.
pub fn restore(
    session: &mut Session<'_>,
    input: &mut dyn BufRead,
    stdout: &mut dyn Write,
    stderr: &mut dyn Write,
) -> u8 {
    let mut status = 0;
    let ended = for_each_line(input, |line| {
        let words: Vec<&[u8]> = line
            .split(|byte| matches!(byte, b' ' | b'\t' | b'\r' | b'\n'))
            .filter(|word| !word.is_empty() && *word != b"ipvsadm")
            .collect();
        if words.is_empty() {
            return false;
        }
        let outcome = match session.read(&words, true) {
            Ok(command) => session.carry_out(&command, stdout, stderr),
            Err(complaint) => session.complain(&complaint, stderr),
        };
        status = outcome.status;
        outcome.ends
    });
    match ended {
        Ok(()) => status,
        Err(error) => {
            let _ = writeln!(stderr, "cannot read standard input: {error}");
            OUTPUT_FAILED
        }
    }
}

/// `ipvsadm-save`: prints the rules; takes `-n` only.
pub fn save_script(session: &mut Session<'_>, words: &[&[u8]], streams: &mut Streams<'_>) -> u8 {
    let mut line: Vec<&[u8]> = vec![b"-S"];
    for word in words.iter().filter(|word| word.starts_with(b"-")) {
        if *word != b"-n" {
            let _ = streams.stderr.write_all(SAVE_USAGE.as_bytes());
            return 1;
        }
        line.truncate(1);
        line.push(b"-n");
    }
    session.run(&line, streams)
}

/// `ipvsadm-restore`: clears the table, then carries out the rules; lines that begin with `#` are comments.
///
/// It takes no arguments and looks at none. All input is read before the table is cleared.
pub fn restore_script(session: &mut Session<'_>, streams: &mut Streams<'_>) -> u8 {
    let mut rules = Vec::new();
    let read = for_each_line(streams.stdin, |line| {
        if !line.starts_with(b"#") {
            rules.extend_from_slice(line);
        }
        false
    });
    if let Err(error) = read {
        let _ = writeln!(streams.stderr, "cannot read standard input: {error}");
        return OUTPUT_FAILED;
    }
    session.run(&[b"-C"], streams);
    let mut rules = rules.as_slice();
    session.run(&[b"-R"], &mut Streams { stdin: &mut rules, stdout: streams.stdout, stderr: streams.stderr })
}

/// Hands each line with its newline to `each`, until there are no more or `each` says that it is enough.
fn for_each_line(input: &mut dyn BufRead, mut each: impl FnMut(&[u8]) -> bool) -> io::Result<()> {
    let mut line = Vec::new();
    loop {
        line.clear();
        if input.read_until(b'\n', &mut line)? == 0 || each(&line) {
            return Ok(());
        }
    }
}
