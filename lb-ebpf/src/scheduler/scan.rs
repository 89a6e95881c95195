//! Driving a search over the destinations of a set.

use core::ffi::c_void;

use aya_ebpf::helpers::generated::{bpf_get_prandom_u32, bpf_loop};
use lb_common::destination::DestinationId;
use lb_common::scheduler::{Candidate, Cursor, MAX_PASSES, Search};
use lb_common::service::{LINE, SetHeader};

use crate::machine::{opaque, settled_reference};
use crate::maps::{self, DestinationRef, LineRef, SetHeaderRef};

/// No destination.
pub const NOBODY: u64 = u64::MAX;

/// How often a scheduler with a cursor tries again when other CPUs move it meanwhile.
const ATTEMPTS: u32 = 4;

/// A random number.
#[inline(always)]
pub fn random() -> u32 {
    // SAFETY: the helper takes nothing.
    unsafe { bpf_get_prandom_u32() }
}

/// A pass over the list.
#[derive(Clone, Copy)]
struct Pass<S> {
    search: S,
    line: u32,
    length: u32,
    first: u32,
}

/// Searches from the set's cursor and moves that on; again if another CPU moved it first.
#[inline(always)]
pub fn with_cursor<S: Search + 'static>(
    line: u32,
    set: SetHeaderRef,
    header: &SetHeader,
    new: impl Fn(Cursor) -> S,
) -> Option<u32> {
    let mut choice = None;
    for _ in 0..ATTEMPTS {
        let before = set.cursor();
        let (position, after) = search(line, header, new(before.into()));
        choice = position;
        if after == before || set.move_cursor(before, after) {
            break;
        }
    }
    choice
}

/// One search: the choice, and the cursor after it.
#[inline(always)]
pub fn search<S: Search + 'static>(line: u32, header: &SetHeader, search: S) -> (Option<u32>, u64) {
    let few = header.length <= LINE as u32;
    let done = if few { run_over_few(line, header, search) } else { run(line, header, search) };
    let Some(search) = done else { return (None, 0) };
    let (position, after) = search.finish();
    (position, after.into())
}

/// Runs a search over a set.
#[inline(always)]
pub fn run<S: Search + 'static>(line: u32, header: &SetHeader, search: S) -> Option<&'static S> {
    run_over(line + 1, header.length, search)
}

/// Runs a search over so many destinations whose numbers begin at a line of the arena.
///
/// Compiled for each scheduler apart, as is its loop's callback: what is done for each of thousands of destinations should
/// not ask each time which scheduler it is.
#[inline(always)]
pub fn run_over<S: Search + 'static>(line: u32, length: u32, search: S) -> Option<&'static S> {
    let pass = Pass { search, line, length, first: 0 };
    let mut pass = maps::keep_search(pass)?;
    for _ in 0..MAX_PASSES {
        pass.first = pass.search.first();
        // The helper takes a pointer to the stack only: so it gets one to where the pointer to the pass lies.
        // SAFETY: the callback has the signature that the helper calls, and gets the pointer it expects.
        unsafe { bpf_loop(length, consider::<S> as *mut c_void, (&raw mut pass).cast(), 0) };
        if !pass.search.again() {
            break;
        }
    }
    Some(&pass.search)
}

/// [`run`], over no more than a line of destinations: so few that the calls of a loop would cost more than what they do.
#[inline(always)]
fn run_over_few<S: Search + 'static>(line: u32, header: &SetHeader, search: S) -> Option<&'static S> {
    let pass = Pass { search, line: line + 1, length: header.length, first: 0 };
    let pass = maps::keep_search(pass)?;
    for _ in 0..MAX_PASSES {
        pass.first = pass.search.first();
        consider_few(pass);
        if !pass.search.again() {
            break;
        }
    }
    Some(&pass.search)
}

/// Shows the search all destinations, in turn.
#[inline(always)]
fn consider_few<S: Search>(pass: &mut Pass<S>) {
    let Some(numbers) = maps::arena_line(pass.line) else { return };
    if S::ROTATES {
        return consider_around(pass, numbers);
    }
    // A loop that is written out: where each number lies is known then.
    macro_rules! consider {
        ($($position:literal)+) => {$(
            if $position >= pass.length {
                return;
            }
            // In the map all the time: what the search has seen is just numbers to the verifier, whatever way led to them.
            let pass = settled_reference(pass);
            let Some(seen) = candidate(numbers.number_at::<$position>()) else { return };
            if pass.search.consider($position, &seen) {
                return;
            }
        )+};
    }
    const { assert!(LINE == 16) };
    consider!(0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15);
}

/// [`consider_few`], of a search that does not begin with the first.
#[inline(always)]
fn consider_around<S: Search>(pass: &mut Pass<S>, numbers: LineRef) {
    if pass.first >= pass.length {
        pass.first = 0;
    }
    let mut index = 0;
    while index < LINE as u32 && index < pass.length {
        let pass = settled_reference(pass);
        let mut position = index.wrapping_add(pass.first);
        if position >= pass.length {
            position = position.wrapping_sub(pass.length);
        }
        let Some(candidate) = candidate(numbers.number(position)) else { return };
        if pass.search.consider(position, &candidate) {
            return;
        }
        index = opaque(u64::from(index) + 1) as u32;
    }
}

/// The loop's callback: shows the search one destination; 1 ends the loop.
extern "C" fn consider<S: Search>(index: u32, pass: *mut &mut Pass<S>) -> i64 {
    // SAFETY: `search` passes a live pass, and nothing else has it during the loop.
    let pass = unsafe { &mut **pass };
    let mut position = if pass.first >= pass.length { index } else { pass.first + index };
    if position >= pass.length {
        position -= pass.length;
    }
    let Some(id) = maps::arena_number(pass.line, position) else { return 1 };
    // In a tree of winners a line may have none.
    let Some(candidate) = candidate(id) else { return 0 };
    zero_or_one(pass.search.consider(position, &candidate))
}

/// What a loop's callback returns. The verifier wants to see that it is 0 or 1.
#[inline(always)]
pub fn zero_or_one(ends: bool) -> i64 {
    (opaque(ends.into()) & 1) as i64
}

/// A destination as the schedulers see it.
#[inline(always)]
pub fn candidate(id: DestinationId) -> Option<Candidate> {
    DestinationRef::at(id).map(seen)
}

/// [`candidate`], of one that was found.
#[inline(always)]
pub fn seen(destination: DestinationRef) -> Candidate {
    Candidate {
        weight: destination.weight(),
        active: destination.active(),
        total: destination.total(),
        overloaded: destination.overloaded() != 0,
    }
}
