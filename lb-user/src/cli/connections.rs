//! The listing of connections (`-L -c`), in the director's order.

use std::fmt::Write as _;
use std::io::{self, Write};

use lb_common::protocol::Protocol;

use super::address::{self, pad};
use super::names::Names;
use crate::table::ConnectionReport;

/// Writes the titles.
pub fn titles(to: &mut dyn Write, engine_data: bool) -> io::Result<()> {
    writeln!(to, "IPVS connection entries")?;
    if engine_data {
        writeln!(
            to,
            "pro expire {:<11} {:<18} {:<18} {:<18} {:<16} pe_data",
            "state", "source", "virtual", "destination", "pe name"
        )
    } else {
        writeln!(to, "pro expire {:<11} {:<18} {:<18} destination", "state", "source", "virtual")
    }
}

/// Writes a connection's line; with `engine_data` also its persistence engine's name and data, if any.
pub fn write(
    to: &mut dyn Write,
    connection: &ConnectionReport,
    engine_data: bool,
    names: Option<&dyn Names>,
) -> io::Result<()> {
    let out = &mut String::with_capacity(128);
    let protocol = Protocol::ALL.into_iter().find(|known| known.name() == connection.protocol);
    let (minutes, seconds) = (connection.expires / 60, connection.expires % 60);
    let expires = out.len() + connection.protocol.len().max(3) + 1;
    // Writing to a String cannot fail.
    let _ = write!(out, "{:<3} {minutes:02}:{seconds:02}", connection.protocol);
    pad(out, expires, 6);
    let _ = write!(out, " {:<11} ", connection.state);
    let start = out.len();
    address::write(out, connection.client, connection.client_port, protocol, names);
    pad(out, start, 18);
    out.push(' ');
    let start = out.len();
    address::write(out, connection.virtual_address, connection.virtual_port, protocol, names);
    pad(out, start, 18);
    out.push(' ');
    let start = out.len();
    address::write(out, connection.destination, connection.destination_port, protocol, names);
    let mut data: &[u8] = &[];
    if let (true, Some((engine, its))) = (engine_data, &connection.engine) {
        pad(out, start, 16);
        let _ = write!(out, " {engine:<18} ");
        data = its;
    }
    for part in [out.as_bytes(), data, b"\n"] {
        to.write_all(part)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(connection: &ConnectionReport, engine_data: bool) -> String {
        let mut out = Vec::new();
        write(&mut out, connection, engine_data, None).unwrap();
        String::from_utf8(out).unwrap()
    }

    fn connection(protocol: &str, expires: u32, state: &str) -> ConnectionReport {
        ConnectionReport {
            protocol: protocol.into(),
            client: "10.3.0.2".parse().unwrap(),
            client_port: 40012,
            virtual_address: "10.3.0.100".parse().unwrap(),
            virtual_port: 8080,
            destination: "10.2.0.11".parse().unwrap(),
            destination_port: 8080,
            state: state.into(),
            expires,
            engine: None,
        }
    }

    #[test]
    fn lines_are_as_recorded() {
        assert_eq!(
            line(&connection("TCP", 14 * 60 + 58, "ESTABLISHED"), false),
            "TCP 14:58  ESTABLISHED 10.3.0.2:40012     10.3.0.100:8080    10.2.0.11:8080\n"
        );
        assert_eq!(
            line(&connection("SCTP", 44639 * 60 + 59, "CLOSED"), false),
            "SCTP 44639:59 CLOSED      10.3.0.2:40012     10.3.0.100:8080    10.2.0.11:8080\n"
        );
        let mut template = connection("IP", 119, "ASSURED");
        template.engine = Some(("sip".into(), "call@host".into()));
        assert_eq!(
            line(&template, true),
            "IP  01:59  ASSURED     10.3.0.2:40012     10.3.0.100:8080    10.2.0.11:8080   \
             sip                call@host\n"
        );
        assert!(line(&template, false).ends_with("10.2.0.11:8080\n"));
    }
}
