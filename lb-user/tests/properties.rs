//! What holds for every command line and every table.

use std::collections::HashSet;
use std::ffi::OsString;
use std::net::IpAddr;
use std::os::unix::ffi::OsStringExt;

use lb_common::forward::{ForwardingMethod, TunnelChecksum, TunnelType};
use lb_common::protocol::Protocol;
use lb_common::scheduler::Scheduler;
use proptest::prelude::*;
use xipvs::cli::names::FileNames;
use xipvs::cli::options::{Argument, OPTIONS};
use xipvs::cli::{Streams, run};
use xipvs::director::Director;
use xipvs::director::memory::Memory;
use xipvs::table::{
    Destination, DestinationKey, Family, Netmask, Service, ServiceKey, Tunnel, service_flags,
};

struct Answer {
    status: u8,
    stdout: Vec<u8>,
    stderr: Vec<u8>,
}

fn answer(memory: &mut Memory, stdin: &[u8], arguments: Vec<OsString>) -> Answer {
    let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
    let mut stdin = stdin;
    let mut streams = Streams { stdin: &mut stdin, stdout: &mut stdout, stderr: &mut stderr };
    let names = FileNames::parse("10.0.0.1 vip\n", "http 80/tcp\n");
    let status = run(&arguments, &mut streams, memory, &names);
    Answer { status, stdout, stderr }
}

fn ask(memory: &mut Memory, stdin: &[u8], words: &[&str]) -> Answer {
    answer(memory, stdin, std::iter::once(&"ipvsadm").chain(words).map(OsString::from).collect())
}

fn addresses(family: Family) -> BoxedStrategy<IpAddr> {
    match family {
        // Not what a destination is refused for: 0.0.0.0, multicast and broadcast.
        Family::V4 => (1u32..0xe000_0000).prop_map(|bits| IpAddr::from(bits.to_be_bytes())).boxed(),
        Family::V6 => {
            any::<u128>().prop_map(|bits| IpAddr::from(((bits >> 4) | (0x2 << 124)).to_be_bytes())).boxed()
        }
    }
}

fn families() -> impl Strategy<Value = Family> {
    prop_oneof![Just(Family::V4), Just(Family::V6)]
}

fn services() -> impl Strategy<Value = Service> {
    let key = families().prop_flat_map(|family| {
        let protocol = prop::sample::select(&Protocol::ALL[..]);
        prop_oneof![
            3 => (protocol, addresses(family), 1u16..)
                .prop_map(|(protocol, address, port)| ServiceKey::Address { protocol, address, port }),
            1 => (1u32..).prop_map(move |mark| ServiceKey::Mark { mark, family }),
        ]
    });
    let scheduler = prop::sample::select(&Scheduler::NAMES[..14]).prop_map(|(_, name)| name);
    let persistence = prop::option::of((1u32..=2_678_400, any::<u32>(), 1u32..=128));
    (key, scheduler, 0u32..8, persistence, any::<bool>(), any::<bool>()).prop_map(
        |(key, scheduler, flags, persistence, one_packet, engine)| {
            let mut service = Service::new(key);
            service.scheduler = scheduler.into();
            // flag-3 has no name with these two, so that it is not saved.
            let named = if matches!(scheduler, "sh" | "mh") { 3 } else { 7 };
            service.flags = (flags & named) * service_flags::SCHEDULER_1;
            if let Some((timeout, mask, length)) = persistence {
                service.flags |= service_flags::PERSISTENT;
                service.timeout = timeout;
                service.netmask = match key.family() {
                    Family::V4 => Netmask::V4(mask),
                    Family::V6 => Netmask::V6(length),
                };
            }
            let datagrams =
                !matches!(key, ServiceKey::Address { protocol: Protocol::Tcp | Protocol::Sctp, .. });
            if one_packet && datagrams {
                service.flags |= service_flags::ONE_PACKET;
            }
            service.engine = engine.then(|| "sip".into());
            service
        },
    )
}

fn tunnels() -> impl Strategy<Value = Tunnel> {
    let checksum =
        prop_oneof![Just(TunnelChecksum::None), Just(TunnelChecksum::Full), Just(TunnelChecksum::Remote)];
    let kind = prop_oneof![Just(TunnelType::Ipip), Just(TunnelType::Gue), Just(TunnelType::Gre)];
    (kind, 1u16.., checksum).prop_map(|(kind, port, checksum)| match (kind, checksum) {
        (TunnelType::Gue, _) => Tunnel { kind, port, checksum },
        (TunnelType::Gre, TunnelChecksum::None | TunnelChecksum::Full) => Tunnel { kind, port: 0, checksum },
        _ => Tunnel { kind: TunnelType::Ipip, port: 0, checksum: TunnelChecksum::None },
    })
}

/// A destination without the service's address, which its port depends on.
fn destinations() -> impl Strategy<Value = (IpAddr, IpAddr, u16, u8, u32, Tunnel)> {
    (addresses(Family::V4), addresses(Family::V6), any::<u16>(), 0u8..4, 0u32..=i32::MAX as u32, tunnels())
}

fn tables() -> impl Strategy<Value = Memory> {
    let entry = (services(), prop::collection::vec(destinations(), 0..6));
    prop::collection::vec(entry, 0..8).prop_map(|entries| {
        let mut memory = Memory::default();
        for (service, destinations) in entries {
            if memory.add_service(&service).is_err() {
                continue;
            }
            for (four, six, port, method, weight, tunnel) in destinations {
                let own = if service.key.family() == Family::V4 { four } else { six };
                // The last kind of tunnel leads into the other family.
                let other = if service.key.family() == Family::V4 { six } else { four };
                let (address, method) = match method {
                    0 => (own, ForwardingMethod::Masquerade),
                    1 => (own, ForwardingMethod::DirectRoute),
                    2 => (own, ForwardingMethod::Tunnel),
                    _ => (other, ForwardingMethod::Tunnel),
                };
                let port = match service.key {
                    ServiceKey::Address { port, .. } if method != ForwardingMethod::Masquerade => port,
                    _ => port,
                };
                let mut destination = Destination::new(DestinationKey { address, port });
                destination.method = method;
                destination.weight = weight;
                if method == ForwardingMethod::Tunnel {
                    destination.tunnel = tunnel;
                }
                // A second one with the same address and port is refused, as it should be.
                let _ = memory.add_destination(&service.key, &destination);
            }
        }
        memory
    })
}

/// All that is configured, in no order.
fn configured(memory: &mut Memory) -> HashSet<(Service, Option<Destination>)> {
    let table = memory.table().unwrap().configured();
    let mut all = HashSet::new();
    for entry in table.entries {
        all.insert((entry.service.clone(), None));
        for destination in entry.destinations {
            all.insert((entry.service.clone(), Some(destination)));
        }
    }
    all
}

/// Words that mean something, half of the time, or are near to it.
fn words() -> impl Strategy<Value = OsString> {
    let option = (0..OPTIONS.len()).prop_flat_map(|index| {
        let row = &OPTIONS[index];
        let long = format!("--{}", row.long);
        let short = row.short.map_or(long.clone(), |letter| format!("-{}", char::from(letter)));
        let taken = row.argument != Argument::None;
        prop_oneof![
            Just(long.clone()),
            Just(short.clone()),
            Just(short.clone()),
            values().prop_map(move |value| if taken { format!("{short}{value}") } else { short.clone() }),
            values().prop_map(move |value| format!("{long}={value}")),
        ]
    });
    prop_oneof![
        6 => option.prop_map(OsString::from),
        6 => values().prop_map(OsString::from),
        1 => "-[A-Za-z0-9=]{1,6}".prop_map(OsString::from),
        1 => prop::collection::vec(1u8.., 0..12).prop_map(OsString::from_vec),
    ]
}

fn values() -> impl Strategy<Value = String> {
    prop_oneof![
        prop::sample::select(
            &[
                "10.0.0.1:80",
                "10.0.0.2",
                "vip:http",
                "[2001:db8::1]:80",
                "2001:db8::2",
                "[",
                "]",
                ":",
                "[]:",
                "rr",
                "sh",
                "sh-port,flag-1",
                ",",
                "master",
                "backup",
                "gue",
                "gre",
                "sip",
                "lo",
                "",
                "-",
                "--",
                "0",
                "1",
                "5",
                "-1",
                "4294967296",
                "99999999999999999999",
                "255.255.255.0",
                "224.0.0.1",
                "é",
            ][..]
        )
        .prop_map(String::from),
        any::<i64>().prop_map(|number| number.to_string()),
        "[0-9a-fx.:%\\[\\] ]{0,20}",
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn what_is_saved_restores_the_table(mut memory in tables()) {
        let saved = ask(&mut memory, b"", &["-S", "-n"]);
        prop_assert_eq!(saved.status, 0);
        let mut restored = Memory::default();
        let answer = ask(&mut restored, &saved.stdout, &["-R"]);
        prop_assert_eq!((answer.status, &answer.stderr[..]), (0, &b""[..]));
        prop_assert_eq!(configured(&mut restored), configured(&mut memory));
    }

    #[test]
    fn every_command_line_ends_with_a_known_status(arguments in prop::collection::vec(words(), 0..8)) {
        let mut memory = Memory::default();
        let arguments = std::iter::once("ipvsadm".into()).chain(arguments).collect();
        let answer = answer(&mut memory, b"", arguments);
        prop_assert!([0, 1, 2, 255].contains(&answer.status));
        prop_assert_eq!(answer.status == 0, answer.stderr.is_empty());
    }

    #[test]
    fn every_restore_ends_with_a_known_status(
        lines in prop::collection::vec(prop::collection::vec(words(), 0..6), 0..6),
    ) {
        let lines: Vec<_> = lines.into_iter().map(|line| line.join(" ".as_ref())).collect();
        let answer = ask(&mut Memory::default(), &lines.join("\n".as_ref()).into_vec(), &["-R"]);
        prop_assert!([0, 1, 2, 255].contains(&answer.status));
        prop_assert!(answer.status == 0 || !answer.stderr.is_empty());
    }
}
