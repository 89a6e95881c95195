//! Links as they are made: both ends of each veth leave checksums to the other, and none polls for frames of XDP before a program
//! is attached to it.

use anyhow::{Context, Result};
use tests::lab::{INTERFACES, Lab};

use super::traffic::{Serving, counted, is_told_of_ways, use_all};

#[test]
fn checksums_that_senders_leave_to_a_veth_are_computed() -> Result<()> {
    let lab = Lab::new("offload", 1)?;
    let server = &lab.servers[0];
    let _serving = Serving::start(server)?;
    // But for the last link to the server: what GRO has put together is to be taken apart before it comes to the ends of
    // tunnels, which look at checksums and sizes as no tunnel device would.
    let links = [
        (&lab.client, "director"),
        (&lab.client, "servers"),
        (&lab.director, "clients"),
        (&lab.director, "servers"),
        (&lab.switch, "client"),
        (&lab.switch, "director"),
        (&server.namespace, "uplink"),
    ];
    for (namespace, link) in links {
        namespace.run(&format!("ethtool --offload {link} tx on"))?;
    }
    lab.director.sysctl("net/ipv6/conf/all/forwarding", "1")?;
    lab.attach()?;
    use_all(&lab).context("by XDP")?;
    assert_eq!(counted(&lab, "sent-by-stack")?, 0);

    if !is_told_of_ways()? {
        return Ok(());
    }
    for (namespace, link) in links {
        namespace.run(&format!("ethtool --offload {link} gro off"))?;
    }
    // It computes what is left to do, for the same reason.
    for link in INTERFACES {
        lab.director.run(&format!("ethtool --offload {link} tx off"))?;
    }
    lab.attach()?;
    use_all(&lab).context("by the stack")?;
    assert!(counted(&lab, "sent-by-stack")? > 0);
    Ok(())
}
