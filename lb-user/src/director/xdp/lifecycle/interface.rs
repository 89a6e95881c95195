//! The network interfaces: what they are called, what is attached to them, and which of them are VLANs.

use std::path::Path;

use aya::maps::{HashMap, Map, MapData};
use lb_common::settings::Vlan;
use rtnetlink::packet_route::link::{
    InfoData, InfoKind, InfoVlan, LinkAttribute, LinkInfo, LinkMessage, LinkXdp, XdpAttached,
};
use zerocopy::IntoBytes;

use super::failed;
use crate::director::Result;
use crate::director::xdp::routing::Routing;

/// How a program is attached to an interface.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// In the driver, before the kernel has spent anything on a packet.
    #[doc(alias = "XDP_FLAGS_DRV_MODE")]
    Native,
    /// In the network stack, where it works with every driver and is slower.
    #[doc(alias = "XDP_FLAGS_SKB_MODE")]
    Generic,
}

impl Mode {
    /// The word for it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Native => "native",
            Self::Generic => "generic",
        }
    }
}

/// A network interface.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Interface {
    /// Its index.
    pub index: u32,
    /// Its name.
    pub name: String,
    /// Identifier of the XDP program that is attached, and how.
    pub program: Option<(u32, Mode)>,
    /// Index of the interface that carries it, and its VLAN identifier; only for VLAN interfaces.
    pub vlan: Option<(u32, u16)>,
}

/// Lists the interfaces of the namespace.
pub fn list(routing: &mut Routing) -> Result<Vec<Interface>> {
    let links = routing.links().map_err(|error| failed("cannot list interfaces", error))?;
    Ok(links.iter().map(Interface::read).collect())
}

impl Interface {
    fn read(link: &LinkMessage) -> Self {
        let mut interface = Self { index: link.header.index, name: String::new(), program: None, vlan: None };
        let (mut carrier, mut tag) = (0, None);
        for attribute in &link.attributes {
            match attribute {
                LinkAttribute::IfName(name) => interface.name.clone_from(name),
                LinkAttribute::Link(index) => carrier = *index,
                LinkAttribute::LinkInfo(info) => tag = vlan_identifier(info),
                LinkAttribute::Xdp(attached) => interface.program = program(attached),
                _ => {}
            }
        }
        interface.vlan = tag.map(|tag| (carrier, tag));
        interface
    }
}

fn vlan_identifier(info: &[LinkInfo]) -> Option<u16> {
    let is_vlan = info.iter().any(|info| matches!(info, LinkInfo::Kind(InfoKind::Vlan)));
    let parts = info.iter().find_map(|info| match info {
        LinkInfo::Data(InfoData::Vlan(parts)) if is_vlan => Some(parts),
        _ => None,
    })?;
    parts.iter().find_map(|part| match part {
        InfoVlan::Id(identifier) => Some(*identifier),
        _ => None,
    })
}

fn program(attached: &[LinkXdp]) -> Option<(u32, Mode)> {
    let mode = attached.iter().find_map(|part| match part {
        LinkXdp::Attached(XdpAttached::Driver | XdpAttached::Hardware) => Some(Mode::Native),
        LinkXdp::Attached(XdpAttached::SocketBuffer) => Some(Mode::Generic),
        _ => None,
    })?;
    let identifier = attached.iter().find_map(|part| match part {
        LinkXdp::ProgId(identifier) => Some(*identifier),
        _ => None,
    })?;
    Some((identifier, mode))
}

/// Tells the packet program which interfaces are VLANs, and forgets those that are no more.
pub fn tell_vlans(directory: &Path, interfaces: &[Interface]) -> Result<()> {
    let no_map = |error: &dyn std::fmt::Display| failed("VLANS", error);
    let map = MapData::from_pin(directory.join("VLANS")).map_err(|error| no_map(&error))?;
    let mut map: HashMap<MapData, u32, [u8; size_of::<Vlan>()]> =
        HashMap::try_from(Map::HashMap(map)).map_err(|error| no_map(&error))?;
    let is_vlan = |index| interfaces.iter().any(|other| other.index == index && other.vlan.is_some());
    let known: Vec<u32> = map.keys().flatten().collect();
    for index in known.into_iter().filter(|index| !is_vlan(*index)) {
        // Somebody may have been faster.
        let _ = map.remove(&index);
    }
    for interface in interfaces {
        let Some((carrier, identifier)) = interface.vlan else { continue };
        let parent = if is_vlan(carrier) { 0 } else { carrier };
        let vlan = Vlan { parent, tag: identifier.to_be(), reserved: 0 };
        let mut bytes = [0; size_of::<Vlan>()];
        bytes.copy_from_slice(vlan.as_bytes());
        map.insert(interface.index, bytes, 0).map_err(|error| no_map(&error))?;
    }
    Ok(())
}
