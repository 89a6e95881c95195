//! A director between two interfaces whose other ends are in our hands.
//!
//! Client and servers are no programs: they are frames that are written into TAP interfaces and read from them. The kernel
//! handles a frame within the call that writes it, so what a packet leads to can be read at once, nothing has to be waited
//! for, and that nothing came is certain. Every address has a permanent neighbour, so that nobody asks for any.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{ErrorKind, Write as _};
use std::mem::offset_of;
use std::net::{IpAddr, SocketAddr};
use std::process::{Command, Stdio};

use lb_common::destination::Counters;
use lb_common::protocol::Protocol;
use lb_common::settings::Settings;
use lb_common::sysctl::Sysctl;
use nix::sched::{CloneFlags, setns};
use tappers::{Interface, Tap};
use tests::golden::{self, Printed};
use xipvs::cli::names::FileNames;
use xipvs::director::Director;
use xipvs::director::kernel::Kernel;
use xipvs::director::xdp::Xdp;
use xipvs::director::xdp::lifecycle::{self, Pins};
use xipvs::director::xdp::maps::Maps;
use xipvs::director::xdp::sizes::Sizes;
use xipvs::table::Timeouts;

use super::super::namespace;
use super::frame::{ACK, Carried, Frame, Mac, Packet, mac_of};
use super::scenario::{Event, Flow, What, Whose};

/// The director's link addresses.
const CLIENTS: Mac = [2, 0, 0, 0, 1, 1];
const SERVERS: Mac = [2, 0, 0, 0, 2, 1];
/// The router that every client is behind.
const ROUTER: &str = "192.168.1.254";
const ROUTER6: &str = "fd00:1::fe";

/// The frames that came out on each interface.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    pub clients: Vec<Frame>,
    pub servers: Vec<Frame>,
}

/// Who serves a flow.
#[derive(Debug, Clone)]
struct Serving {
    link: Mac,
    /// What the server answers from.
    from: SocketAddr,
    /// Whom it answers.
    to: SocketAddr,
    /// The last packet of the flow that it got.
    last: Frame,
}

/// One director.
pub struct Side {
    pub whose: Whose,
    namespace: File,
    clients: Tap,
    servers: Tap,
    director: Box<dyn Director>,
    /// The XDP director's maps.
    maps: Option<Maps>,
    serving: HashMap<Flow, Serving>,
}

impl Side {
    /// Makes a director of each kind, with nothing in its table.
    pub fn new(whose: Whose) -> Self {
        let namespace = namespace();
        let tap = |name: &str| {
            let mut tap = Tap::new_named(Interface::new(name).unwrap()).expect("/dev/net/tun");
            tap.set_nonblocking(true).unwrap();
            tap
        };
        let (clients, servers) = (tap("clients"), tap("servers"));
        configure();
        let (director, maps): (Box<dyn Director>, _) = match whose {
            Whose::Kernel => (Box::new(Kernel::open().expect("kernel IPVS")), None),
            Whose::Xdp => {
                let sizes = Sizes::new(lifecycle::possible_cpus().unwrap()).with_connections(10_000);
                let names = ["clients".to_owned(), "servers".to_owned()];
                lifecycle::attach(&names, false, &sizes, true).expect("an XDP program");
                let pins = Pins::find().unwrap();
                let maps = Maps::open(pins.directory()).unwrap();
                (Box::new(Xdp::open(pins.directory()).unwrap()), Some(maps))
            }
        };
        Self { whose, namespace, clients, servers, director, maps, serving: HashMap::new() }
    }

    /// Makes the XDP director as good as new, which is sooner done than to have the kernel check its program again: an
    /// empty table, timeouts as at first, and no connection, as its clock goes far beyond all of them.
    pub fn begin_anew(&mut self) {
        self.enter();
        self.serving.clear();
        self.director.flush().unwrap();
        self.director.set_timeouts(&Timeouts::default()).unwrap();
        for sysctl in Sysctl::ALL {
            self.set(sysctl.name(), sysctl.default_value());
        }
        let maps = self.maps.as_ref().expect("the XDP director");
        // A template whose connections end at the same moment as it does may go on for a minute: hence twice.
        for _ in 0..2 {
            let settings = maps.settings();
            let month = 31 * 24 * 60 * 60 * settings.ticks_per_second;
            let ahead = settings.clock_offset.wrapping_add(month);
            maps.settings.store_u32(0, offset_of!(Settings, clock_offset), ahead);
            maps.sweep().unwrap();
        }
        // As many errors as there is reason for, as from the kernel here.
        maps.settings.store_u32(0, offset_of!(Settings, icmp_rate), 1_000_000);
        assert_eq!(self.connections(), Vec::<String>::new());
    }

    /// Has the calling thread work in this director's namespace.
    fn enter(&self) {
        setns(&self.namespace, CloneFlags::CLONE_NEWNET).expect("root");
    }

    /// Carries out a command of ipvsadm: what it prints, what it complains of, its exit status.
    pub fn ipvsadm(&mut self, words: &[&str]) -> Printed {
        self.enter();
        let argv: Vec<&str> = std::iter::once("ipvsadm").chain(words.iter().copied()).collect();
        golden::run(&argv, "", self.director.as_mut(), &FileNames::parse("", ""))
    }

    /// Runs a line of shell here.
    pub fn shell(&self, line: &str) {
        self.enter();
        super::super::shell(line);
    }

    /// Whether a packet of the flow has come to a server.
    pub fn has_served(&self, flow: &Flow) -> bool {
        self.serving.contains_key(flow)
    }

    /// What all destinations have counted, of this moment: unlike the counters of a listing, which the kernel brings up to date
    /// every two seconds.
    pub fn counted(&self) -> Counters {
        self.enter();
        let Some(maps) = &self.maps else { return kernel_counted() };
        let mut sum = Counters::default();
        (0..maps.settings().destinations_used).for_each(|id| sum.add(&maps.counted(id)));
        sum
    }

    /// Sends a packet of a flow and returns what came of it; `None` if nobody is there to answer.
    pub fn play(&mut self, flow: &Flow, event: &Event) -> Option<Outcome> {
        let (tap, packet) = if event.answer {
            let Serving { link, from, to, last } = self.serving.get(flow)?;
            let carried = carried(flow, event, || last.quote().expect("it was read").1);
            let (from, to) = match event.what {
                // To whoever sent it, which is the director if it came through a tunnel.
                What::Error { .. } => {
                    let (source, destination) = last.quote()?.0;
                    (SocketAddr::new(destination, 0), SocketAddr::new(source, 0))
                }
                _ => (*from, *to),
            };
            (&self.servers, Packet { link: [SERVERS, *link], from, to, carried })
        } else {
            let router = mac_of(if flow.client.is_ipv4() { ROUTER } else { ROUTER6 }.parse().unwrap());
            let link = [CLIENTS, router];
            // An answer, whether or not there was one.
            let about = || {
                let own = Event { what: What::Own, flags: ACK, ..*event };
                let carried = carried(flow, &own, Vec::new);
                Packet { link, from: flow.service, to: flow.client, carried }.bytes()[14..].to_vec()
            };
            let carried = carried(flow, event, about);
            (&self.clients, Packet { link, from: flow.client, to: flow.service, carried })
        };
        tap.send(&packet.bytes()).expect("the interface is up");
        let outcome = Outcome { clients: read(&self.clients), servers: read(&self.servers) };
        if let (false, What::Own, [frame]) = (event.answer, event.what, &outcome.servers[..]) {
            // What the server sees as its own is what it answers from.
            let (to, from) = frame.from_to;
            self.serving.insert(*flow, Serving { link: frame.to, from, to, last: frame.clone() });
        }
        Some(outcome)
    }

    /// Gives a sysctl of IPVS a value.
    pub fn set(&mut self, name: &str, value: u32) {
        self.enter();
        match &self.maps {
            None => fs::write(format!("/proc/sys/net/ipv4/vs/{name}"), value.to_string()).expect(name),
            Some(_) => {
                let pins = Pins::find().unwrap();
                Xdp::open(pins.directory()).unwrap().set_sysctl(name, value).expect(name);
            }
        }
    }

    /// The listings that have to be the same on both, without times.
    pub fn listings(&mut self) -> String {
        let mut all = String::new();
        for words in [
            &["-L", "-n"][..],
            &["-L", "-n", "--stats", "--exact"],
            &["-L", "-n", "--thresholds"],
            &["-L", "-n", "--persistent-conn"],
        ] {
            all += &self.ipvsadm(words).stdout;
        }
        all + &self.connections().join("\n") + "\n"
    }

    /// The lines of the connection list, sorted, without times.
    pub fn connections(&mut self) -> Vec<String> {
        let Printed { stdout: listed, stderr: complaints, status } = self.ipvsadm(&["-L", "-n", "-c"]);
        assert_eq!((complaints.as_str(), status), ("", 0));
        let without_time = |line: &str| {
            let words: Vec<&str> = line.split_whitespace().collect();
            words
                .iter()
                .enumerate()
                .filter(|(place, _)| *place != 1)
                .map(|(_, word)| *word)
                .collect::<Vec<_>>()
                .join(" ")
        };
        let mut lines: Vec<String> = listed.lines().skip(2).map(without_time).collect();
        lines.sort();
        lines
    }
}

impl Drop for Side {
    fn drop(&mut self) {
        self.enter();
        if self.whose == Whose::Xdp {
            let _ = lifecycle::detach_all();
        }
    }
}

/// What an event's packet carries; `about` makes what an error quotes.
fn carried(flow: &Flow, event: &Event, about: impl FnOnce() -> Vec<u8>) -> Carried {
    let (flags, payload) = (event.flags, event.payload);
    match (event.what, flow.protocol) {
        (What::Error { kind, code, mtu }, _) => Carried::Error { kind, code, mtu, about: about() },
        (What::Between(protocol), _) => Carried::Other { protocol, payload },
        (What::Own, Protocol::Tcp) => Carried::Tcp { flags, payload },
        (What::Own, Protocol::Udp) => Carried::Udp { payload },
        (What::Own, Protocol::Sctp) => panic!("no packets of SCTP"),
    }
}

/// The sum of what the CPUs have counted: a line each, after two of titles, of hexadecimal numbers.
fn kernel_counted() -> Counters {
    let text = fs::read_to_string("/proc/thread-self/net/ip_vs_stats_percpu").unwrap();
    let mut sum = Counters::default();
    for line in text.lines().skip(2).take_while(|line| !line.trim_start().starts_with('~')) {
        let numbers: Vec<u64> = line
            .split_whitespace()
            .map(|word| u64::from_str_radix(word, 16).expect("a number of ip_vs_stats_percpu"))
            .collect();
        let &[_, connections, in_packets, out_packets, in_bytes, out_bytes] = &numbers[..] else { continue };
        sum.add(&Counters { connections, in_packets, out_packets, in_bytes, out_bytes });
    }
    sum
}

/// All frames that wait on an interface.
fn read(tap: &Tap) -> Vec<Frame> {
    let mut frames = Vec::new();
    let mut buffer = [0; 2048];
    loop {
        match tap.recv(&mut buffer) {
            Ok(length) => frames.extend(Frame::read(&buffer[..length])),
            Err(error) if error.kind() == ErrorKind::WouldBlock => return frames,
            Err(error) => panic!("reading from an interface: {error}"),
        }
    }
}

/// Addresses, routes and neighbours of the namespace that the calling thread is in.
fn configure() {
    for (path, value) in [
        ("ipv4/ip_forward", "1"),
        ("ipv4/conf/all/rp_filter", "0"),
        ("ipv4/conf/default/rp_filter", "0"),
        ("ipv4/conf/clients/rp_filter", "0"),
        ("ipv4/conf/servers/rp_filter", "0"),
        // Answers of direct routing that come this way have an address of the director.
        ("ipv4/conf/servers/accept_local", "1"),
        ("ipv4/icmp_ratelimit", "0"),
        ("ipv6/conf/all/forwarding", "1"),
        ("ipv6/conf/clients/accept_dad", "0"),
        ("ipv6/conf/servers/accept_dad", "0"),
        ("ipv6/icmp/ratelimit", "0"),
    ] {
        fs::write(format!("/proc/sys/net/{path}"), value).expect(path);
    }
    let mut lines = vec![
        format!("link set clients address {}", shown(CLIENTS)),
        format!("link set servers address {}", shown(SERVERS)),
        "link set clients up".into(),
        "link set servers up".into(),
        "address add 192.168.1.1/24 dev clients".into(),
        "address add 10.0.0.1/24 dev servers".into(),
        "address add fd00:1::1/64 dev clients nodad".into(),
        "address add fd00:2::1/64 dev servers nodad".into(),
        format!("route add default via {ROUTER}"),
        format!("route add default via {ROUTER6}"),
    ];
    for last in 100..=103 {
        lines.push(format!("address add 192.168.1.{last}/32 dev lo"));
        lines.push(format!("address add fd00:1::{last}/128 dev lo"));
    }
    let servers = (11..=42).flat_map(|last| [format!("10.0.0.{last}"), format!("fd00:2::{last}")]);
    let neighbours = servers.map(|address| (address, "servers"));
    let routers = [ROUTER, ROUTER6].map(|address| (address.to_owned(), "clients"));
    for (address, interface) in neighbours.chain(routers) {
        let mac = mac_of(address.parse::<IpAddr>().unwrap());
        lines.push(format!("neighbour add {address} lladdr {} dev {interface} nud permanent", shown(mac)));
    }
    let mut ip = Command::new("ip").args(["-batch", "-"]).stdin(Stdio::piped()).spawn().expect("ip");
    ip.stdin.take().unwrap().write_all(lines.join("\n").as_bytes()).unwrap();
    assert!(ip.wait().unwrap().success(), "{lines:#?}");
}

fn shown(mac: Mac) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}
