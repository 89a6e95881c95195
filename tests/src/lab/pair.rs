//! Two directors before the same client and servers, of which one can take over from the other.
//!
//! ```text
//!            client                      director (the first)
//!  192.168.1.10 director ------- clients 192.168.1.1   servers 10.0.0.1 ---- switch
//!                                        sync 10.9.0.1                         |
//!            client                        |        second                     |
//!  192.168.2.10 second --------- clients 192.168.2.1   servers 10.0.0.3 -------+
//!                                        sync 10.9.0.2
//! ```

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use anyhow::{Result, ensure};

use super::download::serve;
use super::namespace::Namespace;
use super::{CLIENT, CLIENT_IPV6, INTERFACES, Lab, VIP, VIP_IPV6};

/// Two directors before the same client and servers, with a link of their own, `sync`.
#[derive(Debug)]
pub struct Pair {
    /// The one that takes over.
    // Dropped before the lab that it is named after.
    pub second: Namespace,
    /// The one that is there first is the lab's director.
    pub lab: Lab,
}

/// One of them, by one of its tables.
#[derive(Debug, Clone, Copy)]
pub struct Director<'a> {
    /// Where it is.
    pub namespace: &'a Namespace,
    /// The option that says whose table.
    table: &'static str,
}

impl<'a> Director<'a> {
    /// The one in this namespace, by the XDP program's table.
    pub fn of(namespace: &'a Namespace) -> Self {
        Self { namespace, table: "" }
    }

    /// The same by kernel IPVS's table.
    #[must_use]
    pub fn kernel(self) -> Self {
        Self { table: "--director kernel ", ..self }
    }

    /// Whether it is kernel IPVS's.
    pub fn is_kernel(self) -> bool {
        !self.table.is_empty()
    }

    /// Runs xipvs; what it prints.
    pub fn xipvs(&self, words: &str) -> Result<String> {
        let words = format!("{}{words}", self.table);
        let output = self.namespace.xipvs(&words).output()?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "`xipvs {words}`: {} {}", output.status, said.trim_end());
        Ok(String::from_utf8(output.stdout)?)
    }

    /// The connections and templates, each with the seconds that it has left.
    pub fn listed(&self) -> BTreeMap<String, u32> {
        let listed = self.xipvs("-Lnc").unwrap();
        let read = |line: &str| {
            let mut words: Vec<&str> = line.split_whitespace().collect();
            let (minutes, seconds) = words.remove(1).split_once(':').unwrap();
            (words.join(" "), minutes.parse::<u32>().unwrap() * 60 + seconds.parse::<u32>().unwrap())
        };
        listed.lines().skip(2).map(read).collect()
    }

    /// The connections and templates, each without its time.
    pub fn connections(&self) -> Vec<String> {
        self.listed().into_keys().collect()
    }

    /// The lines of destinations, from the method on, with active and inactive connections.
    pub fn counts(&self) -> Vec<String> {
        let listed = self.xipvs("-Ln").unwrap();
        let lines = listed.lines().filter(|line| line.contains(" Masq ") || line.contains(" Route "));
        let mut lines: Vec<String> =
            lines.map(|line| line.split_whitespace().skip(1).collect::<Vec<_>>().join(" ")).collect();
        // Kernel IPVS lists services in the order of its buckets.
        lines.sort();
        lines
    }

    /// The packets that clients have sent to the services.
    pub fn in_packets(&self) -> u64 {
        let listed = self.xipvs("-L -n --stats --exact").unwrap();
        let services = listed.lines().filter(|line| line.starts_with("TCP"));
        services.map(|line| line.split_whitespace().nth(3).unwrap().parse::<u64>().unwrap()).sum()
    }
}

impl Pair {
    /// Makes a lab with two servers, and the second director.
    pub fn new(label: &str) -> Result<Self> {
        let lab = Lab::new(label, 2)?;
        let second = lab.another("second")?;
        for scope in ["all", "default"] {
            second.sysctl(&format!("net/ipv4/conf/{scope}/rp_filter"), "0")?;
        }
        second.sysctl("net/ipv4/ip_forward", "1")?;
        for director in [&lab.director, &second] {
            director.sysctl("net/ipv6/conf/all/forwarding", "1")?;
        }
        lab.client.veth("second", &second, "clients")?;
        second.veth("servers", &lab.switch, "second")?;
        lab.director.veth("sync", &second, "sync")?;
        lab.switch.ip(&["link set second master bridge"])?;
        lab.client.ip(&["addr add 192.168.2.10/24 dev second", "addr add fd00:3::10/64 dev second nodad"])?;
        lab.director.ip(&["addr add 10.9.0.1/24 dev sync", "addr add fd00:9::1/64 dev sync nodad"])?;
        second.ip(&[
            "addr add 10.9.0.2/24 dev sync",
            "addr add fd00:9::2/64 dev sync nodad",
            "addr add 192.168.2.1/24 dev clients",
            "addr add 10.0.0.3/24 dev servers",
            "addr add fd00:3::1/64 dev clients nodad",
            "addr add fd00:2::3/64 dev servers nodad",
            &format!("route add {CLIENT}/32 via 192.168.2.10"),
            &format!("route add {CLIENT_IPV6}/128 via fd00:3::10"),
        ])?;
        Ok(Self { second, lab })
    }

    /// Both directors.
    pub fn directors(&self) -> [Director<'_>; 2] {
        [&self.lab.director, &self.second].map(Director::of)
    }

    /// Attaches xipvs to the interfaces of both.
    pub fn attach(&self) -> Result<()> {
        for director in self.directors() {
            director.xipvs(&format!("attach {}", INTERFACES.join(" ")))?;
        }
        Ok(())
    }

    /// Starts the servers' downloads.
    pub fn serve(&self) {
        for server in &self.lab.servers {
            serve(&server.namespace, 80);
            serve(&server.namespace, 81);
        }
    }

    /// Gives a director the rules.
    pub fn configure(&self, director: Director<'_>) -> Result<()> {
        let [one, two] = &self.lab.servers[..] else { anyhow::bail!("two servers") };
        let rules = format!(
            "-A -t {VIP}:80 -s rr -p 600 -M 255.255.255.0
            -a -t {VIP}:80 -r {}:80 -m
            -a -t {VIP}:80 -r {}:80 -m
            -A -t {VIP}:81 -s rr
            -a -t {VIP}:81 -r {} -g
            -A -t [{VIP_IPV6}]:80 -s rr
            -a -t [{VIP_IPV6}]:80 -r [{}]:80 -m
            -A -t [{VIP_IPV6}]:81 -s rr -p 600 -M 64
            -a -t [{VIP_IPV6}]:81 -r [{}]:81 -g",
            one.address, two.address, two.address, one.address_ipv6, two.address_ipv6
        );
        rules.lines().try_for_each(|words| director.xipvs(words).map(drop))
    }

    /// Takes the first director's links away, and moves the virtual addresses and the servers' gateway to the second one, as
    /// VRRP would.
    pub fn fail_over(&self) -> Result<()> {
        self.lab.director.ip(&["link set clients down", "link set servers down"])?;
        self.lab.client.ip(&[
            &format!("route add {VIP}/32 via 192.168.2.1 src {CLIENT}"),
            &format!("route add {VIP_IPV6}/128 via fd00:3::1 src {CLIENT_IPV6}"),
        ])?;
        for server in &self.lab.servers {
            server
                .namespace
                .ip(&["route replace default via 10.0.0.3", "route replace default via fd00:2::3"])?;
        }
        Ok(())
    }
}

/// Where downloads are: by NAT and by direct routing, in both families; the first and the last have persistence.
pub fn services() -> [SocketAddr; 4] {
    let at = |address: IpAddr, port| SocketAddr::new(address, port);
    [at(VIP.into(), 80), at(VIP.into(), 81), at(VIP_IPV6.into(), 80), at(VIP_IPV6.into(), 81)]
}
