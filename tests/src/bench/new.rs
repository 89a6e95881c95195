//! A new flow with every packet: service, scheduler, one entry or two, the next hop.
//!
//! Each round begins with an empty table and ends with so many flows in it; then they expire.

use std::net::SocketAddr;
use std::path::Path;

use anyhow::{Result, ensure};

use super::feeder::{Batches, Feeder};
use super::frame::{SYN, clients, tcp};
use super::stage::{REDIRECT, Record, Turns};
use super::topology::{CLIENTS, VIP};
use super::world::World;
use super::yardstick::Yardsticks;

/// The forwarding methods: their names, ipvsadm's options, and the first port of their services.
const METHODS: [(&str, &str, u16); 2] = [("direct routing", "-g", 1000), ("NAT", "-m", 2000)];
/// Longer than a connection lives that saw only a SYN, in seconds (IPVS: 60).
const OPENING: u32 = 90;

/// Adds a service a scheduler and method.
pub fn prepare(world: &mut World, schedulers: &[&str]) -> Result<()> {
    for (_, option, first) in METHODS {
        for (port, scheduler) in (first..).zip(schedulers) {
            world.add_service((VIP, port).into(), scheduler, option)?;
        }
    }
    Ok(())
}

/// Measures so many new flows of each kind, in so many rounds.
pub fn measure(
    world: &mut World,
    object: &Path,
    schedulers: &[&str],
    flows: u32,
    rounds: u32,
    feeder: &mut Feeder,
    record: &mut Record,
) -> Result<()> {
    let yardsticks = Yardsticks::load(object, flows)?;
    for _ in 0..rounds {
        yardsticks.round(feeder, record)?;
        for (method, _, first) in METHODS {
            for (port, scheduler) in (first..).zip(schedulers) {
                let service = (VIP, port).into();
                let batches = open(world, feeder, service, flows)?;
                record.note(&format!("new flow, {method}, {scheduler}"), flows, &batches)?;
            }
        }
    }
    Ok(())
}

/// Opens so many flows, sees to it that they are gone again, and returns what opening took.
pub fn open(world: &mut World, feeder: &mut Feeder, service: SocketAddr, flows: u32) -> Result<Batches> {
    let frames: Vec<_> = clients(flows).into_iter().map(|client| tcp(client.into(), service, SYN)).collect();
    let program = &world.program;
    let batches = feeder.once(Turns { program, interface: CLIENTS, frames: &frames, action: REDIRECT })?;
    let made = world.connections(service)?;
    ensure!(made == flows, "{flows} new flows made {made} connections");
    world.expire(OPENING)?;
    let left = world.connections(service)?;
    ensure!(left == 0, "{left} connections did not expire");
    Ok(batches)
}
