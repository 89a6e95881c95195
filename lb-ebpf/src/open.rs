//! Making a connection: schedule, store both directions, count, send the first packet on.
//!
//! IPVS counterpart: `ip_vs_schedule` and `ip_vs_conn_new`.

use aya_ebpf::programs::XdpContext;
use lb_common::checksum::Delta;
use lb_common::connection::{self as rules, CLIENT_SIDE, Entry, INACTIVE, NO_OUTPUT, SERVER_SIDE, no_hop};
use lb_common::forward::{ForwardingMethod, translation};
use lb_common::protocol::Protocol;
use lb_common::reason::Reason;
use lb_common::settings::Program;
use lb_common::tuple::Tuple;

use crate::connection::{self, Inserted};
use crate::forward::{self, NoHop, Verdict};
use crate::maps::{self, Counted, DestinationRef, Scratch};
use crate::{balance, clock, scheduler, service};

const SYN: u8 = 0x02;
const RST: u8 = 0x04;

/// The port that active FTP's data connections come from; IPVS schedules nothing from it.
const FTP_DATA: u16 = 20;

/// Makes a connection for a packet that a service takes, and sends the packet on.
#[inline(always)]
pub fn open(context: &XdpContext) -> Result<Verdict, Reason> {
    let (settings, packet) = balance::read(context)?;
    let scratch = maps::scratch()?;
    let packet = scratch.keep(packet);
    let tuple = packet.tuple;
    let now = clock::now(settings);
    let service = service::find(&tuple).ok_or(Reason::NoService)?;
    if tuple.protocol == Protocol::Tcp.number() && packet.tcp_flags & (SYN | RST) != SYN {
        return Err(Reason::NoConnection);
    }
    if tuple.source_port() == FTP_DATA {
        return Err(Reason::SourcePort20);
    }
    let id = scheduler::schedule(service, &tuple).ok_or(Reason::NoDestination)?;
    let destination = DestinationRef::at(id).ok_or(Reason::Internal)?;
    let Scratch { client_side: entry, server_side: answer, .. } = scratch;
    *entry = new_entry(&tuple, packet.tcp_flags, id, destination, now);
    let hop = if packet.time_to_live <= 1 {
        Err(NoHop::Refused(Reason::TimeExceeded))
    } else {
        forward::resolve(context, settings, &packet, entry, now)
    };
    let deadline = now.wrapping_add(settings.timeout(entry.state));
    match connection::insert(entry, settings, deadline) {
        Inserted::Stored => {}
        // Another CPU was faster with a packet of the same flow: this one finds the connection now.
        Inserted::Exists => return Ok(Verdict::GoOn(Program::Slow)),
        Inserted::Full => return Err(Reason::TableFull),
    }
    if entry.has_twin() {
        *answer = answer_to(entry, now);
        if connection::insert(answer, settings, deadline) == Inserted::Full {
            connection::abandon(&tuple);
            return Err(Reason::TableFull);
        }
    }
    connection::join_destination(entry);
    maps::count_packet(settings, id, Counted::New, packet.length);
    match hop {
        Ok(()) => forward::send(context, &packet, entry),
        Err(why) => Err(forward::without_hop(context, &packet, entry, why)),
    }
}

/// The client side of a new connection.
#[inline(always)]
fn new_entry(tuple: &Tuple, tcp_flags: u8, id: u32, destination: DestinationRef, now: u32) -> Entry {
    let method = destination.method();
    let address = destination.address();
    let port = match destination.port() {
        0 => tuple.raw_destination_port(),
        port => port,
    };
    let nat = method == ForwardingMethod::Masquerade.number();
    let begin = rules::advance(
        tuple.protocol,
        0,
        if nat { INACTIVE } else { INACTIVE | NO_OUTPUT },
        tcp_flags,
        false,
    );
    let (network, transport) = translation(
        (tuple.raw_destination().to_ne_bytes(), tuple.raw_destination_port().to_ne_bytes()),
        (address.to_ne_bytes(), port.to_ne_bytes()),
    );
    Entry {
        addresses: tuple.addresses,
        ports: tuple.ports,
        protocol: tuple.protocol,
        role: CLIENT_SIDE,
        method,
        state: begin.state,
        sequence: 0,
        destination: id,
        address,
        port,
        network_delta: network.pack(),
        transport_delta: transport.pack(),
        flags: begin.flags,
        reserved: 0,
        interface: 0,
        link: [0; 3],
        hop_until: no_hop(now),
        mtu: 0,
        vlan: 0,
        reserved_too: 0,
    }
}

/// The server side of a new NAT connection.
#[inline(always)]
fn answer_to(entry: &Entry, now: u32) -> Entry {
    let tuple = entry.twin();
    let client_side = entry.tuple();
    Entry {
        addresses: tuple.addresses,
        ports: tuple.ports,
        role: SERVER_SIDE,
        address: client_side.raw_destination(),
        port: client_side.raw_destination_port(),
        network_delta: Delta::unpack(entry.network_delta).inverse().pack(),
        transport_delta: Delta::unpack(entry.transport_delta).inverse().pack(),
        hop_until: no_hop(now),
        flags: entry.flags & INACTIVE,
        ..*entry
    }
}
