//! What several tests have clients do, and what they look at then.

use std::net::{IpAddr, SocketAddr};

use anyhow::{Context, Result, ensure};
use aya::util::KernelVersion;
use tests::lab::sockets::{Listener, ask_tcp, ask_udp, sends_much};
use tests::lab::{Lab, Server, VIP, VIP_IPV6, client_for};

use super::tunnel_ends::{GUE_PORT, TunnelEnds};

/// Requests of each kind by each method; the first makes the way known.
pub const REQUESTS: usize = 5;

/// What a server must run so that it can be reached by every method.
#[must_use]
pub struct Serving {
    _listeners: [Listener; 6],
    _ends: TunnelEnds,
}

impl Serving {
    /// Starts it, once for all of a test: a port that was just closed may be held for a moment by what another test is about
    /// to start.
    pub fn start(server: &Server) -> Result<Self> {
        let listeners = [
            Listener::tcp(server, 80)?,
            Listener::tcp(server, 8080)?,
            Listener::udp(server, (server.address, 8080))?,
            Listener::udp(server, (server.address_ipv6, 8080))?,
            Listener::udp(server, (VIP, 80))?,
            Listener::udp(server, (VIP_IPV6, 80))?,
        ];
        Ok(Self { _listeners: listeners, _ends: TunnelEnds::open(server, false)? })
    }
}

/// Whether the kernel tells which interfaces take what XDP redirects, so that the stack can send where one does not.
pub fn is_told_of_ways() -> Result<bool> {
    Ok(KernelVersion::current()? >= KernelVersion::new(6, 3, 0))
}

/// How many packets were counted under a reason.
pub fn counted(lab: &Lab, reason: &str) -> Result<u64> {
    let status = lab.xipvs("status --all")?;
    let line = status.lines().find(|line| line.split_whitespace().next() == Some(reason));
    Ok(line.with_context(|| status.clone())?.split_whitespace().nth(1).context("no number")?.parse()?)
}

/// Has a service of a virtual address with one destination, over TCP and over UDP, and looks that the client is served.
pub fn use_service(
    lab: &Lab,
    client: IpAddr,
    to: SocketAddr,
    destination: SocketAddr,
    method: &str,
) -> Result<()> {
    for protocol in ["-t", "-u"] {
        lab.xipvs(&format!("-A {protocol} {to} -s rr"))?;
        lab.xipvs(&format!("-a {protocol} {to} -r {destination} {method}"))?;
    }
    let asked = (|| -> Result<()> {
        let datagrams = lab.client.bind((client, 0))?;
        for _ in 0..REQUESTS {
            ensure!(ask_tcp(&lab.client, to)?.client.ip() == client, "another client");
            ensure!(ask_udp(&datagrams, to)?.client.ip() == client, "another client");
        }
        sends_much(&lab.client, to, 300_000)
    })();
    asked.with_context(|| {
        format!("{to} {method} {destination}\n{}", lab.xipvs("status").unwrap_or_default())
    })?;
    for protocol in ["-t", "-u"] {
        lab.xipvs(&format!("-D {protocol} {to}"))?;
    }
    Ok(())
}

/// Has services of both families and protocols by every method, in turn, and looks that the client is served.
pub fn use_all(lab: &Lab) -> Result<()> {
    let server = &lab.servers[0];
    let (v4, v6): (IpAddr, IpAddr) = (server.address.into(), server.address_ipv6.into());
    let gue = format!("-i --tun-type gue --tun-port {GUE_PORT}");
    let rows = [
        (IpAddr::from(VIP), v4, "-m"),
        (VIP.into(), v4, "-g"),
        (VIP.into(), v4, "-i"),
        (VIP.into(), v4, gue.as_str()),
        (VIP.into(), v6, "-i"),
        (VIP_IPV6.into(), v6, "-m"),
        (VIP_IPV6.into(), v6, "-g"),
        (VIP_IPV6.into(), v6, "-i"),
    ];
    for (vip, destination, method) in rows {
        let client = client_for(vip);
        let port = if method == "-m" { 8080 } else { 80 };
        let to = SocketAddr::new(vip, 80);
        use_service(lab, client, to, SocketAddr::new(destination, port), method)?;
    }
    ensure!(counted(lab, "not-redirected")? == 0, "{}", lab.xipvs("status")?);
    Ok(())
}
