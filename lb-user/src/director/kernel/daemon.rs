//! Sync daemons in netlink's attributes.
//!
//! IPVS counterpart: `IPVS_DAEMON_ATTR_*`, `ip_vs_genl_new_daemon` and `ip_vs_genl_fill_daemon`.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use netlink_packet_core::{DecodeError, parse_string, parse_u8, parse_u16, parse_u32};

use super::message::{Attributes, each};
use crate::table::{SyncDaemon, SyncRole};

const STATE: u16 = 1;
const INTERFACE: u16 = 2;
const SYNC_ID: u16 = 3;
const MAX_LENGTH: u16 = 4;
const GROUP: u16 = 5;
const GROUP_6: u16 = 6;
const PORT: u16 = 7;
const TTL: u16 = 8;

/// The attribute that names a daemon.
pub fn encode_role(role: SyncRole) -> Attributes {
    Attributes::default().put_u32(STATE, role as u32)
}

/// What is configured of a daemon; what is left to the kernel's defaults is left out.
pub fn encode(daemon: &SyncDaemon) -> Attributes {
    let mut attributes =
        encode_role(daemon.role).put_text(INTERFACE, &daemon.interface).put_u32(SYNC_ID, daemon.sync_id);
    if daemon.max_length != 0 {
        attributes = attributes.put_u16(MAX_LENGTH, daemon.max_length);
    }
    match daemon.group {
        Some(IpAddr::V4(group)) => attributes = attributes.put(GROUP, &group.octets()),
        Some(IpAddr::V6(group)) => attributes = attributes.put(GROUP_6, &group.octets()),
        None => {}
    }
    if daemon.port != 0 {
        // Unlike every other port of the family, in the host's byte order.
        attributes = attributes.put_u16(PORT, daemon.port);
    }
    if daemon.ttl != 0 {
        attributes = attributes.put(TTL, &[daemon.ttl]);
    }
    attributes
}

/// A daemon as the kernel tells it, with the defaults filled in.
pub fn decode(nest: &[u8]) -> Result<SyncDaemon, DecodeError> {
    let mut state = 0;
    let mut daemon = SyncDaemon {
        role: SyncRole::Master,
        interface: String::new(),
        sync_id: 0,
        max_length: 0,
        group: None,
        port: 0,
        ttl: 0,
    };
    each(nest, |kind, value| {
        match kind {
            STATE => state = parse_u32(value)?,
            INTERFACE => daemon.interface = parse_string(value)?,
            SYNC_ID => daemon.sync_id = parse_u32(value)?,
            MAX_LENGTH => daemon.max_length = parse_u16(value)?,
            GROUP => daemon.group = value.first_chunk::<4>().map(|bytes| Ipv4Addr::from(*bytes).into()),
            GROUP_6 => daemon.group = value.first_chunk::<16>().map(|bytes| Ipv6Addr::from(*bytes).into()),
            PORT => daemon.port = parse_u16(value)?,
            TTL => daemon.ttl = parse_u8(value)?,
            _ => {}
        }
        Ok(())
    })?;
    daemon.role = match state {
        1 => SyncRole::Master,
        2 => SyncRole::Backup,
        _ => return Err(format!("a sync daemon in state {state}").into()),
    };
    Ok(daemon)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn daemons_are_read_as_they_were_written() {
        let mut daemon = SyncDaemon {
            role: SyncRole::Backup,
            interface: "eth0".into(),
            sync_id: 255,
            max_length: 1400,
            group: Some(IpAddr::from([224, 0, 0, 81])),
            port: 8848,
            ttl: 3,
        };
        assert_eq!(decode(&encode(&daemon).0).unwrap(), daemon);
        daemon.group = Some("ff02::81".parse().unwrap());
        assert_eq!(decode(&encode(&daemon).0).unwrap(), daemon);
    }

    #[test]
    fn the_port_is_in_the_host_s_byte_order_and_defaults_are_not_sent() {
        let mut daemon = decode(&encode_role(SyncRole::Master).0).unwrap();
        let bare = encode(&daemon);
        assert_eq!(bare, encode_role(SyncRole::Master).put_text(INTERFACE, "").put_u32(SYNC_ID, 0));
        daemon.port = 8848;
        assert!(encode(&daemon).0.ends_with(&[6, 0, 7, 0, 0x90, 0x22, 0, 0]) || cfg!(target_endian = "big"));
    }
}
