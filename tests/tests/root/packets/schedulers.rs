//! The schedulers' sequences, as observed on kernel IPVS, through the director and the program.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddrV4};

use lb_common::reason::Reason;
use lb_common::scheduler::{address, mh, sh};
use lb_common::service::MAX_DESTINATIONS;

use super::fixture::{Action, CLIENTS, Fixture, SERVERS, VIP, client, server};
use super::frame::{Frame, RST, SYN};
use super::ipv6;

/// A fixture with destinations 1, 2, 3 ... of these weights, added in this order.
fn service(scheduler: &str, weights: &[u32]) -> Fixture {
    let mut fixture = Fixture::configured(&format!("-A -t 192.168.1.100:80 -s {scheduler}"));
    for (number, weight) in (11..).zip(weights) {
        fixture.ipvsadm(&format!("-a -t 192.168.1.100:80 -r 10.0.0.{number}:80 -m -w {weight}"));
    }
    fixture
}

/// The number of the destination that a client's new connection gets, 0 for none.
fn connect(fixture: &Fixture, from: SocketAddrV4) -> u8 {
    let outcome = fixture.send(CLIENTS, &Frame::tcp(from, VIP, SYN).bytes());
    match outcome.action {
        Action::Redirect => outcome.bytes[33] - 10,
        _ => {
            assert_eq!(outcome.reason, Some(Reason::NoDestination));
            0
        }
    }
}

/// The destinations that new connections get.
fn sequence(fixture: &Fixture, ports: std::ops::Range<u16>) -> Vec<u8> {
    ports.map(|port| connect(fixture, client(port))).collect()
}

#[test]
fn each_begins_as_the_kernel_does() {
    let rows: [(&str, &[u32], &[u8]); 14] = [
        ("rr", &[1, 1, 1], &[3, 2, 1, 3, 2, 1, 3]),
        ("rr", &[5, 0, 1], &[3, 1, 3, 1]),
        ("wrr", &[3, 1, 2], &[3, 2, 1, 1, 3, 1, 3, 2, 1, 1, 3, 1]),
        ("wrr", &[4, 3, 2], &[3, 2, 1, 1, 2, 1, 3, 2, 1]),
        ("lc", &[3, 1, 2], &[3, 2, 1, 3, 2, 1, 3]),
        ("lc", &[3, 0, 2], &[3, 1, 3, 1]),
        ("wlc", &[3, 1, 2], &[3, 2, 1, 1, 3, 1, 3, 2, 1, 1, 3, 1]),
        ("sed", &[3, 1, 2], &[1, 3, 1, 3, 2, 1, 1, 3]),
        ("nq", &[3, 1, 2], &[3, 2, 1, 1, 3]),
        ("fo", &[2, 9, 9, 0], &[3, 3, 3]),
        ("ovf", &[2, 1, 3], &[3, 3, 3, 3, 1, 1, 1, 2, 2, 0, 0]),
        ("none", &[1, 1], &[0, 0]),
        // Until it is hot and another idle; a set serves its least loaded.
        ("lblc", &[3, 1, 2], &[3, 3, 3, 2, 2, 1, 1, 1, 1, 1, 1, 1]),
        ("lblcr", &[3, 1, 2], &[3, 3, 3, 2, 2, 1, 1, 1, 1, 1, 3, 1]),
    ];
    for (scheduler, weights, wanted) in rows {
        let fixture = service(scheduler, weights);
        let got = sequence(&fixture, 40000..40000 + wanted.len() as u16);
        assert_eq!(got, wanted, "{scheduler} {weights:?}");
    }
}

#[test]
fn wrr_goes_on_after_an_edit_as_the_kernel_does() {
    let mut fixture = service("wrr", &[3, 1, 2]);
    assert_eq!(sequence(&fixture, 40000..40004), [3, 2, 1, 1]);
    fixture.ipvsadm("-e -t 192.168.1.100:80 -r 10.0.0.12:80 -m -w 5");
    assert_eq!(sequence(&fixture, 40100..40116), [2, 1, 3, 2, 1, 3, 2, 1, 2, 2, 2, 1, 3, 2, 1, 3]);
}

#[test]
fn rr_keeps_its_place_when_destinations_come_and_go() {
    let mut fixture = service("rr", &[1, 1, 1]);
    assert_eq!(sequence(&fixture, 40000..40002), [3, 2]);
    // A new destination at the head is met after the next wrap.
    fixture.ipvsadm("-a -t 192.168.1.100:80 -r 10.0.0.14:80 -m");
    assert_eq!(sequence(&fixture, 40100..40104), [1, 4, 3, 2]);
    // The one that the cursor stands on goes: the cursor steps back to its predecessor.
    fixture.ipvsadm("-d -t 192.168.1.100:80 -r 10.0.0.12:80");
    assert_eq!(sequence(&fixture, 40200..40204), [1, 4, 3, 1]);
    // Another scheduler and back: from the start.
    fixture.ipvsadm("-E -t 192.168.1.100:80 -s lc\n-E -t 192.168.1.100:80 -s rr");
    assert_eq!(sequence(&fixture, 40300..40303), [4, 3, 1]);
}

#[test]
fn lc_counts_an_active_connection_as_much_as_257_inactive_ones() {
    for (inactive, wanted) in [(256, 2), (258, 1)] {
        let mut fixture = service("lc", &[1]);
        assert_eq!(connect(&fixture, client(30000)), 1);
        fixture.ipvsadm(
            "-e -t 192.168.1.100:80 -r 10.0.0.11:80 -m -w 0
             -a -t 192.168.1.100:80 -r 10.0.0.12:80 -m",
        );
        for port in 40000..40000 + inactive {
            assert_eq!(connect(&fixture, client(port)), 2);
            fixture.send(SERVERS, &Frame::tcp(server(2, 80), client(port), RST).bytes());
        }
        fixture.ipvsadm("-e -t 192.168.1.100:80 -r 10.0.0.11:80 -m -w 1");
        assert_eq!(connect(&fixture, client(30001)), wanted, "{inactive} inactive");
    }
}

#[test]
fn sh_puts_clients_where_the_kernel_does() {
    let clients = [[10, 0, 0, 2], [192, 168, 1, 10], [203, 0, 113, 7]].map(Ipv4Addr::from);
    // Their buckets; buckets 0.. hold 3 3 2 1 1 1, over and over.
    let buckets = [137, 248, 124];
    let mut fixture = service("sh", &[3, 1, 2]);
    for (client, bucket) in clients.into_iter().zip(buckets) {
        let wanted = [3, 3, 2, 1, 1, 1][bucket % 6];
        for port in 40000..40004 {
            assert_eq!(connect(&fixture, SocketAddrV4::new(client, port)), wanted, "{client}");
        }
    }
    // One that weighs nothing keeps a bucket a round, and who hashes there gets none.
    fixture.ipvsadm("-e -t 192.168.1.100:80 -r 10.0.0.11:80 -m -w 0");
    for (client, bucket) in clients.into_iter().zip(buckets) {
        let wanted = [3, 3, 2, 0][bucket % 4];
        assert_eq!(connect(&fixture, SocketAddrV4::new(client, 50000)), wanted, "{client}");
    }
}

/// Vectors of the kernel: the buckets of these clients and ports in a table of sh.
const SH_BUCKETS: [([u8; 4], u16, usize); 3] =
    [([10, 0, 0, 2], 12345, 232), ([192, 168, 1, 10], 40000, 156), ([10, 0, 0, 2], 0, 137)];

#[test]
fn sh_port_and_sh_fallback_lead_where_the_kernels_do() {
    let mut fixture = service("sh", &[3, 1, 2]);
    fixture.ipvsadm("-E -t 192.168.1.100:80 -s sh -b sh-port");
    for (client, port, bucket) in &SH_BUCKETS[..2] {
        let from = SocketAddrV4::new((*client).into(), *port);
        assert_eq!(connect(&fixture, from), [3, 3, 2, 1, 1, 1][bucket % 6], "{from}");
    }
    // With destination 3 gone from 3 2 1 1 1 3 ..., its buckets lead on from twice their number.
    fixture.ipvsadm(
        "-E -t 192.168.1.100:80 -s sh -b sh-fallback
         -e -t 192.168.1.100:80 -r 10.0.0.13:80 -m -w 0",
    );
    let table = [3, 2, 1, 1, 1];
    let usable = |bucket: usize| Some(table[bucket % 256 % 5]).filter(|number| *number != 3);
    let mut led_on = 0;
    for (last, bucket) in
        (0..=255u8).map(|last| (last, sh::bucket(0xcb00_7100 + u32::from(last), 0) as usize))
    {
        let wanted = usable(bucket).unwrap_or_else(|| {
            led_on += 1;
            (0..256).find_map(|offset| usable((2 * bucket + offset) % 256)).unwrap()
        });
        let from = SocketAddrV4::new([203, 0, 113, last].into(), 50000);
        assert_eq!(connect(&fixture, from), wanted, "{from}");
    }
    assert!(led_on > 20, "{led_on}");
    // No other one either.
    fixture.ipvsadm(
        "-e -t 192.168.1.100:80 -r 10.0.0.11:80 -m -w 0
         -e -t 192.168.1.100:80 -r 10.0.0.12:80 -m -w 0",
    );
    assert_eq!(connect(&fixture, client(50001)), 0);
}

#[test]
fn dh_goes_by_the_virtual_address_alone() {
    // A vector of the kernel: 10.0.0.100 has bucket 248, and buckets hold 3 2 1 over and over.
    let virtual_address = SocketAddrV4::new([10, 0, 0, 100].into(), 80);
    let mut fixture = Fixture::configured(
        "-A -t 10.0.0.100:80 -s dh
         -a -t 10.0.0.100:80 -r 10.0.0.11:80 -m -w 3
         -a -t 10.0.0.100:80 -r 10.0.0.12:80 -m -w 1
         -a -t 10.0.0.100:80 -r 10.0.0.13:80 -m -w 2",
    );
    let to = |fixture: &Fixture, from: SocketAddrV4| {
        let outcome = fixture.send(CLIENTS, &Frame::tcp(from, virtual_address, SYN).bytes());
        if outcome.action == Action::Redirect { outcome.bytes[33] - 10 } else { 0 }
    };
    for from in [client(40000), SocketAddrV4::new([203, 0, 113, 7].into(), 1)] {
        assert_eq!(to(&fixture, from), 1);
    }
    // An edit moves nothing, not even to weight 0, and there is no fallback.
    fixture.ipvsadm("-e -t 10.0.0.100:80 -r 10.0.0.11:80 -m -w 0");
    assert_eq!(to(&fixture, client(40001)), 0);
    // A new destination goes to the head: 4 3 2 1, and 248 is a multiple of four.
    fixture.ipvsadm("-a -t 10.0.0.100:80 -r 10.0.0.14:80 -m");
    assert_eq!(to(&fixture, client(40002)), 4);
}

/// Where Maglev hashing of the kernel puts a client, with destinations 10.0.0.11 ... of these last weights.
fn maglev(last_weights: &[u32], from: SocketAddrV4, with_port: bool, usable: impl Fn(u8) -> bool) -> u8 {
    let destinations: Vec<_> =
        (0x0a00_000b..).zip(last_weights).map(|(address, weight)| (address, *weight)).collect();
    let port = if with_port { from.port() } else { 0 };
    maglev_of(&destinations, u32::from(*from.ip()), port, usable)
}

/// Where it puts one, all by the keys of their addresses; of destinations with their last weights too.
fn maglev_of(destinations: &[(u32, u32)], from: u32, port: u16, usable: impl Fn(u8) -> bool) -> u8 {
    let size = mh::DEFAULT_SIZE;
    let turns = mh::Turns::new(destinations.iter().map(|(_, weight)| *weight), size);
    let mut permutations: Vec<_> = destinations
        .iter()
        .rev()
        .map(|(address, weight)| mh::Permutation::new(*address, 80, turns.of(*weight), size))
        .collect();
    let mut table = vec![0; size as usize];
    mh::populate(&mut permutations, &mut table).unwrap();
    let number = |position| destinations.len() as u8 - position as u8;
    mh::pick(&table, from, port, true, |position| usable(number(position))).map_or(0, number)
}

#[test]
fn mh_follows_its_table_over_edits() {
    let mut fixture = service("mh", &[3, 1, 2]);
    let clients =
        || (0..60u8).map(|last| SocketAddrV4::new([203, 0, 113, last].into(), 40000 + u16::from(last)));
    for from in clients() {
        assert_eq!(connect(&fixture, from), maglev(&[3, 1, 2], from, false, |_| true), "{from}");
    }
    // Weight 0 leaves the table as it is; its clients get none, or with mh-fallback another.
    fixture.ipvsadm("-e -t 192.168.1.100:80 -r 10.0.0.11:80 -m -w 0");
    for from in clients().map(|from| SocketAddrV4::new(*from.ip(), from.port() + 100)) {
        let own = maglev(&[3, 1, 2], from, false, |_| true);
        assert_eq!(connect(&fixture, from), if own == 1 { 0 } else { own }, "{from}");
    }
    fixture.ipvsadm("-E -t 192.168.1.100:80 -s mh -b mh-fallback,mh-port");
    for from in clients().map(|from| SocketAddrV4::new(*from.ip(), from.port() + 200)) {
        assert_eq!(connect(&fixture, from), maglev(&[3, 1, 2], from, true, |number| number != 1), "{from}");
    }
    // Another weight makes another table.
    fixture.ipvsadm("-e -t 192.168.1.100:80 -r 10.0.0.11:80 -m -w 1");
    for from in clients().map(|from| SocketAddrV4::new(*from.ip(), from.port() + 300)) {
        assert_eq!(connect(&fixture, from), maglev(&[1, 1, 2], from, true, |_| true), "{from}");
    }
}

#[test]
fn mh_hashes_addresses_of_the_other_family_as_ones_of_its_own() {
    // Where a tunnel leads to, by the last part of its address.
    let to = |fixture: &Fixture, frame: &[u8]| {
        let outcome = fixture.send(CLIENTS, frame);
        assert_eq!(outcome.action, Action::Redirect);
        if outcome.bytes[12..14] == [8, 0] { outcome.bytes[33] - 10 } else { outcome.bytes[53] - 0x10 }
    };
    // To a service of IPv4 an address of IPv6 is its first word, to one of IPv6 one of IPv4 is its only word.
    let (other, other_ipv6) = (0xfd00_0002, 0x0a00_0000);
    let fixture = Fixture::configured(
        "-A -t 192.168.1.100:80 -s mh
         -a -t 192.168.1.100:80 -r [fd00:2::11]:80 -i
         -a -t 192.168.1.100:80 -r 10.0.0.12:80 -i -w 2
         -a -t 192.168.1.100:80 -r [fd00:2::13]:80 -i -w 3",
    );
    let destinations = [(other, 1), (0x0a00_000c, 2), (other, 3)];
    for last in 0..60 {
        let from = SocketAddrV4::new([203, 0, 113, last].into(), 40000);
        let wanted = maglev_of(&destinations, u32::from(*from.ip()), 0, |_| true);
        assert_eq!(to(&fixture, &Frame::tcp(from, VIP, SYN).bytes()), wanted, "{from}");
    }
    drop(fixture);
    let fixture = Fixture::configured(
        "-A -t [fd00:1::100]:80 -s mh -b mh-port
         -a -t [fd00:1::100]:80 -r 10.0.0.11:80 -i -w 2
         -a -t [fd00:1::100]:80 -r [fd00:2::12]:80 -i
         -a -t [fd00:1::100]:80 -r 10.0.0.13:80 -i",
    );
    let own = address::key_v6("fd00:2::12".parse::<Ipv6Addr>().unwrap().octets());
    let destinations = [(other_ipv6 + 11, 2), (own, 1), (other_ipv6 + 13, 1)];
    for port in 40000..40060 {
        let from = ipv6::client(port);
        let wanted = maglev_of(&destinations, address::key_v6(from.ip().octets()), port, |_| true);
        assert_eq!(to(&fixture, &ipv6::Frame::tcp(from, ipv6::vip(80), SYN).bytes()), wanted, "{from}");
    }
}

#[test]
fn udp_counts_as_idle() {
    for (scheduler, wanted) in [("sed", 1), ("nq", 3), ("ovf", 1)] {
        let mut fixture = Fixture::configured(&format!("-A -u 192.168.1.100:80 -s {scheduler}"));
        for (number, weight) in [(11, 3), (12, 1), (13, 2)] {
            fixture.ipvsadm(&format!("-a -u 192.168.1.100:80 -r 10.0.0.{number}:80 -m -w {weight}"));
        }
        for port in 40000..40010 {
            let bytes = fixture.send(CLIENTS, &Frame::udp(client(port), VIP).bytes()).bytes;
            assert_eq!(bytes[33] - 10, wanted, "{scheduler}");
        }
    }
}

#[test]
fn twos_draws_by_weight_and_takes_the_idler_one() {
    let mut fixture = service("twos", &[1, 0, 1, 1]);
    let got = sequence(&fixture, 40000..40300);
    let share = |number: u8| got.iter().filter(|choice| **choice == number).count();
    // Two choices keep counts close together; one choice would have a standard deviation of 8.
    assert_eq!(share(2), 0);
    assert!([1, 3, 4].iter().all(|number| (70..=130).contains(&share(*number))), "{got:?}");
    fixture.ipvsadm(
        "-e -t 192.168.1.100:80 -r 10.0.0.11:80 -m -w 0
         -e -t 192.168.1.100:80 -r 10.0.0.13:80 -m -w 0",
    );
    assert_eq!(sequence(&fixture, 41000..41020), [4; 20]);
    fixture.ipvsadm("-e -t 192.168.1.100:80 -r 10.0.0.14:80 -m -w 0");
    assert_eq!(connect(&fixture, client(42000)), 0);
}

#[test]
fn thresholds_keep_every_scheduler_away() {
    // With lblc an overloaded destination keeps its addresses: see `locality`.
    for scheduler in ["rr", "wrr", "lc", "wlc", "sed", "nq", "fo", "ovf", "sh", "dh", "mh", "twos", "lblcr"] {
        let mut fixture = Fixture::configured(&format!("-A -t 192.168.1.100:80 -s {scheduler}"));
        fixture.ipvsadm("-a -t 192.168.1.100:80 -r 10.0.0.11:80 -m -w 5 -x 3 -y 2");
        assert_eq!(sequence(&fixture, 40000..40005), [1, 1, 1, 0, 0], "{scheduler}");
        // Ended ones make room again when fewer than the lower threshold are left.
        fixture.ipvsadm("-e -t 192.168.1.100:80 -r 10.0.0.11:80 -m -w 5 -x 5 -y 5");
        assert_eq!(sequence(&fixture, 41000..41003), [1, 1, 0], "{scheduler}");
    }
}

#[test]
fn a_service_may_have_4096_destinations() {
    let mut fixture = Fixture::configured("-A -t 192.168.1.100:80 -s rr");
    let address = |number: u32| Ipv4Addr::from(0x0a01_0000 + number);
    for number in 0..MAX_DESTINATIONS {
        fixture.ipvsadm(&format!("-a -t 192.168.1.100:80 -r {}:80 -m -w 2", address(number)));
    }
    let last = Ipv4Addr::from(0x0a01_0000);
    let to = |fixture: &Fixture, port: u16| {
        let bytes = fixture.send(CLIENTS, &Frame::tcp(client(port), VIP, SYN).bytes()).bytes;
        Ipv4Addr::from([bytes[30], bytes[31], bytes[32], bytes[33]])
    };
    assert_eq!(to(&fixture, 40000), address(MAX_DESTINATIONS - 1));
    // The last in the list alone is the heaviest, or the only one: every scheduler that scans comes to it.
    fixture.ipvsadm(&format!("-e -t 192.168.1.100:80 -r {last}:80 -m -w 9"));
    for (port, scheduler) in (41000..).zip(["fo", "ovf", "sed", "wlc"]) {
        fixture.ipvsadm(&format!("-E -t 192.168.1.100:80 -s {scheduler}"));
        assert_eq!(to(&fixture, port), if scheduler == "wlc" { address(MAX_DESTINATIONS - 2) } else { last });
    }
    // Tables of hashes reach all of them: 256 buckets the newest, Maglev's 4,093 not even that many.
    fixture.ipvsadm("-E -t 192.168.1.100:80 -s sh");
    let bucket = sh::bucket(u32::from(*client(0).ip()), 0);
    // Each weighs two and takes two buckets.
    assert_eq!(to(&fixture, 42000), address(MAX_DESTINATIONS - 1 - bucket / 2));
    let (status, _) = fixture.try_ipvsadm("-E -t 192.168.1.100:80 -s mh");
    assert_ne!(status, 0);
    for number in 0..3 {
        fixture.ipvsadm(&format!("-d -t 192.168.1.100:80 -r {}:80", address(number)));
    }
    fixture.ipvsadm("-E -t 192.168.1.100:80 -s mh");
    to(&fixture, 43000);
    // One more is one too many.
    let (status, said) = fixture.try_ipvsadm("-a -t 192.168.1.100:80 -r 10.1.0.0:80 -m");
    assert_ne!((status, said), (0, String::new()));
}

#[test]
fn a_service_may_have_many_destinations() {
    let mut fixture = Fixture::configured("-A -t 192.168.1.100:80 -s rr");
    for number in 0..200u8 {
        fixture.ipvsadm(&format!("-a -t 192.168.1.100:80 -r 10.1.0.{number}:80 -m"));
    }
    let numbers: Vec<u8> = (0..400)
        .map(|port| fixture.send(CLIENTS, &Frame::tcp(client(40000 + port), VIP, SYN).bytes()).bytes[33])
        .collect();
    let round: Vec<u8> = (0..200).rev().collect();
    assert_eq!(numbers, [round.clone(), round].concat());
}
