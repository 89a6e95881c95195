//! How a packet gets from the director to a destination.
//!
//! IPVS counterpart: `ip_vs_xmit.c`, and the `IP_VS_CONN_F_FWD_MASK` values of its interface.

use core::fmt;

/// A forwarding method, numbered as in IPVS's interface.
#[doc(alias = "IP_VS_CONN_F_FWD_MASK")]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum ForwardingMethod {
    /// Network address translation in both directions (`-m`).
    #[doc(alias = "IP_VS_CONN_F_MASQ")]
    Masquerade = 0,
    /// The destination is the director itself; IPVS sets this by itself.
    #[doc(alias = "IP_VS_CONN_F_LOCALNODE")]
    LocalNode = 1,
    /// Encapsulation towards the destination (`-i`).
    #[doc(alias = "IP_VS_CONN_F_TUNNEL")]
    Tunnel = 2,
    /// Direct routing: the packet as it is, to the destination's link address (`-g`).
    #[doc(alias = "IP_VS_CONN_F_DROUTE")]
    DirectRoute = 3,
    /// To where the packet was going anyway (`cache_bypass`).
    #[doc(alias = "IP_VS_CONN_F_BYPASS")]
    Bypass = 4,
}

impl ForwardingMethod {
    /// The number in IPVS's interface, 0 to 4.
    #[inline]
    pub const fn number(self) -> u8 {
        self as u8
    }

    /// The method with this number in IPVS's interface.
    #[inline]
    pub const fn from_number(number: u8) -> Option<Self> {
        match number {
            0 => Some(Self::Masquerade),
            1 => Some(Self::LocalNode),
            2 => Some(Self::Tunnel),
            3 => Some(Self::DirectRoute),
            4 => Some(Self::Bypass),
            _ => None,
        }
    }

    /// The name in listings' `Forward` column.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Masquerade => "Masq",
            Self::LocalNode => "Local",
            Self::Tunnel => "Tunnel",
            Self::DirectRoute => "Route",
            Self::Bypass => "Bypass",
        }
    }
}

impl fmt::Display for ForwardingMethod {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// The encapsulation of a [`ForwardingMethod::Tunnel`] destination, numbered as in IPVS's interface.
#[doc(alias = "IP_VS_CONN_F_TUNNEL_TYPE")]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[repr(u8)]
pub enum TunnelType {
    /// IP in IP, protocol 4 or 41.
    #[default]
    Ipip = 0,
    /// Generic UDP encapsulation.
    Gue = 1,
    /// Generic routing encapsulation, protocol 47.
    Gre = 2,
}

impl TunnelType {
    /// The type with this number in IPVS's interface.
    pub const fn from_number(number: u8) -> Option<Self> {
        match number {
            0 => Some(Self::Ipip),
            1 => Some(Self::Gue),
            2 => Some(Self::Gre),
            _ => None,
        }
    }

    /// The name as `--tun-type` takes it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Ipip => "ipip",
            Self::Gue => "gue",
            Self::Gre => "gre",
        }
    }
}

/// The checksum choice of a GUE or GRE tunnel, numbered as in IPVS's interface.
#[doc(alias = "IP_VS_TUNNEL_ENCAP_FLAG_NOCSUM")]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[repr(u8)]
pub enum TunnelChecksum {
    /// None (`--tun-nocsum`).
    #[default]
    None = 0,
    /// In the tunnel header (`--tun-csum`).
    Full = 1,
    /// Remote checksum offload (`--tun-remcsum`), GUE only.
    Remote = 2,
}
