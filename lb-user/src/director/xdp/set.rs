//! Destination sets: read from the arena, built beside the old one, moved to with one store.
//!
//! IPVS counterpart: the `add_dest`, `del_dest` and `upd_dest` hooks of its schedulers.

use std::collections::BTreeMap;
use std::mem::offset_of;
use std::net::IpAddr;

use lb_common::destination::{Destination, DestinationId, Load};
use lb_common::scheduler::wrr::Ladder;
use lb_common::scheduler::{Cursor, Scheduler, address, dh, mh, sh, tree, twos};
use lb_common::service::{LINE, MAX_DESTINATIONS, Service, SetHeader};
use lb_common::settings::Settings;
use zerocopy::{FromBytes, IntoBytes};

use super::address_of;
use super::mapped::wait_for_readers;
use super::maps::Maps;
use crate::director::Error;

/// What happened to a set, as far as its scheduler asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    /// A destination came in at the head.
    Added,
    /// The destination at this position went.
    Removed(u32),
    /// A destination was edited.
    Edited,
    /// The service gets another scheduler.
    Rescheduled(Scheduler),
}

/// A service's destinations, newest first, with what its scheduler remembers.
#[derive(Debug, Clone)]
pub struct DestinationSet {
    /// Where the scheduler stands.
    pub cursor: Cursor,
    /// The destinations' numbers.
    pub ids: Vec<DestinationId>,
}

fn header_at(maps: &Maps, line: u32) -> Option<SetHeader> {
    SetHeader::read_from_bytes(maps.arena.read(line)?.as_bytes()).ok()
}

/// The set that a service has.
pub fn read(maps: &Maps, service: &Service) -> DestinationSet {
    let line = service.set as u32;
    let Some(header) = header_at(maps, line).filter(|_| line != 0) else {
        return DestinationSet { cursor: Cursor::START, ids: Vec::new() };
    };
    let mut ids = Vec::with_capacity(header.length as usize);
    let mut left = header.length.min(MAX_DESTINATIONS) as usize;
    for numbers in (line + 1..).map_while(|line| maps.arena.read(line)) {
        if left == 0 {
            break;
        }
        ids.extend_from_slice(&numbers[..left.min(LINE)]);
        left = left.saturating_sub(LINE);
    }
    DestinationSet { cursor: header.cursor.into(), ids }
}

impl DestinationSet {
    /// The set's lines, after a change.
    ///
    /// # Errors
    ///
    /// EINVAL for more destinations than the scheduler's table has room for.
    fn lines(
        &self,
        records: &[Destination],
        scheduler: Scheduler,
        (slot, family): (u32, u8),
        change: Change,
    ) -> Result<Vec<[u32; LINE]>, Error> {
        let ladder = Ladder::new(records.iter().map(|record| record.weight));
        let before = if matches!(change, Change::Rescheduled(_)) { Cursor::START } else { self.cursor };
        let cursor = match (scheduler, change) {
            (Scheduler::WeightedRoundRobin, _) => ladder.relevel(before),
            (_, Change::Added) => before.after_insertion(),
            (_, Change::Removed(position)) => before.after_removal(position),
            (_, Change::Edited | Change::Rescheduled(_)) => before,
        };
        let table = table(records, scheduler, family)?;
        let (length, table_length) = (self.ids.len() as u32, table.len() as u32);
        let tree = tree(scheduler, length);
        let header = SetHeader {
            cursor: cursor.into(),
            length,
            scheduler: scheduler as u32,
            service: slot,
            divisor: ladder.divisor,
            top: ladder.top,
            table: table_length,
            lines: SetHeader::lines(length, table_length.max(tree.len() as u32)),
            tree: if tree.is_empty() { 0 } else { SetHeader::table_line(length) },
            reserved: [0; 6],
        };
        let mut first = [0; LINE];
        first.as_mut_bytes().copy_from_slice(header.as_bytes());
        let mut lines = vec![first];
        for numbers in self.ids.chunks(LINE).chain(table.chunks(LINE)).chain(tree.chunks(LINE)) {
            let mut line = [0; LINE];
            line[..numbers.len()].copy_from_slice(numbers);
            lines.push(line);
        }
        Ok(lines)
    }
}

/// The table of a scheduler that hashes, or the sums of twos over a large set; empty for the others. dh has it made anew on an edit too, which changes
/// nothing: weights do not matter to it.
fn table(records: &[Destination], scheduler: Scheduler, family: u8) -> Result<Vec<u32>, Error> {
    match scheduler {
        Scheduler::SourceHash => {
            let weights: Vec<u32> = records.iter().map(|record| record.weight).collect();
            let mut buckets = [0; sh::BUCKETS];
            sh::fill(&weights, &mut buckets);
            Ok(buckets.to_vec())
        }
        Scheduler::DestinationHash => {
            let mut buckets = [0; dh::BUCKETS];
            dh::fill(records.len() as u32, &mut buckets);
            Ok(buckets.to_vec())
        }
        Scheduler::Maglev => {
            let turns = mh::Turns::new(records.iter().map(|record| record.last_weight), mh::DEFAULT_SIZE);
            let permutation = |record: &Destination| {
                let (port, turns) = (u16::from_be(record.port), turns.of(record.last_weight));
                mh::Permutation::new(address_key(record, family), port, turns, mh::DEFAULT_SIZE)
            };
            let mut permutations: Vec<_> = records.iter().map(permutation).collect();
            let mut entries = vec![0; mh::DEFAULT_SIZE as usize];
            mh::populate(&mut permutations, &mut entries).map_err(|_| Error::Invalid)?;
            Ok(entries)
        }
        Scheduler::TwoChoices if records.len() as u32 > tree::SCANNED => {
            let mut sums = vec![0; records.len()];
            let fits = twos::fill_sums(records.iter().map(|record| record.weight), &mut sums);
            Ok(fits.map_or(Vec::new(), |()| sums))
        }
        _ => Ok(Vec::new()),
    }
}

/// The tree of winners of a set that has one, in which nobody has won yet and every line is marked.
fn tree(scheduler: Scheduler, length: u32) -> Vec<u32> {
    if !tree::has_tree(scheduler, length) {
        return Vec::new();
    }
    let shape = tree::Shape { length };
    let mut numbers = vec![tree::NOBODY; shape.size() as usize];
    let (marks, _) = numbers.split_at_mut(LINE);
    marks.fill(0);
    for (word, mark) in marks.chunks_mut(2).zip(shape.marks()) {
        word.as_mut_bytes().copy_from_slice(mark.as_bytes());
    }
    numbers
}

/// A destination's address as hashing schedulers take it: as one of its service's family, so that of an IPv6 address behind
/// an IPv4 service only the first word counts.
fn address_key(record: &Destination, family: u8) -> u32 {
    match address_of(record.address, family) {
        IpAddr::V4(address) => address::key_v4(address.octets()),
        IpAddr::V6(address) => address::key_v6(address.octets()),
    }
}

/// Which lines of the arena are in use, as one process knows it.
#[derive(Debug, Default)]
pub struct Arena {
    used: BTreeMap<u32, u32>,
}

impl Arena {
    /// Finds out from the services.
    pub fn of(maps: &Maps) -> Self {
        let services = (0..maps.settings().services_used).filter_map(|slot| maps.services.read(slot));
        let lines =
            services.filter(|service| service.family != 0 && service.set != 0).filter_map(|service| {
                let line = service.set as u32;
                header_at(maps, line).map(|header| (line, header.lines))
            });
        Self { used: lines.collect() }
    }

    /// Finds room for so many lines.
    ///
    /// The search goes on where the last one ended, in whatever process. So lines that are given back rest until
    /// the search has come around, and then it waits until no packet can be reading them any more.
    fn allocate(&mut self, maps: &Maps, lines: u32) -> Result<u32, Error> {
        let end = maps.arena.count();
        let mut at = maps.settings().arena_next.clamp(1, end);
        let mut around = false;
        loop {
            if let Some((start, length)) = self.used.range(..=at).next_back()
                && start + length > at
            {
                at = start + length;
            }
            let limit = self.used.range(at..).next().map_or(end, |(start, _)| *start);
            if limit.saturating_sub(at) >= lines {
                self.used.insert(at, lines);
                maps.settings.store_u32(0, offset_of!(Settings, arena_next), at + lines);
                return Ok(at);
            }
            if limit < end {
                at = limit;
            } else if around {
                return Err(Error::Errno(libc::ENOMEM));
            } else {
                around = true;
                at = 1;
                wait_for_readers();
            }
        }
    }

    /// Gives a service another set, or none if it has no destinations any more.
    ///
    /// # Errors
    ///
    /// ENOMEM when there is no room, EINVAL for more destinations than the scheduler can have.
    pub fn replace(
        &mut self,
        maps: &Maps,
        slot: u32,
        set: &DestinationSet,
        change: Change,
    ) -> Result<(), Error> {
        let Some(service) = maps.services.read(slot) else { return Err(Error::NoSuchService) };
        let before = u8::try_from(service.scheduler).ok().and_then(Scheduler::from_number);
        let scheduler = match change {
            Change::Rescheduled(scheduler) => scheduler,
            _ => before.unwrap_or(Scheduler::None),
        };
        let line = if set.ids.is_empty() {
            0
        } else {
            let records: Vec<_> = set.ids.iter().filter_map(|id| maps.destinations.read(*id)).collect();
            let lines = set.lines(&records, scheduler, (slot, service.family), change)?;
            let first = self.allocate(maps, lines.len() as u32)?;
            for (line, numbers) in (first..).zip(&lines) {
                maps.arena.write(line, numbers);
            }
            // Before the set is in use: who changes a load and finds the old place has changed it before anybody looks.
            let has_places = tree::has_tree(scheduler, set.ids.len() as u32);
            for (position, (id, record)) in (1..).zip(set.ids.iter().zip(&records)) {
                let place = if has_places { position } else { 0 };
                if record.load.place != place {
                    let word = offset_of!(Destination, load) + offset_of!(Load, place);
                    maps.destinations.store_u16(*id, word, place);
                }
            }
            first
        };
        maps.services.store_u64(slot, offset_of!(Service, set), line.into());
        self.used.remove(&(service.set as u32));
        Ok(())
    }
}
