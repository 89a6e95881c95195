//! Sets and entries of the connection table.

use core::mem::offset_of;
use core::ptr::{addr_of, addr_of_mut, read_volatile, write_volatile};

use aya_ebpf::helpers::generated::{bpf_spin_lock, bpf_spin_unlock};
use lb_common::checksum::Delta;
use lb_common::connection::{AddressSet, Addresses, CONTROLS, Entry, Set, TIMEOUT, WAYS};
use lb_common::tuple::Tuple;

use super::{ADDRESSES, CONNECTIONS};
use crate::machine;

/// A set of the connection table.
#[derive(Clone, Copy)]
pub struct SetRef(*mut Set);

impl SetRef {
    /// The set with this number.
    #[inline(always)]
    pub fn at(number: u32) -> Option<Self> {
        CONNECTIONS.get_ptr_mut(number).map(Self)
    }

    /// Holds the set's lock until the guard is dropped. Meanwhile nothing may call a helper or a function that is not
    /// inlined: the verifier refuses both.
    #[inline(always)]
    pub fn hold(self) -> Held {
        // SAFETY: the lock is the element's own, at the offset that BTF gives; only the guard gives it back.
        unsafe { bpf_spin_lock(addr_of_mut!((*self.0).lock).cast()) };
        Held(self)
    }

    /// Runs `body` under the set's lock.
    ///
    /// For functions that are there once: of a closure that several programs need the compiler makes a function, whose call
    /// Linux 6.1 refuses while a lock is held. They take [`SetRef::hold`].
    #[inline(always)]
    pub fn locked<R>(self, body: impl FnOnce() -> R) -> R {
        let _held = self.hold();
        body()
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

/// The lock of a set, held.
pub struct Held(SetRef);

impl Drop for Held {
    #[inline(always)]
    fn drop(&mut self) {
        // SAFETY: whoever made the guard has taken the lock.
        unsafe { bpf_spin_unlock(addr_of_mut!((*self.0.0).lock).cast()) };
    }
}

/// The twelve bytes that a frame begins with, the first eight and the others, loaded natively.
#[derive(Clone, Copy)]
pub struct Link {
    /// The destination's link address and two bytes of the source's.
    pub first: u64,
    /// The rest of the source's.
    pub rest: u32,
}

/// What NAT replaces in a packet, as in [`Entry`].
#[derive(Clone, Copy)]
pub struct Translation {
    /// [`Entry::address`].
    pub address: u32,
    /// [`Entry::port`].
    pub port: u16,
    /// [`Entry::network_delta`].
    pub network: Delta,
    /// [`Entry::transport_delta`].
    pub transport: Delta,
}

/// An entry of the connection table.
#[derive(Clone, Copy)]
pub struct EntryRef(*mut Entry);

macro_rules! entry_fields {
    ($($field:ident: $kind:ty;)+) => {
        $(
            #[doc = concat!("[`Entry::", stringify!($field), "`].")]
            #[inline(always)]
            pub fn $field(self) -> $kind {
                // SAFETY: the pointer is to an entry of a live map element.
                unsafe { read_volatile(addr_of!((*self.0).$field)) }
            }
        )+
    };
}

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
                unsafe { Entry { $($field: read_volatile(addr_of!((*self.0).$field)),)+ } }
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
            epoch,
            interface,
            link,
            hop_until,
            mtu,
            vlan,
            template
        )
    }

    /// A whole copy, if the entry is that of `tuple` and nobody is writing it. Takes no lock.
    ///
    /// Word by word: the fewest loads where nearly all of the entry is wanted.
    #[inline(always)]
    pub fn try_read(self, tuple: &Tuple) -> Option<Entry> {
        let from = self.0.cast::<u64>();
        // SAFETY: as above; an entry is eight words long and aligned for them.
        let word = |number| unsafe { read_volatile(from.add(number)) };
        let before = self.sequence();
        let copy = Entry::from_words([0, 1, 2, 3, 4, 5, 6, 7].map(word));
        (before & 1 == 0 && self.sequence() == before && copy.tuple() == *tuple).then_some(copy)
    }

    /// If the entry has these addresses and this [`Entry::mark`]: the sequence number that it has afterwards if nobody was writing it.
    #[inline(always)]
    pub fn sequence_of(self, addresses: u64, mark: u64) -> Option<u32> {
        let sequence = self.sequence();
        // SAFETY: as above; an entry is aligned for its words.
        let word = unsafe { read_volatile(self.0.cast::<u64>().add(1)) };
        (self.addresses() == addresses && word & Entry::MARKS == mark)
            // While somebody writes it is odd, and then it never becomes this.
            .then_some(sequence & !1)
    }

    /// The same entry, whose place is computed here and now, before the verifier forgets what it knows of the slot.
    #[inline(always)]
    pub fn settled(self) -> Self {
        Self(machine::settled(self.0))
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
        self.begin_store(entry);
        self.end_store();
    }

    /// Stores an entry and leaves it marked as being written, until [`EntryRef::end_store`]. Under the set's lock only.
    #[inline(always)]
    pub fn begin_store(self, entry: &Entry) {
        let sequence = self.sequence() | 1;
        // SAFETY: as above; the lock keeps other writers away.
        unsafe {
            write_volatile(addr_of_mut!((*self.0).sequence), sequence);
            // Word by word, so that no copy is made on the stack; but for the sequence number.
            let (from, to) = (core::ptr::from_ref(entry).cast::<u64>(), self.0.cast::<u64>());
            for word in 0..size_of::<Entry>() / size_of::<u64>() {
                if word == offset_of!(Entry, sequence) / size_of::<u64>() {
                    write_volatile(addr_of_mut!((*self.0).destination), entry.destination);
                } else {
                    write_volatile(to.add(word), read_volatile(from.add(word)));
                }
            }
        }
    }

    /// Stores until when the next hop is good. Under the set's lock only; one aligned word.
    #[inline(always)]
    pub fn set_hop_until(self, until: u32) {
        // SAFETY: as above.
        unsafe { write_volatile(addr_of_mut!((*self.0).hop_until), until) }
    }

    /// Ends what [`EntryRef::begin_store`] began.
    #[inline(always)]
    pub fn end_store(self) {
        // SAFETY: as above.
        unsafe { write_volatile(addr_of_mut!((*self.0).sequence), self.sequence().wrapping_add(1)) };
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

    /// Stores the tick until which the next hop is good. Under the set's lock only.
    #[inline(always)]
    pub fn forget_hop(self, until: u32) {
        // SAFETY: as above.
        unsafe { write_volatile(addr_of_mut!((*self.0).hop_until), until) };
    }

    /// Makes the entry nobody's, so that a lookup that does not look at its tag misses it. Under the set's lock only.
    #[inline(always)]
    pub fn forget(self) {
        // SAFETY: as above.
        unsafe { write_volatile(addr_of_mut!((*self.0).protocol), 0) };
    }

    entry_fields! {
        addresses: u64;
        destination: u32;
        role: u8;
        method: u8;
        flags: u8;
        epoch: u8;
        interface: u32;
        hop_until: u32;
        mtu: u16;
        vlan: u16;
    }

    /// Whether the entry leads to this destination, at this port.
    #[inline(always)]
    pub fn leads_to(self, destination: u32, port: u16) -> bool {
        // SAFETY: as above.
        self.destination() == destination && unsafe { read_volatile(addr_of!((*self.0).port)) } == port
    }

    /// What a frame begins with on its next link.
    #[inline(always)]
    pub fn link(self) -> Link {
        // SAFETY: as above; the first eight of the twelve bytes begin a word of the entry.
        unsafe {
            let link = addr_of!((*self.0).link);
            Link { first: read_volatile(link.cast()), rest: read_volatile(link.cast::<u32>().add(2)) }
        }
    }

    /// What NAT replaces.
    #[inline(always)]
    pub fn translation(self) -> Translation {
        // SAFETY: as above.
        unsafe {
            Translation {
                address: read_volatile(addr_of!((*self.0).address)),
                port: read_volatile(addr_of!((*self.0).port)),
                network: Delta::unpack(read_volatile(addr_of!((*self.0).network_delta))),
                transport: Delta::unpack(read_volatile(addr_of!((*self.0).transport_delta))),
            }
        }
    }

    /// Stores the state alone, which needs no lock where it only ever changes to this one.
    #[inline(always)]
    pub fn confirm(self, state: u8) {
        // SAFETY: as above.
        unsafe { write_volatile(addr_of_mut!((*self.0).state), state) };
    }

    /// Template: how many connections it controls. Under the set's lock.
    #[inline(always)]
    pub fn controls(self) -> u32 {
        // SAFETY: as above; the index is that of a word of the array.
        unsafe { read_volatile(addr_of!((*self.0).link[CONTROLS])) }
    }

    /// Template: controls so many connections more. Under the set's lock.
    #[inline(always)]
    pub fn add_controls(self, change: i32) {
        let controls = self.controls().wrapping_add(change as u32);
        // SAFETY: as above.
        unsafe { write_volatile(addr_of_mut!((*self.0).link[CONTROLS]), controls) };
    }

    /// Template: its timeout in ticks. Under the set's lock.
    #[inline(always)]
    pub fn own_timeout(self) -> u32 {
        // SAFETY: as above.
        unsafe { read_volatile(addr_of!((*self.0).link[TIMEOUT])) }
    }

    /// Template: stores its timeout. Under the set's lock.
    #[inline(always)]
    pub fn set_own_timeout(self, ticks: u32) {
        // SAFETY: as above.
        unsafe { write_volatile(addr_of_mut!((*self.0).link[TIMEOUT]), ticks) };
    }

    /// Replaces the ports of the entry, and its flags. Under the set's lock.
    #[inline(always)]
    pub fn set_ports(self, ports: u32, port: u16, flags: u8) {
        // SAFETY: as above.
        unsafe {
            write_volatile(addr_of_mut!((*self.0).ports), ports);
            write_volatile(addr_of_mut!((*self.0).port), port);
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

/// The addresses beside the entries of a set.
#[derive(Clone, Copy)]
pub struct AddressesRef(*mut AddressSet);

impl AddressesRef {
    /// Those of the set with this number.
    #[inline(always)]
    pub fn at(number: u32) -> Option<Self> {
        ADDRESSES.get_ptr_mut(number).map(Self)
    }

    /// The addresses of the entry in this slot.
    #[inline(always)]
    pub fn line(self, slot: usize) -> LineRef {
        // The compiler knows the slot to be in range, and the verifier has forgotten it: a mask that stays.
        let slot = machine::opaque(slot as u64) as usize & WAYS;
        // SAFETY: the pointer is to an element, the slot masked to its length.
        LineRef(machine::settled(unsafe { addr_of_mut!((*self.0)[slot]) }))
    }
}

/// The addresses beside one entry.
#[derive(Clone, Copy)]
pub struct LineRef(*mut Addresses);

impl LineRef {
    /// A copy; whole under the conditions of [`EntryRef::copy`].
    #[inline(always)]
    pub fn copy(self) -> Addresses {
        // SAFETY: the pointer is to a line of a live map element.
        unsafe {
            Addresses {
                source: read_volatile(addr_of!((*self.0).source)),
                destination: read_volatile(addr_of!((*self.0).destination)),
                other: read_volatile(addr_of!((*self.0).other)),
                reserved: [0; 2],
            }
        }
    }

    /// Copies the addresses to another place, word by word. Under the set's lock only.
    #[inline(always)]
    pub fn copy_to(self, place: &mut Addresses) {
        let (from, to) = (self.0.cast::<u64>(), core::ptr::from_mut(place).cast::<u64>());
        for word in 0..size_of::<Addresses>() / size_of::<u64>() {
            // SAFETY: both are lines of addresses, which are whole words long and aligned for them.
            unsafe { write_volatile(to.add(word), read_volatile(from.add(word))) };
        }
    }

    /// Stores addresses, between [`EntryRef::begin_store`] and [`EntryRef::end_store`].
    #[inline(always)]
    pub fn store(self, addresses: &Addresses) {
        let (from, to) = (core::ptr::from_ref(addresses).cast::<u64>(), self.0.cast::<u64>());
        for word in 0..size_of::<Addresses>() / size_of::<u64>() {
            // SAFETY: as above.
            unsafe { write_volatile(to.add(word), read_volatile(from.add(word))) };
        }
    }
}

const _: () = assert!(WAYS == 7);
// The word of the sequence number has the destination and nothing else.
const _: () = assert!(offset_of!(Entry, sequence) == 16 && offset_of!(Entry, destination) == 20);
