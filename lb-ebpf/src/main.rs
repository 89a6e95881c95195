//! The XDP program: fetch, decide with `lb-common`, store.
//!
//! One entry for packets, and programs that it goes on in when a packet is not its flow's usual one; below them every path
//! returns `Result<Verdict, Reason>`, and the one match that turns that into what the kernel wants is here. Three more
//! entries are run by user space through `BPF_PROG_TEST_RUN`: they start the sweep, sweep at once before a listing, and
//! take over connections.

#![cfg_attr(target_arch = "bpf", no_std, no_main, feature(core_intrinsics, asm_experimental_arch))]
#![cfg_attr(target_arch = "bpf", allow(internal_features, reason = "`machine` is the only door to them"))]
#![cfg_attr(not(target_arch = "bpf"), allow(dead_code, reason = "the host only lints this crate"))]
#![allow(missing_docs, reason = "the entry macro makes items that it does not document")]

mod adopt;
mod balance;
mod callback;
mod clock;
mod connection;
mod defence;
mod forward;
mod fragment;
mod icmp;
mod local_out;
mod machine;
mod maps;
mod mark;
mod offload;
mod open;
mod packet;
mod persistence;
mod scheduler;
mod sctp;
mod service;
mod sip;
mod stats;
mod steady;
mod sum;
mod sweep;
mod tunnel;
mod tunnel_error;
mod way_in;

use aya_ebpf::bindings::xdp_action::{XDP_ABORTED, XDP_DROP, XDP_PASS, XDP_TX};
use aya_ebpf::macros::{classifier, xdp};
use aya_ebpf::programs::{TcContext, XdpContext};
use lb_common::reason::{Fate, Reason};
use lb_common::settings::Program;

use crate::forward::{Verdict, or_by_stack};

/// Balances a packet in its flow's steady state; leaves any other to [`xipvs_slow`], and odd shapes to [`xipvs_general`].
#[xdp]
pub fn xipvs(context: XdpContext) -> u32 {
    steady::plain(&context, |outcome| act::<false>(&context, outcome))
}

/// [`xipvs`], for a veth: senders at its other end may leave checksums to it.
#[xdp]
pub fn xipvs_veth(context: XdpContext) -> u32 {
    // Whatever it was, the packet goes on.
    let _ = offload::finish(&context);
    act::<false>(&context, Ok(Verdict::GoOn(Program::Entry)))
}

/// [`xipvs`], for packets of any shape: tags, options, other protocols.
#[xdp]
pub fn xipvs_general(context: XdpContext) -> u32 {
    act::<false>(&context, steady::general(&context))
}

/// Balances a packet of a known flow, whatever it does to it; leaves the making of connections to [`xipvs_open`].
#[xdp]
pub fn xipvs_slow(context: XdpContext) -> u32 {
    act::<false>(&context, or_tell::<false>(&context, balance::any::<false>(&context)))
}

/// Makes a connection and sends its first packet on.
#[xdp]
pub fn xipvs_open(context: XdpContext) -> u32 {
    let outcome = open::open::<false>(&context);
    connection::leave_late();
    act::<false>(&context, or_tell::<false>(&context, outcome))
}

/// [`xipvs`] for IPv6.
#[xdp]
pub fn xipvs_ipv6(context: XdpContext) -> u32 {
    act::<true>(&context, steady::ipv6(&context))
}

/// [`xipvs_slow`] for IPv6.
#[xdp]
// Else the compiler finds it too large to be one function with its entry, whose frame there is no room for on the stack.
#[inline(always)]
pub fn xipvs_ipv6_slow(context: XdpContext) -> u32 {
    act::<true>(&context, or_tell::<true>(&context, balance::any::<true>(&context)))
}

/// [`xipvs_open`] for IPv6.
#[xdp]
pub fn xipvs_ipv6_open(context: XdpContext) -> u32 {
    let outcome = open::open::<true>(&context);
    connection::leave_late();
    act::<true>(&context, or_tell::<true>(&context, outcome))
}

/// Sends a packet of a known flow into its tunnel, whatever that takes.
#[xdp]
pub fn xipvs_tunnel(context: XdpContext) -> u32 {
    act::<false>(&context, or_tell::<false>(&context, tunnel::send::<false>(&context)))
}

/// [`xipvs_tunnel`] for IPv6.
#[xdp]
pub fn xipvs_ipv6_tunnel(context: XdpContext) -> u32 {
    act::<true>(&context, or_tell::<true>(&context, tunnel::send::<true>(&context)))
}

/// Tells the sender of a packet why it goes no further.
#[xdp]
pub fn xipvs_tell(context: XdpContext) -> u32 {
    act::<false>(&context, or_by_stack(&context, icmp::tell::<false>(&context)))
}

/// Sends an ICMP error about a connection to whom it concerns.
#[xdp]
pub fn xipvs_icmp(context: XdpContext) -> u32 {
    act::<false>(&context, or_by_stack(&context, icmp::relay::<false>(&context)))
}

/// [`xipvs_tell`] for IPv6.
#[xdp]
pub fn xipvs_ipv6_tell(context: XdpContext) -> u32 {
    act::<true>(&context, or_by_stack(&context, icmp::tell::<true>(&context)))
}

/// [`xipvs_icmp`] for IPv6.
#[xdp]
pub fn xipvs_ipv6_icmp(context: XdpContext) -> u32 {
    act::<true>(&context, or_by_stack(&context, icmp::relay::<true>(&context)))
}

/// Tells a client of an ICMP error about the outer packet that one of its went in.
#[xdp]
pub fn xipvs_tunnel_error(context: XdpContext) -> u32 {
    act::<false>(&context, or_by_stack(&context, tunnel_error::tell(&context)))
}

/// Balances what has no ports: a fragment, by what is known of its datagram's, and IPsec, by its key exchange's.
#[xdp]
pub fn xipvs_fragment(context: XdpContext) -> u32 {
    act::<false>(&context, fragment::go_on::<false>(&context))
}

/// [`xipvs_fragment`] for IPv6.
#[xdp]
pub fn xipvs_ipv6_fragment(context: XdpContext) -> u32 {
    act::<true>(&context, fragment::go_on::<true>(&context))
}

/// Sends what XDP has done and cannot send, as it comes in at the stack.
#[classifier]
pub fn xipvs_in(context: TcContext) -> i32 {
    way_in::send(&context)
}

/// Sees packets of the director itself on their way out of an interface.
#[classifier]
pub fn xipvs_out(context: TcContext) -> i32 {
    local_out::act::<false>(&context, local_out::or_tell::<false>(local_out::see::<false>(&context)))
}

/// [`xipvs_out`] for IPv6.
#[classifier]
pub fn xipvs_ipv6_out(context: TcContext) -> i32 {
    local_out::act::<true>(&context, local_out::or_tell::<true>(local_out::see::<true>(&context)))
}

/// Makes a connection of the director itself and sends its first packet on.
#[classifier]
pub fn xipvs_out_open(context: TcContext) -> i32 {
    local_out::act::<false>(&context, local_out::or_tell::<false>(local_out::open::<false>(&context)))
}

/// [`xipvs_out_open`] for IPv6.
#[classifier]
pub fn xipvs_ipv6_out_open(context: TcContext) -> i32 {
    local_out::act::<true>(&context, local_out::or_tell::<true>(local_out::open::<true>(&context)))
}

/// Balances a fragment of the director itself, by what is known of its datagram's ports.
#[classifier]
pub fn xipvs_out_fragment(context: TcContext) -> i32 {
    local_out::act::<false>(&context, local_out::or_tell::<false>(local_out::see_fragment::<false>(&context)))
}

/// [`xipvs_out_fragment`] for IPv6.
#[classifier]
pub fn xipvs_ipv6_out_fragment(context: TcContext) -> i32 {
    local_out::act::<true>(&context, local_out::or_tell::<true>(local_out::see_fragment::<true>(&context)))
}

/// Sends an ICMP error of the director itself about a connection to whom it concerns.
#[classifier]
pub fn xipvs_out_icmp(context: TcContext) -> i32 {
    local_out::act::<false>(&context, local_out::relay::<false>(&context))
}

/// [`xipvs_out_icmp`] for IPv6.
#[classifier]
pub fn xipvs_ipv6_out_icmp(context: TcContext) -> i32 {
    local_out::act::<true>(&context, local_out::relay::<true>(&context))
}

/// Tells the director itself why a packet of its own goes no further.
#[classifier]
pub fn xipvs_out_tell(context: TcContext) -> i32 {
    local_out::act::<false>(&context, local_out::tell::<false>(&context))
}

/// [`xipvs_out_tell`] for IPv6.
#[classifier]
pub fn xipvs_ipv6_out_tell(context: TcContext) -> i32 {
    local_out::act::<true>(&context, local_out::tell::<true>(&context))
}

/// Sends a packet of a connection of the director itself into its tunnel.
#[classifier]
pub fn xipvs_out_tunnel(context: TcContext) -> i32 {
    local_out::act::<false>(
        &context,
        local_out::or_tell::<false>(local_out::send_in_tunnel::<false>(&context)),
    )
}

/// [`xipvs_out_tunnel`] for IPv6.
#[classifier]
pub fn xipvs_ipv6_out_tunnel(context: TcContext) -> i32 {
    local_out::act::<true>(&context, local_out::or_tell::<true>(local_out::send_in_tunnel::<true>(&context)))
}

/// Reads the Call-ID of what makes a connection of the director itself.
#[classifier]
pub fn xipvs_out_sip(context: TcContext) -> i32 {
    local_out::act::<false>(&context, local_out::read_call::<false>(&context))
}

/// [`xipvs_out_sip`] for IPv6.
#[classifier]
pub fn xipvs_ipv6_out_sip(context: TcContext) -> i32 {
    local_out::act::<true>(&context, local_out::read_call::<true>(&context))
}

/// [`xipvs_callback`], for a datagram of the director itself.
#[classifier]
pub fn xipvs_out_callback(context: TcContext) -> i32 {
    local_out::act::<false>(&context, callback::own::<false>(&context))
}

/// [`xipvs_out_callback`] for IPv6.
#[classifier]
pub fn xipvs_ipv6_out_callback(context: TcContext) -> i32 {
    local_out::act::<true>(&context, callback::own::<true>(&context))
}

/// Leaves a packet that goes no further to [`xipvs_tell`], if there is an ICMP error for the reason.
#[inline(always)]
fn or_tell<const IPV6: bool>(
    context: &XdpContext,
    outcome: Result<Verdict, Reason>,
) -> Result<Verdict, Reason> {
    match or_by_stack(context, outcome) {
        Err(reason) => icmp::leave_to_tell::<IPV6>(reason).map(Verdict::GoOn),
        other => other,
    }
}

/// Does with a packet what was decided.
#[inline(always)]
fn act<const IPV6: bool>(context: &XdpContext, outcome: Result<Verdict, Reason>) -> u32 {
    let reason = match outcome {
        Ok(Verdict::Transmit) => return XDP_TX,
        Ok(Verdict::Redirect(interface)) => return forward::redirect(interface),
        Ok(Verdict::GoOn(program)) => {
            maps::go_on(context, if IPV6 { program.for_ipv6() } else { program });
            // Still here, so that the program is not where it must be.
            Reason::Internal
        }
        Err(reason) => reason,
    };
    maps::count(reason);
    match reason.fate() {
        Fate::Pass => XDP_PASS,
        Fate::Drop => XDP_DROP,
    }
}

/// Puts a connection into the table that another director made: user space runs it on an `Adoption`.
#[xdp]
pub fn xipvs_adopt(context: XdpContext) -> u32 {
    adopt::adopt(&context) as u32
}

/// Reads the Call-ID of what makes a connection to a service with the persistence engine `sip`.
#[xdp]
pub fn xipvs_sip(context: XdpContext) -> u32 {
    act::<false>(&context, sip::read::<false>(&context))
}

/// [`xipvs_sip`] for IPv6.
#[xdp]
pub fn xipvs_ipv6_sip(context: XdpContext) -> u32 {
    act::<true>(&context, sip::read::<true>(&context))
}

/// Makes a connection for a datagram that a destination begins it with.
#[xdp]
pub fn xipvs_callback(context: XdpContext) -> u32 {
    act::<false>(&context, or_tell::<false>(&context, callback::open::<false>(&context)))
}

/// [`xipvs_callback`] for IPv6.
#[xdp]
pub fn xipvs_ipv6_callback(context: XdpContext) -> u32 {
    act::<true>(&context, or_tell::<true>(&context, callback::open::<true>(&context)))
}

/// Starts the sweep, which from then on starts itself again.
#[xdp]
pub fn xipvs_start(_context: XdpContext) -> u32 {
    if sweep::start() { XDP_PASS } else { XDP_ABORTED }
}

/// Sweeps the whole table and notes the time, so that what user space reads next is exact.
#[xdp]
pub fn xipvs_sweep(_context: XdpContext) -> u32 {
    if sweep::all() { XDP_PASS } else { XDP_ABORTED }
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
