//! Choosing a destination: the rules of `lb-common`, driven over a destination set in the arena.
//!
//! IPVS counterpart: `ip_vs_sched.c`.

mod locality;
mod scan;
mod table;
mod tree;

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
use lb_common::scheduler::{Scheduler, address};
use lb_common::service::SetHeader;
use lb_common::tuple::Tuple;

use self::scan::{NOBODY, random, search, with_cursor};
use self::table::{Flow, by_table};
use crate::machine::opaque;
use crate::maps::{self, ServiceRef, SetHeaderRef};

pub use self::tree::touch;

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
