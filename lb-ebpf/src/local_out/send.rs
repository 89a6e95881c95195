//! Sending a packet of the director itself on, as its flow's entry says.

use aya_ebpf::EbpfContext;
use aya_ebpf::bindings::{BPF_F_MARK_MANGLED_0, BPF_F_PSEUDO_HDR};
use aya_ebpf::programs::TcContext;
use lb_common::connection::{Addresses, Entry, SERVER_SIDE};
use lb_common::forward::{self as rules, End, SCTP_PART};
use lb_common::packet::{Packet, UDP};
use lb_common::protocol::Protocol;
use lb_common::reason::Reason;
use lb_common::settings::Program;

use super::{LOOPBACK, Verdict, icmp};
use crate::forward::{self, DONT_FRAGMENT, NoHop};
use crate::maps::{self, Scratch};
use crate::packet::{leaves_by, read, segment};
use crate::sctp::sctp_change;

/// Sends a packet on whose flow's entry is in the scratch room: an answer where it goes anyway, others to their destination.
#[inline(always)]
pub fn send<const IPV6: bool>(context: &TcContext, packet: &Packet) -> Result<Verdict, Reason> {
    send_on::<IPV6, false>(context, packet)
}

/// [`send`], of a packet, or of the ICMP error about a connection that is in the scratch room too.
#[inline(always)]
pub fn send_on<const IPV6: bool, const ERROR: bool>(
    context: &TcContext,
    packet: &Packet,
) -> Result<Verdict, Reason> {
    let translate = if ERROR { icmp::translate::<IPV6> } else { translate::<IPV6> };
    let Scratch { client_side: entry, client_addresses: addresses, .. } = maps::scratch()?;
    if entry.role == SERVER_SIDE {
        translate(context, packet, entry, addresses, End::Source)?;
        return Ok(Verdict::GoOut);
    }
    if entry.is_tunnelled() {
        return Ok(Verdict::GoOn(Program::Tunnel));
    }
    let interface = leaves_by(context);
    let mut is_too_large = false;
    let way = match forward::ask(context.as_ptr(), interface, packet, entry, addresses) {
        Ok(way) => {
            // SAFETY: reading a plain number out of a union of plain numbers.
            entry.mtu = unsafe { way.__bindgen_anon_1.mtu_result };
            is_too_large = exceeds(context, packet, entry.mtu);
            Some(way)
        }
        // The kernel resolves it; only the largest packet that it takes is not known.
        Err(NoHop::Neighbour) => maps::lookup(),
        Err(NoHop::Local) => None,
        Err(NoHop::Refused(reason)) => return Err(reason),
    };
    // What stays here makes no hop.
    if way.is_some() && packet.time_to_live <= 1 {
        return Err(Reason::TimeExceeded);
    }
    if is_too_large && is_whole::<IPV6>(context, packet) {
        // The error quotes the packet with the hop taken off, as IPVS's does.
        take_hop::<IPV6>(context, packet)?;
        return Err(Reason::TooBig);
    }
    if entry.has_twin() {
        translate(context, packet, entry, addresses, End::Destination)?;
    } else if is_too_large {
        return Err(Reason::NotFragmented);
    }
    if is_too_large {
        // The stack cuts what it forwards.
        return Ok(Verdict::ComeIn);
    }
    let Some(way) = way else {
        // Already on its way to the director itself, or to be turned back.
        return Ok(if interface == LOOPBACK { Verdict::GoOut } else { Verdict::ComeIn });
    };
    take_hop::<IPV6>(context, packet)?;
    Ok(Verdict::Redirect(way.ifindex))
}

/// Whether a packet is larger than its way takes, or those are that it is still.
#[inline(always)]
pub fn exceeds(context: &TcContext, packet: &Packet, mtu: u16) -> bool {
    let payload = segment(context);
    if payload == 0 {
        return packet.length > mtu;
    }
    let protocol = packet.tuple.transport();
    let header = if protocol == Protocol::Tcp.number() {
        let mut offset = [0; 2];
        if !read(context, usize::from(packet.transport) + 12, &mut offset) {
            return false;
        }
        u32::from(offset[0] >> 4) * 4
    } else if protocol == Protocol::Udp.number() {
        UDP as u32
    } else {
        // Those of SCTP are packets of their own, each as large as it is.
        return false;
    };
    u32::from(packet.transport.wrapping_sub(packet.network)) + header + payload > mtu.into()
}

/// Whether nobody may cut a packet on its way.
#[inline(always)]
pub fn is_whole<const IPV6: bool>(context: &TcContext, packet: &Packet) -> bool {
    let mut flags = [0; 2];
    IPV6 || read(context, usize::from(packet.network) + 6, &mut flags) && flags[0] & DONT_FRAGMENT != 0
}

/// Takes a hop off a packet, as IPVS does of the director's own too.
#[inline(always)]
pub fn take_hop<const IPV6: bool>(context: &TcContext, packet: &Packet) -> Result<(), Reason> {
    let (network, hops) = (usize::from(packet.network), packet.time_to_live);
    let at = network + if IPV6 { 7 } else { 8 };
    if !IPV6 {
        let word = |hops| u16::from_ne_bytes([hops, packet.tuple.transport()]);
        let (old, new) = (word(hops), word(hops.wrapping_sub(1)));
        context.l3_csum_replace(network + 10, old.into(), new.into(), 2).map_err(|_| Reason::Malformed)?;
    }
    context.store(at, &hops.wrapping_sub(1), 0).map_err(|_| Reason::Malformed)
}

/// Replaces the address and the port that a NAT connection replaces.
///
/// By the kernel's helpers: they know whether a checksum is there, or only the part of it that network cards want to find.
#[inline(always)]
fn translate<const IPV6: bool>(
    context: &TcContext,
    packet: &Packet,
    entry: &Entry,
    addresses: &Addresses,
    end: End,
) -> Result<(), Reason> {
    let (network, transport) = (usize::from(packet.network), usize::from(packet.transport));
    let is_source = end == End::Source;
    let (from, port_at) = if is_source {
        (packet.tuple.raw_source_port(), transport)
    } else {
        (packet.tuple.raw_destination_port(), transport + 2)
    };
    // Where the checksum is, and how it is written.
    let checksum = match packet.tuple.transport() {
        _ if packet.is_later_fragment() => None,
        number if number == Protocol::Tcp.number() => Some((transport + 16, 0)),
        number if number == Protocol::Udp.number() => Some((transport + 6, u64::from(BPF_F_MARK_MANGLED_0))),
        // SCTP's does not cover addresses.
        _ => None,
    };
    let fails = |_| Reason::Malformed;
    let mend = |from: u32, to: u32, size: u64, pseudo: u64| match checksum {
        Some((at, flags)) => {
            context.l4_csum_replace(at, from.into(), to.into(), flags | pseudo | size).map_err(fails)
        }
        None => Ok(()),
    };
    if IPV6 {
        let old = if is_source { addresses.source } else { addresses.destination };
        let at = network + if is_source { 8 } else { 24 };
        for (old, new) in old.into_iter().zip(addresses.other) {
            mend(old as u32, new as u32, 4, BPF_F_PSEUDO_HDR.into())?;
            mend((old >> 32) as u32, (new >> 32) as u32, 4, BPF_F_PSEUDO_HDR.into())?;
        }
        context.store(at, &addresses.other, 0).map_err(fails)?;
    } else {
        let old = if is_source { packet.tuple.raw_source() } else { packet.tuple.raw_destination() };
        let at = network + if is_source { 12 } else { 16 };
        context.l3_csum_replace(network + 10, old.into(), entry.address.into(), 4).map_err(fails)?;
        mend(old, entry.address, 4, BPF_F_PSEUDO_HDR.into())?;
        context.store(at, &entry.address, 0).map_err(fails)?;
    }
    if from == entry.port || packet.is_later_fragment() {
        return Ok(());
    }
    if packet.tuple.transport() == Protocol::Sctp.number() {
        return replace_sctp_port(context, packet, end, entry.port);
    }
    mend(from.into(), entry.port.into(), 2, 0)?;
    context.store(port_at, &entry.port, 0).map_err(fails)
}

/// Replaces a port of SCTP, whose checksum the kernel's helpers do not know.
///
/// As long as it is left to the network card it is zero. One that is zero by chance, as of one packet in 2^32, is taken for such a
/// one, and is wrong afterwards.
#[inline(always)]
fn replace_sctp_port(context: &TcContext, packet: &Packet, end: End, port: u16) -> Result<(), Reason> {
    let at = usize::from(packet.transport);
    let front = &mut maps::scratch()?.front;
    let header: &mut [u8; SCTP_PART] = front.first_chunk_mut().ok_or(Reason::Internal)?;
    if !read(context, at, header) {
        return Err(Reason::Malformed);
    }
    let word = rules::replace_sctp_port(header, end, port.to_ne_bytes());
    if header[8..] != [0; 4] {
        let length = packet.length.wrapping_sub(packet.transport.wrapping_sub(packet.network));
        rules::mend_sctp(header, sctp_change(word, length.into()));
    }
    context.store(at, header, 0).map_err(|_| Reason::Malformed)
}
