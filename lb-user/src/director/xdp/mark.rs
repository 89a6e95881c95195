//! The rules that mark packets, in the maps: read, and replaced all at once.
//!
//! The rules lie in two halves of a map. A change writes the half that is not in use and moves the program over with
//! one store, so that a packet sees the old rules or the new. IPVS has no counterpart: netfilter marks its packets.

use std::mem::offset_of;

use lb_common::mark::{MAX_RULES, Rule};
use lb_common::settings::Settings;

use super::filter;
use super::mapped::wait_for_readers;
use super::maps::Maps;
use crate::director::{Error, Result};

/// Most bits of a destination that may be anything if each of its addresses is to be noted in the filter; for more, every
/// packet is looked at.
const LISTED: u8 = 8;

/// The place of the first rule, and how many there are.
fn range(maps: &Maps) -> (u32, u32) {
    let word = maps.settings().mark_rules;
    (word >> 16, word & 0xffff)
}

/// The rules in their order; of those that match, the last gives the mark.
pub fn rules(maps: &Maps) -> Vec<Rule> {
    let (first, count) = range(maps);
    (first..first + count).filter_map(|place| maps.marks.read(place)).collect()
}

/// Replaces the rules.
///
/// # Errors
///
/// When they are too many.
pub fn store(maps: &Maps, rules: &[Rule]) -> Result<()> {
    if rules.len() > MAX_RULES as usize {
        return Err(Error::Unsupported(format!("no more than {MAX_RULES} rules can mark packets")));
    }
    // Whoever may still be reading the half that is written now has begun long ago.
    wait_for_readers();
    let first = if range(maps).0 == 0 { MAX_RULES } else { 0 };
    for (place, rule) in (first..).zip(rules) {
        maps.marks.write(place, rule);
    }
    concern(maps, rules);
    let word = first << 16 | rules.len() as u32;
    maps.settings.store_u32(0, offset_of!(Settings, mark_rules), word);
    Ok(())
}

/// Has the packet program look at what rules may match. What it looks at already stays: connections may have it.
fn concern(maps: &Maps, rules: &[Rule]) {
    for rule in rules {
        let length = if rule.family == 6 { 128 } else { 32 };
        let open = length - rule.destination_prefix.min(length);
        if open > LISTED {
            filter::concern_all(maps);
            return;
        }
        // The last byte that counts of an IPv4 address is the fourth.
        let last = usize::from(length / 8) - 1;
        for number in 0..1u16 << open {
            let mut address = rule.destination;
            address[last] |= number as u8;
            filter::concern(maps, address, if rule.family == 6 { 6 } else { 4 });
        }
    }
}
