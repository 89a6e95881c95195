//! The tree of winners over a large set: marked when a destination's load changes, renewed and asked when one is chosen.
//!
//! One CPU renews it at a time. Another that chooses meanwhile takes what the tree says, which may have been the best a
//! moment ago, and scans the set if the tree has nobody. A large set of twos has sums of weights instead, which never change.

use core::ffi::c_void;

use aya_ebpf::helpers::generated::bpf_loop;
use lb_common::destination::DestinationId;
use lb_common::scheduler::fo::WeightedFailOver;
use lb_common::scheduler::lc::LeastConnections;
use lb_common::scheduler::nq::NeverQueue;
use lb_common::scheduler::ovf::WeightedOverflow;
use lb_common::scheduler::sed::ShortestExpectedDelay;
use lb_common::scheduler::tree::{NOBODY, Shape, WORDS};
use lb_common::scheduler::twos::{self, Bisection, TwoChoices};
use lb_common::scheduler::wlc::WeightedLeastConnections;
use lb_common::scheduler::{Scheduler, Search};
use lb_common::service::{LINE, SetHeader};

use super::scan;
use crate::machine::opaque;
use crate::maps::{self, DestinationRef, MarksRef, Renewal, ServiceRef, SetHeaderRef};

/// Notes that a destination's load has changed; after it has.
#[inline(always)]
pub fn touch(id: DestinationId, destination: DestinationRef) {
    if destination.place() != 0 {
        tree_touch(id);
    }
}

/// [`touch`], of one that is in a set with a tree.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn tree_touch(id: u32) -> u32 {
    let Some(destination) = DestinationRef::at(id) else { return 0 };
    let Some(service) = ServiceRef::at(destination.service()) else { return 0 };
    // The set first: who finds the new one finds the new place.
    let line = service.set();
    let tree = SetHeaderRef::at(line).map_or(0, SetHeaderRef::tree);
    let place = u32::from(destination.place());
    if tree != 0
        && place != 0
        && let Some(marks) = MarksRef::at(line + tree)
    {
        marks.set(place - 1);
    }
    1
}

/// The destination that a service with a tree or sums gives a new connection.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn tree_choose(service: u32) -> u64 {
    choose(service).map_or(scan::NOBODY, u64::from)
}

#[inline(always)]
fn choose(service: u32) -> Option<DestinationId> {
    let line = ServiceRef::at(service)?.set();
    let header = SetHeaderRef::at(line)?.read();
    let scheduler = opaque(header.scheduler.into());
    macro_rules! searches {
        ($($name:ident => $search:ty,)+) => {
            $(if scheduler == Scheduler::$name as u64 { return choose_by::<$search>(line, &header); })+
        };
    }
    if scheduler == Scheduler::TwoChoices as u64 {
        return by_sums(line, &header);
    }
    searches! {
        LeastConnections => LeastConnections,
        WeightedLeastConnections => WeightedLeastConnections,
        ShortestExpectedDelay => ShortestExpectedDelay,
        NeverQueue => NeverQueue,
        WeightedFailOver => WeightedFailOver,
        WeightedOverflow => WeightedOverflow,
    }
    None
}

/// How often twos draws until it meets somebody usable, before it scans the set.
const DRAWS: u32 = 4;
/// [`tree_draw`] drew the first who is usable, whoever that is.
const FIRST: u64 = u64::MAX - 1;

/// The choice of twos by its sums; by a scan if that has to look for somebody usable.
#[inline(always)]
fn by_sums(line: u32, header: &SetHeader) -> Option<DestinationId> {
    let (first, second) = (tree_draw(line), tree_draw(line));
    if first >= FIRST || second >= FIRST {
        let random = |drawn| if drawn == FIRST { 0 } else { scan::random() };
        let search = TwoChoices::new([random(first), random(second)]);
        let (position, _) = scan::run(line, header, search)?.finish();
        return maps::arena_number(line + 1, position?);
    }
    let (first, second) = (first as DestinationId, second as DestinationId);
    let (one, other) = (scan::candidate(first)?, scan::candidate(second)?);
    let wins = twos::second_wins((one.cost(), one.weight), (other.cost(), other.weight));
    Some(if wins { second } else { first })
}

/// Draws a destination by the sums of a set.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn tree_draw(line: u32) -> u64 {
    let Some(header) = SetHeaderRef::at(line) else { return scan::NOBODY };
    let length = header.read().length;
    let sums = line.wrapping_add(SetHeader::table_line(length));
    let Some(total) = maps::arena_number(sums, length.wrapping_sub(1)) else { return scan::NOBODY };
    for _ in 0..DRAWS {
        let number = twos::number(scan::random(), total);
        if number == 0 {
            return FIRST;
        }
        let mut drawing = Drawing { sums, number, bisection: Bisection::new(length) };
        let steps = Bisection::STEPS;
        // SAFETY: the callback has the signature that the helper calls, and gets the pointer it expects.
        unsafe { bpf_loop(steps, bisect as *mut c_void, core::ptr::from_mut(&mut drawing).cast(), 0) };
        if let Some(id) = maps::arena_number(line + 1, drawing.bisection.position())
            && scan::candidate(id).is_some_and(|candidate| candidate.usable())
        {
            return id.into();
        }
    }
    scan::NOBODY
}

/// A number that is looked for among the sums.
#[repr(C)]
struct Drawing {
    sums: u32,
    number: u32,
    bisection: Bisection,
}

/// The loop's callback: one step.
extern "C" fn bisect(_: u32, drawing: *mut Drawing) -> i64 {
    // SAFETY: `tree_draw` passes a live drawing, and nothing else has it during the loop.
    let drawing = unsafe { &mut *drawing };
    let sum = maps::arena_number(drawing.sums, drawing.bisection.position());
    drawing.bisection.step(sum.is_some_and(|sum| sum < drawing.number));
    0
}

#[inline(always)]
fn choose_by<S: Search + Default + 'static>(line: u32, header: &SetHeader) -> Option<DestinationId> {
    if header.tree == 0 {
        return None;
    }
    let (shape, tree) = (Shape { length: header.length }, line + header.tree);
    let marks = MarksRef::at(tree)?;
    let mut renewal = &mut maps::scratch().ok()?.renewal;
    let renews = marks.begin();
    if renews {
        *renewal = Renewal { line, tree, length: header.length, level: 0, word: 0, bits: 0, upper: 0 };
        // Every line of both levels, and a turn for each word and level.
        let turns = shape.numbers(1) + shape.numbers(2) + WORDS as u32 + 2;
        // SAFETY: the callback has the signature that the helper calls, and gets the pointer it expects.
        unsafe { bpf_loop(turns, renew::<S> as *mut c_void, (&raw mut renewal).cast(), 0) };
        marks.end();
    }
    let choice = best::<S>(tree + shape.line(2), shape.numbers(2));
    if choice.is_none() && !renews { best::<S>(line + 1, header.length) } else { choice }
}

/// The best of so many destinations whose numbers begin at a line of the arena.
#[inline(always)]
fn best<S: Search + Default + 'static>(line: u32, length: u32) -> Option<DestinationId> {
    let (position, _) = scan::run_over(line, length, S::default())?.finish();
    maps::arena_number(line, position?)
}

/// The loop's callback: renews the winner of one more line; 1 ends the loop.
extern "C" fn renew<S: Search + Default + 'static>(_: u32, renewal: *mut &mut Renewal) -> i64 {
    // SAFETY: `choose_by` passes a live renewal, and nothing else has it during the loop.
    let renewal = unsafe { &mut **renewal };
    if renewal.bits == 0 {
        if renewal.level != 0 {
            return 1;
        }
        if renewal.word < WORDS as u64 {
            let Some(marks) = MarksRef::at(renewal.tree) else { return 1 };
            renewal.bits = marks.take(renewal.word as usize);
            renewal.word += 1;
        } else {
            (renewal.level, renewal.bits) = (1, renewal.upper);
        }
        return 0;
    }
    let first = if renewal.level == 0 { (renewal.word as u32).wrapping_sub(1).wrapping_mul(64) } else { 0 };
    // The number of the lowest bit, for which the compiler would make a table, if it saw what this is.
    let lowest = renewal.bits & renewal.bits.wrapping_neg();
    let line = first.wrapping_add(opaque(lowest.wrapping_sub(1)).count_ones());
    renewal.bits ^= lowest;
    let shape = Shape { length: renewal.length };
    let (from, to) = if renewal.level == 0 {
        (renewal.line + 1, renewal.tree + shape.line(1))
    } else {
        (renewal.tree + shape.line(1), renewal.tree + shape.line(2))
    };
    let length = shape.numbers_in(renewal.level, line);
    // None for the mark of a destination that is in the set no more.
    if length != 0 {
        let winner = best::<S>(from.wrapping_add(line), length).unwrap_or(NOBODY);
        maps::set_arena_number(to, line, winner);
        if renewal.level == 0 {
            renewal.upper |= 1 << ((line / LINE as u32) & 63);
        }
    }
    0
}
