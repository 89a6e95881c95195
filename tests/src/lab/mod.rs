//! A client, a director and real servers, each in a network namespace of its own, wired by veth.
//!
//! ```text
//!  client                        director                      switch (a bridge)
//!  192.168.1.10 director ------- clients 192.168.1.1           director, client, server1, server2 ...
//!               |                        192.168.1.100 (VIP)     |        |       |
//!               |                servers 10.0.0.1 ---------------+        |       |
//!               +-- servers 10.0.0.2 -------------------------------------+       |
//!                                                   server1: uplink 10.0.0.11 ----+
//! ```
//!
//! The servers' default route is the director, as NAT demands. They have the virtual address on `lo` and do not
//! answer ARP for it; what they send from it goes to the client past the director, as in direct routing. So
//! both forwarding methods work without a change to the lab, at the same time.
//!
//! All of it has addresses of IPv6 too: fd00:1::/64 where the client is, fd00:2::/64 where the servers are.
//!
//! Everything is removed on drop, a panic included; what a killed run left is removed by the next.

pub mod download;
pub mod namespace;
pub mod nginx;
pub mod pair;
pub mod program;
pub mod sctp;
pub mod sockets;

use std::fs::{self, File};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};
use std::process::{self, Output};
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context, Result, bail, ensure};

use namespace::Namespace;

/// The virtual address: the director's, and on `lo` of every server.
pub const VIP: Ipv4Addr = Ipv4Addr::new(192, 168, 1, 100);
/// The client's address on the director's side.
pub const CLIENT: Ipv4Addr = Ipv4Addr::new(192, 168, 1, 10);
/// The director's own address on the client's side.
pub const DIRECTOR_CLIENTS: Ipv4Addr = Ipv4Addr::new(192, 168, 1, 1);
/// The director's address on the servers' side, the servers' default gateway.
pub const DIRECTOR_SERVERS: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 1);
/// The client's address on the servers' side, to which replies of direct routing go.
pub const CLIENT_SERVERS: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 2);
/// [`VIP`] of IPv6.
pub const VIP_IPV6: Ipv6Addr = Ipv6Addr::new(0xfd00, 1, 0, 0, 0, 0, 0, 0x100);
/// [`CLIENT`] of IPv6.
pub const CLIENT_IPV6: Ipv6Addr = Ipv6Addr::new(0xfd00, 1, 0, 0, 0, 0, 0, 0x10);

/// The director's interfaces, the ones to attach to.
pub const INTERFACES: [&str; 2] = ["clients", "servers"];

/// The first word of the name of every namespace and directory of a lab.
const PREFIX: &str = "xipvs";
/// Where iproute2 keeps named namespaces.
const NAMED: &str = "/run/netns";

/// A running lab.
#[derive(Debug)]
pub struct Lab {
    /// Where requests come from.
    pub client: Namespace,
    /// Where xipvs forwards.
    pub director: Namespace,
    /// Where requests are served, `server1` first.
    pub servers: Vec<Server>,
    /// The bridge that director, client and servers share.
    pub switch: Namespace,
    directory: PathBuf,
}

/// A real server: a namespace and its address.
#[derive(Debug)]
pub struct Server {
    /// `server1`, `server2` ...
    pub name: String,
    /// Its address, 10.0.0.11 for the first.
    pub address: Ipv4Addr,
    /// Its address of IPv6, fd00:2::b for the first.
    pub address_ipv6: Ipv6Addr,
    /// Where its programs run.
    pub namespace: Namespace,
}

impl Server {
    /// Its address of the family that another one has.
    pub fn address_for(&self, other: IpAddr) -> IpAddr {
        if other.is_ipv4() { self.address.into() } else { self.address_ipv6.into() }
    }
}

/// The client's address of the family that another one has.
pub fn client_for(other: IpAddr) -> IpAddr {
    if other.is_ipv4() { CLIENT.into() } else { CLIENT_IPV6.into() }
}

impl Lab {
    /// Makes a lab with so many servers (at most 200). `label` is part of the namespaces' names, for whoever looks.
    pub fn new(label: &str, servers: u8) -> Result<Self> {
        ensure!(servers <= 200, "a lab has at most 200 servers");
        remove_leftovers()?;
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = format!("{PREFIX}-{}-{count}-{label}", process::id());

        let directory = std::env::temp_dir().join(&name);
        fs::create_dir(&directory).with_context(|| directory.display().to_string())?;
        let mut lab = Self {
            client: Namespace::new(format!("{name}-client"))?,
            director: Namespace::new(format!("{name}-director"))?,
            switch: Namespace::new(format!("{name}-switch"))?,
            servers: Vec::new(),
            directory,
        };
        lab.wire()?;
        for number in 1..=servers {
            let namespace = Namespace::new(format!("{name}-server{number}"))?;
            let address = Ipv4Addr::new(10, 0, 0, 10 + number);
            let address_ipv6 = Ipv6Addr::new(0xfd00, 2, 0, 0, 0, 0, 0, 10 + u16::from(number));
            lab.servers.push(Server { name: format!("server{number}"), address, address_ipv6, namespace });
            lab.plug_in(lab.servers.last().context("just pushed")?)?;
        }
        Ok(lab)
    }

    /// Makes one more namespace, wired to nothing.
    pub fn another(&self, label: &str) -> Result<Namespace> {
        let lab = self.directory.file_name().unwrap_or_default().to_string_lossy();
        Namespace::new(format!("{lab}-{label}"))
    }

    /// Returns a directory that lives as long as the lab.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Runs `xipvs --netns DIRECTOR` with these words (separated by blanks) and returns what it prints; fails with what it
    /// says when it fails.
    pub fn xipvs(&self, words: &str) -> Result<String> {
        let output = self.xipvs_output(words)?;
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr);
            bail!("`xipvs {words}` failed ({}): {}", output.status, said.trim_end());
        }
        Ok(String::from_utf8(output.stdout)?)
    }

    /// Like [`Lab::xipvs`], but returns status and both streams, whatever they are.
    pub fn xipvs_output(&self, words: &str) -> Result<Output> {
        let binary = binary();
        ensure!(binary.exists(), "no {}; run `cargo xtask build`", binary.display());
        Ok(self.director.xipvs(words).output()?)
    }

    /// Runs `xipvs -R` with these lines; fails with what it says when it fails.
    pub fn restore(&self, rules: &str) -> Result<()> {
        let file = self.directory.join("rules");
        fs::write(&file, rules)?;
        let output = self.director.xipvs("-R").stdin(File::open(&file)?).output()?;
        ensure!(output.status.success(), "xipvs -R: {}", String::from_utf8_lossy(&output.stderr).trim_end());
        Ok(())
    }

    /// Attaches xipvs to the director's two interfaces.
    pub fn attach(&self) -> Result<String> {
        self.xipvs(&format!("attach {}", INTERFACES.join(" ")))
    }

    /// Makes what is there before any server.
    fn wire(&self) -> Result<()> {
        // First, because an interface takes its settings from `default` when it is made.
        for namespace in [&self.client, &self.director] {
            namespace.sysctl("net/ipv4/conf/all/rp_filter", "0")?;
            namespace.sysctl("net/ipv4/conf/default/rp_filter", "0")?;
        }
        self.director.sysctl("net/ipv4/ip_forward", "1")?;

        self.switch.ip(&["link add bridge type bridge mcast_snooping 0", "link set bridge up"])?;
        self.client.veth("director", &self.director, "clients")?;
        self.client.veth("servers", &self.switch, "client")?;
        self.director.veth("servers", &self.switch, "director")?;
        self.switch.ip(&["link set client master bridge", "link set director master bridge"])?;

        self.client.ip(&[
            &format!("addr add {CLIENT}/24 dev director"),
            &format!("addr add {CLIENT_SERVERS}/24 dev servers"),
            &format!("addr add {CLIENT_IPV6}/64 dev director nodad"),
            "addr add fd00:2::2/64 dev servers nodad",
        ])?;
        self.director.ip(&[
            &format!("addr add {DIRECTOR_CLIENTS}/24 dev clients"),
            &format!("addr add {VIP}/32 dev clients"),
            &format!("addr add {DIRECTOR_SERVERS}/24 dev servers"),
            "addr add fd00:1::1/64 dev clients nodad",
            &format!("addr add {VIP_IPV6}/128 dev clients nodad"),
            "addr add fd00:2::1/64 dev servers nodad",
        ])
    }

    fn plug_in(&self, server: &Server) -> Result<()> {
        let inside = &server.namespace;
        for scope in ["all", "default"] {
            inside.sysctl(&format!("net/ipv4/conf/{scope}/rp_filter"), "0")?;
            // The virtual address is the director's to answer for.
            inside.sysctl(&format!("net/ipv4/conf/{scope}/arp_ignore"), "1")?;
            inside.sysctl(&format!("net/ipv4/conf/{scope}/arp_announce"), "2")?;
        }
        inside.veth("uplink", &self.switch, &server.name)?;
        self.switch.ip(&[&format!("link set {} master bridge", server.name)])?;
        inside.ip(&[
            &format!("addr add {}/24 dev uplink", server.address),
            &format!("addr add {VIP}/32 dev lo"),
            &format!("route add default via {DIRECTOR_SERVERS}"),
            &format!("route add {CLIENT}/32 via {CLIENT_SERVERS} table 100"),
            &format!("rule add from {VIP} lookup 100"),
            &format!("addr add {}/64 dev uplink nodad", server.address_ipv6),
            &format!("addr add {VIP_IPV6}/128 dev lo nodad"),
            "route add default via fd00:2::1",
            &format!("route add {CLIENT_IPV6}/128 via fd00:2::2 table 100"),
        ])?;
        // A batch takes the family of rules from its command line.
        inside.run(&format!("ip -6 rule add from {VIP_IPV6} lookup 100")).map(drop)
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.directory);
    }
}

/// Returns the binary that `cargo xtask build` makes.
pub fn binary() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/release/xipvs")
}

/// Removes what labs of runs that are no more have left.
fn remove_leftovers() -> Result<()> {
    for directory in [Path::new(NAMED), &std::env::temp_dir()] {
        let Ok(entries) = fs::read_dir(directory) else { continue };
        for entry in entries {
            let entry = entry?;
            let Some(name) = entry.file_name().to_str().and_then(dead).map(str::to_owned) else { continue };
            match directory == Path::new(NAMED) {
                true => drop(Namespace::adopt(name)),
                // Two runs may be about this at once; the other one's success is as good.
                false => drop(fs::remove_dir_all(entry.path())),
            }
        }
    }
    Ok(())
}

/// Returns the name if it is a lab's whose process has ended.
fn dead(name: &str) -> Option<&str> {
    let pid: u32 = name.strip_prefix(PREFIX)?.strip_prefix('-')?.split('-').next()?.parse().ok()?;
    (!Path::new("/proc").join(pid.to_string()).exists()).then_some(name)
}

#[cfg(test)]
mod tests {
    use super::dead;

    #[test]
    fn only_labs_of_ended_processes_are_leftovers() {
        // Linux gives out numbers up to 2^22.
        assert_eq!(dead("xipvs-4194305-0-demo-client"), Some("xipvs-4194305-0-demo-client"));
        assert_eq!(dead(&format!("xipvs-{}-0-demo-client", std::process::id())), None);
        assert_eq!(dead("xipvs-production"), None);
        assert_eq!(dead("other-4194305-0"), None);
    }
}
