//! The difference between two tables, as the verbs that turn one into the other.
//!
//! A plan is minimal, idempotent (after it there is nothing left to plan) and ordered so that a service keeps
//! a destination all the way, if it has one at both ends. Restore, mirror, follow, diff and dry run are plans.
//! IPVS has no counterpart: `ipvsadm-restore` clears the table and adds line by line.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::io::{self, Write};

use lb_common::mark::Rule;

use crate::director::{self, Director, Error};
use crate::mark::Words;
use crate::table::{
    Destination, DestinationKey, Service, ServiceKey, Table, TableEntry, TableReport, Timeouts,
};

/// One step of a plan; it prints itself as the ipvsadm rule line that does the same.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// Sets the timeouts.
    SetTimeouts(Timeouts),
    /// Adds a service.
    AddService(Service),
    /// Replaces what is configured of a service.
    EditService(Service),
    /// Deletes a service with its destinations.
    DeleteService(ServiceKey),
    /// Adds a destination at the head of its service's list.
    AddDestination(ServiceKey, Destination),
    /// Replaces what is configured of a destination.
    EditDestination(ServiceKey, Destination),
    /// Deletes a destination.
    DeleteDestination(ServiceKey, DestinationKey),
    /// Replaces the rules that mark packets.
    SetMarkRules(Vec<Rule>),
}

impl Change {
    /// The service that it is about.
    fn service(&self) -> Option<ServiceKey> {
        match self {
            Self::SetTimeouts(_) | Self::SetMarkRules(_) => None,
            Self::AddService(service) | Self::EditService(service) => Some(service.key),
            Self::DeleteService(key)
            | Self::AddDestination(key, _)
            | Self::EditDestination(key, _)
            | Self::DeleteDestination(key, _) => Some(*key),
        }
    }
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::SetTimeouts(Timeouts { tcp, tcp_fin, udp }) => write!(f, "--set {tcp} {tcp_fin} {udp}"),
            Self::AddService(service) => write!(f, "-A {service}"),
            Self::EditService(service) => write!(f, "-E {service}"),
            Self::DeleteService(key) => write!(f, "-D {key}"),
            Self::AddDestination(key, destination) => write!(f, "-a {key} -r {destination}"),
            Self::EditDestination(key, destination) => write!(f, "-e {key} -r {destination}"),
            Self::DeleteDestination(key, destination) => write!(f, "-d {key} -r {destination}"),
            Self::SetMarkRules(rules) => {
                f.write_str("mark delete all")?;
                rules.iter().try_for_each(|rule| write!(f, "\nmark add {}", Words(rule)))
            }
        }
    }
}

/// The changes that turn the current table into the wanted one.
///
/// The order of destinations counts, since schedulers walk it, and IPVS adds only at the head: a destination
/// that has to move is deleted and added at once (its connections stay). New services come before old ones go.
/// Timeouts are compared where both tables have them; a wanted 0 keeps what is. So are the rules that mark packets.
pub fn plan(current: &Table, wanted: &Table) -> Vec<Change> {
    let mut changes = Vec::new();
    if let (Some(is), Some(to)) = (current.timeouts, wanted.timeouts) {
        let differs = |is: u32, to: u32| to != 0 && is != to;
        if differs(is.tcp, to.tcp) || differs(is.tcp_fin, to.tcp_fin) || differs(is.udp, to.udp) {
            changes.push(Change::SetTimeouts(to));
        }
    }
    if let (Some(is), Some(to)) = (&current.marks, &wanted.marks)
        && is != to
    {
        changes.push(Change::SetMarkRules(to.clone()));
    }
    let present: HashMap<&ServiceKey, &TableEntry> =
        current.entries.iter().map(|entry| (&entry.service.key, entry)).collect();
    for entry in &wanted.entries {
        match present.get(&entry.service.key) {
            Some(now) => {
                if now.service.differs_from(&entry.service) {
                    changes.push(Change::EditService(edited(now.service.own_timeouts, &entry.service)));
                }
                plan_destinations(&entry.service.key, &now.destinations, &entry.destinations, &mut changes);
            }
            None => {
                changes.push(Change::AddService(edited(None, &entry.service)));
                plan_destinations(&entry.service.key, &[], &entry.destinations, &mut changes);
            }
        }
    }
    let kept: HashSet<&ServiceKey> = wanted.entries.iter().map(|entry| &entry.service.key).collect();
    let gone = current.entries.iter().map(|entry| entry.service.key).filter(|key| !kept.contains(key));
    changes.extend(gone.map(Change::DeleteService));
    changes
}

/// What of a service is told to a director that has this: its own timeouts only where they change.
fn edited(now: Option<Timeouts>, wanted: &Service) -> Service {
    let own_timeouts = wanted.own_timeouts.filter(|own| now.unwrap_or(Timeouts::NONE) != *own);
    Service { own_timeouts, ..wanted.clone() }
}

/// Plans the destinations of one service: first those that begin to take connections, last those that go.
fn plan_destinations(
    service: &ServiceKey,
    current: &[Destination],
    wanted: &[Destination],
    changes: &mut Vec<Change>,
) {
    let present: HashMap<DestinationKey, (usize, &Destination)> = current
        .iter()
        .enumerate()
        .map(|(place, destination)| (destination.key, (place, destination)))
        .collect();
    let staying = staying(&present, current.len(), wanted);
    let (newer, older) = wanted.split_at(wanted.len() - staying);

    let edited =
        older.iter().filter_map(|to| Some((present.get(&to.key)?.1, to))).filter(|(is, to)| is != to);
    let (starting, others): (Vec<_>, Vec<_>) = edited.partition(|(is, to)| is.weight == 0 && to.weight != 0);

    let edit = |(_, to): (&Destination, &Destination)| Change::EditDestination(*service, to.clone());
    changes.extend(starting.into_iter().map(edit));
    for to in newer.iter().rev() {
        if present.contains_key(&to.key) {
            changes.push(Change::DeleteDestination(*service, to.key));
        }
        changes.push(Change::AddDestination(*service, to.clone()));
    }
    changes.extend(others.into_iter().map(edit));
    let kept: HashSet<DestinationKey> = wanted.iter().map(|destination| destination.key).collect();
    let gone = current.iter().map(|destination| destination.key).filter(|key| !kept.contains(key));
    changes.extend(gone.map(|key| Change::DeleteDestination(*service, key)));
}

/// How many of the oldest wanted destinations can stay where they are: all that stand in the same order now.
///
/// Whenever the oldest wanted one is present it stays, so that what is deleted before it is added again is
/// never the only one.
fn staying(
    present: &HashMap<DestinationKey, (usize, &Destination)>,
    current: usize,
    wanted: &[Destination],
) -> usize {
    let mut bound = current;
    let in_order = wanted.iter().rev().take_while(|destination| match present.get(&destination.key) {
        Some(&(place, _)) if place < bound => {
            bound = place;
            true
        }
        _ => false,
    });
    in_order.count()
}

/// A change that a director refused.
#[derive(Debug, thiserror::Error)]
#[error("{change}: {error}")]
pub struct Refused {
    /// The change.
    pub change: Change,
    /// Why.
    #[source]
    pub error: Error,
}

/// What became of a plan.
#[derive(Debug, Default)]
#[must_use = "what was refused has to be named"]
pub struct Applied {
    /// The changes that were made, in order.
    pub made: Vec<Change>,
    /// The changes that the director refused.
    pub refused: Vec<Refused>,
}

/// Makes a director's table equal to the wanted one, as far as the director can express it.
///
/// Whatever is refused is left as it is, and the rest planned again without it, so that a service is not
/// emptied for the sake of a destination that does not come. Fails when the director cannot be reached.
pub fn reach(mut wanted: Table, director: &mut dyn Director) -> director::Result<Applied> {
    let mut all = Applied::default();
    loop {
        let current = director.table()?.configured();
        let applied = apply(plan(&current, &wanted), director)?;
        all.made.extend(applied.made);
        // A deletion fails only when somebody else was faster; there is nothing to plan around.
        let again = applied.refused.iter().all(|refused| concede(&mut wanted, &current, &refused.change));
        let done = applied.refused.is_empty();
        all.refused.extend(applied.refused);
        if done || !again {
            return Ok(all);
        }
    }
}

/// Makes a director's table equal to the wanted one, each service wholly or not at all.
///
/// A service of which anything is refused is put back to what it was, and only the refusal is told; the other services go
/// on. Fails when the director cannot be reached.
pub fn reach_by_service(wanted: &Table, director: &mut dyn Director) -> director::Result<Applied> {
    let before = director.table()?.configured();
    let mut all = Applied::default();
    for changes in plan(&before, wanted).chunk_by(|one, next| one.service() == next.service()) {
        let applied = apply(changes.to_vec(), director)?;
        match changes[0].service() {
            Some(key) if !applied.refused.is_empty() => put_back(&key, &before, director)?,
            _ => all.made.extend(applied.made),
        }
        all.refused.extend(applied.refused);
    }
    Ok(all)
}

/// Makes a service what it was.
fn put_back(key: &ServiceKey, before: &Table, director: &mut dyn Director) -> director::Result<()> {
    let now = match director.service(key) {
        Ok(report) => {
            let destinations = director.destinations(key)?;
            let destinations = destinations.into_iter().map(|report| report.destination).collect();
            vec![TableEntry { service: report.service, destinations }]
        }
        Err(Error::NoSuchService) => Vec::new(),
        Err(error) => return Err(error),
    };
    let was = before.entries.iter().filter(|entry| entry.service.key == *key).cloned().collect();
    let only = |entries| Table { timeouts: None, entries, marks: None };
    // What was there before is not refused, and if it is there is nothing left to try.
    apply(plan(&only(now), &only(was)), director).map(drop)
}

/// Carries out a plan, in its order. Once a change to a service is refused, the rest of that service's
/// destinations stay as they are; the other services go on.
///
/// Fails when the director cannot be reached any more; what was done until then stays.
pub fn apply(plan: Vec<Change>, director: &mut dyn Director) -> director::Result<Applied> {
    let mut applied = Applied::default();
    let mut stopped = HashSet::new();
    for change in plan {
        if change.service().is_some_and(|service| stopped.contains(&service)) {
            continue;
        }
        match carry_out(&change, director) {
            Ok(()) => applied.made.push(change),
            Err(error @ (Error::Unavailable(_) | Error::PermissionDenied)) => return Err(error),
            Err(error) => {
                stopped.extend(change.service());
                applied.refused.push(Refused { change, error });
            }
        }
    }
    Ok(applied)
}

/// Wants no longer what was refused, but what is; says whether that is possible.
fn concede(wanted: &mut Table, current: &Table, refused: &Change) -> bool {
    fn entry<'a>(table: &'a mut Table, key: &ServiceKey) -> Option<&'a mut TableEntry> {
        table.entries.iter_mut().find(|entry| entry.service.key == *key)
    }
    let now = refused.service().and_then(|key| current.entries.iter().find(|entry| entry.service.key == key));
    match refused {
        Change::SetTimeouts(_) => wanted.timeouts = None,
        Change::SetMarkRules(_) => wanted.marks = None,
        Change::AddService(service) => wanted.entries.retain(|entry| entry.service.key != service.key),
        Change::EditService(service) => {
            if let (Some(entry), Some(now)) = (entry(wanted, &service.key), now) {
                entry.service = now.service.clone();
            }
        }
        Change::AddDestination(key, refused) => {
            if let Some(entry) = entry(wanted, key) {
                entry.destinations.retain(|destination| destination.key != refused.key);
            }
        }
        Change::EditDestination(key, refused) => {
            let same = |destination: &&Destination| destination.key == refused.key;
            let now = now.and_then(|now| now.destinations.iter().find(same));
            let wanted = entry(wanted, key).and_then(|entry| {
                entry.destinations.iter_mut().find(|destination| destination.key == refused.key)
            });
            if let (Some(wanted), Some(now)) = (wanted, now) {
                wanted.clone_from(now);
            }
        }
        Change::DeleteService(_) | Change::DeleteDestination(..) => return false,
    }
    true
}

fn carry_out(change: &Change, director: &mut dyn Director) -> Result<(), Error> {
    match change {
        Change::SetTimeouts(timeouts) => director.set_timeouts(timeouts),
        Change::AddService(service) => director.add_service(service),
        Change::EditService(service) => director.edit_service(service),
        Change::DeleteService(key) => director.delete_service(key),
        Change::AddDestination(key, destination) => director.add_destination(key, destination),
        Change::EditDestination(key, destination) => director.edit_destination(key, destination),
        Change::DeleteDestination(key, destination) => director.delete_destination(key, destination),
        Change::SetMarkRules(wanted) => director.change_mark_rules(&mut |rules| {
            rules.clone_from(wanted);
            Ok(())
        }),
    }
}

/// Prints a plan, a line a change, each with the number of live connections (not templates) of what it changes.
pub fn describe(plan: &[Change], current: &TableReport, out: &mut dyn Write) -> io::Result<()> {
    let live = LiveConnections::of(current);
    for change in plan {
        match live.touched_by(change) {
            0 => writeln!(out, "{change}")?,
            1 => writeln!(out, "{change} # 1 connection")?,
            count => writeln!(out, "{change} # {count} connections")?,
        }
    }
    Ok(())
}

/// The live connections of every service and destination of a table.
struct LiveConnections {
    services: HashMap<ServiceKey, u64>,
    destinations: HashMap<(ServiceKey, DestinationKey), u64>,
}

impl LiveConnections {
    fn of(table: &TableReport) -> Self {
        let mut live = Self { services: HashMap::new(), destinations: HashMap::new() };
        for entry in &table.entries {
            let service = entry.service.service.key;
            for report in &entry.destinations {
                let count = u64::from(report.active) + u64::from(report.inactive);
                *live.services.entry(service).or_default() += count;
                live.destinations.insert((service, report.destination.key), count);
            }
        }
        live
    }

    fn touched_by(&self, change: &Change) -> u64 {
        let count = match change {
            Change::SetTimeouts(_) => return self.services.values().sum(),
            Change::AddService(service) | Change::EditService(service) => self.services.get(&service.key),
            Change::DeleteService(key) => self.services.get(key),
            Change::AddDestination(..) | Change::SetMarkRules(_) => None,
            Change::EditDestination(key, destination) => self.destinations.get(&(*key, destination.key)),
            Change::DeleteDestination(key, destination) => self.destinations.get(&(*key, *destination)),
        };
        count.copied().unwrap_or_default()
    }
}

#[cfg(test)]
mod tests;
