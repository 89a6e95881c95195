//! Sets so large that a tree of winners chooses: what it chooses is what a scan would.

use std::net::{IpAddr, Ipv4Addr};

use lb_common::destination::{AVAILABLE, DestinationId};
use lb_common::reason::Reason;
use lb_common::scheduler::fo::WeightedFailOver;
use lb_common::scheduler::lc::LeastConnections;
use lb_common::scheduler::nq::NeverQueue;
use lb_common::scheduler::ovf::WeightedOverflow;
use lb_common::scheduler::sed::ShortestExpectedDelay;
use lb_common::scheduler::tree::SCANNED;
use lb_common::scheduler::wlc::WeightedLeastConnections;
use lb_common::scheduler::{Candidate, Scheduler, run};
use lb_common::service::MAX_DESTINATIONS;
use xipvs::director::Director;
use xipvs::table::ServiceKey;

use super::agreement::Random;
use super::fixture::{CLIENTS, Fixture, VIP, client};
use super::frame::{FIN, Frame, SYN};

/// A service, and where its destinations lie.
struct Farm {
    fixture: Fixture,
    /// In the set's order, newest first.
    list: Vec<(Ipv4Addr, DestinationId)>,
    random: Random,
    port: u16,
}

fn address(number: u32) -> Ipv4Addr {
    Ipv4Addr::from(0x0a01_0000 + number)
}

impl Farm {
    fn new(destinations: u32) -> Self {
        let mut fixture = Fixture::configured("-A -t 192.168.1.100:80 -s rr");
        let mut random = Random(7);
        for number in 0..destinations {
            let weight = random.below(4);
            fixture.ipvsadm(&format!("-a -t 192.168.1.100:80 -r {}:80 -m -w {weight}", address(number)));
        }
        let mut farm = Self { fixture, list: Vec::new(), random, port: 20000 };
        farm.look();
        farm
    }

    /// Finds out which destinations there are.
    fn look(&mut self) {
        let maps = self.fixture.director.maps();
        let ids: std::collections::HashMap<_, _> = (0..maps.settings().destinations_used)
            .map(|id| (id, maps.destinations.read(id).unwrap()))
            .filter(|(_, record)| record.status & AVAILABLE != 0)
            .map(|(id, record)| (<[u8; 4]>::try_from(&record.address[..4]).unwrap(), id))
            .collect();
        let key = ServiceKey::Address {
            protocol: lb_common::protocol::Protocol::Tcp,
            address: (*VIP.ip()).into(),
            port: 80,
        };
        let reports = self.fixture.director.destinations(&key).unwrap();
        let address = |report: &xipvs::table::DestinationReport| match report.destination.key.address {
            IpAddr::V4(address) => address,
            IpAddr::V6(address) => panic!("{address}"),
        };
        self.list = reports.iter().map(address).map(|address| (address, ids[&address.octets()])).collect();
    }

    /// What a scan chooses.
    fn wanted(&self, scheduler: Scheduler) -> Option<Ipv4Addr> {
        let maps = self.fixture.director.maps();
        let candidate = |(_, id): &(_, DestinationId)| {
            let record = maps.destinations.read(*id).unwrap();
            let load = record.load;
            let overloaded = load.overloaded != 0;
            Candidate { weight: record.weight, active: load.active, total: load.total, overloaded }
        };
        let all: Vec<Candidate> = self.list.iter().map(candidate).collect();
        let position = match scheduler {
            Scheduler::LeastConnections => run(LeastConnections::new(), &all).0,
            Scheduler::WeightedLeastConnections => run(WeightedLeastConnections::new(), &all).0,
            Scheduler::ShortestExpectedDelay => run(ShortestExpectedDelay::new(), &all).0,
            Scheduler::NeverQueue => run(NeverQueue::new(), &all).0,
            Scheduler::WeightedFailOver => run(WeightedFailOver::new(), &all).0,
            Scheduler::WeightedOverflow => run(WeightedOverflow::new(), &all).0,
            other => panic!("{other}"),
        };
        position.map(|position| self.list[position as usize].0)
    }

    fn send(&self, port: u16, flags: u8) -> Option<Ipv4Addr> {
        let outcome = self.fixture.send(CLIENTS, &Frame::tcp(client(port), VIP, flags).bytes());
        let address = |bytes: &[u8]| Ipv4Addr::from(<[u8; 4]>::try_from(&bytes[30..34]).unwrap());
        (outcome.reason != Some(Reason::NoDestination)).then(|| address(&outcome.bytes))
    }

    /// Makes a connection, and sees that it goes where a scan would have it. (Nobody knows the way to the destinations, so
    /// that the stack gets the packets, translated.)
    fn connect(&mut self, scheduler: Scheduler) {
        let wanted = self.wanted(scheduler);
        self.port += 1;
        assert_eq!(self.send(self.port, SYN), wanted, "{scheduler}, connection {}", self.port);
    }

    /// Something happens to connections or destinations.
    fn happen(&mut self) {
        let (address, _) = self.list[self.random.below(self.list.len())];
        let there = format!("-t 192.168.1.100:80 -r {address}:80");
        match self.random.below(40) {
            0..12 => {
                let port = self.port - self.random.below(20) as u16;
                self.send(port, FIN);
            }
            12 => self.fixture.ipvsadm(&format!("-e {there} -m -w {}", self.random.below(4))),
            13 => self.fixture.ipvsadm(&format!("-e {there} -m -w 3 -x {}", 1 + self.random.below(2))),
            14 => {
                self.fixture.ipvsadm(&format!("-d {there}"));
                if self.random.percent(50) {
                    self.fixture.ipvsadm(&format!("-a {there} -m -w {}", self.random.below(4)));
                }
                self.look();
            }
            15 => {
                // TIME_WAIT ends, SYN_RECV goes on.
                self.fixture.wait(20_000);
                self.fixture.sweep();
            }
            _ => {}
        }
    }
}

const SCHEDULERS: [Scheduler; 6] = [
    Scheduler::LeastConnections,
    Scheduler::WeightedLeastConnections,
    Scheduler::ShortestExpectedDelay,
    Scheduler::NeverQueue,
    Scheduler::WeightedFailOver,
    Scheduler::WeightedOverflow,
];

/// Every scheduler, over so many connections each.
fn compare(destinations: u32, connections: u32) {
    let mut farm = Farm::new(destinations);
    for scheduler in SCHEDULERS {
        farm.fixture.ipvsadm(&format!("-E -t 192.168.1.100:80 -s {scheduler}"));
        for _ in 0..connections {
            farm.connect(scheduler);
            farm.happen();
        }
    }
}

#[test]
fn the_choice_is_that_of_a_scan() {
    compare(1000, 150);
}

#[test]
fn so_it_is_among_as_many_as_there_can_be() {
    compare(MAX_DESTINATIONS, 20);
}

#[test]
fn a_set_becomes_large_and_small_again() {
    let mut farm = Farm::new(SCANNED - 1);
    farm.fixture.ipvsadm("-E -t 192.168.1.100:80 -s wlc");
    for number in SCANNED - 1..SCANNED + 20 {
        let destination = format!("-t 192.168.1.100:80 -r {}:80", address(number));
        farm.fixture.ipvsadm(&format!("-a {destination} -m -w {}", number % 3));
        farm.look();
        for _ in 0..5 {
            farm.connect(Scheduler::WeightedLeastConnections);
        }
    }
    for number in 0..40 {
        farm.fixture.ipvsadm(&format!("-d -t 192.168.1.100:80 -r {}:80", address(number)));
        farm.look();
        farm.send(farm.port - 7, FIN);
        for _ in 0..3 {
            farm.connect(Scheduler::WeightedLeastConnections);
        }
    }
}

/// When nobody has room there is nobody, and again somebody as soon as there is room.
#[test]
fn all_may_be_overloaded() {
    for scheduler in ["lc", "twos"] {
        let mut fixture = Fixture::configured(&format!("-A -t 192.168.1.100:80 -s {scheduler}"));
        for number in 0..=SCANNED {
            fixture.ipvsadm(&format!("-a -t 192.168.1.100:80 -r {}:80 -m -x 1", address(number)));
        }
        let syn = |port| {
            let outcome = fixture.send(CLIENTS, &Frame::tcp(client(port), VIP, SYN).bytes());
            outcome.reason != Some(Reason::NoDestination)
        };
        for port in 0..=SCANNED as u16 {
            assert!(syn(30000 + port), "{scheduler}, {port}");
        }
        assert!(!syn(40000) && !syn(40001), "{scheduler}");
        fixture.wait(61_000);
        fixture.sweep();
        assert!(syn(40002), "{scheduler}");
    }
}

/// Nothing is left of a connection that is one packet, so that of two that are drawn the first is taken.
#[test]
fn twos_draws_by_weight_also_by_sums() {
    let mut fixture = Fixture::configured("-A -u 192.168.1.100:80 -s twos -o");
    for number in 0..200 {
        let weight = [1, 0, 3, 4][number as usize % 4];
        fixture.ipvsadm(&format!("-a -u 192.168.1.100:80 -r {}:80 -m -w {weight}", address(number)));
    }
    let mut drawn = [0; 200];
    for _ in 0..8000 {
        let outcome = fixture.send(CLIENTS, &Frame::udp(client(40000), VIP).bytes());
        drawn[usize::from(outcome.bytes[33])] += 1;
    }
    let share = |of: usize| drawn.iter().skip(of).step_by(4).sum::<i32>();
    // Five standard deviations.
    assert_eq!(share(1), 0);
    assert!(
        share(0).abs_diff(1000) < 150 && share(2).abs_diff(3000) < 220 && share(3).abs_diff(4000) < 230,
        "{drawn:?}"
    );
    assert!((0..200).all(|number| (number % 4 == 1) == (drawn[number] == 0)), "{drawn:?}");
}
