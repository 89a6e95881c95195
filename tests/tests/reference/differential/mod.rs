//! One scenario on kernel IPVS and on xipvs, side by side: every packet must come to the same end, and every listing must
//! say the same.
//!
//! Scenarios are files (`tests/scenarios`, whose README has the format); a new one needs nothing here.

mod frame;
mod host;
mod own;
mod packet;
mod pieces;
mod random;
mod scenario;
mod side;

use std::collections::HashSet;
use std::env;
use std::fs::{self, File};
use std::path::Path;
use std::thread::sleep;
use std::time::{Duration, Instant};

use lb_common::destination::Counters;
use nix::sched::{CloneFlags, setns};

use self::scenario::{Action, Event, Flow, Scenario, Step, Whose};
use self::side::{Outcome, Side};

/// How long two listings may take to become the same. The kernel brings its counters up to date every two seconds; half-open
/// connections live for a minute.
const PATIENCE: Duration = Duration::from_secs(30);

/// Differences of one scenario that are told.
const FEW: usize = 10;

/// How long the kernel's timers may take to be run. A connection that gives way to a SYN ends by its timer, a tick later:
/// until then it is counted, and a packet that comes sooner than any client could send it would bring it back to life.
const TIMER: Duration = Duration::from_millis(20);

/// How long what the stack sends may take to come out, where another part of it was at work: once in some thousand packets.
const LATE: Duration = Duration::from_millis(50);

/// Plays every scenario, or those whose names are in `XIPVS_SCENARIOS` with blanks between; what differs is told of all.
#[test]
fn scenarios_end_the_same_on_both() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("scenarios");
    let mut files: Vec<_> = fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.retain(|path| path.extension().is_some_and(|extension| extension == "txt"));
    files.sort();
    if let Ok(names) = env::var("XIPVS_SCENARIOS") {
        files.retain(|path| names.split_whitespace().any(|name| path.file_stem() == Some(name.as_ref())));
    }
    assert!(!files.is_empty());
    lift_limits();
    let mut stage = Stage::new();
    let mut failures = Vec::new();
    for path in files {
        let name = path.file_stem().unwrap().to_str().unwrap();
        let start = Instant::now();
        let scenario = Scenario::parse(name, &fs::read_to_string(&path).unwrap());
        match scenario.and_then(|scenario| stage.play(&scenario)) {
            Ok(packets) => println!("{name}: {packets} packets, {:?}", start.elapsed()),
            Err(why) => failures.push(format!("{name}: {why}")),
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n\n"));
}

/// Steps that are drawn at random, in all (`XIPVS_STEPS` has another number) and in one scenario at most.
const DRAWN: usize = 2000;
const DRAWN_AT_ONCE: usize = 400;

/// Seeds that may fail before the rest is left out.
const SEEDS: usize = 4;

/// How long one of those may be played with what lives for ten seconds (connections that were reset), and without (a minute).
/// Nothing ends by itself in that time, and so the two need not agree on the moment at which it does.
const QUICK: Duration = Duration::from_secs(6);
const SLOW: Duration = Duration::from_secs(30);

/// Plays scenarios drawn at random, from the seed in `XIPVS_SEED` on if there is one.
#[test]
fn what_is_drawn_at_random_ends_the_same_on_both() {
    let number = |name, usual| env::var(name).map_or(usual, |text| text.parse().expect("a number"));
    let (seed, steps) = (number("XIPVS_SEED", 1), number("XIPVS_STEPS", DRAWN as u64) as usize);
    lift_limits();
    let mut stage = Stage::new();
    let (mut drawn, mut sent) = (0, 0);
    let mut failures = Vec::new();
    for seed in seed.. {
        if drawn >= steps || failures.len() > SEEDS {
            break;
        }
        let text = random::scenario(seed, DRAWN_AT_ONCE);
        let scenario = Scenario::parse("random", &text).unwrap();
        // Whether something is ignored is left to chance.
        stage.begin_anew(scenario.ignores_icmp);
        let start = Instant::now();
        let limit = if random::is_hasty(seed) { QUICK } else { SLOW };
        for step in scenario.steps.iter().take_while(|_| start.elapsed() < limit) {
            drawn += 1;
            if stage.step(step).is_err() || !stage.differences.is_empty() {
                break;
            }
        }
        if stage.differences.is_empty() {
            let different = stage.check().err();
            stage.differences.extend(different);
        }
        if !stage.differences.is_empty() {
            // As far as it was played, ready to be kept as a file.
            let played: Vec<&str> = text.lines().take(stage.line).collect();
            let why = stage.differences.join("\n\n");
            failures.push(format!("seed {seed}: {why}\n\nof the scenario\n{}", played.join("\n")));
        }
        println!("seed {seed}: {} packets, {:?}", stage.sent, start.elapsed());
        sent += stage.sent;
    }
    println!("{drawn} steps, {sent} packets");
    assert!(failures.is_empty(), "{}", failures.join("\n\n"));
}

/// Takes away what the whole machine has as a limit of ICMP messages; the other limits are each namespace's own.
fn lift_limits() {
    let first = File::open("/proc/1/ns/net").unwrap();
    setns(&first, CloneFlags::CLONE_NEWNET).expect("root");
    for name in ["icmp_msgs_per_sec", "icmp_msgs_burst"] {
        fs::write(format!("/proc/sys/net/ipv4/{name}"), "100000").expect(name);
    }
}

/// Both directors, and what has come of a scenario on them so far.
struct Stage {
    kernel: Side,
    xdp: Side,
    ignores_icmp: bool,
    /// Whether what the scenario ignores was different.
    ignored: bool,
    sent: usize,
    forwarded: usize,
    /// The line that is played, or was last.
    line: usize,
    /// What was different so far.
    differences: Vec<String>,
}

impl Stage {
    fn new() -> Self {
        let [kernel, xdp] = [Whose::Kernel, Whose::Xdp].map(Side::new);
        Self {
            kernel,
            xdp,
            ignores_icmp: false,
            ignored: false,
            sent: 0,
            forwarded: 0,
            line: 0,
            differences: Vec::new(),
        }
    }

    /// Plays a scenario from its beginning and returns how many packets were sent, or what was different.
    fn play(&mut self, scenario: &Scenario) -> Result<usize, String> {
        self.begin_anew(scenario.ignores_icmp);
        for step in &scenario.steps {
            self.step(step)?;
        }
        if let Err(why) = self.check() {
            self.differences.push(format!("at the end\n{why}"));
        }
        if !self.differences.is_empty() {
            return Err(self.differences.join("\n\n"));
        }
        if self.forwarded == 0 {
            return Err("nothing was forwarded, so nothing was compared".into());
        }
        if self.ignores_icmp && !self.ignored {
            return Err("`ignore icmp` ignores nothing any more: leave it out".into());
        }
        Ok(self.sent)
    }

    fn begin_anew(&mut self, ignores_icmp: bool) {
        self.kernel = Side::new(Whose::Kernel);
        self.xdp.begin_anew();
        (self.ignores_icmp, self.ignored, self.sent, self.forwarded) = (ignores_icmp, false, 0, 0);
        self.differences.clear();
    }

    /// Carries out a step. Differences are noted, for as long as there are few: the next may be of another kind.
    fn step(&mut self, step: &Step) -> Result<(), String> {
        self.line = step.line;
        let told = |why: &String| format!("line {}: {}\n{why}", step.line, step.text);
        if let Action::Packets { flows, events } = &step.action {
            for flow in flows {
                let different = events.iter().find_map(|event| self.packet(flow, event).err());
                self.differences.extend(different.iter().map(told));
            }
        } else {
            let different = self.carry_out(&step.action).err();
            self.differences.extend(different.iter().map(told));
        }
        if self.differences.len() > FEW { Err(self.differences.join("\n\n")) } else { Ok(()) }
    }

    fn carry_out(&mut self, action: &Action) -> Result<(), String> {
        match action {
            Action::Ipvsadm { words, refused } => self.ipvsadm(words, *refused),
            Action::Shell(whose, line) => {
                for side in [&mut self.kernel, &mut self.xdp] {
                    if [side.whose, Whose::Both].contains(whose) {
                        side.shell(line)?;
                    }
                }
                Ok(())
            }
            Action::Set(name, value) => {
                self.kernel.set(name, *value)?;
                self.xdp.set(name, *value)
            }
            Action::Mark(words) => {
                let words: Vec<&str> = words.iter().map(String::as_str).collect();
                self.kernel.mark(&words)?;
                self.xdp.mark(&words)
            }
            Action::Listen(all) => {
                for at in all {
                    self.kernel.listen(*at);
                    self.xdp.listen(*at);
                }
                Ok(())
            }
            Action::Packets { .. } => Ok(()),
            Action::Check => self.check(),
            Action::Await(count) => self.until_connections(|listed| listed == *count),
            Action::AwaitBelow(count) => self.until_connections(|listed| listed < *count),
        }
    }

    fn ipvsadm(&mut self, words: &[String], refused: bool) -> Result<(), String> {
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        let (kernel, xdp) = (self.kernel.ipvsadm(&words), self.xdp.ipvsadm(&words));
        if kernel != xdp {
            return Err(format!("kernel: {kernel:?}\nxdp:    {xdp:?}"));
        }
        if (kernel.status != 0) != refused { Err(format!("{kernel:?}")) } else { Ok(()) }
    }

    fn packet(&mut self, flow: &Flow, event: &Event) -> Result<(), String> {
        let again = event.opens() && self.kernel.has_served(flow);
        let before = (self.kernel.counted(), self.xdp.counted());
        let (mut kernel, mut xdp) = (self.kernel.play(flow, event), self.xdp.play(flow, event));
        if kernel != xdp {
            sleep(LATE);
            for (side, outcome) in [(&mut self.kernel, &mut kernel), (&mut self.xdp, &mut xdp)] {
                if let Some(outcome) = outcome {
                    side.hear(flow, event, outcome);
                }
            }
        }
        let counted = (less(self.kernel.counted(), before.0), less(self.xdp.counted(), before.1));
        if again {
            sleep(TIMER);
        }
        self.sent += 1;
        let forwarded =
            |outcome: &Outcome| outcome.servers.len() + outcome.clients.len() + outcome.director.len();
        self.forwarded += kernel.as_ref().map_or(0, forwarded);
        if counted.0 != counted.1 {
            let on = |whose, outcome, counted: &Counters| format!("{whose} {}, {counted:?}", told(outcome));
            let (kernel, xdp) = (on("kernel:", &kernel, &counted.0), on("xdp:   ", &xdp, &counted.1));
            return Err(format!("{flow:?} {event:?}\n{kernel}\n{xdp}"));
        }
        let sent = |outcome: &Option<Outcome>| outcome.as_ref().map_or(0, forwarded);
        if if event.lost { sent(&kernel) > 0 && sent(&xdp) == 0 } else { kernel == xdp } {
            return Ok(());
        }
        let without_icmp = |outcome: &Option<Outcome>| {
            let keep = |frames: &[frame::Frame]| frames.iter().filter(|frame| !frame.icmp).cloned().collect();
            outcome.as_ref().map(|it| Outcome {
                clients: keep(&it.clients),
                servers: keep(&it.servers),
                director: keep(&it.director),
            })
        };
        if self.ignores_icmp && without_icmp(&kernel) == without_icmp(&xdp) {
            self.ignored = true;
            return Ok(());
        }
        Err(format!("{flow:?} {event:?}\nkernel: {}\nxdp:    {}", told(&kernel), told(&xdp)))
    }

    fn check(&mut self) -> Result<(), String> {
        self.until(|kernel, xdp| {
            let (kernel, xdp) = (kernel.listings(), xdp.listings());
            if kernel == xdp { Ok(()) } else { Err(difference(&kernel, &xdp)) }
        })
    }

    /// Waits until both list as many connections as are wanted.
    fn until_connections(&mut self, is_wanted: impl Fn(usize) -> bool) -> Result<(), String> {
        self.until(|kernel, xdp| {
            let counts = [kernel.connections().len(), xdp.connections().len()];
            if counts.into_iter().all(&is_wanted) { Ok(()) } else { Err(format!("{counts:?} connections")) }
        })
    }

    /// Looks again and again until all is well.
    fn until(
        &mut self,
        mut look: impl FnMut(&mut Side, &mut Side) -> Result<(), String>,
    ) -> Result<(), String> {
        let start = Instant::now();
        // What has become different once stays so.
        let patience = if self.differences.is_empty() { PATIENCE } else { PATIENCE / 8 };
        loop {
            match look(&mut self.kernel, &mut self.xdp) {
                Err(why) if start.elapsed() > patience => return Err(why),
                Err(_) => sleep(Duration::from_millis(100)),
                Ok(()) => return Ok(()),
            }
        }
    }
}

/// What has been counted since.
fn less(now: Counters, before: Counters) -> Counters {
    Counters {
        connections: now.connections - before.connections,
        in_packets: now.in_packets - before.in_packets,
        out_packets: now.out_packets - before.out_packets,
        in_bytes: now.in_bytes - before.in_bytes,
        out_bytes: now.out_bytes - before.out_bytes,
    }
}

/// The lines that only one of two listings has, under their titles.
fn difference(kernel: &str, xdp: &str) -> String {
    let only = |one: &str, other: &str| -> Vec<String> {
        let other: HashSet<&str> = other.lines().collect();
        one.lines().filter(|line| !other.contains(line)).map(str::to_owned).collect()
    };
    format!("kernel: {:#?}\nxdp: {:#?}", only(kernel, xdp), only(xdp, kernel))
}

/// What came of a packet, in words.
fn told(outcome: &Option<Outcome>) -> String {
    let Some(outcome) = outcome else { return "no server to answer".into() };
    let on = |name: &'static str, frames: &[frame::Frame]| {
        frames.iter().map(move |frame| format!("{name} {}", frame.words)).collect::<Vec<_>>()
    };
    let to_director = on("director", &outcome.director);
    let all = [on("servers", &outcome.servers), on("clients", &outcome.clients), to_director].concat();
    if all.is_empty() { "nothing".into() } else { all.join("; ") }
}
