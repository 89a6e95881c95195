//! Transfers of many megabytes that find less room on their way than at their ends, and have to be told.

use std::fs::{self, File};
use std::io::{self, Read};
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use tests::lab::namespace::Namespace;
use tests::lab::nginx::Nginx;
use tests::lab::{CLIENT, CLIENT_IPV6, Lab, Server, VIP, VIP_IPV6};

use super::tunnel_ends::{GUE_PORT, TunnelEnds};

const FILE: u64 = 20_000_000;
/// What fits through: on links of 1500, routes say so, because a veth would not take larger packets in either.
const ROOM: u16 = 1400;
const IPV4: u16 = 20;
const IPV6: u16 = 40;
const GRE: u16 = 4;
/// UDP's header and GUE's.
const GUE: u16 = 12;

/// Makes the file that goes to and fro.
fn file(lab: &Lab) -> Result<PathBuf> {
    let file = lab.directory().join("file");
    io::copy(&mut File::open("/dev/urandom")?.take(FILE), &mut File::create(&file)?)?;
    Ok(file)
}

fn curl(lab: &Lab, words: &[&str]) -> Result<()> {
    let mut curl = lab.client.command("curl");
    curl.args(["--silent", "--show-error", "--fail", "--globoff", "--max-time", "30"]).args(words);
    let output = curl.output().context("curl")?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr).trim_end());
    Ok(())
}

fn is_whole(copy: &Path, file: &Path) -> Result<bool> {
    Ok(fs::read(copy)? == fs::read(file)?)
}

/// Has a namespace forget what it has learned of the ways to others.
fn forget_ways(namespace: &Namespace) -> Result<()> {
    namespace.run("ip route flush cache")?;
    namespace.run("ip -6 route flush cache").map(drop)
}

/// Returns what a namespace knows of the way to an address.
fn way(namespace: &Namespace, to: IpAddr) -> Result<String> {
    namespace.run(&format!("ip route get {to}"))
}

#[test]
fn large_files_get_through_where_less_fits_than_their_senders_think() -> Result<()> {
    let lab = Lab::new("mtu", 2)?;
    let file = file(&lab)?;
    lab.attach()?;
    uploads_by_every_method_learn_how_much_fits_beside_its_headers(&lab, &file).context("upload")?;
    servers_behind_nat_learn_how_much_fits_on_the_way_to_clients(&lab, &file).context("download")?;
    put_behind_router(&lab)?;
    uploads_learn_of_a_narrow_link_behind_a_router(&lab, &file).context("behind a router")
}

fn uploads_by_every_method_learn_how_much_fits_beside_its_headers(lab: &Lab, file: &Path) -> Result<()> {
    let server = &lab.servers[0];
    let (v4, v6) = (server.address, server.address_ipv6);
    let gue = format!("-i --tun-type gue --tun-port {GUE_PORT}");
    let rows: [Row<'_>; 12] = [
        (VIP.into(), v4.into(), "-m", 0),
        (VIP.into(), v4.into(), "-g", 0),
        (VIP.into(), v4.into(), "-i", IPV4),
        (VIP.into(), v4.into(), "-i --tun-type gre", IPV4 + GRE),
        (VIP.into(), v4.into(), &gue, IPV4 + GUE),
        (VIP.into(), v6.into(), "-i", IPV6),
        (VIP_IPV6.into(), v6.into(), "-m", 0),
        (VIP_IPV6.into(), v6.into(), "-g", 0),
        (VIP_IPV6.into(), v6.into(), "-i", IPV6),
        (VIP_IPV6.into(), v6.into(), "-i --tun-type gre", IPV6 + GRE),
        (VIP_IPV6.into(), v6.into(), &gue, IPV6 + GUE),
        (VIP_IPV6.into(), v4.into(), "-i", IPV4),
    ];
    lab.director.ip(&[
        &format!("route change 10.0.0.0/24 dev servers proto kernel scope link src 10.0.0.1 mtu lock {ROOM}"),
        &format!("route change fd00:2::/64 dev servers proto kernel metric 256 mtu lock {ROOM}"),
    ])?;
    upload(lab, server, file, 8000, &rows)
}

/// A way to a server: virtual address, destination, method, and what the method needs of the room.
type Row<'a> = (IpAddr, IpAddr, &'a str, u16);

/// Uploads the file by each row, from this port on, and looks that the client knows then how much fits.
fn upload(lab: &Lab, server: &Server, file: &Path, first: u16, rows: &[Row<'_>]) -> Result<()> {
    let ports: Vec<_> = (first..).take(rows.len()).collect();
    let nginx = Nginx::start(lab, server, &ports)?;
    let _ends = TunnelEnds::open(server, false)?;
    let in_url =
        |address: IpAddr| if address.is_ipv6() { format!("[{address}]") } else { address.to_string() };
    for (port, (vip, destination, method, headers)) in ports.iter().zip(rows) {
        let destination = in_url(*destination);
        let vip_port = format!("{}:{port}", in_url(*vip));
        lab.xipvs(&format!("-A -t {vip_port}"))?;
        lab.xipvs(&format!("-a -t {vip_port} -r {destination}:{port} {method}"))?;
        forget_ways(&lab.client)?;
        let what = format!("{vip_port} -> {destination} {method}");
        curl(lab, &["-T", &file.display().to_string(), &format!("http://{vip_port}/{port}")])
            .with_context(|| format!("{what}\n{}", lab.xipvs("status").unwrap_or_default()))?;
        assert!(is_whole(&nginx.root().join(port.to_string()), file)?, "{what}");
        let known = way(&lab.client, *vip)?;
        assert!(known.contains(&format!(" mtu {}", ROOM - headers)), "{what}: {known}");
        fs::remove_file(nginx.root().join(port.to_string()))?;
    }
    Ok(())
}

fn servers_behind_nat_learn_how_much_fits_on_the_way_to_clients(lab: &Lab, file: &Path) -> Result<()> {
    let server = &lab.servers[0];
    let nginx = Nginx::start(lab, server, &[8080])?;
    fs::hard_link(file, nginx.root().join("file"))?;
    lab.director.ip(&[
        &format!(
            "route change 192.168.1.0/24 dev clients proto kernel scope link src 192.168.1.1 mtu lock {ROOM}"
        ),
        &format!("route change fd00:1::/64 dev clients proto kernel metric 256 mtu lock {ROOM}"),
    ])?;
    // It is the stack that tells servers, which it does only where it would have forwarded.
    lab.director.sysctl("net/ipv6/conf/all/forwarding", "1")?;
    let copy = lab.directory().join("copy");
    for (vip, destination, client) in [
        (VIP.to_string(), server.address.to_string(), IpAddr::from(CLIENT)),
        (format!("[{VIP_IPV6}]"), format!("[{}]", server.address_ipv6), CLIENT_IPV6.into()),
    ] {
        lab.xipvs(&format!("-A -t {vip}:80"))?;
        lab.xipvs(&format!("-a -t {vip}:80 -r {destination}:8080 -m"))?;
        // Or the client would ask for segments as small as it may send itself.
        forget_ways(&lab.client)?;
        curl(lab, &["-o", &copy.display().to_string(), &format!("http://{vip}/file")])
            .with_context(|| format!("{vip}\n{}", lab.xipvs("status").unwrap_or_default()))?;
        assert!(is_whole(&copy, file)?, "{vip}");
        let known = way(&server.namespace, client)?;
        assert!(known.contains(&format!(" mtu {ROOM}")), "{vip}: {known}");
    }
    Ok(())
}

/// Puts the second server behind the first one, which is a router then, on a link of [`ROOM`].
///
/// It says that it takes as much as other links carry, so that nothing but the router's errors tell of it.
fn put_behind_router(lab: &Lab) -> Result<()> {
    let [router, far] = &lab.servers[..] else { unreachable!("two servers") };
    let (v4, v6) = (far.address, far.address_ipv6);
    router.namespace.sysctl("net/ipv4/ip_forward", "1")?;
    router.namespace.sysctl("net/ipv6/conf/all/forwarding", "1")?;
    // Answers of tunnels come from the virtual address, which it has too.
    router.namespace.sysctl("net/ipv4/conf/all/accept_local", "1")?;
    far.namespace.ip(&["link delete uplink"])?;
    far.namespace.veth("uplink", &router.namespace, "far")?;
    router.namespace.ip(&[
        &format!("link set far mtu {ROOM}"),
        "addr add 10.9.0.1/24 dev far",
        "addr add fd00:9::1/64 dev far nodad",
        &format!("route add {v4}/32 via 10.9.0.2"),
        &format!("route add {v6}/128 via fd00:9::2"),
    ])?;
    far.namespace.ip(&[
        &format!("link set uplink mtu {ROOM}"),
        "addr add 10.9.0.2/24 dev uplink",
        "addr add fd00:9::2/64 dev uplink nodad",
        &format!("addr add {v4}/32 dev uplink"),
        &format!("addr add {v6}/128 dev uplink nodad"),
        "route add default via 10.9.0.1 advmss 1460",
        "route add default via fd00:9::1 dev uplink advmss 1440",
        &format!("route add {CLIENT}/32 via 10.9.0.1 table 100 advmss 1460"),
        &format!("route add {CLIENT_IPV6}/128 via fd00:9::1 dev uplink table 100 advmss 1440"),
    ])?;
    lab.director.ip(&[
        &format!("route add {v4}/32 via {}", router.address),
        &format!("route add {v6}/128 via {}", router.address_ipv6),
    ])
}

fn uploads_learn_of_a_narrow_link_behind_a_router(lab: &Lab, file: &Path) -> Result<()> {
    let far = &lab.servers[1];
    let (v4, v6) = (far.address, far.address_ipv6);
    // As in IPVS, errors about tunnels of IPv6 and between the families are nobody's.
    let gue = format!("-i --tun-type gue --tun-port {GUE_PORT}");
    let rows: [Row<'_>; 5] = [
        (VIP.into(), v4.into(), "-m", 0),
        (VIP.into(), v4.into(), "-i", IPV4),
        (VIP.into(), v4.into(), "-i --tun-type gre", IPV4 + GRE),
        (VIP.into(), v4.into(), &gue, IPV4 + GUE),
        (VIP_IPV6.into(), v6.into(), "-m", 0),
    ];
    upload(lab, far, file, 8100, &rows)
}
