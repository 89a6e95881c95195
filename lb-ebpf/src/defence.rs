//! The defences against floods: whether they act, by what the sweep has counted, and what falls to `drop_entry`.
//!
//! IPVS counterpart: `update_defense_level` in `ip_vs_ctl.c`, `ip_vs_random_dropentry` in `ip_vs_conn.c`.

use aya_ebpf::helpers::generated::bpf_get_prandom_u32;
use lb_common::connection::{CLIENT_SIDE, Entry, TEMPLATE, WAYS, is_past};
use lb_common::defence::{self, Fill, OFF, SHARE, idle};
use lb_common::reason::FELL;
use lb_common::service::flags;
use lb_common::sysctl::Sysctl;

use crate::maps::{self, DestinationRef, ServiceRef, SetRef, SettingsRef, settings};
use crate::{connection, persistence, service};

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

/// Whether this is one of the sets that `drop_entry` comes by now.
#[inline(always)]
pub fn comes_by() -> bool {
    random().is_multiple_of(SHARE)
}

/// Ends what is to fall in one set; called by the sweep.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn defence_drop_entries(number: u32, now: u32) -> u32 {
    let settings = settings();
    let Some(set) = SetRef::at(number) else { return 0 };
    let ticks = settings.ticks_per_second().max(1);
    for slot in 0..WAYS {
        let (place, deadline) = (set.entry(slot), set.deadline(slot));
        if set.tag(slot) == 0 || place.role() != CLIENT_SIDE && place.role() != TEMPLATE {
            continue;
        }
        let entry = set.locked(|| place.copy());
        let idle = idle(deadline, service::timeout(settings, entry.destination, entry.state), now) / ticks;
        if is_past(deadline, now) || !defence::falls(&entry, idle, is_once(&entry), random()) {
            continue;
        }
        let gone = if entry.role == TEMPLATE {
            persistence::end(Entry::place(number, slot), now)
        } else {
            connection::end(&entry, now)
        };
        if gone {
            maps::count_at(FELL);
        }
    }
    1
}

/// Whether an entry is a template of a service that does one-packet scheduling.
#[inline(always)]
fn is_once(entry: &Entry) -> bool {
    let service = DestinationRef::at(entry.destination)
        .filter(|_| entry.role == TEMPLATE)
        .and_then(|destination| ServiceRef::at(destination.service()));
    service.is_some_and(|service| service.flags() & flags::ONE_PACKET != 0)
}

#[inline(always)]
fn random() -> u32 {
    // SAFETY: the helper takes nothing.
    unsafe { bpf_get_prandom_u32() }
}
