//! The loaded program in the namespace of the director.

use std::cell::Cell;
use std::ffi::OsString;
use std::mem::offset_of;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, AsRawFd};
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use aya::maps::MapData;
use aya::programs::Xdp as Loaded;
use aya_obj::programs::XdpAttachType;
use lb_common::protocol::Protocol;
use lb_common::settings::Settings;
use xipvs::cli::names::SystemNames;
use xipvs::cli::{self, Streams};
use xipvs::director::Director;
use xipvs::director::xdp::Xdp;
use xipvs::director::xdp::lifecycle::{self, Pins};
use xipvs::director::xdp::sizes::Sizes;
use xipvs::table::{ServiceKey, Timeouts};

use super::Program;
use super::topology::{AS_ON_CARDS, DESTINATIONS, server, server_ipv6};

/// How long established connections live untouched, in seconds: longer than any measurement turns the clock on.
pub const ESTABLISHED: u32 = 86_400;

/// The programs that most packets go through, in their order on a packet's way.
const PROGRAMS: [&str; 6] =
    ["xipvs", "xipvs_slow", "xipvs_open", "xipvs_ipv6", "xipvs_ipv6_slow", "xipvs_ipv6_open"];

/// The program with an empty table.
pub struct World {
    /// The director, to configure.
    pub director: Xdp,
    /// The entry, to run packets through.
    pub program: Loaded,
    clock: Cell<u32>,
    ticks_per_second: u32,
}

impl World {
    /// Loads the program with a connection table of so many sets.
    pub fn load(sets: u32) -> Result<Self> {
        let sizes = Sizes { sets, ..Sizes::new(lifecycle::possible_cpus()?) };
        let interfaces = ["clients".to_owned(), "servers".to_owned()];
        lifecycle::attach(&interfaces, AS_ON_CARDS, &sizes, false)?;
        let pins = Pins::find()?;
        let mut director = Xdp::open(pins.directory())?;
        director.set_timeouts(&Timeouts { tcp: ESTABLISHED, tcp_fin: 0, udp: 0 })?;
        let program = Loaded::from_pin(pins.directory().join("xipvs"), XdpAttachType::Interface)?;
        let Settings { clock_offset, ticks_per_second, .. } = director.maps().settings();
        Ok(Self { director, program, clock: Cell::new(clock_offset), ticks_per_second })
    }

    /// Unloads it.
    pub fn unload(self) -> Result<()> {
        drop(self);
        Ok(lifecycle::detach_all()?)
    }

    /// What the verifier says of the programs that packets go through.
    pub fn programs(&self) -> Result<Vec<Program>> {
        let directory = self.director.maps().directory();
        let program = |name: &str| {
            let info = Loaded::from_pin(directory.join(name), XdpAttachType::Interface)?.info()?;
            let instructions = info.verified_instruction_count();
            let instructions = instructions.context("this kernel does not tell instruction counts")?;
            Ok(Program { name: name.into(), instructions })
        };
        PROGRAMS.into_iter().map(program).collect()
    }

    /// Adds a service at a port of a virtual address with all servers; `method` is ipvsadm's option.
    pub fn add_service(&mut self, service: SocketAddr, scheduler: &str, method: &str) -> Result<()> {
        ipvsadm(&mut self.director, &format!("-A -t {service} -s {scheduler}"))?;
        // Overflow takes no more connections than weights allow.
        let weight = if scheduler == "ovf" { 65_535 } else { 1 };
        for number in 1..=DESTINATIONS {
            let port = if method == "-m" { 8080 } else { service.port() };
            let server: IpAddr = match service {
                SocketAddr::V4(_) => server(number).into(),
                SocketAddr::V6(_) => server_ipv6(number).into(),
            };
            let server = SocketAddr::new(server, port);
            ipvsadm(&mut self.director, &format!("-a -t {service} -r {server} {method} -w {weight}"))?;
        }
        Ok(())
    }

    /// Bytes of memory that the kernel holds for a map.
    pub fn memory(&self, map: &str) -> Result<u64> {
        let pin = self.director.maps().directory().join(map);
        let map = MapData::from_pin(&pin).with_context(|| pin.display().to_string())?;
        let text = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", map.fd().as_fd().as_raw_fd()))?;
        let line = text.lines().find_map(|line| line.strip_prefix("memlock:"));
        Ok(line.context("the kernel does not tell a map's memory")?.trim().parse()?)
    }

    /// Connections, active and inactive, that the destinations of a service count.
    pub fn connections(&mut self, service: SocketAddr) -> Result<u32> {
        let (address, port) = (service.ip(), service.port());
        let key = ServiceKey::Address { protocol: Protocol::Tcp, address, port };
        let destinations = self.director.destinations(&key)?;
        Ok(destinations.iter().map(|destination| destination.active + destination.inactive).sum())
    }

    /// Turns the program's clock on by so many milliseconds.
    pub fn turn_on(&self, milliseconds: u64) {
        let ticks = milliseconds * u64::from(self.ticks_per_second) / 1000;
        self.set_clock(self.clock.get().wrapping_add(ticks as u32));
    }

    /// Turns the program's clock back to where it was at an instant.
    pub fn turn_back(&self, to: Instant) {
        let ticks = to.elapsed().as_micros() as u64 * u64::from(self.ticks_per_second) / 1_000_000;
        // Not noted: the next time is counted from the same instant.
        self.store_clock(self.clock.get().wrapping_sub(ticks as u32));
    }

    /// Lets the clock go on from where [`World::turn_back`] left it.
    pub fn go_on(&self, from: Instant) {
        let ticks = from.elapsed().as_micros() as u64 * u64::from(self.ticks_per_second) / 1_000_000;
        self.clock.set(self.clock.get().wrapping_sub(ticks as u32));
    }

    /// Lets every connection that is older than so many seconds expire, and has it swept.
    pub fn expire(&self, seconds: u32) -> Result<()> {
        self.turn_on(u64::from(seconds) * 1000);
        Ok(self.director.maps().sweep()?)
    }

    fn set_clock(&self, ticks: u32) {
        self.clock.set(ticks);
        self.store_clock(ticks);
    }

    fn store_clock(&self, ticks: u32) {
        self.director.maps().settings.store_u32(0, offset_of!(Settings, clock_offset), ticks);
    }
}

/// Says a line of ipvsadm's to a director.
pub fn ipvsadm(director: &mut dyn Director, line: &str) -> Result<()> {
    let words: Vec<OsString> = std::iter::once("ipvsadm").chain(line.split(' ')).map(Into::into).collect();
    let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
    let mut streams = Streams { stdin: &mut std::io::empty(), stdout: &mut stdout, stderr: &mut stderr };
    let status = cli::run(&words, &mut streams, director, &SystemNames::default());
    ensure!(status == 0, "ipvsadm {line}: {}", String::from_utf8_lossy(&stderr));
    Ok(())
}
