//! A director whose links are bridges, which XDP cannot send out of: nothing is lost, by any method, in either direction.

use std::net::{IpAddr, SocketAddr};

use anyhow::{Context, Result, ensure};
use tests::lab::sockets::{Listener, ask_tcp, ask_udp};
use tests::lab::{CLIENT, CLIENT_IPV6, DIRECTOR_CLIENTS, DIRECTOR_SERVERS, Lab, VIP, VIP_IPV6};

use super::traffic::{counted, sends_much};
use super::tunnel_ends::{GUE_PORT, TunnelEnds};

/// Requests of each kind; the first makes the way known.
const REQUESTS: usize = 5;

/// Puts an interface of the director into a new bridge, which gets its addresses.
fn bridge(lab: &Lab, name: &str, port: &str, addresses: &[String]) -> Result<()> {
    let mut lines = vec![
        format!("addr flush dev {port}"),
        format!("link add {name} type bridge mcast_snooping 0"),
        format!("link set {name} up"),
        format!("link set {port} master {name}"),
    ];
    lines.extend(addresses.iter().map(|address| format!("addr add {address} dev {name}")));
    lab.director.ip(&lines.iter().map(String::as_str).collect::<Vec<_>>())?;
    // The stack sees what comes in at a port come from the bridge: answers too, while their client's neighbour is looked for.
    lab.director.sysctl(&format!("net/ipv4/conf/{name}/accept_local"), "1")
}

fn bridge_servers(lab: &Lab) -> Result<()> {
    bridge(lab, "inside", "servers", &[format!("{DIRECTOR_SERVERS}/24"), "fd00:2::1/64 nodad".into()])
}

fn bridge_clients(lab: &Lab) -> Result<()> {
    let addresses = [
        format!("{DIRECTOR_CLIENTS}/24"),
        format!("{VIP}/32"),
        "fd00:1::1/64 nodad".into(),
        format!("{VIP_IPV6}/128 nodad"),
    ];
    bridge(lab, "outside", "clients", &addresses)
}

/// Services of both families and protocols by every method, in turn.
fn use_all(lab: &Lab) -> Result<()> {
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
        let client: IpAddr = if vip.is_ipv4() { CLIENT.into() } else { CLIENT_IPV6.into() };
        let port = if method == "-m" { 8080 } else { 80 };
        let to = SocketAddr::new(vip, 80);
        let destination = SocketAddr::new(destination, port);
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
            sends_much(&lab.client, to)
        })();
        asked.with_context(|| {
            format!("{to} {method} {destination}\n{}", lab.xipvs("status").unwrap_or_default())
        })?;
        for protocol in ["-t", "-u"] {
            lab.xipvs(&format!("-D {protocol} {to}"))?;
        }
    }
    ensure!(counted(lab, "not-redirected")? == 0, "{}", lab.xipvs("status")?);
    Ok(())
}

#[test]
fn nothing_is_lost_where_the_way_out_is_a_bridge() -> Result<()> {
    let lab = Lab::new("bridge", 1)?;
    let server = &lab.servers[0];
    let _web = [Listener::tcp(server, 80)?, Listener::tcp(server, 8080)?];
    // Once for all: a port that was just closed may be held for a moment by what another test is about to start.
    let _names = [
        Listener::udp(server, (server.address, 8080))?,
        Listener::udp(server, (server.address_ipv6, 8080))?,
        Listener::udp(server, (VIP, 80))?,
        Listener::udp(server, (VIP_IPV6, 80))?,
    ];
    let _ends = TunnelEnds::open(server, false)?;
    lab.director.sysctl("net/ipv6/conf/all/forwarding", "1")?;
    lab.attach()?;
    use_all(&lab).context("plain")?;
    assert_eq!(counted(&lab, "sent-by-stack")?, 0, "veth takes what XDP redirects");

    // Made after the program was attached, which so knows nothing of it.
    bridge_servers(&lab)?;
    use_all(&lab).context("a new bridge towards servers")?;
    let new = counted(&lab, "sent-by-stack")?;
    assert!(new > REQUESTS as u64, "{new}");

    lab.attach()?;
    use_all(&lab).context("a known bridge towards servers")?;
    let known = counted(&lab, "sent-by-stack")?;
    assert!(known > new + REQUESTS as u64, "{new} {known}");

    bridge_clients(&lab)?;
    lab.attach()?;
    use_all(&lab).context("bridges on both sides")?;
    let both = counted(&lab, "sent-by-stack")?;
    assert!(both > known + REQUESTS as u64, "{known} {both}");
    Ok(())
}
