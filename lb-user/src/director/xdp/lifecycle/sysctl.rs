//! The settings of an interface that forwarding needs, and what they were before.
//!
//! What they were is written to a file before they are changed, so that a kill in between loses nothing.

use std::fs;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};

use super::pins::Pins;
use super::refused;
use crate::director::Result;

/// Settings below `net.ipv4.conf.IFACE` and `net.ipv6.conf.IFACE` that are changed while attached, each with the value
/// that it is changed from, if only that one, and to.
///
/// `forwarding`, because the kernel's route lookup for XDP refuses without. `accept_local`, because an answer
/// that was translated and then left to the stack has a local address, the virtual one, as its source. `accept_ra`,
/// because a router believes other routers only if told to: without that its own default route would go.
const SETTINGS: [(&str, &str, Option<&str>, &str); 4] = [
    ("ipv4", "forwarding", None, "1"),
    ("ipv4", "accept_local", None, "1"),
    ("ipv6", "accept_ra", Some("1"), "2"),
    ("ipv6", "forwarding", None, "1"),
];

fn file_of(interface: &str, family: &str, setting: &str) -> PathBuf {
    Path::new("/proc/sys/net").join(family).join("conf").join(interface).join(setting)
}

fn record(pins: &Pins, index: u32) -> PathBuf {
    pins.records().join(index.to_string())
}

/// Switches an interface's settings on and remembers what they were.
pub fn switch_on(pins: &Pins, index: u32, interface: &str) -> Result<()> {
    let failed = |error: io::Error| refused(format!("{interface}: cannot switch forwarding on"), &error);
    let record = record(pins, index);
    if !record.exists() {
        let mut lines = String::new();
        for (family, setting, only_from, _) in SETTINGS {
            let value = match fs::read_to_string(file_of(interface, family, setting)) {
                Ok(value) => value,
                // A kernel, or an interface, without IPv6.
                Err(error) if error.kind() == ErrorKind::NotFound && family == "ipv6" => continue,
                Err(error) => return Err(failed(error)),
            };
            if only_from.is_none_or(|from| from == value.trim()) {
                lines += &format!("{family}/{setting} {}\n", value.trim());
            }
        }
        fs::create_dir_all(pins.records()).map_err(failed)?;
        let new = record.with_extension("new");
        fs::write(&new, lines).and_then(|()| fs::rename(&new, &record)).map_err(failed)?;
    }
    let recorded = fs::read_to_string(&record).map_err(failed)?;
    for (family, setting, _, to) in SETTINGS {
        if recorded.lines().any(|line| line.starts_with(&format!("{family}/{setting} "))) {
            fs::write(file_of(interface, family, setting), to).map_err(failed)?;
        }
    }
    Ok(())
}

/// Gives an interface's settings back their former values; without a name (the interface is gone) forgets them.
pub fn restore(pins: &Pins, index: u32, interface: Option<&str>) -> Result<()> {
    let record = record(pins, index);
    let lines = match fs::read_to_string(&record) {
        Ok(lines) => lines,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(refused(record.display(), &error)),
    };
    if let Some(interface) = interface {
        // In the opposite order, so that nobody is without its default route in between.
        for (name, value) in lines.lines().rev().filter_map(|line| line.split_once(' ')) {
            let (family, setting) = name.split_once('/').unwrap_or(("ipv4", name));
            let file = file_of(interface, family, setting);
            match fs::write(&file, value) {
                // The interface has gone meanwhile, or has lost its IPv6: nothing is to be given back.
                Err(error) if error.kind() == ErrorKind::NotFound => {}
                result => result.map_err(|error| refused(file.display(), &error))?,
            }
        }
    }
    fs::remove_file(&record).map_err(|error| refused(record.display(), &error))
}

/// Lists the interfaces whose former values are remembered.
pub fn remembered(pins: &Pins) -> Vec<u32> {
    let entries = fs::read_dir(pins.records()).into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect()
}
