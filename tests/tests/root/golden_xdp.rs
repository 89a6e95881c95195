//! The recorded commands of `tests/golden` on the XDP director: the recorded output, or a refusal by name.
//!
//! Each verb is carried out on the memory director as well, but for those that the XDP director refuses, and
//! has to come to the same. So what follows a refusal in a case is compared too: with the memory director, which
//! `lb-user/tests/golden.rs` holds to the recordings. What may be refused is in [`REFUSALS`], and is refused always.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt::Debug;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;

use lb_common::protocol::Protocol;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use serde::Deserialize;
use xipvs::cli::names::FileNames;
use xipvs::cli::{self, Streams};
use xipvs::director::memory::{Host, Interface, Memory};
use xipvs::director::xdp::sizes::Sizes;
use xipvs::director::xdp::{Xdp, lifecycle};
use xipvs::director::{Director, Error, Result};
use xipvs::table::{
    ConnectionReport, Destination, DestinationKey, DestinationReport, Family, Info, Service, ServiceKey,
    ServiceReport, SyncDaemon, SyncRole, Timeouts,
};

/// The refusals that `COMPATIBILITY.md` lists for services: the words, and which services they are for. The first that
/// fits counts.
const REFUSALS: &[(&str, Fits)] = &[
    ("firewall mark services (-f)", |service| matches!(service.key, ServiceKey::Mark { .. })),
    ("SCTP (--sctp-service)", |service| {
        matches!(service.key, ServiceKey::Address { protocol: Protocol::Sctp, .. })
    }),
    ("IPv6", |service| service.key.family() == Family::V6),
    ("the scheduler", |service| ["lblc", "lblcr"].contains(&service.scheduler.as_str())),
    ("persistence engines (--pe)", |service| service.engine.is_some()),
];
/// Whether a refusal is for the service.
type Fits = fn(&Service) -> bool;
/// The refusal of a destination.
const FAMILIES: &str = "IPv6";
/// The refusal of a daemon.
const DAEMONS: &str = "sync daemons (--start-daemon)";

/// The scheduler that the XDP director has and Debian's kernel, and so the memory director, has not.
const MORE_THAN_THE_KERNEL: &str = "add-service/sched-bad-twos";

/// Known bugs that are not copied, of the command line and not of a director; `lb-user/tests/golden.rs` has the reasons.
const LEFT_OUT: &[(&str, &[u32])] = &[
    ("add-service/b-comma", &[0, 1, 2]),
    ("save-restore/sh-flag3-round-trip", &[1]),
    ("save-restore/restore-final-space-no-newline", &[3]),
];

/// The namespace, as the cases with interfaces expect it.
const INTERFACES: &[u8] = b"link set lo up
link add dum0 type veth peer name dum1
addr add 192.0.2.1/24 dev dum0
link set dum0 up
";

/// Two directors that have to agree.
struct Both<'a> {
    xdp: &'a mut Xdp,
    memory: Memory,
    /// How often what was refused.
    refused: BTreeMap<String, u32>,
    /// Where they did not agree.
    different: Vec<String>,
    /// Whether anything was refused since the case began.
    diverged: bool,
}

impl Both<'_> {
    /// Carries out a change; `listed` is the refusal that it has to meet, if nothing else is wrong with it.
    fn change(
        &mut self,
        what: impl Debug,
        listed: Option<&str>,
        verb: impl Fn(&mut dyn Director) -> Result<()>,
    ) -> Result<()> {
        let here = verb(self.xdp);
        if let Err(Error::Unsupported(said)) = &here {
            self.diverged = true;
            let words = said.strip_prefix("The XDP director does not have ").unwrap_or(said);
            match listed {
                Some(listed) if words.starts_with(listed) => {
                    *self.refused.entry(listed.into()).or_default() += 1;
                }
                _ => self.different.push(format!("{what:?} is refused: {said}")),
            }
            return here;
        }
        let there = verb(&mut self.memory);
        if said(&here) != said(&there) {
            self.different.push(format!("{what:?} here: {}, in memory: {}", said(&here), said(&there)));
        } else if let (Some(listed), Ok(())) = (listed, &here) {
            self.different.push(format!("{what:?} is accepted in spite of {listed}"));
        }
        here
    }

    /// Looks at something that has to be the same.
    fn look<T: PartialEq + Debug>(
        &mut self,
        mut verb: impl FnMut(&mut dyn Director) -> Result<T>,
    ) -> Result<T> {
        let here = verb(self.xdp);
        let there = verb(&mut self.memory);
        let same = match (&here, &there) {
            (Ok(here), Ok(there)) => here == there,
            (Err(here), Err(there)) => here.to_string() == there.to_string(),
            _ => false,
        };
        if !same {
            self.different.push(format!("here: {here:?}, in memory: {there:?}"));
        }
        here
    }
}

fn said(result: &Result<()>) -> String {
    result.as_ref().map_or_else(ToString::to_string, |()| "done".into())
}

fn listed_service(service: &Service) -> Option<&'static str> {
    REFUSALS.iter().find(|(_, fits)| fits(service)).map(|(words, _)| *words)
}

fn listed_destination(destination: &Destination) -> Option<&'static str> {
    destination.key.address.is_ipv6().then_some(FAMILIES)
}

impl Director for Both<'_> {
    fn info(&mut self) -> Result<Info> {
        self.look(|director| director.info())
    }

    fn services(&mut self) -> Result<Vec<ServiceReport>> {
        // The order is each director's own.
        self.look(|director| {
            let mut all = director.services()?;
            all.sort_by_key(|report| format!("{:?}", report.service.key));
            Ok(all)
        })
    }

    fn service(&mut self, key: &ServiceKey) -> Result<ServiceReport> {
        self.look(|director| director.service(key))
    }

    fn destinations(&mut self, service: &ServiceKey) -> Result<Vec<DestinationReport>> {
        self.look(|director| director.destinations(service))
    }

    fn add_service(&mut self, service: &Service) -> Result<()> {
        self.change(service, listed_service(service), |director| director.add_service(service))
    }

    fn edit_service(&mut self, service: &Service) -> Result<()> {
        self.change(service, listed_service(service), |director| director.edit_service(service))
    }

    fn delete_service(&mut self, key: &ServiceKey) -> Result<()> {
        self.change(key, None, |director| director.delete_service(key))
    }

    fn flush(&mut self) -> Result<()> {
        self.change("flush", None, |director| director.flush())
    }

    fn add_destination(&mut self, service: &ServiceKey, destination: &Destination) -> Result<()> {
        self.change((service, destination), listed_destination(destination), |director| {
            director.add_destination(service, destination)
        })
    }

    fn edit_destination(&mut self, service: &ServiceKey, destination: &Destination) -> Result<()> {
        self.change((service, destination), listed_destination(destination), |director| {
            director.edit_destination(service, destination)
        })
    }

    fn delete_destination(&mut self, service: &ServiceKey, key: &DestinationKey) -> Result<()> {
        self.change((service, key), None, |director| director.delete_destination(service, key))
    }

    fn zero(&mut self, service: Option<&ServiceKey>) -> Result<()> {
        self.change(("zero", service), None, |director| director.zero(service))
    }

    fn timeouts(&mut self) -> Result<Timeouts> {
        self.look(|director| director.timeouts())
    }

    fn set_timeouts(&mut self, timeouts: &Timeouts) -> Result<()> {
        self.change(timeouts, None, |director| director.set_timeouts(timeouts))
    }

    fn daemons(&mut self) -> Result<Vec<SyncDaemon>> {
        self.look(|director| director.daemons())
    }

    fn start_daemon(&mut self, daemon: &SyncDaemon) -> Result<()> {
        self.change(daemon, Some(DAEMONS), |director| director.start_daemon(daemon))
    }

    fn stop_daemon(&mut self, role: SyncRole) -> Result<()> {
        self.change(role, None, |director| director.stop_daemon(role))
    }

    fn connections(&mut self) -> Result<Vec<ConnectionReport>> {
        self.look(|director| director.connections())
    }
}

#[derive(Debug, Deserialize)]
struct Record {
    case: String,
    step: u32,
    argv: Option<Vec<String>>,
    stdin: Option<String>,
    #[serde(default)]
    stdout: String,
    #[serde(default)]
    stderr: String,
    #[serde(default)]
    status: u8,
    user: Option<String>,
    unstable: Option<String>,
    note: Option<String>,
    #[serde(default)]
    env: BTreeMap<String, String>,
}

/// What became of all commands.
#[derive(Debug, Default)]
struct Tally {
    /// Commands whose output is the recorded one.
    same: u32,
    /// Commands after a refusal, compared with the memory director's verbs.
    after: u32,
    /// How often what was refused.
    refused: BTreeMap<String, u32>,
    different: Vec<String>,
}

#[test]
fn the_recorded_commands_do_the_same_or_are_refused_by_name() {
    // On a thread of its own, because a thread that has left its namespaces cannot come back.
    let tally = thread::spawn(run_all).join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
    println!("{} the same, {} after a refusal, refused: {:?}", tally.same, tally.after, tally.refused);
    for text in tally.different.iter().take(30) {
        println!("{text}");
    }
    assert!(tally.different.is_empty(), "{} differ", tally.different.len());
    assert!(tally.same > 900 && tally.after > 2300, "only {} and {} ran", tally.same, tally.after);
    for words in REFUSALS.iter().map(|(words, _)| *words).chain([DAEMONS]) {
        assert!(tally.refused.contains_key(words), "{words} was never refused");
    }
}

fn run_all() -> Tally {
    let pins = {
        alone();
        let cpus = lifecycle::possible_cpus().unwrap();
        let sizes =
            Sizes { sets: 1024, destinations: 1024, services: 1024, arena_lines: 8192, ..Sizes::new(cpus) };
        lifecycle::load(&sizes).unwrap()
    };
    let mut xdp = Xdp::open(pins.directory()).unwrap();
    let names = names();
    let mut tally = Tally::default();
    let mut files: Vec<_> = fs::read_dir(folder()).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.retain(|file| file.extension().is_some_and(|extension| extension == "jsonl"));
    files.sort();
    for file in files {
        let text = fs::read_to_string(&file).unwrap();
        let records: Vec<Record> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        for case in records.chunk_by(|a, b| a.case == b.case) {
            if case[0].case != MORE_THAN_THE_KERNEL {
                run_case(case, &mut xdp, &names, &mut tally);
            }
        }
    }
    tally
}

fn run_case(case: &[Record], xdp: &mut Xdp, names: &FileNames, tally: &mut Tally) {
    xdp.flush().unwrap();
    xdp.set_timeouts(&Timeouts::default()).unwrap();
    let mut both = Both {
        xdp,
        memory: Memory::new(host()),
        refused: BTreeMap::new(),
        different: Vec::new(),
        diverged: false,
    };
    for record in case {
        // What needs packets, doctored counters, /proc, or another user.
        let elsewhere = record.case.starts_with("traffic/")
            || !record.env.is_empty()
            || record.user.is_some()
            || record.argv.as_ref().is_none_or(|argv| argv[0] == "cat");
        if elsewhere {
            continue;
        }
        let argv: Vec<OsString> = record.argv.iter().flatten().map(OsString::from).collect();
        let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
        let mut stdin = record.stdin.as_deref().unwrap_or_default().as_bytes();
        let mut streams = Streams { stdin: &mut stdin, stdout: &mut stdout, stderr: &mut stderr };
        let status = cli::run(&argv, &mut streams, &mut both, names);
        for text in both.different.drain(..) {
            tally.different.push(format!("{} {} {argv:?}: {text}", record.case, record.step));
        }
        if both.diverged {
            tally.after += 1;
            continue;
        }
        let mut stdout = String::from_utf8(stdout).unwrap();
        let stderr = String::from_utf8(stderr).unwrap();
        if record.note.as_deref().is_some_and(|note| note.starts_with("the version line only")) {
            stdout.truncate(record.stdout.len());
        }
        let same = stdout == record.stdout && stderr == record.stderr && status == record.status;
        let left_out =
            LEFT_OUT.iter().any(|(case, steps)| *case == record.case && steps.contains(&record.step));
        if same {
            tally.same += 1;
        } else if record.unstable.is_none() && !left_out {
            tally.different.push(format!(
                "{} {}: {argv:?}\n--- recorded, status {}\n{}{}--- here, status {status}\n{stdout}{stderr}",
                record.case, record.step, record.status, record.stdout, record.stderr
            ));
        }
    }
    for (words, count) in both.refused {
        *tally.refused.entry(words).or_default() += count;
    }
}

/// Puts this thread into a network and a mount namespace of its own, gone when it ends.
fn alone() {
    let apart = CloneFlags::CLONE_FS | CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWNET;
    unshare(apart).expect("namespaces of our own need root");
    let none = None::<&str>;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).unwrap();
    mount(Some("bpf"), "/sys/fs/bpf", Some("bpf"), MsFlags::empty(), none).unwrap();
    mount(Some("tmpfs"), "/run", Some("tmpfs"), MsFlags::empty(), none).unwrap();
    let mut child = Command::new("ip").args(["-batch", "-"]).stdin(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(INTERFACES).unwrap();
    assert!(child.wait().unwrap().success(), "ip failed");
}

/// The same namespace for the memory director.
fn host() -> Host {
    let mut host = Host::default();
    host.interfaces.insert("dum0".into(), Interface { mtu: 1500, up: true });
    host.local.insert([192, 0, 2, 1].into());
    host.broadcast.insert([192, 0, 2, 255].into());
    host
}

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("golden")
}

fn names() -> FileNames {
    let read = |name: &str| fs::read_to_string(folder().join(name)).unwrap();
    FileNames::parse(&read("hosts"), &read("services"))
}
