//! What was typed: one of xipvs's own commands, or ipvsadm's command line.
//!
//! Own commands are read by clap, ipvsadm's by [`xipvs::cli`], which needs no more than a director.

use std::env;
use std::ffi::OsString;
use std::io::{self, IsTerminal, Write};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};
use clap::error::ErrorKind;
use clap::{ArgGroup, Args, CommandFactory, Parser, Subcommand, ValueEnum};
use xipvs::cli::names::SystemNames;
use xipvs::cli::{self, Streams, Tool, help, manual};
use xipvs::director::kernel::Kernel;
use xipvs::director::xdp::Xdp;
use xipvs::director::xdp::lifecycle::{self, Mode};
use xipvs::director::xdp::sizes::Sizes;
use xipvs::director::xdp::sysctl;
use xipvs::director::{self, Director};
use xipvs::netns;

use crate::drain::{self, Drain};
use crate::follow::{self, Direction};
use crate::marking::{self, MarkCommand};
use crate::status;
use crate::sync_daemon;
use crate::takeover;

/// The exit status of what went wrong, as ipvsadm's when it cannot start.
pub const FAILED: u8 = 2;

/// Puts a terminal's cursor into the corner and clears the screen (ECMA-48).
const CLEAR: &[u8] = b"\x1b[H\x1b[2J";

/// Chooses the director when the command line does not.
const DIRECTOR: &str = "XIPVS_DIRECTOR";

/// IPVS at XDP speed.
#[derive(Debug, Parser)]
#[command(name = "xipvs", disable_version_flag = true, disable_help_subcommand = true)]
struct CommandLine {
    /// Work in this network namespace (a name of `ip netns`).
    #[arg(long, value_name = "NAME", global = true)]
    netns: Option<String>,
    /// Whose table to work on.
    #[arg(long, value_enum, value_name = "DIRECTOR", global = true)]
    director: Option<DirectorName>,
    #[command(subcommand)]
    command: Own,
}

/// Whose table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum DirectorName {
    /// The XDP program's.
    Xdp,
    /// The kernel's own IPVS.
    Kernel,
}

/// What is made from the option table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Generated {
    /// The manual page, section 8.
    Man,
    /// The completion for bash.
    Completion,
}

/// The commands that ipvsadm does not have.
#[derive(Debug, Subcommand)]
enum Own {
    /// Attach the packet program to interfaces, loading it if need be, and replace an older one.
    Attach {
        /// The interfaces.
        #[arg(required = true, value_name = "IFACE")]
        interfaces: Vec<String>,
        /// Attach in the network stack instead of the driver: slower, but works with every driver.
        #[arg(long)]
        generic: bool,
        /// Make the connection table large enough for so many connections.
        #[arg(long, value_name = "N")]
        connections: Option<u32>,
    },
    /// Take the packet program off interfaces; without any, remove everything: program, table, connections.
    Detach {
        /// The interfaces.
        #[arg(value_name = "IFACE")]
        interfaces: Vec<String>,
    },
    /// Print a file that belongs to the installation: the manual page, or the completion for bash.
    Generate {
        /// Which.
        #[arg(value_enum)]
        file: Generated,
        /// The one of ipvsadm's command line alone, for where xipvs is installed under that name.
        #[arg(long)]
        ipvsadm: bool,
    },
    /// Show interfaces, how full the tables are, and why packets were not forwarded.
    Status {
        /// Show reasons that no packet had, too.
        #[arg(long)]
        all: bool,
    },
    /// Set IPVS's sysctls for the packet program, by the kernel's names; without any, list them with what they do.
    Set {
        /// The sysctls, such as `conn_reuse_mode=0`.
        #[arg(value_name = "NAME=VALUE")]
        settings: Vec<String>,
    },
    /// Rules that give packets their firewall mark, for services by mark (-f): netfilter comes after the packet program.
    ///
    /// A packet has the mark of the last rule that it matches. `-S` and `-R` have the rules too.
    Mark {
        #[command(subcommand)]
        command: MarkCommand,
    },
    /// Give a destination weight 0, and end in so many seconds what connections it has then; without any, list those in progress.
    ///
    /// No process has to run for that. Setting the weight again takes it back.
    Drain(Drain),
    /// Make kernel IPVS's table equal to the XDP director's, or the other way, once.
    ///
    /// Prints each change as ipvsadm's rule, and names on stderr what the target cannot do. Exit status: 0 when the tables
    /// are equal now, 1 when something was refused, 2 when a table cannot be reached.
    #[command(group = ArgGroup::new("direction").args(["to", "from"]).required(true))]
    Mirror {
        #[command(flatten)]
        side: Side,
    },
    /// Show what `mirror` would change (--to kernel unless told otherwise), with the live connections it touches.
    ///
    /// Exit status: 0 when the tables are equal, 1 when they differ, 2 when one cannot be reached.
    Diff {
        #[command(flatten)]
        side: Side,
    },
    /// Take over the connections of kernel IPVS into the XDP director, whose table must have their destinations.
    ///
    /// Attaching the packet program to a running director breaks no connection this way: `mirror --from kernel`, `adopt`,
    /// `attach`, and `adopt` again for those that have come meanwhile. Exit status: 0 when all are there, 1 when some were
    /// left, 2 when a table cannot be reached.
    Adopt,
    /// Hand the XDP director's connections over to kernel IPVS, whose table must have their destinations.
    ///
    /// The way back: `mirror --to kernel`, `hand-over`, `detach IFACE`. Exit status as of `adopt`.
    HandOver,
    /// Keep one table equal to the other until SIGTERM or SIGINT (exit status 0).
    ///
    /// Prints each change as ipvsadm's rule when it is made. What fails is named once and tried again; a table
    /// that cannot be reached at the start is exit status 2.
    Serve {
        /// Which table follows.
        #[arg(long, value_enum, value_name = "DIRECTION")]
        mirror: Direction,
        /// Milliseconds between two looks at the other.
        #[arg(long, value_name = "MS", default_value_t = 1000, value_parser = clap::value_parser!(u32).range(10..))]
        interval: u32,
    },
    /// Be a sync daemon until SIGTERM or SIGINT (exit status 0): what `--start-daemon` starts in the background.
    ///
    /// For a service manager. `-L --daemon` lists it and `--stop-daemon` stops it, whoever has started it.
    Sync(sync_daemon::Words),
}

/// Where a mirrored table goes to or comes from.
#[derive(Debug, Args)]
#[group(multiple = false)]
struct Side {
    /// The XDP director's table goes to kernel IPVS.
    #[arg(long, value_enum, value_name = "kernel")]
    to: Option<OtherSide>,
    /// Kernel IPVS's table comes to the XDP director.
    #[arg(long, value_enum, value_name = "kernel")]
    from: Option<OtherSide>,
}

/// The table at the other end; the near one is the XDP director's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum OtherSide {
    Kernel,
}

impl Side {
    fn direction(&self) -> Direction {
        if self.from.is_some() { Direction::FromKernel } else { Direction::ToKernel }
    }
}

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
    let mut director = director_by_environment()?;
    if tool != Tool::Xipvs {
        return Ok(as_ipvsadm(tool, director, arguments));
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
                director = DirectorName::from_str(&name.to_string_lossy(), false)
                    .map_err(|_| anyhow::anyhow!("--director {}: no such director", name.display()))?;
            }
            if let Some(name) = front.netns {
                enter(&name.to_string_lossy())?;
            }
            let program = arguments.first().cloned().into_iter();
            Ok(as_ipvsadm(tool, director, &program.chain(rest.iter().cloned()).collect::<Vec<_>>()))
        }
    }
}

/// The options that stand before all others.
#[derive(Debug, Default, PartialEq, Eq)]
struct Front {
    netns: Option<OsString>,
    director: Option<OsString>,
}

impl Front {
    /// Takes them off the front of a command line.
    fn split(mut words: &[OsString]) -> (Self, &[OsString]) {
        let mut front = Self::default();
        while let Some((word, rest)) = words.split_first() {
            let Some(word) = word.to_str() else { break };
            let (name, attached) = match word.split_once('=') {
                Some((name, value)) => (name, Some(OsString::from(value))),
                None => (word, None),
            };
            let place = match name {
                "--netns" => &mut front.netns,
                "--director" => &mut front.director,
                _ => break,
            };
            let detached = attached.is_none();
            *place = attached.or_else(|| rest.first().cloned()).or_else(|| Some(OsString::new()));
            words = rest.get(usize::from(detached)..).unwrap_or_default();
        }
        (front, words)
    }
}

fn director_by_environment() -> Result<DirectorName> {
    match env::var_os(DIRECTOR) {
        None => Ok(DirectorName::Xdp),
        Some(name) => DirectorName::from_str(&name.to_string_lossy(), false)
            .map_err(|_| anyhow::anyhow!("{DIRECTOR}={}: no such director", name.display())),
    }
}

fn enter(name: &str) -> Result<()> {
    netns::enter(name).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => anyhow::anyhow!("--netns {name}: no such network namespace"),
        io::ErrorKind::PermissionDenied => anyhow::anyhow!("{}", director::Error::PermissionDenied),
        _ => anyhow::anyhow!("--netns {name}: {error}"),
    })
}

/// Runs ipvsadm's command line on a director.
fn as_ipvsadm(tool: Tool, director: DirectorName, arguments: &[OsString]) -> u8 {
    let opened: director::Result<Box<dyn Director>> = match director {
        DirectorName::Xdp => open_xdp().map(|director| Box::new(director) as _),
        DirectorName::Kernel if tool == Tool::Xipvs => Kernel::open().map(|director| Box::new(director) as _),
        DirectorName::Kernel => Kernel::open_telling().map(|director| Box::new(director) as _),
    };
    let mut director = match opened {
        Ok(director) => director,
        Err(error) if tool == Tool::Xipvs => {
            eprintln!("xipvs: {error}");
            return FAILED;
        }
        Err(error) => {
            eprint!("{}", cli::cannot_start(&error));
            return FAILED;
        }
    };
    let names = SystemNames::default();
    let again = cli::watch_interval(arguments, &names);
    let mut stdout = io::BufWriter::new(io::stdout().lock());
    let clear = again.is_some() && io::stdout().is_terminal();
    loop {
        if clear {
            // A failure to clear the screen is a failure to list, too.
            let _ = stdout.write_all(CLEAR);
        }
        let mut streams =
            Streams { stdin: &mut io::stdin().lock(), stdout: &mut stdout, stderr: &mut io::stderr() };
        let status = cli::run(arguments, &mut streams, director.as_mut(), &names);
        match (stdout.flush(), again) {
            (Err(error), _) if error.kind() != io::ErrorKind::BrokenPipe && status == 0 => {
                eprintln!("cannot write to standard output: {error}");
                return 1;
            }
            (Ok(()), Some(interval)) if status == 0 => thread::sleep(interval),
            _ => return status,
        }
    }
}

/// Opens the XDP director, after loading it if need be, as ipvsadm loads the module.
pub fn open_xdp() -> director::Result<Xdp> {
    Xdp::open(lifecycle::load(&sizes()?)?.directory())
}

fn sizes() -> director::Result<Sizes> {
    lifecycle::possible_cpus().map(Sizes::new)
}

/// What clap says in its first paragraph, and what it supposes was meant.
fn in_one_line(error: &clap::Error) -> String {
    let text = error.render().to_string();
    // Of a command that needs another one it shows the help.
    if error.kind() == ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand {
        let usage = text.lines().find_map(|line| line.strip_prefix("Usage: ")).unwrap_or_default();
        return format!("an argument is missing: {usage}");
    }
    let mut paragraphs = text.split("\n\n");
    let first = paragraphs.next().unwrap_or_default().trim_start_matches("error: ");
    let tip = paragraphs.next().and_then(|text| text.trim_start().strip_prefix("tip: "));
    let one = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ");
    match tip {
        Some(tip) => format!("{}; {}", one(first), one(tip)),
        None => one(first),
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
        Err(error) => anyhow::bail!("{}; see `xipvs --help`", in_one_line(&error)),
    };
    if let Some(name) = &typed.netns {
        enter(name)?;
    }
    let mut to = io::stdout().lock();
    let both = matches!(
        typed.command,
        Own::Mirror { .. } | Own::Diff { .. } | Own::Serve { .. } | Own::Adopt | Own::HandOver
    );
    anyhow::ensure!(!both || typed.director.is_none(), "both directors take part: leave --director out");
    anyhow::ensure!(typed.director != Some(DirectorName::Kernel), "the kernel's IPVS is attached nowhere");
    match typed.command {
        Own::Attach { interfaces, generic, connections } => {
            let usual = sizes()?;
            let sizes = connections.map_or(usual, |connections| usual.with_connections(connections));
            attach(&interfaces, generic, &sizes, connections.is_some())?;
        }
        Own::Detach { interfaces } if interfaces.is_empty() => lifecycle::detach_all()?,
        Own::Detach { interfaces } => lifecycle::detach(&interfaces)?,
        Own::Generate { file: Generated::Man, ipvsadm } => manual::write_page(&mut to, !ipvsadm)?,
        Own::Generate { file: Generated::Completion, ipvsadm } => {
            manual::write_completion(&mut to, !ipvsadm)?;
        }
        Own::Status { all } => status::write(&mut to, all).context("cannot show the status")?,
        Own::Drain(which) => drain::carry_out(&which, &mut open_xdp()?, &mut to)?,
        Own::Set { settings } => set(&settings, &mut to)?,
        Own::Mark { command } => return marking::carry_out(command, &mut open_xdp()?, &mut to),
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

/// Sets sysctls, or lists them.
fn set(settings: &[String], to: &mut dyn Write) -> Result<()> {
    let mut director = open_xdp()?;
    let mut wanted = Vec::new();
    for setting in settings {
        let (name, value) = setting.split_once('=').with_context(|| format!("{setting}: not NAME=VALUE"))?;
        let value: u32 =
            value.trim().parse().map_err(|_| anyhow::anyhow!("{setting}: {value:?} is not a number"))?;
        sysctl::check(name.trim(), value)?;
        wanted.push((name.trim(), value));
    }
    // All of them or none.
    for (name, value) in wanted {
        director.set_sysctl(name, value)?;
    }
    if settings.is_empty() {
        for (sysctl, value) in director.sysctls()? {
            let text = format!("{} = {value}", sysctl.name());
            writeln!(to, "{text:<32} {}", sysctl.explanation())?;
        }
    }
    Ok(())
}

fn attach(interfaces: &[String], generic: bool, sizes: &Sizes, fixed: bool) -> Result<()> {
    let attachment = lifecycle::attach(interfaces, generic, sizes, fixed)?;
    for one in attachment.interfaces {
        let name = &one.interface;
        if one.already {
            eprintln!("xipvs: {name} was attached already ({})", one.mode.name());
        }
        if let Some(why) = one.fallback {
            eprintln!(
                "xipvs: warning: {name} is attached in {} mode, which is slower: {why}; what comes in elsewhere in {} \
                 mode cannot leave by it, so attach that with --generic too",
                Mode::Generic.name(),
                Mode::Native.name()
            );
        }
    }
    for unseen in attachment.unseen {
        eprintln!("xipvs: warning: {unseen}");
    }
    if attachment.replaced {
        eprintln!("xipvs: replaced an older program; connections stay");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::ffi::OsStr;

    use super::*;

    fn words(line: &str) -> Vec<OsString> {
        line.split_whitespace().map(Into::into).collect()
    }

    #[test]
    fn front_options_come_off_and_nothing_else() {
        for (line, netns, director, rest) in [
            ("--netns lb -A -t 1.2.3.4:80", Some("lb"), None, "-A -t 1.2.3.4:80"),
            ("--netns=lb --director kernel -Ln", Some("lb"), Some("kernel"), "-Ln"),
            ("--director=xdp", None, Some("xdp"), ""),
            ("-Ln --netns lb", None, None, "-Ln --netns lb"),
            ("--netns", Some(""), None, ""),
            ("", None, None, ""),
        ] {
            let typed = words(line);
            let (front, left) = Front::split(&typed);
            assert_eq!(front.netns.as_deref(), netns.map(OsStr::new), "{line}");
            assert_eq!(front.director.as_deref(), director.map(OsStr::new), "{line}");
            assert_eq!(left, words(rest), "{line}");
        }
    }

    #[test]
    fn the_manual_and_the_completion_have_every_own_command() {
        let (mut page, mut completion) = (Vec::new(), Vec::new());
        manual::write_page(&mut page, true).unwrap();
        manual::write_completion(&mut completion, true).unwrap();
        let (page, completion) = (String::from_utf8(page).unwrap(), String::from_utf8(completion).unwrap());
        for command in CommandLine::command().get_subcommands() {
            let name = command.get_name();
            let entry = format!("\\fB{}", name.replace('-', "\\-"));
            assert!([" ", "\\fR"].iter().any(|end| page.contains(&format!("{entry}{end}"))), "{name}");
            assert!(completion.contains(&format!(" {name} ")), "{name}");
        }
    }

    #[test]
    fn what_is_wrong_is_one_line_and_names_what_was_meant() {
        for (line, said) in [
            ("xipvs statsu", "unrecognized subcommand 'statsu'; a similar subcommand exists: 'status'"),
            ("xipvs status --al", "unexpected argument '--al' found; a similar argument exists: '--all'"),
            ("xipvs attach", "the following required arguments were not provided: <IFACE>..."),
            ("xipvs mark", "an argument is missing: xipvs mark [OPTIONS] <COMMAND>"),
        ] {
            let error = CommandLine::try_parse_from(words(line)).unwrap_err();
            assert_eq!(in_one_line(&error), said, "{line}");
        }
    }

    #[test]
    fn own_commands_are_consistent() {
        CommandLine::command().debug_assert();
        let typed = CommandLine::try_parse_from(words("xipvs attach eth0 eth1 --netns lb")).unwrap();
        assert_eq!(typed.netns.as_deref(), Some("lb"));
        assert!(CommandLine::try_parse_from(words("xipvs attach")).is_err());
        let help = CommandLine::try_parse_from(words("xipvs attach --help")).unwrap_err();
        assert_eq!(help.kind(), ErrorKind::DisplayHelp);
    }

    #[test]
    fn the_direction_is_chosen_where_a_table_changes() {
        for (line, direction) in [
            ("xipvs mirror --to kernel", Some(Direction::ToKernel)),
            ("xipvs mirror --from kernel", Some(Direction::FromKernel)),
            ("xipvs mirror", None),
            ("xipvs mirror --to kernel --from kernel", None),
            ("xipvs mirror --to xdp", None),
            ("xipvs diff", Some(Direction::ToKernel)),
            ("xipvs diff --from kernel", Some(Direction::FromKernel)),
            ("xipvs serve --mirror from-kernel --interval 200", Some(Direction::FromKernel)),
            ("xipvs serve", None),
            ("xipvs serve --mirror to-kernel --interval 0", None),
        ] {
            let typed = CommandLine::try_parse_from(words(line)).ok().map(|typed| match typed.command {
                Own::Mirror { side } | Own::Diff { side } => side.direction(),
                Own::Serve { mirror, .. } => mirror,
                other => panic!("{other:?}"),
            });
            assert_eq!(typed, direction, "{line}");
        }
    }
}
