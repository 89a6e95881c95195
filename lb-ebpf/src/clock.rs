//! The clock: jiffies, shifted to ticks of a few milliseconds that fit 32 bits.

use aya_ebpf::helpers::generated::bpf_jiffies64;

use crate::maps::SettingsRef;

/// The current tick.
#[inline(always)]
pub fn now(settings: SettingsRef) -> u32 {
    // SAFETY: the helper takes nothing and only reads a counter of the kernel.
    let jiffies = unsafe { bpf_jiffies64() };
    ((jiffies >> (settings.tick_shift() & 63)) as u32).wrapping_add(settings.clock_offset())
}
