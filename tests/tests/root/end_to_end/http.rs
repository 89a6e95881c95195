//! nginx and curl, by every forwarding method, of both families and between them.

use std::fs;
use std::net::IpAddr;

use anyhow::{Context, Result, ensure};
use tests::lab::nginx::Nginx;
use tests::lab::{Lab, Server, VIP, VIP_IPV6};

use super::tunnel_ends::{GUE_PORT, TunnelEnds};

/// Where nginx listens for NAT, which is the only method that translates ports.
const TRANSLATED: u16 = 8080;
/// The first port of a service; the others follow.
const FIRST: u16 = 8100;
/// Bytes of a download: many packets, and more than what is sent at once.
const LARGE: usize = 300_000;

/// A service with one server.
struct Row {
    port: u16,
    vip: IpAddr,
    server: usize,
    destination: String,
    method: String,
}

impl Row {
    /// Returns `ADDRESS:PORT` of the service.
    fn service(&self) -> String {
        match self.vip {
            IpAddr::V4(vip) => format!("{vip}:{}", self.port),
            IpAddr::V6(vip) => format!("[{vip}]:{}", self.port),
        }
    }
}

/// Every method that is worth a row: tunnels go to the first server without checksums and to the second with.
fn rows(servers: &[Server]) -> Vec<Row> {
    let mut rows = Vec::new();
    let mut add = |vip: IpAddr, server: usize, over_ipv6: bool, method: &str| {
        let port = FIRST + rows.len() as u16;
        let at = &servers[server];
        let to_port = if method == "-m" { TRANSLATED } else { port };
        let destination = match over_ipv6 {
            false => format!("{}:{to_port}", at.address),
            true => format!("[{}]:{to_port}", at.address_ipv6),
        };
        rows.push(Row { port, vip, server, destination, method: method.to_owned() });
    };
    for vip in [IpAddr::from(VIP), IpAddr::from(VIP_IPV6)] {
        for method in ["-m", "-g"] {
            add(vip, 0, vip.is_ipv6(), method);
        }
        for over_ipv6 in [false, true] {
            add(vip, 0, over_ipv6, "-i");
            for kind in ["gre".to_owned(), format!("gue --tun-port {GUE_PORT}")] {
                add(vip, 0, over_ipv6, &format!("-i --tun-type {kind} --tun-nocsum"));
                add(vip, 1, over_ipv6, &format!("-i --tun-type {kind} --tun-csum"));
            }
        }
    }
    rows
}

#[test]
fn pages_and_files_come_by_every_method() -> Result<()> {
    let lab = Lab::new("http", 2)?;
    let rows = rows(&lab.servers);
    let ports: Vec<_> = rows.iter().map(|row| row.port).chain([TRANSLATED]).collect();
    let file: Vec<u8> = (0..LARGE).map(|at| (at % 251) as u8).collect();
    let (mut servers, mut ends) = (Vec::new(), Vec::new());
    for (server, checksums) in lab.servers.iter().zip([false, true]) {
        let nginx = Nginx::start(&lab, server, &ports)?;
        fs::write(nginx.root().join("large"), &file)?;
        servers.push(nginx);
        ends.push(TunnelEnds::open(server, checksums)?);
    }
    lab.attach()?;
    let rule = |row: &Row| {
        let service = row.service();
        format!("-A -t {service}\n-a -t {service} -r {} {}\n", row.destination, row.method)
    };
    lab.restore(&rows.iter().map(rule).collect::<String>())?;
    for row in &rows {
        let (service, name) = (row.service(), &lab.servers[row.server].name);
        // Both come over one connection.
        let mut curl = lab.client.command("curl");
        curl.args(["--silent", "--show-error", "--fail", "--globoff", "--max-time", "20"]);
        curl.args([format!("http://{service}/"), format!("http://{service}/large")]);
        let output = curl.output().context("curl")?;
        let said = String::from_utf8_lossy(&output.stderr);
        let what = format!("{service} -> {} {}", row.destination, row.method);
        ensure!(output.status.success(), "{what}: {}\n{}", said.trim_end(), lab.xipvs("status")?);
        let wanted = [name.as_bytes(), b"\n", &file].concat();
        ensure!(output.stdout == wanted, "{what}: {} bytes, or other ones", output.stdout.len());
    }
    // All went by the director, and the answers of NAT alone came back by it.
    let listing = lab.xipvs("-Ln --stats --exact --sort")?;
    let lines: Vec<_> = listing.lines().filter(|line| line.starts_with("  -> ")).skip(1).collect();
    ensure!(lines.len() == rows.len(), "{listing}");
    for line in lines {
        let words: Vec<_> = line.split_whitespace().collect();
        let is_nat = words[1].ends_with(&format!(":{TRANSLATED}"));
        ensure!(words[2] == "1" && (words[4] != "0") == is_nat, "{listing}");
    }
    Ok(())
}
