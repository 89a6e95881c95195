//! The commands that ipvsadm does not have, as clap reads them.

use clap::error::ErrorKind;
use clap::{ArgGroup, Args, Parser, Subcommand, ValueEnum};

use super::drain::Drain;
use super::follow::Direction;
use super::front::DirectorName;
use super::marking::MarkCommand;
use super::sync_daemon;

/// IPVS at XDP speed.
#[derive(Debug, Parser)]
#[command(name = "xipvs", disable_version_flag = true, disable_help_subcommand = true)]
pub struct CommandLine {
    /// Work in this network namespace (a name of `ip netns`).
    #[arg(long, value_name = "NAME", global = true)]
    pub netns: Option<String>,
    /// Whose table to work on.
    #[arg(long, value_enum, value_name = "DIRECTOR", global = true)]
    pub director: Option<DirectorName>,
    #[command(subcommand)]
    pub command: Own,
}

/// What is made from the option table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Generated {
    /// The manual page, section 8.
    Man,
    /// The completion for bash.
    Completion,
}

/// The commands that ipvsadm does not have.
#[derive(Debug, Subcommand)]
pub enum Own {
    /// Attach the packet program to interfaces, loading it if need be, and replace an older one.
    Attach {
        /// The interfaces.
        #[arg(required = true, value_name = "IFACE")]
        interfaces: Vec<String>,
        /// Attach in the network stack instead of the driver: slower, but works with every driver.
        #[arg(long)]
        generic: bool,
        /// Do not look for checksums that senders have left to a veth: theirs are whole (`ethtool -K ... tx off`).
        #[arg(long)]
        whole_checksums: bool,
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
pub struct Side {
    /// The XDP director's table goes to kernel IPVS.
    #[arg(long, value_enum, value_name = "kernel")]
    to: Option<OtherSide>,
    /// Kernel IPVS's table comes to the XDP director.
    #[arg(long, value_enum, value_name = "kernel")]
    from: Option<OtherSide>,
}

/// The table at the other end; the near one is the XDP director's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum OtherSide {
    Kernel,
}

impl Side {
    pub fn direction(&self) -> Direction {
        if self.from.is_some() { Direction::FromKernel } else { Direction::ToKernel }
    }
}

/// What clap says in its first paragraph, and what it supposes was meant.
pub fn in_one_line(error: &clap::Error) -> String {
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

#[cfg(test)]
mod tests {
    use std::ffi::OsString;

    use clap::CommandFactory;
    use xipvs::cli::manual;

    use super::*;

    fn words(line: &str) -> Vec<OsString> {
        line.split_whitespace().map(Into::into).collect()
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
