//! Properties of plans, on a model of a table that refuses what IPVS refuses.

use std::net::IpAddr;

use lb_common::forward::ForwardingMethod;
use lb_common::protocol::Protocol;
use proptest::prelude::*;
use proptest::sample::subsequence;

use super::*;
use crate::table::{DestinationReport, EntryReport, Family, ServiceReport, Stats};

/// Carries out one change; panics where IPVS would refuse.
fn perform(entries: &mut Vec<TableEntry>, change: &Change) {
    fn find<'a>(entries: &'a mut [TableEntry], key: &ServiceKey) -> &'a mut TableEntry {
        entries.iter_mut().find(|entry| entry.service.key == *key).expect("no such service")
    }
    fn place(entry: &TableEntry, key: &DestinationKey) -> Option<usize> {
        entry.destinations.iter().position(|destination| destination.key == *key)
    }
    match change {
        Change::SetTimeouts(_) | Change::SetMarkRules(_) => {}
        Change::AddService(service) => {
            assert!(entries.iter().all(|entry| entry.service.key != service.key), "service exists");
            entries.push(TableEntry { service: service.clone(), destinations: Vec::new() });
        }
        Change::EditService(service) => find(entries, &service.key).service = service.clone(),
        Change::DeleteService(key) => {
            find(entries, key);
            entries.retain(|entry| entry.service.key != *key);
        }
        Change::AddDestination(key, destination) => {
            let entry = find(entries, key);
            assert_eq!(place(entry, &destination.key), None, "destination exists");
            entry.destinations.insert(0, destination.clone());
        }
        Change::EditDestination(key, destination) => {
            let entry = find(entries, key);
            let place = place(entry, &destination.key).expect("no such destination");
            entry.destinations[place] = destination.clone();
        }
        Change::DeleteDestination(key, destination) => {
            let entry = find(entries, key);
            let place = place(entry, destination).expect("no such destination");
            entry.destinations.remove(place);
        }
    }
}

fn by_key(entries: &[TableEntry]) -> HashMap<ServiceKey, &TableEntry> {
    entries.iter().map(|entry| (entry.service.key, entry)).collect()
}

fn address(last: u8) -> IpAddr {
    IpAddr::from([192, 0, 2, last])
}

fn services() -> impl Strategy<Value = Vec<Service>> {
    let keys = vec![
        ServiceKey::Address { protocol: Protocol::Tcp, address: address(1), port: 80 },
        ServiceKey::Address { protocol: Protocol::Udp, address: address(1), port: 80 },
        ServiceKey::Mark { mark: 1, family: Family::V4 },
        ServiceKey::Mark { mark: 1, family: Family::V6 },
    ];
    (subsequence(keys, 0..=4).prop_shuffle(), prop::collection::vec((any::<bool>(), 0..2u32), 4)).prop_map(
        |(keys, settings)| {
            let service = |(key, (rr, timeout)): (ServiceKey, (bool, u32))| Service {
                scheduler: if rr { "rr".into() } else { "wlc".into() },
                timeout,
                ..Service::new(key)
            };
            keys.into_iter().zip(settings).map(service).collect()
        },
    )
}

fn destinations() -> impl Strategy<Value = Vec<Destination>> {
    let keys: Vec<_> = (1..=6).map(|last| DestinationKey { address: address(last), port: 80 }).collect();
    (subsequence(keys, 0..=6).prop_shuffle(), prop::collection::vec((0..3u32, any::<bool>()), 6)).prop_map(
        |(keys, settings)| {
            let destination = |(key, (weight, nat)): (DestinationKey, (u32, bool))| Destination {
                weight,
                method: if nat { ForwardingMethod::Masquerade } else { ForwardingMethod::DirectRoute },
                ..Destination::new(key)
            };
            keys.into_iter().zip(settings).map(destination).collect()
        },
    )
}

fn tables() -> impl Strategy<Value = Table> {
    (services(), prop::collection::vec(destinations(), 4)).prop_map(|(services, destinations)| {
        let entry = |(service, destinations)| TableEntry { service, destinations };
        Table {
            entries: services.into_iter().zip(destinations).map(entry).collect(),
            timeouts: None,
            marks: None,
        }
    })
}

fn usable(entry: &TableEntry) -> bool {
    entry.destinations.iter().any(|destination| destination.weight > 0)
}

proptest! {
    #[test]
    fn applying_a_plan_gives_the_wanted_table_and_leaves_nothing_to_plan(current in tables(), wanted in tables()) {
        let mut entries = current.entries.clone();
        for change in plan(&current, &wanted) {
            perform(&mut entries, &change);
        }
        prop_assert_eq!(by_key(&entries), by_key(&wanted.entries));
        prop_assert_eq!(plan(&Table { entries, timeouts: None, marks: None }, &wanted), vec![]);
    }

    #[test]
    fn no_destination_set_is_empty_on_the_way(current in tables(), wanted in tables()) {
        let (before, after) = (by_key(&current.entries), by_key(&wanted.entries));
        let full = |key: &ServiceKey, table: &HashMap<ServiceKey, &TableEntry>| {
            table.get(key).is_some_and(|entry| !entry.destinations.is_empty())
        };
        let mut entries = current.entries.clone();
        for change in plan(&current, &wanted) {
            perform(&mut entries, &change);
            for entry in &entries {
                let key = &entry.service.key;
                if full(key, &before) && full(key, &after) {
                    prop_assert!(!entry.destinations.is_empty(), "{} is empty after {}", key, change);
                }
            }
        }
    }

    /// Where nothing has to move, there is always one that takes new connections, too.
    #[test]
    fn no_service_is_without_weight_on_the_way(current in tables(), wanted in tables()) {
        let (before, after) = (by_key(&current.entries), by_key(&wanted.entries));
        let changes = plan(&current, &wanted);
        let moved: HashSet<ServiceKey> = changes.iter().filter_map(|change| match change {
            Change::DeleteDestination(service, key) => {
                let wanted = after.get(service)?;
                wanted.destinations.iter().any(|destination| destination.key == *key).then_some(*service)
            }
            _ => None,
        }).collect();
        let mut entries = current.entries.clone();
        for change in &changes {
            perform(&mut entries, change);
            for entry in &entries {
                let key = &entry.service.key;
                let both = [&before, &after].iter().all(|end| end.get(key).is_some_and(|entry| usable(entry)));
                if both && !moved.contains(key) {
                    prop_assert!(usable(entry), "{} has no weight after {}", key, change);
                }
            }
        }
    }

    /// The fewest verbs: what is equal is not touched, and what is there in order is not moved.
    #[test]
    fn a_plan_is_minimal_where_the_order_agrees(wanted in tables(), keep in prop::collection::vec(any::<bool>(), 24)) {
        let mut keep = keep.into_iter();
        let mut removed = 0;
        let mut current = wanted.clone();
        for entry in &mut current.entries {
            // Leaving out the newest ones only: what is missing can then be added in place.
            let missing = keep.by_ref().take(6).take_while(|keep| !keep).count().min(entry.destinations.len());
            entry.destinations.drain(..missing);
            removed += missing;
        }
        prop_assert_eq!(plan(&current, &wanted).len(), removed);
        prop_assert_eq!(plan(&wanted, &current).len(), removed);
        prop_assert_eq!(plan(&wanted, &wanted).len(), 0);
    }
}

fn report(destination: Destination, active: u32, inactive: u32) -> DestinationReport {
    DestinationReport {
        destination,
        stats: Stats::default(),
        active,
        inactive,
        persistent: 0,
        drains_in: None,
    }
}

#[test]
fn a_plan_prints_as_rules_with_the_connections_it_touches() {
    let key = ServiceKey::Address { protocol: Protocol::Tcp, address: address(1), port: 80 };
    let mut old = Destination::new(DestinationKey { address: address(2), port: 80 });
    let gone = Destination::new(DestinationKey { address: address(3), port: 80 });
    let current = TableReport {
        entries: vec![EntryReport {
            service: ServiceReport { service: Service::new(key), stats: Stats::default() },
            destinations: vec![report(old.clone(), 2, 5), report(gone, 1, 0)],
        }],
        timeouts: Timeouts::default(),
        marks: Some(Vec::new()),
    };
    old.weight = 3;
    let new = Destination::new(DestinationKey { address: address(4), port: 80 });
    let mut service = Service::new(key);
    service.scheduler = "rr".into();
    let wanted = Table {
        entries: vec![TableEntry { service, destinations: vec![new, old] }],
        timeouts: Some(Timeouts { tcp: 60, tcp_fin: 0, udp: 0 }),
        marks: Some(vec![crate::mark::any(7)]),
    };
    let mut out = Vec::new();
    describe(&plan(&current.configured(), &wanted), &current, &mut out).unwrap();
    assert_eq!(
        String::from_utf8(out).unwrap(),
        "--set 60 0 0 # 8 connections\n\
         mark delete all\n\
         mark add 7\n\
         -E -t 192.0.2.1:80 -s rr # 8 connections\n\
         -a -t 192.0.2.1:80 -r 192.0.2.4:80 -g -w 1\n\
         -e -t 192.0.2.1:80 -r 192.0.2.2:80 -g -w 3 # 7 connections\n\
         -d -t 192.0.2.1:80 -r 192.0.2.3:80 # 1 connection\n"
    );
}
