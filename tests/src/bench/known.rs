//! Packets of known flows, and packets that are nobody's.
//!
//! Flows are opened by a whole handshake and checked to be established. A director refreshes a flow's next hop and
//! deadline once a second, on a slower way. Both are measured: packets of flows that have had one in this second
//! (each flow is sent one unmeasured, which refreshes; meanwhile and then the clock is held), and a flow's first packet
//! in a second, for which the clock is turned on before each pass.
//!
//! Packets come in the yardsticks' order, each of another flow. So with many flows each finds the lines of its flow as cold as
//! the lookup finds its bucket and its element; what is warm for both is the code and what all flows share.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::Path;
use std::time::Instant;

use anyhow::{Result, ensure};
use lb_common::connection::CLIENT_SIDE;
use lb_common::protocol::tcp::State;

use super::feeder::{Batches, Feeder};
use super::frame::{ACK, Frame, SYN, clients, destination, in_family, tcp};
use super::stage::{PASS, REDIRECT, Record, Turns, run};
use super::topology::{CLIENTS, SERVERS, VIP, VIP_IPV6};
use super::world::{ESTABLISHED, World};
use super::yardstick::Yardsticks;

/// A kind of flow.
#[derive(Debug, Clone, Copy)]
pub struct Kind {
    /// What it is called.
    pub name: &'static str,
    /// The virtual address and port.
    pub service: SocketAddr,
    /// ipvsadm's option.
    method: &'static str,
}

/// The kinds of flow, one of each way through the program.
pub const KINDS: [Kind; 5] = [
    Kind { name: "direct routing", service: at(IpAddr::V4(VIP), 81), method: "-g" },
    Kind { name: "NAT", service: at(IpAddr::V4(VIP), 80), method: "-m" },
    Kind { name: "IPIP", service: at(IpAddr::V4(VIP), 82), method: "-i" },
    Kind { name: "IPv6, direct routing", service: at(IpAddr::V6(VIP_IPV6), 81), method: "-g" },
    Kind { name: "IPv6, NAT", service: at(IpAddr::V6(VIP_IPV6), 80), method: "-m" },
];

const fn at(address: IpAddr, port: u16) -> SocketAddr {
    SocketAddr::new(address, port)
}

/// Passes over first packets in a second. Each turns the clock on.
const REFRESHES: usize = 4;

/// Adds the services that the flows are of.
pub fn prepare(world: &mut World) -> Result<()> {
    KINDS.iter().try_for_each(|kind| world.add_service(kind.service, "rr", kind.method))
}

/// Measures so many flows of each kind, one kind after the other in an empty table, in so many rounds.
pub fn measure(
    world: &mut World,
    object: &Path,
    kinds: &[Kind],
    flows: u32,
    rounds: u32,
    feeder: &mut Feeder,
    record: &mut Record,
) -> Result<()> {
    let clients = clients(flows);
    let frames = |to: SocketAddr| -> Vec<Frame> {
        clients.iter().map(|client| tcp(in_family(*client, to), to, ACK)).collect()
    };
    let yardsticks = Yardsticks::load(object, flows)?;
    for Kind { name, service, method } in kinds {
        let opened = frames(*service);
        let mut answers = Vec::new();
        for client in &clients {
            let client = in_family(*client, *service);
            if *method == "-m" {
                answers.push(open_nat(world, client, *service)?);
            } else {
                open(world, client, *service)?;
            }
        }
        check(world, flows)?;
        for (interface, frames) in [(CLIENTS, &opened), (SERVERS, &answers)] {
            Turns { program: &world.program, interface, frames, action: REDIRECT }.check()?;
        }
        for _ in 0..rounds {
            yardsticks.round(feeder, record)?;
            if answers.is_empty() {
                kind(world, name, (CLIENTS, &opened), feeder, record)?;
            } else {
                kind(world, &format!("{name}, client's packet"), (CLIENTS, &opened), feeder, record)?;
                kind(world, &format!("{name}, server's packet"), (SERVERS, &answers), feeder, record)?;
            }
        }
        world.expire(ESTABLISHED + 60)?;
    }
    Ok(())
}

/// Measures so many flows that are nobody's.
pub fn measure_strangers(
    world: &World,
    object: &Path,
    flows: u32,
    rounds: u32,
    feeder: &mut Feeder,
    record: &mut Record,
) -> Result<()> {
    let to: SocketAddr = (Ipv4Addr::new(203, 0, 113, 1), 80).into();
    let frames: Vec<_> = clients(flows).into_iter().map(|client| tcp(client.into(), to, ACK)).collect();
    let yardsticks = Yardsticks::load(object, flows)?;
    let turns = Turns { program: &world.program, interface: CLIENTS, frames: &frames, action: PASS };
    turns.check()?;
    for _ in 0..rounds {
        yardsticks.round(feeder, record)?;
        record.note("not ours", flows, &feeder.enough(turns, || {})?)?;
    }
    Ok(())
}

/// Measures packets of one kind: those of a steady flow, and a flow's first in a second.
fn kind(
    world: &World,
    name: &str,
    (interface, frames): (u32, &[Frame]),
    feeder: &mut Feeder,
    record: &mut Record,
) -> Result<()> {
    let (flows, turns) =
        (frames.len() as u32, Turns { program: &world.program, interface, frames, action: REDIRECT });
    record.note(&format!("known flow, {name}"), flows, &warm(world, turns, feeder)?)?;
    // With few flows it is the system call before each pass that would be measured, with very many the clock goes on.
    if (1000..=1 << 16).contains(&flows) {
        let batches = feeder.batches(turns, 1, REFRESHES, || world.turn_on(1500))?;
        record.note(&format!("first packet in a second, {name}"), flows, &batches)?;
    }
    Ok(())
}

/// Opens a NAT flow and returns a packet of its server.
fn open_nat(world: &World, client: SocketAddr, service: SocketAddr) -> Result<Frame> {
    let send = |interface, frame: &Frame| {
        let mut out = [0; 74];
        let action = run(&world.program, interface, frame, Some(&mut out))?;
        ensure!(action == REDIRECT, "a packet of a new flow: the program answers {action}");
        Ok(out)
    };
    let server = destination(&send(CLIENTS, &tcp(client, service, SYN))?);
    send(SERVERS, &tcp(server, client, SYN | ACK))?;
    send(CLIENTS, &tcp(client, service, ACK))?;
    let answer = tcp(server, client, ACK);
    let out = send(SERVERS, &answer)?;
    ensure!(destination(&out) == client, "the server's packet goes to {}", destination(&out));
    Ok(answer)
}

/// Opens a flow whose server's packets do not come by.
pub fn open(world: &World, client: SocketAddr, service: SocketAddr) -> Result<()> {
    for flags in [SYN, ACK] {
        let action = run(&world.program, CLIENTS, &tcp(client, service, flags), None)?;
        ensure!(action == REDIRECT, "a packet of a new flow: the program answers {action}");
    }
    Ok(())
}

/// Checks that all flows are there and established.
fn check(world: &World, flows: u32) -> Result<()> {
    let entries = world.director.maps().entries()?;
    let sides = entries.iter().filter(|found| found.entry.role == CLIENT_SIDE);
    let states: Vec<u8> = sides.map(|found| found.entry.state).collect();
    ensure!(states.len() == flows as usize, "{} connections, not {flows}", states.len());
    let established = states.iter().filter(|state| **state == State::Established as u8).count();
    ensure!(established == states.len(), "{established} of {} connections are established", states.len());
    Ok(())
}

/// Runs packets of flows that have had one in this second, which is held.
fn warm(world: &World, turns: Turns<'_>, feeder: &mut Feeder) -> Result<Batches> {
    let start = Instant::now();
    let batches = feeder.enough(turns, || world.turn_back(start))?;
    world.go_on(start);
    Ok(batches)
}
