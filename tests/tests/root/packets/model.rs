//! The whole packet path on the host: the rules of `lb-common` around maps of the standard library.
//!
//! Knows nothing of sets, tags, locks, sequence numbers, caches or tail calls, so that whatever those get wrong
//! shows as a difference. Written from what IPVS does, in the order of a packet's way.

use std::collections::{BTreeMap, HashMap};
use std::net::{Ipv4Addr, SocketAddrV4};

use lb_common::connection::{self as rules, INACTIVE, NO_OUTPUT};
use lb_common::forward::{End, take_hop, translate_network, translate_tcp, translate_udp, translation};
use lb_common::fragment::{self, Datagram, Fragment, Ports, REMEMBERED};
use lb_common::packet::{self, Family, Packet};
use lb_common::reason::{Fate, Reason};
use lb_common::scheduler::fo::WeightedFailOver;
use lb_common::scheduler::lblcr::Members;
use lb_common::scheduler::lc::LeastConnections;
use lb_common::scheduler::nq::NeverQueue;
use lb_common::scheduler::ovf::WeightedOverflow;
use lb_common::scheduler::rr::RoundRobin;
use lb_common::scheduler::sed::ShortestExpectedDelay;
use lb_common::scheduler::wlc::WeightedLeastConnections;
use lb_common::scheduler::wrr::{Ladder, WeightedRoundRobin};
use lb_common::scheduler::{Candidate, Cursor, Scheduler, address, dh, lblc, mh, run, sh};
use lb_common::settings::{ADDRESS_SLOTS, Settings};
use lb_common::sysctl::Sysctl;
use lb_common::tuple::Tuple;

use super::fixture::{Action, Counted, Outcome};
use super::frame::Mac;

const TCP: u8 = 6;
const SYN: u8 = 0x02;
const RST: u8 = 0x04;

/// A way to an address.
#[derive(Clone, Copy)]
pub struct Hop {
    /// The interface, and the link header's addresses.
    pub interface: u32,
    pub link: [Mac; 2],
    pub vlan: Option<u16>,
    pub mtu: u16,
}

/// Why there is none.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum NoHop {
    Neighbour,
    Local,
    Refused(Reason),
}

pub struct Destination {
    pub key: SocketAddrV4,
    pub nat: bool,
    pub weight: u32,
    /// The last weight that was not 0.
    pub last_weight: u32,
    pub available: bool,
    pub active: u32,
    pub total: u32,
    pub counted: Counted,
}

impl Destination {
    fn candidate(&self) -> Candidate {
        Candidate { weight: self.weight, active: self.active, total: self.total, overloaded: false }
    }
}

pub struct Service {
    pub scheduler: Scheduler,
    /// Numbers of destinations, newest first.
    pub list: Vec<usize>,
    pub cursor: Cursor,
    /// What lblc and lblcr have for the service's address: numbers of destinations, newest first.
    pub cached: Vec<usize>,
    /// The tick of the last change of that.
    pub changed: u32,
}

/// What the state machine knows of a connection, and where it goes.
#[derive(Debug, Clone, Copy)]
struct Connection {
    destination: usize,
    nat: bool,
    real: SocketAddrV4,
    state: u8,
    flags: u8,
    deadline: u32,
}

pub struct Model {
    /// By protocol and virtual address.
    pub services: BTreeMap<(u8, SocketAddrV4), Service>,
    pub destinations: Vec<Destination>,
    /// By the client's flow.
    connections: HashMap<Tuple, Connection>,
    /// The client's flow by the answers' flow.
    answers: HashMap<Tuple, Tuple>,
    /// What first fragments left to later ones.
    fragments: HashMap<Datagram, Ports>,
    pub settings: Settings,
    filter: Vec<u8>,
    pub now: u32,
    route: fn(Ipv4Addr) -> Result<Hop, NoHop>,
}

fn source(tuple: &Tuple) -> SocketAddrV4 {
    SocketAddrV4::new(tuple.source(), tuple.source_port())
}

fn destination(tuple: &Tuple) -> SocketAddrV4 {
    SocketAddrV4::new(tuple.destination(), tuple.destination_port())
}

fn flow(protocol: u8, source: SocketAddrV4, destination: SocketAddrV4) -> Tuple {
    Tuple::new(protocol, (*source.ip(), source.port()), (*destination.ip(), destination.port()))
}

impl Connection {
    /// The flow of the answers, if they are translated.
    fn answer(&self, client_side: &Tuple) -> Tuple {
        flow(client_side.protocol, self.real, source(client_side))
    }
}

impl Model {
    pub fn new(settings: Settings, route: fn(Ipv4Addr) -> Result<Hop, NoHop>) -> Self {
        Self {
            services: BTreeMap::new(),
            destinations: Vec::new(),
            connections: HashMap::new(),
            answers: HashMap::new(),
            fragments: HashMap::new(),
            settings,
            filter: vec![0; ADDRESS_SLOTS],
            now: 0,
            route,
        }
    }

    pub fn add_service(&mut self, key: (u8, SocketAddrV4), scheduler: Scheduler) {
        self.concern(*key.1.ip());
        self.services.insert(
            key,
            Service { scheduler, list: Vec::new(), cursor: Cursor::START, cached: Vec::new(), changed: 0 },
        );
    }

    /// Puts a destination at the head of a service's list: a new one, or one that was taken off it.
    pub fn add_destination(&mut self, service: (u8, SocketAddrV4), number: usize) {
        self.concern(*self.destinations[number].key.ip());
        self.destinations[number].available = true;
        self.destinations[number].last_weight = self.destinations[number].weight;
        self.change(service, |service| {
            service.list.insert(0, number);
            service.cursor = service.cursor.after_insertion();
        });
    }

    pub fn delete_destination(&mut self, service: (u8, SocketAddrV4), number: usize) {
        self.destinations[number].available = false;
        self.change(service, |service| {
            let position = service.list.iter().position(|other| *other == number).unwrap();
            service.list.remove(position);
            service.cursor = service.cursor.after_removal(position as u32);
        });
    }

    pub fn edit_weight(&mut self, service: (u8, SocketAddrV4), number: usize, weight: u32) {
        self.destinations[number].weight = weight;
        if weight != 0 {
            self.destinations[number].last_weight = weight;
        }
        self.change(service, |_| {});
    }

    /// Changes a service; weighted round robin begins anew then, and any scheduler that has no destinations left.
    fn change(&mut self, key: (u8, SocketAddrV4), change: impl FnOnce(&mut Service)) {
        let service = self.services.get_mut(&key).unwrap();
        let before = service.cursor;
        change(service);
        if service.list.is_empty() {
            service.cursor = Cursor::START;
        } else if service.scheduler == Scheduler::WeightedRoundRobin {
            let ladder = Ladder::new(service.list.iter().map(|number| self.destinations[*number].weight));
            service.cursor = ladder.relevel(before);
        }
    }

    fn concern(&mut self, address: Ipv4Addr) {
        self.filter[Settings::address_slot(u32::from_ne_bytes(address.octets()))] = 1;
    }

    /// The filter lets some strangers through, which other counters show.
    fn concerns(&self, address: u32) -> bool {
        self.filter[Settings::address_slot(address)] != 0
    }

    /// What becomes of a frame.
    pub fn handle(&mut self, interface: u32, frame: &[u8]) -> Outcome {
        let mut bytes = frame.to_vec();
        match self.balance(&mut bytes) {
            Ok(out) => {
                let action = if out == interface { Action::Transmit } else { Action::Redirect };
                Outcome { action, reason: None, bytes }
            }
            Err(reason) => {
                let action = if reason.fate() == Fate::Drop { Action::Drop } else { Action::Pass };
                Outcome { action, reason: Some(reason), bytes }
            }
        }
    }

    fn balance(&mut self, frame: &mut Vec<u8>) -> Result<u32, Reason> {
        let (bytes, seed) = (frame.as_slice(), self.settings.seed);
        let (whole, part) = match packet::network(bytes)? {
            (Family::V4, at) => (packet::read_ipv4(bytes, at), fragment::read_ipv4(bytes, at)),
            (Family::V6, at) => (packet::read_ipv6(bytes, at, seed), fragment::read_ipv6(bytes, at, seed)),
        };
        let mut packet = match whole {
            Err(Reason::Fragment) => part?.packet,
            other => other?,
        };
        let tuple = packet.tuple;
        if !self.concerns(tuple.raw_source()) && !self.concerns(tuple.raw_destination()) {
            return Err(Reason::NotOurs);
        }
        if whole == Err(Reason::Fragment) {
            packet.tuple.ports = self.ports(&part?)?;
        }
        let tuple = packet.tuple;
        // The flow as the client sees it, whichever side sent the packet.
        let client_side = match self.answers.get(&tuple) {
            Some(client_side) => Some(*client_side),
            None => self.connections.contains_key(&tuple).then_some(tuple),
        };
        let Some(client_side) = client_side.filter(|flow| !self.bury(flow)) else {
            return self.unknown(frame, &packet);
        };
        let out = client_side != tuple;
        let connection = self.connections[&client_side];
        let opening = tuple.protocol == TCP && packet.tcp_flags & SYN != 0;
        if !out
            && opening
            && rules::gives_way(
                connection.state,
                connection.flags,
                self.settings.sysctls[Sysctl::ConnReuseMode as usize],
            )
        {
            let gone = self.take(&client_side);
            let outcome = self.unknown(frame, &packet);
            // As in IPVS it counts until its successor is scheduled.
            self.leave(gone);
            return outcome;
        }
        let available = self.destinations[connection.destination].available;
        if !out && !available {
            return Err(Reason::DestinationDeleted);
        }
        if available {
            self.count(connection.destination, &packet, out);
        }
        self.advance(&client_side, &packet, out);
        self.forward(frame, &packet, &client_side, &connection, out)
    }

    /// The ports of a fragment's datagram.
    fn ports(&mut self, fragment: &Fragment) -> Result<u32, Reason> {
        if fragment.packet.is_later_fragment() {
            let known = self.fragments.get(&fragment.datagram).ok_or(Reason::Fragment)?;
            return if rules::is_past(known.until, self.now) {
                Err(Reason::Fragment)
            } else {
                Ok(known.ports)
            };
        }
        let until = self.now.wrapping_add(REMEMBERED * self.settings.ticks_per_second);
        let ports = fragment.packet.tuple.ports;
        self.fragments.insert(fragment.datagram, Ports { ports, until });
        Ok(ports)
    }

    fn unknown(&mut self, frame: &mut Vec<u8>, packet: &Packet) -> Result<u32, Reason> {
        let tuple = packet.tuple;
        let may_answer = self.concerns(tuple.raw_source());
        if may_answer && self.answers(packet) {
            return Err(Reason::DirectReply);
        }
        if self.services.contains_key(&(tuple.protocol, destination(&tuple))) {
            if packet.is_later_fragment() {
                return Err(Reason::FragmentRefused);
            }
            return self.open(frame, packet);
        }
        Err(if may_answer { Reason::NoReplyConnection } else { Reason::NoService })
    }

    /// Whether a packet is an answer of direct routing, which is counted then.
    fn answers(&mut self, packet: &Packet) -> bool {
        let client_side = packet.tuple.reversed();
        let Some(connection) = self.connections.get(&client_side).copied() else {
            return false;
        };
        if connection.nat || rules::is_past(connection.deadline, self.now) {
            return false;
        }
        if self.destinations[connection.destination].available {
            self.count(connection.destination, packet, true);
        }
        self.advance(&client_side, packet, true);
        true
    }

    fn open(&mut self, frame: &mut Vec<u8>, packet: &Packet) -> Result<u32, Reason> {
        let tuple = packet.tuple;
        if tuple.protocol == TCP && packet.tcp_flags & (SYN | RST) != SYN {
            return Err(Reason::NoConnection);
        }
        if tuple.source_port() == 20 {
            return Err(Reason::SourcePort20);
        }
        let number = self.schedule(&tuple).ok_or(Reason::NoDestination)?;
        let chosen = &mut self.destinations[number];
        let flags = if chosen.nat { INACTIVE } else { INACTIVE | NO_OUTPUT };
        let begin = rules::advance(tuple.protocol, 0, flags, packet.tcp_flags, false, false);
        let port = if chosen.key.port() == 0 { tuple.destination_port() } else { chosen.key.port() };
        let connection = Connection {
            destination: number,
            nat: chosen.nat,
            real: SocketAddrV4::new(*chosen.key.ip(), port),
            state: begin.state,
            flags: begin.flags,
            deadline: self.now.wrapping_add(self.settings.timeouts[usize::from(begin.state)]),
        };
        chosen.total += 1;
        chosen.active += u32::from(begin.flags & INACTIVE == 0);
        chosen.counted.connections += 1;
        self.connections.insert(tuple, connection);
        if connection.nat {
            // Two connections whose answers look alike: the newest wins.
            self.answers.insert(connection.answer(&tuple), tuple);
        }
        self.count(number, packet, false);
        self.forward(frame, packet, &tuple, &connection, false)
    }

    fn schedule(&mut self, tuple: &Tuple) -> Option<usize> {
        let service = self.services.get_mut(&(tuple.protocol, destination(tuple)))?;
        let candidates: Vec<Candidate> =
            service.list.iter().map(|number| self.destinations[*number].candidate()).collect();
        if candidates.is_empty() {
            return None;
        }
        let weights: Vec<u32> = candidates.iter().map(|candidate| candidate.weight).collect();
        let cursor = service.cursor;
        let usable = |position: u32| candidates[position as usize].usable();
        let (position, cursor) = match service.scheduler {
            Scheduler::RoundRobin => run(RoundRobin::new(cursor), &candidates),
            Scheduler::WeightedRoundRobin => {
                run(WeightedRoundRobin::new(cursor, Ladder::new(weights)), &candidates)
            }
            Scheduler::LeastConnections => (run(LeastConnections::new(), &candidates).0, cursor),
            Scheduler::WeightedLeastConnections => {
                (run(WeightedLeastConnections::new(), &candidates).0, cursor)
            }
            Scheduler::ShortestExpectedDelay => (run(ShortestExpectedDelay::new(), &candidates).0, cursor),
            Scheduler::NeverQueue => (run(NeverQueue::new(), &candidates).0, cursor),
            Scheduler::WeightedFailOver => (run(WeightedFailOver::new(), &candidates).0, cursor),
            Scheduler::WeightedOverflow => (run(WeightedOverflow::new(), &candidates).0, cursor),
            Scheduler::LocalityLeastConnections => {
                let position = |number: &usize| service.list.iter().position(|other| other == number);
                let own = service.cached.first().and_then(position).map(|position| position as u32);
                let own = own.filter(|position| lblc::serves(&candidates[*position as usize]));
                let choice = lblc::choose(own, &candidates);
                service.cached.splice(.., choice.map(|position| service.list[position as usize]));
                (choice, cursor)
            }
            Scheduler::LocalityLeastConnectionsReplicated => {
                let mut members = Members::new();
                for (rank, number) in (0..).zip(&service.cached) {
                    let destination = &self.destinations[*number];
                    members.consider(rank, &destination.candidate(), !destination.available);
                }
                let own = members.least().map(|(rank, _)| service.cached[rank as usize]);
                let own = own.and_then(|own| service.list.iter().position(|number| *number == own));
                let expiration = self.settings.sysctls[Sysctl::LblcrExpiration as usize];
                let expiration = expiration * self.settings.ticks_per_second;
                let rests = self.now.wrapping_sub(service.changed) > expiration;
                if let Some(rank) = members.most().filter(|_| rests && service.cached.len() > 1) {
                    service.cached.remove(rank as usize);
                    service.changed = self.now;
                }
                let choice = lblc::choose(own.map(|position| position as u32), &candidates);
                let chosen = choice.map(|position| service.list[position as usize]);
                if let Some(chosen) = chosen.filter(|chosen| !service.cached.contains(chosen)) {
                    service.cached.insert(0, chosen);
                    service.changed = self.now;
                }
                (choice, cursor)
            }
            Scheduler::SourceHash => {
                let mut table = [0; sh::BUCKETS];
                sh::fill(&weights, &mut table);
                let bucket = sh::bucket(address::key_v4(tuple.source().octets()), 0);
                (sh::pick(&table, bucket, false, usable), cursor)
            }
            Scheduler::DestinationHash => {
                let mut table = [0; dh::BUCKETS];
                dh::fill(candidates.len() as u32, &mut table);
                let bucket = dh::bucket(address::key_v4(tuple.destination().octets()));
                (Some(table[bucket as usize]).filter(|position| usable(*position)), cursor)
            }
            Scheduler::Maglev => {
                let list = || service.list.iter().map(|number| &self.destinations[*number]);
                let turns = mh::Turns::new(list().map(|it| it.last_weight), mh::DEFAULT_SIZE);
                let order = |it: &Destination| {
                    let key = address::key_v4(it.key.ip().octets());
                    mh::Permutation::new(key, it.key.port(), turns.of(it.last_weight), mh::DEFAULT_SIZE)
                };
                let mut table = vec![0; mh::DEFAULT_SIZE as usize];
                mh::populate(&mut list().map(order).collect::<Vec<_>>(), &mut table).unwrap();
                let key = address::key_v4(tuple.source().octets());
                (mh::pick(&table, key, 0, false, usable), cursor)
            }
            other => panic!("{other}"),
        };
        service.cursor = cursor;
        position.map(|position| service.list[position as usize])
    }

    fn forward(
        &self,
        frame: &mut Vec<u8>,
        packet: &Packet,
        client_side: &Tuple,
        connection: &Connection,
        out: bool,
    ) -> Result<u32, Reason> {
        if packet.time_to_live <= 1 {
            return Err(if out { Reason::ReplyByStack } else { Reason::TimeExceeded });
        }
        let towards = if out { client_side.source() } else { *connection.real.ip() };
        let hop = match ((self.route)(towards), connection.nat) {
            (Ok(hop), _) => hop,
            (Err(NoHop::Refused(_)), _) if out => return Err(Reason::ReplyByStack),
            (Err(NoHop::Refused(reason)), _) => return Err(reason),
            (Err(NoHop::Neighbour), false) => return Err(Reason::NeighbourUnresolved),
            (Err(NoHop::Neighbour), true) => {
                translate(frame, packet, client_side, connection, out);
                return Err(Reason::NeighbourByStack);
            }
            (Err(NoHop::Local), nat) => {
                if nat {
                    translate(frame, packet, client_side, connection, out);
                }
                return Err(Reason::LocalDestination);
            }
        };
        if packet.length > hop.mtu {
            let header: &mut [u8; 20] = frame[packet.network.into()..].first_chunk_mut().unwrap();
            return Err(match (header[6] & 0x40 != 0, out, connection.nat) {
                (true, true, _) => Reason::ReplyByStack,
                (true, false, _) => {
                    take_hop(header);
                    Reason::TooBig
                }
                (false, _, false) => Reason::NotFragmented,
                (false, _, true) => {
                    translate(frame, packet, client_side, connection, out);
                    Reason::FragmentedByStack
                }
            });
        }
        if connection.nat {
            translate(frame, packet, client_side, connection, out);
        }
        take_hop(frame[packet.network.into()..].first_chunk_mut().unwrap());
        let mut header = hop.link.concat();
        if let Some(vlan) = hop.vlan {
            header.extend_from_slice(&[0x81, 0x00]);
            header.extend_from_slice(&vlan.to_be_bytes());
        }
        header.extend_from_slice(&[0x08, 0x00]);
        frame.splice(..usize::from(packet.network), header);
        Ok(hop.interface)
    }

    fn count(&mut self, number: usize, packet: &Packet, out: bool) {
        let counted = &mut self.destinations[number].counted;
        let (packets, bytes) = match out {
            true => (&mut counted.out_packets, &mut counted.out_bytes),
            false => (&mut counted.in_packets, &mut counted.in_bytes),
        };
        *packets += i64::from(!packet.is_later_fragment());
        *bytes += i64::from(packet.counted);
    }

    fn advance(&mut self, client_side: &Tuple, packet: &Packet, out: bool) {
        if packet.is_later_fragment() {
            return;
        }
        let tcp_flags = packet.tcp_flags;
        let Some(connection) = self.connections.get_mut(client_side) else { return };
        let next =
            rules::advance(client_side.protocol, connection.state, connection.flags, tcp_flags, out, false);
        let timeout = self.settings.timeouts[usize::from(next.state)];
        (connection.state, connection.flags) = (next.state, next.flags);
        let ticks = self.settings.ticks_per_second;
        if rules::is_stale(connection.deadline, self.now, timeout, ticks) {
            connection.deadline = self.now.wrapping_add(timeout);
        }
        let load = &mut self.destinations[connection.destination].active;
        *load = load.wrapping_add_signed(next.active_change);
    }

    /// Removes a connection if its time is over; whether it was.
    fn bury(&mut self, client_side: &Tuple) -> bool {
        let dead = rules::is_past(self.connections[client_side].deadline, self.now);
        if dead {
            self.remove(client_side);
        }
        dead
    }

    fn remove(&mut self, client_side: &Tuple) {
        let gone = self.take(client_side);
        self.leave(gone);
    }

    /// Takes a connection out of the table.
    fn take(&mut self, client_side: &Tuple) -> Option<Connection> {
        let connection = self.connections.remove(client_side)?;
        let answer = connection.answer(client_side);
        if self.answers.get(&answer) == Some(client_side) {
            self.answers.remove(&answer);
        }
        Some(connection)
    }

    /// Takes a connection that was taken off its destination's counts.
    fn leave(&mut self, gone: Option<Connection>) {
        if let Some(connection) = gone {
            let load = &mut self.destinations[connection.destination];
            load.total -= 1;
            load.active -= u32::from(connection.flags & INACTIVE == 0);
        }
    }

    /// Removes every connection whose time is over.
    pub fn sweep(&mut self) {
        let flows: Vec<Tuple> = self.connections.keys().copied().collect();
        for flow in flows {
            self.bury(&flow);
        }
    }

    /// Protocol, client, virtual address, destination and state of every connection.
    pub fn connections(&self) -> Vec<(u8, SocketAddrV4, SocketAddrV4, SocketAddrV4, u8)> {
        let line = |(flow, connection): (&Tuple, &Connection)| {
            (flow.protocol, source(flow), destination(flow), connection.real, connection.state)
        };
        let mut all: Vec<_> = self.connections.iter().map(line).collect();
        all.sort();
        all
    }

    /// What the destinations have counted.
    pub fn counted(&self) -> BTreeMap<SocketAddrV4, Counted> {
        let mut all: BTreeMap<_, Counted> = BTreeMap::new();
        for destination in self.destinations.iter().filter(|destination| destination.available) {
            let inactive = destination.total - destination.active;
            let sum = all.entry(destination.key).or_default();
            *sum = *sum + destination.counted.and_now(destination.active.into(), inactive.into());
        }
        all
    }
}

/// Replaces what NAT replaces.
fn translate(frame: &mut [u8], packet: &Packet, client_side: &Tuple, connection: &Connection, out: bool) {
    let (end, from, to) = match out {
        true => (End::Source, connection.real, destination(client_side)),
        false => (End::Destination, destination(client_side), connection.real),
    };
    let raw = |end: SocketAddrV4| (end.ip().octets(), end.port().to_be_bytes());
    let (network, transport) = translation(raw(from), raw(to));
    let (address, port) = raw(to);
    translate_network(frame[packet.network.into()..].first_chunk_mut().unwrap(), end, address, network);
    if packet.is_later_fragment() {
        return;
    }
    let header = &mut frame[packet.transport.into()..];
    if client_side.protocol == TCP {
        translate_tcp(header.first_chunk_mut().unwrap(), end, port, transport);
    } else {
        translate_udp(header.first_chunk_mut().unwrap(), end, port, transport);
    }
}
