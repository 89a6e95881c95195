//! Making the maps and the programs, and putting newer programs in the place of older ones.
//!
//! They are made in a directory of their own inside the pin directory and moved out of it when whole, the
//! settings last: so a load that was cut short is seen as none, and is cleared away by the next. Newer programs
//! use the maps that are there, so that no connection is lost.

use std::fs;
use std::os::fd::AsFd as _;
use std::path::Path;

use aya::maps::{Map, MapData, ProgramArray};
use aya::programs::links::{FdLink, PinnedLink};
use aya::programs::xdp::XdpLink;
use aya::programs::{
    Program as AnyProgram, ProgramError, ProgramInfo, TestRun, TestRunOptions, Xdp, loaded_programs,
};
use aya::util::KernelVersion;
use aya::{Ebpf, EbpfError, EbpfLoader};
use aya_obj::generated::BPF_F_MMAPABLE;
use aya_obj::generated::bpf_map_type::BPF_MAP_TYPE_ARRAY;
use lb_common::settings::{Program, SettingsElement};
use zerocopy::IntoBytes as _;

use super::pins::{Guard, Pins};
use super::{failed, refused};
use crate::director::xdp::maps::{self, Maps};
use crate::director::xdp::sizes::Sizes;
use crate::director::{Error, Result};
use crate::object::{OBJECT, with_settings};

/// Takes packets; the one that interfaces are given.
pub const ENTRY: &str = "xipvs";
/// As [`ENTRY`], for a veth whose other end leaves checksums to it.
pub const ENTRY_OF_VETH: &str = "xipvs_veth";
/// Arms the timer of the sweep.
const START: &str = "xipvs_start";
/// What the entry goes on in.
const CONTINUATIONS: [(Program, &str); Program::COUNT] = [
    (Program::Slow, "xipvs_slow"),
    (Program::Open, "xipvs_open"),
    (Program::Tunnel, "xipvs_tunnel"),
    (Program::Ipv6, "xipvs_ipv6"),
    (Program::Ipv6Slow, "xipvs_ipv6_slow"),
    (Program::Ipv6Open, "xipvs_ipv6_open"),
    (Program::Tell, "xipvs_tell"),
    (Program::Icmp, "xipvs_icmp"),
    (Program::Fragment, "xipvs_fragment"),
    (Program::Ipv6Fragment, "xipvs_ipv6_fragment"),
    (Program::Ipv6Tunnel, "xipvs_ipv6_tunnel"),
    (Program::General, "xipvs_general"),
    (Program::Ipv6Tell, "xipvs_ipv6_tell"),
    (Program::Ipv6Icmp, "xipvs_ipv6_icmp"),
    (Program::TunnelError, "xipvs_tunnel_error"),
    (Program::Sip, "xipvs_sip"),
    (Program::Ipv6Sip, "xipvs_ipv6_sip"),
    (Program::Entry, ENTRY),
    (Program::Callback, "xipvs_callback"),
    (Program::Ipv6Callback, "xipvs_ipv6_callback"),
];
/// What packets of the director itself go on in.
const OWN_CONTINUATIONS: &[(Program, &str)] = &[
    (Program::Slow, "xipvs_out"),
    (Program::Ipv6Slow, "xipvs_ipv6_out"),
    (Program::Open, "xipvs_out_open"),
    (Program::Ipv6Open, "xipvs_ipv6_out_open"),
    (Program::Fragment, "xipvs_out_fragment"),
    (Program::Ipv6Fragment, "xipvs_ipv6_out_fragment"),
    (Program::Icmp, "xipvs_out_icmp"),
    (Program::Ipv6Icmp, "xipvs_ipv6_out_icmp"),
    (Program::Tell, "xipvs_out_tell"),
    (Program::Ipv6Tell, "xipvs_ipv6_out_tell"),
    (Program::Tunnel, "xipvs_out_tunnel"),
    (Program::Ipv6Tunnel, "xipvs_ipv6_out_tunnel"),
    (Program::Sip, "xipvs_out_sip"),
    (Program::Ipv6Sip, "xipvs_ipv6_out_sip"),
    (Program::Callback, "xipvs_out_callback"),
    (Program::Ipv6Callback, "xipvs_ipv6_out_callback"),
];
/// The map whose presence says that all is there.
const LAST: &str = SETTINGS;
/// The map of the settings.
const SETTINGS: &str = "SETTINGS";
/// Where things are made, inside the pin directory.
const NEW: &str = "new";
/// What a program of this type answers when all went well: `XDP_PASS`.
const DONE: u32 = 2;

/// The oldest kernel that has all that the programs use.
const FLOOR: (u8, u8) = (6, 1);

/// Loads maps and programs of these sizes, unless they are there; returns where they are.
///
/// # Errors
///
/// One clear line: no rights, no bpffs, a kernel too old, an xipvs built without its program, no memory.
pub fn load(sizes: &Sizes) -> Result<Pins> {
    let pins = Pins::find()?;
    if !pins.is_loaded() {
        let guard = pins.lock()?;
        load_locked(&pins, &guard, sizes)?;
    }
    Ok(pins)
}

/// As [`load`], for who has the lock; returns whether there was anything to do.
pub(super) fn load_locked(pins: &Pins, guard: &Guard, sizes: &Sizes) -> Result<bool> {
    if pins.is_loaded() {
        return Ok(false);
    }
    let made = make(pins, sizes);
    if made.is_err() {
        // What is half made helps nobody; that it cannot be removed either is not the news.
        let _ = pins.remove(guard);
    }
    made.map(|()| true)
}

fn make(pins: &Pins, sizes: &Sizes) -> Result<()> {
    let new = make_room(pins)?;
    let counters = sizes
        .destinations
        .checked_mul(sizes.cpus)
        .ok_or_else(|| failed("cannot load", "too many CPUs for the counters of so many destinations"))?;
    let settings = make_settings(&new)?;
    let mut ebpf = create(&mut EbpfLoader::new(), &settings, |loader| {
        loader
            .map_max_entries("CONNECTIONS", sizes.sets)
            .map_max_entries("ADDRESSES", sizes.sets)
            .map_max_entries("DESTINATIONS", sizes.destinations)
            .map_max_entries("TUNNEL_SOURCES", sizes.destinations)
            .map_max_entries("MASQUERADING", sizes.destinations)
            .map_max_entries("COUNTERS", counters)
            .map_max_entries("RATES", sizes.destinations)
            .map_max_entries("SERVICES", sizes.services)
            .map_max_entries("SERVICE_INDEX", sizes.services)
            .map_max_entries("SERVICE_INDEX_IPV6", sizes.services)
            .map_max_entries("ARENA", sizes.arena_lines)
            .map_max_entries("REASONS", sizes.cpus);
    })?;
    for (name, map) in ebpf.maps() {
        map.pin(new.join(name)).map_err(|error| failed(format!("cannot pin map {name}"), error))?;
    }
    pin_programs(&mut ebpf, &new)?;
    connect(&mut ebpf)?;
    maps::initialise(&new, sizes)?;
    start(&mut ebpf)?;
    move_out(pins, &new, LAST)
}

/// Puts this xipvs's programs in the place of older ones, on every interface; returns whether there were any.
///
/// The maps stay, and with them every connection. A packet sees the old programs or the new; for a moment it
/// may go on from an old one in a new one, which maps of the same layout allow.
pub(super) fn replace(pins: &Pins, _guard: &Guard) -> Result<bool> {
    // Refuses maps of another layout.
    Maps::open(pins.directory())?;
    let pinned = names(pins.directory())?;
    let settings = pins.directory().join(SETTINGS);
    let settings = MapData::from_pin(settings).map_err(|error| failed(SETTINGS, error))?;
    let mut ebpf = create(&mut EbpfLoader::new(), &settings, |loader| {
        for name in &pinned {
            // The maps' names are upper case, nothing else's is.
            if name.starts_with(|first: char| first.is_ascii_uppercase()) {
                loader.map_pin_path(name, pins.directory().join(name));
            }
        }
    })?;
    if ebpf.programs().all(|(name, program)| is_same(pins, name, program)) {
        return Ok(false);
    }
    let new = make_room(pins)?;
    pin_programs(&mut ebpf, &new)?;
    connect(&mut ebpf)?;
    for name in pinned.iter().filter(|name| name.starts_with("link-")) {
        let failed = |error: &dyn std::fmt::Display| failed("cannot replace the program", error);
        let link = PinnedLink::from_pin(pins.directory().join(name)).map_err(|error| failed(&error))?;
        let link = FdLink::from(link);
        let old = link.info().map_err(|error| failed(&error))?.program_id();
        // By name, as it may be one that was put there when this was cut short.
        let is_of_veth = |program: ProgramInfo| {
            program.id() == old && program.name_as_str().is_some_and(|name| name == ENTRY_OF_VETH)
        };
        let entry = if loaded_programs().flatten().any(is_of_veth) { ENTRY_OF_VETH } else { ENTRY };
        let link = XdpLink::try_from(link).map_err(|error| failed(&error))?;
        match program(&mut ebpf, entry)?.attach_to_link(link) {
            Ok(_) => {}
            // Its interface is gone.
            Err(ProgramError::SyscallError(error))
                if error.io_error.raw_os_error() == Some(libc::ENOLINK) => {}
            Err(error) => return Err(failed(&error)),
        }
    }
    start(&mut ebpf)?;
    // The entry last: as long as it is the old one, the next `attach` does all of this again.
    move_out(pins, &new, ENTRY)?;
    Ok(true)
}

/// Whether the pinned program of this name is this very program.
fn is_same(pins: &Pins, name: &str, program: &AnyProgram) -> bool {
    match (ProgramInfo::from_pin(pins.directory().join(name)), program.info()) {
        (Ok(pinned), Ok(program)) => pinned.tag() == program.tag(),
        _ => false,
    }
}

/// Makes the directory where things are made, empty.
fn make_room(pins: &Pins) -> Result<std::path::PathBuf> {
    let new = pins.directory().join(NEW);
    if new.exists() {
        fs::remove_dir_all(&new).map_err(|error| refused(new.display(), &error))?;
    }
    fs::create_dir(&new).map_err(|error| refused(new.display(), &error))?;
    Ok(new)
}

/// Moves what was made to where it belongs, `last` after everything else.
fn move_out(pins: &Pins, new: &Path, last: &str) -> Result<()> {
    let mut made = names(new)?;
    made.sort_by_key(|name| name == last);
    made.iter()
        .try_for_each(|name| fs::rename(new.join(name), pins.directory().join(name)))
        .and_then(|()| fs::remove_dir(new))
        .map_err(|error| refused(new.display(), &error))
}

fn names(directory: &Path) -> Result<Vec<String>> {
    fs::read_dir(directory)
        .and_then(|entries| {
            entries.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned())).collect()
        })
        .map_err(|error| refused(directory.display(), &error))
}

/// Makes the map of the settings, whose address the programs know from the beginning, and pins it.
fn make_settings(directory: &Path) -> Result<MapData> {
    let size = size_of::<SettingsElement>() as u32;
    let array = aya_obj::Map::new_from_params(BPF_MAP_TYPE_ARRAY as u32, 4, size, 1, BPF_F_MMAPABLE);
    let map = MapData::create(array, SETTINGS, None).map_err(|error| cannot_load(&error.into()))?;
    map.pin(directory.join(SETTINGS)).map_err(|error| failed(format!("cannot pin map {SETTINGS}"), error))?;
    Ok(map)
}

/// Makes what the loader is set up for: the maps but the settings, then the programs.
fn create<'a>(
    loader: &mut EbpfLoader<'a>,
    settings: &MapData,
    set_up: impl FnOnce(&mut EbpfLoader<'a>),
) -> Result<Ebpf> {
    let object = OBJECT.ok_or_else(|| {
        failed(
            "cannot load",
            "this xipvs was built without its packet program (`cargo xtask build` builds it)",
        )
    })?;
    if let Ok(kernel) = KernelVersion::current()
        && kernel < KernelVersion::new(FLOOR.0, FLOOR.1, 0)
    {
        let (major, minor) = FLOOR;
        return Err(failed("kernel too old", format!("xipvs needs Linux {major}.{minor}")));
    }
    // The programs ask nothing about the kernel's types, so that reading them would only take time.
    loader.btf(None);
    set_up(loader);
    let object = with_settings(object, settings.fd().as_fd());
    let mut ebpf = loader.load(object.as_bytes()).map_err(|error| cannot_load(&error))?;
    for (name, program) in ebpf.programs_mut() {
        let loaded = match program {
            AnyProgram::Xdp(program) => program.load(),
            AnyProgram::SchedClassifier(program) => program.load(),
            _ => return Err(failed(name, "a program of an unknown kind")),
        };
        loaded.map_err(|error| match error {
            ProgramError::LoadError { io_error, verifier_log } => {
                cannot_verify(name, &io_error, &verifier_log.to_string())
            }
            other => failed(format!("cannot load program {name}"), other),
        })?;
    }
    Ok(ebpf)
}

/// Words what the kernel has against a program, with the last thing that its verifier said.
fn cannot_verify(name: &str, error: &std::io::Error, log: &str) -> Error {
    // What it adds up in the end is not why.
    let sums = ["processed ", "verification time ", "stack depth "];
    let said = log.lines().rfind(|line| !line.is_empty() && !sums.iter().any(|sum| line.starts_with(sum)));
    let why = format!("cannot load program {name} ({})", said.unwrap_or("the kernel says no more"));
    match error.raw_os_error() {
        // The verifier's own word for what a program may not do, whoever loads it.
        Some(number @ libc::EACCES) => failed(why, crate::director::errno_text(number)),
        _ => refused(why, error),
    }
}

/// Words what making maps failed with.
fn cannot_load(error: &EbpfError) -> Error {
    use aya::maps::MapError;
    match error {
        EbpfError::MapError(MapError::CreateError { name, io_error }) => {
            refused(format!("cannot make map {name}"), io_error)
        }
        other => failed("cannot load", other),
    }
}

fn pin_programs(ebpf: &mut Ebpf, directory: &Path) -> Result<()> {
    for (name, program) in ebpf.programs_mut() {
        program
            .pin(directory.join(name))
            .map_err(|error| failed(format!("cannot pin program {name}"), error))?;
    }
    Ok(())
}

fn program<'a>(ebpf: &'a mut Ebpf, name: &str) -> Result<&'a mut Xdp> {
    ebpf.program_mut(name)
        .ok_or_else(|| failed(name, "no such program"))?
        .try_into()
        .map_err(|error: ProgramError| failed(name, error))
}

/// Tells the programs where they go on.
fn connect(ebpf: &mut Ebpf) -> Result<()> {
    fill(ebpf, "PROGRAMS", &CONTINUATIONS)?;
    fill(ebpf, "OWN_PROGRAMS", OWN_CONTINUATIONS)
}

/// Puts programs into the slots of an array.
fn fill(ebpf: &mut Ebpf, array: &str, programs: &[(Program, &str)]) -> Result<()> {
    let no_slots = |error: &dyn std::fmt::Display| failed(array, error);
    let map: Map = ebpf.take_map(array).ok_or_else(|| no_slots(&"no such map"))?;
    let mut slots = ProgramArray::try_from(map).map_err(|error| no_slots(&error))?;
    for (slot, name) in programs {
        let program = ebpf.program(name).ok_or_else(|| failed(name, "no such program"))?;
        let program = program.fd().map_err(|error| failed(name, error))?;
        slots.set(*slot as u32, program, 0).map_err(|error| no_slots(&error))?;
    }
    Ok(())
}

/// Arms the timer of the sweep.
fn start(ebpf: &mut Ebpf) -> Result<()> {
    let mut options = TestRunOptions::new();
    options.data_in = Some(&[0; 64]);
    let result = program(ebpf, START)?.test_run(options).map_err(|error| failed(START, error))?;
    match result.return_value {
        DONE => Ok(()),
        _ => Err(failed("cannot start the expiry of connections", "the kernel gave no timer")),
    }
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;

    #[test]
    fn a_program_that_is_refused_is_not_a_lack_of_rights() {
        let said =
            |number, log| cannot_verify("xipvs", &io::Error::from_raw_os_error(number), log).to_string();
        let log = "1: exit\ninvalid access to packet\nverification time 9 usec\nstack depth 8\nprocessed 2 insns\n\n";
        assert_eq!(
            said(libc::EACCES, log),
            "cannot load program xipvs (invalid access to packet): Permission denied"
        );
        assert_eq!(said(libc::EPERM, ""), Error::PermissionDenied.to_string());
        assert!(said(libc::E2BIG, "").contains("the kernel says no more"));
    }
}
