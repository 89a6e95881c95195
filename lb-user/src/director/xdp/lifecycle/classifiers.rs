//! The programs behind XDP: on the way out of an interface they see what the director itself sends, on the way in they send
//! what XDP cannot. A `clsact` qdisc with a filter each.
//!
//! Netlink attaches them, and not a link, which there is since Linux 6.6 only; they live with the qdisc, without any process.
//! A qdisc that somebody else made stays; that we made one is remembered in a file, and it stays too if others use it since.

use std::fs;
use std::io::ErrorKind;
use std::os::fd::{AsFd, AsRawFd};
use std::path::PathBuf;

use aya::programs::{ProgramInfo, SchedClassifier};
use rtnetlink::packet_route::tc::{
    TcAttribute, TcBpfFlags, TcFilterBpfOption, TcHandle, TcHeader, TcMessage, TcOption,
};

use super::pins::Pins;
use super::refused;
use crate::director::Result;
use crate::director::xdp::routing::{Refusal, Routing};

/// The programs on the way out, in the order in which they see a packet.
const OUT: [&str; 2] = ["xipvs_out", "xipvs_ipv6_out"];
/// The program on the way in.
const IN: &str = "xipvs_in";
/// `lo`, in every namespace. XDP passes nothing there.
pub const LOOPBACK: u32 = 1;
/// Where they stand among the filters of a qdisc.
const PRIORITY: u16 = 10;
/// Number of the first one among those of this priority.
const FIRST: u16 = 0x7669;
/// In network order, any protocol.
const ETH_P_ALL: u16 = 0x0003_u16.to_be();

/// Why packets of the director itself are not seen on an interface.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("what the director itself sends on {interface} is not balanced: {why}")]
pub struct Unseen {
    /// Its name.
    pub interface: String,
    why: String,
}

/// Puts the programs on an interface, in the place of older ones.
pub fn put_on(
    pins: &Pins,
    routing: &mut Routing,
    index: u32,
    interface: &str,
) -> std::result::Result<(), Unseen> {
    let unseen = |why: &dyn std::fmt::Display| Unseen { interface: interface.into(), why: why.to_string() };
    make_qdisc(pins, routing, index).map_err(|error| unseen(&error))?;
    for (name, header) in filters(index) {
        let program =
            SchedClassifier::from_pin(pins.directory().join(name)).map_err(|error| unseen(&error))?;
        let number_of_file = program.fd().map_err(|error| unseen(&error))?.as_fd().as_raw_fd();
        let options = [
            TcFilterBpfOption::ProgFd(number_of_file.cast_unsigned()),
            TcFilterBpfOption::ProgName(name.into()),
            TcFilterBpfOption::Flags(TcBpfFlags::DirectAction),
        ];
        let attributes = vec![
            TcAttribute::Kind("bpf".into()),
            TcAttribute::Options(options.into_iter().map(TcOption::Bpf).collect()),
        ];
        routing.put_filter(header, attributes).map_err(|error| unseen(&error))?;
    }
    Ok(())
}

/// Takes the programs off an interface, and the qdisc if that is ours and nobody else uses it.
pub fn take_off(pins: &Pins, routing: &mut Routing, index: u32) -> Result<()> {
    for (_, header) in filters(index) {
        // Without a qdisc, or with another in its place, there is no filter.
        let _ = routing.delete_filter(header);
    }
    let is_used =
        |routing: &mut Routing, out| routing.filters(index, out).map_or(true, |all| !all.is_empty());
    if record(pins, index).exists() && !is_used(routing, true) && !is_used(routing, false) {
        // Somebody may have been faster.
        let _ = routing.delete_clsact(index);
    }
    forget(pins, index)
}

/// Forgets what is remembered of an interface.
pub fn forget(pins: &Pins, index: u32) -> Result<()> {
    let record = record(pins, index);
    match fs::remove_file(&record) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(refused(record.display(), &error)),
        _ => Ok(()),
    }
}

/// Whether the programs are on the way out of an interface.
pub fn is_on(pins: &Pins, routing: &mut Routing, index: u32) -> bool {
    let Ok(filters) = routing.filters(index, true) else { return false };
    OUT.iter().all(|name| {
        let program = ProgramInfo::from_pin(pins.directory().join(name));
        program.is_ok_and(|program| filters.iter().any(|filter| runs(filter, program.id())))
    })
}

fn runs(filter: &TcMessage, program: u32) -> bool {
    filter.attributes.iter().any(|attribute| match attribute {
        TcAttribute::Options(options) => options.contains(&TcOption::Bpf(TcFilterBpfOption::ProgId(program))),
        _ => false,
    })
}

fn make_qdisc(pins: &Pins, routing: &mut Routing, index: u32) -> std::result::Result<(), String> {
    let record = record(pins, index);
    let is_new = !record.exists();
    if is_new {
        // First, so that a kill in between leaves no qdisc that nobody removes.
        fs::create_dir_all(pins.records())
            .and_then(|()| fs::write(&record, ""))
            .map_err(|error| format!("{}: {error}", record.display()))?;
    }
    let made = routing.add_clsact(index);
    if made.is_err() && is_new {
        // It is another's, or there is none. That the record stays is not the news.
        let _ = fs::remove_file(&record);
    }
    match made {
        Ok(()) | Err(Refusal::Errno(libc::EEXIST)) => Ok(()),
        Err(error) => Err(error.to_string()),
    }
}

/// The file whose presence says that an interface's qdisc is ours.
fn record(pins: &Pins, index: u32) -> PathBuf {
    pins.records().join(format!("clsact-{index}"))
}

/// The programs of an interface, and what names the filter of each.
fn filters(index: u32) -> impl Iterator<Item = (&'static str, TcHeader)> {
    let inward = (index != LOOPBACK).then(|| (IN, header(index, TcHandle::MIN_INGRESS, FIRST)));
    let outward = OUT.into_iter().zip(FIRST..);
    inward
        .into_iter()
        .chain(outward.map(move |(name, number)| (name, header(index, TcHandle::MIN_EGRESS, number))))
}

fn header(index: u32, direction: u16, number: u16) -> TcHeader {
    TcHeader {
        index: index.cast_signed(),
        handle: TcHandle { major: 0, minor: number },
        parent: TcHandle { major: 0xffff, minor: direction },
        info: u32::from(PRIORITY) << 16 | u32::from(ETH_P_ALL),
        ..TcHeader::default()
    }
}
