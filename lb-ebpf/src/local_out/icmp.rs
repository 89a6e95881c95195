//! ICMP errors that the director itself sends: as a destination about a client's packet, as a client about a server's answer,
//! and what the stack says to clients of packets that it could not send on.
//!
//! IPVS counterpart: `ip_vs_out_icmp` and `ip_vs_in_icmp` in `LOCAL_OUT`.

use aya_ebpf::programs::TcContext;
use lb_common::connection::{Addresses, CLIENT_SIDE, Entry};
use lb_common::forward::End;
use lb_common::packet::{self, Packet};
use lb_common::reason::Reason;

use super::Verdict;
use super::send::send_on;
use crate::icmp::{self, about_client, is_about, keep, look};
use crate::maps::{self, Counted, Scratch};
use crate::packet::OutWindow;

/// Sends an ICMP error about a connection on, to whom it concerns.
#[inline(always)]
pub fn relay<const IPV6: bool>(context: &TcContext) -> Result<Verdict, Reason> {
    let settings = maps::settings();
    let frame = &OutWindow::of(context);
    let (_, network) = packet::network(frame)?;
    let error = keep::<IPV6>(frame, settings, network)?;
    if !look::<IPV6>(false) {
        return match about_client::<IPV6>(frame, settings) {
            // Counted, and no other interface shall count it.
            Reason::DirectReply => Ok(Verdict::GoOut),
            reason => Err(reason),
        };
    }
    let scratch = maps::scratch()?;
    let packet = scratch.kept::<IPV6>();
    let Scratch { client_side: entry, client_addresses: addresses, .. } = scratch;
    if IPV6 && !is_about(frame, &error, addresses.destination, addresses.source) {
        return Err(Reason::Icmp);
    }
    let counted = if entry.role == CLIENT_SIDE { Counted::In } else { Counted::Out };
    maps::count_packet(settings, entry.destination, counted, packet.length);
    send_on::<IPV6, true>(context, &packet)
}

/// Replaces the address and the port that a NAT connection replaces, around the error in the scratch room and in what it quotes.
#[inline(always)]
pub fn translate<const IPV6: bool>(
    context: &TcContext,
    _: &Packet,
    entry: &Entry,
    addresses: &Addresses,
    _: End,
) -> Result<(), Reason> {
    let error = maps::scratch()?.kept_error();
    icmp::translate::<IPV6, _>(OutWindow::of(context), &error, entry, addresses).ok_or(Reason::Malformed)
}
