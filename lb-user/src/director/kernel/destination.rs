//! Destinations in netlink's attributes.
//!
//! IPVS counterpart: `IPVS_DEST_ATTR_*`, `ip_vs_genl_parse_dest` and `ip_vs_genl_fill_dest`.

use lb_common::forward::{ForwardingMethod, TunnelChecksum, TunnelType};
use netlink_packet_core::{DecodeError, parse_u8, parse_u16, parse_u16_be, parse_u32};

use super::message::{Attributes, each};
use super::service::{address_bytes, decode_address, family_number, family_of};
use super::stats;
use crate::table::{Destination, DestinationKey, DestinationReport, Family, Tunnel};

const ADDRESS: u16 = 1;
const PORT: u16 = 2;
const FORWARDING_METHOD: u16 = 3;
const WEIGHT: u16 = 4;
const UPPER_THRESHOLD: u16 = 5;
const LOWER_THRESHOLD: u16 = 6;
const ACTIVE: u16 = 7;
const INACTIVE: u16 = 8;
const PERSISTENT: u16 = 9;
const STATS: u16 = 10;
const ADDRESS_FAMILY: u16 = 11;
const STATS_64: u16 = 12;
const TUNNEL_TYPE: u16 = 13;
const TUNNEL_PORT: u16 = 14;
const TUNNEL_FLAGS: u16 = 15;

/// The bits that are the forwarding method; a dump has others beside them.
const METHOD_MASK: u32 = 7;

/// The attributes that name a destination.
pub fn encode_key(key: &DestinationKey) -> Attributes {
    Attributes::default()
        .put(ADDRESS, &address_bytes(key.address))
        .put(PORT, &key.port.to_be_bytes())
        .put_u16(ADDRESS_FAMILY, family_number(Family::of(key.address)))
}

/// All that is configured of a destination.
pub fn encode(destination: &Destination) -> Attributes {
    encode_key(&destination.key)
        .put_u32(FORWARDING_METHOD, destination.method.number().into())
        .put_u32(WEIGHT, destination.weight)
        .put(TUNNEL_TYPE, &[destination.tunnel.kind as u8])
        .put(TUNNEL_PORT, &destination.tunnel.port.to_be_bytes())
        .put_u16(TUNNEL_FLAGS, destination.tunnel.checksum as u16)
        .put_u32(UPPER_THRESHOLD, destination.upper_threshold)
        .put_u32(LOWER_THRESHOLD, destination.lower_threshold)
}

/// A destination as the kernel tells it; its family is its service's unless it says otherwise.
pub fn decode(nest: &[u8], service: Family) -> Result<DestinationReport, DecodeError> {
    let (mut family, mut address, mut port, mut method) = (0, [].as_slice(), 0, 0);
    let (mut kind_number, mut tunnel_port, mut checksum) = (0, 0, 0);
    let (mut weight, mut upper_threshold, mut lower_threshold) = (0, 0, 0);
    let (mut active, mut inactive, mut persistent) = (0, 0, 0);
    let (mut narrow, mut wide) = (None, None);
    each(nest, |kind, value| {
        match kind {
            ADDRESS => address = value,
            PORT => port = parse_u16_be(value)?,
            FORWARDING_METHOD => method = parse_u32(value)? & METHOD_MASK,
            WEIGHT => weight = parse_u32(value)?,
            UPPER_THRESHOLD => upper_threshold = parse_u32(value)?,
            LOWER_THRESHOLD => lower_threshold = parse_u32(value)?,
            ACTIVE => active = parse_u32(value)?,
            INACTIVE => inactive = parse_u32(value)?,
            PERSISTENT => persistent = parse_u32(value)?,
            STATS => narrow = Some(value),
            ADDRESS_FAMILY => family = parse_u16(value)?,
            STATS_64 => wide = Some(value),
            TUNNEL_TYPE => kind_number = parse_u8(value)?,
            TUNNEL_PORT => tunnel_port = parse_u16_be(value)?,
            TUNNEL_FLAGS => checksum = parse_u16(value)?,
            _ => {}
        }
        Ok(())
    })?;
    let family = if family == 0 { service } else { family_of(family)? };
    let key = DestinationKey { address: decode_address(family, address)?, port };
    let method = u8::try_from(method).ok().and_then(ForwardingMethod::from_number).ok_or_else(|| {
        format!("destination {key} has forwarding method {method}, which IPVS does not name")
    })?;
    let kind = TunnelType::from_number(kind_number).ok_or_else(|| {
        format!("destination {key} has tunnel type {kind_number}, which IPVS does not name")
    })?;
    let checksum = match checksum {
        0 => TunnelChecksum::None,
        1 => TunnelChecksum::Full,
        2 => TunnelChecksum::Remote,
        _ => return Err(format!("destination {key} has tunnel flags {checksum}").into()),
    };
    let tunnel = Tunnel { kind, port: tunnel_port, checksum };
    let destination = Destination { key, method, weight, upper_threshold, lower_threshold, tunnel };
    let stats = wide.or(narrow).map(stats::decode).transpose()?.unwrap_or_default();
    Ok(DestinationReport { destination, stats, active, inactive, persistent, drains_in: None })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_of_destination_is_read_as_it_was_written() {
        let mut destination = Destination::new(DestinationKey { address: [10, 1, 1, 2].into(), port: 8080 });
        destination.weight = i32::MAX as u32;
        destination.upper_threshold = 7;
        destination.lower_threshold = 3;
        for method in [
            ForwardingMethod::Masquerade,
            ForwardingMethod::LocalNode,
            ForwardingMethod::Tunnel,
            ForwardingMethod::DirectRoute,
            ForwardingMethod::Bypass,
        ] {
            for kind in [TunnelType::Ipip, TunnelType::Gue, TunnelType::Gre] {
                for checksum in [TunnelChecksum::None, TunnelChecksum::Full, TunnelChecksum::Remote] {
                    destination.method = method;
                    destination.tunnel = Tunnel { kind, port: 6080, checksum };
                    let seen = decode(&encode(&destination).0, Family::V4).unwrap();
                    assert_eq!(seen.destination, destination);
                }
            }
        }
    }

    #[test]
    fn the_family_is_its_own_or_the_service_s() {
        let key = DestinationKey { address: "2001:db8::1".parse().unwrap(), port: 80 };
        assert_eq!(decode(&encode(&Destination::new(key)).0, Family::V4).unwrap().destination.key, key);
        let untold =
            Attributes::default().put(ADDRESS, &address_bytes(key.address)).put(PORT, &80u16.to_be_bytes());
        assert_eq!(decode(&untold.0, Family::V6).unwrap().destination.key, key);
    }

    #[test]
    fn observed_numbers_and_flags_beside_the_method_are_told_apart() {
        // A dump has NOOUTPUT and INACTIVE (0x180) beside the method.
        let nest = encode_key(&DestinationKey { address: [10, 1, 1, 2].into(), port: 80 })
            .put_u32(FORWARDING_METHOD, 0x183)
            .put_u32(ACTIVE, 1)
            .put_u32(INACTIVE, 2)
            .put_u32(PERSISTENT, 3);
        let seen = decode(&nest.0, Family::V4).unwrap();
        assert_eq!(seen.destination.method, ForwardingMethod::DirectRoute);
        assert_eq!((seen.active, seen.inactive, seen.persistent), (1, 2, 3));
        let odd = encode_key(&seen.destination.key).put_u32(FORWARDING_METHOD, 5);
        assert!(decode(&odd.0, Family::V4).unwrap_err().to_string().contains("forwarding method 5"));
    }
}
