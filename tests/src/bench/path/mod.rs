//! The whole way of a packet: from the client's wire through a director to the servers'.
//!
//! The same generator, wires and sink for every director: a program that only sends packets on, the kernel's forwarding, its
//! translation by nftables, kernel IPVS where the kernel has it, and xipvs. They take turns in each round. What is measured is CPU time from the
//! sending to the counting sink, all on one CPU; where the machine's time is its count of instructions, that is
//! instructions.

pub mod wire;

use std::io::Write;
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use xipvs::director::Director;
use xipvs::director::kernel::Kernel;
use xipvs::director::xdp::Xdp;
use xipvs::director::xdp::lifecycle::{self, Pins};
use xipvs::director::xdp::sizes::Sizes;

use self::wire::{Loaded, Wire};
use super::Unit;
use super::frame::{Frame, SYN, clients, tcp, udp};
use super::stage::Record;
use super::topology::{AS_ON_CARDS, CLIENTS, DESTINATIONS, SERVERS, VIP, server};
use super::world::ipvsadm;

/// Flows that are known.
const FLOWS: u32 = 1000;
/// The port of the destinations that packets are forwarded to without a director, and of NAT's.
const PORT: u16 = 8080;

/// A forwarding method: its name, ipvsadm's option, and the port of its services.
type Method = (&'static str, &'static str, u16);
const METHODS: [Method; 3] = [("DR", "-g", 5000), ("NAT", "-m", 5001), ("IPIP", "-i", 5002)];

/// What is measured of the whole way.
#[derive(Debug, Clone, Copy)]
pub struct Extent {
    /// Packets of known flows in a round, and new connections.
    pub packets: u32,
    /// How often.
    pub rounds: u32,
    /// Whether the machine's nanoseconds are its instructions.
    pub counts_instructions: bool,
}

/// The directors, and both ends of the way.
struct Stage<'a> {
    wire: Wire,
    bounce: Loaded,
    end: Loaded,
    kernel: Option<Kernel>,
    extent: Extent,
    record: &'a mut Record,
}

/// Measures all directors in turn.
pub fn measure(object: &Path, extent: Extent, record: &mut Record) -> Result<()> {
    // The kernel's without IPVS say so in their own words, and the rows are not there.
    let kernel = Kernel::open().map_err(|error| eprintln!("without kernel IPVS: {error}")).ok();
    let mut stage = Stage {
        wire: Wire::new(object)?,
        bounce: Loaded::new(object, "bounce", SERVERS)?,
        end: Loaded::new(object, "sink", 0)?,
        kernel,
        extent,
        record,
    };
    if extent.counts_instructions {
        stage.wire.put_softirq_first()?;
    }
    let interfaces = ["clients".to_owned(), "servers".to_owned()];
    for round in 0..extent.rounds {
        eprintln!("measuring the whole way, round {}", round + 1);
        stage.without_director()?;
        if let Some(mut kernel) = stage.kernel.take() {
            prepare(&mut kernel)?;
            stage.director("kernel IPVS", round)?;
            ipvsadm(&mut kernel, "-C")?;
            stage.kernel = Some(kernel);
        }
        lifecycle::attach(&interfaces, AS_ON_CARDS, &Sizes::new(lifecycle::possible_cpus()?), false)?;
        let mut xdp = Xdp::open(Pins::find()?.directory())?;
        if round == 0 {
            prepare(&mut xdp)?;
        }
        stage.director("xipvs", round)?;
        lifecycle::detach(&interfaces)?;
    }
    Ok(lifecycle::detach_all()?)
}

/// Makes the services: of each method one of UDP and one of TCP.
fn prepare(director: &mut dyn Director) -> Result<()> {
    for (_, option, port) in METHODS {
        for protocol in ["-u", "-t"] {
            ipvsadm(director, &format!("-A {protocol} {VIP}:{port} -s wlc"))?;
            for number in 1..=DESTINATIONS {
                let to = if option == "-m" { PORT } else { port };
                ipvsadm(
                    director,
                    &format!("-a {protocol} {VIP}:{port} -r {}:{to} {option}", server(number)),
                )?;
            }
        }
    }
    Ok(())
}

impl Stage<'_> {
    /// What there is to compare with.
    fn without_director(&mut self) -> Result<()> {
        let direct = datagrams((server(1), PORT).into());
        self.end.attach(CLIENTS)?;
        let packets = self.extent.packets;
        let passage = self.wire.send_to(&direct, packets, Some(&self.end))?;
        self.end.detach()?;
        self.note("bare XDP_DROP", passage)?;

        self.bounce.attach(CLIENTS)?;
        self.known("bare XDP redirect", &direct)?;
        self.bounce.detach()?;

        self.known("kernel forwarding", &direct)?;

        if !self.extent.counts_instructions {
            nft(&format!(
                "add table ip bench
                 add chain ip bench prerouting {{ type nat hook prerouting priority dstnat; }}
                 add rule ip bench prerouting ip daddr {VIP} udp dport {PORT} dnat to {}:{PORT}\n",
                server(1)
            ))?;
            self.known("nftables, DNAT", &datagrams((VIP, PORT).into()))?;
            nft("delete table ip bench\n")?;
        }
        Ok(())
    }

    /// Known flows and new ones by each method.
    fn director(&mut self, name: &str, round: u32) -> Result<()> {
        for (method, _, port) in METHODS {
            let service = (VIP, port).into();
            self.known(&format!("{name}, {method}"), &datagrams(service))?;
            // Other clients in every round: those of the one before are still in the table.
            let packets = self.extent.packets;
            let all = clients(packets * (round + 1));
            let opening: Vec<_> = all[(packets * round) as usize..]
                .iter()
                .map(|client| tcp(SocketAddr::V4(*client), service, SYN))
                .collect();
            let passage = self.wire.send(&opening, packets)?;
            self.note(&format!("{name}, {method}, new TCP connection a packet"), passage)?;
        }
        Ok(())
    }

    fn known(&mut self, name: &str, frames: &[Frame]) -> Result<()> {
        // Makes the flows known, and the caches warm.
        self.wire.send(frames, 2 * FLOWS)?;
        let passage = self.wire.send(frames, self.extent.packets)?;
        self.note(name, passage)
    }

    fn note(&mut self, name: &str, passage: wire::Passage) -> Result<()> {
        let packets = u64::from(self.extent.packets);
        let cpu = passage.cpu.as_nanos() as f64 / passage.arrived.max(1) as f64;
        let flows = if name.contains("new") { self.extent.packets } else { FLOWS };
        if self.extent.counts_instructions {
            // The kernel may have something to say meanwhile, such as which multicast groups it is in.
            let range = packets..=packets + packets / 1000;
            ensure!(
                range.contains(&passage.arrived),
                "{name}: {} of {packets} packets arrived",
                passage.arrived
            );
            self.record.measured.note(name, flows, Unit::Instructions, cpu);
            return Ok(());
        }
        ensure!(
            passage.arrived * 10 > packets * 9,
            "{name}: {} of {packets} packets arrived",
            passage.arrived
        );
        let rate = passage.arrived as f64 / passage.elapsed.as_secs_f64();
        self.record.measured.note(name, flows, Unit::CpuNanoseconds, cpu);
        self.record.measured.note(name, flows, Unit::PacketsPerSecond, rate);
        Ok(())
    }
}

/// Carries out commands of nft's, one a line.
fn nft(lines: &str) -> Result<()> {
    let mut nft = Command::new("nft").args(["-f", "-"]).stdin(Stdio::piped()).spawn().context("nft")?;
    nft.stdin.take().context("piped")?.write_all(lines.as_bytes())?;
    ensure!(nft.wait()?.success(), "nft failed");
    Ok(())
}

fn datagrams(to: SocketAddr) -> Vec<Frame> {
    clients(FLOWS).into_iter().map(|client| udp(client.into(), to)).collect()
}
