//! Choosing a destination: the rules of `lb-common`, driven over a destination set in the arena.
//!
//! IPVS counterpart: `ip_vs_sched.c`.

use core::ffi::c_void;

use aya_ebpf::helpers::generated::{bpf_get_prandom_u32, bpf_loop};
use lb_common::connection::Addresses;
use lb_common::destination::DestinationId;
use lb_common::scheduler::fo::WeightedFailOver;
use lb_common::scheduler::lc::LeastConnections;
use lb_common::scheduler::nq::NeverQueue;
use lb_common::scheduler::ovf::WeightedOverflow;
use lb_common::scheduler::rr::RoundRobin;
use lb_common::scheduler::sed::ShortestExpectedDelay;
use lb_common::scheduler::twos::TwoChoices;
use lb_common::scheduler::wlc::WeightedLeastConnections;
use lb_common::scheduler::wrr::{Ladder, WeightedRoundRobin};
use lb_common::scheduler::{Candidate, Cursor, MAX_PASSES, Scheduler, Search, address, dh, mh, sh};
use lb_common::service::{LINE, SetHeader, flags};
use lb_common::tuple::Tuple;

use crate::machine::{opaque, settled_reference};
use crate::maps::{self, DestinationRef, ServiceRef, SetHeaderRef};
use crate::{locality, tree};

/// How often a scheduler with a cursor tries again when other CPUs move it meanwhile.
const ATTEMPTS: u32 = 4;

/// The destination that a service gives a new connection, if it has one that may take it. `source` is the client's
/// address as hashes take it, see [`lb_common::scheduler::address`].
#[inline(always)]
pub fn schedule(service: u32, tuple: &Tuple, addresses: &Addresses) -> Option<DestinationId> {
    let (source, destination) = if tuple.is_ipv6() {
        (address::key_v6_words(addresses.source), address::key_v6_words(addresses.destination))
    } else {
        let key = |raw: u32| address::key_v4(raw.to_ne_bytes());
        (key(tuple.raw_source()), key(tuple.raw_destination()))
    };
    let mut id = scheduler_schedule(service, source, tuple.source_port().into(), destination);
    // Not called from there, as the stack is short.
    if id == u64::from(BY_LOCALITY) {
        id = locality::locality_choose(service, source, destination);
    } else if id == u64::from(BY_TREE) {
        id = tree::tree_choose(service);
    }
    (id != NOBODY).then_some(id as DestinationId)
}

/// No destination.
pub const NOBODY: u64 = u64::MAX;
/// In the place of a destination, as none has this number: the scheduler is lblc or lblcr.
const BY_LOCALITY: DestinationId = DestinationId::MAX;
/// The same: the set has a tree of winners or sums.
const BY_TREE: DestinationId = DestinationId::MAX - 1;

/// [`schedule`], checked by the verifier once for all calls; see `connection`. Addresses are keys of
/// [`address`], the port is in host order.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn scheduler_schedule(service: u32, source: u32, port: u32, destination: u32) -> u64 {
    // IPVS takes the client for the destination that an ICMP error is about, as the packet that it quotes went there.
    let by_error = maps::scratch().is_ok_and(|scratch| scratch.by_error);
    let destination = if by_error { source } else { destination };
    choose(service, &Flow { source, port, destination }).map_or(NOBODY, u64::from)
}

/// What hashing schedulers look at.
struct Flow {
    source: u32,
    port: u32,
    destination: u32,
}

#[inline(always)]
fn choose(service: u32, flow: &Flow) -> Option<DestinationId> {
    let service = ServiceRef::at(service)?;
    let line = service.set();
    if line == 0 {
        return None;
    }
    let set = SetHeaderRef::at(line)?;
    let header = set.read();
    let scheduler = header.scheduler;
    if scheduler == Scheduler::LocalityLeastConnections as u32
        || scheduler == Scheduler::LocalityLeastConnectionsReplicated as u32
    {
        return Some(BY_LOCALITY);
    }
    if header.tree != 0 || header.table != 0 && scheduler == Scheduler::TwoChoices as u32 {
        return Some(BY_TREE);
    }
    let position = if header.table == 0 {
        by_search(line, set, &header)?
    } else {
        by_table(line, &header, service.flags(), flow)?
    };
    maps::arena_number(line + 1, position)
}

/// Looks into the table of sh, dh or mh; as the loop's callback gets it.
struct Look {
    scheduler: u32,
    destinations: u32,
    table: u32,
    size: u32,
    bucket: u32,
    key: u32,
    port: u16,
    choice: Option<u32>,
}

impl Look {
    /// Looks into a bucket; whether that ends the search, with a choice or without any hope.
    #[inline(always)]
    fn try_bucket(&mut self, bucket: u32) -> bool {
        let Some(position) = maps::arena_number(self.table, bucket) else { return true };
        // No position is that large, so that an empty bucket (of any of the three) leads to no destination.
        let id = if position == sh::EMPTY { None } else { maps::arena_number(self.destinations, position) };
        let Some(candidate) = id.and_then(candidate) else { return true };
        if candidate.usable() {
            self.choice = Some(position);
        }
        self.choice.is_some()
    }
}

/// The position that a flow's bucket holds; with the fallback flag that of another bucket if need be.
#[inline(always)]
fn by_table(line: u32, header: &SetHeader, service_flags: u32, flow: &Flow) -> Option<u32> {
    let mut look = Look {
        scheduler: header.scheduler,
        destinations: line + 1,
        table: line + SetHeader::table_line(header.length),
        size: header.table,
        bucket: 0,
        key: flow.source,
        port: if service_flags & flags::SCHEDULER_2 != 0 { flow.port as u16 } else { 0 },
        choice: None,
    };
    let by_destination = header.scheduler == Scheduler::DestinationHash as u32;
    look.bucket = if by_destination {
        dh::bucket(flow.destination)
    } else if header.scheduler == Scheduler::SourceHash as u32 {
        sh::bucket(look.key, look.port)
    } else {
        mh::bucket(look.key, look.port, look.size)
    };
    if !look.try_bucket(look.bucket) && service_flags & flags::SCHEDULER_1 != 0 && !by_destination {
        // SAFETY: the callback has the signature that the helper calls, and gets the pointer it expects.
        unsafe { bpf_loop(look.size, look_on as *mut c_void, core::ptr::from_mut(&mut look).cast(), 0) };
    }
    look.choice
}

/// The loop's callback: looks into one more bucket; 1 ends the loop.
extern "C" fn look_on(offset: u32, look: *mut Look) -> i64 {
    // SAFETY: `by_table` passes a live look, and nothing else has it during the loop.
    let look = unsafe { &mut *look };
    let bucket = if look.scheduler == Scheduler::SourceHash as u32 {
        sh::probe(look.bucket, offset)
    } else {
        mh::probe(look.bucket, offset, look.key, look.port, look.size)
    };
    zero_or_one(look.try_bucket(bucket))
}

/// The position that the search of the set's scheduler chooses. None if the scheduler is not one that searches.
#[inline(always)]
fn by_search(line: u32, set: SetHeaderRef, header: &SetHeader) -> Option<u32> {
    let ladder = Ladder { divisor: header.divisor, top: header.top };
    // Compared one by one: the compiler would make a table, which is nothing that a BPF program can have.
    let scheduler = opaque(header.scheduler.into());
    macro_rules! searches {
        ($($name:ident => $choice:expr,)+) => {
            $(if scheduler == Scheduler::$name as u64 { return $choice; })+
        };
    }
    searches! {
        RoundRobin => with_cursor(line, set, header, RoundRobin::new),
        WeightedRoundRobin => with_cursor(line, set, header, |cursor| WeightedRoundRobin::new(cursor, ladder)),
        LeastConnections => search(line, header, LeastConnections::new()).0,
        WeightedLeastConnections => search(line, header, WeightedLeastConnections::new()).0,
        ShortestExpectedDelay => search(line, header, ShortestExpectedDelay::new()).0,
        NeverQueue => search(line, header, NeverQueue::new()).0,
        WeightedFailOver => search(line, header, WeightedFailOver::new()).0,
        WeightedOverflow => search(line, header, WeightedOverflow::new()).0,
        TwoChoices => search(line, header, TwoChoices::new([random(), random()])).0,
    }
    None
}

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
fn with_cursor<S: Search + 'static>(
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
fn search<S: Search + 'static>(line: u32, header: &SetHeader, search: S) -> (Option<u32>, u64) {
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
    if S::ROTATES && pass.first >= pass.length {
        pass.first = 0;
    }
    let mut index = 0;
    while index < LINE as u32 && index < pass.length {
        // In the map all the time: what the search has seen is just numbers to the verifier, whatever way led to them.
        let pass = settled_reference(pass);
        let mut position = index;
        if S::ROTATES {
            position = position.wrapping_add(pass.first);
            if position >= pass.length {
                position = position.wrapping_sub(pass.length);
            }
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
fn zero_or_one(ends: bool) -> i64 {
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
