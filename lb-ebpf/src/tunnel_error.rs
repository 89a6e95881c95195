//! ICMP errors about the outer packets of our tunnels, which come to the director as it sent those: the client is told in
//! its place, and what is known of the way to the destination is noted.
//!
//! IPv4 in IPv4 only, as in IPVS. IPVS counterpart: the part of `ip_vs_in_icmp` that begins with `ip_vs_find_tunnel`.

use aya_ebpf::helpers::generated::bpf_get_prandom_u32;
use aya_ebpf::programs::XdpContext;
use lb_common::connection::{CLIENT_SIDE, SERVER_SIDE};
use lb_common::forward::ForwardingMethod;
use lb_common::icmp::{self as rules, ERROR, Message};
use lb_common::packet::{Family, Frame, Packet};
use lb_common::reason::Reason;
use lb_common::tunnel::{self, PATH_REMEMBERED, Path};

use crate::forward::{self, NoHop, Verdict};
use crate::maps::{self, Counted, DestinationRef, Scratch};
use crate::packet::{Window, cut, move_head};
use crate::tunnel::LINK;
use crate::{clock, connection, icmp, sum};

/// Turns the error in the scratch room into one for the client whose packet it is about, if it is about a tunnel's.
#[inline(always)]
pub fn tell(context: &XdpContext) -> Result<Verdict, Reason> {
    let settings = maps::settings();
    let scratch = maps::scratch()?;
    let error = scratch.kept_error();
    let inside = tunnel::read_inside(&Window::of(context), &error).ok_or(Reason::Icmp)?;
    let message = scratch.keep::<false>(Packet {
        tuple: inside.tuple,
        network: error.network,
        transport: error.transport,
        length: error.length,
        counted: error.length,
        service_type: inside.service_type,
        tcp_flags: 0,
        time_to_live: error.time_to_live,
    });
    if !icmp::look::<false>(false) {
        return Err(Reason::Icmp);
    }
    let entry = &scratch.client_side;
    let destination = DestinationRef::at(entry.destination).ok_or(Reason::Internal)?;
    let outer = error.tuple;
    if entry.role != CLIENT_SIDE
        || !entry.is_tunnelled()
        || destination.version() != Family::V4
        || destination.address() != outer.raw_destination()
        || !destination.tunnel().is_of(outer.transport(), outer.destination_port())
    {
        return Err(Reason::Icmp);
    }
    if !icmp::is_intact::<false>(context, &message)? {
        return Err(Reason::IcmpChecksum);
    }
    let now = clock::now(settings);
    let [kind, code, _, _, _, _, high, low]: [u8; 8] =
        *Window::of(context).bytes(error.transport.into()).ok_or(Reason::Malformed)?;
    let mut mtu = 0;
    if rules::is_too_big(kind, code) {
        let path = tunnel::path_mtu(entry.mtu, u16::from_be_bytes([high, low]));
        let until = now.wrapping_add(settings.ticks_per_second().wrapping_mul(PATH_REMEMBERED));
        maps::remember_path(destination.address(), Path { mtu: path.into(), until });
        let tuple = inside.tuple;
        connection::connection_forget_hop(tuple.addresses, tuple.ports, tuple.protocol.into(), now);
        if !inside.dont_fragment {
            return Err(Reason::TunnelError);
        }
        mtu = destination.tunnel().mtu(Family::V4, path).ok_or(Reason::TunnelError)?;
    }
    let count = |length| maps::count_packet(settings, entry.destination, Counted::Out, length);
    // IPVS counts what the error quotes of the client's packet, and then the error that the client gets.
    count(inside.quoted);
    let client = inside.tuple.raw_source();
    if !rules::may_be_told(client.to_ne_bytes())
        || !scratch.limit.take(now, settings.icmp_rate(), settings.ticks_per_second())
    {
        return Err(Reason::TunnelError);
    }
    let quoted = rules::quoted(inside.quoted, false);
    count(ERROR as u16 + quoted);
    let answer = Packet { tuple: inside.tuple.reversed(), ..message };
    let Scratch { server_side: way, client_addresses: addresses, .. } = scratch;
    // As an answer of the virtual address goes to the client.
    way.protocol = answer.tuple.protocol;
    way.role = SERVER_SIDE;
    way.method = ForwardingMethod::Masquerade as u8;
    way.address = answer.tuple.raw_source();
    way.port = answer.tuple.raw_source_port();
    let found = forward::resolve(context, settings, &answer, way, addresses, now);
    let network = usize::from(error.network);
    let link: [u8; LINK] = *Window::of(context).bytes(0).ok_or(Reason::Malformed)?;
    let before = i32::from(inside.network) - i32::from(error.network) - ERROR as i32;
    if !cut(context, usize::from(inside.network) + usize::from(quoted)) || !move_head(context, before) {
        return Err(Reason::Internal);
    }
    // Where the link header is shorter the rest is written over.
    *Window::of(context).bytes_mut(0).ok_or(Reason::Malformed)? = link;
    let quote = sum::sum(context, network + ERROR, quoted.into()).ok_or(Reason::Malformed)?;
    let told = Message { kind, code, mtu, quoted, service_type: inside.service_type };
    let [from, to] = [inside.tuple.raw_destination(), client].map(u32::to_ne_bytes);
    // SAFETY: the helper takes nothing.
    let identification = unsafe { bpf_get_prandom_u32() } as u16;
    let mut window = Window::of(context);
    let header = window.bytes_mut(network).ok_or(Reason::Malformed)?;
    rules::write_error(header, from, to, identification, told, quote);
    match found {
        Ok(()) => {
            let way = &maps::scratch()?.server_side;
            forward::write_link(context, &message, way, Family::V4, 0)?;
            Ok(forward::out(context, way.interface))
        }
        // The stack forwards it.
        Err(NoHop::Neighbour) => Err(Reason::NeighbourByStack),
        Err(NoHop::Local) => Err(Reason::LocalDestination),
        Err(NoHop::Refused(reason)) => Err(reason),
    }
}
