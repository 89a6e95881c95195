//! Services, destination sets and destinations.

use core::ptr::{addr_of, addr_of_mut, read_volatile, write_volatile};

use lb_common::destination::{Destination, DestinationId};
use lb_common::packet::Family;
use lb_common::scheduler::overload::Thresholds;
use lb_common::scheduler::tree;
use lb_common::service::{LINE, Service, ServiceKey, ServiceKeyIpv6, SetHeader};
use lb_common::tunnel::Tunnel;

use super::{ARENA, DESTINATIONS, SERVICE_INDEX, SERVICE_INDEX_IPV6, SERVICES};
use crate::machine;

/// Where a service lies, if there is one for this key.
#[inline(always)]
pub fn service_slot(key: &ServiceKey) -> Option<u32> {
    // SAFETY: the number is copied out at once; user space replaces it whole or deletes it.
    unsafe { SERVICE_INDEX.get(key).map(|slot| read_volatile(slot)) }
}

/// As [`service_slot`], of IPv6.
#[inline(always)]
pub fn service_slot_ipv6(key: &ServiceKeyIpv6) -> Option<u32> {
    // SAFETY: as above.
    unsafe { SERVICE_INDEX_IPV6.get(key).map(|slot| read_volatile(slot)) }
}

/// A service, read field by field: user space stores each whole.
#[derive(Clone, Copy)]
pub struct ServiceRef(*const Service);

macro_rules! service_fields {
    ($($field:ident: $kind:ty;)+) => {
        $(
            #[doc = concat!("[`Service::", stringify!($field), "`].")]
            #[inline(always)]
            pub fn $field(self) -> $kind {
                // SAFETY: the pointer is to an element of the service map.
                unsafe { read_volatile(addr_of!((*self.0).$field)) }
            }
        )+
    };
}

impl ServiceRef {
    /// The service in this slot.
    #[inline(always)]
    pub fn at(slot: u32) -> Option<Self> {
        SERVICES.get_ptr(slot).map(Self)
    }

    service_fields! {
        port: u16;
        mark: u32;
        flags: u32;
        timeout: u32;
        netmask: u32;
        family: u8;
        cache: u32;
    }

    /// [`Service::serial`].
    #[inline(always)]
    pub fn serial(self) -> u32 {
        // SAFETY: as above.
        unsafe { read_volatile(addr_of!((*self.0).serial)) }
    }

    /// Whether it has a persistence engine: there is but one.
    #[inline(always)]
    pub fn has_engine(self) -> bool {
        // SAFETY: as above.
        unsafe { read_volatile(addr_of!((*self.0).engine).cast::<u8>()) != 0 }
    }

    /// One of [`Service::timeouts`].
    #[inline(always)]
    pub fn own_timeout(self, place: usize) -> u32 {
        // SAFETY: as above; the index is masked to the table's length, and what follows it is in the element too.
        unsafe { read_volatile(addr_of!((*self.0).timeouts).cast::<u32>().add(place & 3)) }
    }

    /// First line of the destination set; 0 for none.
    #[inline(always)]
    pub fn set(self) -> u32 {
        // SAFETY: as above.
        unsafe { read_volatile(addr_of!((*self.0).set)) as u32 }
    }
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

    /// [`SetHeader::tree`].
    #[inline(always)]
    pub fn tree(self) -> u32 {
        // SAFETY: as above.
        unsafe { read_volatile(addr_of!((*self.0).tree)) }
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

/// Stores the `index`-th number of the lines that begin at `line`, which must be winners of a tree.
#[inline(always)]
pub fn set_arena_number(line: u32, index: u32, number: u32) {
    if let Some(line) = ARENA.get_ptr_mut(line.wrapping_add(index / LINE as u32)) {
        // SAFETY: as above; user space does not touch a set that is in use.
        unsafe { write_volatile(addr_of_mut!((*line)[index as usize & (LINE - 1)]), number) };
    }
}

/// The marks of a tree of winners, and a word that says whether a CPU is renewing it.
#[derive(Clone, Copy)]
pub struct MarksRef(*mut [u64; LINE / 2]);

impl MarksRef {
    /// The marks in a line of the arena.
    #[inline(always)]
    pub fn at(line: u32) -> Option<Self> {
        ARENA.get_ptr_mut(line).map(|line| Self(line.cast()))
    }

    #[inline(always)]
    fn word(self, word: usize) -> *mut u64 {
        // SAFETY: the pointer is to a line of the arena, which is aligned for words; the index is masked to its length.
        unsafe { addr_of_mut!((*self.0)[word & (LINE / 2 - 1)]) }
    }

    /// Sets the mark of a position.
    #[inline(always)]
    pub fn set(self, position: u32) {
        let (word, bit) = tree::mark(position);
        let word = self.word(word);
        // SAFETY: an aligned word of a live map element, changed by atomic operations alone.
        unsafe {
            // Looked at first, so that the line is not written for nothing.
            if read_volatile(word) & bit == 0 {
                machine::set_bits(word, bit);
            }
        }
    }

    /// Takes the marks of a word of them.
    #[inline(always)]
    pub fn take(self, word: usize) -> u64 {
        let word = self.word(word & (tree::WORDS - 1));
        // SAFETY: as above.
        unsafe { if read_volatile(word) == 0 { 0 } else { machine::exchange(word, 0) } }
    }

    /// Begins to renew the tree, unless another CPU is at it.
    #[inline(always)]
    pub fn begin(self) -> bool {
        // SAFETY: as above.
        unsafe { machine::replace(self.word(tree::WORDS), 0, 1) }
    }

    /// Ends what [`MarksRef::begin`] began.
    #[inline(always)]
    pub fn end(self) {
        // SAFETY: as above. Winners are stored before.
        unsafe { machine::exchange(self.word(tree::WORDS), 0) };
    }
}

/// A line of the arena.
#[derive(Clone, Copy)]
pub struct LineRef(*const [u32; LINE]);

/// The line with this number.
#[inline(always)]
pub fn arena_line(line: u32) -> Option<LineRef> {
    ARENA.get_ptr(line).map(LineRef)
}

impl LineRef {
    /// Its `index`-th number.
    #[inline(always)]
    pub fn number(self, index: u32) -> u32 {
        let index = machine::opaque(index.into()) as usize & (LINE - 1);
        // SAFETY: the pointer is to an element, the index masked to its length.
        unsafe { read_volatile(addr_of!((*self.0)[index])) }
    }

    /// [`LineRef::number`] of an index that is known.
    #[inline(always)]
    pub fn number_at<const INDEX: usize>(self) -> u32 {
        const { assert!(INDEX < LINE) };
        // SAFETY: the pointer is to an element, which has so many numbers.
        unsafe { read_volatile(addr_of!((*self.0)[INDEX])) }
    }
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
        family: u8 = family;
        port: u16 = port;
        weight: u32 = weight;
        service: u32 = service;
        active: u32 = load.active;
        total: u32 = load.total;
        overloaded: u16 = load.overloaded;
        place: u16 = load.place;
        service_serial: u32 = load.service_serial;
        virtual_port: u16 = virtual_port;
        date: u32 = load.date;
    }

    /// The family of the address.
    #[inline(always)]
    pub fn version(self) -> Family {
        if self.family() == 6 { Family::V6 } else { Family::V4 }
    }

    /// The tunnel.
    #[inline(always)]
    pub fn tunnel(self) -> Tunnel {
        // SAFETY: as above.
        unsafe {
            Tunnel {
                kind: read_volatile(addr_of!((*self.0).tunnel)),
                checksum: read_volatile(addr_of!((*self.0).tunnel_checksum)),
                port: read_volatile(addr_of!((*self.0).tunnel_port)),
            }
        }
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

    /// The IPv6 address, loaded natively as two words.
    #[inline(always)]
    pub fn address_ipv6(self) -> [u64; 2] {
        // SAFETY: as above.
        unsafe { read_volatile(addr_of!((*self.0).address).cast()) }
    }

    /// The service's address, loaded natively as two words; an IPv4 address in the first four bytes.
    #[inline(always)]
    pub fn virtual_address(self) -> [u64; 2] {
        // SAFETY: as above.
        unsafe { read_volatile(addr_of!((*self.0).virtual_address).cast()) }
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

    /// Adds to the persistence templates.
    #[inline(always)]
    pub fn add_persistent(self, change: i32) -> u32 {
        // SAFETY: as above.
        unsafe { machine::add(addr_of_mut!((*self.0).load.persistent), change as u32) }
    }

    /// Marks the destination as overloaded or not.
    #[inline(always)]
    pub fn set_overloaded(self, overloaded: bool) {
        // SAFETY: as above; an aligned half of a word, of which nothing else is written here.
        unsafe { write_volatile(addr_of_mut!((*self.0).load.overloaded), u16::from(overloaded)) }
    }
}
