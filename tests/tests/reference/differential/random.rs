//! Scenarios drawn at random: edits of services and destinations between packets of a few dozen clients, which know no
//! manners. The same seed draws the same scenario.
//!
//! What is drawn is the text of a scenario, so that one that fails can be kept as a file.

use std::fmt::Write as _;

/// The services, with the port of their destinations: answers of two services must not look alike.
const SERVICES: [(&str, &str, u16); 4] = [
    ("-t", "192.168.1.100:80", 8001),
    ("-t", "192.168.1.101:80", 8002),
    ("-u", "192.168.1.100:53", 8003),
    ("-t", "192.168.1.102:443", 8004),
];

/// Schedulers that choose by the table and the connections alone.
const SCHEDULERS: [&str; 5] = ["rr", "wrr", "lc", "wlc", "sh"];

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
}

/// The text of a scenario of so many steps.
///
/// No service is deleted: when a destination comes back to a new one the kernel zeroes its counters as of its last look at
/// them, which may have been two seconds before it was deleted.
pub fn scenario(seed: u64, steps: usize) -> String {
    let mut draw = Draw(seed);
    let mut services: [Service; SERVICES.len()] = Default::default();
    // While a service of the family is there kernel IPVS sees packets, of connections without a service too.
    let mut text = "ignore icmp\nipvsadm -A -t 192.168.1.103:1 -s rr\n".to_owned();
    for _ in 0..steps {
        let number = draw.below(SERVICES.len());
        let service = &mut services[number];
        let line = if draw.below(5) > 0 && !service.destinations.is_empty() {
            packets(&mut draw, number)
        } else {
            edit(&mut draw, number, service)
        };
        let _ = writeln!(text, "{line}");
    }
    text
}

fn packets(draw: &mut Draw, number: usize) -> String {
    let (kind, address, _) = SERVICES[number];
    let (protocol, events) =
        if kind == "-u" { ("udp", draw.one_of(&UDP)) } else { ("tcp", draw.one_of(&TCP)) };
    let (host, port) = (1 + draw.below(3), 1000 + draw.below(12));
    format!("{protocol} 198.51.100.{host}:{port} > {address} {events}")
}

fn edit(draw: &mut Draw, number: usize, service: &mut Service) -> String {
    let (kind, address, port) = SERVICES[number];
    if !service.there {
        service.there = true;
        return format!("ipvsadm -A {kind} {address} -s {}", draw.one_of(&SCHEDULERS));
    }
    match draw.below(30) {
        0..=2 => format!("ipvsadm -E {kind} {address} -s {}", draw.one_of(&SCHEDULERS)),
        3..=8 if service.destinations.len() > 1 => {
            let last = service.destinations.remove(draw.below(service.destinations.len()));
            format!("ipvsadm -d {kind} {address} -r {}", real(last, port))
        }
        9..=20 if !service.destinations.is_empty() => {
            let last = service.destinations[draw.below(service.destinations.len())];
            format!("ipvsadm -e {kind} {address} -r {}", destination(draw, last, port))
        }
        _ => {
            let last = 11 + draw.below(6);
            if service.destinations.contains(&last) {
                return format!("ipvsadm -e {kind} {address} -r {}", destination(draw, last, port));
            }
            service.destinations.push(last);
            format!("ipvsadm -a {kind} {address} -r {}", destination(draw, last, port))
        }
    }
}

/// A destination's address and port: of those that NAT leads to (the even ones) another than the service's.
fn real(last: usize, port: u16) -> String {
    if last.is_multiple_of(2) { format!("10.0.0.{last}:{port}") } else { format!("10.0.0.{last}") }
}

/// A destination with all that can be said of it.
fn destination(draw: &mut Draw, last: usize, port: u16) -> String {
    let method = if last.is_multiple_of(2) { "-m" } else { "-g" };
    let upper = if draw.below(6) == 0 { format!(" -x {}", 3 + draw.below(20)) } else { String::new() };
    format!("{} {method} -w {}{upper}", real(last, port), draw.below(6))
}
