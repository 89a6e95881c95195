//! A director between two interfaces whose other ends are in our hands.
//!
//! Client and servers are no programs: they are frames that are written into TAP interfaces and read from them, or packets of
//! the director itself ([`Own`]). The kernel handles a frame within the call that writes it, so what a packet leads to can be
//! read at once, nothing has to be waited for, and that nothing came is certain. Every address has a permanent neighbour, so
//! that nobody asks for any.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::ErrorKind;
use std::mem::offset_of;
use std::net::SocketAddr;

use lb_common::destination::Counters;
use lb_common::settings::Settings;
use lb_common::sysctl::Sysctl;
use nix::sched::{CloneFlags, setns};
use tappers::{Interface, Tap};
use tests::golden::{self, Printed};
use xipvs::cli::names::FileNames;
use xipvs::director::Director;
use xipvs::director::kernel::Kernel;
use xipvs::director::xdp::Xdp;
use xipvs::director::xdp::lifecycle::{self, Manner, Pins};
use xipvs::director::xdp::sizes::Sizes;
use xipvs::mark;
use xipvs::table::Timeouts;

use super::super::namespace;
use super::frame::Frame;
use super::host::{CLIENTS, ROUTER, ROUTER6, SERVERS, configure, forget, iptables, is_own, is_server, shell};
use super::own::{NO_LINK, Own};
use super::packet::{self, Mac, Shape, mac_of, quotable};
use super::pieces;
use super::scenario::{Event, Flow, What, Whose};

/// The frames that came out on each interface, and what programs of the director got.
#[derive(Debug, Default, PartialEq)]
pub struct Outcome {
    pub clients: Vec<Frame>,
    pub servers: Vec<Frame>,
    pub director: Vec<Frame>,
}

/// Who serves a flow.
#[derive(Debug, Clone)]
struct Serving {
    link: Mac,
    /// What the server answers from.
    from: SocketAddr,
    /// Whom it answers.
    to: SocketAddr,
    /// The packet that it got last, with what was around it.
    packet: Vec<u8>,
}

/// What keeps the table.
enum Either {
    Kernel(Kernel),
    Xdp(Box<Xdp>),
}

impl Either {
    fn any(&mut self) -> &mut dyn Director {
        match self {
            Self::Kernel(director) => director,
            Self::Xdp(director) => director.as_mut(),
        }
    }
}

/// One director.
pub struct Side {
    pub whose: Whose,
    namespace: File,
    /// Once a flow has the director as an end. Before the interfaces, which do not end while a socket holds what came by them.
    own: Option<Own>,
    clients: Tap,
    servers: Tap,
    director: Either,
    serving: HashMap<Flow, Serving>,
    /// Whether a scenario has run lines of shell here.
    reconfigured: bool,
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
        let director = match whose {
            Whose::Kernel => Either::Kernel(Kernel::open().expect("kernel IPVS")),
            _ => {
                let sizes = Sizes::new(lifecycle::possible_cpus().unwrap()).with_connections(10_000);
                let names = ["clients".to_owned(), "servers".to_owned()];
                lifecycle::attach(&names, Manner::default(), &sizes, true).expect("an XDP program");
                Either::Xdp(Box::new(Xdp::open(Pins::find().unwrap().directory()).unwrap()))
            }
        };
        Self {
            whose,
            namespace,
            clients,
            servers,
            own: None,
            director,
            serving: HashMap::new(),
            reconfigured: false,
        }
    }

    /// Makes the XDP director as good as new, which is sooner done than to have the kernel check its program again: an
    /// empty table, timeouts and sysctls as at first, and no connection, as its clock goes far beyond all of them.
    pub fn begin_anew(&mut self) {
        self.enter();
        self.serving.clear();
        self.own = None;
        if std::mem::take(&mut self.reconfigured) {
            shell("ip link set clients mtu 1500; ip link set servers mtu 1500").unwrap();
        }
        forget();
        let Either::Xdp(director) = &mut self.director else { panic!("kernel IPVS is made anew") };
        director.flush().unwrap();
        director.set_timeouts(&Timeouts::default()).unwrap();
        director.change_mark_rules(&mut |rules| mark::delete(rules, None)).unwrap();
        for sysctl in Sysctl::ALL {
            director.set_sysctl(sysctl.name(), sysctl.default_value()).unwrap();
        }
        let maps = director.maps();
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
        golden::run(&argv, "", self.director.any(), &FileNames::parse("", ""))
    }

    /// Runs a line of shell here.
    pub fn shell(&mut self, line: &str) -> Result<(), String> {
        self.enter();
        self.reconfigured = true;
        shell(line)
    }

    /// Has a program of the director wait for datagrams.
    pub fn listen(&mut self, at: SocketAddr) {
        self.enter();
        self.own.get_or_insert_with(Own::new).listen(at);
    }

    /// Gives a sysctl of IPVS a value.
    pub fn set(&mut self, name: &str, value: u32) -> Result<(), String> {
        self.enter();
        match &mut self.director {
            Either::Kernel(_) => fs::write(format!("/proc/sys/net/ipv4/vs/{name}"), value.to_string())
                .map_err(|error| format!("{name}: {error}")),
            Either::Xdp(director) => director.set_sysctl(name, value).map_err(|error| error.to_string()),
        }
    }

    /// Adds a rule that marks packets, told by the words of `xipvs mark add`: to netfilter's or to our own.
    pub fn mark(&mut self, words: &[&str]) -> Result<(), String> {
        self.enter();
        let Either::Xdp(director) = &mut self.director else {
            return shell(&iptables(words)?);
        };
        let rule = mark::rule(words)?;
        director.change_mark_rules(&mut |rules| mark::add(rules, rule)).map_err(|error| error.to_string())
    }

    /// Whether a packet of the flow has come to a server.
    pub fn has_served(&self, flow: &Flow) -> bool {
        self.serving.contains_key(flow)
    }

    /// What all destinations have counted, of this moment: unlike the counters of a listing, which the kernel brings up to date
    /// every two seconds.
    pub fn counted(&self) -> Counters {
        self.enter();
        let Either::Xdp(director) = &self.director else { return kernel_counted() };
        let maps = director.maps();
        let mut sum = Counters::default();
        (0..maps.settings().destinations_used).for_each(|id| sum.add(&maps.counted(id)));
        sum
    }

    /// Sends a packet of a flow and returns what came of it; `None` if nobody is there to answer.
    pub fn play(&mut self, flow: &Flow, event: &Event) -> Option<Outcome> {
        let router = mac_of(if flow.client.is_ipv4() { ROUTER } else { ROUTER6 }.parse().unwrap());
        let serving = self.serving.get(flow);
        let is_own = if event.answer { serving?.link == NO_LINK } else { is_own(flow.client.ip()) };
        let is_call = is_server(flow.client.ip());
        let (link, from, to) = match serving {
            Some(Serving { link, from, to, .. }) if event.answer => (*link, *from, *to),
            _ if is_call => (mac_of(flow.client.ip()), flow.client, flow.service),
            _ => (router, flow.client, flow.service),
        };
        let (tap, link) = if event.answer == is_call {
            (&self.clients, [CLIENTS, router])
        } else {
            (&self.servers, [SERVERS, link])
        };
        self.enter();
        let packets = match event.what {
            What::Packet(content) => event.shape.packets(from, to, &content),
            What::Error { kind, word, by, quoted, inner } => {
                let (about, from, to) = match serving {
                    // To whoever sent it, which is the director if it came through a tunnel.
                    Some(Serving { packet, .. }) if event.answer && !inner => {
                        let (source, destination) = packet::addresses(packet);
                        (packet.clone(), destination, source)
                    }
                    // Any packet of the flow that the other side could have sent.
                    _ => {
                        let about = Shape::PLAIN.packets(to, from, &flow.protocol.into()).remove(0);
                        (about, from.ip(), to.ip())
                    }
                };
                let about = quotable(&about);
                let about = &about[..quoted.unwrap_or(about.len()).min(about.len())];
                event.shape.icmp(by.unwrap_or(from), to, kind, word, about)
            }
        };
        for packet in packets {
            if is_own {
                self.own.get_or_insert_with(Own::new).send(flow.protocol, from, &packet);
            } else {
                tap.send(&packet::frame(link, &packet)).expect("the interface is up");
            }
        }
        let mut outcome = Outcome::default();
        self.hear(flow, event, &mut outcome);
        Some(outcome)
    }

    /// Adds what has come of a packet by now.
    pub fn hear(&mut self, flow: &Flow, event: &Event, outcome: &mut Outcome) {
        outcome.clients.extend(read(&self.clients));
        outcome.servers.extend(read(&self.servers));
        outcome.director.extend(self.own.as_ref().map(Own::received).unwrap_or_default());
        let others = if is_server(flow.client.ip()) { &outcome.clients } else { &outcome.servers };
        let came = [&others[..], &outcome.director[..]].concat();
        if let (false, What::Packet(_), [frame @ Frame { icmp: false, .. }]) =
            (event.answer, event.what, &came[..])
        {
            // What the server sees as its own is what it answers from.
            let (to, from) = frame.from_to;
            let serving = Serving { link: frame.to, from, to, packet: frame.packet.clone() };
            self.serving.insert(*flow, serving);
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
        let Printed { stdout: listed, stderr: complaints, status } =
            self.ipvsadm(&["-L", "-n", "-c", "--persistent-conn"]);
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
            Ok(length) => frames.push(buffer[..length].to_vec()),
            Err(error) if error.kind() == ErrorKind::WouldBlock => return pieces::read(&frames),
            Err(error) => panic!("reading from an interface: {error}"),
        }
    }
}
