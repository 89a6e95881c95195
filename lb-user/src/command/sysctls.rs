//! `xipvs set`: IPVS's sysctls, set or listed.

use std::io::Write;

use anyhow::{Context, Result, anyhow};
use xipvs::director::xdp::sysctl;

use super::open;

/// Sets sysctls, or lists them.
pub fn set(settings: &[String], to: &mut dyn Write) -> Result<()> {
    let mut director = open::xdp()?;
    let mut wanted = Vec::new();
    for setting in settings {
        let (name, value) = setting.split_once('=').with_context(|| format!("{setting}: not NAME=VALUE"))?;
        let value: u32 = value.trim().parse().map_err(|_| anyhow!("{setting}: {value:?} is not a number"))?;
        sysctl::check(name.trim(), value)?;
        wanted.push((name.trim(), value));
    }
    // All of them or none.
    for (name, value) in wanted {
        director.set_sysctl(name, value)?;
    }
    if settings.is_empty() {
        for (sysctl, value) in director.sysctls()? {
            let text = format!("{} = {value}", sysctl.name());
            writeln!(to, "{text:<32} {}", sysctl.explanation())?;
        }
    }
    Ok(())
}
