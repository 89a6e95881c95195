//! A director with one link, by which clients come in and which leads to the servers too: a veth whose other end has no XDP
//! program.

use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr};

use anyhow::{Context, Result, ensure};
use tests::lab::sockets::Listener;
use tests::lab::{CLIENT_SERVERS, DIRECTOR_SERVERS, Lab, VIP, VIP_IPV6};

use super::traffic::{REQUESTS, counted, is_told_of_ways, use_service};
use super::tunnel_ends::TunnelEnds;

/// Services of both families by direct routing and through a tunnel; and one without servers, of which clients are told.
fn use_all(lab: &Lab) -> Result<()> {
    let server = &lab.servers[0];
    let client_ipv6 = "fd00:2::2".parse::<IpAddr>()?;
    for (vip, client, real) in [
        (IpAddr::from(VIP), IpAddr::from(CLIENT_SERVERS), IpAddr::from(server.address)),
        (VIP_IPV6.into(), client_ipv6, server.address_ipv6.into()),
    ] {
        let (to, real) = (SocketAddr::new(vip, 80), SocketAddr::new(real, 80));
        for method in ["-g", "-i"] {
            use_service(lab, client, to, real, method)?;
        }
        lab.xipvs(&format!("-A -u {to} -s rr"))?;
        let stranger = lab.client.bind((client, 0))?;
        stranger.connect(to)?;
        stranger.send(b"who")?;
        let refused = stranger.recv(&mut [0; 16]).unwrap_err();
        ensure!(refused.kind() == ErrorKind::ConnectionRefused, "{to}: {refused}");
        lab.xipvs(&format!("-D -u {to}"))?;
    }
    Ok(())
}

#[test]
fn one_link_serves_for_both_ways() -> Result<()> {
    let lab = Lab::new("onearm", 1)?;
    let server = &lab.servers[0];
    let _web = Listener::tcp(server, 80)?;
    let _names = [Listener::udp(server, (VIP, 80))?, Listener::udp(server, (VIP_IPV6, 80))?];
    let _ends = TunnelEnds::open(server, false)?;
    lab.client.ip(&[
        &format!("route add {VIP}/32 via {DIRECTOR_SERVERS} src {CLIENT_SERVERS}"),
        &format!("route add {VIP_IPV6}/128 via fd00:2::1 src fd00:2::2"),
    ])?;
    lab.director.sysctl("net/ipv6/conf/all/forwarding", "1")?;
    lab.xipvs("attach servers")?;
    use_all(&lab).context("the other end takes frames")?;
    assert_eq!(counted(&lab, "sent-by-stack")?, 0);

    // Then it does not, as any veth that is as it was made.
    if !is_told_of_ways()? {
        return Ok(());
    }
    lab.switch.run("ethtool --offload director gro off")?;
    lab.xipvs("attach servers")?;
    use_all(&lab).context("the other end takes none")?;
    assert!(counted(&lab, "sent-by-stack")? > REQUESTS as u64);
    assert_eq!(counted(&lab, "not-redirected")?, 0, "{}", lab.xipvs("status")?);
    Ok(())
}
