//! The settings, read field by field: user space may write them at any time.

use core::ptr::{addr_of, addr_of_mut, read_volatile, write_volatile};

use lb_common::settings::{PLACE, Settings, SettingsElement};
use lb_common::sysctl::Sysctl;

use crate::machine;

/// The settings, read field by field: user space may write them at any time.
#[derive(Clone, Copy)]
pub struct SettingsRef(*mut Settings);

macro_rules! settings_fields {
    ($($field:ident),+) => {
        $(
            #[doc = concat!("[`Settings::", stringify!($field), "`].")]
            #[inline(always)]
            pub fn $field(self) -> u32 {
                // SAFETY: the pointer is to the one element of the settings map, which they begin.
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
        wide_services,
        icmp_rate,
        ticks_per_second,
        sweep_position,
        sweep_stride,
        cpus,
        destinations_used,
        estimator_turn,
        occupied,
        own_timeouts,
        draining,
        engines
    );

    /// [`Settings::seed`].
    #[inline(always)]
    pub fn seed(self) -> u64 {
        // SAFETY: as above.
        unsafe { read_volatile(addr_of!((*self.0).seed)) }
    }

    /// The place of the first rule that marks packets, and how many there are.
    #[inline(always)]
    pub fn mark_rules(self) -> (u32, u32) {
        // SAFETY: as above.
        let word = unsafe { read_volatile(addr_of!((*self.0).mark_rules)) };
        (word >> 16, word & 0xffff)
    }

    /// The value of a sysctl.
    #[inline(always)]
    pub fn sysctl(self, sysctl: Sysctl) -> u32 {
        // SAFETY: as above; every sysctl has a place.
        unsafe { read_volatile(addr_of!((*self.0).sysctls[sysctl as usize])) }
    }

    /// Counts a new connection that `drop_packet` looks at, and tells how many came before.
    #[inline(always)]
    pub fn take_drop_turn(self) -> u32 {
        // SAFETY: an aligned word of a live map element, changed by atomic operations alone but for user space's zeroing.
        unsafe { machine::add(addr_of_mut!((*self.0).drop_turn), 1) }
    }

    /// The timeout of a connection state in ticks.
    #[inline(always)]
    pub fn timeout(self, state: u8) -> u32 {
        // Hidden, because the compiler knows which states there are and would leave the mask out.
        let state = machine::opaque(state.into()) as usize & 63;
        // SAFETY: as above; the index is masked to the table's length.
        unsafe { read_volatile(addr_of!((*self.0).timeouts[state])) }
    }

    /// The lowest byte of the epoch.
    #[inline(always)]
    pub fn epoch(self) -> u8 {
        // SAFETY: as above.
        unsafe { read_volatile(addr_of!((*self.0).epoch).cast::<u8>()) }
    }

    /// Whether an address (loaded natively) may be one of ours.
    #[inline(always)]
    pub fn concerns(self, address: u32) -> bool {
        let slot = Settings::address_slot(address);
        // SAFETY: as above; a slot is below the table's length, which the verifier sees by the shift.
        unsafe {
            let element = self.0.cast::<SettingsElement>();
            read_volatile(addr_of!((*element).addresses).cast::<u8>().add(slot)) != 0
        }
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

    /// Counts the entries of some more sets; `whole` after the last ones, when the sweep has come around.
    #[inline(always)]
    pub fn add_occupied(self, entries: u32, whole: bool) {
        // SAFETY: as above; only the timer's sweep writes the count so far.
        let sum = unsafe { read_volatile(addr_of!((*self.0).occupied_so_far)) }.wrapping_add(entries);
        // SAFETY: as above.
        unsafe { write_volatile(addr_of_mut!((*self.0).occupied_so_far), if whole { 0 } else { sum }) };
        if whole {
            self.set_occupied(sum);
        }
    }

    /// Notes how many places of the connection table have an entry.
    #[inline(always)]
    pub fn set_occupied(self, entries: u32) {
        // SAFETY: as above; one aligned word, of which the newest is as good as any.
        unsafe { write_volatile(addr_of_mut!((*self.0).occupied), entries) };
    }
}

/// The settings. The loader makes their map, and puts the address of its element where the programs want it: nothing is
/// looked up, and nothing can be missing.
#[inline(always)]
pub fn settings() -> SettingsRef {
    SettingsRef(core::ptr::with_exposed_provenance_mut(machine::constant::<PLACE>() as usize))
}
