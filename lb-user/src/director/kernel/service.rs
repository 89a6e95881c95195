//! Services in netlink's attributes.
//!
//! IPVS counterpart: `IPVS_SVC_ATTR_*`, `ip_vs_genl_parse_service` and `ip_vs_genl_fill_service`.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use lb_common::protocol::Protocol;
use netlink_packet_core::{DecodeError, parse_string, parse_u16, parse_u16_be, parse_u32, parse_u32_be};

use super::message::{Attributes, each};
use super::stats;
use crate::table::{Family, Netmask, Service, ServiceKey, ServiceReport, service_flags};

const ADDRESS_FAMILY: u16 = 1;
const PROTOCOL: u16 = 2;
const ADDRESS: u16 = 3;
const PORT: u16 = 4;
const MARK: u16 = 5;
const SCHEDULER: u16 = 6;
const FLAGS: u16 = 7;
const TIMEOUT: u16 = 8;
const NETMASK: u16 = 9;
const STATS: u16 = 10;
const ENGINE: u16 = 11;
const STATS_64: u16 = 12;

/// The attributes that name a service, which is all that most commands need.
pub fn encode_key(key: &ServiceKey) -> Attributes {
    let attributes = Attributes::default().put_u16(ADDRESS_FAMILY, family_number(key.family()));
    match *key {
        ServiceKey::Mark { mark, .. } => attributes.put_u32(MARK, mark),
        ServiceKey::Address { protocol, address, port } => attributes
            .put_u16(PROTOCOL, protocol.number().into())
            .put(ADDRESS, &address_bytes(address))
            .put(PORT, &port.to_be_bytes()),
    }
}

/// All that is configured of a service.
pub fn encode(service: &Service) -> Attributes {
    let mut attributes = encode_key(&service.key).put_text(SCHEDULER, &service.scheduler);
    if let Some(engine) = &service.engine {
        attributes = attributes.put_text(ENGINE, engine);
    }
    // The flags and which of them to change: all.
    let mut flags = [0xff; 8];
    flags[..4].copy_from_slice(&service.flags.to_ne_bytes());
    let netmask = match service.netmask {
        Netmask::V4(mask) => mask.to_be_bytes(),
        Netmask::V6(length) => length.to_ne_bytes(),
    };
    attributes.put(FLAGS, &flags).put_u32(TIMEOUT, service.timeout).put(NETMASK, &netmask)
}

/// A service as the kernel tells it.
pub fn decode(nest: &[u8]) -> Result<ServiceReport, DecodeError> {
    let (mut family, mut protocol, mut address, mut port, mut mark) = (0, 0, None, 0, None);
    let (mut scheduler, mut flags, mut timeout, mut netmask, mut engine) = (String::new(), 0, 0, None, None);
    let (mut narrow, mut wide) = (None, None);
    each(nest, |kind, value| {
        match kind {
            ADDRESS_FAMILY => family = parse_u16(value)?,
            PROTOCOL => protocol = parse_u16(value)?,
            ADDRESS => address = Some(value),
            PORT => port = parse_u16_be(value)?,
            MARK => mark = Some(parse_u32(value)?),
            SCHEDULER => scheduler = parse_string(value)?,
            FLAGS => flags = parse_u32(value.get(..4).unwrap_or_default())?,
            TIMEOUT => timeout = parse_u32(value)?,
            NETMASK => netmask = Some(value),
            ENGINE => engine = Some(parse_string(value)?),
            STATS => narrow = Some(value),
            STATS_64 => wide = Some(value),
            _ => {}
        }
        Ok(())
    })?;
    let family = family_of(family)?;
    let key = match mark {
        Some(mark) => ServiceKey::Mark { mark, family },
        None => ServiceKey::Address {
            protocol: u8::try_from(protocol)
                .ok()
                .and_then(Protocol::from_number)
                .ok_or_else(|| format!("a service of protocol {protocol}, which IPVS does not balance"))?,
            address: decode_address(family, address.unwrap_or_default())?,
            port,
        },
    };
    let netmask = netmask.ok_or("a service without netmask")?;
    let service = Service {
        key,
        scheduler,
        flags: flags & !service_flags::HASHED,
        timeout,
        netmask: match family {
            Family::V4 => Netmask::V4(parse_u32_be(netmask)?),
            Family::V6 => Netmask::V6(parse_u32(netmask)?),
        },
        engine,
        own_timeouts: None,
    };
    Ok(ServiceReport { service, stats: wide.or(narrow).map(stats::decode).transpose()?.unwrap_or_default() })
}

/// The number of a family in IPVS's interface, which is the socket interface's.
pub fn family_number(family: Family) -> u16 {
    match family {
        Family::V4 => libc::AF_INET as u16,
        Family::V6 => libc::AF_INET6 as u16,
    }
}

/// The reverse of [`family_number`].
pub fn family_of(number: u16) -> Result<Family, DecodeError> {
    [Family::V4, Family::V6]
        .into_iter()
        .find(|family| family_number(*family) == number)
        .ok_or_else(|| format!("address family {number}").into())
}

/// An address as IPVS takes it: 16 bytes, of which IPv4 uses the first four.
pub fn address_bytes(address: IpAddr) -> [u8; 16] {
    match address {
        IpAddr::V6(address) => address.octets(),
        IpAddr::V4(address) => {
            let mut bytes = [0; 16];
            bytes[..4].copy_from_slice(&address.octets());
            bytes
        }
    }
}

/// The reverse of [`address_bytes`].
pub fn decode_address(family: Family, bytes: &[u8]) -> Result<IpAddr, DecodeError> {
    let short = || DecodeError::invalid_ip_address(bytes.len());
    Ok(match family {
        Family::V4 => Ipv4Addr::from(*bytes.first_chunk::<4>().ok_or_else(short)?).into(),
        Family::V6 => Ipv6Addr::from(*bytes.first_chunk::<16>().ok_or_else(short)?).into(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::table::Stats;

    fn persistent() -> Service {
        let address = IpAddr::from([10, 0, 0, 100]);
        let key = ServiceKey::Address { protocol: Protocol::Tcp, address, port: 80 };
        let flags = service_flags::PERSISTENT;
        Service { scheduler: "rr".into(), flags, timeout: 300, ..Service::new(key) }
    }

    /// What the kernel was seen to send for `-t 10.0.0.100:80 -s rr -p 300`, less its counters.
    fn sample(flags: u32) -> Vec<u8> {
        let mut bytes = vec![6, 0, 1, 0, 2, 0, 0, 0, 6, 0, 2, 0, 6, 0, 0, 0, 20, 0, 3, 0, 10, 0, 0, 100];
        bytes.extend([0; 12]);
        bytes.extend([6, 0, 4, 0, 0, 80, 0, 0, 7, 0, 6, 0, b'r', b'r', 0, 0, 12, 0, 7, 0]);
        bytes.extend(flags.to_le_bytes());
        bytes.extend([0xff; 4]);
        bytes.extend([8, 0, 8, 0, 44, 1, 0, 0, 8, 0, 9, 0, 255, 255, 255, 255]);
        bytes
    }

    #[test]
    #[cfg(target_endian = "little")]
    fn the_captured_service_is_what_we_send_and_read() {
        assert_eq!(encode(&persistent()).0, sample(service_flags::PERSISTENT));
        let seen = decode(&sample(service_flags::PERSISTENT | service_flags::HASHED)).unwrap();
        assert_eq!(seen, ServiceReport { service: persistent(), stats: Stats::default() });
    }

    #[test]
    fn every_kind_of_service_is_read_as_it_was_written() {
        let mut services = vec![persistent()];
        let address = "2001:db8::1".parse().unwrap();
        services.push(Service {
            netmask: Netmask::V6(64),
            engine: Some("sip".into()),
            flags: service_flags::ONE_PACKET | service_flags::SCHEDULER_3,
            ..Service::new(ServiceKey::Address { protocol: Protocol::Udp, address, port: 5060 })
        });
        for family in [Family::V4, Family::V6] {
            services.push(Service::new(ServiceKey::Mark { mark: u32::MAX, family }));
        }
        services[0].netmask = Netmask::V4(0xffff_ff00);
        for service in services {
            assert_eq!(decode(&encode(&service).0).unwrap().service, service);
        }
    }

    #[test]
    fn wide_counters_are_preferred() {
        let stats = |value: u64| Attributes::default().put(1, &value.to_ne_bytes());
        let nest = encode(&persistent()).put_nest(STATS, &stats(1)).put_nest(STATS_64, &stats(1 << 33));
        assert_eq!(decode(&nest.0).unwrap().stats.connections, 1 << 33);
    }

    #[test]
    fn what_cannot_be_said_is_an_error() {
        let nest = |protocol: u16| {
            Attributes::default()
                .put_u16(ADDRESS_FAMILY, 2)
                .put_u16(PROTOCOL, protocol)
                .put(ADDRESS, &[0; 16])
        };
        assert!(decode(&nest(1).put_u32(NETMASK, 0).0).unwrap_err().to_string().contains("protocol 1"));
        assert!(decode(&nest(6).0).is_err());
        assert!(decode(&Attributes::default().put_u16(ADDRESS_FAMILY, 3).0).is_err());
    }
}
