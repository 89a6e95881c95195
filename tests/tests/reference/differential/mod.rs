//! One scenario on kernel IPVS and on xipvs, side by side: every packet must come to the same end, and every listing must
//! say the same.
//!
//! Scenarios are files (`tests/scenarios`, whose README has the format); a new one needs nothing here.

mod frame;
mod random;
mod scenario;
mod side;

use std::collections::HashSet;
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

/// How long the kernel's timers may take to be run. A connection that gives way to a SYN ends by its timer, a tick later:
/// until then it is counted, and a packet that comes sooner than any client could send it would bring it back to life.
const TIMER: Duration = Duration::from_millis(20);

/// Plays every scenario; what differs is told of all of them.
#[test]
fn scenarios_end_the_same_on_both() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("scenarios");
    let mut files: Vec<_> = fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.retain(|path| path.extension().is_some_and(|extension| extension == "txt"));
    files.sort();
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

/// Steps that are drawn at random, in all and in one scenario at most.
const DRAWN: usize = 4000;
const DRAWN_AT_ONCE: usize = 400;

/// How long one of those may be played. Nothing ends by itself in that time (what was reset lives for ten seconds), and
/// so the two need not agree on the moment at which it does.
const QUICK: Duration = Duration::from_secs(6);

/// Plays scenarios drawn at random, from the seed in `XIPVS_SEED` on if there is one.
#[test]
fn what_is_drawn_at_random_ends_the_same_on_both() {
    let seed = std::env::var("XIPVS_SEED").map_or(1, |seed| seed.parse().expect("a number"));
    lift_limits();
    let mut stage = Stage::new();
    let (mut drawn, mut sent) = (0, 0);
    for seed in seed.. {
        if drawn >= DRAWN {
            break;
        }
        let text = random::scenario(seed, DRAWN_AT_ONCE);
        let scenario = Scenario::parse("random", &text).unwrap();
        // Whether something is ignored is left to chance.
        stage.begin_anew(scenario.ignores_icmp);
        let start = Instant::now();
        let mut played = scenario.steps.iter().take_while(|_| start.elapsed() < QUICK);
        let outcome = played.try_fold(0, |played, step| stage.step(step).map(|()| played + 1));
        match outcome.and_then(|played| stage.check().map(|()| played)) {
            Ok(played) => drawn += played,
            // As far as it was played, ready to be kept as a file.
            Err(why) => {
                let played: Vec<&str> = text.lines().take(stage.line).collect();
                panic!("seed {seed}: {why}\n\nof the scenario\n{}", played.join("\n"))
            }
        }
        sent += stage.sent;
    }
    println!("{drawn} steps, {sent} packets");
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
}

impl Stage {
    fn new() -> Self {
        let [kernel, xdp] = [Whose::Kernel, Whose::Xdp].map(Side::new);
        Self { kernel, xdp, ignores_icmp: false, ignored: false, sent: 0, forwarded: 0, line: 0 }
    }

    /// Plays a scenario from its beginning and returns how many packets were sent.
    fn play(&mut self, scenario: &Scenario) -> Result<usize, String> {
        self.begin_anew(scenario.ignores_icmp);
        for step in &scenario.steps {
            self.carry_out(&step.action)
                .map_err(|why| format!("line {}: {}\n{why}", step.line, step.text))?;
        }
        self.check().map_err(|why| format!("at the end\n{why}"))?;
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
    }

    fn step(&mut self, step: &Step) -> Result<(), String> {
        self.line = step.line;
        self.carry_out(&step.action).map_err(|why| format!("line {}: {}\n{why}", step.line, step.text))
    }

    fn carry_out(&mut self, action: &Action) -> Result<(), String> {
        match action {
            Action::Ipvsadm { words, refused } => self.ipvsadm(words, *refused),
            Action::Shell(whose, line) => {
                let side = if *whose == Whose::Kernel { &self.kernel } else { &self.xdp };
                side.shell(line);
                Ok(())
            }
            Action::Set(name, value) => {
                self.kernel.set(name, *value);
                self.xdp.set(name, *value);
                Ok(())
            }
            Action::Packets { flows, events } => flows
                .iter()
                .flat_map(|flow| events.iter().map(move |event| (flow, event)))
                .try_for_each(|(flow, event)| self.packet(flow, event)),
            Action::Check => self.check(),
            Action::Await(count) => self.until(|kernel, xdp| {
                let counts = (kernel.connections().len(), xdp.connections().len());
                if counts == (*count, *count) { Ok(()) } else { Err(format!("{counts:?} connections")) }
            }),
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
        let again = event.flags & frame::SYN != 0 && !event.answer && self.kernel.has_served(flow);
        let before = (self.kernel.counted(), self.xdp.counted());
        let (kernel, xdp) = (self.kernel.play(flow, event), self.xdp.play(flow, event));
        let counted = (less(self.kernel.counted(), before.0), less(self.xdp.counted(), before.1));
        if again {
            sleep(TIMER);
        }
        self.sent += 1;
        let forwarded = |outcome: &Outcome| outcome.servers.len() + outcome.clients.len();
        self.forwarded += kernel.as_ref().map_or(0, forwarded);
        if counted.0 != counted.1 {
            let on = |whose, outcome, counted: &Counters| format!("{whose} {}, {counted:?}", told(outcome));
            let (kernel, xdp) = (on("kernel:", &kernel, &counted.0), on("xdp:   ", &xdp, &counted.1));
            return Err(format!("{flow:?} {event:?}\n{kernel}\n{xdp}"));
        }
        if kernel == xdp {
            return Ok(());
        }
        let without_icmp = |outcome: &Option<Outcome>| {
            let keep = |frames: &[frame::Frame]| frames.iter().filter(|frame| !frame.icmp).cloned().collect();
            outcome.as_ref().map(|it| Outcome { clients: keep(&it.clients), servers: keep(&it.servers) })
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

    /// Looks again and again until all is well.
    fn until(
        &mut self,
        mut look: impl FnMut(&mut Side, &mut Side) -> Result<(), String>,
    ) -> Result<(), String> {
        let start = Instant::now();
        loop {
            match look(&mut self.kernel, &mut self.xdp) {
                Err(why) if start.elapsed() > PATIENCE => return Err(why),
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
    let all = [on("servers", &outcome.servers), on("clients", &outcome.clients)].concat();
    if all.is_empty() { "nothing".into() } else { all.join("; ") }
}
