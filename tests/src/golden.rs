//! The corpus of recorded commands, `tests/golden`: read, run on a director, compared.
//!
//! Which records a director runs and what it may do otherwise is each test's to say; what our command line does otherwise on
//! purpose is [`LEFT_OUT`]. `tests/golden/README.md` has the meaning of the fields.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs;
use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde::Deserialize;
use xipvs::cli::names::FileNames;
use xipvs::cli::{self, Streams};
use xipvs::director::Director;
use xipvs::director::memory::{Host, Interface};

/// Records whose output differs on any director: the case, its steps, and why.
pub const LEFT_OUT: &[(&str, &[u32], &str)] = &[
    ("add-service/fwmark-max32", &[1, 2], MARKS),
    ("listing/sort-wraps-fwmark", &[1], MARKS),
    ("save-restore/high-fwmark-round-trip", &[1], MARKS),
    ("add-service/b-comma", &[0, 1, 2], "a list of no flags is no flags, not a crash"),
    ("numbers/m-boundary", &[4, 5], COUNTERS),
    ("numbers/g-boundary", &[2, 3, 4, 5, 6, 7, 8, 9], COUNTERS),
    ("save-restore/sh-flag3-round-trip", &[1], "no -b without flags to name, which could not be restored"),
    ("save-restore/restore-final-space-no-newline", &[3], LAST_LINE),
    ("generated/2-43", &[2], LAST_LINE),
    ("generated/2-74", &[5, 6], MARKS),
    ("generated/2-84", &[7, 8], MARKS),
];

/// A reason in [`LEFT_OUT`].
const MARKS: &str = "marks above 2147483647 are not negative";
/// A reason in [`LEFT_OUT`].
const LAST_LINE: &str = "a last line that ends in blanks is not lost";
/// A reason in [`LEFT_OUT`].
const COUNTERS: &str = "servers' counters are not cut to 32 bits";

/// A recorded command.
#[derive(Debug, Clone, Deserialize)]
#[allow(missing_docs, reason = "tests/golden/README.md describes the fields")]
pub struct Record {
    pub case: String,
    pub step: u32,
    pub argv: Option<Vec<String>>,
    pub stdin: Option<String>,
    #[serde(default)]
    pub stdout: String,
    #[serde(default)]
    pub stderr: String,
    #[serde(default)]
    pub status: u8,
    #[serde(default)]
    pub pre: Vec<String>,
    pub user: Option<String>,
    pub unstable: Option<String>,
    pub unordered: Option<serde_json::Value>,
    pub stdout_raw: Option<String>,
    pub note: Option<String>,
    #[serde(default)]
    pub env: BTreeMap<String, String>,
}

/// What a command printed, and its exit status.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Printed {
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
    /// The exit status.
    pub status: u8,
}

impl Record {
    /// Whether it is a command of ipvsadm that needs no packets: not what a client did, nor a file of /proc.
    pub fn is_command_line(&self) -> bool {
        !self.case.starts_with("traffic/") && self.argv.as_ref().is_some_and(|argv| argv[0] != "cat")
    }

    /// Whether it stands in [`LEFT_OUT`].
    pub fn is_left_out(&self) -> bool {
        LEFT_OUT.iter().any(|(case, steps, _)| *case == self.case && steps.contains(&self.step))
    }

    /// Runs it on a director.
    pub fn run(&self, director: &mut dyn Director, names: &FileNames) -> Printed {
        let argv: Vec<&str> = self.argv.iter().flatten().map(String::as_str).collect();
        run(&argv, self.stdin.as_deref().unwrap_or_default(), director, names)
    }

    /// Says how what was printed differs from what was recorded, if it does.
    ///
    /// Of help only the version line was kept; ours must go on after it.
    pub fn difference(&self, printed: &Printed) -> Option<String> {
        let is_help = self.note.as_deref().is_some_and(|note| note.starts_with("the version line only"));
        let same_stdout = if is_help {
            printed.stdout.starts_with(&self.stdout) && printed.stdout.len() > self.stdout.len() + 1000
        } else {
            printed.stdout == self.stdout
        };
        if same_stdout && (&printed.stderr, printed.status) == (&self.stderr, self.status) {
            return None;
        }
        let Printed { stdout, stderr, status } = printed;
        Some(format!(
            "{} {}: {:?}\n--- recorded, status {}\n{}{}--- here, status {status}\n{stdout}{stderr}",
            self.case, self.step, self.argv, self.status, self.stdout, self.stderr
        ))
    }
}

/// Runs our command line on a director.
pub fn run(argv: &[&str], stdin: &str, director: &mut dyn Director, names: &FileNames) -> Printed {
    let argv: Vec<OsString> = argv.iter().map(OsString::from).collect();
    let (mut stdin, mut stdout, mut stderr) = (stdin.as_bytes(), Vec::new(), Vec::new());
    let mut streams = Streams { stdin: &mut stdin, stdout: &mut stdout, stderr: &mut stderr };
    let status = cli::run(&argv, &mut streams, director, names);
    let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
    Printed { stdout: text(stdout), stderr: text(stderr), status }
}

/// The cases of all files, in order: the records of each, one after the other.
pub fn cases() -> Result<Vec<Vec<Record>>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder())? {
        let file = entry?.path();
        if file.extension().is_some_and(|extension| extension == "jsonl") {
            files.push(file);
        }
    }
    files.sort();
    let mut cases = Vec::new();
    for file in files {
        let text = fs::read_to_string(&file)?;
        let read = |line| serde_json::from_str(line).with_context(|| format!("{}: {line}", file.display()));
        let records: Vec<Record> = text.lines().map(read).collect::<Result<_>>()?;
        cases.extend(records.chunk_by(|a, b| a.case == b.case).map(<[Record]>::to_vec));
    }
    Ok(cases)
}

/// The names that the commands resolve.
pub fn names() -> Result<FileNames> {
    let read = |name: &str| fs::read_to_string(folder().join(name));
    Ok(FileNames::parse(&read("hosts")?, &read("services")?))
}

/// The host that the commands before a case make, for the memory director.
pub fn host(commands: &[String]) -> Result<Host> {
    let mut host = Host::default();
    for command in commands {
        let unknown = || format!("cannot pretend `{command}`");
        match command.split_whitespace().collect::<Vec<_>>()[..] {
            ["ip", "link", "add", name, ..] => {
                host.interfaces.insert(name.into(), Interface { mtu: 1500, up: false });
            }
            ["ip", "link", "set", name, "up"] => {
                host.interfaces.get_mut(name).with_context(unknown)?.up = true;
            }
            ["ip", "link", "set", name, "mtu", mtu] | ["ip", "link", "set", "dev", name, "mtu", mtu] => {
                host.interfaces.get_mut(name).with_context(unknown)?.mtu = mtu.parse()?;
            }
            ["ip", "addr", "add", network, ..] | ["ip", "-6", "addr", "add", network, ..] => {
                let (address, length) = network.split_once('/').with_context(unknown)?;
                let address: IpAddr = address.parse()?;
                host.local.insert(address);
                if let IpAddr::V4(address) = address {
                    let hosts = u32::MAX >> length.parse::<u32>()?;
                    host.broadcast.insert(Ipv4Addr::from(u32::from(address) | hosts));
                }
            }
            _ => anyhow::bail!(unknown()),
        }
    }
    Ok(host)
}

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("golden")
}
