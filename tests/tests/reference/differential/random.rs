//! Scenarios drawn at random: edits of services and destinations between packets of a few dozen clients, which know no
//! manners. The same seed draws the same scenario.
//!
//! What is drawn is the text of a scenario, so that one that fails can be kept as a file.

use std::fmt::Write as _;

/// A service that is drawn.
struct Place {
    /// What names it.
    key: &'static str,
    /// What packets are sent to: no two places of a family have the same port, as answers must not look alike.
    address: &'static str,
    protocol: &'static str,
    /// The port of some of its NAT destinations.
    port: u16,
}

const fn place(key: &'static str, address: &'static str, protocol: &'static str, port: u16) -> Place {
    Place { key, address, protocol, port }
}

const PLACES: [Place; 12] = [
    place("-t 192.168.1.100:80", "192.168.1.100:80", "tcp", 8001),
    place("-t 192.168.1.101:81", "192.168.1.101:81", "tcp", 8002),
    place("-t 192.168.1.102:443", "192.168.1.102:443", "tcp", 8003),
    place("-u 192.168.1.100:53", "192.168.1.100:53", "udp", 8004),
    place("-u 192.168.1.101:54", "192.168.1.101:54", "udp", 8005),
    place("--sctp-service 192.168.1.100:90", "192.168.1.100:90", "sctp", 8006),
    place("-f 1", "192.168.1.103:88", "tcp", 8007),
    place("-t [fd00:1::100]:80", "[fd00:1::100]:80", "tcp", 8008),
    place("-t [fd00:1::101]:443", "[fd00:1::101]:443", "tcp", 8009),
    place("-u [fd00:1::100]:53", "[fd00:1::100]:53", "udp", 8010),
    place("--sctp-service [fd00:1::100]:90", "[fd00:1::100]:90", "sctp", 8011),
    place("-f 1 -6", "[fd00:1::103]:88", "udp", 8012),
];

/// Places that one scenario has, so that much happens in each.
const PLACES_AT_ONCE: usize = 5;

impl Place {
    fn is_ipv6(&self) -> bool {
        self.address.starts_with('[')
    }

    fn is_udp(&self) -> bool {
        self.protocol == "udp"
    }

    fn is_marked(&self) -> bool {
        self.key.starts_with("-f")
    }

    /// The port that packets are sent to.
    fn own_port(&self) -> &str {
        self.address.rsplit(':').next().unwrap_or_default()
    }
}

/// All that choose by the table and the connections alone, those with flags in each of their forms. (`twos` draws at
/// random, and Debian's kernel does not have it.)
const SCHEDULERS: [&str; 19] = [
    "rr",
    "wrr",
    "lc",
    "wlc",
    "sed",
    "nq",
    "fo",
    "ovf",
    "lblc",
    "lblcr",
    "dh",
    "sh",
    "sh -b sh-port",
    "sh -b sh-fallback",
    "sh -b sh-fallback,sh-port",
    "mh",
    "mh -b mh-port",
    "mh -b mh-fallback",
    "mh -b mh-fallback,mh-port",
];

/// What a client and its server do next, the usual things more often.
const TCP: [&str; 12] = [
    "S",
    "S",
    "S <SA A",
    "S <SA A PA:100 <A",
    "S <SA A FA <FA A",
    "S <SA A <FA FA <A",
    "A",
    "PA:1000 <A",
    "<PA:1000 A",
    "FA",
    "<FA",
    "PA:7,tos=3,options",
];
/// What ends a connection within seconds.
const RESET: [&str; 4] = ["S <SA A R", "R", "<R", "S <SA A <R S <SA A"];
const UDP: [&str; 5] = ["D", "D <D", "D:1000 <D:1", "<D", "D,options"];
const FRAGMENTS: [&str; 2] = ["D:3000,pieces=1000", "D <D:2000,pieces=1200 D:100,pieces=48"];
/// Of associations: INIT is answered at once, as it is forgotten after four seconds.
const SCTP: [&str; 8] = [
    "INIT <INIT-ACK",
    "INIT <INIT-ACK COOKIE-ECHO <COOKIE-ACK",
    "INIT <INIT-ACK COOKIE-ECHO <COOKIE-ACK SHUTDOWN <SHUTDOWN-ACK SHUTDOWN-COMPLETE",
    "INIT <INIT-ACK COOKIE-ECHO <COOKIE-ACK DATA:1000 <SACK ABORT",
    "DATA <SACK",
    "<DATA:1000 SACK",
    "SHUTDOWN",
    "<SHUTDOWN SHUTDOWN-ACK",
];

const TUNNELS: [&str; 5] = [
    "-i",
    "-i --tun-type gre",
    "-i --tun-type gre --tun-csum",
    "-i --tun-type gue --tun-port 6080",
    "-i --tun-type gue --tun-port 6080 --tun-csum",
];

/// Numbers drawn from a seed (SplitMix64).
struct Draw(u64);

impl Draw {
    /// A number below `limit`.
    fn below(&mut self, limit: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ mixed >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((mixed ^ mixed >> 31) % limit as u64) as usize
    }

    fn one_of<'a>(&mut self, all: &[&'a str]) -> &'a str {
        all[self.below(all.len())]
    }
}

/// A service as far as has been drawn.
#[derive(Default)]
struct Service {
    there: bool,
    /// The last parts of its destinations' addresses.
    destinations: Vec<usize>,
    /// Those of destinations that have been deleted from it.
    deleted: Vec<usize>,
    /// Those that it must not have again, see [`delete`].
    spent: Vec<usize>,
    /// Whether it is scheduled packet by packet.
    once: bool,
    /// Whether it has had tunnels other than IPIP within its family, whose fragments the kernel does not cut where we do.
    wrapped: bool,
}

/// What comes first.
///
/// The kernel sends no ICMP errors: it counts that about a SYN without a destination as an answer, if an old connection has
/// just given way to the SYN (`COMPATIBILITY.md`). While a service of the family is there kernel IPVS sees packets, of
/// connections without a service too.
const PROLOGUE: &str = "\
ignore icmp
kernel: iptables -t raw -A OUTPUT -p icmp -j DROP
kernel: for type in 1 2 3; do ip6tables -t raw -A OUTPUT -p icmpv6 --icmpv6-type $type -j DROP; done
ipvsadm -A -t 192.168.1.103:1 -s rr
ipvsadm -A -t [fd00:1::103]:1 -s rr
";

/// Whether the scenario of a seed has what ends connections within seconds.
pub fn is_hasty(seed: u64) -> bool {
    seed.is_multiple_of(2)
}

/// The text of a scenario of so many steps.
pub fn scenario(seed: u64, steps: usize) -> String {
    let mut draw = Draw(seed);
    let mut left: Vec<&Place> = PLACES.iter().collect();
    let mut chosen: Vec<(&Place, Service)> = Vec::new();
    while chosen.len() < PLACES_AT_ONCE {
        chosen.push((left.remove(draw.below(left.len())), Service::default()));
    }
    let mut text = PROLOGUE.to_owned();
    for (place, _) in chosen.iter().filter(|(place, _)| place.is_marked()) {
        let host = place.address.rsplit_once(':').unwrap_or_default().0.trim_matches(['[', ']']);
        let _ = writeln!(text, "mark 1 --destination {host} --protocol {}", place.protocol);
    }
    for _ in 0..steps {
        let number = draw.below(chosen.len());
        let (place, service) = &mut chosen[number];
        let line = if draw.below(60) == 0 {
            sysctl(&mut draw, is_hasty(seed))
        } else if draw.below(5) > 0 && !service.destinations.is_empty() {
            packets(&mut draw, place, service, is_hasty(seed))
        } else {
            edit(&mut draw, place, service)
        };
        let _ = writeln!(text, "{line}");
    }
    text
}

fn sysctl(draw: &mut Draw, hasty: bool) -> String {
    match draw.below(if hasty { 5 } else { 4 }) {
        0 => format!("set conn_reuse_mode={}", draw.below(4)),
        1 => format!("set expire_quiescent_template={}", draw.below(2)),
        2 => format!("set pmtu_disc={}", draw.below(2)),
        3 => format!("set sloppy_sctp={}", draw.below(2)),
        _ => format!("set sloppy_tcp={}", draw.below(2)),
    }
}

fn packets(draw: &mut Draw, place: &Place, service: &Service, hasty: bool) -> String {
    let events = match place.protocol {
        "tcp" if hasty && draw.below(4) == 0 => draw.one_of(&RESET),
        "tcp" => draw.one_of(&TCP),
        "sctp" => draw.one_of(&SCTP),
        // Of one-packet scheduling they go another way (`COMPATIBILITY.md`).
        _ if draw.below(4) == 0 && !service.once && !service.wrapped => draw.one_of(&FRAGMENTS),
        _ => draw.one_of(&UDP),
    };
    let (host, port) = (draw.below(4), 1000 + draw.below(12));
    let client = match (host, place.is_ipv6()) {
        // The director itself.
        (0, false) => "192.168.1.1".to_owned(),
        (0, true) => "[fd00:1::1]".to_owned(),
        (_, false) => format!("198.51.100.{host}"),
        (_, true) => format!("[2001:db8::{host}]"),
    };
    format!("{} {client}:{port} > {} {events}", place.protocol, place.address)
}

fn edit(draw: &mut Draw, place: &Place, service: &mut Service) -> String {
    let key = place.key;
    if !service.there {
        service.there = true;
        return format!("ipvsadm -A {key} {}", settings(draw, place, service));
    }
    match draw.below(60) {
        0..=5 => format!("ipvsadm -E {key} {}", settings(draw, place, service)),
        6 => delete(place, service),
        7 => format!("check\nipvsadm -Z {key}"),
        8..=17 if service.destinations.len() > 1 => {
            let last = service.destinations.remove(draw.below(service.destinations.len()));
            service.deleted.push(last);
            format!("ipvsadm -d {key} -r {}", real(place, last))
        }
        18..=40 if !service.destinations.is_empty() => {
            let last = service.destinations[draw.below(service.destinations.len())];
            format!("ipvsadm -e {key} -r {}", destination(draw, place, service, last))
        }
        _ => {
            let drawn = 11 + draw.below(6);
            let last = (drawn..=42).step_by(6).find(|last| !service.spent.contains(last)).unwrap_or(drawn);
            if service.destinations.contains(&last) {
                return format!("ipvsadm -e {key} -r {}", destination(draw, place, service, last));
            }
            service.destinations.push(last);
            format!("ipvsadm -a {key} -r {}", destination(draw, place, service, last))
        }
    }
}

/// Deletes a service with its destinations, all of which may come back to the next one.
///
/// The kernel zeroes their counters then, as of its last look at them, which may have been two seconds before they were
/// deleted. Hence the check, which waits for a look; and what had been deleted before does not come back.
fn delete(place: &Place, service: &mut Service) -> String {
    service.spent.append(&mut service.deleted);
    service.destinations.clear();
    service.there = false;
    format!("check\nipvsadm -D {}", place.key)
}

/// What can be said of a service.
fn settings(draw: &mut Draw, place: &Place, service: &mut Service) -> String {
    let scheduler = draw.one_of(&SCHEDULERS);
    let persistence = match (draw.below(8), place.is_ipv6()) {
        (0, _) => " -p 300",
        (1, false) => " -p 300 -M 255.255.255.254",
        (1, true) => " -p 300 -M 127",
        _ => "",
    };
    service.once = place.is_udp() && draw.below(6) == 0;
    format!("-s {scheduler}{persistence}{}", if service.once { " -o" } else { "" })
}

/// What is fixed of a destination by its address.
enum Kind {
    /// Gets packets at a port of its own.
    Translated,
    /// Gets packets by direct routing; the kernel loses connections of such a one that is edited to another method
    /// (`COMPATIBILITY.md`).
    Direct,
    /// Gets packets by NAT or a tunnel, at the port that they are sent to.
    Any,
    /// Has an address of the other family.
    Foreign,
}

impl Kind {
    fn of(last: usize) -> Self {
        match last % 6 {
            0 => Self::Translated,
            1 | 2 => Self::Direct,
            5 => Self::Foreign,
            _ => Self::Any,
        }
    }
}

/// A destination's address and port.
fn real(place: &Place, last: usize) -> String {
    let kind = Kind::of(last);
    let ipv6 = place.is_ipv6() != matches!(kind, Kind::Foreign);
    let address = if ipv6 { format!("[fd00:2::{last}]") } else { format!("10.0.0.{last}") };
    match kind {
        Kind::Translated => format!("{address}:{}", place.port),
        _ if place.is_marked() => format!("{address}:0"),
        _ => format!("{address}:{}", place.own_port()),
    }
}

/// A destination with all that can be said of it.
fn destination(draw: &mut Draw, place: &Place, service: &mut Service, last: usize) -> String {
    let method = match Kind::of(last) {
        Kind::Translated => "-m",
        Kind::Direct => "-g",
        Kind::Any if draw.below(2) == 0 => "-m",
        _ => draw.one_of(&TUNNELS),
    };
    service.wrapped |= method.contains("--tun-type") || matches!(Kind::of(last), Kind::Foreign);
    let upper = if draw.below(6) == 0 { format!(" -x {}", 3 + draw.below(20)) } else { String::new() };
    let lower = if !upper.is_empty() && draw.below(2) == 0 { " -y 2" } else { "" };
    format!("{} {method} -w {}{upper}{lower}", real(place, last), draw.below(6))
}
