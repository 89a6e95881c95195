//! Names of hosts and ports, in both directions.
//!
//! A trait, so that tests resolve from fixed files. [`SystemNames`] asks the C library for hosts, as
//! ipvsadm does, and reads `/etc/services` for ports. Nothing here decides when a name is wanted.

use std::cell::RefCell;
use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use lb_common::protocol::Protocol;

/// Resolves names.
pub trait Names {
    /// The first IPv4 address of a host; a host that has only IPv6 addresses has none.
    fn address_of(&self, host: &str) -> Option<Ipv4Addr>;

    /// The canonical name of an address.
    fn host_of(&self, address: IpAddr) -> Option<String>;

    /// The port of a service, by name or alias.
    fn port_of(&self, service: &str, protocol: Protocol) -> Option<u16>;

    /// The name of a port.
    fn service_of(&self, port: u16, protocol: Protocol) -> Option<String>;
}

/// The ports of a file in the format of `/etc/services`.
#[derive(Debug, Default)]
pub struct Services {
    ports: HashMap<(String, Protocol), u16>,
    names: HashMap<(u16, Protocol), String>,
}

impl Services {
    /// Reads the text of such a file; lines that it cannot read it skips, and of equals the first counts.
    pub fn parse(text: &str) -> Self {
        let mut services = Self::default();
        for line in text.lines() {
            let mut words = line.split('#').next().unwrap_or_default().split_whitespace();
            let (Some(name), Some(port)) = (words.next(), words.next()) else { continue };
            let Some((port, protocol)) = port.split_once('/') else { continue };
            let Ok(port) = port.parse::<u16>() else { continue };
            let known = Protocol::ALL.into_iter().find(|known| known.name().eq_ignore_ascii_case(protocol));
            let Some(protocol) = known else { continue };
            services.names.entry((port, protocol)).or_insert_with(|| name.into());
            for name in std::iter::once(name).chain(words) {
                services.ports.entry((name.into(), protocol)).or_insert(port);
            }
        }
        services
    }
}

/// Names from the text of a hosts file and a services file.
#[derive(Debug, Default)]
pub struct FileNames {
    addresses: HashMap<String, Ipv4Addr>,
    hosts: HashMap<IpAddr, String>,
    services: Services,
}

impl FileNames {
    /// Reads texts in the formats of `/etc/hosts` and `/etc/services`.
    pub fn parse(hosts: &str, services: &str) -> Self {
        let mut names = Self { services: Services::parse(services), ..Self::default() };
        for line in hosts.lines() {
            let mut words = line.split('#').next().unwrap_or_default().split_whitespace();
            let Some(Ok(address)) = words.next().map(str::parse::<IpAddr>) else { continue };
            for (index, name) in words.enumerate() {
                if index == 0 {
                    names.hosts.entry(address).or_insert_with(|| name.into());
                }
                if let IpAddr::V4(address) = address {
                    names.addresses.entry(name.to_ascii_lowercase()).or_insert(address);
                }
            }
        }
        names
    }
}

impl Names for FileNames {
    fn address_of(&self, host: &str) -> Option<Ipv4Addr> {
        self.addresses.get(&host.to_ascii_lowercase()).copied()
    }

    fn host_of(&self, address: IpAddr) -> Option<String> {
        self.hosts.get(&address).cloned()
    }

    fn port_of(&self, service: &str, protocol: Protocol) -> Option<u16> {
        self.services.ports.get(&(service.into(), protocol)).copied()
    }

    fn service_of(&self, port: u16, protocol: Protocol) -> Option<String> {
        self.services.names.get(&(port, protocol)).cloned()
    }
}

/// Names as this system resolves them: hosts through the C library, ports from `/etc/services`.
///
/// The services file is read when the first port name is asked for. A host is asked for once in the life
/// of the value, so that a listing of many services at one address waits for one answer.
#[derive(Debug, Default)]
pub struct SystemNames {
    services: std::cell::OnceCell<Services>,
    hosts: RefCell<HashMap<IpAddr, Option<String>>>,
}

impl SystemNames {
    fn services(&self) -> &Services {
        self.services.get_or_init(|| {
            // Without the file there are no port names, which is what the C library makes of it too.
            Services::parse(&std::fs::read_to_string("/etc/services").unwrap_or_default())
        })
    }
}

impl Names for SystemNames {
    fn address_of(&self, host: &str) -> Option<Ipv4Addr> {
        let hints = dns_lookup::AddrInfoHints { address: libc::AF_INET, ..Default::default() };
        dns_lookup::getaddrinfo(Some(host), None, Some(hints)).ok()?.filter_map(Result::ok).find_map(
            |found| match found.sockaddr.ip() {
                IpAddr::V4(address) => Some(address),
                IpAddr::V6(_) => None,
            },
        )
    }

    fn host_of(&self, address: IpAddr) -> Option<String> {
        let ask = || {
            dns_lookup::getnameinfo(&SocketAddr::new(address, 0), libc::NI_NAMEREQD)
                .ok()
                .map(|(host, _)| host)
        };
        self.hosts.borrow_mut().entry(address).or_insert_with(ask).clone()
    }

    fn port_of(&self, service: &str, protocol: Protocol) -> Option<u16> {
        self.services().ports.get(&(service.into(), protocol)).copied()
    }

    fn service_of(&self, port: u16, protocol: Protocol) -> Option<String> {
        self.services().names.get(&(port, protocol)).cloned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_of_equals_counts() {
        let names = FileNames::parse(
            "10.0.0.1 first.test one # comment\n10.0.0.1 second.test\n2001:db8::1 six.test\n",
            "http 80/tcp www\nhttp-late 80/tcp\ndomain 53/udp\nnonsense\n",
        );
        assert_eq!(names.host_of("10.0.0.1".parse().unwrap()).as_deref(), Some("first.test"));
        assert_eq!(names.address_of("second.test"), Some(Ipv4Addr::new(10, 0, 0, 1)));
        assert_eq!(names.address_of("FIRST.test"), Some(Ipv4Addr::new(10, 0, 0, 1)));
        assert_eq!(names.address_of("six.test"), None);
        assert_eq!(names.port_of("www", Protocol::Tcp), Some(80));
        assert_eq!(names.port_of("domain", Protocol::Tcp), None);
        assert_eq!(names.service_of(80, Protocol::Tcp).as_deref(), Some("http"));
    }

    #[test]
    fn the_system_knows_localhost() {
        let names = SystemNames::default();
        assert_eq!(names.address_of("localhost"), Some(Ipv4Addr::LOCALHOST));
    }
}
