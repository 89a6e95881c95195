//! Agreement: the loaded program and the model of it on the host do the same with random frames.
//!
//! Same action, same bytes, same reason for each; the same counters and connections in the end. Between frames the
//! table is changed and time passes. `XIPVS_SEED` repeats a run or makes another.

use std::net::{Ipv4Addr, SocketAddrV4};

use lb_common::reason::Reason;
use lb_common::scheduler::Scheduler;
use lb_common::settings::Settings;
use xipvs::director::xdp::maps::TableEntry;

use super::fixture::{
    CLIENTS, Counted, Fixture, SERVERS, TO_CLIENT, TO_GATEWAY, TO_VLAN, VIP, server, to_server,
};
use super::frame::{ACK, FIN, Frame, PSH, RST, SYN};
use super::model::{Destination, Hop, Model, NoHop};

const FRAMES: u32 = 40_000;
const SEED: u64 = 0x7869_7076_7321;

/// Seconds after which connections die, by the parity of their state; far longer than a run takes.
const TIMEOUTS: [u32; 2] = [5_000, 15_000];
/// Seconds that pass at once.
const PAUSE: u32 = 10_000;

/// Services: protocol, port, scheduler; destinations: address, port, method, weight.
type Row = (u8, u16, &'static str, Destinations);
type Destinations = &'static [(&'static str, u16, &'static str, u32)];

/// What the services of schedulers that look at weights alone have.
const SERVERS_WITH_WEIGHTS: Destinations =
    &[("10.0.0.13", 90, "-m", 2), ("10.0.0.14", 90, "-m", 3), ("10.0.0.16", 90, "-m", 1)];

/// The first two have a destination in common, so that answers of two connections may look alike.
const TABLE: [Row; 14] = [
    (6, 80, "wrr", &[("10.0.0.11", 8080, "-m", 3), ("10.0.0.12", 8080, "-m", 1), ("10.0.0.13", 80, "-g", 2)]),
    (6, 81, "wlc", &[("10.0.0.11", 8080, "-m", 2), ("10.0.0.14", 81, "-g", 1), ("10.0.0.99", 81, "-m", 1)]),
    (6, 82, "sh", &[("10.0.0.11", 82, "-g", 2), ("10.7.0.11", 82, "-m", 3), ("10.0.0.99", 82, "-g", 1)]),
    (6, 83, "lc", &[("10.0.0.18", 83, "-m", 1), ("10.66.0.1", 83, "-m", 1), ("10.0.0.1", 83, "-m", 1)]),
    (17, 53, "rr", &[("10.0.0.11", 5353, "-m", 1), ("10.0.0.12", 53, "-g", 1), ("10.7.0.11", 53, "-g", 1)]),
    (6, 84, "rr", &[]),
    (6, 85, "sed", SERVERS_WITH_WEIGHTS),
    (17, 86, "nq", SERVERS_WITH_WEIGHTS),
    (6, 87, "fo", SERVERS_WITH_WEIGHTS),
    (6, 88, "ovf", SERVERS_WITH_WEIGHTS),
    (6, 89, "dh", SERVERS_WITH_WEIGHTS),
    (6, 90, "mh", SERVERS_WITH_WEIGHTS),
    (6, 91, "lblc", SERVERS_WITH_WEIGHTS),
    (6, 92, "lblcr", SERVERS_WITH_WEIGHTS),
];

/// SplitMix64.
pub struct Random(pub u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut word = self.0;
        word = (word ^ word >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        word = (word ^ word >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        word ^ word >> 31
    }

    pub fn below(&mut self, end: usize) -> usize {
        (self.next() % end as u64) as usize
    }

    fn one_of<T: Copy>(&mut self, of: &[T]) -> T {
        of[self.below(of.len())]
    }

    pub fn percent(&mut self, share: usize) -> bool {
        self.below(100) < share
    }

    fn bytes(&mut self, length: usize) -> Vec<u8> {
        (0..length).map(|_| self.next() as u8).collect()
    }
}

/// The fixture's routes and neighbours.
fn route(address: Ipv4Addr) -> Result<Hop, NoHop> {
    let hop = |interface, link| Ok(Hop { interface, link, vlan: None, mtu: 1500 });
    match address.octets() {
        [192, 168, 1, 1 | 100] | [10, 0, 0, 1] | [10, 7, 0, 1] | [127, ..] => Err(NoHop::Local),
        [192, 168, 1, 10] => hop(CLIENTS, TO_CLIENT),
        [192, 168, 1, 254] => hop(CLIENTS, TO_GATEWAY),
        [10, 0, 0, 18] => hop(SERVERS, to_server(8)).map(|hop: Hop| Hop { mtu: 600, ..hop }),
        [10, 0, 0, last @ 11..=18] => hop(SERVERS, to_server(last - 10)),
        [10, 7, 0, 11] => hop(SERVERS, TO_VLAN).map(|hop: Hop| Hop { vlan: Some(7), ..hop }),
        [192, 168, 1, _] | [10, 0, 0, _] | [10, 7, 0, _] => Err(NoHop::Neighbour),
        [10, 66, ..] => Err(NoHop::Refused(Reason::NoRoute)),
        _ => hop(CLIENTS, TO_GATEWAY),
    }
}

/// The program and its model, side by side.
struct Pair {
    fixture: Fixture,
    model: Model,
    random: Random,
    /// By the model's numbers: index into [`TABLE`] and into its destinations.
    places: Vec<(usize, usize)>,
}

fn option(protocol: u8) -> &'static str {
    if protocol == 6 { "-t" } else { "-u" }
}

fn key(row: &Row) -> (u8, SocketAddrV4) {
    (row.0, SocketAddrV4::new(*VIP.ip(), row.1))
}

impl Pair {
    fn new(seed: u64) -> Self {
        let fixture = Fixture::new();
        let mut settings = fixture.settings();
        for (state, timeout) in settings.timeouts.iter_mut().enumerate() {
            *timeout = TIMEOUTS[state % 2] * settings.ticks_per_second;
            let offset = std::mem::offset_of!(Settings, timeouts) + 4 * state;
            fixture.director.maps().settings.store_u32(0, offset, *timeout);
        }
        let model = Model::new(settings, route);
        let mut pair = Self { fixture, model, random: Random(seed), places: Vec::new() };
        for (index, row) in TABLE.iter().enumerate() {
            let (protocol, address) = key(row);
            pair.fixture.ipvsadm(&format!("-A {} {address} -s {}", option(protocol), row.2));
            let scheduler = Scheduler::NAMES.into_iter().find(|(_, name)| *name == row.2).unwrap().0;
            pair.model.add_service((protocol, address), scheduler);
            for (position, (address, port, method, weight)) in row.3.iter().enumerate() {
                let number = pair.places.len();
                pair.places.push((index, position));
                pair.model.destinations.push(Destination {
                    key: SocketAddrV4::new(address.parse().unwrap(), *port),
                    nat: *method == "-m",
                    weight: *weight,
                    last_weight: *weight,
                    available: false,
                    active: 0,
                    total: 0,
                    counted: Counted::NOTHING,
                });
                pair.command(number, "-a");
                pair.model.add_destination(key(row), number);
            }
        }
        pair
    }

    /// Carries out a command about a destination.
    fn command(&mut self, number: usize, command: &str) {
        let (row, position) = self.places[number];
        let (protocol, address) = key(&TABLE[row]);
        let destination = &self.model.destinations[number];
        let mut line = format!("{command} {} {address} -r {}", option(protocol), destination.key);
        if command != "-d" {
            line += &format!(" {} -w {}", TABLE[row].3[position].2, destination.weight);
        }
        self.fixture.ipvsadm(&line);
    }

    /// Changes the table.
    fn change(&mut self) {
        let number = self.random.below(self.places.len());
        let service = key(&TABLE[self.places[number].0]);
        if !self.model.destinations[number].available {
            self.command(number, "-a");
            self.model.add_destination(service, number);
        } else if self.random.percent(30) {
            self.command(number, "-d");
            self.model.delete_destination(service, number);
        } else {
            let weight = self.random.below(5) as u32;
            self.model.edit_weight(service, number, weight);
            self.command(number, "-e");
        }
    }

    fn pause(&mut self) {
        self.fixture.wait(u64::from(PAUSE) * 1000);
        self.model.now += PAUSE * self.model.settings.ticks_per_second;
        if self.random.percent(50) {
            self.fixture.sweep();
            self.model.sweep();
        }
    }

    /// A frame that somebody might send, and where it comes in.
    fn frame(&mut self) -> (u32, Vec<u8>) {
        let random = &mut self.random;
        if random.percent(3) {
            let length = 14 + random.below(150);
            return (CLIENTS, random.bytes(length));
        }
        let host = random.one_of(&[
            [192, 168, 1, 10],
            [192, 168, 1, 20],
            [203, 0, 113, 7],
            [198, 51, 100, 9],
            [10, 0, 0, 15],
        ]);
        let port = if random.percent(2) { 20 } else { 40000 + random.below(5) as u16 };
        let client = SocketAddrV4::new(host.into(), port);
        let row = &TABLE[random.below(TABLE.len())];
        let virtual_address = key(row).1;
        let out = random.percent(35) && !row.3.is_empty();
        let (source, destination) = if out {
            let (address, port, method, _) = random.one_of(row.3);
            let server = SocketAddrV4::new(address.parse().unwrap(), port);
            (if method == "-m" { server } else { virtual_address }, client)
        } else {
            (client, if random.percent(1) { server(1, 80) } else { virtual_address })
        };
        let mut frame = if row.0 == 17 {
            Frame::udp(source, destination)
        } else {
            let usual = [SYN, SYN, ACK, ACK, ACK, PSH | ACK, SYN | ACK, FIN | ACK, RST, RST | ACK, FIN, 0];
            let flags = random.one_of(&usual);
            Frame::tcp(source, destination, flags)
        };
        if row.0 == 17 && random.percent(30) {
            frame = frame.without_checksum();
        }
        let length = if random.percent(8) { 500 + random.below(980) } else { random.below(90) };
        frame = frame.payload(random.bytes(length));
        for _ in 0..random.one_of(&[0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 3]) {
            frame = frame.tagged(random.one_of(&[0x8100, 0x8100, 0x88a8]), random.next() as u16);
        }
        if random.percent(15) {
            frame = frame.options(vec![1; 4 * (1 + random.below(10))]);
        }
        if random.percent(6) {
            frame = frame.time_to_live(random.one_of(&[0, 1, 2, 255]));
        }
        let mut bytes = frame.bytes();
        if random.percent(8) {
            // A fragment: the first, one in the middle, the last.
            let at = 14 + 4 * frame.tags.len() + 6;
            bytes[at..at + 2].copy_from_slice(&random.one_of(&[[0x20, 0], [0x20, 9], [0, 9]]));
        }
        if random.percent(10) {
            for _ in 0..1 + random.below(3) {
                let at = random.below(bytes.len().min(64));
                bytes[at] = random.next() as u8;
            }
        }
        if random.percent(6) {
            bytes.truncate(14 + random.below(bytes.len() - 14));
        } else if random.percent(6) {
            bytes.extend_from_slice(&[0; 20]);
        }
        let interface = if random.percent(90) == out { SERVERS } else { CLIENTS };
        (interface, bytes)
    }

    fn compare_tables(&mut self, when: &str) {
        let (program, mut model) = (self.fixture.counted(), self.model.counted());
        for (destination, counted) in program {
            assert_eq!(Some(counted), model.remove(&destination), "{when}: {destination}");
        }
        assert!(model.is_empty(), "{when}: the program has no {model:?}");
        let mut connections: Vec<_> = self
            .fixture
            .client_sides()
            .map(|TableEntry { entry, .. }| {
                let tuple = entry.tuple();
                (
                    entry.protocol,
                    SocketAddrV4::new(tuple.source(), tuple.source_port()),
                    SocketAddrV4::new(tuple.destination(), tuple.destination_port()),
                    SocketAddrV4::new(entry.address.to_ne_bytes().into(), u16::from_be(entry.port)),
                    entry.state,
                )
            })
            .collect();
        connections.sort();
        assert_eq!(connections, self.model.connections(), "{when}");
    }
}

#[test]
fn host_and_program_agree_on_random_frames() {
    let seed = std::env::var("XIPVS_SEED").ok().map_or(SEED, |seed| seed.parse().unwrap());
    let mut pair = Pair::new(seed);
    let mut reasons = std::collections::BTreeMap::new();
    for number in 0..FRAMES {
        if pair.random.below(200) == 0 {
            pair.change();
        }
        if pair.random.below(2000) == 0 {
            pair.pause();
        }
        let (interface, bytes) = pair.frame();
        let program = pair.fixture.send(interface, &bytes);
        let model = pair.model.handle(interface, &bytes);
        assert_eq!(program, model, "XIPVS_SEED={seed}, frame {number} at {interface}: {bytes:02x?}");
        *reasons.entry(model.reason.map(Reason::name)).or_insert(0u32) += 1;
        if number % 5000 == 0 {
            pair.compare_tables(&format!("XIPVS_SEED={seed}, after frame {number}"));
        }
    }
    pair.compare_tables(&format!("XIPVS_SEED={seed}, in the end"));
    // The frames have been where they should: everywhere that this table and these routes lead to.
    let elsewhere = [
        Reason::TableFull,
        Reason::DropPacket,
        Reason::ForwardingDisabled,
        Reason::NestedVlan,
        Reason::SentByStack,
        Reason::NotRedirected,
        Reason::Internal,
        Reason::FragmentedByStack,
        Reason::ExtensionHeaders,
        Reason::LooksAlike,
        Reason::NotFragmented,
        Reason::Icmp,
        Reason::IcmpChecksum,
        Reason::TunnelError,
        Reason::ReplyRefused,
        Reason::OwnLeftAlone,
        Reason::NoCallId,
    ];
    for reason in Reason::ALL.iter().filter(|reason| !elsewhere.contains(reason)) {
        assert!(reasons.contains_key(&Some(reason.name())), "{} in {reasons:?}", reason.name());
    }
    assert!(reasons[&None] > FRAMES / 5, "{reasons:?}");
}
