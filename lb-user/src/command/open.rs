//! The XDP director, opened for a command.

use xipvs::director;
use xipvs::director::xdp::Xdp;
use xipvs::director::xdp::lifecycle::{self, Pins};
use xipvs::director::xdp::sizes::Sizes;

/// Opens the XDP director, after loading it if need be, as ipvsadm loads the module.
pub fn xdp() -> director::Result<Xdp> {
    Xdp::open(lifecycle::load(&sizes()?)?.directory())
}

/// The sizes of tables that nobody has chosen.
pub fn sizes() -> director::Result<Sizes> {
    lifecycle::possible_cpus().map(Sizes::new)
}

/// Opens the XDP director as a source: where it is not loaded there is nothing to go by, which is not the same as
/// an empty table.
pub fn xdp_if_loaded() -> director::Result<Xdp> {
    let pins = Pins::find()?;
    if !pins.is_loaded() {
        let text = "the XDP director is not loaded in this network namespace";
        return Err(director::Error::Unavailable(text.into()));
    }
    Xdp::open(pins.directory())
}
