//! The settings of an interface that forwarding needs, and what they were before.
//!
//! What they were is written to a file before they are changed, so that a kill in between loses nothing.

use std::fs;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};

use super::pins::Pins;
use super::refused;
use crate::director::Result;

/// Settings below `net.ipv4.conf.IFACE` that are switched on while attached.
///
/// `forwarding`, because the kernel's route lookup for XDP refuses without. `accept_local`, because an answer
/// that was translated and then left to the stack has a local address, the virtual one, as its source.
const SETTINGS: [&str; 2] = ["forwarding", "accept_local"];

fn file_of(interface: &str, setting: &str) -> PathBuf {
    Path::new("/proc/sys/net/ipv4/conf").join(interface).join(setting)
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
        for setting in SETTINGS {
            let value = fs::read_to_string(file_of(interface, setting)).map_err(failed)?;
            lines += &format!("{setting} {}\n", value.trim());
        }
        fs::create_dir_all(pins.records()).map_err(failed)?;
        let new = record.with_extension("new");
        fs::write(&new, lines).and_then(|()| fs::rename(&new, &record)).map_err(failed)?;
    }
    SETTINGS.iter().try_for_each(|setting| fs::write(file_of(interface, setting), "1")).map_err(failed)
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
        for (setting, value) in lines.lines().filter_map(|line| line.split_once(' ')) {
            let file = file_of(interface, setting);
            fs::write(&file, value).map_err(|error| refused(file.display(), &error))?;
        }
    }
    fs::remove_file(&record).map_err(|error| refused(record.display(), &error))
}

/// Lists the interfaces whose former values are remembered.
pub fn remembered(pins: &Pins) -> Vec<u32> {
    let entries = fs::read_dir(pins.records()).into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect()
}
