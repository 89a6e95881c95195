//! Services and destinations as the words of an ipvsadm rule line, always numeric.
//!
//! Not for reading such words (`cli` does), nor for names of hosts and ports.
//! IPVS counterpart: the output of `ipvsadm -S -n`.

use std::fmt;
use std::net::{Ipv4Addr, SocketAddr};

use lb_common::forward::{ForwardingMethod, TunnelChecksum, TunnelType};
use lb_common::protocol::Protocol;

use crate::table::{
    Destination, DestinationKey, Family, Netmask, Service, ServiceKey, Timeouts, service_flags,
};

impl fmt::Display for ServiceKey {
    /// `-t 192.0.2.1:80`, `-u [2001:db8::1]:53`, `-f 7 -6`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Address { protocol, address, port } => {
                let option = match protocol {
                    Protocol::Tcp => "-t",
                    Protocol::Udp => "-u",
                    Protocol::Sctp => "--sctp-service",
                };
                write!(f, "{option} {}", SocketAddr::new(address, port))
            }
            Self::Mark { mark, family: Family::V4 } => write!(f, "-f {mark}"),
            Self::Mark { mark, family: Family::V6 } => write!(f, "-f {mark} -6"),
        }
    }
}

impl fmt::Display for DestinationKey {
    /// `198.51.100.1:80`, `[2001:db8::1]:80`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        SocketAddr::new(self.address, self.port).fmt(f)
    }
}

impl fmt::Display for Netmask {
    /// `255.255.255.0`, `64`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::V4(mask) => Ipv4Addr::from(mask).fmt(f),
            Self::V6(length) => length.fmt(f),
        }
    }
}

impl fmt::Display for Service {
    /// The key and every option that is not the default: `-t 192.0.2.1:80 -s rr -p 300`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} -s {}", self.key, self.scheduler)?;
        if self.flags & service_flags::PERSISTENT != 0 {
            write!(f, " -p {}", self.timeout)?;
        }
        if self.netmask != Netmask::full(self.key.family()) {
            write!(f, " -M {}", self.netmask)?;
        }
        if let Some(engine) = &self.engine {
            write!(f, " --pe {engine}")?;
        }
        if self.flags & service_flags::ONE_PACKET != 0 {
            f.write_str(" -o")?;
        }
        let names = scheduler_flag_names(&self.scheduler);
        let bits = [service_flags::SCHEDULER_1, service_flags::SCHEDULER_2, service_flags::SCHEDULER_3];
        let set: Vec<&str> =
            bits.iter().zip(names).filter(|(bit, _)| self.flags & **bit != 0).map(|(_, name)| name).collect();
        if !set.is_empty() {
            write!(f, " -b {}", set.join(","))?;
        }
        write_own_timeouts(f, self, true)
    }
}

impl fmt::Display for Destination {
    /// The key and its options: `198.51.100.1:80 -g -w 1`, thresholds only if there are any.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} -w {}", self.key, method_option(self.method), self.weight)?;
        if self.upper_threshold != 0 {
            write!(f, " -x {}", self.upper_threshold)?;
        }
        if self.lower_threshold != 0 {
            write!(f, " -y {}", self.lower_threshold)?;
        }
        write_tunnel(f, self)
    }
}

/// Writes the options of a service's own timeouts, each after a blank; those of 0 if `all` are wanted.
pub fn write_own_timeouts(f: &mut dyn fmt::Write, service: &Service, all: bool) -> fmt::Result {
    let Some(Timeouts { tcp, tcp_fin, udp }) = service.own_timeouts else { return Ok(()) };
    [("tcp", tcp), ("tcp-fin", tcp_fin), ("udp", udp)]
        .into_iter()
        .filter(|(_, seconds)| all || *seconds != 0)
        .try_for_each(|(name, seconds)| write!(f, " --{name}-timeout {seconds}"))
}

/// The option of a forwarding method.
pub fn method_option(method: ForwardingMethod) -> &'static str {
    match method {
        ForwardingMethod::Masquerade => "-m",
        ForwardingMethod::Tunnel => "-i",
        // The other two are set by IPVS itself; an operator reaches them with direct routing.
        ForwardingMethod::DirectRoute | ForwardingMethod::LocalNode | ForwardingMethod::Bypass => "-g",
    }
}

/// Writes a tunnel destination's options, each after a blank; nothing for another method.
pub fn write_tunnel(f: &mut dyn fmt::Write, destination: &Destination) -> fmt::Result {
    if destination.method != ForwardingMethod::Tunnel {
        return Ok(());
    }
    let tunnel = &destination.tunnel;
    write!(f, " --tun-type {}", tunnel.kind.name())?;
    if tunnel.kind == TunnelType::Gue {
        write!(f, " --tun-port {}", tunnel.port)?;
    }
    if tunnel.kind != TunnelType::Ipip {
        f.write_str(match tunnel.checksum {
            TunnelChecksum::None => " --tun-nocsum",
            TunnelChecksum::Full => " --tun-csum",
            TunnelChecksum::Remote => " --tun-remcsum",
        })?;
    }
    Ok(())
}

/// What `-b` calls the three scheduler flags of this scheduler.
pub fn scheduler_flag_names(scheduler: &str) -> [&'static str; 3] {
    match scheduler {
        "sh" => ["sh-fallback", "sh-port", "flag-3"],
        "mh" => ["mh-fallback", "mh-port", "flag-3"],
        _ => ["flag-1", "flag-2", "flag-3"],
    }
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use super::*;
    use crate::table::Tunnel;

    fn web() -> ServiceKey {
        ServiceKey::Address { protocol: Protocol::Tcp, address: IpAddr::from([192, 0, 2, 1]), port: 80 }
    }

    #[test]
    fn services_read_as_rules() {
        let mut service = Service::new(web());
        assert_eq!(service.to_string(), "-t 192.0.2.1:80 -s wlc");
        service.scheduler = "sh".into();
        service.flags = service_flags::PERSISTENT | service_flags::SCHEDULER_1 | service_flags::SCHEDULER_2;
        service.timeout = 360;
        service.netmask = Netmask::V4(0xffff_ff00);
        assert_eq!(
            service.to_string(),
            "-t 192.0.2.1:80 -s sh -p 360 -M 255.255.255.0 -b sh-fallback,sh-port"
        );

        let mut marked = Service::new(ServiceKey::Mark { mark: 7, family: Family::V6 });
        marked.engine = Some("sip".into());
        marked.flags = service_flags::ONE_PACKET;
        marked.netmask = Netmask::V6(64);
        assert_eq!(marked.to_string(), "-f 7 -6 -s wlc -M 64 --pe sip -o");
        let own =
            Service { own_timeouts: Some(Timeouts { tcp: 30, tcp_fin: 0, udp: 5 }), ..Service::new(web()) };
        let words = "-t 192.0.2.1:80 -s wlc --tcp-timeout 30 --tcp-fin-timeout 0 --udp-timeout 5";
        assert_eq!(own.to_string(), words);
    }

    #[test]
    fn destinations_read_as_rules() {
        let mut destination =
            Destination::new(DestinationKey { address: "2001:db8::1".parse().unwrap(), port: 80 });
        assert_eq!(destination.to_string(), "[2001:db8::1]:80 -g -w 1");
        destination.method = ForwardingMethod::Tunnel;
        destination.upper_threshold = 5;
        destination.lower_threshold = 2;
        destination.tunnel = Tunnel { kind: TunnelType::Gue, port: 6080, checksum: TunnelChecksum::Remote };
        assert_eq!(
            destination.to_string(),
            "[2001:db8::1]:80 -i -w 1 -x 5 -y 2 --tun-type gue --tun-port 6080 --tun-remcsum"
        );
    }
}
