//! Choosing a destination: the rules of `lb-common`, driven over a destination set in the arena.
//!
//! IPVS counterpart: `ip_vs_sched.c`.

use core::ffi::c_void;

use aya_ebpf::helpers::generated::bpf_loop;
use lb_common::destination::DestinationId;
use lb_common::scheduler::lc::LeastConnections;
use lb_common::scheduler::rr::RoundRobin;
use lb_common::scheduler::wlc::WeightedLeastConnections;
use lb_common::scheduler::wrr::{Ladder, WeightedRoundRobin};
use lb_common::scheduler::{Candidate, Cursor, MAX_PASSES, Scheduler, Search, address, sh};
use lb_common::service::SetHeader;
use lb_common::tuple::Tuple;

use crate::machine::opaque;
use crate::maps::{self, DestinationRef, SetHeaderRef};

/// How often a scheduler with a cursor tries again when other CPUs move it meanwhile.
const ATTEMPTS: u32 = 4;

/// The destination that a service gives a new connection, if it has one that may take it.
#[inline(always)]
pub fn schedule(service: u32, tuple: &Tuple) -> Option<DestinationId> {
    let id = scheduler_schedule(service, tuple.raw_source());
    (id != NOBODY).then_some(id as DestinationId)
}

const NOBODY: u64 = u64::MAX;

/// [`schedule`], checked by the verifier once for all calls; see `connection`.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn scheduler_schedule(service: u32, source: u32) -> u64 {
    choose(service, source).map_or(NOBODY, u64::from)
}

#[inline(always)]
fn choose(service: u32, source: u32) -> Option<DestinationId> {
    let line = maps::service_set(service)?;
    if line == 0 {
        return None;
    }
    let set = SetHeaderRef::at(line)?;
    let header = set.read();
    let position = if header.scheduler == Scheduler::SourceHash as u32 {
        by_source(line, &header, source)?
    } else {
        by_search(line, set, &header)?
    };
    maps::arena_number(line + 1, position)
}

/// Source hashing: the position that the client's bucket holds.
#[inline(always)]
fn by_source(line: u32, header: &SetHeader, source: u32) -> Option<u32> {
    let bucket = sh::bucket(address::key_v4(source.to_ne_bytes()), 0);
    let position = maps::arena_number(line + SetHeader::table_line(header.length), bucket)?;
    let id = maps::arena_number(line + 1, position)?;
    candidate(id)?.usable().then_some(position)
}

/// A search that any of the list-scanning schedulers makes.
#[derive(Clone, Copy)]
enum AnySearch {
    RoundRobin(RoundRobin),
    WeightedRoundRobin(WeightedRoundRobin),
    LeastConnections(LeastConnections),
    WeightedLeastConnections(WeightedLeastConnections),
}

macro_rules! each {
    ($search:expr, $inner:ident => $do:expr) => {
        match $search {
            AnySearch::RoundRobin($inner) => $do,
            AnySearch::WeightedRoundRobin($inner) => $do,
            AnySearch::LeastConnections($inner) => $do,
            AnySearch::WeightedLeastConnections($inner) => $do,
        }
    };
}

/// A pass over the list, as the loop's callback gets it.
struct Pass {
    search: AnySearch,
    line: u32,
    length: u32,
    first: u32,
}

/// Runs a search from the set's cursor and moves that on; again if another CPU moved it first.
#[inline(always)]
fn by_search(line: u32, set: SetHeaderRef, header: &SetHeader) -> Option<u32> {
    let mut choice = None;
    for _ in 0..ATTEMPTS {
        let before = set.cursor();
        let (position, after) = search(line, header, before)?;
        choice = position;
        if after == before || set.move_cursor(before, after) {
            break;
        }
    }
    choice
}

/// One search: the choice, and the cursor after it. None if the scheduler is not one that searches.
#[inline(always)]
fn search(line: u32, header: &SetHeader, cursor: u64) -> Option<(Option<u32>, u64)> {
    let cursor_then = Cursor::from(cursor);
    let ladder = Ladder { divisor: header.divisor, top: header.top };
    // Compared as numbers: a table of names and pointers is nothing that a BPF program can have.
    let is = |scheduler: Scheduler| header.scheduler == scheduler as u32;
    let search = if is(Scheduler::RoundRobin) {
        AnySearch::RoundRobin(RoundRobin::new(cursor_then))
    } else if is(Scheduler::WeightedRoundRobin) {
        AnySearch::WeightedRoundRobin(WeightedRoundRobin::new(cursor_then, ladder))
    } else if is(Scheduler::LeastConnections) {
        AnySearch::LeastConnections(LeastConnections::new())
    } else if is(Scheduler::WeightedLeastConnections) {
        AnySearch::WeightedLeastConnections(WeightedLeastConnections::new())
    } else {
        return None;
    };
    let mut pass = Pass { search, line: line + 1, length: header.length, first: 0 };
    for _ in 0..MAX_PASSES {
        pass.first = each!(pass.search, search => search.first());
        // SAFETY: the callback has the signature that the helper calls, and gets the pointer it expects.
        unsafe { bpf_loop(pass.length, consider as *mut c_void, core::ptr::from_mut(&mut pass).cast(), 0) };
        if !each!(&mut pass.search, search => search.again()) {
            break;
        }
    }
    let (position, after) = each!(pass.search, search => search.finish());
    // A scheduler without state leaves the cursor alone.
    let keeps =
        matches!(pass.search, AnySearch::LeastConnections(_) | AnySearch::WeightedLeastConnections(_));
    Some((position, if keeps { cursor } else { after.into() }))
}

/// The loop's callback: shows the search one destination; 1 ends the loop.
extern "C" fn consider(index: u32, pass: *mut Pass) -> i64 {
    // SAFETY: `search` passes a live pass, and nothing else has it during the loop.
    let pass = unsafe { &mut *pass };
    let mut position = if pass.first >= pass.length { index } else { pass.first + index };
    if position >= pass.length {
        position -= pass.length;
    }
    let Some(id) = maps::arena_number(pass.line, position) else { return 1 };
    let Some(candidate) = candidate(id) else { return 1 };
    let ends = each!(&mut pass.search, search => search.consider(position, &candidate));
    // The verifier wants to see that it is 0 or 1.
    (opaque(ends.into()) & 1) as i64
}

/// A destination as the schedulers see it.
#[inline(always)]
fn candidate(id: DestinationId) -> Option<Candidate> {
    let destination = DestinationRef::at(id)?;
    Some(Candidate {
        weight: destination.weight(),
        active: destination.active(),
        total: destination.total(),
        overloaded: destination.overloaded() != 0,
    })
}
