//! How cost grows: with connections, services, destinations and CPUs, for packets and for commands.
//!
//! What a row grows with is the last word of its name, and how many there are its size.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::Barrier;
use std::thread::ScopedJoinHandle;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use aya::programs::Xdp as Program;
use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::Pid;
use xipvs::director::xdp::lifecycle;

use super::feeder::Feeder;
use super::frame::{ACK, clients, tcp};
use super::known::{self, KINDS};
use super::stage::{PASS, REDIRECT, Record, Turns};
use super::topology::{CLIENTS, VIP, server};
use super::world::{World, ipvsadm};
use super::yardstick::Yardsticks;
use super::{Unit, new};

/// Connections beyond those that known flows are measured with anyway.
const CONNECTIONS: [u32; 2] = [1 << 19, 1 << 20];
const SERVICES: [u32; 4] = [1, 100, 1000, 10_000];
const DESTINATIONS: [u32; 5] = [1, 10, 100, 1000, 4096];
/// New flows of a figure.
const FLOWS: u32 = 4096;
/// So heavy that overflow takes all flows.
const WEIGHT: u32 = 5000;

/// Known flows in a table with room for four times as many entries as there are connections.
pub fn with_connections(object: &Path, rounds: u32, record: &mut Record) -> Result<()> {
    let mut feeder = Feeder::load(object)?;
    let mut world = World::load(1 << 20)?;
    let held = world.memory("CONNECTIONS")? + world.memory("ADDRESSES")?;
    let entries = f64::from(1 << 20) * lb_common::connection::WAYS as f64;
    record.measured.note("memory of an entry of the connection table", 1, Unit::Bytes, held as f64 / entries);
    known::prepare(&mut world)?;
    for flows in CONNECTIONS {
        eprintln!("measuring {flows} known flows");
        known::measure(&mut world, object, &KINDS[..2], flows, rounds, &mut feeder, record)?;
    }
    world.unload()
}

/// New flows, packets that are not ours, and commands, beside ever more services.
pub fn with_services(object: &Path, rounds: u32, record: &mut Record) -> Result<()> {
    let mut feeder = Feeder::load(object)?;
    let mut world = World::load(1 << 16)?;
    let service: SocketAddr = (VIP, 80).into();
    world.add_service(service, "rr", "-g")?;
    let stranger: SocketAddr = (Ipv4Addr::new(203, 0, 113, 1), 80).into();
    let others: Vec<_> = clients(FLOWS).into_iter().map(|client| tcp(client.into(), stranger, ACK)).collect();
    let yardsticks = Yardsticks::load(object, FLOWS)?;
    let mut made = 1;
    for services in SERVICES {
        eprintln!("measuring beside {services} services");
        for number in made..services {
            let address = Ipv4Addr::from(u32::from(Ipv4Addr::new(172, 31, 0, 0)) + number);
            ipvsadm(&mut world.director, &format!("-A -t {address}:80 -s rr"))?;
            ipvsadm(&mut world.director, &format!("-a -t {address}:80 -r {}:80 -g", server(1)))?;
        }
        made = services;
        for _ in 0..rounds {
            yardsticks.round(&mut feeder, record)?;
            let batches = new::open(&mut world, &mut feeder, service, FLOWS)?;
            let figure = record.above_bare(FLOWS, &batches)?;
            record.measured.note(
                "new flow, direct routing, rr, by services",
                services,
                Unit::Nanoseconds,
                figure,
            );
            let program = &world.program;
            let turns = Turns { program, interface: CLIENTS, frames: &others, action: PASS };
            let figure = record.above_bare(FLOWS, &feeder.enough(turns, || {})?)?;
            record.measured.note("not ours, by services", services, Unit::Nanoseconds, figure);

            let lines =
                ["-A -t 172.30.0.1:80 -s wlc", "-a -t 172.30.0.1:80 -r 10.0.0.11 -g", "-D -t 172.30.0.1:80"];
            let names = ["adding a service", "adding a destination", "deleting a service"];
            for (name, line) in names.into_iter().zip(lines) {
                let began = Instant::now();
                ipvsadm(&mut world.director, line)?;
                let took = began.elapsed().as_secs_f64() * 1e6;
                record.measured.note(&format!("{name}, by services"), services, Unit::Microseconds, took);
            }
        }
    }
    world.unload()
}

/// New flows of every scheduler, by destinations of the service.
pub fn with_destinations(object: &Path, schedulers: &[&str], rounds: u32, record: &mut Record) -> Result<()> {
    let mut feeder = Feeder::load(object)?;
    let mut world = World::load(1 << 16)?;
    let service: SocketAddr = (VIP, 80).into();
    let yardsticks = Yardsticks::load(object, FLOWS)?;
    ipvsadm(&mut world.director, &format!("-A -t {service} -s rr"))?;
    let mut made = 0;
    for destinations in DESTINATIONS {
        eprintln!("measuring {destinations} destinations");
        for number in made..destinations {
            // Behind the first server, so that one neighbour is enough.
            let address = Ipv4Addr::from(u32::from(Ipv4Addr::new(10, 1, 0, 1)) + number);
            let line = format!("-a -t {service} -r {address}:80 -g -w {WEIGHT}");
            let began = Instant::now();
            ipvsadm(&mut world.director, &line)?;
            if number + 1 == destinations {
                let took = began.elapsed().as_secs_f64() * 1e6;
                let name = "adding a destination, rr, by destinations";
                record.measured.note(name, destinations, Unit::Microseconds, took);
            }
        }
        made = destinations;
        for _ in 0..rounds {
            yardsticks.round(&mut feeder, record)?;
            // mh's table has 4,093 places, there as in kernel IPVS.
            for scheduler in schedulers.iter().filter(|name| **name != "mh" || destinations < 4093) {
                ipvsadm(&mut world.director, &format!("-E -t {service} -s {scheduler}"))?;
                let batches = new::open(&mut world, &mut feeder, service, FLOWS)?;
                let figure = record.above_bare(FLOWS, &batches)?;
                let name = new_flow(scheduler);
                record.measured.note(&name, destinations, Unit::Nanoseconds, figure);
            }
        }
    }
    for scheduler in schedulers {
        // Two ends of one run, not of one round: each size has its own rounds.
        let at = |size| record.measured.median(&new_flow(scheduler), size, Unit::Nanoseconds);
        let (few, many) = (at(10).context("10")?, at(1000).context("1,000")?);
        let name = format!("new flow, {scheduler}, 1,000 destinations over 10");
        record.measured.note(&name, 1000, Unit::Times, many / few);
    }
    world.unload()
}

fn new_flow(scheduler: &str) -> String {
    format!("new flow, direct routing, {scheduler}, by destinations")
}

/// Packets of known flows on two CPUs at once, each with flows of its own, over those on one.
pub fn with_cpus(object: &Path, rounds: u32, record: &mut Record) -> Result<()> {
    let cpus = lifecycle::possible_cpus()?;
    if cpus < 2 {
        eprintln!("without the row of two CPUs: there is one");
        return Ok(());
    }
    let mut world = World::load(1 << 16)?;
    known::prepare(&mut world)?;
    let service = KINDS[0].service;
    let all: Vec<SocketAddr> = clients(2000).into_iter().map(SocketAddr::V4).collect();
    all.iter().try_for_each(|client| known::open(&world, *client, service))?;
    let mut feeders = [Feeder::load(object)?, Feeder::load(object)?];
    let program = &world.program;
    for round in 0..rounds {
        eprintln!("measuring two CPUs, round {}", round + 1);
        // One after the other, then both at once.
        let mut alone = Vec::new();
        for (cpu, (feeder, clients)) in feeders.iter_mut().zip(all.chunks(1000)).enumerate() {
            let alone_there = || on_cpu(cpu, program, feeder, clients, service, &Barrier::new(1));
            alone.push(std::thread::scope(|scope| join(scope.spawn(alone_there)))?);
        }
        let barrier = Barrier::new(2);
        let both = std::thread::scope(|scope| {
            let threads: Vec<_> = feeders
                .iter_mut()
                .zip(all.chunks(1000))
                .enumerate()
                .map(|(cpu, (feeder, clients))| {
                    let barrier = &barrier;
                    scope.spawn(move || on_cpu(cpu, program, feeder, clients, service, barrier))
                })
                .collect();
            threads.into_iter().map(join).collect::<Result<Vec<_>>>()
        })?;
        let rate = |nanoseconds: &[f64]| nanoseconds.iter().map(|one| 1.0 / one).sum::<f64>();
        let times = rate(&both) / (rate(&alone) / 2.0);
        record.measured.note("known flow, direct routing, two CPUs over one", 2, Unit::Times, times);
    }
    world.unload()
}

fn join(thread: ScopedJoinHandle<'_, Result<f64>>) -> Result<f64> {
    thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

/// Nanoseconds a packet on a CPU, feeding included.
fn on_cpu(
    cpu: usize,
    program: &Program,
    feeder: &mut Feeder,
    clients: &[SocketAddr],
    service: SocketAddr,
    barrier: &Barrier,
) -> Result<f64> {
    let frames: Vec<_> = clients.iter().map(|client| tcp(*client, service, ACK)).collect();
    let mut set = CpuSet::new();
    set.set(cpu)?;
    // Of this thread alone.
    sched_setaffinity(Pid::from_raw(0), &set)?;
    let turns = Turns { program, interface: CLIENTS, frames: &frames, action: REDIRECT };
    feeder.enough(turns, || {})?;
    barrier.wait();
    let batches = feeder.batches(turns, 50, 24, || {})?;
    ensure!(batches.mean() > 0.0, "nothing was measured");
    Ok(batches.mean())
}
