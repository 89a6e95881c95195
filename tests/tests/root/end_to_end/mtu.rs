//! Transfers of many megabytes that find less room on their way than at their ends, and have to be told.

use std::fs::{self, File};
use std::io::{self, Read};
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use tests::lab::namespace::Namespace;
use tests::lab::nginx::Nginx;
use tests::lab::{CLIENT, CLIENT_IPV6, Lab, VIP, VIP_IPV6};

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

/// Attaches the director, and any program at all at the other ends of its links: a veth whose peer has none sits on what goes
/// out where it came in, such as news about the MTU.
fn attach(lab: &Lab) -> Result<()> {
    lab.attach()?;
    for (namespace, link) in [(&lab.client, "director"), (&lab.switch, "director")] {
        let output = namespace.xipvs(&format!("attach {link}")).output()?;
        ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
    Ok(())
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
    attach(&lab)?;
    uploads_by_every_method_learn_how_much_fits_beside_its_headers(&lab, &file).context("upload")?;
    servers_behind_nat_learn_how_much_fits_on_the_way_to_clients(&lab, &file).context("download")?;
    put_behind_router(&lab)?;
    uploads_learn_of_a_narrow_link_behind_a_router(&lab, &file).context("behind a router")
}

fn uploads_by_every_method_learn_how_much_fits_beside_its_headers(lab: &Lab, file: &Path) -> Result<()> {
    let server = &lab.servers[0];
    let (v4, v6) = (server.address, server.address_ipv6);
    let gue = format!("-i --tun-type gue --tun-port {GUE_PORT}");
    // Virtual address, destination, method, and what the method needs of the room.
    let rows: [(IpAddr, IpAddr, &str, u16); 12] = [
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
    let service = |row: usize| (8000 + row as u16, rows[row].0);
    let ports: Vec<_> = (0..rows.len()).map(|row| service(row).0).collect();
    let nginx = Nginx::start(lab, server, &ports)?;
    let _ends = TunnelEnds::open(server, false)?;
    lab.director.ip(&[
        &format!("route change 10.0.0.0/24 dev servers proto kernel scope link src 10.0.0.1 mtu lock {ROOM}"),
        &format!("route change fd00:2::/64 dev servers proto kernel metric 256 mtu lock {ROOM}"),
    ])?;
    let in_url =
        |address: IpAddr| if address.is_ipv6() { format!("[{address}]") } else { address.to_string() };
    for (row, (vip, destination, method, headers)) in rows.iter().enumerate() {
        let (port, destination) = (service(row).0, in_url(*destination));
        let vip_port = format!("{}:{port}", in_url(*vip));
        lab.xipvs(&format!("-A -t {vip_port}"))?;
        lab.xipvs(&format!("-a -t {vip_port} -r {destination}:{port} {method}"))?;
        forget_ways(&lab.client)?;
        let what = format!("{vip_port} -> {destination} {method}");
        curl(lab, &["-T", &file.display().to_string(), &format!("http://{vip_port}/{row}")])
            .with_context(|| format!("{what}\n{}", lab.xipvs("status").unwrap_or_default()))?;
        assert!(is_whole(&nginx.root().join(row.to_string()), file)?, "{what}");
        let known = way(&lab.client, *vip)?;
        assert!(known.contains(&format!(" mtu {}", ROOM - headers)), "{what}: {known}");
        fs::remove_file(nginx.root().join(row.to_string()))?;
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

/// Puts the second server behind the first one, which is a router then, on a link of [`ROOM`]: 10.9.0.2 and fd00:9::2.
///
/// It says that it takes as much as other links carry, so that nothing but the router's errors tell of it.
fn put_behind_router(lab: &Lab) -> Result<()> {
    let [router, far] = &lab.servers[..] else { unreachable!("two servers") };
    router.namespace.sysctl("net/ipv4/ip_forward", "1")?;
    router.namespace.sysctl("net/ipv6/conf/all/forwarding", "1")?;
    // Answers of tunnels come from the virtual address, which it has too.
    router.namespace.sysctl("net/ipv4/conf/all/accept_local", "1")?;
    far.namespace.ip(&["link set uplink down"])?;
    router.namespace.veth("far", &far.namespace, "near")?;
    router.namespace.ip(&[
        &format!("link set far mtu {ROOM}"),
        "addr add 10.9.0.1/24 dev far",
        "addr add fd00:9::1/64 dev far nodad",
    ])?;
    far.namespace.ip(&[
        &format!("link set near mtu {ROOM}"),
        "addr add 10.9.0.2/24 dev near",
        "addr add fd00:9::2/64 dev near nodad",
        "route replace default via 10.9.0.1 advmss 1460",
        "route replace default via fd00:9::1 dev near advmss 1440",
        &format!("route replace {CLIENT}/32 via 10.9.0.1 table 100 advmss 1460"),
        &format!("route replace {CLIENT_IPV6}/128 via fd00:9::1 table 100 advmss 1440"),
    ])?;
    lab.director.ip(&[
        &format!("route add 10.9.0.0/24 via {}", router.address),
        &format!("route add fd00:9::/64 via {}", router.address_ipv6),
    ])
}

fn uploads_learn_of_a_narrow_link_behind_a_router(lab: &Lab, file: &Path) -> Result<()> {
    let nginx = Nginx::start(lab, &lab.servers[1], &[8080])?;
    for (row, (vip, destination)) in
        [(IpAddr::from(VIP), "10.9.0.2"), (VIP_IPV6.into(), "[fd00:9::2]")].into_iter().enumerate()
    {
        let service = if vip.is_ipv6() { format!("[{vip}]:81") } else { format!("{vip}:81") };
        lab.xipvs(&format!("-A -t {service}"))?;
        lab.xipvs(&format!("-a -t {service} -r {destination}:8080 -m"))?;
        forget_ways(&lab.client)?;
        curl(lab, &["-T", &file.display().to_string(), &format!("http://{service}/{row}")])
            .with_context(|| format!("{service}\n{}", lab.xipvs("status").unwrap_or_default()))?;
        assert!(is_whole(&nginx.root().join(row.to_string()), file)?, "{service}");
        let known = way(&lab.client, vip)?;
        assert!(known.contains(&format!(" mtu {ROOM}")), "{service}: {known}");
    }
    Ok(())
}
