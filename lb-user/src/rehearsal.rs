//! Changing commands carried out on a copy, so that their effect can be shown or made in one go.
//!
//! `--dry-run` describes the plan from the table to its changed copy; a restore carries that plan out. Only the
//! table and the timeouts are rehearsed: counters to be zeroed and sync daemons are not part of a plan.

use std::io::{self, Write};

use crate::director::memory::Memory;
use crate::director::{Director, Result};
use crate::plan::{Applied, Change, describe, plan, reach_by_service};
use crate::table::{Table, TableReport};

/// A director's table and a copy of it on which commands are tried.
#[derive(Debug, Clone)]
pub struct Rehearsal {
    before: TableReport,
    stage: Memory,
}

impl Rehearsal {
    /// Copies what is configured now.
    pub fn of(director: &mut dyn Director) -> Result<Self> {
        let before = director.table()?;
        let mut stage = Memory::holding(&before);
        stage.info = director.info()?;
        Ok(Self { before, stage })
    }

    /// The copy, on which any command runs as on the director itself. It refuses what kernel IPVS refuses, but
    /// knows nothing of the host's addresses and interfaces.
    pub fn stage(&mut self) -> &mut Memory {
        &mut self.stage
    }

    /// What would have to change.
    pub fn plan(&mut self) -> Result<Vec<Change>> {
        Ok(plan(&self.before.configured(), &self.wanted()?))
    }

    /// Prints what would change, with the live connections that each change touches.
    pub fn describe(&mut self, out: &mut dyn Write) -> Result<io::Result<()>> {
        let changes = self.plan()?;
        Ok(describe(&changes, &self.before, out))
    }

    /// Makes the director's table equal to the copy, each service wholly or not at all.
    pub fn perform(&mut self, director: &mut dyn Director) -> Result<Applied> {
        reach_by_service(&self.wanted()?, director)
    }

    fn wanted(&mut self) -> Result<Table> {
        Ok(self.stage.table()?.configured())
    }
}

#[cfg(test)]
mod tests {
    use std::ffi::OsString;

    use super::*;
    use crate::cli::names::FileNames;
    use crate::cli::{Streams, run};

    fn ipvsadm(words: &str, stdin: &str, director: &mut dyn Director) {
        let words: Vec<OsString> = format!("ipvsadm {words}").split(' ').map(OsString::from).collect();
        let (mut stdin, mut stdout, mut stderr) = (stdin.as_bytes(), Vec::new(), Vec::new());
        let mut streams = Streams { stdin: &mut stdin, stdout: &mut stdout, stderr: &mut stderr };
        let status = run(&words, &mut streams, director, &FileNames::parse("", ""));
        assert_eq!((status, String::from_utf8(stderr).unwrap().as_str()), (0, ""), "{words:?}");
    }

    /// A director with a scheduler that the kernel need not have, and connections on one server.
    fn director() -> Memory {
        let mut director = Memory::default();
        director.host.schedulers.insert("twos".into());
        ipvsadm("-A -t 192.0.2.1:80 -s twos", "", &mut director);
        ipvsadm("-a -t 192.0.2.1:80 -r 198.51.100.1", "", &mut director);
        ipvsadm("-a -t 192.0.2.1:80 -r 198.51.100.2", "", &mut director);
        let mut table = director.table().unwrap();
        table.entries[0].destinations[1].active = 3;
        Memory::holding(&table)
    }

    fn described(rehearsal: &mut Rehearsal) -> String {
        let mut out = Vec::new();
        rehearsal.describe(&mut out).unwrap().unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn a_rehearsed_command_shows_what_it_touches_and_changes_nothing() {
        let mut director = director();
        let before = director.table().unwrap().entries;
        for (words, expected) in [
            ("-d -t 192.0.2.1:80 -r 198.51.100.1", "-d -t 192.0.2.1:80 -r 198.51.100.1:80 # 3 connections\n"),
            ("-E -t 192.0.2.1:80 -s rr", "-E -t 192.0.2.1:80 -s rr # 3 connections\n"),
            ("-C", "-D -t 192.0.2.1:80 # 3 connections\n"),
            ("--set 1 0 0", "--set 1 120 300 # 3 connections\n"),
            ("-Z", ""),
        ] {
            let mut rehearsal = Rehearsal::of(&mut director).unwrap();
            ipvsadm(words, "", rehearsal.stage());
            assert_eq!(described(&mut rehearsal), expected, "{words}");
        }
        assert_eq!(director.table().unwrap().entries, before);
    }

    #[test]
    fn a_restore_changes_what_differs_and_nothing_else() {
        let mut director = director();
        let rules = "-C\n-A -t 192.0.2.1:80 -s twos\n-a -t 192.0.2.1:80 -r 198.51.100.1\n\
                     -a -t 192.0.2.1:80 -r 198.51.100.2 -w 9\n-A -f 7 -s rr\n";
        let mut rehearsal = Rehearsal::of(&mut director).unwrap();
        ipvsadm("-R", rules, rehearsal.stage());
        let applied = rehearsal.perform(&mut director).unwrap();
        let made: Vec<String> = applied.made.iter().map(ToString::to_string).collect();
        assert_eq!(made, ["-e -t 192.0.2.1:80 -r 198.51.100.2:80 -g -w 9", "-A -f 7 -s rr"]);
        assert!(applied.refused.is_empty());
        // The server that stayed as it was has kept its connections.
        let key = director.services().unwrap()[0].service.key;
        assert_eq!(director.destinations(&key).unwrap()[1].active, 3);
    }
}
