//! Whether the defences against floods act, by what the sweep has counted.
//!
//! IPVS counterpart: `update_defense_level` in `ip_vs_ctl.c`.

use lb_common::defence::{self, Fill, OFF};
use lb_common::sysctl::Sysctl;

use crate::maps::SettingsRef;

/// Whether a defence acts now.
#[inline(always)]
pub fn acts(settings: SettingsRef, sysctl: Sysctl) -> bool {
    let mode = settings.sysctl(sysctl);
    mode != OFF && defence::acts(mode, fill(settings).is_scarce(settings.sysctl(Sysctl::Amemthresh)))
}

/// Whether `drop_packet` refuses this new connection: the first of every so many.
// A function of its own, as there is no room for it on the stack of `xipvs_ipv6_open`.
#[inline(never)]
pub fn refuses(settings: SettingsRef) -> bool {
    let mode = settings.sysctl(Sysctl::DropPacket);
    if mode == OFF {
        return false;
    }
    let (always, pages) = (settings.sysctl(Sysctl::AmDroprate), settings.sysctl(Sysctl::Amemthresh));
    let rate = defence::drop_rate(mode, always, fill(settings), pages);
    rate != 0 && settings.take_drop_turn().is_multiple_of(rate)
}

#[inline(always)]
fn fill(settings: SettingsRef) -> Fill {
    Fill { occupied: settings.occupied(), sets: settings.set_mask().wrapping_add(1) }
}
