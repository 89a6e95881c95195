//! `xipvs mark`: the rules that give packets their firewall mark, worked on one at a time, listed, imported.

use std::io::{self, Write};

use anyhow::{Context, Result, anyhow};
use clap::Subcommand;
use xipvs::director::Director;
use xipvs::mark::import::{Imported, import};
use xipvs::mark::{self, Words};

use super::exit::DIFFERENT;

/// What is done with the rules.
#[derive(Debug, Subcommand)]
pub enum MarkCommand {
    /// Add a rule behind the others: a mark, and what a packet must have to get it.
    #[command(
        after_help = "Options: --family ipv4|ipv6, --protocol tcp|udp|sctp, --source PREFIX, --destination \
                            PREFIX, --source-ports LOW[-HIGH], --destination-ports LOW[-HIGH], --interface IFACE"
    )]
    Add {
        /// The mark, then options.
        #[arg(
            required = true,
            allow_hyphen_values = true,
            trailing_var_arg = true,
            value_name = "MARK OPTION ..."
        )]
        words: Vec<String>,
    },
    /// Delete the rule of this number, from 1 on, or `all`.
    Delete {
        /// Its place in the list.
        #[arg(value_name = "NUMBER")]
        which: String,
    },
    /// Print the rules, as lines that `-R` and `import` read.
    List,
    /// Add the rules that stdin has: from iptables-save, ip6tables-save, `nft -j list ruleset`, or `list`.
    ///
    /// Names on stderr what cannot be said (exit status 1).
    Import,
}

/// Carries out such a command and returns the exit status.
pub fn carry_out(command: MarkCommand, director: &mut dyn Director, to: &mut dyn Write) -> Result<u8> {
    let wrong = |text: String| anyhow!("{text}");
    match command {
        MarkCommand::Add { words } => {
            let words: Vec<&str> = words.iter().map(String::as_str).collect();
            let rule = mark::rule(&words).map_err(wrong)?;
            director.change_mark_rules(&mut |rules| mark::add(rules, rule))?;
        }
        MarkCommand::Delete { which } => {
            let number = mark::selection(&which).map_err(wrong)?;
            director.change_mark_rules(&mut |rules| mark::delete(rules, number))?;
        }
        MarkCommand::List => {
            for rule in director.mark_rules()?.iter().flatten() {
                writeln!(to, "mark add {}", Words(rule))?;
            }
        }
        MarkCommand::Import => {
            let text = io::read_to_string(io::stdin()).context("cannot read the rules")?;
            let Imported { rules: read, left_out } = import(&text).map_err(wrong)?;
            director.change_mark_rules(&mut |rules| {
                rules.extend(&read);
                Ok(())
            })?;
            for text in &left_out {
                writeln!(io::stderr(), "xipvs: left out: {text}")?;
            }
            return Ok(if left_out.is_empty() { 0 } else { DIFFERENT });
        }
    }
    to.flush()?;
    Ok(0)
}
