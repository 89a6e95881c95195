//! `xipvs status`: what an operator wants to know of a running director and ipvsadm does not tell.

use std::io::Write;

use anyhow::Result;
use lb_common::connection::{DISPLACED, WAYS};
use lb_common::reason::Fate;
use xipvs::director::Director;
use xipvs::director::xdp::Xdp;
use xipvs::director::xdp::daemon::Tally;
use xipvs::director::xdp::lifecycle::{self, Listed, Mode, Pins};
use xipvs::table::SyncRole;

use super::drain;

/// Writes the status of the calling thread's network namespace; with `all`, reasons that no packet had too.
pub fn write(to: &mut dyn Write, all: bool) -> Result<()> {
    let pins = Pins::find()?;
    if !pins.is_loaded() {
        writeln!(to, "not loaded in this network namespace")?;
        return Ok(());
    }
    let interfaces = lifecycle::attached(&pins)?;
    if interfaces.is_empty() {
        writeln!(to, "interfaces    none; nothing is balanced before `xipvs attach IFACE`")?;
    }
    for (position, Listed { interface, mode, sees_own }) in interfaces.iter().enumerate() {
        let title = if position == 0 { "interfaces" } else { "" };
        let mode = mode.map_or("connections of the director itself", Mode::name);
        let lack = if *sees_own { "" } else { ", without what the director itself sends" };
        writeln!(to, "{title:<12}  {interface} ({mode}{lack})")?;
    }

    let mut director = Xdp::open(pins.directory())?;
    let services = director.services()?;
    let mut destinations = 0;
    for service in &services {
        destinations += director.destinations(&service.service.key)?.len();
    }
    let maps = director.maps();
    let settings = maps.settings();
    let entries = maps.entries()?;
    let displaced = entries.iter().filter(|found| found.entry.flags & DISPLACED != 0).count();
    let room = (settings.set_mask as usize + 1) * WAYS;
    writeln!(to, "services      {} of {}", services.len(), maps.services.count())?;
    writeln!(to, "destinations  {destinations} of {}", maps.destinations.count())?;
    writeln!(to, "connections   {} entries of {room}, {displaced} displaced", entries.len())?;

    if maps.gave_way() > 0 {
        writeln!(to, "{:<12}  {} half-open or closed ones gave way to new ones", "", maps.gave_way())?;
    }

    if maps.fell() > 0 {
        writeln!(to, "{:<12}  {} fell to drop_entry", "", maps.fell())?;
    }

    let daemons = director.sync_daemons();
    for daemon in director.daemons()? {
        let name = format!("sync {}", daemon.role.name());
        let tally = daemons.tally(daemon.role).unwrap_or_default();
        let Tally { messages, records, taken, renewed, waiting, .. } = tally;
        write!(to, "{name:<12}  on {}: {records} connections in {messages} messages", daemon.interface)?;
        if daemon.role == SyncRole::Backup {
            write!(to, ", {taken} taken, {renewed} renewed, {waiting} waiting for their destination")?;
        }
        writeln!(to)?;
        for (reason, count) in &tally.left {
            writeln!(to, "{:<12}  {count} left: {reason}", "")?;
        }
    }

    let mut draining = Vec::new();
    drain::list(&mut director, &mut draining)?;
    for (position, line) in String::from_utf8_lossy(&draining).lines().enumerate() {
        writeln!(to, "{:<12}  {line}", if position == 0 { "draining" } else { "" })?;
    }

    let reasons = director.maps().reasons().into_iter().filter(|(_, count)| all || *count > 0);
    for (position, (reason, count)) in reasons.enumerate() {
        if position == 0 {
            writeln!(to, "\nnot forwarded         packets")?;
        }
        let fate = match reason.fate() {
            Fate::Pass => "passed",
            Fate::Drop => "dropped",
        };
        writeln!(to, "{:<20} {count:>8}  {fate:<7}  {}", reason.name(), reason.explanation())?;
    }
    Ok(())
}
