//! What has no ports: finds those of fragments, and those of the connection that packets of IPsec follow, and leaves the
//! rest to whoever balances any packet.
//!
//! IPVS counterpart: `ip_vs_gather_frags`, which has the stack put datagrams together first. XDP can keep no packet
//! back: a later fragment that comes before the first one of its datagram is left to the stack.

use aya_ebpf::programs::XdpContext;
use lb_common::connection::holds;
use lb_common::fragment::{self as rules, Ports};
use lb_common::packet::{Frame, Packet};
use lb_common::protocol::Protocol;
use lb_common::reason::Reason;
use lb_common::settings::Program;

use crate::forward::Verdict;
use crate::maps::{self, SettingsRef};
use crate::packet::Window;
use crate::{balance, clock};

/// Puts the headers of a fragment, or of a packet of IPsec, into the scratch room, with the ports of its datagram or key exchange.
#[inline(always)]
pub fn go_on<const IPV6: bool>(context: &XdpContext) -> Result<Verdict, Reason> {
    let (settings, _, network) = balance::begin(context)?;
    keep::<IPV6>(&Window::of(context), settings, network)?;
    Ok(Verdict::GoOn(Program::Slow))
}

/// [`go_on`], of any frame; its headers.
#[inline(always)]
pub fn keep<const IPV6: bool>(
    frame: &impl Frame,
    settings: SettingsRef,
    network: usize,
) -> Result<Packet, Reason> {
    let fragment = if IPV6 {
        rules::read_ipv6(frame, network, settings.seed())?
    } else {
        rules::read_ipv4(frame, network)?
    };
    let mut packet = fragment.packet;
    if packet.tuple.transport() == Protocol::Sctp.number() {
        // How its checksum changes depends on the length of the whole.
        return Err(Reason::Fragment);
    }
    if !balance::concerns(settings, &packet.tuple) {
        return Err(Reason::NotOurs);
    }
    let now = clock::now(settings);
    let remembered = settings.ticks_per_second().wrapping_mul(rules::REMEMBERED);
    let scratch = maps::scratch()?;
    scratch.datagram = fragment.datagram;
    // A packet of IPsec has the ports of its key exchange, whatever part of it this is.
    let follows = !packet.has_ports() && packet.tuple.ports != 0;
    if follows {
        // It is not in need of another's.
    } else if packet.is_later_fragment() {
        let known = maps::recall(&scratch.datagram).ok_or(Reason::Fragment)?;
        if !holds(known.until, now, remembered) {
            return Err(Reason::Fragment);
        }
        packet.tuple.ports = known.ports;
    } else {
        scratch.ports = Ports { ports: packet.tuple.ports, until: now.wrapping_add(remembered) };
        maps::remember(&scratch.datagram, &scratch.ports);
    }
    let packet = scratch.keep::<IPV6>(packet);
    scratch.is_untold = packet.is_later_fragment();
    scratch.follows = follows;
    Ok(packet)
}
