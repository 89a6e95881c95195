//! `xipvs attach`: what happened, in the operator's words.

use anyhow::Result;
use xipvs::director::xdp::lifecycle::{self, Manner, Mode};

use super::open;

/// Attaches the program to interfaces, with room for so many connections if that is told, and warns of what will not be fast
/// or not be seen.
pub fn carry_out(interfaces: &[String], manner: Manner, connections: Option<u32>) -> Result<()> {
    let usual = open::sizes()?;
    let sizes = connections.map_or(usual, |connections| usual.with_connections(connections));
    let attachment = lifecycle::attach(interfaces, manner, &sizes, connections.is_some())?;
    for one in attachment.interfaces {
        let name = &one.interface;
        if one.already {
            eprintln!("xipvs: {name} was attached already ({})", one.mode.name());
        }
        if one.is_upper && one.mode == Mode::Generic {
            eprintln!(
                "xipvs: warning: {name} may get several packets as one (GRO), which go no further: attach the interfaces that \
                 bring them, or switch GRO off there"
            );
        }
        if let Some(why) = one.fallback {
            eprintln!(
                "xipvs: warning: {name} is attached in {} mode, which is slower: {why}",
                Mode::Generic.name()
            );
        }
    }
    for unseen in attachment.unseen {
        eprintln!("xipvs: warning: {unseen}");
    }
    if attachment.replaced {
        eprintln!("xipvs: replaced an older program; connections stay");
    }
    Ok(())
}
