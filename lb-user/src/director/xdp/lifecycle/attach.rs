//! Attaching the program to interfaces and taking it off.
//!
//! An interface that is attached has a link of the kernel (`bpf_link`), pinned as `link-INDEX`: the name of an
//! interface may change, and may have dots, which bpffs does not take.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use aya::programs::links::{FdLink, PinnedLink};
use aya::programs::xdp::XdpMode;
use aya::programs::{ProgramError, Xdp};
use aya_obj::programs::XdpAttachType;

use super::classifiers::{LOOPBACK, Unseen};
use super::interface::{self, Interface, Kind, Mode};
use super::load::{self, ENTRY, ENTRY_OF_VETH};
use super::pins::Pins;
use super::{classifiers, failed, refused, sysctl};
use crate::director::xdp::daemon::Daemons;
use crate::director::xdp::routing::Routing;
use crate::director::xdp::sizes::Sizes;
use crate::director::xdp::{maps::Maps, neighbour};
use crate::director::{Error, Result, errno_text};

/// The first part of the names of pinned links.
const LINK: &str = "link-";

/// What became of an interface that was to be attached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attached {
    /// Its name.
    pub interface: String,
    /// How the program is attached.
    pub mode: Mode,
    /// It was attached before.
    pub already: bool,
    /// Why the driver did not take the program, where it was tried.
    pub fallback: Option<Fallback>,
    /// Others bring the interface its packets, which GRO may have put together before.
    pub is_upper: bool,
}

/// Why an interface was attached in generic mode though native was wanted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("its driver does not take XDP programs ({0})")]
pub struct Fallback(String);

/// What attaching did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attachment {
    /// The interfaces, in the order in which they were named.
    pub interfaces: Vec<Attached>,
    /// Older programs were replaced.
    pub replaced: bool,
    /// Where what the director itself sends could not be seen to.
    pub unseen: Vec<Unseen>,
}

/// How to attach.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Manner {
    /// Not in the driver: that is not even asked.
    pub generic: bool,
    /// Senders at the other ends of veths compute their checksums, so that nothing has to be looked at.
    pub whole_checksums: bool,
}

/// Attaches the program to interfaces by name, loading it and making maps if need be, and replaces older programs.
///
/// `sizes` are those of the maps if they are made now; with `fixed`, those that are there must have room for as many
/// connections. All interfaces are attached or, after an error, none of those that were not before.
///
/// # Errors
///
/// As of [`load()`](super::load()), or an interface that is not there or has another program.
pub fn attach(names: &[String], manner: Manner, sizes: &Sizes, fixed: bool) -> Result<Attachment> {
    let pins = Pins::find()?;
    let mut routing = Routing::open()?;
    let interfaces = interface::list(&mut routing)?;
    // Before anything is loaded for it.
    names.iter().try_for_each(|name| find(&interfaces, name).map(drop))?;

    let guard = pins.lock()?;
    let fresh = load::load_locked(&pins, &guard, sizes)?;
    if !fresh && fixed {
        let sets = Maps::open(pins.directory())?.settings().set_mask + 1;
        if sets != sizes.sets {
            let why = "the connection table is there already and keeps its size until `xipvs detach`";
            return Err(failed("--connections", why));
        }
    }
    let replaced = !fresh && load::replace(&pins, &guard)?;
    // Again, because other programs may be attached now.
    let interfaces = interface::list(&mut routing)?;
    let mut wanted: Vec<&Interface> = Vec::new();
    for name in names {
        let interface = find(&interfaces, name)?;
        if !wanted.iter().any(|other| other.index == interface.index) {
            wanted.push(interface);
        }
    }
    forget_missing(&pins, &interfaces)?;

    let mut made: Vec<Attached> = Vec::new();
    for interface in wanted {
        match attach_one(&pins, interface, manner) {
            Ok(attached) => made.push(attached),
            Err(error) => {
                for new in made.iter().filter(|new| !new.already) {
                    // The first error is the one to tell.
                    let _ =
                        find(&interfaces, &new.interface).and_then(|it| detach_one(&pins, &mut routing, it));
                }
                return Err(error);
            }
        }
    }
    let unseen = put_behind(&pins, &mut routing, &interfaces)?;
    interface::tell_ways(pins.directory(), &mut routing)?;
    Ok(Attachment { interfaces: made, replaced, unseen })
}

/// Puts the programs for what the director itself sends on all attached interfaces and on `lo`, by which its connections to
/// its own virtual addresses go, and those for what XDP cannot send, in the place of older ones; where that could not be done.
fn put_behind(pins: &Pins, routing: &mut Routing, interfaces: &[Interface]) -> Result<Vec<Unseen>> {
    let linked = linked(pins);
    let mut unseen = Vec::new();
    for Interface { index, name, .. } in interfaces {
        if *index == LOOPBACK {
            sysctl::switch_on(pins, *index, name)?;
        } else if !linked.contains(index) {
            continue;
        }
        unseen.extend(classifiers::put_on(pins, routing, *index, name).err());
    }
    Ok(unseen)
}

/// Takes the programs off `lo` when no interface is attached any more.
fn leave_loopback(pins: &Pins, routing: &mut Routing, interfaces: &[Interface]) -> Result<()> {
    match interfaces.iter().find(|interface| interface.index == LOOPBACK) {
        Some(loopback) if linked(pins).is_empty() => detach_one(pins, routing, loopback),
        _ => Ok(()),
    }
}

fn find<'a>(interfaces: &'a [Interface], name: &str) -> Result<&'a Interface> {
    interfaces
        .iter()
        .find(|interface| interface.name == name)
        .ok_or_else(|| failed(format!("interface {name}"), "no such device"))
}

fn link_pin(pins: &Pins, index: u32) -> PathBuf {
    pins.directory().join(format!("{LINK}{index}"))
}

/// How our program is attached to an interface, if it is.
fn mode_of(pins: &Pins, interface: &Interface) -> Option<Mode> {
    let link = PinnedLink::from_pin(link_pin(pins, interface.index)).ok()?;
    let ours = FdLink::from(link).info().ok()?.program_id();
    interface.program.filter(|(program, _)| *program == ours).map(|(_, mode)| mode)
}

fn attach_one(pins: &Pins, interface: &Interface, manner: Manner) -> Result<Attached> {
    let name = &interface.name;
    let done = |mode, already, fallback| Attached {
        interface: name.clone(),
        mode,
        already,
        fallback,
        is_upper: interface.is_upper,
    };
    if let Some(mode) = mode_of(pins, interface) {
        // A kill may have come between switching on and attaching, or somebody may have switched off since.
        sysctl::switch_on(pins, interface.index, name)?;
        return Ok(done(mode, true, None));
    }
    let pin = link_pin(pins, interface.index);
    remove_pin(&pin)?;
    sysctl::switch_on(pins, interface.index, name)?;
    let attached = (|| {
        let open = |name| {
            Xdp::from_pin(pins.directory().join(name), XdpAttachType::Interface)
                .map_err(|error| failed(name, error))
        };
        if !manner.generic {
            let looks = interface.kind == Kind::Pair && !manner.whole_checksums;
            let mut program = open(if looks { ENTRY_OF_VETH } else { ENTRY })?;
            match attach_in(&mut program, interface, XdpMode::Driver, &pin) {
                Ok(()) => return Ok(done(Mode::Native, false, None)),
                Err(error) if error.is_for_another() => return Err(occupied(interface)),
                Err(error) => {
                    let why = Fallback(error.why);
                    attach_in(&mut open(ENTRY)?, interface, XdpMode::Skb, &pin)
                        .map_err(|error| cannot_attach(interface, &error))?;
                    return Ok(done(Mode::Generic, false, Some(why)));
                }
            }
        }
        attach_in(&mut open(ENTRY)?, interface, XdpMode::Skb, &pin)
            .map_err(|error| cannot_attach(interface, &error))?;
        Ok(done(Mode::Generic, false, None))
    })();
    if attached.is_err() {
        let _ = sysctl::restore(pins, interface.index, Some(name));
    }
    attached
}

/// Attaches the program in one mode and pins the link, which would go with this process otherwise.
fn attach_in(
    program: &mut Xdp,
    interface: &Interface,
    mode: XdpMode,
    pin: &Path,
) -> std::result::Result<(), Refused> {
    let link = program.attach_to_if_index(interface.index, mode)?;
    let link: FdLink = program.take_link(link)?.try_into().map_err(Refused::because)?;
    link.pin(pin).map(drop).map_err(Refused::because)
}

/// Why the program was not attached.
struct Refused {
    number: Option<i32>,
    why: String,
}

impl Refused {
    fn because(error: impl std::fmt::Display) -> Self {
        Self { number: None, why: error.to_string() }
    }

    /// Whether another program is attached.
    fn is_for_another(&self) -> bool {
        matches!(self.number, Some(libc::EBUSY | libc::EEXIST))
    }
}

impl From<ProgramError> for Refused {
    fn from(error: ProgramError) -> Self {
        let number = match &error {
            ProgramError::SyscallError(error) => error.io_error.raw_os_error(),
            _ => None,
        };
        Self { number, why: number.map_or_else(|| error.to_string(), errno_text) }
    }
}

fn occupied(interface: &Interface) -> Error {
    failed(format!("interface {}", interface.name), "another XDP program is attached to it")
}

fn cannot_attach(interface: &Interface, error: &Refused) -> Error {
    if error.is_for_another() {
        return occupied(interface);
    }
    failed(format!("cannot attach to {}", interface.name), &error.why)
}

fn remove_pin(pin: &Path) -> Result<()> {
    match fs::remove_file(pin) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(refused(pin.display(), &error)),
        _ => Ok(()),
    }
}

fn detach_one(pins: &Pins, routing: &mut Routing, interface: &Interface) -> Result<()> {
    // First, as an interface without a link is not attached any more, whatever else it has.
    classifiers::take_off(pins, routing, interface.index)?;
    remove_pin(&link_pin(pins, interface.index))?;
    sysctl::restore(pins, interface.index, Some(&interface.name))
}

/// Indices of the interfaces that have a link.
fn linked(pins: &Pins) -> Vec<u32> {
    let entries = fs::read_dir(pins.directory()).into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.strip_prefix(LINK)?.parse().ok()).collect()
}

/// Forgets what is left of interfaces that are gone.
fn forget_missing(pins: &Pins, interfaces: &[Interface]) -> Result<()> {
    let is_gone = |index: &u32| !interfaces.iter().any(|interface| interface.index == *index);
    for index in linked(pins).into_iter().chain(sysctl::remembered(pins)).filter(is_gone) {
        remove_pin(&link_pin(pins, index))?;
        classifiers::forget(pins, index)?;
        sysctl::restore(pins, index, None)?;
    }
    Ok(())
}

/// An interface that a program is attached to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listed {
    /// Its name.
    pub interface: String,
    /// How the program for what comes in is attached; on `lo` there is none.
    pub mode: Option<Mode>,
    /// Whether what the director itself sends out of it is seen.
    pub sees_own: bool,
}

/// Lists the interfaces that programs are attached to.
///
/// # Errors
///
/// When the interfaces cannot be listed.
pub fn attached(pins: &Pins) -> Result<Vec<Listed>> {
    let mut routing = Routing::open()?;
    let interfaces = interface::list(&mut routing)?;
    let listed = |interface: Interface| {
        let mode = mode_of(pins, &interface);
        let sees_own = classifiers::is_on(pins, &mut routing, interface.index);
        (mode.is_some() || sees_own).then_some(Listed { interface: interface.name, mode, sees_own })
    };
    Ok(interfaces.into_iter().filter_map(listed).collect())
}

/// Takes the program off interfaces and gives them their settings back; maps and connections stay.
///
/// # Errors
///
/// When one of the interfaces is not there or not attached: then nothing is done.
pub fn detach(names: &[String]) -> Result<()> {
    let pins = Pins::find()?;
    let mut routing = Routing::open()?;
    let interfaces = interface::list(&mut routing)?;
    let wanted: Vec<&Interface> = names.iter().map(|name| find(&interfaces, name)).collect::<Result<_>>()?;
    let guard = pins.lock_existing()?;
    for interface in &wanted {
        if guard.is_none() || !link_pin(&pins, interface.index).exists() {
            return Err(failed(format!("interface {}", interface.name), "not attached"));
        }
    }
    wanted.into_iter().try_for_each(|interface| detach_one(&pins, &mut routing, interface))?;
    leave_loopback(&pins, &mut routing, &interfaces)?;
    // Some drivers send what XDP redirects only while they have a program themselves.
    interface::tell_ways(pins.directory(), &mut routing)
}

/// Takes everything away: sync daemons, programs, maps with the table and its connections, neighbours, settings.
///
/// # Errors
///
/// When there is nothing, or something cannot be removed.
pub fn detach_all() -> Result<()> {
    let pins = Pins::find()?;
    // Before the table is locked, which they may be waiting for. One that starts meanwhile ends by itself.
    Daemons::of(pins.directory()).stop_all()?;
    let Some(guard) = pins.lock_existing()? else {
        return Err(Error::Unavailable("nothing is attached or loaded in this network namespace".into()));
    };
    let mut routing = Routing::open()?;
    let interfaces = interface::list(&mut routing)?;
    // The programs first, so that nothing is forwarded by half a director.
    for index in linked(&pins) {
        classifiers::take_off(&pins, &mut routing, index)?;
        remove_pin(&link_pin(&pins, index))?;
    }
    classifiers::take_off(&pins, &mut routing, LOOPBACK)?;
    for index in sysctl::remembered(&pins) {
        let interface = interfaces.iter().find(|interface| interface.index == index);
        sysctl::restore(&pins, index, interface.map(|interface| interface.name.as_str()))?;
    }
    neighbour::forget_all(&mut routing)?;
    pins.remove(&guard)
}
