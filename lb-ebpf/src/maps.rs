//! The maps, and the door to their memory: every pointer into a map is dereferenced here.
//!
//! All maps but the index are arrays, made page-aligned (`BPF_F_MMAPABLE`) so that a line of ours is a cache
//! line of the machine. User space maps all of them but the connection table, whose spin locks forbid it.

use core::ptr::{addr_of, addr_of_mut, read_volatile, write_volatile};

use aya_ebpf::bindings::{BPF_F_MMAPABLE, bpf_fib_lookup, bpf_timer};
use aya_ebpf::btf_maps::{Array, HashMap, PerCpuArray, ProgramArray};
use aya_ebpf::helpers::generated::{bpf_get_smp_processor_id, bpf_spin_lock, bpf_spin_unlock};
use aya_ebpf::macros::btf_map;
use aya_ebpf::programs::XdpContext;
use lb_common::connection::{Entry, Set, WAYS};
use lb_common::destination::{CounterLine, Counters, Destination, DestinationId};
use lb_common::packet::Packet;
use lb_common::reason::{REASON_SLOTS, Reason};
use lb_common::scheduler::overload::Thresholds;
use lb_common::service::{LINE, Service, ServiceKey, SetHeader};
use lb_common::settings::{Program, Settings, Vlan};
use lb_common::stats::Estimator;

use crate::machine;

const MAPPED: usize = BPF_F_MMAPABLE as usize;

/// What the program must know before it looks at a packet.
#[btf_map]
static SETTINGS: Array<Settings, 1, MAPPED> = Array::new();

/// The connection table, IPv4. User space chooses its size when it makes the map.
#[btf_map]
static CONNECTIONS: Array<Set, 65536, MAPPED> = Array::new();

/// Where a service lies in `SERVICES`, by protocol, address and port.
#[btf_map]
static SERVICE_INDEX: HashMap<ServiceKey, u32, 16384> = HashMap::new();

/// The services.
#[btf_map]
static SERVICES: Array<Service, 16384, MAPPED> = Array::new();

/// The destinations of all services.
#[btf_map]
static DESTINATIONS: Array<Destination, 131072, MAPPED> = Array::new();

/// Counters of each destination on each CPU: slot `cpu * destinations + destination`.
#[btf_map]
static COUNTERS: Array<CounterLine, 131072, MAPPED> = Array::new();

/// The rates of each destination.
#[btf_map]
static RATES: Array<Estimator, 131072, MAPPED> = Array::new();

/// Reason counters: slot `cpu`.
#[btf_map]
static REASONS: Array<[u64; REASON_SLOTS], 1, MAPPED> = Array::new();

/// The destination sets, in lines of numbers.
#[btf_map]
static ARENA: Array<[u32; LINE], 262144, MAPPED> = Array::new();

/// VLAN interfaces, by their index: a frame for one goes out of its parent with a tag.
#[btf_map]
static VLANS: HashMap<u32, Vlan, 4096> = HashMap::new();

/// The programs that the packet program goes on in.
#[btf_map]
pub static PROGRAMS: ProgramArray<2> = ProgramArray::new();

/// Room for what does not fit the stack.
#[btf_map]
static SCRATCH: PerCpuArray<Scratch, 1> = PerCpuArray::new();

/// What the programs off the steady path keep. Read back from here, a value is just a number to the verifier: it
/// need not follow each way that led to it separately.
pub struct Scratch {
    /// The packet's headers.
    pub packet: Packet,
    /// Packets of the client.
    pub client_side: Entry,
    /// Packets of the destination.
    pub server_side: Entry,
}

/// Room for asking the kernel the way; not on the stack, whose bytes may only be read aligned.
#[btf_map]
static LOOKUP: PerCpuArray<bpf_fib_lookup, 1> = PerCpuArray::new();

/// This CPU's room for a route lookup, with what the last one left in it.
#[inline(always)]
pub fn lookup() -> Option<&'static mut bpf_fib_lookup> {
    // SAFETY: the element is this CPU's own, and only one lookup is made at a time.
    LOOKUP.get_ptr_mut(0).map(|lookup| unsafe { &mut *lookup })
}

/// This CPU's scratch room. Programs do not interrupt each other on a CPU.
#[inline(always)]
pub fn scratch() -> Result<&'static mut Scratch, Reason> {
    // SAFETY: the element is this CPU's own, and a program asks for it once.
    SCRATCH.get_ptr_mut(0).map(|scratch| unsafe { &mut *scratch }).ok_or(Reason::Internal)
}

impl Scratch {
    /// Puts a packet's headers here and reads them back.
    #[inline(always)]
    pub fn keep(&mut self, packet: Packet) -> Packet {
        // SAFETY: a live place for a plain value.
        unsafe {
            write_volatile(&mut self.packet, packet);
            Packet {
                tuple: read_volatile(&self.packet.tuple),
                network: read_volatile(&self.packet.network),
                transport: read_volatile(&self.packet.transport),
                length: read_volatile(&self.packet.length),
                service_type: read_volatile(&self.packet.service_type),
                tcp_flags: read_volatile(&self.packet.tcp_flags),
                time_to_live: read_volatile(&self.packet.time_to_live),
            }
        }
    }
}

/// The timer that drives the sweep.
#[btf_map]
pub static SWEEPER: Array<Sweeper, 1> = Array::new();

/// The one element of the timer map.
#[repr(C)]
pub struct Sweeper {
    /// The kernel's timer.
    pub timer: bpf_timer,
}

/// The settings, read field by field: user space may write them at any time.
#[derive(Clone, Copy)]
pub struct SettingsRef(*mut Settings);

macro_rules! settings_fields {
    ($($field:ident),+) => {
        $(
            #[doc = concat!("[`Settings::", stringify!($field), "`].")]
            #[inline(always)]
            pub fn $field(self) -> u32 {
                // SAFETY: the pointer is to the one element of the settings map.
                unsafe { read_volatile(addr_of!((*self.0).$field)) }
            }
        )+
    };
}

impl SettingsRef {
    settings_fields!(
        services,
        tick_shift,
        clock_offset,
        set_mask,
        destinations,
        reuse_mode,
        ticks_per_second,
        sweep_position,
        sweep_stride,
        cpus,
        destinations_used,
        estimator_turn
    );

    /// [`Settings::seed`].
    #[inline(always)]
    pub fn seed(self) -> u64 {
        // SAFETY: as above.
        unsafe { read_volatile(addr_of!((*self.0).seed)) }
    }

    /// The timeout of a connection state in ticks.
    #[inline(always)]
    pub fn timeout(self, state: u8) -> u32 {
        // SAFETY: as above; the index is masked to the table's length.
        unsafe { read_volatile(addr_of!((*self.0).timeouts[state as usize & 63])) }
    }

    /// Whether an address (loaded natively) may be one of ours.
    #[inline(always)]
    pub fn concerns(self, address: u32) -> bool {
        let (word, bit) = Settings::address_bit(address);
        // SAFETY: as above; `address_bit` masks the index to the table's length.
        unsafe { read_volatile(addr_of!((*self.0).addresses[word & 63])) & bit != 0 }
    }

    /// Notes that the estimator has had another turn.
    #[inline(always)]
    pub fn set_estimator_turn(self, turn: u32) {
        // SAFETY: as above; only the sweep writes it.
        unsafe { write_volatile(addr_of_mut!((*self.0).estimator_turn), turn) };
    }

    /// Notes how far the sweep has come, and when.
    #[inline(always)]
    pub fn set_sweep(self, position: u32, now: u32) {
        // SAFETY: as above; only the sweep writes these two.
        unsafe {
            write_volatile(addr_of_mut!((*self.0).sweep_position), position);
            write_volatile(addr_of_mut!((*self.0).swept_at), now);
        }
    }
}

/// The settings.
#[inline(always)]
pub fn settings() -> Result<SettingsRef, Reason> {
    SETTINGS.get_ptr_mut(0).map(SettingsRef).ok_or(Reason::Internal)
}

/// Counts a packet that was not forwarded.
#[inline(always)]
pub fn count(reason: Reason) {
    if let Some(counters) = REASONS.get_ptr_mut(cpu()) {
        // SAFETY: the element has room for every reason; only this CPU writes it.
        unsafe {
            let counter = addr_of_mut!((*counters)[reason as usize & (REASON_SLOTS - 1)]);
            write_volatile(counter, read_volatile(counter).wrapping_add(1));
        }
    }
}

/// Goes on in another program; comes back only if there is none in the slot.
#[inline(always)]
pub fn go_on(context: &XdpContext, program: Program) {
    // SAFETY: nothing of this program's stack is used by the other.
    unsafe { PROGRAMS.tail_call(context, program as u32) };
}

#[inline(always)]
fn cpu() -> u32 {
    // SAFETY: the helper takes nothing.
    unsafe { bpf_get_smp_processor_id() }
}

/// What is counted about a packet that was handled.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Counted {
    /// From a client.
    In,
    /// From a destination.
    Out,
    /// From a client, and it made a connection.
    New,
}

/// Counts a packet of `length` bytes for a destination.
#[inline(always)]
pub fn count_packet(settings: SettingsRef, destination: DestinationId, what: Counted, length: u16) {
    let slot = cpu().wrapping_mul(settings.destinations()).wrapping_add(destination);
    if let Some(line) = COUNTERS.get_ptr_mut(slot) {
        // SAFETY: the pointer is to an element; only this CPU writes it.
        unsafe {
            let counters = addr_of_mut!((*line).counters);
            let (packets, bytes) = if what == Counted::Out {
                (addr_of_mut!((*counters).out_packets), addr_of_mut!((*counters).out_bytes))
            } else {
                (addr_of_mut!((*counters).in_packets), addr_of_mut!((*counters).in_bytes))
            };
            write_volatile(packets, read_volatile(packets).wrapping_add(1));
            write_volatile(bytes, read_volatile(bytes).wrapping_add(u64::from(length)));
            if what == Counted::New {
                let connections = addr_of_mut!((*counters).connections);
                write_volatile(connections, read_volatile(connections).wrapping_add(1));
            }
        }
    }
}

/// Adds what a destination has counted on one CPU.
#[inline(always)]
pub fn add_counted(settings: SettingsRef, cpu: u32, destination: DestinationId, sum: &mut Counters) {
    let slot = cpu.wrapping_mul(settings.destinations()).wrapping_add(destination);
    if let Some(line) = COUNTERS.get_ptr(slot) {
        // SAFETY: the pointer is to an element; another CPU may be counting on, which the next tick sees.
        sum.add(&unsafe { read_volatile(addr_of!((*line).counters)) });
    }
}

/// Lets a destination's estimator see what was counted.
#[inline(always)]
pub fn estimate(destination: DestinationId, counted: &Counters) {
    if let Some(estimator) = RATES.get_ptr_mut(destination) {
        // SAFETY: the pointer is to an element, which the sweep alone writes, but for user space's zeroing.
        unsafe { write_volatile(estimator, read_volatile(estimator).tick(*counted)) };
    }
}

/// Where a service lies, if there is one for this key.
#[inline(always)]
pub fn service_slot(key: &ServiceKey) -> Option<u32> {
    // SAFETY: the number is copied out at once; user space replaces it whole or deletes it.
    unsafe { SERVICE_INDEX.get(key).map(|slot| read_volatile(slot)) }
}

/// What is to be known of an interface if it is a VLAN interface.
#[inline(always)]
pub fn vlan(interface: u32) -> Option<Vlan> {
    // SAFETY: the value is copied out at once; user space replaces it whole or deletes it.
    unsafe { VLANS.get(interface).copied() }
}

/// First line of a service's destination set; 0 for none.
#[inline(always)]
pub fn service_set(slot: u32) -> Option<u32> {
    // SAFETY: the pointer is to an element; the word is stored whole by user space.
    SERVICES.get_ptr(slot).map(|service| unsafe { read_volatile(addr_of!((*service).set)) as u32 })
}

/// The header of a destination set.
#[derive(Clone, Copy)]
pub struct SetHeaderRef(*mut SetHeader);

impl SetHeaderRef {
    /// The header in a line of the arena.
    #[inline(always)]
    pub fn at(line: u32) -> Option<Self> {
        ARENA.get_ptr_mut(line).map(|line| Self(line.cast()))
    }

    /// A copy of the header; all of it but the cursor never changes.
    #[inline(always)]
    pub fn read(self) -> SetHeader {
        // SAFETY: a line of the arena is as large as a header and 64-byte aligned.
        unsafe { read_volatile(self.0) }
    }

    /// Moves the cursor on, unless another CPU did so first.
    #[inline(always)]
    pub fn move_cursor(self, from: u64, to: u64) -> bool {
        // SAFETY: the cursor is an aligned word of a live map element, changed by atomic operations alone.
        unsafe { machine::replace(addr_of_mut!((*self.0).cursor), from, to) }
    }

    /// The cursor.
    #[inline(always)]
    pub fn cursor(self) -> u64 {
        // SAFETY: as above.
        unsafe { read_volatile(addr_of!((*self.0).cursor)) }
    }
}

/// The `index`-th number of the lines that begin at `line`.
#[inline(always)]
pub fn arena_number(line: u32, index: u32) -> Option<u32> {
    let line = ARENA.get_ptr(line.wrapping_add(index / LINE as u32))?;
    // SAFETY: the pointer is to an element, the index masked to its length.
    Some(unsafe { read_volatile(addr_of!((*line)[index as usize & (LINE - 1)])) })
}

/// A destination, read field by field.
#[derive(Clone, Copy)]
pub struct DestinationRef(*mut Destination);

macro_rules! destination_fields {
    ($($field:ident: $kind:ty = $($path:ident).+;)+) => {
        $(
            #[doc = concat!("The field `", stringify!($($path).+), "`.")]
            #[inline(always)]
            pub fn $field(self) -> $kind {
                // SAFETY: the pointer is to an element of the destination map.
                unsafe { read_volatile(addr_of!((*self.0).$($path).+)) }
            }
        )+
    };
}

impl DestinationRef {
    /// The destination with this number.
    #[inline(always)]
    pub fn at(id: DestinationId) -> Option<Self> {
        DESTINATIONS.get_ptr_mut(id).map(Self)
    }

    destination_fields! {
        status: u8 = status;
        method: u8 = method;
        port: u16 = port;
        weight: u32 = weight;
        active: u32 = load.active;
        total: u32 = load.total;
        overloaded: u32 = load.overloaded;
    }

    /// The thresholds.
    #[inline(always)]
    pub fn thresholds(self) -> Thresholds {
        // SAFETY: as above.
        unsafe {
            Thresholds {
                upper: read_volatile(addr_of!((*self.0).upper_threshold)),
                lower: read_volatile(addr_of!((*self.0).lower_threshold)),
            }
        }
    }

    /// The IPv4 address, loaded natively.
    #[inline(always)]
    pub fn address(self) -> u32 {
        // SAFETY: as above; the address begins the element, which is aligned for it.
        unsafe { read_volatile(addr_of!((*self.0).address).cast()) }
    }

    /// Adds to the active connections and returns what they were.
    #[inline(always)]
    pub fn add_active(self, change: i32) -> u32 {
        // SAFETY: an aligned word of a live map element, changed by atomic operations alone.
        unsafe { machine::add(addr_of_mut!((*self.0).load.active), change as u32) }
    }

    /// Adds to all connections and returns what they were.
    #[inline(always)]
    pub fn add_total(self, change: i32) -> u32 {
        // SAFETY: as above.
        unsafe { machine::add(addr_of_mut!((*self.0).load.total), change as u32) }
    }

    /// Marks the destination as overloaded or not.
    #[inline(always)]
    pub fn set_overloaded(self, overloaded: bool) {
        // SAFETY: as above; one aligned word.
        unsafe { write_volatile(addr_of_mut!((*self.0).load.overloaded), u32::from(overloaded)) }
    }
}

/// A set of the connection table.
#[derive(Clone, Copy)]
pub struct SetRef(*mut Set);

impl SetRef {
    /// The set with this number.
    #[inline(always)]
    pub fn at(number: u32) -> Option<Self> {
        CONNECTIONS.get_ptr_mut(number).map(Self)
    }

    /// Runs `body` under the set's lock. Nothing in it may call a helper or a function that is not inlined:
    /// the verifier refuses both.
    #[inline(always)]
    pub fn locked<R>(self, body: impl FnOnce() -> R) -> R {
        // SAFETY: the lock is the element's own, at the offset that BTF gives; taken and given back here alone.
        unsafe {
            let lock = addr_of_mut!((*self.0).lock).cast();
            bpf_spin_lock(lock);
            let result = body();
            bpf_spin_unlock(lock);
            result
        }
    }

    /// The tag of a slot; `slot` below [`WAYS`].
    #[inline(always)]
    pub fn tag(self, slot: usize) -> u32 {
        // SAFETY: callers keep the slot in range, and the verifier checks it.
        unsafe { read_volatile(addr_of!((*self.0).tags).cast::<u32>().add(slot)) }
    }

    /// Stores the tag of a slot.
    #[inline(always)]
    pub fn set_tag(self, slot: usize, tag: u32) {
        // SAFETY: as above.
        unsafe { write_volatile(addr_of_mut!((*self.0).tags).cast::<u32>().add(slot), tag) }
    }

    /// The deadline of a slot.
    #[inline(always)]
    pub fn deadline(self, slot: usize) -> u32 {
        // SAFETY: as above.
        unsafe { read_volatile(addr_of!((*self.0).deadlines).cast::<u32>().add(slot)) }
    }

    /// Stores the deadline of a slot.
    #[inline(always)]
    pub fn set_deadline(self, slot: usize, deadline: u32) {
        // SAFETY: as above.
        unsafe { write_volatile(addr_of_mut!((*self.0).deadlines).cast::<u32>().add(slot), deadline) }
    }

    /// The entry of a slot.
    #[inline(always)]
    pub fn entry(self, slot: usize) -> EntryRef {
        // SAFETY: as above.
        EntryRef(unsafe { addr_of_mut!((*self.0).entries).cast::<Entry>().add(slot) })
    }

    /// Entries whose home is here and that lie elsewhere.
    #[inline(always)]
    pub fn displaced(self) -> u32 {
        // SAFETY: the pointer is to an element.
        unsafe { read_volatile(addr_of!((*self.0).displaced)) }
    }

    /// Adds to the displaced entries.
    #[inline(always)]
    pub fn add_displaced(self, change: i32) {
        // SAFETY: an aligned word of a live map element, changed by atomic operations alone.
        unsafe { machine::add(addr_of_mut!((*self.0).displaced), change as u32) };
    }
}

/// An entry of the connection table.
#[derive(Clone, Copy)]
pub struct EntryRef(*mut Entry);

impl EntryRef {
    /// The number that is odd while the entry is being written.
    #[inline(always)]
    pub fn sequence(self) -> u32 {
        // SAFETY: the pointer is to an entry of a live map element.
        unsafe { read_volatile(addr_of!((*self.0).sequence)) }
    }

    /// A copy, which is whole only if the sequence was even before and is the same after, or under the lock.
    ///
    /// Field by field, so that the compiler keeps what is used in registers and the rest off the stack.
    #[inline(always)]
    pub fn copy(self) -> Entry {
        macro_rules! fields {
            ($($field:ident),+) => {
                // SAFETY: as above; any bytes are a valid entry.
                unsafe { Entry { $($field: read_volatile(addr_of!((*self.0).$field)),)+ reserved: 0, reserved_too: 0 } }
            };
        }
        fields!(
            addresses,
            ports,
            protocol,
            role,
            method,
            state,
            sequence,
            destination,
            address,
            port,
            network_delta,
            transport_delta,
            flags,
            interface,
            link,
            hop_until,
            mtu,
            vlan
        )
    }

    /// Copies the entry to another place, word by word. Under the set's lock only.
    #[inline(always)]
    pub fn copy_to(self, place: &mut Entry) {
        let (from, to) = (self.0.cast::<u64>(), core::ptr::from_mut(place).cast::<u64>());
        for word in 0..size_of::<Entry>() / size_of::<u64>() {
            // SAFETY: both are entries, which are whole words long and aligned for them.
            unsafe { write_volatile(to.add(word), read_volatile(from.add(word))) };
        }
    }

    /// Stores an entry, marked as being written while it is. Under the set's lock only.
    #[inline(always)]
    pub fn store(self, entry: &Entry) {
        let sequence = self.sequence() | 1;
        // SAFETY: as above; the lock keeps other writers away.
        unsafe {
            write_volatile(addr_of_mut!((*self.0).sequence), sequence);
            write_volatile(self.0, Entry { sequence, ..*entry });
            write_volatile(addr_of_mut!((*self.0).sequence), sequence.wrapping_add(1));
        }
    }

    /// Stores state and flags. Under the set's lock only; readers may see the one without the other for a
    /// moment, which no decision depends on.
    #[inline(always)]
    pub fn set_state(self, state: u8, flags: u8) {
        // SAFETY: as above.
        unsafe {
            write_volatile(addr_of_mut!((*self.0).state), state);
            write_volatile(addr_of_mut!((*self.0).flags), flags);
        }
    }

    /// Whether the entry has this flow.
    #[inline(always)]
    pub fn has(self, addresses: u64, ports: u32, protocol: u8) -> bool {
        // SAFETY: as above.
        unsafe {
            read_volatile(addr_of!((*self.0).addresses)) == addresses
                && read_volatile(addr_of!((*self.0).ports)) == ports
                && read_volatile(addr_of!((*self.0).protocol)) == protocol
        }
    }
}

const _: () = assert!(WAYS == 7);
