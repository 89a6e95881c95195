//! Command lines from standard input (`-R`), and the two scripts that come with ipvsadm.
//!
//! Under ipvsadm's names a line is carried out before the next is read, so that memory does not grow with the input; under
//! our own the lines become a plan. A refused change does not stop a restore, a faulty line does; nothing is cleared first.

use std::io::{self, BufRead, Write};

use super::command::Command;
use super::message::refusal;
use super::options::CommandKind;
use super::{Complaint, OUTPUT_FAILED, Session, Streams};
use crate::plan::Change;
use crate::rehearsal::Rehearsal;

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
    let ended = for_each_command(session, input, |session, command| {
        let outcome = match command {
            Ok(command) => session.carry_out(&command, stdout, stderr),
            Err(complaint) => session.complain(&complaint, stderr),
        };
        status = outcome.status;
        outcome.ends
    });
    match ended {
        Ok(()) => status,
        Err(error) => unreadable(&error, stderr),
    }
}

/// The same as a plan: the lines are carried out on a copy of the table, and then the table is made equal to the copy,
/// each service wholly or not at all, with no service emptied on the way.
///
/// Lines that a plan has no part for (listings, counters, sync daemons) find the table as the lines before them have made
/// it. After a faulty line, or where the input cannot be read to its end, what was not yet made is not made.
pub fn restore_as_plan(
    session: &mut Session<'_>,
    input: &mut dyn BufRead,
    stdout: &mut dyn Write,
    stderr: &mut dyn Write,
) -> u8 {
    let mut status = 0;
    let mut faulty = false;
    let mut planned: Option<Rehearsal> = None;
    let ended = for_each_command(session, input, |session, command| {
        let outcome = match command {
            Ok(command) if command.is_planned() => {
                let rehearsal = match planned.take().map_or_else(|| Rehearsal::of(session.director), Ok) {
                    Ok(rehearsal) => planned.insert(rehearsal),
                    Err(error) => {
                        let complaint = refusal(CommandKind::Restore, &error);
                        status = session.complain(&complaint, stderr).status;
                        return true;
                    }
                };
                session.on(rehearsal.stage()).carry_out(&command, stdout, stderr)
            }
            Ok(command) => {
                perform(planned.take(), session, stderr);
                session.carry_out(&command, stdout, stderr)
            }
            Err(complaint) => {
                let outcome = session.complain(&complaint, stderr);
                faulty = outcome.ends;
                outcome
            }
        };
        status = outcome.status;
        outcome.ends
    });
    match ended {
        Err(error) => unreadable(&error, stderr),
        Ok(()) if faulty => status,
        Ok(()) => perform(planned, session, stderr).unwrap_or(status),
    }
}

/// Makes the table what was planned and returns the exit status, if anything was refused.
fn perform(planned: Option<Rehearsal>, session: &mut Session<'_>, stderr: &mut dyn Write) -> Option<u8> {
    let applied = match planned?.perform(session.director) {
        Ok(applied) => applied,
        Err(error) => {
            return Some(session.complain(&refusal(CommandKind::Restore, &error), stderr).status);
        }
    };
    // Several lines may have led to a change: it is named itself.
    let line = std::mem::take(&mut session.line);
    let complaints = applied.refused.iter().map(|refused| {
        let _ = write!(stderr, "{}: ", refused.change);
        session.complain(&refusal(kind_of(&refused.change), &refused.error), stderr).status
    });
    let status = complaints.last();
    session.line = line;
    status
}

/// The command that makes a change.
fn kind_of(change: &Change) -> CommandKind {
    match change {
        Change::SetTimeouts(_) => CommandKind::Set,
        Change::AddService(_) => CommandKind::AddService,
        Change::EditService(_) => CommandKind::EditService,
        Change::DeleteService(_) => CommandKind::DeleteService,
        Change::AddDestination(..) => CommandKind::AddDestination,
        Change::EditDestination(..) => CommandKind::EditDestination,
        Change::DeleteDestination(..) => CommandKind::DeleteDestination,
        Change::SetMarkRules(_) => CommandKind::Restore,
    }
}

/// Reads each line that has words in it and hands it to `each`, until there are no more or `each` says that it is enough.
fn for_each_command<'a>(
    session: &mut Session<'a>,
    input: &mut dyn BufRead,
    mut each: impl FnMut(&mut Session<'a>, Result<Command, Complaint>) -> bool,
) -> io::Result<()> {
    for_each_line(input, |line| {
        session.line += 1;
        let words = words_of(line);
        if words.is_empty() {
            return false;
        }
        let command = session.read(&words, true);
        each(session, command)
    })
}

fn words_of(line: &[u8]) -> Vec<&[u8]> {
    line.split(|byte| matches!(byte, b' ' | b'\t' | b'\r' | b'\n'))
        .filter(|word| !word.is_empty() && *word != b"ipvsadm")
        .collect()
}

fn unreadable(error: &io::Error, stderr: &mut dyn Write) -> u8 {
    let _ = writeln!(stderr, "cannot read standard input: {error}");
    OUTPUT_FAILED
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
        return unreadable(&error, streams.stderr);
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
