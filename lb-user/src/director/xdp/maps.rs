//! The pinned maps of a namespace's director: opened, filled for the first time, read.
//!
//! Not here: what a change of the table means for them ([`super::table`]), and how they are made and pinned
//! ([`super::lifecycle`]).

use std::cell::RefCell;
use std::mem::offset_of;
use std::ops::Range;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use aya::maps::{HashMap, Map, MapData};
use aya::programs::{ProgramError, TestRun, TestRunOptions, Xdp};
use aya_obj::programs::XdpAttachType;
use lb_common::connection::{AddressSet, Addresses, Adopted, Adoption, Entry, Set, WAYS};
use lb_common::destination::{
    CounterLine, Counters, Destination, DestinationId, DestinationKey, Hop, Masquerading,
};
use lb_common::mark::Rule;
use lb_common::protocol::{sctp, state, tcp};
use lb_common::reason::{FELL, GAVE_WAY, REASON_SLOTS, Reason};
use lb_common::service::{LINE, Service, ServiceKey, ServiceKeyIpv6};
use lb_common::settings::{ADDRESS_SLOTS, LAYOUT, Settings, SettingsElement};
use lb_common::sip::CallId;
use lb_common::stats::{Estimator, Rates};
use zerocopy::{FromBytes, IntoBytes};

use super::batch::Batch;
use super::mapped::Mapped;
use super::sizes::Sizes;
use crate::director::Error;
use crate::table::Timeouts;

/// How often a second the sweep's timer runs, see the packet program's `sweep`.
const SWEEPS_PER_SECOND: u32 = 128;

/// The maps.
#[derive(Debug)]
pub struct Maps {
    directory: PathBuf,
    /// The settings.
    pub settings: Mapped<Settings>,
    /// The settings with the address filter behind them.
    pub filter: Mapped<SettingsElement>,
    /// Services by slot.
    pub services: Mapped<Service>,
    /// Destinations by number.
    pub destinations: Mapped<Destination>,
    /// Lines of numbers.
    pub arena: Mapped<[u32; LINE]>,
    /// The address that this machine has towards each destination, network order; an IPv4 address in the first four
    /// bytes, zeroes for none.
    pub tunnel_sources: Mapped<[u8; 16]>,
    /// The rules that mark packets, in two halves.
    pub marks: Mapped<Rule>,
    counters: Mapped<CounterLine>,
    rates: Mapped<Estimator>,
    reasons: Mapped<[u64; REASON_SLOTS]>,
    addresses: Mapped<AddressSet>,
    index: HashMap<MapData, u64, u32>,
    index_ipv6: HashMap<MapData, [u8; size_of::<ServiceKeyIpv6>()], u32>,
    calls: RefCell<HashMap<MapData, u64, [u8; size_of::<CallId>()]>>,
    masquerading: RefCell<HashMap<MapData, KeyBytes, [u8; size_of::<Masquerading>()]>>,
}

/// A [`DestinationKey`] as the kernel takes it.
type KeyBytes = [u8; size_of::<DestinationKey>()];

/// A service's key in the index of its family.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum IndexKey {
    /// Of IPv4.
    V4(ServiceKey),
    /// Of IPv6.
    V6(ServiceKeyIpv6),
}

impl IndexKey {
    /// The key of an address (as it lies in a record), a port in network order loaded natively, and a protocol.
    pub fn new(family: u8, address: [u8; 16], port: u16, protocol: u8) -> Self {
        let [a, b, c, d, ..] = address;
        if family == 6 {
            let address = zerocopy::transmute!(address);
            Self::V6(ServiceKeyIpv6 { address, port, protocol, reserved: [0; 5] })
        } else {
            let address = u32::from_ne_bytes([a, b, c, d]);
            Self::V4(ServiceKey { address, port, protocol, reserved: 0 })
        }
    }
}

/// An entry of the connection table as it was read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TableEntry {
    /// The entry.
    pub entry: Entry,
    /// The tick at which it dies.
    pub deadline: u32,
    /// Of a flow of IPv6: its addresses.
    pub addresses: Addresses,
}

fn unavailable(what: &str, error: &dyn std::fmt::Display) -> Error {
    Error::Unavailable(format!("{what}: {error}"))
}

fn pinned(directory: &Path, name: &str) -> Result<(MapData, u32), Error> {
    let map = MapData::from_pin(directory.join(name)).map_err(|error| unavailable(name, &error))?;
    let entries = map.info().map_err(|error| unavailable(name, &error))?.max_entries();
    Ok((map, entries))
}

fn mapped<T: FromBytes + IntoBytes + Copy>(directory: &Path, name: &str) -> Result<Mapped<T>, Error> {
    let (map, entries) = pinned(directory, name)?;
    Mapped::new(map.fd().as_fd(), entries).map_err(|error| unavailable(name, &error))
}

/// Fills the settings of maps that were just made.
///
/// # Errors
///
/// When a map is not there, or the kernel gives no random number.
pub fn initialise(directory: &Path, sizes: &Sizes) -> Result<(), Error> {
    let settings: Mapped<Settings> = mapped(directory, "SETTINGS")?;
    let mut seed = [0; 8];
    getrandom::fill(&mut seed).map_err(|error| unavailable("no random seed", &error))?;
    // A coarse clock is as coarse as a jiffy.
    let resolution = rustix::time::clock_getres(rustix::time::ClockId::MonotonicCoarse);
    let hertz = 1_000_000_000u64.checked_div(resolution.tv_nsec as u64).unwrap_or(250) as u32;
    let tick_shift = (0..8).find(|shift| hertz >> shift <= 300).unwrap_or(8);
    let ticks_per_second = (hertz >> tick_shift).max(1);
    let mut fresh = Settings::new(ticks_per_second, tick_shift);
    fresh.seed = u64::from_ne_bytes(seed);
    fresh.set_mask = sizes.sets - 1;
    fresh.destinations = sizes.destinations;
    fresh.cpus = sizes.cpus;
    fresh.timeouts = timeouts_in_ticks(ticks_per_second, &Timeouts::default());
    fresh.sweep_stride = (sizes.sets / SWEEPS_PER_SECOND).max(1);
    settings.write(0, &Settings { layout: 0, ..fresh });
    let destinations: Mapped<Destination> = mapped(directory, "DESTINATIONS")?;
    destinations.write(sizes.destinations.saturating_sub(1), &Destination::bypass());
    let filter: Mapped<SettingsElement> = mapped(directory, "SETTINGS")?;
    for slot in (0..ADDRESS_SLOTS).step_by(size_of::<u64>()) {
        filter.store_u64(0, offset_of!(SettingsElement, addresses) + slot, 0);
    }
    // The mark that all is there comes last.
    settings.store_u32(0, offset_of!(Settings, layout), LAYOUT);
    Ok(())
}

impl Maps {
    /// Opens the maps that are pinned in a directory.
    ///
    /// # Errors
    ///
    /// When one of them is not there, or they are of another version of xipvs.
    pub fn open(directory: &Path) -> Result<Self, Error> {
        let settings: Mapped<Settings> = mapped(directory, "SETTINGS")?;
        let layout = settings.load_u32(0, offset_of!(Settings, layout)).unwrap_or(0);
        if layout != LAYOUT {
            return Err(Error::Unavailable(format!(
                "the maps in {} have layout {layout}, this xipvs has layout {LAYOUT}: save the rules with the \
                 xipvs that made them, run `xipvs detach`, and restore them with this one",
                directory.display()
            )));
        }
        let index = |name| {
            let (map, _) = pinned(directory, name)?;
            Ok::<_, Error>(Map::HashMap(map))
        };
        Ok(Self {
            directory: directory.into(),
            settings,
            filter: mapped(directory, "SETTINGS")?,
            services: mapped(directory, "SERVICES")?,
            destinations: mapped(directory, "DESTINATIONS")?,
            arena: mapped(directory, "ARENA")?,
            tunnel_sources: mapped(directory, "TUNNEL_SOURCES")?,
            marks: mapped(directory, "MARKS")?,
            counters: mapped(directory, "COUNTERS")?,
            rates: mapped(directory, "RATES")?,
            reasons: mapped(directory, "REASONS")?,
            addresses: mapped(directory, "ADDRESSES")?,
            index: HashMap::try_from(index("SERVICE_INDEX")?)
                .map_err(|error| unavailable("SERVICE_INDEX", &error))?,
            index_ipv6: HashMap::try_from(index("SERVICE_INDEX_IPV6")?)
                .map_err(|error| unavailable("SERVICE_INDEX_IPV6", &error))?,
            calls: RefCell::new(
                HashMap::try_from(index("CALLS")?).map_err(|error| unavailable("CALLS", &error))?,
            ),
            masquerading: HashMap::try_from(index("MASQUERADING")?)
                .map_err(|error| unavailable("MASQUERADING", &error))?
                .into(),
        })
    }

    /// Where the maps are pinned.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// A copy of the settings.
    pub fn settings(&self) -> Settings {
        self.settings.read(0).unwrap_or_else(|| Settings::new(1, 0))
    }

    /// The timeouts that can be set, in seconds.
    pub fn timeouts(&self) -> Timeouts {
        let settings = self.settings();
        let seconds = |state: u8| settings.timeouts[usize::from(state)] / settings.ticks_per_second.max(1);
        Timeouts {
            tcp: seconds(tcp::State::Established as u8),
            tcp_fin: seconds(tcp::State::FinWait as u8),
            udp: seconds(state::UDP),
        }
    }

    /// Sets the timeouts, in seconds.
    pub fn set_timeouts(&self, wanted: &Timeouts) {
        let ticks = timeouts_in_ticks(self.settings().ticks_per_second, wanted);
        for (offset, ticks) in (offset_of!(Settings, timeouts)..).step_by(size_of::<u32>()).zip(ticks) {
            self.settings.store_u32(0, offset, ticks);
        }
    }

    /// The slot of a service.
    pub fn slot(&self, key: &IndexKey) -> Option<u32> {
        match key {
            IndexKey::V4(key) => self.index.get(&zerocopy::transmute!(*key), 0).ok(),
            IndexKey::V6(key) => self.index_ipv6.get(&zerocopy::transmute!(*key), 0).ok(),
        }
    }

    /// Enters a service into the index, from where on packets find it.
    ///
    /// # Errors
    ///
    /// When the index is full.
    pub fn enter(&mut self, key: &IndexKey, slot: u32) -> Result<(), Error> {
        let entered = match key {
            IndexKey::V4(key) => {
                let key: u64 = zerocopy::transmute!(*key);
                self.index.insert(key, slot, 0)
            }
            IndexKey::V6(key) => {
                let key: [u8; size_of::<ServiceKeyIpv6>()] = zerocopy::transmute!(*key);
                self.index_ipv6.insert(key, slot, 0)
            }
        };
        entered.map_err(|_| Error::Errno(libc::ENOMEM))
    }

    /// Takes a service out of the index.
    pub fn leave(&mut self, key: &IndexKey) {
        // Not there is as good as taken out.
        let _ = match key {
            IndexKey::V4(key) => self.index.remove(&zerocopy::transmute!(*key)),
            IndexKey::V6(key) => self.index_ipv6.remove(&zerocopy::transmute!(*key)),
        };
    }

    /// What is known of the masquerading destinations at a key.
    pub fn masquerading(&self, key: &DestinationKey) -> Option<Masquerading> {
        let key: KeyBytes = zerocopy::transmute!(*key);
        self.masquerading.borrow().get(&key, 0).ok().map(|known| zerocopy::transmute!(known))
    }

    /// Replaces that; none if there are no such destinations any more.
    ///
    /// # Errors
    ///
    /// When there is no room.
    pub fn store_masquerading(&self, key: &DestinationKey, value: &Masquerading) -> Result<(), Error> {
        let key: KeyBytes = zerocopy::transmute!(*key);
        let mut map = self.masquerading.borrow_mut();
        if value.count == 0 {
            // Not there is as good as taken out.
            let _ = map.remove(&key);
            return Ok(());
        }
        let value: [u8; size_of::<Masquerading>()] = zerocopy::transmute!(*value);
        map.insert(key, value, 0).map_err(|_| Error::Errno(libc::ENOMEM))
    }

    /// Forgets which destinations masquerade.
    pub fn clear_masquerading(&self) {
        let mut map = self.masquerading.borrow_mut();
        let keys: Vec<_> = map.keys().filter_map(Result::ok).collect();
        for key in keys {
            let _ = map.remove(&key);
        }
    }

    /// The Call-ID of a template by its number, unless too many others came after it.
    pub fn call_id(&self, call: u64) -> Option<CallId> {
        self.calls.borrow().get(&call, 0).ok().map(|bytes| zerocopy::transmute!(bytes))
    }

    /// Has a Call-ID be that of the templates with its number; one without its text works as well.
    pub fn remember_call(&self, call: &CallId) {
        let bytes: [u8; size_of::<CallId>()] = zerocopy::transmute!(*call);
        let _ = self.calls.borrow_mut().insert(call.digest, bytes, 0);
    }

    /// What a destination has counted on all CPUs since its slot was taken.
    pub fn counted(&self, id: DestinationId) -> Counters {
        let settings = self.settings();
        let mut sum = Counters::default();
        for cpu in 0..settings.cpus {
            if let Some(line) = self.counters.read(cpu * settings.destinations + id) {
                sum.add(&line.counters);
            }
        }
        sum
    }

    /// The rates of a destination.
    pub fn rates(&self, id: DestinationId) -> Rates {
        self.rates.read(id).map_or(Rates::default(), |estimator| estimator.rates())
    }

    /// Has the rates of a destination begin anew.
    pub fn clear_rates(&self, id: DestinationId) {
        self.rates.write(id, &Estimator::new(self.counted(id)));
    }

    /// Zeroes the counters of a destination's slot that nothing uses.
    pub fn clear_counters(&self, id: DestinationId) {
        let settings = self.settings();
        let empty = CounterLine { counters: Counters::default(), hop: Hop::default() };
        for cpu in 0..settings.cpus {
            self.counters.write(cpu * settings.destinations + id, &empty);
        }
        self.clear_rates(id);
    }

    /// How often each reason was met, on all CPUs.
    pub fn reasons(&self) -> Vec<(Reason, u64)> {
        Reason::ALL.iter().map(|reason| (*reason, self.counted_at(*reason as usize))).collect()
    }

    /// How many connections gave way to new ones that had no room.
    pub fn gave_way(&self) -> u64 {
        self.counted_at(GAVE_WAY)
    }

    /// How many connections and templates fell to `drop_entry`.
    pub fn fell(&self) -> u64 {
        self.counted_at(FELL)
    }

    /// The sum over all CPUs at a place among the reasons.
    fn counted_at(&self, place: usize) -> u64 {
        (0..self.reasons.count())
            .filter_map(|cpu| self.reasons.read(cpu))
            .map(|counters| counters[place])
            .fold(0u64, u64::wrapping_add)
    }

    /// A program that is there for user space to run.
    fn program(&self, name: &str) -> Result<Xdp, Error> {
        Xdp::from_pin(self.directory.join(name), XdpAttachType::Interface)
            .map_err(|error| unavailable(name, &error))
    }

    /// Runs one of those programs, on a packet that says nothing.
    fn run(&self, name: &str) -> Result<(), Error> {
        run(&self.program(name)?, name, &[0; 64]).map(drop)
    }

    /// Starts the sweep.
    ///
    /// # Errors
    ///
    /// When the program is not there or cannot be run.
    pub fn start_sweep(&self) -> Result<(), Error> {
        self.run("xipvs_start")
    }

    /// Sweeps the table at once, so that counts and connections are those of this moment.
    ///
    /// # Errors
    ///
    /// As for [`Maps::start_sweep`].
    pub fn sweep(&self) -> Result<(), Error> {
        self.run("xipvs_sweep")
    }

    /// Puts connections into the table as if packets had made them, and says of each what became of it.
    ///
    /// # Errors
    ///
    /// As for [`Maps::start_sweep`].
    pub fn adopt(&self, connections: &[Adoption]) -> Result<Vec<Adopted>, Error> {
        const NAME: &str = "xipvs_adopt";
        let program = self.program(NAME)?;
        let adopted = |connection: &Adoption| {
            let answer = run(&program, NAME, connection.as_bytes())?;
            let known = [Adopted::Known, Adopted::Taken, Adopted::Renewed]
                .into_iter()
                .find(|one| *one as u32 == answer);
            Ok(known.unwrap_or(Adopted::Failed))
        };
        connections.iter().map(adopted).collect()
    }

    /// The connection table, to be read a part at a time.
    ///
    /// # Errors
    ///
    /// When the table cannot be read.
    pub fn connections(&self) -> Result<Connections<'_>, Error> {
        let (map, _) = pinned(&self.directory, CONNECTIONS)?;
        let sets = Batch::new(&map, AT_ONCE).map_err(|error| unavailable(CONNECTIONS, &error))?;
        Ok(Connections { sets, addresses: &self.addresses })
    }

    /// Every entry of the connection table.
    ///
    /// # Errors
    ///
    /// When the table cannot be read.
    pub fn entries(&self) -> Result<Vec<TableEntry>, Error> {
        let mut connections = self.connections()?;
        let mut entries = Vec::new();
        let all = connections.sets();
        connections.visit(0..all, |_, set| entries.extend(set.iter().flatten()))?;
        Ok(entries)
    }
}

/// The map of the connection table.
const CONNECTIONS: &str = "CONNECTIONS";

/// Sets that are copied at once: half a megabyte.
const AT_ONCE: u32 = 1024;

/// The connection table, while it is read.
#[derive(Debug)]
pub struct Connections<'a> {
    sets: Batch<Set>,
    addresses: &'a Mapped<AddressSet>,
}

/// The entries of a set by slot.
pub type SetEntries = [Option<TableEntry>; WAYS];

impl Connections<'_> {
    /// Sets in the table.
    pub fn sets(&self) -> u32 {
        self.sets.count()
    }

    /// Shows the sets of a range, each by its number.
    ///
    /// # Errors
    ///
    /// When the table cannot be read.
    pub fn visit(
        &mut self,
        range: Range<u32>,
        mut visitor: impl FnMut(u32, &SetEntries),
    ) -> Result<(), Error> {
        let Self { sets, addresses } = self;
        let mut first = range.start;
        while first < range.end {
            let copied = sets.read(first).map_err(|error| unavailable(CONNECTIONS, &error))?;
            if copied.is_empty() {
                break;
            }
            for (number, set) in (first..range.end).zip(copied) {
                visitor(number, &entries_of(set, || addresses.read(number)));
            }
            first += copied.len() as u32;
        }
        Ok(())
    }

    /// The entry at a place, as [`Entry::place`] has it, if there is one.
    ///
    /// # Errors
    ///
    /// When the table cannot be read.
    pub fn at(&self, place: u32) -> Result<Option<TableEntry>, Error> {
        let Some(slot) = (place & 7).checked_sub(1) else { return Ok(None) };
        let number = place >> 3;
        let set = self.sets.one(number).map_err(|error| unavailable(CONNECTIONS, &error))?;
        let entries = set.map(|set| entries_of(&set, || self.addresses.read(number)));
        Ok(entries.and_then(|entries| entries[slot as usize]))
    }
}

fn entries_of(set: &Set, beside: impl FnOnce() -> Option<AddressSet>) -> SetEntries {
    let is_ipv6 = |slot: &usize| set.tags[*slot] != 0 && set.entries[*slot].tuple().is_ipv6();
    let lines = if (0..WAYS).any(|slot| is_ipv6(&slot)) { beside() } else { None };
    std::array::from_fn(|slot| {
        (set.tags[slot] != 0).then(|| TableEntry {
            entry: set.entries[slot],
            deadline: set.deadlines[slot],
            addresses: lines.filter(|_| is_ipv6(&slot)).map_or_else(Addresses::default, |lines| lines[slot]),
        })
    })
}

/// Runs a program once on a packet and returns its answer.
fn run(program: &Xdp, name: &str, packet: &[u8]) -> Result<u32, Error> {
    let mut options = TestRunOptions::new();
    options.data_in = Some(packet);
    program
        .test_run(options)
        .map(|result| result.return_value)
        .map_err(|error: ProgramError| unavailable(name, &error))
}

/// The timeouts in ticks of all states, from those that can be set, in seconds.
fn timeouts_in_ticks(ticks_per_second: u32, wanted: &Timeouts) -> [u32; state::COUNT] {
    let settable = tcp::Timeouts { established: wanted.tcp, fin_wait: wanted.tcp_fin };
    let mut timeouts = [0; state::COUNT];
    for (number, timeout) in (0u8..).zip(&mut timeouts) {
        let seconds = match tcp::State::from_number(number) {
            Some(state) => state.timeout(&settable),
            None if number == state::UDP => wanted.udp,
            None => {
                sctp::State::from_number(number.wrapping_sub(state::SCTP)).map_or(0, sctp::State::timeout)
            }
        };
        *timeout = seconds.saturating_mul(ticks_per_second);
    }
    timeouts
}
