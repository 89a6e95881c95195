//! A director whose links are bridges, which XDP cannot send out of: nothing is lost, by any method, in either direction.

use anyhow::{Context, Result};
use tests::lab::{DIRECTOR_CLIENTS, DIRECTOR_SERVERS, INTERFACES, Lab, VIP, VIP_IPV6};

use super::traffic::{REQUESTS, Serving, counted, use_all};

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

#[test]
fn nothing_is_lost_where_the_way_out_is_a_bridge() -> Result<()> {
    let lab = Lab::new("bridge", 1)?;
    let _serving = Serving::start(&lab.servers[0])?;
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

#[test]
fn a_bridge_that_is_attached_itself_wants_packets_as_they_come() -> Result<()> {
    let lab = Lab::new("upper", 1)?;
    let _serving = Serving::start(&lab.servers[0])?;
    lab.director.sysctl("net/ipv6/conf/all/forwarding", "1")?;
    bridge_servers(&lab)?;
    bridge_clients(&lab)?;
    for port in INTERFACES {
        lab.director.run(&format!("ethtool --offload {port} gro off"))?;
    }
    let output = lab.xipvs_output("attach --generic outside inside")?;
    let said = String::from_utf8(output.stderr)?;
    let warns = |line: &str| line.starts_with("xipvs: warning:") && line.contains("(GRO)");
    assert!(output.status.success() && said.lines().count() == 2 && said.lines().all(warns), "{said}");
    use_all(&lab)
}
