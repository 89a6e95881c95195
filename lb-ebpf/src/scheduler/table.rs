//! Looking into the table of a hashing scheduler, which user space has filled.

use core::ffi::c_void;

use aya_ebpf::helpers::generated::bpf_loop;
use lb_common::scheduler::{Scheduler, dh, mh, sh};
use lb_common::service::{SetHeader, flags};

use super::scan::{candidate, zero_or_one};
use crate::maps;

/// What hashing schedulers look at.
pub struct Flow {
    pub source: u32,
    pub port: u32,
    pub destination: u32,
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
pub fn by_table(line: u32, header: &SetHeader, service_flags: u32, flow: &Flow) -> Option<u32> {
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
