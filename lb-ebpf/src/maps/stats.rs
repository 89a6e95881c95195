//! Counters and rates of destinations.

use core::mem::offset_of;
use core::ptr::{addr_of, addr_of_mut, read_volatile, write_volatile};

use lb_common::connection::{Entry, holds};
use lb_common::destination::{Counters, DestinationId};
use lb_common::packet::Packet;

use super::{COUNTERS, RATES, SettingsRef, cpu};

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

/// Where the line lies that a CPU has of a destination.
#[inline(always)]
fn slot(settings: SettingsRef, cpu: u32, destination: DestinationId) -> u32 {
    cpu.wrapping_mul(settings.destinations()).wrapping_add(destination)
}

/// Counts a packet of `length` bytes for a destination.
#[inline(always)]
pub fn count_packet(settings: SettingsRef, destination: DestinationId, what: Counted, length: u16) {
    count(settings, destination, what, 1, length);
}

/// Counts a connection that no packet of its own has made.
#[inline(always)]
pub fn count_connection(settings: SettingsRef, destination: DestinationId) {
    count(settings, destination, Counted::New, 0, 0);
}

/// Counts a packet, or a later fragment, whose datagram is counted already.
#[inline(always)]
pub fn count_part(settings: SettingsRef, destination: DestinationId, what: Counted, packet: &Packet) {
    count(settings, destination, what, u64::from(!packet.is_later_fragment()), packet.counted);
}

#[inline(always)]
fn count(settings: SettingsRef, destination: DestinationId, what: Counted, number: u64, length: u16) {
    if let Some(line) = COUNTERS.get_ptr_mut(slot(settings, cpu(), destination)) {
        // SAFETY: the pointer is to an element; only this CPU writes it.
        unsafe {
            let counters = addr_of_mut!((*line).counters);
            // Computed, not chosen: what clients send lies before what servers send, here as there.
            let side = usize::from(what == Counted::Out);
            let packets = addr_of_mut!((*counters).in_packets).add(side);
            let bytes = addr_of_mut!((*counters).in_bytes).add(side);
            write_volatile(packets, read_volatile(packets).wrapping_add(number));
            write_volatile(bytes, read_volatile(bytes).wrapping_add(u64::from(length)));
            if what == Counted::New {
                let connections = addr_of_mut!((*counters).connections);
                write_volatile(connections, read_volatile(connections).wrapping_add(1));
            }
        }
    }
}

/// Puts the way to an entry's destination, as this CPU knows it, into the entry; whether it knows one that is good.
#[inline(always)]
pub fn recall_hop(settings: SettingsRef, entry: &mut Entry, now: u32) -> bool {
    let Some(line) = COUNTERS.get_ptr(slot(settings, cpu(), entry.destination)) else { return false };
    // SAFETY: the pointer is to an element; only this CPU writes its way, and not while this runs.
    unsafe {
        let hop = addr_of!((*line).hop);
        let until = read_volatile(addr_of!((*hop).until));
        let interface = read_volatile(addr_of!((*hop).interface));
        // A second is the most that `connection::quantum` gives a way.
        if interface == 0 || !holds(until, now, settings.ticks_per_second()) {
            return false;
        }
        entry.hop_until = until;
        entry.interface = interface;
        entry.link = read_volatile(addr_of!((*hop).link));
        entry.mtu = read_volatile(addr_of!((*hop).mtu));
        entry.vlan = read_volatile(addr_of!((*hop).vlan));
    }
    true
}

/// Keeps the way to an entry's destination, which the entry has.
#[inline(always)]
pub fn remember_hop(settings: SettingsRef, entry: &Entry) {
    let Some(line) = COUNTERS.get_ptr_mut(slot(settings, cpu(), entry.destination)) else { return };
    // SAFETY: as above.
    unsafe {
        let hop = addr_of_mut!((*line).hop);
        write_volatile(addr_of_mut!((*hop).link), entry.link);
        write_volatile(addr_of_mut!((*hop).mtu), entry.mtu);
        write_volatile(addr_of_mut!((*hop).vlan), entry.vlan);
        write_volatile(addr_of_mut!((*hop).interface), entry.interface);
        write_volatile(addr_of_mut!((*hop).until), entry.hop_until);
    }
}

/// Adds what a destination has counted on one CPU.
#[inline(always)]
pub fn add_counted(settings: SettingsRef, cpu: u32, destination: DestinationId, sum: &mut Counters) {
    if let Some(line) = COUNTERS.get_ptr(slot(settings, cpu, destination)) {
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

const _: () =
    assert!(offset_of!(Counters, out_packets) == offset_of!(Counters, in_packets) + size_of::<u64>());
const _: () = assert!(offset_of!(Counters, out_bytes) == offset_of!(Counters, in_bytes) + size_of::<u64>());
