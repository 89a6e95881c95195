//! IPVS's sysctls on the XDP director: listed, set, or refused by name.
//!
//! IPVS counterpart: `/proc/sys/net/ipv4/vs`.

use std::mem::offset_of;

use lb_common::defence::{self, Fill};
use lb_common::settings::Settings;
use lb_common::sysctl::Sysctl;

use super::{Xdp, repair};
use crate::director::{Error, Result};

/// What IPVS has and the packet program has not, with the reason.
const REFUSED: &[(&str, &str)] = &[
    ("backup_only", "a director that shall not forward is one that is not attached"),
    ("conntrack", "packets do not reach connection tracking"),
    ("debug_level", "the program logs nothing"),
    ("ignore_tunneled", "nothing is marked for others to ignore"),
    ("run_estimation", "counting and rates cost the same either way"),
    ("snat_reroute", "answers are routed by the packet program"),
    ("sync_ports", "one socket is enough for what is told once a second"),
    ("sync_qlen_max", "nothing is queued: what is to be told is read from the table"),
    ("sync_sock_size", "the daemon makes its sockets' buffers large enough"),
    ("sync_threshold", "packets are not counted for it: the daemon looks at what became of a connection"),
    ("sync_version", "version 1 is written, versions 1 and 0 are read"),
];

impl Xdp {
    /// Every sysctl with its value, in alphabetical order.
    ///
    /// # Errors
    ///
    /// When the table cannot be locked.
    pub fn sysctls(&mut self) -> Result<Vec<(Sysctl, u32)>> {
        self.look(|maps| {
            let settings = maps.settings();
            let value = |sysctl: Sysctl| settings.sysctls[sysctl as usize];
            let fill = Fill { occupied: settings.occupied, sets: settings.set_mask.wrapping_add(1) };
            let scarce = fill.is_scarce(value(Sysctl::Amemthresh));
            let shown = |sysctl| match sysctl {
                Sysctl::DropEntry | Sysctl::DropPacket | Sysctl::SecureTcp => {
                    defence::shown(value(sysctl), scarce)
                }
                _ => value(sysctl),
            };
            Ok(Sysctl::ALL.iter().map(|sysctl| (*sysctl, shown(*sysctl))).collect())
        })
    }

    /// Gives a sysctl a value.
    ///
    /// # Errors
    ///
    /// When there is none of that name, or it cannot have that value; the text says which and why.
    pub fn set_sysctl(&mut self, name: &str, value: u32) -> Result<()> {
        let sysctl = check(name, value)?;
        self.change(|maps, _| {
            let offset = offset_of!(Settings, sysctls) + size_of::<u32>() * sysctl as usize;
            maps.settings.store_u32(0, offset, value);
            if matches!(sysctl, Sysctl::DropPacket | Sysctl::AmDroprate | Sysctl::Amemthresh) {
                maps.settings.store_u32(0, offset_of!(Settings, drop_turn), 0);
            }
            if sysctl == Sysctl::NatIcmpSend {
                // Kept only while somebody asks for it.
                repair::list_masquerading(maps)?;
            }
            Ok(())
        })
    }
}

/// Returns the sysctl of a name, if it can have that value.
///
/// # Errors
///
/// As of [`Xdp::set_sysctl`].
pub fn check(name: &str, value: u32) -> Result<Sysctl> {
    let sysctl = find(name)?;
    if sysctl.allowed().is_empty() || sysctl.allowed().contains(&value) {
        return Ok(sysctl);
    }
    let allowed: Vec<String> = sysctl.allowed().iter().map(u32::to_string).collect();
    Err(Error::Unsupported(format!("{name}={value}: it can be {} here", allowed.join(" or "))))
}

/// The sysctl of a name.
fn find(name: &str) -> Result<Sysctl> {
    if let Some(sysctl) = Sysctl::ALL.iter().find(|sysctl| sysctl.name() == name) {
        return Ok(*sysctl);
    }
    Err(Error::Unsupported(match REFUSED.iter().find(|(refused, _)| *refused == name) {
        Some((_, why)) => format!("The XDP director does not have {name}: {why}"),
        None => format!("{name}: IPVS has no such sysctl"),
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_sysctl_of_the_kernel_is_there_or_refused_by_name() {
        // Those of Linux 6.1, as its documentation lists them.
        let kernel = "am_droprate amemthresh backup_only cache_bypass conn_reuse_mode conntrack drop_entry drop_packet \
                      expire_nodest_conn expire_quiescent_template ignore_tunneled nat_icmp_send pmtu_disc \
                      run_estimation schedule_icmp secure_tcp sloppy_sctp sloppy_tcp snat_reroute sync_persist_mode \
                      sync_ports sync_qlen_max sync_refresh_period sync_retries sync_sock_size sync_threshold \
                      sync_version lblc_expiration lblcr_expiration debug_level";
        for name in kernel.split_whitespace() {
            let refused = REFUSED.iter().filter(|(refused, _)| *refused == name).count();
            assert_eq!(refused + usize::from(find(name).is_ok()), 1, "{name}");
        }
        assert_eq!(find("nonsense").unwrap_err().to_string(), "nonsense: IPVS has no such sysctl");
        assert!(Sysctl::ALL.iter().is_sorted_by_key(|sysctl| sysctl.name()));
    }
}
