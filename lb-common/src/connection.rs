//! A connection as it lies in the connection table.
//!
//! The table is set-associative: a set is one line of tags and deadlines with its lock, and seven entries of
//! a line each. An entry holds a flow as seen on the wire in one direction and the whole recipe for a packet
//! of it. A NAT connection has two entries, one a direction, each of which tells where the other is. An entry that finds its
//! home set full lies in one of [`ALTERNATES`] others, and its home set says how many did.
//! IPVS counterpart: `struct ip_vs_conn` and `ip_vs_conn.c`.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::protocol::tcp::{self, Event};
use crate::protocol::{Direction, Protocol, sctp, state};
use crate::tuple::{IPV6, Tuple};

/// Entries in a set.
pub const WAYS: usize = 7;

/// Sets that an entry can be displaced to when its home set is full.
pub const ALTERNATES: u32 = 8;

/// [`Entry::role`]: packets of the client, to the virtual address. Holds the connection's state and time.
pub const CLIENT_SIDE: u8 = 0;
/// [`Entry::role`]: packets of the destination, to the client; NAT only.
pub const SERVER_SIDE: u8 = 1;

/// [`Entry::role`]: a persistence template, whose key no packet has; see [`crate::persistence`].
pub const TEMPLATE: u8 = 2;

/// [`Entry::flags`]: the state is not an active one.
pub const INACTIVE: u8 = 0x01;
/// [`Entry::flags`]: no packet of the destination has come by.
pub const NO_OUTPUT: u8 = 0x02;
/// [`Entry::flags`]: the entry lies outside its home set.
pub const DISPLACED: u8 = 0x04;
/// [`Entry::flags`]: another director told of it. A packet that came since shows in [`Entry::hop_until`].
#[doc(alias = "IP_VS_CONN_F_SYNC")]
pub const SYNCED: u8 = 0x08;
/// [`Entry::flags`]: in these bits are counted the packets of the client that the state machine has seen, up to
/// [`MANY_PACKETS`]: not all, as those of the steady state pass it by but for one a second.
#[doc(alias = "in_pkts")]
pub const PACKETS: u8 = 0xf0;
/// As many packets as [`PACKETS`] can count, or more.
pub const MANY_PACKETS: u8 = packets(PACKETS);

/// The word of [`Entry::link`] in which a template counts the connections that it controls.
pub const CONTROLS: usize = 0;
/// The word of [`Entry::link`] in which a template has its timeout in ticks.
pub const TIMEOUT: usize = 1;

/// One direction of a connection: a cache line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Entry {
    /// [`Tuple::addresses`].
    pub addresses: u64,
    /// [`Tuple::ports`].
    pub ports: u32,
    /// [`Tuple::protocol`]; 0 once the entry is taken out of the table.
    pub protocol: u8,
    /// [`CLIENT_SIDE`], [`SERVER_SIDE`] or [`TEMPLATE`].
    pub role: u8,
    /// Number of the forwarding method.
    pub method: u8,
    /// Connection state, numbered as in [`crate::protocol::state`]; on the server side a copy that may lag.
    pub state: u8,
    /// Even when the entry is at rest, odd while it is being written.
    pub sequence: u32,
    /// The destination's number.
    pub destination: u32,
    /// NAT: the new destination address (client side) or source address (server side), loaded natively. Else the
    /// destination's. Of IPv6 its handle.
    pub address: u32,
    /// NAT: the new port that goes with it, loaded natively.
    pub port: u16,
    /// NAT: what the IPv4 checksum changes by, as a one's complement number.
    pub network_delta: u16,
    /// NAT: what the transport checksum changes by, as a one's complement number.
    pub transport_delta: u16,
    /// [`INACTIVE`], [`NO_OUTPUT`], [`DISPLACED`], [`SYNCED`], [`PACKETS`].
    pub flags: u8,
    /// Lowest byte of [`crate::settings::Settings::epoch`] when the next hop was looked up.
    pub epoch: u8,
    /// Interface towards the next hop; 0 while it is not known.
    pub interface: u32,
    /// The next hop's link address and the interface's: the first twelve bytes of the frame, loaded natively.
    pub link: [u32; 3],
    /// Tick until which the next hop is good, the deadline need not move and the destination is there, unless the epoch
    /// changes: until then the entry alone tells what becomes of a packet in the steady state.
    pub hop_until: u32,
    /// Largest IPv4 packet that the next hop takes, in bytes.
    pub mtu: u16,
    /// VLAN tag towards the next hop in network order, loaded natively; 0 for none.
    pub vlan: u16,
    /// Client side: where the template lies that controls the connection, as [`Entry::place`] has it; 0 for none.
    pub template: u32,
}

impl Entry {
    /// From the words of its memory.
    #[inline(always)]
    pub fn from_words(words: [u64; 8]) -> Self {
        zerocopy::transmute!(words)
    }

    /// The second word of the entry of a flow in a state, but for what [`Entry::MARKS`] masks out.
    #[inline(always)]
    pub const fn mark(tuple: &Tuple, state: u8) -> u64 {
        tuple.end() | (state as u64) << 56
    }

    /// What of its second word [`Entry::mark`] tells: neither role nor method.
    pub const MARKS: u64 = !(0xffff << 40);

    /// The flow.
    #[inline(always)]
    pub const fn tuple(&self) -> Tuple {
        Tuple { addresses: self.addresses, ports: self.ports, protocol: self.protocol }
    }

    /// The flow of a NAT connection's other direction, which has the entry that belongs to this one.
    ///
    /// The client side goes from the client to the virtual address and is rewritten to go to the destination,
    /// whose answers the server side sees; and the other way round.
    #[inline(always)]
    pub fn twin(&self) -> Tuple {
        let tuple = self.tuple();
        if self.role == CLIENT_SIDE {
            let client = (tuple.raw_source(), tuple.raw_source_port());
            Tuple::from_raw(self.protocol, (self.address, self.port), client)
        } else {
            let client = (tuple.raw_destination(), tuple.raw_destination_port());
            Tuple::from_raw(self.protocol, client, (self.address, self.port))
        }
    }

    /// A slot of a set as one number, which is never 0.
    #[inline(always)]
    pub const fn place(set: u32, slot: usize) -> u32 {
        set << 3 | (slot as u32 + 1)
    }

    /// Template: how many connections it controls.
    #[inline(always)]
    pub const fn controls(&self) -> u32 {
        self.link[CONTROLS]
    }

    /// Template: the number of the call that it is for; 0 for none. It lies where others have the rest of their next hop.
    #[inline(always)]
    pub const fn call(&self) -> u64 {
        self.link[2] as u64 | (self.interface as u64) << 32
    }

    /// Template: has the number of its call be this.
    #[inline(always)]
    pub const fn set_call(&mut self, call: u64) {
        self.link[2] = call as u32;
        self.interface = (call >> 32) as u32;
    }

    /// Tunnel: the outer header's IPv4 source, loaded natively. It lies where NAT has its checksum deltas.
    #[inline(always)]
    pub const fn tunnel_source(&self) -> u32 {
        self.network_delta as u32 | (self.transport_delta as u32) << 16
    }

    /// Stores what [`Entry::tunnel_source`] gives.
    #[inline(always)]
    pub const fn set_tunnel_source(&mut self, address: u32) {
        self.network_delta = address as u16;
        self.transport_delta = (address >> 16) as u16;
    }

    /// Whether packets of the client go through a tunnel.
    #[inline(always)]
    pub const fn is_tunnelled(&self) -> bool {
        self.method == crate::forward::ForwardingMethod::Tunnel as u8
    }

    /// Whether the connection has no destination, and its packets go to their original address.
    #[inline(always)]
    pub const fn is_bypass(&self) -> bool {
        self.method == crate::forward::ForwardingMethod::Bypass as u8
    }

    /// Whether the connection has two entries.
    #[inline(always)]
    pub const fn has_twin(&self) -> bool {
        self.method == crate::forward::ForwardingMethod::Masquerade as u8
    }
}

/// A set: its first line, then its entries.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C, align(64))]
pub struct Set {
    /// The kernel's spin lock; every write to the set is done under it.
    pub lock: Lock,
    /// Entries whose home is here and that lie elsewhere.
    pub displaced: u32,
    /// The tag of each entry, 0 for a free one. No two entries of a set have the same.
    pub tags: [u32; WAYS],
    /// The tick at which each entry dies.
    pub deadlines: [u32; WAYS],
    /// The entries.
    pub entries: [Entry; WAYS],
}

/// The addresses of an IPv6 flow's entry, in whose tuple their handles stand.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Addresses {
    /// Source, loaded natively as two words.
    pub source: [u64; 2],
    /// Destination.
    pub destination: [u64; 2],
    /// Whose handle [`Entry::address`] is.
    pub other: [u64; 2],
    /// Fills the line.
    pub reserved: [u64; 2],
}

impl Addresses {
    /// Those of the entry in the other direction, as [`Entry::twin`] has its flow.
    #[inline(always)]
    #[must_use]
    pub const fn twin(&self, role: u8) -> Self {
        if role == CLIENT_SIDE {
            Self { source: self.other, destination: self.source, other: self.destination, reserved: [0; 2] }
        } else {
            Self { source: self.destination, destination: self.other, other: self.source, reserved: [0; 2] }
        }
    }
}

/// The bytes of an address that was loaded natively as two words.
#[inline(always)]
pub const fn octets(address: [u64; 2]) -> [u8; 16] {
    zerocopy::transmute!(address)
}

/// What lies beside a [`Set`]: a line of addresses for each of its entries, and one to make a power of two.
pub type AddressSet = [Addresses; WAYS + 1];

/// The kernel's spin lock, which it recognises by this name.
#[allow(non_camel_case_types, reason = "the kernel looks the type up by its name")]
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct bpf_spin_lock {
    /// The kernel's own.
    pub val: u32,
}

/// A spin lock in a map.
pub type Lock = bpf_spin_lock;

const _: () = assert!(size_of::<Entry>() == 64 && size_of::<Set>() == 512 && size_of::<AddressSet>() == 512);

/// Where a hash leads: the tag and the home set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Home {
    /// Never 0.
    pub tag: u32,
    /// Number of the set.
    pub set: u32,
}

impl Home {
    /// Tag and home set of a flow's hash, in a table of `mask + 1` sets.
    #[inline(always)]
    pub const fn of(hash: u64, mask: u32) -> Self {
        Self { tag: (hash >> 32) as u32 | 1, set: hash as u32 & mask }
    }

    /// The slot that the flow's entry is put in if that is free, and is looked for first.
    #[inline(always)]
    pub const fn slot(self) -> usize {
        (((self.tag >> 16) * WAYS as u32) >> 16) as usize
    }

    /// The `step`-th set to look in when the home set is full, 1 to [`ALTERNATES`].
    ///
    /// Strides are odd, so that all of them differ in any table larger than [`ALTERNATES`] sets.
    #[inline(always)]
    pub const fn alternate(self, step: u32, mask: u32) -> u32 {
        self.set.wrapping_add(step.wrapping_mul(self.tag)) & mask
    }
}

/// A connection, or a persistence template, that another director made and the program shall take over: the packet that it
/// is run on.
///
/// Where it leads is the destination's to say, as the program finds it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Adoption {
    /// [`Tuple::addresses`] of the client's packets, or of the template's key.
    pub addresses: u64,
    /// [`Tuple::ports`], likewise.
    pub ports: u32,
    /// The service's slot.
    pub service: u32,
    /// The destination's number.
    pub destination: u32,
    /// Ticks that it has to live if no packet comes.
    pub lifetime: u32,
    /// The destination's port in network order, loaded natively.
    pub port: u16,
    /// [`Tuple::protocol`], likewise.
    pub protocol: u8,
    /// Connection state, numbered as in [`crate::protocol::state`].
    pub state: u8,
    /// [`INACTIVE`], [`NO_OUTPUT`], [`SYNCED`]. A template with the last has `lifetime` for its timeout, others that of
    /// their service.
    pub flags: u8,
    /// [`CLIENT_SIDE`] or [`TEMPLATE`].
    pub role: u8,
    /// [`KEEP`] or [`RENEW`].
    pub policy: u8,
    /// Fills the word.
    pub reserved: u8,
    /// Template: the number of the call that it is for; 0 for none.
    pub call: u64,
    /// Of IPv6, source and destination.
    pub beside: Addresses,
}

impl Adoption {
    /// From the bytes of the packet.
    #[inline(always)]
    pub fn from_bytes(bytes: &[u8; size_of::<Self>()]) -> Self {
        zerocopy::transmute!(*bytes)
    }
}

/// [`Adoption::policy`]: what is there already stays as it is.
pub const KEEP: u8 = 0;
/// [`Adoption::policy`]: what is there already takes state and lifetime; if it leads to another destination it makes way,
/// unless what comes is inactive, and thus the last of a connection that was replaced.
pub const RENEW: u8 = 1;

/// What became of an [`Adoption`], numbered as the actions of XDP, which a program answers with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum Adopted {
    /// There is no room, or no such destination (`XDP_ABORTED`).
    Failed = 0,
    /// The flow has a connection already, which stays as it is (`XDP_DROP`).
    Known = 1,
    /// It is in the table (`XDP_PASS`).
    Taken = 2,
    /// It was in the table, and has the state and lifetime now (`XDP_TX`).
    Renewed = 3,
}

/// Whether a deadline has come. Ticks wrap; times further apart than half their range are not told apart.
#[inline(always)]
pub const fn is_past(deadline: u32, now: u32) -> bool {
    now.wrapping_sub(deadline) as i32 >= 0
}

/// Whether something that is good until a tick, and for no more than so many ticks, still is; the clock of who said so may
/// be ahead by as many. Nobody takes such a thing away: by [`is_past`] it would be good again once ticks are half around.
#[inline(always)]
pub const fn holds(until: u32, now: u32, longest: u32) -> bool {
    until.wrapping_sub(now).wrapping_sub(1) < longest.wrapping_mul(2)
}

/// [`Entry::hop_until`] of an entry that has no next hop yet: long ago also for a CPU whose clock is a little behind.
#[inline(always)]
pub const fn no_hop(now: u32) -> u32 {
    now.wrapping_sub(u32::MAX / 4)
}

/// For how many ticks a deadline may stay where it is although packets come: a second, or an eighth of the timeout where
/// that is shorter. So a line is written at most once in that time, and a connection is never cut short by more.
#[inline(always)]
pub const fn quantum(timeout: u32, ticks_per_second: u32) -> u32 {
    let eighth = timeout >> 3;
    if eighth < ticks_per_second { eighth } else { ticks_per_second }
}

/// Whether a packet at `now` should move the deadline on: if that changes it by more than a [`quantum`], either way, so
/// that a timeout that was shortened since holds too.
#[inline(always)]
pub const fn is_stale(deadline: u32, now: u32, timeout: u32, ticks_per_second: u32) -> bool {
    let change = now.wrapping_add(timeout).wrapping_sub(deadline) as i32;
    change.unsigned_abs() > quantum(timeout, ticks_per_second)
}

/// How many packets [`PACKETS`] counts.
#[inline(always)]
pub const fn packets(flags: u8) -> u8 {
    flags >> PACKETS.trailing_zeros()
}

/// The flags after one more packet of the client.
#[inline(always)]
const fn count_packet(flags: u8) -> u8 {
    if packets(flags) == MANY_PACKETS { flags } else { flags + (1 << PACKETS.trailing_zeros()) }
}

/// The state of an SCTP association in which data flows.
const SCTP_ESTABLISHED: u8 = state::SCTP + sctp::State::Established as u8;

/// The state whose packets need nothing but their entry while its [`Entry::hop_until`] has not come, see [`is_steady`].
#[inline(always)]
pub const fn steady_state(protocol: u8) -> u8 {
    let protocol = protocol & !IPV6;
    if protocol == Protocol::Tcp.number() {
        tcp::State::Established as u8
    } else if protocol == Protocol::Sctp.number() {
        SCTP_ESTABLISHED
    } else {
        state::UDP
    }
}

/// What a packet makes of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Advance {
    /// The new state.
    pub state: u8,
    /// The new flags.
    pub flags: u8,
    /// What the destination's active connections change by: -1, 0 or 1.
    pub active_change: i32,
}

/// Runs the state machine of a connection's protocol for a packet.
///
/// `protocol` is [`Tuple::protocol`], `tcp_flags` is [`Packet::tcp_flags`](crate::packet::Packet::tcp_flags), `out` says that the packet came from the destination. A
/// connection begins in state 0 with [`INACTIVE`] set, and with [`NO_OUTPUT`] unless it is a NAT connection. `secure` is whether
/// the `secure_tcp` defence acts.
#[doc(alias = "set_tcp_state")]
#[inline(always)]
pub fn advance(protocol: u8, state: u8, flags: u8, tcp_flags: u8, out: bool, secure: bool) -> Advance {
    let no_output = flags & NO_OUTPUT != 0 && !out;
    let (new_state, active) = if protocol & !IPV6 == Protocol::Tcp.number() {
        let old = tcp::State::from_number(state).unwrap_or(tcp::State::None);
        let new = tcp::transition(Direction::of(out, no_output), Event::of(tcp_flags), old, secure);
        (new as u8, new.is_active())
    } else if protocol & !IPV6 == Protocol::Sctp.number() {
        let old = sctp::State::from_number(state.wrapping_sub(state::SCTP)).unwrap_or(sctp::State::None);
        let event = sctp::Event::from_number(tcp_flags);
        let new = sctp::transition(Direction::of(out, no_output), event, old);
        (state::SCTP + new as u8, new.is_active())
    } else {
        (state::UDP, false)
    };
    let was_active = flags & INACTIVE == 0;
    let kept = (if out { flags } else { count_packet(flags) }) & !(INACTIVE | NO_OUTPUT);
    Advance {
        state: new_state,
        flags: kept | if active { 0 } else { INACTIVE } | if no_output { NO_OUTPUT } else { 0 },
        active_change: i32::from(active) - i32::from(was_active),
    }
}

/// The state of a connection that no packet of its own has moved yet.
pub const fn unmoved(protocol: u8) -> u8 {
    match Protocol::from_number(protocol & !IPV6) {
        Some(Protocol::Udp) => state::UDP,
        Some(Protocol::Sctp) => state::SCTP,
        _ => 0,
    }
}

/// Seconds that such a connection lives: IPVS's first timeout of every connection.
pub const UNMOVED: u32 = 3;

/// Whether a packet leaves state and flags of a connection as they are, but for the count of packets: the steady state, in
/// which only the deadline may have to move.
#[inline(always)]
pub const fn is_steady(protocol: u8, state: u8, flags: u8, tcp_flags: u8, out: bool) -> bool {
    state == steady_state(protocol) && stays_steady(protocol, flags, tcp_flags, out)
}

/// [`is_steady`], of a connection in its [`steady_state`].
#[inline(always)]
pub const fn stays_steady(protocol: u8, flags: u8, tcp_flags: u8, out: bool) -> bool {
    const FLAGS: u8 = tcp::FIN | tcp::SYN | tcp::RST | tcp::ACK;
    let is_tcp = protocol & !IPV6 == Protocol::Tcp.number();
    let is_sctp = protocol & !IPV6 == Protocol::Sctp.number();
    let moves = is_tcp && tcp_flags & FLAGS != tcp::ACK
        || is_sctp && tcp_flags != sctp::Event::Data as u8
        || out && flags & NO_OUTPUT != 0;
    !moves
}

/// Whether an entry that lives gives way to a new connection when there is no room: what is not established yet, or is
/// closed; and a template that nothing has confirmed and that controls no connection. Datagrams' flows are none of these.
#[inline(always)]
pub const fn is_expendable(entry: &Entry) -> bool {
    if entry.role == TEMPLATE {
        return entry.state != state::ASSURED && entry.controls() == 0;
    }
    let tcp = entry.tuple().transport() == Protocol::Tcp.number();
    let sctp = entry.tuple().transport() == Protocol::Sctp.number();
    // NONE, SYN_SENT, SYN_RECV, TIME_WAIT, CLOSE, SYNACK; everything before ESTABLISHED, REJECTED, CLOSED.
    (tcp && 1 << (entry.state & 31) & 0b100_0110_1101u32 != 0)
        || (sctp && 1 << (entry.state.wrapping_sub(state::SCTP) & 31) & 0b11_0000_1111_1111u32 != 0)
}

/// The tag of an entry that no lookup is to find, in a slot of a set: unlike all others it is even.
#[inline(always)]
pub const fn unfindable(slot: usize) -> u32 {
    2 * slot as u32 + 2
}

/// Whether a packet that opens a connection (a SYN, an INIT) takes the place of a connection in this state.
///
/// `mode` is the sysctl `conn_reuse_mode`. A closed connection gives way in any mode but 0; one that waits for
/// its last FIN only if bit 1 is set and no packet of the destination was ever seen.
#[inline(always)]
pub const fn gives_way(state: u8, flags: u8, mode: u32) -> bool {
    const FIN_WAIT: u8 = 4;
    const TIME_WAIT: u8 = 5;
    const CLOSE: u8 = 6;
    const SCTP_CLOSED: u8 = state::SCTP + sctp::State::Closed as u8;
    mode != 0
        && (state == TIME_WAIT
            || state == CLOSE
            || state == SCTP_CLOSED
            || (mode & 2 != 0 && state == FIN_WAIT && flags & NO_OUTPUT != 0))
}

#[cfg(test)]
mod tests {
    use zerocopy::FromZeros;

    use super::*;

    #[test]
    fn alternates_of_a_home_all_differ() {
        for hash in [0u64, 0xffff_ffff_ffff_ffff, 0x1234_5678_9abc_def0, 0x8000_0000_0000_0001] {
            let home = Home::of(hash, 1023);
            let mut seen = std::collections::BTreeSet::from([home.set]);
            for step in 1..=ALTERNATES {
                assert!(seen.insert(home.alternate(step, 1023)));
            }
        }
    }

    #[test]
    fn homes_spread_over_all_slots() {
        let mut seen = [0; WAYS];
        for hash in 0..7000u64 {
            seen[Home::of(hash.wrapping_mul(0x9e37_79b9_7f4a_7c15), 1023).slot()] += 1;
        }
        assert!(seen.iter().all(|count| (800..1200).contains(count)), "{seen:?}");
    }

    #[test]
    fn time_wraps() {
        assert!(is_past(10, 10) && is_past(10, 11) && !is_past(11, 10));
        assert!(is_past(u32::MAX, 5) && !is_past(5, u32::MAX));
        assert!(holds(11, 10, 5) && holds(15, 10, 5) && holds(3, u32::MAX, 5));
        assert!(!holds(10, 10, 5) && holds(20, 10, 5) && !holds(21, 10, 5) && !holds(10, 11, 5));
        for later in [1, u32::MAX / 4, 1 << 31, u32::MAX - 10] {
            assert!(!holds(10, later.wrapping_add(10), 5), "{later}");
        }
    }

    #[test]
    fn deadlines_move_at_most_once_a_second() {
        // 900 s at 250 ticks a second, last moved at tick 1000.
        let deadline = 1000 + 225_000;
        assert!(!is_stale(deadline, 1250, 225_000, 250));
        assert!(is_stale(deadline, 1251, 225_000, 250));
        // A timeout of one second is moved every eighth of it.
        assert!(!is_stale(1250, 1031, 250, 250) && is_stale(1250, 1032, 250, 250));
        // `--set` has shortened the timeout: the next packet brings the deadline forward.
        assert!(is_stale(deadline, 1001, 250, 250));
    }

    #[test]
    fn a_nat_connection_is_counted_active_while_it_is() {
        const SYN: u8 = 0x02;
        const ACK: u8 = 0x10;
        const FIN_ACK: u8 = 0x11;
        let mut now = Advance { state: 0, flags: INACTIVE, active_change: 0 };
        let mut active = 0;
        let steps =
            [(SYN, false, 3), (SYN | ACK, true, 3), (ACK, false, 1), (FIN_ACK, true, 4), (FIN_ACK, false, 5)];
        for (tcp_flags, out, state) in steps {
            now = advance(6, now.state, now.flags, tcp_flags, out, false);
            active += now.active_change;
            assert_eq!(now.state, state);
            assert_eq!(active, i32::from(now.flags & INACTIVE == 0));
        }
        assert_eq!(active, 0);
    }

    #[test]
    fn packets_of_the_client_are_counted_up_to_many() {
        let mut flags = INACTIVE | NO_OUTPUT | DISPLACED;
        for number in 1..40 {
            flags = advance(17, state::UDP, flags, 0, false, false).flags;
            assert_eq!(packets(flags), if number < MANY_PACKETS { number } else { MANY_PACKETS });
            assert_eq!(flags & !PACKETS, INACTIVE | NO_OUTPUT | DISPLACED);
            assert_eq!(packets(advance(17, state::UDP, flags, 0, true, false).flags), packets(flags));
        }
    }

    #[test]
    fn a_udp_connection_is_never_active() {
        let now = advance(17, 0, INACTIVE | NO_OUTPUT | DISPLACED, 0, false, true);
        assert_eq!(
            now,
            Advance { state: state::UDP, flags: INACTIVE | NO_OUTPUT | DISPLACED | 0x10, active_change: 0 }
        );
        assert_eq!(advance(17, now.state, now.flags, 0, true, true).flags, INACTIVE | DISPLACED | 0x10);
    }

    #[test]
    fn a_steady_packet_changes_nothing() {
        for protocol in [6, 17] {
            for state in 0..=state::UDP {
                for flags in 0..8 {
                    // Only what the state machine itself can have left behind.
                    let active = tcp::State::from_number(state).is_some_and(tcp::State::is_active);
                    if active == (flags & INACTIVE != 0) {
                        continue;
                    }
                    for tcp_flags in 0..=63 {
                        for (out, secure) in [(false, false), (true, false), (false, true), (true, true)] {
                            let after = advance(protocol, state, flags, tcp_flags, out, secure);
                            let flags = if out { flags } else { count_packet(flags) };
                            let same = Advance { state, flags, active_change: 0 };
                            if is_steady(protocol, state, flags & !PACKETS, tcp_flags, out) {
                                assert_eq!(after, same, "{protocol} {state} {flags} {tcp_flags} {out}");
                            }
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn a_connection_that_nothing_has_moved_has_its_protocols_first_state() {
        let names = [6, 17, 132, 6 | IPV6].map(|protocol| state::name(unmoved(protocol)));
        assert_eq!(names, ["NONE", "UDP", "NONE", "NONE"]);
    }

    #[test]
    fn half_open_and_closed_connections_are_expendable() {
        let names = |protocol, states: core::ops::Range<u8>| -> std::vec::Vec<&str> {
            let entry = |state| Entry { protocol, state, ..Entry::new_zeroed() };
            states.filter(|state| is_expendable(&entry(*state))).map(state::name).collect()
        };
        assert_eq!(names(6, 0..11), ["NONE", "SYN_SENT", "SYN_RECV", "TIME_WAIT", "CLOSE", "SYNACK"]);
        assert_eq!(
            names(132, state::SCTP..state::SCTP + 14),
            [
                "NONE",
                "INIT1",
                "INIT",
                "C-SENT",
                "C-REPLIED",
                "C-WAIT",
                "COOKIE",
                "C-ECHOED",
                "REJECTED",
                "CLOSED"
            ]
        );
        assert!(names(17, state::UDP..state::UDP + 1).is_empty());
        let mut template = Entry { role: TEMPLATE, protocol: !6, ..Entry::new_zeroed() };
        assert!(is_expendable(&template));
        template.link[CONTROLS] = 1;
        assert!(!is_expendable(&template));
        assert!(!is_expendable(&Entry { state: state::ASSURED, link: [0; 3], ..template }));
    }

    #[test]
    fn twins_tell_each_other() {
        use core::net::Ipv4Addr;
        let (client, vip, rip) = (
            (Ipv4Addr::new(1, 2, 3, 4), 5),
            (Ipv4Addr::new(6, 7, 8, 9), 80),
            (Ipv4Addr::new(10, 1, 1, 2), 8080),
        );
        let raw = |(address, port): (Ipv4Addr, u16)| (u32::from_ne_bytes(address.octets()), port.to_be());
        let entry = |tuple: Tuple, role, (address, port)| Entry {
            addresses: tuple.addresses,
            ports: tuple.ports,
            protocol: tuple.protocol,
            role,
            address,
            port,
            ..Entry::new_zeroed()
        };
        let client_side = entry(Tuple::new(6, client, vip), CLIENT_SIDE, raw(rip));
        let server_side = entry(Tuple::new(6, rip, client), SERVER_SIDE, raw(vip));
        assert_eq!(client_side.twin(), server_side.tuple());
        assert_eq!(server_side.twin(), client_side.tuple());
    }

    #[test]
    fn addresses_of_twins_go_with_their_flows() {
        use crate::tuple::handle;
        let (client, virtual_address, server) = ([1, 2], [3, 4], [5, 6]);
        let addresses =
            Addresses { source: client, destination: virtual_address, other: server, reserved: [0; 2] };
        let raw = |address, port: u16| (handle(address, 7), port);
        let tuple = Tuple::from_raw(6 | IPV6, raw(client, 1), raw(virtual_address, 2));
        let entry = Entry {
            addresses: tuple.addresses,
            ports: tuple.ports,
            protocol: tuple.protocol,
            address: handle(server, 7),
            port: 3,
            ..Entry::new_zeroed()
        };
        let twin = addresses.twin(CLIENT_SIDE);
        assert_eq!(entry.twin(), Tuple::from_raw(6 | IPV6, raw(twin.source, 3), raw(twin.destination, 1)));
        assert_eq!(twin.twin(SERVER_SIDE), addresses);
    }

    #[test]
    fn closed_connections_give_way_to_a_syn() {
        assert!(gives_way(5, 0, 1) && gives_way(6, 0, 1) && !gives_way(1, 0, 1) && !gives_way(5, 0, 0));
        assert!(!gives_way(4, NO_OUTPUT, 1) && gives_way(4, NO_OUTPUT, 2) && !gives_way(4, 0, 3));
    }
}
