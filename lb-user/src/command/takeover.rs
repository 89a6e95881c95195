//! `xipvs adopt` and `xipvs hand-over`: live connections go from kernel IPVS to the XDP director, and back.

use std::io::{self, Write};

use anyhow::Result;
use xipvs::director::Director;
use xipvs::director::kernel::Kernel;
use xipvs::director::xdp::sync::Told;
use xipvs::hand_over::{HandedOver, hand_over};

use super::exit::DIFFERENT;
use super::open;

/// Carries out `xipvs adopt`: 0 when every connection is in the XDP table, 1 when some were left, which is told.
pub fn adopt(to: &mut dyn Write) -> Result<u8> {
    let mut xdp = open::xdp()?;
    let takeover = xdp.adopt(&Kernel::open()?.connections()?)?;
    writeln!(to, "{} taken over, {} known", connections(takeover.taken), takeover.known)?;
    for (reason, count) in &takeover.left {
        writeln!(io::stderr(), "xipvs: left with the kernel: {}: {reason}", connections(*count))?;
    }
    Ok(if takeover.left.is_empty() { 0 } else { DIFFERENT })
}

/// Carries out `xipvs hand-over`: 0 when kernel IPVS has every connection, 1 when it lacks some, which is told.
pub fn hand_over_all(to: &mut dyn Write) -> Result<u8> {
    let (records, lost) = open::xdp_if_loaded()?.sync_records()?;
    let records: Vec<_> = records.iter().map(Told::record).collect();
    let HandedOver { arrived, missing } = hand_over(&records, &mut Kernel::open()?)?;
    writeln!(to, "{} handed over", connections(arrived))?;
    for (reason, count) in [
        (
            "of deleted destinations, of ones of the other family, or templates whose Call-ID is forgotten",
            lost,
        ),
        ("not taken", missing),
    ] {
        if count > 0 {
            writeln!(io::stderr(), "xipvs: not handed over: {}: {reason}", connections(count))?;
        }
    }
    Ok(if lost + missing == 0 { 0 } else { DIFFERENT })
}

fn connections(count: usize) -> String {
    if count == 1 { "1 connection".into() } else { format!("{count} connections") }
}
