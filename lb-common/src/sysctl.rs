//! IPVS's sysctls that the packet program has, by the kernel's names and with its defaults.
//!
//! Their values are words of the settings map; `xipvs set` changes them. What IPVS has and this has not is named
//! by the director, with the reason. IPVS counterpart: `vs_vars` in `ip_vs_ctl.c`.

macro_rules! sysctls {
    ($($(#[doc = $doc:literal])+ $variant:ident = $number:literal, $name:literal, $default:literal, [$($allowed:literal),*];)+) => {
        /// A sysctl.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        #[repr(usize)]
        pub enum Sysctl {
            $($(#[doc = $doc])+ $variant = $number,)+
        }

        impl Sysctl {
            /// Every sysctl, in the order of their names.
            pub const ALL: &'static [Self] = &[$(Self::$variant),+];

            /// The kernel's name.
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$variant => $name,)+
                }
            }

            /// The kernel's default.
            pub const fn default_value(self) -> u32 {
                match self {
                    $(Self::$variant => $default,)+
                }
            }

            /// The values that it can have; any if there are none here.
            pub const fn allowed(self) -> &'static [u32] {
                match self {
                    $(Self::$variant => &[$($allowed),*],)+
                }
            }

            /// What it does, in a sentence.
            pub const fn explanation(self) -> &'static str {
                match self {
                    $(Self::$variant => concat!($($doc),+).trim_ascii(),)+
                }
            }
        }
    };
}

sysctls! {
    /// With drop_packet=3, one of so many new connections is refused.
    AmDroprate = 0, "am_droprate", 10, [];
    /// In modes 1 and 2 of the defences, so many pages of the connection table, or an eighth of it, are to stay free.
    Amemthresh = 17, "amemthresh", 1024, [];
    /// 1: what a mark's service has no destination for goes to its original address, if that is not the director's own.
    CacheBypass = 10, "cache_bypass", 0, [];
    /// 1: a SYN for a closed connection makes a new one; 2 or 3: also for one in FIN_WAIT of which no answer was seen.
    ConnReuseMode = 1, "conn_reuse_mode", 1, [];
    /// 3: end half-open connections, a share of the table a second, and some idle ones; 1, 2: while the table is nearly full
    /// (shown as 2); 0: none.
    DropEntry = 13, "drop_entry", 0, [0, 1, 2, 3];
    /// 3: refuse one of am_droprate new connections; 1, 2: refuse some while the table is nearly full (shown as 2); 0: none.
    DropPacket = 2, "drop_packet", 0, [0, 1, 2, 3];
    /// 1: connections of a deleted destination end at once, and a SYN moves a connection off one of weight 0.
    ExpireNodestConn = 3, "expire_nodest_conn", 0, [];
    /// 1: a persistence template serves no more when its destination has weight 0.
    ExpireQuiescentTemplate = 4, "expire_quiescent_template", 0, [];
    /// lblc forgets an address that was not used for so many seconds, at the next half hour.
    LblcExpiration = 14, "lblc_expiration", 86_400, [];
    /// As lblc_expiration for lblcr; and a set that did not change for so many seconds loses a member.
    LblcrExpiration = 15, "lblcr_expiration", 86_400, [];
    /// 1: a masquerading destination whose packet no connection has is told that the port is unreachable.
    NatIcmpSend = 9, "nat_icmp_send", 0, [];
    /// 1: what goes around a packet in a tunnel must not be fragmented either if the packet must not.
    PmtuDisc = 5, "pmtu_disc", 1, [];
    /// 1: an ICMP error that is about no connection, but a service's answer, makes one.
    ScheduleIcmp = 8, "schedule_icmp", 0, [];
    /// 3: TCP goes by the state table for times of attack; 1, 2: while the table is nearly full (shown as 2); 0: never.
    SecureTcp = 16, "secure_tcp", 0, [0, 1, 2, 3];
    /// 1: any packet of SCTP but an ABORT makes a connection, not an INIT alone.
    SloppySctp = 6, "sloppy_sctp", 0, [];
    /// 1: any segment but a RST makes a connection, not a SYN alone.
    SloppyTcp = 7, "sloppy_tcp", 0, [];
    /// 1: of what a persistence template controls the master tells the template alone.
    SyncPersistMode = 24, "sync_persist_mode", 0, [];
    /// Seconds that a connection's end has to move before the master tells it again; 0: half its timeout.
    SyncRefreshPeriod = 25, "sync_refresh_period", 0, [];
    /// How often the master repeats what it told, each an eighth of sync_refresh_period later.
    SyncRetries = 26, "sync_retries", 0, [0, 1, 2, 3];
}

/// Room for sysctls in the settings, where each lies at its number; more than there are, so that a new one moves nothing.
pub const SYSCTL_SLOTS: usize = 32;

/// The values of all sysctls at the start.
pub const DEFAULTS: [u32; SYSCTL_SLOTS] = {
    let mut values = [0; SYSCTL_SLOTS];
    let mut position = 0;
    while position < Sysctl::ALL.len() {
        let sysctl = Sysctl::ALL[position];
        values[sysctl as usize] = sysctl.default_value();
        position += 1;
    }
    values
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_has_a_slot_of_its_own_and_an_allowed_default() {
        let mut taken = [false; SYSCTL_SLOTS];
        for sysctl in Sysctl::ALL {
            assert!(!core::mem::replace(&mut taken[*sysctl as usize], true), "{}", sysctl.name());
            assert_eq!(DEFAULTS[*sysctl as usize], sysctl.default_value());
            assert!(sysctl.allowed().is_empty() || sysctl.allowed().contains(&sysctl.default_value()));
            assert!(sysctl.explanation().ends_with('.'));
        }
    }
}
