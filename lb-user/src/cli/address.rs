//! Addresses with ports: reading what `-t`, `-u`, `--sctp-service` and `-r` take, and writing them.
//!
//! One grammar for services and servers. Checks of what an address may be are the director's.

use std::fmt::Write as _;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use lb_common::protocol::Protocol;

use super::names::Names;
use super::values::{aton, number};

/// Reads `address[:port]`. Port names are those of the protocol; without one every port name is unknown.
pub fn read(text: &[u8], protocol: Option<Protocol>, names: &dyn Names) -> Option<(IpAddr, Option<u16>)> {
    if text.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let (host, bracket_port) = match text {
        [b'[', inner @ ..] => {
            let end = inner.iter().position(|&byte| byte == b']')?;
            (&inner[..end], Some(inner[end + 1..].strip_prefix(b":")?))
        }
        _ => (text, None),
    };
    if let Some(address) = std::str::from_utf8(host).ok().and_then(|host| host.parse::<Ipv6Addr>().ok()) {
        let port = match bracket_port {
            Some(port) => Some(read_port(port, protocol, names)?),
            None => None,
        };
        return Some((address.into(), port));
    }
    // The port of an IPv4 address in brackets is inside them: what follows them is lost, as in ipvsadm.
    let (host, port) = match host.iter().rposition(|&byte| byte == b':') {
        Some(at) => (&host[..at], Some(&host[at + 1..])),
        None => (host, None),
    };
    let address = read_host(host, names)?;
    let port = match port {
        Some(port) => Some(read_port(port, protocol, names)?),
        None => None,
    };
    Some((address.into(), port))
}

/// Reads an IPv4 address in any form of `inet_aton`, or the name of a host that has one.
pub fn read_host(text: &[u8], names: &dyn Names) -> Option<Ipv4Addr> {
    aton(text).or_else(|| {
        let host = std::str::from_utf8(text).ok().filter(|host| !host.is_empty() && !host.contains('\0'))?;
        names.address_of(host)
    })
}

fn read_port(text: &[u8], protocol: Option<Protocol>, names: &dyn Names) -> Option<u16> {
    number(text, 0..=65535)
        .and_then(|port| u16::try_from(port).ok())
        .or_else(|| names.port_of(std::str::from_utf8(text).ok()?, protocol?))
}

/// Longest `address:port`; what is longer loses its end.
const LONGEST: usize = 59;

/// Appends `address:port`, by name if there are names to ask and they know one; a port without protocol
/// stays a number.
pub fn write(
    out: &mut String,
    address: IpAddr,
    port: u16,
    protocol: Option<Protocol>,
    names: Option<&dyn Names>,
) {
    let start = out.len();
    let host = names.and_then(|names| names.host_of(address));
    // Writing to a String cannot fail.
    let _ = match (&host, address) {
        (Some(host), IpAddr::V4(_)) => write!(out, "{host}:"),
        (Some(host), IpAddr::V6(_)) => write!(out, "[{host}]:"),
        (None, IpAddr::V4(address)) => write!(out, "{address}:"),
        (None, IpAddr::V6(address)) => {
            out.push('[');
            write_ipv6(out, address);
            write!(out, "]:")
        }
    };
    match names.zip(protocol).and_then(|(names, protocol)| names.service_of(port, protocol)) {
        Some(name) => out.push_str(&name),
        None => {
            let _ = write!(out, "{port}");
        }
    }
    cut(out, start, LONGEST);
}

/// Appends an IPv6 address as the C library writes it, which differs from Rust's way for ::a.b.c.d only.
fn write_ipv6(out: &mut String, address: Ipv6Addr) {
    let segments = address.segments();
    let _ = if segments[..6] == [0; 6] && segments[6] != 0 {
        write!(out, "::{}", Ipv4Addr::from((u32::from(segments[6]) << 16) | u32::from(segments[7])))
    } else {
        write!(out, "{address}")
    };
}

/// Cuts what was appended since `start` to so many bytes.
pub fn cut(out: &mut String, start: usize, width: usize) {
    if out.len() - start > width {
        out.truncate(out.floor_char_boundary(start + width));
    }
}

/// Appends blanks until so many bytes stand since `start`.
pub fn pad(out: &mut String, start: usize, width: usize) {
    let missing = (start + width).saturating_sub(out.len());
    out.extend(std::iter::repeat_n(' ', missing));
}

#[cfg(test)]
mod tests {
    use super::super::names::FileNames;
    use super::*;

    fn names() -> FileNames {
        FileNames::parse(
            "10.0.0.1 vip.test\n2001:db8::1 a-host-with-a-name-so-long-that-its-port-does-not-fit.example.test\n",
            "http 80/tcp\n",
        )
    }

    fn read_tcp(text: &str) -> Option<(IpAddr, Option<u16>)> {
        read(text.as_bytes(), Some(Protocol::Tcp), &names())
    }

    #[test]
    fn reads_every_form() {
        let vip = IpAddr::from([10, 0, 0, 1]);
        let six: IpAddr = "2001:db8::1".parse().unwrap();
        assert_eq!(read_tcp("10.0.0.1:80"), Some((vip, Some(80))));
        assert_eq!(read_tcp("10.1"), Some((vip, None)));
        assert_eq!(read_tcp("vip.test:http"), Some((vip, Some(80))));
        assert_eq!(read_tcp("167772161:80"), Some((vip, Some(80))));
        assert_eq!(read_tcp("[10.0.0.1]:80"), Some((vip, None)));
        assert_eq!(read_tcp("[2001:db8::1]:80"), Some((six, Some(80))));
        assert_eq!(read_tcp("2001:db8::1"), Some((six, None)));
        for text in
            ["", "12345", "[2001:db8::1]", "[2001:db8::1]:", "10.0.0.1:", ":80", "[]:80", "10.0.0.1:HTTP"]
        {
            assert_eq!(read_tcp(text), None, "{text:?}");
        }
        assert_eq!(read(b"10.0.0.1:http", None, &names()), None);
    }

    #[test]
    fn writes_as_the_c_library_does() {
        for (address, text) in [
            ("2001:db8:0:0:1::", "[2001:db8:0:0:1::]:80"),
            ("::1", "[::1]:80"),
            ("::", "[::]:80"),
            ("::ffff:1.2.3.4", "[::ffff:1.2.3.4]:80"),
            ("::1.2.3.4", "[::1.2.3.4]:80"),
            ("::1:0", "[::0.1.0.0]:80"),
        ] {
            let mut out = String::new();
            write(&mut out, address.parse().unwrap(), 80, Some(Protocol::Tcp), None);
            assert_eq!(out, text);
        }
        let mut out = String::new();
        write(&mut out, "2001:db8::1".parse().unwrap(), 80, Some(Protocol::Tcp), Some(&names()));
        assert_eq!(out, "[a-host-with-a-name-so-long-that-its-port-does-not-fit.exam");
    }
}
