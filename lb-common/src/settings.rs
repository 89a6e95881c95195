//! What the packet program must know before it looks at a packet, in one map element.
//!
//! User space writes it, but for the fields of the sweep. Its first lines are read for every packet.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::protocol::state;
use crate::sysctl::{self, SYSCTL_SLOTS};

/// Version of all map layouts together; a program and maps of different versions do not work together.
pub const LAYOUT: u32 = 12;

/// [`Settings::wide_services`]: there is a TCP service of port 21, which takes FTP's data connections too.
#[doc(alias = "ftpsvc_counter")]
pub const WIDE_FTP: u32 = 1;
/// [`Settings::wide_services`]: there is a service of port 0, which takes all ports.
#[doc(alias = "nullsvc_counter")]
pub const WIDE_PORTS: u32 = 2;

/// Stands in the programs where the loader puts the address of the settings: "SETTINGS".
pub const PLACE: u64 = u64::from_le_bytes(*b"SETTINGS");

/// Slots of an [`AddressFilter`]; a power of two. With 20,000 addresses one in fourteen is not 0.
pub const ADDRESS_SLOTS: usize = 1 << 18;

/// Not 0 at the hash of every virtual address and every address of a destination: a packet between two addresses that have
/// 0 is not ours. A byte each, so that asking takes one load: it is done for every packet.
pub type AddressFilter = [u8; ADDRESS_SLOTS];

/// The one element of the settings map.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct SettingsElement {
    /// The settings.
    pub settings: Settings,
    /// The filter.
    pub addresses: AddressFilter,
}

/// The settings, which begin the element.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Settings {
    /// [`LAYOUT`] of the maps; 0 in maps that were made and never filled.
    pub layout: u32,
    /// Services in the table; with none every packet passes untouched.
    pub services: u32,
    /// Seed of the flow hash.
    pub seed: u64,
    /// Ticks in a second: the kernel's HZ shifted right by `tick_shift`, at most 300.
    pub ticks_per_second: u32,
    /// How far jiffies are shifted to make a tick.
    pub tick_shift: u32,
    /// Added to the clock, in ticks. Zero but in tests, which turn it on to see timeouts pass.
    pub clock_offset: u32,
    /// The line of the arena at which the search for room goes on, so that lines that a packet may still be
    /// reading are the last to be used again.
    pub arena_next: u32,
    /// Sets in the connection table less one; a power of two less one.
    pub set_mask: u32,
    /// Slots for destinations in the maps, which the per-CPU counters are strided by. The last is for connections without one.
    pub destinations: u32,
    /// CPUs that counters have room for.
    pub cpus: u32,
    /// New connections that `drop_packet` has looked at.
    pub drop_turn: u32,
    /// The tick at which the sweep last ran.
    pub swept_at: u32,
    /// The set that the sweep goes on with.
    pub sweep_position: u32,
    /// Sets that one tick of the sweep visits.
    pub sweep_stride: u32,
    /// Not 0 while a command is changing the table; one that finds it so puts in order what the other left.
    pub changing: u32,
    /// The next number for a service or a cache of lblc or lblcr.
    pub service_serial: u32,
    /// Destination slots that were ever used: none from here on is.
    pub destinations_used: u32,
    /// Service slots that were ever used.
    pub services_used: u32,
    /// Changes of the table so far, by which a process knows what it remembers to be true still.
    pub revision: u32,
    /// Turns of the estimator so far: each looks at one of [`crate::stats::TURNS`] shares of the destinations.
    pub estimator_turn: u32,
    /// [`WIDE_FTP`] and [`WIDE_PORTS`]: which services take more than one port.
    pub wide_services: u32,
    /// The rules that mark packets: how many in the lower half, and in the upper the place of the first.
    pub mark_rules: u32,
    /// The sysctls, by their numbers.
    pub sysctls: [u32; SYSCTL_SLOTS],
    /// ICMP errors that each CPU may send in a second; 0 is none.
    pub icmp_rate: u32,
    /// Grows when a destination is deleted: what entries were made good by before is not true any more.
    pub epoch: u32,
    /// Places of the connection table that had an entry when the sweep last came around.
    pub occupied: u32,
    /// The same, of the sets that it has come by since.
    pub occupied_so_far: u32,
    /// Not 0 if a service has timeouts of its own.
    pub own_timeouts: u32,
    /// Not 0 if a destination drains.
    pub draining: u32,
    /// Not 0 if a service has a persistence engine: there is but one, `sip`.
    pub engines: u32,
    /// Timeout in ticks of each connection state, by its number in [`state`].
    pub timeouts: [u32; state::COUNT],
}

impl Settings {
    /// Settings of an empty table with IPVS's defaults, for a clock of so many ticks a second. Sizes and seed
    /// are left 0.
    pub const fn new(ticks_per_second: u32, tick_shift: u32) -> Self {
        Self {
            layout: 0,
            services: 0,
            seed: 0,
            ticks_per_second,
            tick_shift,
            clock_offset: 0,
            arena_next: 1,
            set_mask: 0,
            destinations: 0,
            cpus: 0,
            drop_turn: 0,
            swept_at: 0,
            sweep_position: 0,
            sweep_stride: 1,
            changing: 0,
            service_serial: 0,
            destinations_used: 0,
            services_used: 0,
            revision: 0,
            estimator_turn: 0,
            wide_services: 0,
            mark_rules: 0,
            sysctls: sysctl::DEFAULTS,
            icmp_rate: 1000,
            epoch: 0,
            occupied: 0,
            occupied_so_far: 0,
            own_timeouts: 0,
            draining: 0,
            engines: 0,
            timeouts: [0; state::COUNT],
        }
    }

    /// The slot of an address (loaded natively) in an [`AddressFilter`].
    #[inline(always)]
    pub const fn address_slot(address: u32) -> usize {
        const SHIFT: u32 = u32::BITS - ADDRESS_SLOTS.trailing_zeros();
        (address.wrapping_mul(0x9e37_79b1) >> SHIFT) as usize
    }
}

/// Slots of the program arrays: what the packet program goes on in. Packets of the director itself have an array of their own,
/// where a slot has what does the same for them: `xipvs_out_open` where the other has `xipvs_open`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum Program {
    /// `xipvs_slow`: any packet.
    Slow = 0,
    /// `xipvs_open`: a packet that a service takes and no connection has.
    Open = 1,
    /// `xipvs_tunnel`: a packet of a known flow that goes through a tunnel, whatever it takes.
    Tunnel = 2,
    /// `xipvs_ipv6`: a packet of IPv6, in its flow's steady state.
    Ipv6 = 3,
    /// `xipvs_ipv6_slow`: [`Program::Slow`] for IPv6.
    Ipv6Slow = 4,
    /// `xipvs_ipv6_open`: [`Program::Open`] for IPv6.
    Ipv6Open = 5,
    /// `xipvs_tell`: a packet that goes no further, which its sender is told.
    Tell = 6,
    /// `xipvs_icmp`: an ICMP message.
    Icmp = 7,
    /// `xipvs_fragment`: a packet without ports, a fragment or one of IPsec.
    Fragment = 8,
    /// `xipvs_ipv6_fragment`: [`Program::Fragment`] for IPv6.
    Ipv6Fragment = 9,
    /// `xipvs_ipv6_tunnel`: [`Program::Tunnel`] for packets of IPv6.
    Ipv6Tunnel = 10,
    /// `xipvs_general`: a packet of another shape than most have.
    General = 11,
    /// `xipvs_ipv6_tell`: [`Program::Tell`] for IPv6.
    Ipv6Tell = 12,
    /// `xipvs_ipv6_icmp`: [`Program::Icmp`] for IPv6.
    Ipv6Icmp = 13,
    /// `xipvs_tunnel_error`: an ICMP error about a packet in a tunnel.
    TunnelError = 14,
    /// `xipvs_sip`: a packet that makes a connection to a service with the persistence engine `sip`.
    Sip = 15,
    /// `xipvs_ipv6_sip`: [`Program::Sip`] for IPv6.
    Ipv6Sip = 16,
    /// `xipvs`: any packet, as it comes in.
    Entry = 17,
    /// `xipvs_callback`: a datagram that a destination may begin a connection with.
    Callback = 18,
    /// `xipvs_ipv6_callback`: [`Program::Callback`] for IPv6.
    Ipv6Callback = 19,
}

impl Program {
    /// Slots in a program array.
    pub const COUNT: usize = 20;

    /// What does for IPv6 what this one does for IPv4.
    #[inline(always)]
    #[must_use]
    pub const fn for_ipv6(self) -> Self {
        match self {
            Self::Slow => Self::Ipv6Slow,
            Self::Open => Self::Ipv6Open,
            Self::Tell => Self::Ipv6Tell,
            Self::Icmp => Self::Ipv6Icmp,
            Self::Fragment => Self::Ipv6Fragment,
            Self::Tunnel => Self::Ipv6Tunnel,
            Self::Sip => Self::Ipv6Sip,
            Self::Callback => Self::Ipv6Callback,
            other => other,
        }
    }
}

/// In [`WayOut::interface`], whose numbers lie below: a veth that is told to send back what came in (`XDP_TX`) does not wake its
/// other end, while a redirect does.
pub const BACK: u32 = 1 << 30;

/// How the packet program sends out of an interface. Of one that it has no way for, the stack sends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct WayOut {
    /// Index of the interface that frames go out of: itself, or the one that carries it if it is a VLAN interface. With
    /// [`BACK`] if what came in there goes back by a redirect too.
    pub interface: u32,
    /// VLAN identifier in network order, loaded natively; 0 is no VLAN.
    pub tag: u16,
    /// Always 0.
    pub reserved: u16,
}
