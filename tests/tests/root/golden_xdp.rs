//! The recorded commands of `tests/golden` on the XDP director: the recorded output.
//!
//! Each verb is carried out on the memory director as well, which `tests/golden.rs` holds to the recordings, and has to come to
//! the same.

use std::fmt::Debug;
use std::io::Write;
use std::process::{Command, Stdio};
use std::thread;

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use tests::golden::{Record, cases, host, names};
use tests::lab::binary;
use xipvs::cli::names::FileNames;
use xipvs::director::memory::Memory;
use xipvs::director::xdp::sizes::Sizes;
use xipvs::director::xdp::{Xdp, lifecycle};
use xipvs::director::{Director, Result};
use xipvs::table::{
    ConnectionReport, Destination, DestinationKey, DestinationReport, Info, Service, ServiceKey,
    ServiceReport, SyncDaemon, SyncRole, Timeouts,
};

/// The scheduler that the XDP director has and Debian's kernel, and so the memory director, has not.
const MORE_THAN_THE_KERNEL: &str = "twos";

/// The namespace, where a case does not say how it was made.
const INTERFACES: [&str; 3] =
    ["ip link add dum0 type dummy", "ip addr add 192.0.2.1/24 dev dum0", "ip link set dum0 up"];

/// Two directors that have to agree.
struct Both<'a> {
    xdp: &'a mut Xdp,
    memory: Memory,
    /// Where they did not agree.
    different: Vec<String>,
}

impl Both<'_> {
    /// Carries out a change, which has to come to the same.
    fn change(&mut self, what: impl Debug, verb: impl Fn(&mut dyn Director) -> Result<()>) -> Result<()> {
        let (here, there) = (verb(self.xdp), verb(&mut self.memory));
        if said(&here) != said(&there) {
            self.different.push(format!("{what:?} here: {}, in memory: {}", said(&here), said(&there)));
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

impl Director for Both<'_> {
    fn info(&mut self) -> Result<Info> {
        self.look(|director| director.info())
    }

    fn services(&mut self) -> Result<Vec<ServiceReport>> {
        self.look(|director| director.services())
    }

    fn service(&mut self, key: &ServiceKey) -> Result<ServiceReport> {
        self.look(|director| director.service(key))
    }

    fn destinations(&mut self, service: &ServiceKey) -> Result<Vec<DestinationReport>> {
        self.look(|director| director.destinations(service))
    }

    fn add_service(&mut self, service: &Service) -> Result<()> {
        self.change(service, |director| director.add_service(service))
    }

    fn edit_service(&mut self, service: &Service) -> Result<()> {
        self.change(service, |director| director.edit_service(service))
    }

    fn delete_service(&mut self, key: &ServiceKey) -> Result<()> {
        self.change(key, |director| director.delete_service(key))
    }

    fn flush(&mut self) -> Result<()> {
        self.change("flush", |director| director.flush())
    }

    fn add_destination(&mut self, service: &ServiceKey, destination: &Destination) -> Result<()> {
        self.change((service, destination), |director| director.add_destination(service, destination))
    }

    fn edit_destination(&mut self, service: &ServiceKey, destination: &Destination) -> Result<()> {
        self.change((service, destination), |director| director.edit_destination(service, destination))
    }

    fn delete_destination(&mut self, service: &ServiceKey, key: &DestinationKey) -> Result<()> {
        self.change((service, key), |director| director.delete_destination(service, key))
    }

    fn zero(&mut self, service: Option<&ServiceKey>) -> Result<()> {
        self.change(("zero", service), |director| director.zero(service))
    }

    fn timeouts(&mut self) -> Result<Timeouts> {
        self.look(|director| director.timeouts())
    }

    fn set_timeouts(&mut self, timeouts: &Timeouts) -> Result<()> {
        self.change(timeouts, |director| director.set_timeouts(timeouts))
    }

    fn daemons(&mut self) -> Result<Vec<SyncDaemon>> {
        self.look(|director| director.daemons())
    }

    fn start_daemon(&mut self, daemon: &SyncDaemon) -> Result<()> {
        self.change(daemon, |director| director.start_daemon(daemon))
    }

    fn stop_daemon(&mut self, role: SyncRole) -> Result<()> {
        self.change(role, |director| director.stop_daemon(role))
    }

    fn connections(&mut self) -> Result<Vec<ConnectionReport>> {
        self.look(|director| director.connections())
    }
}

/// What became of all commands.
#[derive(Debug, Default)]
struct Tally {
    /// Commands whose output is the recorded one.
    same: u32,
    different: Vec<String>,
}

#[test]
fn the_recorded_commands_do_the_same() {
    // On a thread of its own, because a thread that has left its namespaces cannot come back.
    let tally = thread::spawn(run_all).join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
    println!("{} the same", tally.same);
    for text in tally.different.iter().take(30) {
        println!("{text}");
    }
    assert!(tally.different.is_empty(), "{} differ", tally.different.len());
    assert!(tally.same > 8500, "only {} ran", tally.same);
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
    xdp.start_daemons_by(binary());
    let mut interfaces = Interfaces::default();
    let names = names().unwrap();
    let mut tally = Tally::default();
    for case in cases().unwrap() {
        let made = case.iter().find(|record| !record.pre.is_empty()).map(|record| record.pre.clone());
        let made = made.unwrap_or_else(|| INTERFACES.map(str::to_owned).into());
        interfaces.make(&made);
        run_case(&case, &made, &mut xdp, &names, &mut tally);
    }
    xdp.sync_daemons().stop_all().unwrap();
    tally
}

fn run_case(case: &[Record], made: &[String], xdp: &mut Xdp, names: &FileNames, tally: &mut Tally) {
    xdp.sync_daemons().stop_all().unwrap();
    xdp.flush().unwrap();
    xdp.set_timeouts(&Timeouts::default()).unwrap();
    let mut both = Both { xdp, memory: Memory::new(host(made).unwrap()), different: Vec::new() };
    for record in case {
        // What needs packets, doctored counters, /proc, or another user; and what adds nothing to a table but here.
        if !record.is_command_line()
            || !record.env.is_empty()
            || record.user.is_some()
            || record.argv.iter().flatten().any(|word| word == MORE_THAN_THE_KERNEL)
        {
            continue;
        }
        let printed = record.run(&mut both, names);
        let (case, step) = (&record.case, record.step);
        for text in both.different.drain(..) {
            tally.different.push(format!("{case} {step} {:?}: {text}", record.argv));
        }
        match record.difference(&printed) {
            None => tally.same += 1,
            Some(_) if record.unstable.is_some() || record.is_left_out() => {}
            Some(difference) => tally.different.push(difference),
        }
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
    ip(&["link set lo up".into()]);
}

/// The interfaces that are there, by the commands that made them.
#[derive(Default)]
struct Interfaces {
    made: Vec<String>,
}

impl Interfaces {
    /// Makes those of a case in place of those that are there; with veths, as not every kernel has dummies.
    fn make(&mut self, wanted: &[String]) {
        if self.made == wanted {
            return;
        }
        let mut lines = Vec::new();
        for name in self.made.iter().filter_map(|command| added(command)) {
            lines.push(format!("link delete {name}"));
        }
        for command in wanted {
            if let Some(name) = added(command) {
                lines.push(format!("link add {name} type veth peer name {name}-peer"));
                continue;
            }
            let words: Vec<&str> = command.split_whitespace().skip(1).filter(|word| *word != "-6").collect();
            lines.push(words.join(" "));
            if let ["link", "set", name, "up"] = words[..] {
                lines.push(format!("link set {name}-peer up"));
            }
        }
        ip(&lines);
        self.made = wanted.to_vec();
    }
}

/// The name of the interface that a command adds.
fn added(command: &str) -> Option<&str> {
    command.strip_prefix("ip link add ")?.split(' ').next()
}

/// Runs commands of `ip`.
fn ip(lines: &[String]) {
    let mut child = Command::new("ip").args(["-batch", "-"]).stdin(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(lines.join("\n").as_bytes()).unwrap();
    assert!(child.wait().unwrap().success(), "ip failed: {lines:?}");
}
