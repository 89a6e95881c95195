//! What feeds programs with packets to measure them, and what the packet program is measured against: one step each, on
//! the same packets.
//!
//! Built by `cargo xtask bench` alone and never shipped. Each yardstick reads the flow at fixed places of an untagged
//! IPv4 frame without options, takes its one step, uses what it got, and passes the packet; it drops it when
//! the step failed, so that a yardstick that measures a miss is noticed.

#![cfg_attr(target_arch = "bpf", no_std, no_main, feature(core_intrinsics, asm_experimental_arch))]
#![cfg_attr(target_arch = "bpf", allow(internal_features, reason = "`machine` is the only door to them"))]
#![cfg_attr(not(target_arch = "bpf"), allow(dead_code, reason = "the host only lints this crate"))]
#![allow(missing_docs, reason = "the entry macro makes items that it does not document")]

#[allow(dead_code, reason = "the packet program's door; yardsticks only read")]
mod machine;
#[allow(dead_code, reason = "the packet program's door; yardsticks only read")]
mod packet;

use aya_ebpf::bindings::bpf_fib_lookup as FibLookup;
use aya_ebpf::bindings::xdp_action::{XDP_DROP, XDP_PASS};
use aya_ebpf::btf_maps::{Array, HashMap, PerCpuArray, ProgramArray};
use aya_ebpf::helpers::generated::{bpf_fib_lookup, bpf_redirect};
use aya_ebpf::macros::{btf_map, xdp};
use aya_ebpf::programs::XdpContext;
use lb_common::packet::Frame;

use crate::packet::Window;

/// Elements of the maps: many more than flows, so that the table's size is not what is measured.
const ELEMENTS: usize = 1 << 20;

/// Flows, keyed as [`flow`] reads them; user space puts a 1 for each.
#[btf_map]
static FLOWS: HashMap<[u32; 4], u64, ELEMENTS> = HashMap::new();

/// Cache lines, all zero.
#[btf_map]
static LINES: Array<[u64; 8], ELEMENTS> = Array::new();

/// Frames that are fed in turn, as [`feed`] wants them.
#[btf_map]
static FRAMES: Array<[u64; WORDS], ELEMENTS> = Array::new();

/// Whose turn it is.
#[btf_map]
static TURN: Array<Turn, 1> = Array::new();

/// Whose turn it is.
#[repr(C)]
struct Turn {
    /// The number of the frame that is fed next.
    next: u32,
    /// How many take turns.
    count: u32,
    /// Bytes of each.
    length: u32,
    /// Fills the element.
    reserved: u32,
}

/// What they are fed to.
#[btf_map]
static FED: ProgramArray<1> = ProgramArray::new();

/// Where [`generate`] and [`bounce`] send packets: the index of an interface.
#[btf_map]
static OUT: Array<u32, 1> = Array::new();

/// Packets that [`sink`] took.
#[btf_map]
static TAKEN: PerCpuArray<u64, 1> = PerCpuArray::new();

/// Bytes of a frame of IPv6; one of IPv4 has 60.
const FRAME_IPV6: usize = 74;
/// Words of [`FRAMES`] that a frame of IPv4 is made of, and all of them, of which one of IPv6 is.
const WORDS_IPV4: usize = 8;
const WORDS: usize = 10;

/// Makes the next frame of what the last run has left of the packet, and runs the program that is measured on it.
///
/// So one system call measures many packets, and nothing else passes through the caches meanwhile. The frame is written in
/// words that begin two bytes off, as the fields of an IP header do behind a link header: a field that is read at
/// once comes out of one word that was written at once, and the reader does not wait for the cache.
#[xdp]
pub fn feed(context: XdpContext) -> u32 {
    if next_frame(&context).is_none() {
        return XDP_DROP;
    }
    // SAFETY: nothing of this program's stack is used by the other.
    unsafe { FED.tail_call(&context, 0) };
    XDP_DROP
}

/// Sends the next frame on its way.
#[xdp]
pub fn generate(context: XdpContext) -> u32 {
    if next_frame(&context).is_none() { XDP_DROP } else { redirect() }
}

/// Sends a packet on as it is: the least that a director could do.
#[xdp]
pub fn bounce(_context: XdpContext) -> u32 {
    redirect()
}

/// Counts a packet and drops it.
#[xdp]
pub fn sink(_context: XdpContext) -> u32 {
    if let Some(taken) = TAKEN.get_ptr_mut(0) {
        // SAFETY: the element is this CPU's own.
        unsafe { *taken += 1 };
    }
    XDP_DROP
}

#[inline(always)]
fn redirect() -> u32 {
    // SAFETY: the helper takes two numbers.
    OUT.get(0).map_or(XDP_DROP, |out| unsafe { bpf_redirect(*out, 0) as u32 })
}

#[inline(always)]
fn next_frame(context: &XdpContext) -> Option<()> {
    // SAFETY: one CPU feeds; the pointer is to the only element, and nobody else has one.
    let turn = unsafe { &mut *TURN.get_ptr_mut(0)? };
    let frame = FRAMES.get(turn.next)?;
    let next = turn.next + 1;
    turn.next = if next < turn.count { next } else { 0 };
    let length = turn.length;
    let grown = Window::of(context).length() as i32 - length as i32;
    if grown != 0 && !packet::move_head(context, grown) {
        return None;
    }
    let mut window = Window::of(context);
    *window.bytes_mut(0)? = ((frame[0] >> 48) as u16).to_ne_bytes();
    for (number, word) in frame.iter().enumerate().take(WORDS_IPV4).skip(1) {
        *window.bytes_mut(8 * number - 6)? = word.to_ne_bytes();
    }
    if length == FRAME_IPV6 as u32 {
        for (number, word) in frame.iter().enumerate().skip(WORDS_IPV4) {
            *window.bytes_mut(8 * number - 6)? = word.to_ne_bytes();
        }
    }
    Some(())
}

/// Nothing: what a run costs with no program to speak of.
#[xdp]
pub fn bare(_context: XdpContext) -> u32 {
    XDP_PASS
}

/// One lookup in a BPF hash map, 16-byte key.
#[xdp]
pub fn hash(context: XdpContext) -> u32 {
    // SAFETY: the value is a number that nothing changes while the program is measured.
    pass(flow(&context).and_then(|flow| unsafe { FLOWS.get(flow) }).is_some_and(|value| *value == 1))
}

/// One line of a large array, by a hash of the flow.
#[xdp]
pub fn line(context: XdpContext) -> u32 {
    pass(flow(&context).and_then(|flow| LINES.get(place(&flow))).is_some_and(|line| line[0] == 0))
}

/// One question to the kernel about route and neighbour.
#[xdp]
pub fn route(context: XdpContext) -> u32 {
    pass(flow(&context).is_some_and(|flow| has_route(&context, &flow)))
}

fn pass(done: bool) -> u32 {
    if done { XDP_PASS } else { XDP_DROP }
}

/// Source, destination, both ports, and the protocol, loaded natively.
#[inline(always)]
fn flow(context: &XdpContext) -> Option<[u32; 4]> {
    let window = Window::of(context);
    let word = |offset| Some(u32::from_ne_bytes(*window.bytes::<4>(offset)?));
    Some([word(26)?, word(30)?, word(34)?, window.bytes::<1>(23)?[0].into()])
}

#[inline(always)]
fn place(flow: &[u32; 4]) -> u32 {
    (flow[0] ^ flow[2].rotate_left(7)).wrapping_mul(0x9e37_79b1) >> 12
}

#[inline(always)]
fn has_route(context: &XdpContext, flow: &[u32; 4]) -> bool {
    // SAFETY: plain numbers, for which zero is a value.
    let mut question: FibLookup = unsafe { core::mem::zeroed() };
    question.family = 2;
    question.l4_protocol = flow[3] as u8;
    question.ifindex = context.ingress_ifindex() as u32;
    question.__bindgen_anon_1.tot_len = 1;
    question.__bindgen_anon_3.ipv4_src = flow[0];
    question.__bindgen_anon_4.ipv4_dst = flow[1];
    let size = size_of::<FibLookup>() as i32;
    // SAFETY: context and structure are live, the size is the structure's own.
    unsafe { bpf_fib_lookup(context.ctx.cast(), core::ptr::from_mut(&mut question), size, 0) == 0 }
}

/// The licence, which the kernel wants to know before it lends its helpers.
#[cfg(target_arch = "bpf")]
#[unsafe(no_mangle)]
#[unsafe(link_section = "license")]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";

/// There is nothing to run on a host; the crate builds for it so that lints see the code.
#[cfg(not(target_arch = "bpf"))]
fn main() {}

#[cfg(target_arch = "bpf")]
#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}
