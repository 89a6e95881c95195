//! What was typed: one of xipvs's own commands, or ipvsadm's command line.
//!
//! Own commands are read by clap, ipvsadm's by [`xipvs::cli`], which needs no more than a director.

mod attach;
mod drain;
mod exit;
mod follow;
mod front;
mod ipvsadm;
mod marking;
mod open;
mod own;
mod signals;
mod status;
mod sync_daemon;
mod sysctls;
mod takeover;

use std::ffi::OsString;
use std::io::{self, Write};
use std::time::Duration;

use anyhow::{Context, Result};
use clap::{CommandFactory, Parser};
use xipvs::cli::{Tool, help, manual};
use xipvs::director::xdp::lifecycle::{self, Manner};

use self::exit::FAILED;
use self::front::{DirectorName, Front};
use self::own::{CommandLine, Generated, Own};

/// Runs a command line, with the program's name as its first word, and returns the exit status.
pub fn run(arguments: &[OsString]) -> u8 {
    let tool = arguments.first().map_or(Tool::Xipvs, |program| Tool::of(program));
    match carry_out(tool, arguments) {
        Ok(status) => status,
        // Whoever reads has seen enough.
        Err(error) if is_broken_pipe(&error) => 0,
        Err(error) => {
            eprintln!("xipvs: {error:#}");
            FAILED
        }
    }
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error.downcast_ref::<io::Error>().is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe)
}

fn carry_out(tool: Tool, arguments: &[OsString]) -> Result<u8> {
    let mut director = DirectorName::by_environment()?;
    if tool != Tool::Xipvs {
        return Ok(ipvsadm::run(tool, director, arguments));
    }
    let (front, rest) = Front::split(arguments.get(1..).unwrap_or_default());
    match rest.first().and_then(|word| word.to_str()) {
        Some("-v" | "--version") => {
            help::write_version(&mut io::stdout(), true)?;
            Ok(0)
        }
        Some("-h" | "--help") => {
            let mut to = io::stdout().lock();
            write!(
                to,
                "{}\nEverything else is ipvsadm's command line.\n\n",
                // Its line about itself would be about this very text.
                CommandLine::command().disable_help_flag(true).render_help()
            )?;
            help::write(&mut to, b"xipvs", true)?;
            Ok(0)
        }
        Some(word) if !word.starts_with('-') => own(arguments),
        _ => {
            if let Some(name) = front.director {
                director = DirectorName::called(&name, "--director ")?;
            }
            if let Some(name) = front.netns {
                front::enter(&name.to_string_lossy())?;
            }
            let program = arguments.first().cloned().into_iter();
            Ok(ipvsadm::run(tool, director, &program.chain(rest.iter().cloned()).collect::<Vec<_>>()))
        }
    }
}

/// Carries out one of xipvs's own commands.
fn own(arguments: &[OsString]) -> Result<u8> {
    let typed = match CommandLine::try_parse_from(arguments) {
        Ok(typed) => typed,
        Err(error) if !error.use_stderr() => {
            error.print()?;
            return Ok(0);
        }
        Err(error) => anyhow::bail!("{}; see `xipvs --help`", own::in_one_line(&error)),
    };
    if let Some(name) = &typed.netns {
        front::enter(name)?;
    }
    let mut to = io::stdout().lock();
    let both = matches!(
        typed.command,
        Own::Mirror { .. } | Own::Diff { .. } | Own::Serve { .. } | Own::Adopt | Own::HandOver
    );
    anyhow::ensure!(!both || typed.director.is_none(), "both directors take part: leave --director out");
    anyhow::ensure!(typed.director != Some(DirectorName::Kernel), "the kernel's IPVS is attached nowhere");
    match typed.command {
        Own::Attach { interfaces, generic, whole_checksums, connections } => {
            attach::carry_out(&interfaces, Manner { generic, whole_checksums }, connections)?;
        }
        Own::Detach { interfaces } if interfaces.is_empty() => lifecycle::detach_all()?,
        Own::Detach { interfaces } => lifecycle::detach(&interfaces)?,
        Own::Generate { file: Generated::Man, ipvsadm } => manual::write_page(&mut to, !ipvsadm)?,
        Own::Generate { file: Generated::Completion, ipvsadm } => {
            manual::write_completion(&mut to, !ipvsadm)?;
        }
        Own::Status { all } => status::write(&mut to, all).context("cannot show the status")?,
        Own::Drain(which) => drain::carry_out(&which, &mut open::xdp()?, &mut to)?,
        Own::Set { settings } => sysctls::set(&settings, &mut to)?,
        Own::Mark { command } => return marking::carry_out(command, &mut open::xdp()?, &mut to),
        Own::Mirror { side } => return follow::mirror_once(side.direction(), &mut to),
        Own::Adopt => return takeover::adopt(&mut to),
        Own::HandOver => return takeover::hand_over_all(&mut to),
        Own::Diff { side } => return follow::diff(side.direction(), &mut to),
        Own::Serve { mirror, interval } => {
            return follow::serve(mirror, Duration::from_millis(interval.into()), &mut to);
        }
        Own::Sync(words) => {
            // It has a use for standard output of its own.
            drop(to);
            return sync_daemon::run(words);
        }
    }
    to.flush()?;
    Ok(0)
}
