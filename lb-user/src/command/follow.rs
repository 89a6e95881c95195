//! `xipvs mirror`, `diff` and `serve`: the XDP director's table and that of kernel IPVS, side by side.
//!
//! What to change is [`xipvs::mirror`]'s to say; here is who is the source, what is told, and when to stop.

use std::io::{self, Write};
use std::time::Duration;

use anyhow::Result;
use xipvs::director;
use xipvs::director::kernel::Kernel;
use xipvs::mirror::{self, Follower, Pair};
use xipvs::plan::{Applied, describe};

use super::exit::DIFFERENT;
use super::{open, signals};

/// Which of the two tables is the one to go by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Direction {
    /// The XDP director's; kernel IPVS follows.
    ToKernel,
    /// Kernel IPVS's; the XDP director follows.
    FromKernel,
}

impl Direction {
    /// Opens source and target.
    fn open(self) -> director::Result<Pair> {
        Ok(match self {
            Self::ToKernel => (Box::new(open::xdp_if_loaded()?), Box::new(Kernel::open()?)),
            Self::FromKernel => (Box::new(Kernel::open()?), Box::new(open::xdp()?)),
        })
    }
}

/// Carries out `xipvs mirror`: 0 when the tables are equal now, 1 when something was refused, which is named.
pub fn mirror_once(direction: Direction, to: &mut dyn Write) -> Result<u8> {
    let (mut source, mut target) = direction.open()?;
    let applied = mirror::mirror(source.as_mut(), target.as_mut())?;
    tell(&applied, to)?;
    Ok(if applied.refused.is_empty() { 0 } else { DIFFERENT })
}

/// Carries out `xipvs diff`: writes what `mirror` would change, and returns 1 when that is anything.
pub fn diff(direction: Direction, to: &mut dyn Write) -> Result<u8> {
    let (mut source, mut target) = direction.open()?;
    let changes = mirror::diff(source.as_mut(), target.as_mut())?;
    describe(&changes, &target.table()?, to)?;
    Ok(if changes.is_empty() { 0 } else { DIFFERENT })
}

/// Carries out `xipvs serve`: follows until SIGTERM or SIGINT, and returns 0 then.
///
/// All state is in the tables; one that is killed and started again goes on where it was.
pub fn serve(direction: Direction, interval: Duration, to: &mut dyn Write) -> Result<u8> {
    // Before the directors are opened, which may start threads.
    let stop = signals::to_stop()?;
    // A first failure is the operator's to see at once; later ones may pass.
    drop(direction.open()?);

    let mut tell = |news: director::Result<Applied>| {
        // Whoever read this may have gone; that is no reason to stop.
        let _ = match news {
            Ok(applied) if applied.made.is_empty() && applied.refused.is_empty() => {
                writeln!(io::stderr(), "xipvs: the tables are equal again")
            }
            Ok(applied) => tell(&applied, to),
            Err(error) => writeln!(io::stderr(), "xipvs: {error}; trying again"),
        };
    };
    let mut wait = || !signals::came(&stop, interval);
    Follower::default().follow(&mut || direction.open(), &mut tell, &mut wait);
    Ok(0)
}

/// Writes what was changed to `to`, a line a change, and what was not to stderr.
fn tell(applied: &Applied, to: &mut dyn Write) -> io::Result<()> {
    for change in &applied.made {
        writeln!(to, "{change}")?;
    }
    to.flush()?;
    for refused in &applied.refused {
        writeln!(io::stderr(), "xipvs: not mirrored: {refused}")?;
    }
    Ok(())
}
