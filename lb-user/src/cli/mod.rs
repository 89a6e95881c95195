//! ipvsadm's command line, word for word, on any [`Director`].
//!
//! [`run`] is the program: `words` takes the command line apart, `parse` reads what was typed, `check`
//! makes a [`command::Command`] of it, `execute` carries that out. All output goes to the streams given;
//! the answer is the exit status. IPVS counterpart: the ipvsadm program, version 1.31.

mod address;
mod check;
pub mod command;
mod connections;
mod execute;
pub mod help;
mod json;
mod list;
pub mod manual;
mod message;
pub mod names;
mod numbers;
pub mod options;
mod parse;
mod restore;
mod save;
mod sort;
mod values;
mod words;

use std::ffi::{OsStr, OsString};
use std::io::{BufRead, ErrorKind, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::time::Duration;

use command::{Command, Listing, Subject};
use execute::Failure;
use message::Complaint;
pub use message::cannot_start;
use names::Names;
use options::CommandKind;

use crate::director::Director;
use crate::mark;
use crate::rehearsal::Rehearsal;
use crate::table::{DestinationKey, ServiceKey};

/// The exit status of what could not be printed.
const OUTPUT_FAILED: u8 = 1;
/// The exit status when the director cannot be reached.
const NOT_STARTED: u8 = 2;

/// The streams of a process.
pub struct Streams<'a> {
    /// Where `-R` reads.
    pub stdin: &'a mut dyn BufRead,
    /// Where listings go.
    pub stdout: &'a mut dyn Write,
    /// Where complaints go.
    pub stderr: &'a mut dyn Write,
}

/// Which program a name stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tool {
    /// `xipvs`: ipvsadm's command line and what it lacks.
    Xipvs,
    /// `ipvsadm`.
    Ipvsadm,
    /// `ipvsadm-save`.
    Save,
    /// `ipvsadm-restore`.
    Restore,
}

impl Tool {
    /// The tool that a program's name asks for: its last part counts.
    pub fn of(program: &OsStr) -> Self {
        match Path::new(program).file_name().map(OsStrExt::as_bytes) {
            Some(b"ipvsadm") => Self::Ipvsadm,
            Some(b"ipvsadm-save") => Self::Save,
            Some(b"ipvsadm-restore") => Self::Restore,
            _ => Self::Xipvs,
        }
    }
}

/// Runs a command line, with the program's name as its first word, and returns the exit status.
///
/// Called as `ipvsadm-save` or `ipvsadm-restore` it is that program.
pub fn run(
    arguments: &[OsString],
    streams: &mut Streams<'_>,
    director: &mut dyn Director,
    names: &dyn Names,
) -> u8 {
    let (program, arguments) = match arguments.split_first() {
        Some((program, arguments)) => (program.as_os_str(), arguments),
        None => (OsStr::new("ipvsadm"), arguments),
    };
    let words: Vec<&[u8]> = arguments.iter().map(|word| word.as_bytes()).collect();
    let tool = Tool::of(program);
    let program = match tool {
        Tool::Xipvs | Tool::Ipvsadm => program.as_bytes(),
        // The scripts call ipvsadm, and messages name it.
        Tool::Save | Tool::Restore => b"ipvsadm",
    };
    let mut session = Session { program, with_added: tool == Tool::Xipvs, line: 0, director, names };
    match tool {
        Tool::Xipvs | Tool::Ipvsadm => session.run(&words, streams),
        Tool::Save => restore::save_script(&mut session, &words, streams),
        Tool::Restore => restore::restore_script(&mut session, streams),
    }
}

/// How long after one listing the next is wanted, if the command line asks for that (`--watch`). [`run`] lists once.
pub fn watch_interval(arguments: &[OsString], names: &dyn Names) -> Option<Duration> {
    let (program, arguments) = arguments.split_first()?;
    let words: Vec<&[u8]> = arguments.iter().map(|word| word.as_bytes()).collect();
    let with_added = Tool::of(program) == Tool::Xipvs;
    match check::check(&parse::parse(&words, names, false, with_added).ok()?).ok()? {
        Command::List(listing) => listing.again.map(|seconds| Duration::from_secs(seconds.into())),
        _ => None,
    }
}

/// The service and the destination that ipvsadm's words name (`-t` ... `-r` ...).
///
/// # Errors
///
/// ipvsadm's complaint about the words.
pub fn destination_named(words: &[&str], names: &dyn Names) -> Result<(ServiceKey, DestinationKey), String> {
    let words: Vec<&[u8]> = std::iter::once("-d").chain(words.iter().copied()).map(str::as_bytes).collect();
    let read = parse::parse(&words, names, false, true).and_then(|typed| check::check(&typed));
    match read {
        Ok(Command::DeleteDestination(service, destination)) => Ok((service, destination)),
        Ok(_) => Err("a service and a real server are wanted".into()),
        Err(complaint) => {
            let mut text = Vec::new();
            // A vector takes everything.
            let _ = complaint.write(b"xipvs", false, &mut text);
            Err(String::from_utf8_lossy(&text).trim_end().into())
        }
    }
}

/// Reads the line of a restore that adds or deletes rules that mark packets.
fn mark_command(words: &[&[u8]]) -> Result<Command, Complaint> {
    let words: Vec<_> = words.iter().map(|word| String::from_utf8_lossy(word)).collect();
    let words: Vec<&str> = words.iter().map(|word| word.as_ref()).collect();
    let command = match words.as_slice() {
        ["mark", "add", words @ ..] => mark::rule(words).map(Command::AddMarkRule),
        ["mark", "delete", which] => mark::selection(which).map(Command::DeleteMarkRules),
        _ => Err("a rule is added with `mark add` and deleted with `mark delete`".into()),
    };
    command.map_err(|why| Complaint::usage(format!("mark: {why}")))
}

/// How a command line ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Outcome {
    /// The exit status.
    status: u8,
    /// Whether a restore must not go on after it.
    ends: bool,
}

impl Outcome {
    const DONE: Self = Self { status: 0, ends: false };
    const LEAVE: Self = Self { status: 0, ends: true };
}

/// What all command lines of a run share.
struct Session<'a> {
    program: &'a [u8],
    with_added: bool,
    /// The line of a restore's input, from 1 on.
    line: u64,
    director: &'a mut dyn Director,
    names: &'a dyn Names,
}

impl Session<'_> {
    /// Starts up as the program does, then runs one command line.
    fn run(&mut self, words: &[&[u8]], streams: &mut Streams<'_>) -> u8 {
        if let Err(error) = self.director.info() {
            let _ = streams.stderr.write_all(cannot_start(&error).as_bytes());
            return NOT_STARTED;
        }
        match self.read(words, false) {
            Ok(Command::Restore) => {
                let Streams { stdin, stdout, stderr } = streams;
                let restore = if self.with_added { restore::restore_as_plan } else { restore::restore };
                restore(self, *stdin, *stdout, *stderr)
            }
            Ok(Command::Rehearse(command)) if *command == Command::Restore => self.rehearse_restore(streams),
            Ok(command) => self.carry_out(&command, streams.stdout, streams.stderr).status,
            Err(complaint) => self.complain(&complaint, streams.stderr).status,
        }
    }

    /// The same session on another director.
    fn on<'a>(&'a self, director: &'a mut dyn Director) -> Session<'a> {
        Session { director, ..*self }
    }

    /// Carries a restore out on a copy of the table and shows what it would change.
    fn rehearse_restore(&mut self, streams: &mut Streams<'_>) -> u8 {
        let Streams { stdin, stdout, stderr } = streams;
        let mut rehearsal = match Rehearsal::of(self.director) {
            Ok(rehearsal) => rehearsal,
            Err(error) => return self.complain(&message::refusal(CommandKind::List, &error), *stderr).status,
        };
        let status = restore::restore(&mut self.on(rehearsal.stage()), *stdin, *stdout, *stderr);
        let shown = execute::describe(&mut rehearsal, *stdout);
        self.end(shown, *stderr).map_or(status, |failed| failed.status)
    }

    /// Reads a command line; no words at all are a listing.
    fn read(&self, words: &[&[u8]], inside_restore: bool) -> Result<Command, Complaint> {
        if words.is_empty() {
            let subject =
                Subject::Services { only: None, format: command::Format::Plain, sorted: true, exact: false };
            return Ok(Command::List(Listing { subject, numeric: false, json: false, again: None }));
        }
        if self.with_added && inside_restore && words[0] == b"mark" {
            return mark_command(words);
        }
        check::check(&parse::parse(words, self.names, inside_restore, self.with_added)?)
    }

    /// Carries out a command other than a restore.
    fn carry_out(&mut self, command: &Command, stdout: &mut dyn Write, stderr: &mut dyn Write) -> Outcome {
        let done = match command {
            Command::List(listing) => {
                execute::list(listing, self.with_added, self.director, self.names, stdout)
            }
            Command::Save { numeric } => {
                execute::save(*numeric, self.with_added, self.director, self.names, stdout)
            }
            Command::Help => help::write(stdout, self.program, self.with_added).map_err(Failure::Output),
            Command::Version => help::write_version(stdout, self.with_added).map_err(Failure::Output),
            Command::Rehearse(command) => execute::rehearse(command, self.director, stdout),
            change => execute::change(change, self.director).map_err(Failure::Complaint),
        };
        match self.end(done, stderr) {
            Some(failed) => failed,
            None if matches!(command, Command::Help | Command::Version) => Outcome::LEAVE,
            None => Outcome::DONE,
        }
    }

    /// Says why something failed, if it did.
    fn end(&self, done: Result<(), Failure>, stderr: &mut dyn Write) -> Option<Outcome> {
        match done {
            Ok(()) => None,
            Err(Failure::Complaint(complaint)) => Some(self.complain(&complaint, stderr)),
            Err(Failure::Output(error)) => {
                // A reader that has gone away knows.
                if error.kind() != ErrorKind::BrokenPipe {
                    let _ = writeln!(stderr, "cannot write to standard output: {error}");
                }
                Some(Outcome { status: OUTPUT_FAILED, ends: true })
            }
        }
    }

    fn complain(&self, complaint: &Complaint, stderr: &mut dyn Write) -> Outcome {
        if self.with_added && self.line > 0 {
            let _ = write!(stderr, "line {}: ", self.line);
        }
        // There is nowhere left to say that standard error cannot be written.
        let _ = complaint.write(self.program, self.with_added, stderr);
        Outcome { status: complaint.status(), ends: complaint.ends_restore() }
    }
}
