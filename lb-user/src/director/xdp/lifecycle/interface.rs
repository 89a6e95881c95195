//! The network interfaces: what they are called, what is attached to them, and which of them XDP can send out of.

use std::path::Path;

use aya::maps::{HashMap, Map, MapData};
use lb_common::settings::{BACK, WayOut};
use rtnetlink::packet_route::link::{
    InfoData, InfoKind, InfoVlan, LinkAttribute, LinkInfo, LinkLayerType, LinkMessage, LinkXdp, XdpAttached,
};
use zerocopy::IntoBytes;

use super::{failed, features};
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

/// What makes an interface's packets, as far as it tells whether XDP can send there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A network card.
    Card,
    /// One end of a pair. Whether it takes what XDP redirects depends on the other.
    Pair,
    /// Other software that takes what XDP redirects, in every supported kernel.
    Taking,
    /// Other software.
    Other,
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
    /// It has Ethernet's link headers.
    pub is_ethernet: bool,
    /// What makes its packets.
    pub kind: Kind,
    /// Others bring it its packets, which GRO may have put together before.
    pub is_upper: bool,
}

/// Lists the interfaces of the namespace.
pub fn list(routing: &mut Routing) -> Result<Vec<Interface>> {
    let links = routing.links().map_err(|error| failed("cannot list interfaces", error))?;
    Ok(links.iter().map(Interface::read).collect())
}

impl Interface {
    fn read(link: &LinkMessage) -> Self {
        let mut interface = Self {
            index: link.header.index,
            name: String::new(),
            program: None,
            vlan: None,
            is_ethernet: link.header.link_layer_type == LinkLayerType::Ether,
            kind: Kind::Card,
            is_upper: false,
        };
        let (mut carrier, mut tag) = (0, None);
        for attribute in &link.attributes {
            match attribute {
                LinkAttribute::IfName(name) => interface.name.clone_from(name),
                LinkAttribute::Link(index) => carrier = *index,
                LinkAttribute::LinkInfo(info) => {
                    tag = vlan_identifier(info);
                    interface.kind = kind(info);
                    interface.is_upper = info.iter().any(is_upper);
                }
                LinkAttribute::Xdp(attached) => interface.program = program(attached),
                _ => {}
            }
        }
        interface.vlan = tag.map(|tag| (carrier, tag));
        interface
    }
}

fn kind(info: &[LinkInfo]) -> Kind {
    let kind = info.iter().find_map(|info| match info {
        LinkInfo::Kind(kind) => Some(kind),
        _ => None,
    });
    match kind {
        None => Kind::Card,
        Some(InfoKind::Veth) => Kind::Pair,
        Some(InfoKind::Tun | InfoKind::Bond) => Kind::Taking,
        Some(_) => Kind::Other,
    }
}

fn is_upper(info: &LinkInfo) -> bool {
    matches!(
        info,
        LinkInfo::Kind(
            InfoKind::Bridge | InfoKind::Vlan | InfoKind::MacVlan | InfoKind::MacVtap | InfoKind::IpVlan
        )
    )
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

/// Tells the packet program how to send out of which interfaces, and forgets those that it cannot send out of any more.
pub fn tell_ways(directory: &Path, routing: &mut Routing) -> Result<()> {
    let interfaces = list(routing)?;
    let ways = ways(&interfaces, features::taking()?.as_deref());
    let no_map = |error: &dyn std::fmt::Display| failed("WAYS_OUT", error);
    let map = MapData::from_pin(directory.join("WAYS_OUT")).map_err(|error| no_map(&error))?;
    let mut map: HashMap<MapData, u32, [u8; size_of::<WayOut>()]> =
        HashMap::try_from(Map::HashMap(map)).map_err(|error| no_map(&error))?;
    let known: Vec<u32> = map.keys().flatten().collect();
    for index in known.into_iter().filter(|index| !ways.iter().any(|(way, _)| way == index)) {
        // Somebody may have been faster.
        let _ = map.remove(&index);
    }
    for (index, way) in ways {
        let mut bytes = [0; size_of::<WayOut>()];
        bytes.copy_from_slice(way.as_bytes());
        map.insert(index, bytes, 0).map_err(|error| no_map(&error))?;
    }
    Ok(())
}

/// How to send out of each interface that XDP can send out of; `taking` are those whose drivers say that they take what it
/// redirects, if the kernel knows.
fn ways(interfaces: &[Interface], taking: Option<&[u32]>) -> Vec<(u32, WayOut)> {
    let is_native = |interface: &Interface| matches!(interface.program, Some((_, Mode::Native)));
    let can = |interface: &&Interface| {
        let takes = match (taking, interface.kind) {
            (Some(taking), _) => taking.contains(&interface.index),
            (None, Kind::Card) => is_native(interface),
            (None, kind) => matches!(kind, Kind::Pair | Kind::Taking),
        };
        // In generic mode the stack sends, by any driver; and what came in at an interface may leave by it, but for a pair,
        // of which both ways lead through the other end.
        let is_asked_by = |other: &Interface| other.index != interface.index || interface.kind == Kind::Pair;
        let is_asked = interfaces.iter().any(|other| is_native(other) && is_asked_by(other));
        interface.is_ethernet && interface.vlan.is_none() && (takes || !is_asked)
    };
    let plain: Vec<u32> = interfaces.iter().filter(can).map(|interface| interface.index).collect();
    let way = |interface: &Interface| {
        let (carrier, identifier) = interface.vlan.unwrap_or((interface.index, 0));
        let is_pair = interfaces.iter().any(|other| other.index == carrier && other.kind == Kind::Pair);
        let back = if is_pair { BACK } else { 0 };
        let way = WayOut { interface: carrier | back, tag: identifier.to_be(), reserved: 0 };
        (carrier < BACK && plain.contains(&carrier)).then_some((interface.index, way))
    };
    interfaces.iter().filter_map(way).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn interface(index: u32, kind: Kind, mode: Option<Mode>) -> Interface {
        let (name, program) = (format!("eth{index}"), mode.map(|mode| (1, mode)));
        Interface { index, name, program, vlan: None, is_ethernet: true, kind, is_upper: false }
    }

    fn indices(interfaces: &[Interface], taking: Option<&[u32]>) -> Vec<u32> {
        ways(interfaces, taking).into_iter().map(|(index, _)| index).collect()
    }

    #[test]
    fn the_kernel_s_word_counts_and_without_it_what_the_interface_is() {
        let native = Some(Mode::Native);
        let all = [
            interface(1, Kind::Card, native),
            interface(2, Kind::Card, native),
            interface(3, Kind::Card, None),
            interface(4, Kind::Taking, None),
            interface(5, Kind::Other, None),
        ];
        assert_eq!(indices(&all, Some(&[2, 5])), [2, 5]);
        assert_eq!(indices(&all, None), [1, 2, 4]);
    }

    #[test]
    fn who_is_never_redirected_to_natively_need_not_take_it() {
        let generic = [interface(1, Kind::Other, Some(Mode::Generic)), interface(2, Kind::Card, None)];
        assert_eq!(indices(&generic, Some(&[])), [1, 2]);
        let one_armed = [interface(1, Kind::Card, Some(Mode::Native)), interface(2, Kind::Card, None)];
        assert_eq!(indices(&one_armed, Some(&[])), [1]);
    }

    #[test]
    fn a_pair_sends_back_by_redirect_and_only_where_the_other_end_takes_it() {
        let native = [interface(1, Kind::Pair, Some(Mode::Native))];
        let way = |taking| ways(&native, taking).first().map(|(_, way)| way.interface);
        assert_eq!((way(Some(&[1])), way(None), way(Some(&[]))), (Some(1 | BACK), Some(1 | BACK), None));
        let generic = [interface(1, Kind::Pair, Some(Mode::Generic))];
        assert_eq!(indices(&generic, Some(&[])), [1]);
        // Numbers as large as that mean something else.
        assert!(indices(&[interface(BACK | 1, Kind::Pair, None)], None).is_empty());
    }

    #[test]
    fn vlans_go_by_what_carries_them_and_nothing_goes_without_ethernet() {
        let mut all = [
            interface(1, Kind::Card, Some(Mode::Native)),
            interface(2, Kind::Other, None),
            interface(3, Kind::Other, None),
            interface(4, Kind::Other, None),
            interface(5, Kind::Taking, None),
        ];
        all[1].vlan = Some((1, 7));
        // Inside a VLAN, and of an interface that takes nothing.
        all[2].vlan = Some((2, 8));
        all[3].vlan = Some((9, 7));
        all[4].is_ethernet = false;
        let ways = ways(&all, Some(&[1, 5]));
        assert_eq!(ways.iter().map(|(index, _)| *index).collect::<Vec<_>>(), [1, 2]);
        assert_eq!((ways[1].1.interface, ways[1].1.tag), (1, 7_u16.to_be()));
    }
}
