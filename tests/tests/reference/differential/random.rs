//! Scenarios drawn at random: edits of services and destinations between packets of a few dozen clients, which know no
//! manners. The same seed draws the same scenario.
//!
//! What is drawn is the text of a scenario, so that one that fails can be kept as a file.

use std::fmt::Write as _;

/// A service that is drawn.
struct Place {
    kind: &'static str,
    address: &'static str,
    /// The port of its NAT destinations: answers of two services must not look alike.
    port: u16,
}

const PLACES: [Place; 7] = [
    Place { kind: "-t", address: "192.168.1.100:80", port: 8001 },
    Place { kind: "-t", address: "192.168.1.101:80", port: 8002 },
    Place { kind: "-u", address: "192.168.1.100:53", port: 8003 },
    Place { kind: "-t", address: "192.168.1.102:443", port: 8004 },
    Place { kind: "-t", address: "[fd00:1::100]:80", port: 8005 },
    Place { kind: "-t", address: "[fd00:1::101]:443", port: 8006 },
    Place { kind: "-u", address: "[fd00:1::100]:53", port: 8007 },
];

impl Place {
    fn is_ipv6(&self) -> bool {
        self.address.starts_with('[')
    }

    fn is_udp(&self) -> bool {
        self.kind == "-u"
    }
}

/// All that choose by the table and the connections alone, those with flags in each of their forms. (`twos` draws at
/// random, and Debian's kernel does not have it.)
const SCHEDULERS: [&str; 17] = [
    "rr",
    "wrr",
    "lc",
    "wlc",
    "sed",
    "nq",
    "fo",
    "ovf",
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
const TCP: [&str; 14] = [
    "S",
    "S",
    "S <SA A",
    "S <SA A PA:100 <A",
    "S <SA A FA <FA A",
    "S <SA A <FA FA <A",
    "S <SA A R",
    "A",
    "PA:1000",
    "<PA:1000 A",
    "FA",
    "<FA",
    "R",
    "<R",
];
const UDP: [&str; 4] = ["D", "D <D", "D:1000 <D:1", "<D"];

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
}

/// What comes first.
///
/// The kernel sends no ICMP errors: it counts that about a SYN without a destination as an answer, if an old connection has
/// just given way to the SYN (`COMPATIBILITY.md`). While a service of the family is there kernel IPVS sees packets, of
/// connections without a service too.
const PROLOGUE: &str = "\
ignore icmp
kernel: ip rule add ipproto icmp blackhole && ip -6 rule add ipproto ipv6-icmp blackhole
ipvsadm -A -t 192.168.1.103:1 -s rr
ipvsadm -A -t [fd00:1::103]:1 -s rr
";

/// Whether the scenario of a seed has what ends connections within seconds.
pub fn is_hasty(_seed: u64) -> bool {
    true
}

/// The text of a scenario of so many steps.
pub fn scenario(seed: u64, steps: usize) -> String {
    let mut draw = Draw(seed);
    let mut services: [Service; PLACES.len()] = Default::default();
    let mut text = PROLOGUE.to_owned();
    for _ in 0..steps {
        let number = draw.below(PLACES.len());
        let (place, service) = (&PLACES[number], &mut services[number]);
        let line = if draw.below(5) > 0 && !service.destinations.is_empty() {
            packets(&mut draw, place)
        } else {
            edit(&mut draw, place, service)
        };
        let _ = writeln!(text, "{line}");
    }
    text
}

fn packets(draw: &mut Draw, place: &Place) -> String {
    let (protocol, events) =
        if place.is_udp() { ("udp", draw.one_of(&UDP)) } else { ("tcp", draw.one_of(&TCP)) };
    let (host, port) = (1 + draw.below(3), 1000 + draw.below(12));
    let client = if place.is_ipv6() { format!("[2001:db8::{host}]") } else { format!("198.51.100.{host}") };
    format!("{protocol} {client}:{port} > {} {events}", place.address)
}

fn edit(draw: &mut Draw, place: &Place, service: &mut Service) -> String {
    let Place { kind, address, .. } = place;
    if !service.there {
        service.there = true;
        return format!("ipvsadm -A {kind} {address} {}", settings(draw, place));
    }
    match draw.below(60) {
        0..=5 => format!("ipvsadm -E {kind} {address} {}", settings(draw, place)),
        6 => delete(place, service),
        7 => format!("check\nipvsadm -Z {kind} {address}"),
        8..=17 if service.destinations.len() > 1 => {
            let last = service.destinations.remove(draw.below(service.destinations.len()));
            service.deleted.push(last);
            format!("ipvsadm -d {kind} {address} -r {}", real(place, last))
        }
        18..=40 if !service.destinations.is_empty() => {
            let last = service.destinations[draw.below(service.destinations.len())];
            format!("ipvsadm -e {kind} {address} -r {}", destination(draw, place, last))
        }
        _ => {
            let drawn = 11 + draw.below(6);
            let last = (drawn..=42).step_by(6).find(|last| !service.spent.contains(last)).unwrap_or(drawn);
            if service.destinations.contains(&last) {
                return format!("ipvsadm -e {kind} {address} -r {}", destination(draw, place, last));
            }
            service.destinations.push(last);
            format!("ipvsadm -a {kind} {address} -r {}", destination(draw, place, last))
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
    format!("check\nipvsadm -D {} {}", place.kind, place.address)
}

/// What can be said of a service.
fn settings(draw: &mut Draw, place: &Place) -> String {
    let scheduler = draw.one_of(&SCHEDULERS);
    let persistence = match (draw.below(8), place.is_ipv6()) {
        (0, _) => " -p 300",
        (1, false) => " -p 300 -M 255.255.255.254",
        (1, true) => " -p 300 -M 127",
        _ => "",
    };
    let once = if place.is_udp() && draw.below(6) == 0 { " -o" } else { "" };
    format!("-s {scheduler}{persistence}{once}")
}

/// How packets get to a destination.
fn method(place: &Place, last: usize) -> &'static str {
    match last % 4 {
        0 | 2 => "-m",
        3 if !place.is_ipv6() => "-i",
        _ => "-g",
    }
}

/// A destination's address and port: of those that NAT leads to another than the service's.
fn real(place: &Place, last: usize) -> String {
    let address = if place.is_ipv6() { format!("[fd00:2::{last}]") } else { format!("10.0.0.{last}") };
    let own_port = place.address.rsplit(':').next().unwrap_or_default();
    if method(place, last) == "-m" {
        format!("{address}:{}", place.port)
    } else {
        format!("{address}:{own_port}")
    }
}

/// A destination with all that can be said of it.
fn destination(draw: &mut Draw, place: &Place, last: usize) -> String {
    let upper = if draw.below(6) == 0 { format!(" -x {}", 3 + draw.below(20)) } else { String::new() };
    let lower = if !upper.is_empty() && draw.below(2) == 0 { " -y 2" } else { "" };
    format!("{} {} -w {}{upper}{lower}", real(place, last), method(place, last), draw.below(6))
}
