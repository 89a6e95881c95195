//! The maps, and the door to their memory: every pointer into a map is dereferenced below here.
//!
//! All maps but the index are arrays, made page-aligned (`BPF_F_MMAPABLE`) so that a line of ours is a cache
//! line of the machine. User space maps all of them but the connection table, whose spin locks forbid it.

mod connection;
mod settings;
mod stats;
mod table;

use core::ptr::{addr_of_mut, read_volatile, write_volatile};

use aya_ebpf::bindings::{BPF_F_MMAPABLE, BPF_F_NO_PREALLOC, bpf_fib_lookup, bpf_timer};
use aya_ebpf::btf_maps::{Array, HashMap, LruHashMap, PerCpuArray, ProgramArray};
use aya_ebpf::helpers::generated::bpf_get_smp_processor_id;
use aya_ebpf::macros::btf_map;
use aya_ebpf::programs::{TcContext, XdpContext};
use lb_common::checksum::Sum;
use lb_common::connection::{AddressSet, Addresses, Entry, Set, holds};
use lb_common::destination::{CounterLine, Destination, DestinationId, DestinationKey, Masquerading};
use lb_common::fragment::{Datagram, Ports};
use lb_common::icmp::{ERROR_IPV6, Limit, Received};
use lb_common::mark::Rule;
use lb_common::packet::{ETHERNET, IPV4, IPV6, Packet};
use lb_common::reason::{REASON_SLOTS, Reason};
use lb_common::scheduler::cache::{CacheKey, Cached};
use lb_common::service::{LINE, Service, ServiceKey, ServiceKeyIpv6};
use lb_common::settings::{Program, WayOut};
use lb_common::sip::{self, CallId};
use lb_common::stats::Estimator;
use lb_common::tunnel::{PATH_REMEMBERED, Path};
use lb_common::tuple::{self, Tuple};

use crate::machine::opaque;

pub use self::connection::{AddressesRef, EntryRef, Link, SetRef, Translation};
pub use self::settings::{SettingsRef, settings};
pub use self::stats::{
    Counted, add_counted, count_connection, count_packet, count_part, estimate, recall_hop, remember_hop,
};
pub use self::table::{
    DestinationRef, LineRef, MarksRef, ServiceRef, SetHeaderRef, arena_line, arena_number, service_slot,
    service_slot_ipv6, set_arena_number,
};

const MAPPED: usize = BPF_F_MMAPABLE as usize;

/// The connection table. User space chooses its size when it makes the map.
#[btf_map]
static CONNECTIONS: Array<Set, 65536, MAPPED> = Array::new();

/// The addresses of IPv6 flows, in the shape of the connection table.
#[btf_map]
static ADDRESSES: Array<AddressSet, 65536, MAPPED> = Array::new();

/// Where a service lies in `SERVICES`, by protocol, address and port.
#[btf_map]
static SERVICE_INDEX: HashMap<ServiceKey, u32, 16384> = HashMap::new();

/// The same for services of IPv6.
#[btf_map]
static SERVICE_INDEX_IPV6: HashMap<ServiceKeyIpv6, u32, 16384> = HashMap::new();

/// The services.
#[btf_map]
static SERVICES: Array<Service, 16384, MAPPED> = Array::new();

/// The destinations of all services.
#[btf_map]
static DESTINATIONS: Array<Destination, 131072, MAPPED> = Array::new();

/// Remembers the ports of a datagram.
#[inline(always)]
pub fn remember(datagram: &Datagram, ports: &Ports) {
    // If there is no room, later fragments are not recognized, which is counted then.
    let _ = FRAGMENTS.insert(datagram, ports, 0);
}

/// The ports of a datagram of which a first fragment was seen.
#[inline(always)]
pub fn recall(datagram: &Datagram) -> Option<Ports> {
    // SAFETY: the value is copied out at once; a fragment that is seen twice writes the same ports.
    unsafe { FRAGMENTS.get(datagram).copied() }
}

/// The address that the director has towards each destination, in network order; an IPv4 address in the first word.
#[btf_map]
static TUNNEL_SOURCES: Array<[u32; 4], 131072, MAPPED> = Array::new();

/// The masquerading destinations, while `nat_icmp_send` or a persistence engine asks for them; user space gives each entry its room.
#[btf_map]
static MASQUERADING: HashMap<DestinationKey, Masquerading, 131072, { BPF_F_NO_PREALLOC as usize }> =
    HashMap::new();

/// The director's address towards the masquerading destination at a key, as two words, if there is one.
#[inline(always)]
pub fn masquerading(key: &DestinationKey) -> Option<[u64; 2]> {
    // SAFETY: the value is copied out at once; user space replaces it whole or deletes it.
    unsafe { MASQUERADING.get(key).map(|value| read_volatile(&value.source)) }
}

/// The masquerading destination at a key, if there is one.
#[inline(always)]
pub fn sender(key: &DestinationKey) -> Option<DestinationId> {
    // SAFETY: as above.
    unsafe { MASQUERADING.get(key).map(|value| read_volatile(&value.last)) }
}

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

/// The rules that mark packets, in two halves: a change writes the one that is not in use.
#[btf_map]
static MARKS: Array<Rule, 512, MAPPED> = Array::new();

/// A rule by its place.
#[inline(always)]
pub fn mark_rule(place: u32) -> Option<&'static Rule> {
    // SAFETY: user space changes no rule that is in use, and any bytes are one.
    MARKS.get_ptr(place).map(|rule| unsafe { &*rule })
}

/// The ports of datagrams of which a first fragment was seen.
#[btf_map]
static FRAGMENTS: LruHashMap<Datagram, Ports, 16384> = LruHashMap::new();

/// What lblc and lblcr remember of addresses; of all services together, the least recently used goes when it is full.
#[btf_map]
static CACHE: LruHashMap<CacheKey, Cached, 32768> = LruHashMap::new();

/// What ICMP errors have told about the way to destinations of tunnels, by their IPv4 address, loaded natively.
#[btf_map]
static PATHS: LruHashMap<u32, Path, 4096> = LruHashMap::new();

/// The largest packet that the way takes which a lookup has found, by the kernel's word and by that of ICMP errors.
#[inline(always)]
pub fn path_mtu(settings: SettingsRef, found: &bpf_fib_lookup, now: u32) -> u16 {
    let remembered = settings.ticks_per_second().wrapping_mul(PATH_REMEMBERED);
    // SAFETY: reading plain numbers out of unions of plain numbers; the value in the map is read word by word, and what
    // another CPU writes there meanwhile is as good.
    unsafe {
        let mtu = found.__bindgen_anon_1.mtu_result;
        let address: &u32 = &found.__bindgen_anon_4.ipv4_dst;
        match PATHS.get(address) {
            Some(path) if holds(read_volatile(&path.until), now, remembered) => {
                mtu.min(read_volatile(&path.mtu) as u16)
            }
            _ => mtu,
        }
    }
}

/// Remembers the largest packet that the way to an address takes.
#[inline(always)]
pub fn remember_path(address: u32, path: Path) {
    // If there is no room, the next error tells it again.
    let _ = PATHS.insert(address, path, 0);
}

/// The interfaces that XDP can send out of, by their index: a frame for a VLAN goes out of what carries it, with a tag.
#[btf_map]
static WAYS_OUT: HashMap<u32, WayOut, 4096> = HashMap::new();

/// The programs that the packet program goes on in.
#[btf_map]
static PROGRAMS: ProgramArray<{ Program::COUNT }> = ProgramArray::new();

/// The same for packets of the director itself, which classifiers see: an array has programs of one kind.
#[btf_map]
static OWN_PROGRAMS: ProgramArray<{ Program::COUNT }> = ProgramArray::new();

/// Room for what does not fit the stack.
#[btf_map]
static SCRATCH: PerCpuArray<Scratch, 1> = PerCpuArray::new();

/// Room for a header of either family.
pub struct Headers {
    pub ipv4: [u8; IPV4],
    pub ipv6: [u8; IPV6],
}

/// What the programs off the steady path keep. Read back from here, a value is just a number to the verifier: it
/// need not follow each way that led to it separately.
pub struct Scratch {
    /// The packet's headers.
    pub packet: Packet,
    /// Packets of the client.
    pub client_side: Entry,
    /// Packets of the destination.
    pub server_side: Entry,
    /// Of IPv6: the addresses that belong to `client_side`.
    pub client_addresses: Addresses,
    /// Of IPv6: the addresses that belong to `server_side`.
    pub server_addresses: Addresses,
    /// What `xipvs_tunnel` is to do.
    pub tunnelling: Tunnelling,
    /// What is being summed.
    pub summing: Summing,
    /// The header of a packet that the stack has.
    pub headers: Headers,
    /// What an ICMP error about such a packet begins with.
    pub front: [u8; ETHERNET + ERROR_IPV6],
    /// What is written around it: its new Ethernet type, and the headers of a tunnel.
    pub around: [u8; 64],
    /// Which packet is cut off the one that it is part of still.
    pub cutting: Cutting,
    /// Why the packet goes no further.
    pub why: Reason,
    /// Nobody is told about the packet: it is an ICMP error itself, or a later fragment.
    pub is_untold: bool,
    /// It is of IPsec, and follows the connection of its key exchange.
    pub follows: bool,
    /// It is the other way of what an ICMP error is about, and makes a connection without being sent itself.
    pub by_error: bool,
    /// It is a connection of its own, of which nothing is kept: one-packet scheduling.
    pub is_once: bool,
    /// An ICMP error that came in.
    pub error: Received,
    /// The number of the call that the packet belongs to, if that was read; 0 if not.
    pub call: u64,
    /// The destination that begins the connection, and one more; 0 if the client does.
    pub caller: u32,
    /// `xipvs_callback` has seen the packet, and no destination begins a connection with it.
    pub is_no_callback: bool,
    /// The destination of a connection that makes way for the one that is being made, and one more; 0 for none.
    pub leaving: u32,
    /// Whether that one was inactive.
    pub left_inactive: bool,
    /// What a connection's destination is cached under, by lblc or lblcr.
    pub cache_key: CacheKey,
    /// What is cached there.
    pub cached: Cached,
    /// A tree of winners that is being renewed.
    pub renewal: Renewal,
    /// What a fragment is part of.
    pub datagram: Datagram,
    /// Its ports.
    pub ports: Ports,
    /// How many errors this CPU may still send.
    pub limit: Limit,
}

/// A tree of winners that is being renewed. Not on the stack: Linux 6.1 looks at a callback once, and takes away what it does not do
/// in the first turn, as far as it knows the state of that.
#[repr(C)]
pub struct Renewal {
    pub line: u32,
    pub tree: u32,
    pub length: u32,
    pub level: u32,
    /// The word of marks that comes next.
    pub word: u64,
    /// The lines of the level that are to be renewed still, of those since the last multiple of 64.
    pub bits: u64,
    /// The lines of the next level that have to be renewed then.
    pub upper: u64,
}

/// What `xipvs_tunnel` is to do with a packet.
#[repr(u32)]
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Tunnelling {
    /// Send it to the next hop, which is known.
    Send = 0,
    /// Leave it to the stack, which has to find the next hop.
    NoNeighbour = 1,
}

/// A packet of the director itself that is being cut up.
pub struct Cutting {
    /// The place of the piece that is being cut off.
    pub number: u32,
    /// Bytes of payload in each.
    pub size: u32,
    /// Where the payload begins in the frame.
    pub payload: u32,
    /// The interface that the packet was to leave by.
    pub interface: u32,
}

/// The most payload that is cut off at once.
pub const PIECE: usize = 16384;

/// Room for it.
#[btf_map]
static CUT: PerCpuArray<[u8; PIECE], 1> = PerCpuArray::new();

/// This CPU's room for payload on its way from one place in a packet to another.
#[inline(always)]
pub fn cut() -> Option<&'static mut [u8; PIECE]> {
    // SAFETY: the element is this CPU's own; who has asked for it is done with it when anybody asks again.
    CUT.get_ptr_mut(0).map(|bytes| unsafe { &mut *bytes })
}

/// A SIP message that is being read.
pub struct Message {
    /// Its first bytes.
    pub bytes: [u8; sip::MESSAGE],
    /// What was found in them.
    pub call: CallId,
}

/// Room for one.
#[btf_map]
static MESSAGE: PerCpuArray<Message, 1> = PerCpuArray::new();

/// This CPU's room for a SIP message.
#[inline(always)]
pub fn message() -> Option<&'static mut Message> {
    // SAFETY: the element is this CPU's own; who has asked for it is done with it when anybody asks again.
    MESSAGE.get_ptr_mut(0).map(|message| unsafe { &mut *message })
}

/// The Call-IDs of templates by their numbers, for listings; those used least lately make way.
#[btf_map]
static CALLS: LruHashMap<u64, CallId, 16384> = LruHashMap::new();

/// Has a Call-ID listed.
#[inline(always)]
pub fn remember_call(call: &CallId) {
    // SAFETY: nothing of the value is read; asking makes it one that was used.
    if unsafe { CALLS.get(call.digest).is_none() } {
        // There is none that could be lost but for its text in a listing.
        let _ = CALLS.insert(call.digest, call, 0);
    }
}

/// A sum over a packet's bytes in the making.
pub struct Summing {
    /// Where they begin.
    pub from: u32,
    /// How many they are.
    pub length: u32,
    /// The sum so far.
    pub sum: Sum,
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
    /// Puts a packet's headers here and reads them back. Its family stays known, so that a program has no code for the
    /// other.
    #[inline(always)]
    pub fn keep<const IPV6: bool>(&mut self, packet: Packet) -> Packet {
        self.put(&packet);
        self.kept::<IPV6>()
    }

    /// Puts a packet's headers here, for another program.
    #[inline(always)]
    pub fn put(&mut self, packet: &Packet) {
        macro_rules! store {
            ($($($field:ident).+),+) => {
                // Field by field, so that no copy is made on the stack.
                // SAFETY: live places for plain values.
                unsafe { $(write_volatile(&mut self.packet.$($field).+, packet.$($field).+);)+ }
            };
        }
        store!(
            tuple.addresses,
            tuple.ports,
            tuple.protocol,
            network,
            transport,
            length,
            counted,
            service_type,
            tcp_flags,
            time_to_live
        );
        self.is_untold = false;
        self.call = 0;
        self.caller = 0;
        self.follows = false;
        self.by_error = false;
        self.is_once = false;
    }

    /// Puts an ICMP error that came in here.
    #[inline(always)]
    pub fn keep_error(&mut self, error: Received) {
        // SAFETY: a live place for a plain value.
        unsafe { write_volatile(&mut self.error, error) };
    }

    /// The ICMP error as it was put here.
    #[inline(always)]
    pub fn kept_error(&self) -> Received {
        // SAFETY: reading a plain value from a live place.
        unsafe { read_volatile(&self.error) }
    }

    /// The packet's headers as they were put here, by this program or the one that went on in it.
    #[inline(always)]
    pub fn kept<const IPV6: bool>(&self) -> Packet {
        // SAFETY: reading plain values from a live place.
        unsafe {
            Packet {
                tuple: Tuple {
                    addresses: read_volatile(&self.packet.tuple.addresses),
                    ports: read_volatile(&self.packet.tuple.ports),
                    protocol: read_volatile(&self.packet.tuple.protocol) & !tuple::IPV6
                        | if IPV6 { tuple::IPV6 } else { 0 },
                },
                network: read_volatile(&self.packet.network),
                transport: read_volatile(&self.packet.transport),
                length: read_volatile(&self.packet.length),
                counted: read_volatile(&self.packet.counted),
                service_type: read_volatile(&self.packet.service_type),
                tcp_flags: read_volatile(&self.packet.tcp_flags),
                time_to_live: read_volatile(&self.packet.time_to_live),
            }
        }
    }
}

/// Writes an entry field by field: else the compiler calls functions that write it byte by byte.
#[inline(always)]
pub fn lay(place: &mut Entry, entry: &Entry) {
    macro_rules! store {
        ($($field:ident),+) => {
            // SAFETY: live places for plain values.
            unsafe { $(write_volatile(&mut place.$field, entry.$field);)+ }
        };
    }
    store!(addresses, ports, protocol, role, method, state, sequence, destination, address, port);
    store!(network_delta, transport_delta, flags, epoch, interface, hop_until, mtu, vlan, template);
    let [a, b, c] = entry.link;
    // SAFETY: as above.
    unsafe {
        write_volatile(&mut place.link[0], a);
        write_volatile(&mut place.link[1], b);
        write_volatile(&mut place.link[2], c);
    }
}

/// Room for a scheduler's search: on the stack its fields would be read and written two at a time and not aligned,
/// which the verifier refuses there.
#[btf_map]
static SEARCH: PerCpuArray<[u64; 16], 1> = PerCpuArray::new();

/// Puts a search into this CPU's room for it.
#[inline(always)]
pub fn keep_search<T: Copy>(search: T) -> Option<&'static mut T> {
    const { assert!(size_of::<T>() <= size_of::<[u64; 16]>() && align_of::<T>() <= align_of::<u64>()) };
    let place: *mut T = SEARCH.get_ptr_mut(0)?.cast();
    // SAFETY: the element is this CPU's own, large enough and aligned, and only one search is made at a time.
    unsafe {
        place.write(search);
        Some(&mut *place)
    }
}

/// Copies what is cached under a key to another place; whether anything is.
#[inline(always)]
pub fn recall_cached(key: &CacheKey, place: &mut Cached) -> bool {
    const WORDS: usize = size_of::<Cached>() / size_of::<u64>();
    let Some(cached) = CACHE.get_ptr(key) else { return false };
    let (from, to) = (cached.cast::<u64>(), core::ptr::from_mut(place).cast::<u64>());
    for word in 0..WORDS {
        // SAFETY: both are live, aligned for words and so long. Another CPU may replace the element meanwhile and use its
        // memory for another key: any bytes are a value, and whoever uses a destination of it checks whose it is.
        unsafe { write_volatile(to.add(word), read_volatile(from.add(word))) };
    }
    true
}

/// Caches something under a key.
#[inline(always)]
pub fn cache(key: &CacheKey, cached: &Cached) {
    // What cannot be cached is searched for again the next time.
    let _ = CACHE.insert(key, cached, 0);
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

/// Counts a packet that was not forwarded.
#[inline(always)]
pub fn count(reason: Reason) {
    count_at(reason as usize);
}

/// Counts at a place among the reasons.
#[inline(always)]
pub fn count_at(place: usize) {
    if let Some(counters) = REASONS.get_ptr_mut(cpu()) {
        // SAFETY: the element has room for every reason; only this CPU writes it.
        unsafe {
            // Hidden, because the compiler knows which reasons there are and would leave the mask out.
            let slot = opaque(place as u64) as usize & (REASON_SLOTS - 1);
            let counter = addr_of_mut!((*counters)[slot]);
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

/// [`go_on`], with a packet of the director itself.
#[inline(always)]
pub fn own_goes_on(context: &TcContext, program: Program) {
    // SAFETY: as above.
    unsafe { OWN_PROGRAMS.tail_call(context, program as u32) };
}

#[inline(always)]
fn cpu() -> u32 {
    // SAFETY: the helper takes nothing.
    unsafe { bpf_get_smp_processor_id() }
}

/// The address that the director has towards a destination, IPv4, loaded natively; 0 if it has none.
#[inline(always)]
pub fn tunnel_source(destination: DestinationId) -> u32 {
    // SAFETY: the pointer is to an element; user space stores it whole.
    TUNNEL_SOURCES.get_ptr(destination).map_or(0, |source| unsafe { read_volatile(source.cast::<u32>()) })
}

/// As [`tunnel_source`], IPv6, as two words.
#[inline(always)]
pub fn tunnel_source_ipv6(destination: DestinationId) -> [u64; 2] {
    let source = TUNNEL_SOURCES.get_ptr(destination);
    // SAFETY: as above; an element is aligned for words of eight bytes.
    source.map_or([0; 2], |source| unsafe { read_volatile(source.cast()) })
}

/// How to send out of an interface; none if XDP cannot.
#[inline(always)]
pub fn way_out(interface: u32) -> Option<WayOut> {
    // SAFETY: the value is copied out at once; user space replaces it whole or deletes it.
    unsafe { WAYS_OUT.get(interface).copied() }
}
