//! lblc and lblcr: what an address has in the cache, looked at, replaced, grown and shrunk.
//!
//! Two CPUs that change an address's set at the same moment leave the change of one: the other's is made again when it
//! is due again. IPVS counterpart: `ip_vs_lblc_schedule`, `ip_vs_lblcr_schedule`.

use core::ffi::c_void;

use aya_ebpf::helpers::generated::bpf_loop;
use lb_common::destination::{AVAILABLE, DestinationId};
use lb_common::scheduler::cache::{CHECKED, CacheKey};
use lb_common::scheduler::lblc::{Relief, is_hot, serves};
use lb_common::scheduler::lblcr::Members;
use lb_common::scheduler::{Scheduler, Search};
use lb_common::sysctl::Sysctl;

use super::scan::{self, NOBODY};
use crate::clock;
use crate::machine::opaque;
use crate::maps::{self, DestinationRef, Scratch, ServiceRef, SetHeaderRef, settings};

/// The destination of a new connection between two addresses, which are keys of [`lb_common::scheduler::address`]; of a
/// service of IPv6 they lie in the scratch room.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn locality_choose(service: u32, source: u32, destination: u32) -> u64 {
    choose(service, source, destination).map_or(NOBODY, u64::from)
}

#[inline(always)]
fn choose(slot: u32, source: u32, destination: u32) -> Option<DestinationId> {
    let settings = settings();
    let service = ServiceRef::at(slot)?;
    let line = service.set();
    let header = SetHeaderRef::at(line)?.read();
    let Scratch { cache_key: key, cached, client_addresses: seen, by_error, .. } = maps::scratch().ok()?;
    let (source, destination) = if service.family() == 6 {
        (seen.source, seen.destination)
    } else {
        ([source.into(), 0], [destination.into(), 0])
    };
    // Which is the destination that an error is about: see `scheduler_schedule`.
    let address = if *by_error { source } else { destination };
    *key = CacheKey { address, cache: service.cache().into() };

    let now = clock::now(settings);
    let second = settings.ticks_per_second();
    let replicates = header.scheduler == Scheduler::LocalityLeastConnectionsReplicated as u32;
    let sysctl = if replicates { Sysctl::LblcrExpiration } else { Sysctl::LblcExpiration };
    let expiration = settings.sysctl(sysctl).saturating_mul(second);
    if !maps::recall_cached(key, cached) || cached.is_dropped(expiration, CHECKED.wrapping_mul(second), now) {
        cached.clear();
    }
    let mut changed = cached.length != 0 && now.wrapping_sub(cached.used) >= second;
    let own = if replicates {
        let members = members(slot, cached.ranks())?;
        let least = members.least();
        // As a number, or the compiler would put aside what it has not read where there is none, which the verifier refuses.
        let id = opaque(least.map_or(NOBODY, |(rank, _)| cached.member(rank).into()));
        let least = (id != NOBODY).then(|| (id as DestinationId, least.is_some_and(|(_, hot)| hot)));
        if cached.shrinks(expiration, now)
            && let Some(rank) = members.most()
        {
            cached.remove(rank, now);
            changed = true;
        }
        least
    } else if cached.length != 0 {
        own(slot, cached.member(0))
    } else {
        None
    };
    let mut choice = own.map(|(id, _)| id);
    if !matches!(own, Some((_, false))) {
        let relief = scan::run(line, &header, Relief::new())?;
        if own.is_none() || relief.relieves() {
            choice = relief.finish().0.and_then(|position| maps::arena_number(line + 1, position));
            if let Some(id) = choice {
                changed = true;
                if replicates { cached.insert(id, now) } else { cached.replace(id, now) }
            }
        }
    }
    if changed {
        cached.used = now;
        maps::cache(key, cached);
    }
    choice
}

/// The cached destination if it serves, and whether it is hot.
#[inline(always)]
fn own(service: u32, id: DestinationId) -> Option<(DestinationId, bool)> {
    let destination = DestinationRef::at(id)?;
    let candidate = scan::seen(destination);
    (is_of(destination, service) && serves(&candidate)).then(|| (id, is_hot(&candidate)))
}

/// Whether a destination is a service's and not deleted.
#[inline(always)]
fn is_of(destination: DestinationRef, service: u32) -> bool {
    destination.status() & AVAILABLE != 0 && destination.service() == service
}

/// A pass over the cached set.
#[derive(Clone, Copy)]
struct Pass {
    members: Members,
    service: u32,
}

/// Looks at so many ranks of the set in the scratch room.
#[inline(always)]
fn members(service: u32, length: u32) -> Option<&'static Members> {
    let mut pass = maps::keep_search(Pass { members: Members::new(), service })?;
    // SAFETY: the callback has the signature that the helper calls, and gets the pointer it expects.
    unsafe { bpf_loop(length, consider as *mut c_void, (&raw mut pass).cast(), 0) };
    Some(&pass.members)
}

/// The loop's callback: looks at one member.
extern "C" fn consider(rank: u32, pass: *mut &mut Pass) -> i64 {
    // SAFETY: `members` passes a live pass, and nothing else has it during the loop.
    let pass = unsafe { &mut **pass };
    if let Ok(scratch) = maps::scratch()
        && let Some(destination) = DestinationRef::at(scratch.cached.member(rank))
    {
        let deleted = !is_of(destination, pass.service);
        pass.members.consider(rank, &scan::seen(destination), deleted);
    }
    0
}
