//! The connections of kernel IPVS, from the lines of `/proc/net/ip_vs_conn`.
//!
//! IPVS counterpart: `ip_vs_conn_seq_show`. Neither forwarding method nor flags are told there.

use std::io::{self, BufRead};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::table::ConnectionReport;

/// Reads the file, which begins with a title.
pub fn read(file: impl BufRead) -> io::Result<Vec<ConnectionReport>> {
    let mut connections = Vec::new();
    for line in file.split(b'\n').skip(1) {
        let line = line?;
        let strange = || io::Error::other(format!("ip_vs_conn: {:?}", String::from_utf8_lossy(&line)));
        connections.push(parse(&line).ok_or_else(strange)?);
    }
    Ok(connections)
}

fn parse(line: &[u8]) -> Option<ConnectionReport> {
    let mut rest = line;
    let mut word = || {
        let from = rest.iter().position(|byte| *byte != b' ')?;
        let start = &rest[from..];
        let end = start.iter().position(|byte| *byte == b' ');
        let (word, after) = end.map_or((start, &[][..]), |end| (&start[..end], &start[end + 1..]));
        rest = after;
        str::from_utf8(word).ok()
    };
    let connection = ConnectionReport {
        protocol: word()?.into(),
        client: address(word()?)?,
        client_port: port(word()?)?,
        virtual_address: address(word()?)?,
        virtual_port: port(word()?)?,
        destination: address(word()?)?,
        destination_port: port(word()?)?,
        state: word()?.into(),
        expires: word()?.parse().ok()?,
        engine: None,
    };
    let engine = word().map(|name| (name.to_owned(), rest.to_vec()));
    Some(ConnectionReport { engine, ..connection })
}

/// Eight hexadecimal digits, or eight groups of four.
fn address(text: &str) -> Option<IpAddr> {
    if text.contains(':') {
        text.parse::<Ipv6Addr>().ok().map(IpAddr::from)
    } else {
        u32::from_str_radix(text, 16).ok().map(|bits| Ipv4Addr::from(bits).into())
    }
}

fn port(text: &str) -> Option<u16> {
    u16::from_str_radix(text, 16).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const TITLE: &str = "Pro FromIP   FPrt ToIP     TPrt DestIP   DPrt State       Expires PEName PEData\n";

    /// Lines as captured from Linux 6.1.
    const LINES: &str = "\
TCP 0A000002 4E28 0A000064 0050 0A010102 0050 SYN_RECV         57
TCP 0A000000 0000 0A000064 005B 0A010309 005B NONE              4
IP  0A00004D 0000 00000007 0000 0A010309 0000 NONE             58
UDP fd00:000a:0000:0000:0000:0000:0000:0077 03EA fd00:000a:0000:0000:0000:0000:0000:0100 0035 fd00:00b1:0000:0000:0000:0000:0000:0009 14E9 UDP             299
";

    #[test]
    fn captured_lines_are_read() {
        let connections = read(format!("{TITLE}{LINES}").as_bytes()).unwrap();
        assert_eq!(connections.len(), 4);
        let first = &connections[0];
        assert_eq!(first.protocol, "TCP");
        assert_eq!((first.client, first.client_port), ([10, 0, 0, 2].into(), 20008));
        assert_eq!((first.virtual_address, first.virtual_port), ([10, 0, 0, 100].into(), 80));
        assert_eq!((first.destination, first.destination_port), ([10, 1, 1, 2].into(), 80));
        assert_eq!((first.state.as_str(), first.expires, &first.engine), ("SYN_RECV", 57, &None));
        assert_eq!(connections[2].virtual_address, IpAddr::from([0, 0, 0, 7]));
        assert_eq!(connections[3].client, "fd00:a::77".parse::<IpAddr>().unwrap());
        assert_eq!(connections[3].destination_port, 5353);
    }

    #[test]
    fn engine_data_are_kept_byte_by_byte() {
        let line = b"UDP 0A000002 13C4 0A000064 13C4 0A010102 13C4 UDP             299 sip call 1@h\xf6st";
        let engine = parse(line).unwrap().engine.unwrap();
        assert_eq!(engine, ("sip".to_owned(), b"call 1@h\xf6st".to_vec()));
    }

    #[test]
    fn no_line_no_connection_and_a_strange_line_is_an_error() {
        assert_eq!(read(TITLE.as_bytes()).unwrap(), vec![]);
        assert!(read(format!("{TITLE}TCP 0A000002\n").as_bytes()).is_err());
    }
}
