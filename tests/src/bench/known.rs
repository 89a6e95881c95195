//! Packets of known flows, and packets that are nobody's.
//!
//! Flows are opened by a whole handshake and checked to be established. A director refreshes a flow's next hop and
//! deadline once a second, on a slower way. Both are measured: packets of flows that have had one in this second
//! (each flow is sent one unmeasured, which refreshes and is checked; then the clock is held), and a flow's first packet
//! in a second, for which the clock is turned on before each pass.

use std::net::{Ipv4Addr, SocketAddrV4};
use std::path::Path;
use std::time::Instant;

use anyhow::{Result, ensure};
use lb_common::connection::CLIENT_SIDE;
use lb_common::protocol::tcp::State;

use super::feeder::{Batches, Feeder};
use super::frame::{ACK, Frame, SYN, clients, destination, tcp};
use super::stage::{PASS, REDIRECT, Record, Turns, run};
use super::topology::{CLIENTS, SERVERS, VIP};
use super::world::{ESTABLISHED, World};
use super::yardstick::Yardsticks;

const NAT: SocketAddrV4 = SocketAddrV4::new(VIP, 80);
const DIRECT: SocketAddrV4 = SocketAddrV4::new(VIP, 81);

/// Passes over first packets in a second. Each turns the clock on.
const REFRESHES: usize = 4;

/// Adds the services that the flows are of.
pub fn prepare(world: &mut World) -> Result<()> {
    world.add_service(NAT.port(), "rr", "-m")?;
    world.add_service(DIRECT.port(), "rr", "-g")
}

/// Measures so many flows of each kind, one kind after the other in an empty table, in so many rounds.
pub fn measure(
    world: &mut World,
    object: &Path,
    flows: u32,
    rounds: u32,
    feeder: &mut Feeder,
    record: &mut Record,
) -> Result<()> {
    let clients = clients(flows);
    let frames = |to: SocketAddrV4| clients.iter().map(|client| tcp(*client, to, ACK)).collect::<Vec<_>>();
    let (nat, direct) = (frames(NAT), frames(DIRECT));
    clients.iter().try_for_each(|client| open_direct(world, *client))?;
    check(world, flows)?;

    let yardsticks = Yardsticks::load(object, &nat)?;
    for _ in 0..rounds {
        yardsticks.round(&nat, feeder, record)?;
        kind(world, "direct routing", (CLIENTS, &direct[..]), feeder, record)?;
    }
    world.expire(ESTABLISHED + 60)?;

    let answers = clients.iter().map(|client| open_nat(world, *client)).collect::<Result<Vec<_>>>()?;
    check(world, flows)?;
    let stranger = SocketAddrV4::new(Ipv4Addr::new(203, 0, 113, 1), 80);
    let others = frames(stranger);
    for _ in 0..rounds {
        yardsticks.round(&nat, feeder, record)?;
        kind(world, "NAT, client's packet", (CLIENTS, &nat[..]), feeder, record)?;
        kind(world, "NAT, server's packet", (SERVERS, &answers[..]), feeder, record)?;
        let turns = Turns { program: &world.program, interface: CLIENTS, frames: &others, action: PASS };
        turns.check()?;
        record.note("not ours", flows, &feeder.enough(turns, || {})?)?;
    }
    world.expire(ESTABLISHED + 60)
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
    // With few flows it is the system call before each pass that would be measured.
    if flows >= 1000 {
        let batches = feeder.batches(turns, 1, REFRESHES, || world.turn_on(1500))?;
        record.note(&format!("first packet in a second, {name}"), flows, &batches)?;
    }
    Ok(())
}

/// Opens a NAT flow and returns a packet of its server.
fn open_nat(world: &World, client: SocketAddrV4) -> Result<Frame> {
    let send = |interface, frame: &Frame| {
        let mut out = [0; 60];
        let action = run(&world.program, interface, frame, Some(&mut out))?;
        ensure!(action == REDIRECT, "a packet of a new flow: the program answers {action}");
        Ok(out)
    };
    let server = destination(&send(CLIENTS, &tcp(client, NAT, SYN))?);
    send(SERVERS, &tcp(server, client, SYN | ACK))?;
    send(CLIENTS, &tcp(client, NAT, ACK))?;
    let answer = tcp(server, client, ACK);
    let out = send(SERVERS, &answer)?;
    ensure!(destination(&out) == client, "the server's packet goes to {}", destination(&out));
    Ok(answer)
}

/// Opens a direct-routing flow, whose server's packets do not come by.
fn open_direct(world: &World, client: SocketAddrV4) -> Result<()> {
    for flags in [SYN, ACK] {
        let action = run(&world.program, CLIENTS, &tcp(client, DIRECT, flags), None)?;
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
    for packets in turns.frames.chunks(1024) {
        world.turn_back(start);
        Turns { frames: packets, ..turns }.check()?;
    }
    let batches = feeder.enough(turns, || world.turn_back(start))?;
    world.go_on(start);
    Ok(batches)
}
