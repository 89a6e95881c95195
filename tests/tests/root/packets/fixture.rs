//! The loaded program in a namespace of its own, and what every packet test does with it.
//!
//! One load serves all tests of the process, one test at a time, each from an empty table. Namespace and bpffs
//! belong to nobody but this process's threads, so that they are gone with it however it ends.
//!
//! ```text
//!  client 192.168.1.10 ... gateway 192.168.1.254 | clients 192.168.1.1   servers 10.0.0.1     | 10.0.0.11 ...
//!                                                |             vlan 10.7.0.1 (7, servers) | 10.7.0.11
//!                                                | closed (does not forward)              |
//! ```

use std::cell::Cell;
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs::File;
use std::io::Write;
use std::mem::offset_of;
use std::net::{IpAddr, Ipv4Addr, SocketAddrV4};
use std::ops::{Add, Sub};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{LazyLock, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use aya::maps::{Array, HashMap, Map, MapData};
use aya::programs::{ProgramInfo, TestRun, TestRunOptions, Xdp as Program};
use aya_obj::programs::XdpAttachType;
use lb_common::connection::{AddressSet, Addresses, Set};
use lb_common::destination::Destination;
use lb_common::fragment::{Datagram, Ports};
use lb_common::protocol::state;
use lb_common::reason::{Fate, Reason};
use lb_common::scheduler::cache::{CacheKey, Cached};
use lb_common::settings::{Settings, WayOut};
use lb_common::tunnel;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, CpuSet, sched_getaffinity, sched_getcpu, sched_setaffinity, setns, unshare};
use nix::unistd::Pid;
use xipvs::cli::names::SystemNames;
use xipvs::cli::{self, Streams};
use xipvs::director::Director;
use xipvs::director::xdp::lifecycle::{self, Manner, Pins};
use xipvs::director::xdp::maps::TableEntry;
use xipvs::director::xdp::sizes::Sizes;
use xipvs::director::xdp::{Xdp, maps};
use zerocopy::{FromBytes, FromZeros, IntoBytes};

use super::frame::{Frame, Mac};

/// The virtual address and port of most tests.
pub const VIP: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(192, 168, 1, 100), 80);

/// Where a frame comes in: interface numbers.
pub const CLIENTS: u32 = 11;
pub const SERVERS: u32 = 12;
/// Does not forward.
pub const CLOSED: u32 = 13;
/// The one that XDP cannot send out of.
pub const NESTED: u32 = 15;

const CLIENTS_MAC: Mac = [2, 0, 0, 0, 0, 11];
const SERVERS_MAC: Mac = [2, 0, 0, 0, 0, 12];
const CLIENT_MAC: Mac = [2, 1, 0, 0, 0, 10];
const GATEWAY_MAC: Mac = [2, 1, 0, 0, 0, 254];

/// Link headers by next hop.
pub const TO_CLIENT: [Mac; 2] = [CLIENT_MAC, CLIENTS_MAC];
pub const TO_GATEWAY: [Mac; 2] = [GATEWAY_MAC, CLIENTS_MAC];
pub const TO_NESTED: [Mac; 2] = [[2, 9, 0, 0, 0, 11], [2, 0, 0, 0, 0, 15]];
pub const TO_VLAN: [Mac; 2] = [[2, 7, 0, 0, 0, 11], [2, 0, 0, 0, 0, 14]];

/// The link header towards server 1, 2 ...
pub fn to_server(number: u8) -> [Mac; 2] {
    [[2, 2, 0, 0, 0, number], SERVERS_MAC]
}

/// Server 1, 2 ... with a port.
pub fn server(number: u8, port: u16) -> SocketAddrV4 {
    SocketAddrV4::new(Ipv4Addr::new(10, 0, 0, 10 + number), port)
}

/// The client, with a port.
pub fn client(port: u16) -> SocketAddrV4 {
    SocketAddrV4::new(Ipv4Addr::new(192, 168, 1, 10), port)
}

/// Servers that have a neighbour entry.
const NEIGHBOURS: u8 = 8;
/// Sets that the connection table has at most; a test may use fewer.
const SETS: u32 = 1024;
const DESTINATIONS: u32 = 8192;

/// Where a thread was before its test, and is after it: it may have other tests to run.
struct Home {
    network: File,
    mounts: File,
    directory: PathBuf,
    cpus: CpuSet,
}

impl Home {
    fn of_this_thread() -> Self {
        let directory = std::env::current_dir().unwrap();
        let (network, mounts) = namespaces();
        Self { network, mounts, directory, cpus: sched_getaffinity(Pid::from_raw(0)).unwrap() }
    }

    /// Keeps the thread on the CPU that it is on: each CPU has its own limit of ICMP errors and its own ways to destinations.
    fn leave_for_one_cpu() {
        let mut cpus = CpuSet::new();
        cpus.set(sched_getcpu().unwrap()).unwrap();
        sched_setaffinity(Pid::from_raw(0), &cpus).unwrap();
    }
}

impl Drop for Home {
    fn drop(&mut self) {
        sched_setaffinity(Pid::from_raw(0), &self.cpus).unwrap();
        enter(&self.network, &self.mounts);
        std::env::set_current_dir(&self.directory).unwrap();
    }
}

/// The calling thread's namespaces.
fn namespaces() -> (File, File) {
    let open = |kind: &str| File::open(format!("/proc/thread-self/ns/{kind}")).unwrap();
    (open("net"), open("mnt"))
}

fn enter(network: &File, mounts: &File) {
    // The root and working directory that go with a mount namespace must be this thread's alone.
    unshare(CloneFlags::CLONE_FS).unwrap();
    setns(mounts, CloneFlags::CLONE_NEWNS).unwrap();
    setns(network, CloneFlags::CLONE_NEWNET).unwrap();
}

/// What is made once: the namespaces, in which the program is loaded.
struct World {
    network: File,
    mounts: File,
    directory: PathBuf,
}

static WORLD: LazyLock<World> = LazyLock::new(|| {
    // On a thread of its own, because this one has its namespaces to come back to.
    let made = thread::spawn(World::make).join();
    made.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
});
static TURN: Mutex<()> = Mutex::new(());

fn sizes() -> Sizes {
    Sizes {
        sets: SETS,
        destinations: DESTINATIONS,
        services: 64,
        arena_lines: 8192,
        ..Sizes::new(lifecycle::possible_cpus().unwrap())
    }
}

fn ip(lines: &str) {
    let mut child = Command::new("ip").args(["-batch", "-"]).stdin(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(lines.as_bytes()).unwrap();
    assert!(child.wait().unwrap().success(), "ip failed");
}

/// The same for IPv6.
const IPV6: &str = "addr add fd00:1::1/64 dev clients nodad
    addr add fd00:1::100/128 dev clients nodad
    addr add fd00:2::1/64 dev servers nodad
    route add default via fd00:1::fe
    route add unreachable fd00:66::/32
    neigh add fd00:1::10 lladdr 02:01:00:00:00:0a dev clients nud permanent
    neigh add fd00:1::fe lladdr 02:01:00:00:00:fe dev clients nud permanent
    neigh add fd00:2::11 lladdr 02:02:00:00:00:01 dev servers nud permanent
    neigh add fd00:2::12 lladdr 02:02:00:00:00:02 dev servers nud permanent
    neigh add fd00:2::13 lladdr 02:02:00:00:00:03 dev servers nud permanent\n";

impl World {
    fn make() -> Self {
        let apart = CloneFlags::CLONE_FS | CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWNET;
        unshare(apart).expect("namespaces of our own need root");
        let none = None::<&str>;
        mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).unwrap();
        mount(Some("bpf"), "/sys/fs/bpf", Some("bpf"), MsFlags::empty(), none).unwrap();
        mount(Some("tmpfs"), "/run", Some("tmpfs"), MsFlags::empty(), none).unwrap();
        // Nothing is ever sent or received here but by a test.
        let ipv6 = |interface: &str, setting: &str, value: &str| {
            std::fs::write(format!("/proc/sys/net/ipv6/conf/{interface}/{setting}"), value).unwrap();
        };
        ipv6("default", "disable_ipv6", "1");
        ipv6("default", "router_solicitations", "0");
        let mut lines = String::from(
            "link add clients index 11 address 02:00:00:00:00:0b type veth peer name clients-peer index 21
             link add servers index 12 address 02:00:00:00:00:0c type veth peer name servers-peer index 22
             link add closed index 13 address 02:00:00:00:00:0d type veth peer name closed-peer index 23
             link add vlan index 14 address 02:00:00:00:00:0e type veth peer name vlan-peer index 24
             link add nested index 15 address 02:00:00:00:00:0f type veth peer name nested-peer index 25
             link set lo up
             ",
        );
        for name in ["clients", "servers", "closed", "vlan", "nested"] {
            lines += &format!("link set {name}-peer up\nlink set {name} up\n");
        }
        lines += "addr add 192.168.1.1/24 dev clients
             addr add 192.168.1.100/32 dev clients
             addr add 10.0.0.1/24 dev servers
             addr add 10.7.0.1/24 dev vlan
             addr add 10.9.0.1/24 dev nested
             addr add 10.13.0.1/24 dev closed
             route add default via 192.168.1.254
             route add unreachable 10.66.0.0/16
             route add 10.0.0.18 dev servers mtu lock 600
             neigh add 192.168.1.10 lladdr 02:01:00:00:00:0a dev clients nud permanent
             neigh add 192.168.1.254 lladdr 02:01:00:00:00:fe dev clients nud permanent
             neigh add 10.7.0.11 lladdr 02:07:00:00:00:0b dev vlan nud permanent
             neigh add 10.9.0.11 lladdr 02:09:00:00:00:0b dev nested nud permanent\n";
        for number in 1..=NEIGHBOURS {
            let address = server(number, 0).ip().to_string();
            lines += &format!(
                "neigh add {address} lladdr 02:02:00:00:00:{number:02x} dev servers nud permanent\n"
            );
        }
        ip(&lines);
        for interface in ["clients", "servers"] {
            ipv6(interface, "disable_ipv6", "0");
        }
        ip(IPV6);
        let interfaces = ["clients".to_owned(), "servers".to_owned()];
        lifecycle::attach(&interfaces, Manner::default(), &sizes(), false)
            .expect("the program loads and attaches");
        std::fs::write("/proc/sys/net/ipv4/conf/closed/forwarding", "0").unwrap();
        let directory = Pins::find().unwrap().directory().to_owned();
        // Not every kernel has VLAN interfaces. To the program they are numbers that this map knows, as all that it can send
        // out of; of the last one it knows nothing.
        let map = MapData::from_pin(directory.join("WAYS_OUT")).unwrap();
        let mut ways: HashMap<_, u32, [u8; size_of::<WayOut>()]> = Map::HashMap(map).try_into().unwrap();
        // Of which older kernels cannot tell that its other end takes nothing.
        let _ = ways.remove(&NESTED);
        for (index, interface, identifier) in
            [(CLIENTS, CLIENTS, 0u16), (SERVERS, SERVERS, 0), (CLOSED, CLOSED, 0), (14, SERVERS, 7)]
        {
            let way = WayOut { interface, tag: identifier.to_be(), reserved: 0 };
            let bytes: [u8; size_of::<WayOut>()] = way.as_bytes().try_into().unwrap();
            ways.insert(index, bytes, 0).unwrap();
        }
        let (network, mounts) = namespaces();
        Self { network, mounts, directory }
    }
}

/// What becomes of a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    Drop,
    Pass,
    /// Out of the interface that it came in on.
    Transmit,
    /// Out of another.
    Redirect,
}

/// What the program did with a frame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outcome {
    pub action: Action,
    /// Why it was not forwarded.
    pub reason: Option<Reason>,
    /// The frame as the program left it.
    pub bytes: Vec<u8>,
}

/// What a destination has counted, or what that changed by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counted {
    pub connections: i64,
    pub in_packets: i64,
    pub out_packets: i64,
    pub in_bytes: i64,
    pub out_bytes: i64,
    pub active: i64,
    pub inactive: i64,
}

macro_rules! by_field {
    ($name:ident, $trait:ident, $operator:tt) => {
        impl $trait for Counted {
            type Output = Self;
            fn $name(self, other: Self) -> Self {
                Self {
                    connections: self.connections $operator other.connections,
                    in_packets: self.in_packets $operator other.in_packets,
                    out_packets: self.out_packets $operator other.out_packets,
                    in_bytes: self.in_bytes $operator other.in_bytes,
                    out_bytes: self.out_bytes $operator other.out_bytes,
                    active: self.active $operator other.active,
                    inactive: self.inactive $operator other.inactive,
                }
            }
        }
    };
}
by_field!(add, Add, +);
by_field!(sub, Sub, -);

impl Counted {
    pub const NOTHING: Self = Self {
        connections: 0,
        in_packets: 0,
        out_packets: 0,
        in_bytes: 0,
        out_bytes: 0,
        active: 0,
        inactive: 0,
    };

    /// A packet of a client.
    pub fn packet_in(frame: &Frame) -> Self {
        Self { in_packets: 1, in_bytes: frame.length() as i64, ..Self::NOTHING }
    }

    /// A packet of a destination.
    pub fn packet_out(frame: &Frame) -> Self {
        Self { out_packets: 1, out_bytes: frame.length() as i64, ..Self::NOTHING }
    }

    /// A packet that makes a connection that counts as active (TCP).
    pub fn opened(frame: &Frame) -> Self {
        Self { connections: 1, active: 1, ..Self::packet_in(frame) }
    }

    /// A packet that makes a connection that never counts as active (UDP).
    pub fn opened_inactive(frame: &Frame) -> Self {
        Self { connections: 1, inactive: 1, ..Self::packet_in(frame) }
    }

    /// With these active and inactive connections more.
    pub fn and_now(self, active: i64, inactive: i64) -> Self {
        Self { active: self.active + active, inactive: self.inactive + inactive, ..self }
    }
}

/// What is expected of a frame.
#[derive(Debug, Clone)]
pub enum Expected {
    /// Out of the interface that it came in on, like this.
    Transmit(Frame),
    /// Out of another interface, like this.
    Redirect(Frame),
    /// Passed as it was.
    Pass(Reason),
    /// Passed, but changed to this.
    PassChanged(Reason, Frame),
    /// Passed to be sent out of an interface, like this.
    ByStack(u32, Frame),
    /// Dropped.
    Drop(Reason),
}

/// The program with an empty table, for one test.
pub struct Fixture {
    pub director: Xdp,
    program: Program,
    clock: Cell<Clock>,
    _home: Home,
    _turn: MutexGuard<'static, ()>,
}

/// The program's clock, which stands still but when a test waits: no test depends on how fast it runs.
#[derive(Clone, Copy)]
struct Clock {
    since: Instant,
    /// The offset at that time, in ticks.
    offset: u32,
    ticks_per_second: u32,
}

impl Clock {
    fn ticks(self, time: Duration) -> u32 {
        (time.as_millis() * u128::from(self.ticks_per_second) / 1000) as u32
    }
}

impl Fixture {
    /// Waits for its turn and empties everything.
    pub fn new() -> Self {
        Self::with_sets(SETS)
    }

    /// As [`Fixture::new`], with a connection table of so many sets: a power of two, at most 1,024.
    pub fn with_sets(sets: u32) -> Self {
        let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
        let home = Home::of_this_thread();
        Home::leave_for_one_cpu();
        enter(&WORLD.network, &WORLD.mounts);
        let directory = &WORLD.directory;
        let mut director = Xdp::open(directory).unwrap();
        director.flush().unwrap();
        let used = director.maps().settings().destinations_used;
        for id in 0..used {
            director.maps().destinations.write(id, &Destination::new_zeroed());
        }
        let mut connections = connections(directory);
        for set in 0..SETS {
            connections.set(set, [0; size_of::<Set>()], 0).unwrap();
        }
        forget::<{ size_of::<Datagram>() }, { size_of::<Ports>() }>("FRAGMENTS");
        forget::<{ size_of::<CacheKey>() }, { size_of::<Cached>() }>("CACHE");
        forget::<{ size_of::<u32>() }, { size_of::<tunnel::Path>() }>("PATHS");
        maps::initialise(directory, &sizes()).unwrap();
        // What the director had found out is not so any more.
        let director = Xdp::open(directory).unwrap();
        director.maps().settings.store_u32(0, offset_of!(Settings, set_mask), sets - 1);
        // Nobody is told anything, but where a test is about that.
        director.maps().settings.store_u32(0, offset_of!(Settings, icmp_rate), 0);
        // Flows lie where they lay in the last run.
        director.maps().settings.store_u64(0, offset_of!(Settings, seed), 0x5eed);
        let program = Program::from_pin(directory.join("xipvs"), XdpAttachType::Interface).unwrap();
        let Settings { clock_offset: offset, ticks_per_second, .. } = director.maps().settings();
        let clock = Cell::new(Clock { since: Instant::now(), offset, ticks_per_second });
        let fixture = Self { director, program, clock, _home: home, _turn: turn };
        fixture.sweep_by_timer(0);
        fixture
    }

    /// A fixture with these commands carried out, one a line.
    pub fn configured(lines: &str) -> Self {
        let mut fixture = Self::new();
        fixture.ipvsadm(lines);
        fixture
    }

    pub fn settings(&self) -> Settings {
        self.director.maps().settings()
    }

    /// What the kernel says about each of the programs, by name.
    pub fn programs(&self) -> BTreeMap<String, ProgramInfo> {
        let names = std::fs::read_dir(&WORLD.directory).unwrap().map(|entry| entry.unwrap().file_name());
        // Maps have upper-case names, links have a dash.
        names
            .map(|name| name.into_string().unwrap())
            .filter(|name| name.starts_with(char::is_lowercase) && !name.contains('-'))
            .map(|name| (ProgramInfo::from_pin(WORLD.directory.join(&name)).unwrap(), name))
            .map(|(info, name)| (name, info))
            .collect()
    }

    /// How many sets the timer's sweep visits at each of its ticks; none unless a test says so.
    pub fn sweep_by_timer(&self, sets: u32) {
        self.director.maps().settings.store_u32(0, offset_of!(Settings, sweep_stride), sets);
    }

    /// Sweeps the whole table.
    pub fn sweep(&self) {
        self.hold_clock();
        self.director.maps().sweep().unwrap();
    }

    /// Turns the clock on by so many milliseconds.
    pub fn wait(&self, milliseconds: u64) {
        let clock = self.clock.get();
        let offset = clock.offset.wrapping_add(clock.ticks(Duration::from_millis(milliseconds)));
        self.clock.set(Clock { offset, ..clock });
        self.hold_clock();
    }

    /// Sets how far the clock is ahead of the kernel's, in ticks.
    pub fn set_clock_offset(&self, ticks: u32) {
        self.clock.set(Clock { since: Instant::now(), offset: ticks, ..self.clock.get() });
        self.hold_clock();
    }

    /// Takes back the time that has passed by itself.
    fn hold_clock(&self) {
        let clock = self.clock.get();
        let offset = clock.offset.wrapping_sub(clock.ticks(clock.since.elapsed()));
        self.director.maps().settings.store_u32(0, offset_of!(Settings, clock_offset), offset);
    }

    /// Carries out command lines of ipvsadm; what it says when it fails is a failure here.
    pub fn ipvsadm(&mut self, lines: &str) {
        for line in lines.lines().map(str::trim).filter(|line| !line.is_empty()) {
            let (status, said) = self.try_ipvsadm(line);
            assert_eq!(status, 0, "ipvsadm {line}: {said}");
        }
    }

    /// The same under the name `xipvs`, which knows more.
    pub fn xipvs(&mut self, lines: &str) {
        for line in lines.lines().map(str::trim).filter(|line| !line.is_empty()) {
            let (status, said) = self.run("xipvs", line);
            assert_eq!(status, 0, "xipvs {line}: {said}");
        }
    }

    /// Status and complaint of a command line.
    pub fn try_ipvsadm(&mut self, line: &str) -> (u8, String) {
        self.run("ipvsadm", line)
    }

    fn run(&mut self, program: &str, line: &str) -> (u8, String) {
        let words: Vec<OsString> =
            std::iter::once(program).chain(line.split_whitespace()).map(Into::into).collect();
        let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
        let mut streams = Streams { stdin: &mut std::io::empty(), stdout: &mut stdout, stderr: &mut stderr };
        let status = cli::run(&words, &mut streams, &mut self.director, &SystemNames::default());
        (status, String::from_utf8_lossy(&stderr).into_owned())
    }

    /// Runs a frame through the program as if it came in at an interface.
    pub fn send(&self, interface: u32, frame: &[u8]) -> Outcome {
        self.send_by(&self.program, interface, frame)
    }

    /// The same through the program for a veth; what comes out may begin with a note.
    pub fn send_by_veth(&self, interface: u32, frame: &[u8]) -> Outcome {
        let entry = WORLD.directory.join("xipvs_veth");
        self.send_by(&Program::from_pin(entry, XdpAttachType::Interface).unwrap(), interface, frame)
    }

    fn send_by(&self, program: &Program, interface: u32, frame: &[u8]) -> Outcome {
        self.hold_clock();
        let before = self.director.maps().reasons();
        let mut context = [0u32; 6];
        (context[1], context[3]) = (frame.len() as u32, interface);
        let context: Vec<u8> = context.iter().flat_map(|word| word.to_ne_bytes()).collect();
        let mut out = vec![0; frame.len() + 64];
        let mut options = TestRunOptions::new();
        options.data_in = Some(frame);
        options.data_out = Some(&mut out);
        options.ctx_in = Some(&context);
        let result = program.test_run(options).unwrap();
        out.truncate(result.data_size_out as usize);
        let action = match result.return_value {
            1 => Action::Drop,
            2 => Action::Pass,
            3 => Action::Transmit,
            4 => Action::Redirect,
            other => panic!("action {other}"),
        };
        let after = self.director.maps().reasons();
        let mut counted = before.iter().zip(&after).filter(|(before, after)| before != after);
        let reason = counted.next().map(|((reason, before), (_, after))| {
            assert_eq!(after - before, 1, "{reason:?} is counted once");
            *reason
        });
        assert_eq!(counted.next(), None, "one reason is counted");
        // Every packet is forwarded or counted under a reason, and the reason says what becomes of it.
        let fate = match action {
            Action::Drop => Some(Fate::Drop),
            Action::Pass => Some(Fate::Pass),
            // In the place of a packet that is dropped its sender may get an ICMP error.
            Action::Transmit if reason.is_some() => Some(Fate::Drop),
            Action::Transmit | Action::Redirect => None,
        };
        assert_eq!(reason.map(Reason::fate), fate, "{action:?} {reason:?}");
        Outcome { action, reason, bytes: out }
    }

    /// Runs a frame through the program and compares all there is: action, reason, bytes, what each destination
    /// counts. Destinations that are not named count nothing.
    #[track_caller]
    pub fn expect(
        &mut self,
        what: &str,
        interface: u32,
        frame: &Frame,
        expected: Expected,
        counted: &[(SocketAddrV4, Counted)],
    ) {
        let before = self.counted();
        let sent = frame.bytes();
        let outcome = self.send(interface, &sent);
        let (action, reason, bytes) = match expected {
            Expected::Transmit(frame) => (Action::Transmit, None, frame.bytes()),
            Expected::Redirect(frame) => (Action::Redirect, None, frame.bytes()),
            Expected::Pass(reason) => (Action::Pass, Some(reason), sent),
            Expected::PassChanged(reason, frame) => (Action::Pass, Some(reason), frame.bytes()),
            Expected::ByStack(interface, frame) => {
                // The kernel gives what stands before a packet with it.
                let note = [&b"xipv"[..], &interface.to_ne_bytes(), &frame.bytes()].concat();
                (Action::Pass, Some(Reason::SentByStack), note)
            }
            Expected::Drop(reason) => (Action::Drop, Some(reason), sent),
        };
        assert_eq!((outcome.action, outcome.reason), (action, reason), "{what}");
        if action == Action::Drop {
            assert_eq!(outcome.bytes.len(), bytes.len(), "{what}");
        } else {
            assert_eq!(outcome.bytes, bytes, "{what}");
        }
        let mut wanted: BTreeMap<_, _> = before.keys().map(|key| (*key, Counted::NOTHING)).collect();
        wanted.extend(counted.iter().copied());
        let delta: BTreeMap<_, _> =
            self.counted().into_iter().map(|(key, after)| (key, after - before[&key])).collect();
        assert_eq!(delta, wanted, "{what}");
    }

    /// Changes the addresses beside every entry of IPv6, as nothing but a test ever does.
    pub fn change_addresses(&self, change: impl Fn(&mut Addresses)) {
        let map = MapData::from_pin(WORLD.directory.join("ADDRESSES")).unwrap();
        let mut lines: Array<_, [u8; size_of::<AddressSet>()]> = Map::Array(map).try_into().unwrap();
        for number in 0..SETS {
            let mut set = AddressSet::read_from_bytes(&lines.get(&number, 0).unwrap()).unwrap();
            set.iter_mut().filter(|line| **line != Addresses::default()).for_each(&change);
            lines.set(number, <[u8; size_of::<AddressSet>()]>::try_from(set.as_bytes()).unwrap(), 0).unwrap();
        }
    }

    /// How many entries lie outside their home sets, as the home sets say.
    pub fn displaced(&self) -> u32 {
        let connections = connections(&WORLD.directory);
        let sets = (0..SETS).map(|set| connections.get(&set, 0).unwrap());
        sets.map(|set| Set::read_from_bytes(&set).unwrap().displaced).sum()
    }

    /// What every destination has counted, over all services.
    pub fn counted(&mut self) -> BTreeMap<SocketAddrV4, Counted> {
        let mut all = BTreeMap::new();
        for report in self.director.table().unwrap().entries.into_iter().flat_map(|entry| entry.destinations)
        {
            let stats = report.stats;
            let IpAddr::V4(address) = report.destination.key.address else { panic!("IPv6") };
            let counted = Counted {
                connections: stats.connections as i64,
                in_packets: stats.in_packets as i64,
                out_packets: stats.out_packets as i64,
                in_bytes: stats.in_bytes as i64,
                out_bytes: stats.out_bytes as i64,
                active: report.active.into(),
                inactive: report.inactive.into(),
            };
            let sum = all.entry(SocketAddrV4::new(address, report.destination.key.port)).or_default();
            *sum = *sum + counted;
        }
        all
    }

    /// The client side's state of each connection, by client; dead ones that were not swept too.
    pub fn states(&self) -> BTreeMap<SocketAddrV4, &'static str> {
        self.client_sides()
            .map(|TableEntry { entry, .. }| {
                let tuple = entry.tuple();
                (SocketAddrV4::new(tuple.source(), tuple.source_port()), state::name(entry.state))
            })
            .collect()
    }

    /// The entries of client sides with their deadlines.
    pub fn client_sides(&self) -> impl Iterator<Item = TableEntry> + use<> {
        let entries = self.director.maps().entries().unwrap();
        entries.into_iter().filter(|found| found.entry.role == lb_common::connection::CLIENT_SIDE)
    }
}

/// Empties a map that forgets by itself what was not used for long.
fn forget<const KEY: usize, const VALUE: usize>(name: &str) {
    let map = MapData::from_pin(WORLD.directory.join(name)).unwrap();
    let mut map: HashMap<_, [u8; KEY], [u8; VALUE]> = Map::LruHashMap(map).try_into().unwrap();
    for key in map.keys().collect::<Result<Vec<_>, _>>().unwrap() {
        map.remove(&key).unwrap();
    }
}

fn connections(directory: &Path) -> Array<MapData, [u8; size_of::<Set>()]> {
    let map = MapData::from_pin(directory.join("CONNECTIONS")).unwrap();
    Array::try_from(Map::Array(map)).unwrap()
}
