//! What a director's host has: addresses, routes, neighbours, and rules of netfilter.

use std::fs;
use std::io::Write as _;
use std::net::IpAddr;
use std::process::{Command, Stdio};

use super::packet::{Mac, mac_of};

/// The director's link addresses.
pub const CLIENTS: Mac = [2, 0, 0, 0, 1, 1];
pub const SERVERS: Mac = [2, 0, 0, 0, 2, 1];
/// The router that every client is behind, by each family.
pub const ROUTER: &str = "192.168.1.254";
pub const ROUTER6: &str = "fd00:1::fe";

/// The director's addresses besides virtual ones: length of the network, interface.
const ADDRESSES: [(&str, u8, &str); 4] = [
    ("192.168.1.1", 24, "clients"),
    ("10.0.0.1", 24, "servers"),
    ("fd00:1::1", 64, "clients"),
    ("fd00:2::1", 64, "servers"),
];

/// The virtual addresses that the director has, told in the same way.
fn virtual_addresses() -> impl Iterator<Item = (String, u8, &'static str)> {
    let of_one = |last| [(format!("192.168.1.{last}"), 32, "lo"), (format!("fd00:1::{last}"), 128, "lo")];
    (100..=103).flat_map(of_one)
}

/// Whether an address is the director's own.
pub fn is_own(address: IpAddr) -> bool {
    let is = |own: &str| own.parse() == Ok(address);
    address.is_loopback()
        || ADDRESSES.iter().any(|(own, ..)| is(own))
        || virtual_addresses().any(|(own, ..)| is(&own))
}

/// Whether an address is a server's.
pub fn is_server(address: IpAddr) -> bool {
    servers().any(|server| server.parse() == Ok(address))
}

fn servers() -> impl Iterator<Item = String> {
    (11..=42).flat_map(|last| [format!("10.0.0.{last}"), format!("fd00:2::{last}")])
}

/// Addresses, routes and neighbours of the namespace that the calling thread is in.
pub fn configure() {
    for (path, value) in [
        ("ipv4/ip_forward", "1"),
        ("ipv4/conf/all/rp_filter", "0"),
        ("ipv4/conf/default/rp_filter", "0"),
        ("ipv4/conf/clients/rp_filter", "0"),
        ("ipv4/conf/servers/rp_filter", "0"),
        // Answers of direct routing that come this way have an address of the director.
        ("ipv4/conf/servers/accept_local", "1"),
        ("ipv4/icmp_ratelimit", "0"),
        ("ipv6/conf/all/forwarding", "1"),
        ("ipv6/conf/clients/accept_dad", "0"),
        ("ipv6/conf/servers/accept_dad", "0"),
        ("ipv6/icmp/ratelimit", "0"),
    ] {
        fs::write(format!("/proc/sys/net/{path}"), value).expect(path);
    }
    let mut lines = vec![
        format!("link set clients address {}", shown(CLIENTS)),
        format!("link set servers address {}", shown(SERVERS)),
        "link set clients up".into(),
        "link set servers up".into(),
    ];
    let networks = ADDRESSES.map(|(address, length, interface)| (address.to_owned(), length, interface));
    for (address, length, interface) in networks.into_iter().chain(virtual_addresses()) {
        let nodad = if address.contains(':') { "nodad" } else { "" };
        lines.push(format!("address add {address}/{length} dev {interface} {nodad}"));
    }
    lines.extend([ROUTER, ROUTER6].map(|router| format!("route add default via {router}")));
    let neighbours = servers().map(|address| (address, "servers"));
    let routers = [ROUTER, ROUTER6].map(|address| (address.to_owned(), "clients"));
    for (address, interface) in neighbours.chain(routers) {
        let mac = mac_of(address.parse::<IpAddr>().unwrap());
        lines.push(format!("neighbour add {address} lladdr {} dev {interface} nud permanent", shown(mac)));
    }
    let mut ip = Command::new("ip").args(["-batch", "-"]).stdin(Stdio::piped()).spawn().expect("ip");
    ip.stdin.take().unwrap().write_all(lines.join("\n").as_bytes()).unwrap();
    assert!(ip.wait().unwrap().success(), "{lines:#?}");
}

/// Has the stack of the namespace that the calling thread is in forget what it has learned of paths. What it knows of IPv6's
/// lies with each route.
pub fn forget() {
    shell(&format!(
        "ip route flush cache && \
         ip -6 route replace fd00:1::/64 dev clients proto kernel metric 256 && \
         ip -6 route replace fd00:2::/64 dev servers proto kernel metric 256 && \
         ip -6 route replace default via {ROUTER6}"
    ))
    .unwrap();
}

fn shown(mac: Mac) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}

/// The commands that have netfilter mark packets as a rule of ours does, for every family that the rule is for: those that come in,
/// and if it is for no interface those of the director itself.
pub fn iptables(words: &[&str]) -> Result<String, String> {
    let [mark, options @ ..] = words else { return Err("no mark".into()) };
    let (mut programs, mut chains) = (vec!["iptables", "ip6tables"], vec!["PREROUTING", "OUTPUT"]);
    let (mut protocol, mut line) = (String::new(), String::new());
    for option in options.chunks(2) {
        let [name, value] = option else { return Err(format!("{option:?} wants a value")) };
        let ports = value.replace('-', ":");
        match *name {
            "--family" => programs.retain(|program| program.contains('6') == (*value == "ipv6")),
            // Ports are known once the protocol is.
            "--protocol" => protocol = format!("-p {value}"),
            "--source-ports" => line += &format!(" --sport {ports}"),
            "--destination-ports" => line += &format!(" --dport {ports}"),
            "--interface" => {
                chains.truncate(1);
                line += &format!(" -i {value}");
            }
            "--source" | "--destination" => {
                programs.retain(|program| program.contains('6') == value.contains(':'));
                line += &format!(" {name} {value}");
            }
            other => return Err(format!("{other}: no such option")),
        }
    }
    let mut commands = Vec::new();
    for program in programs {
        for chain in &chains {
            commands
                .push(format!("{program} {protocol} -t mangle -A {chain}{line} -j MARK --set-mark {mark}"));
        }
    }
    Ok(commands.join(" && "))
}

/// Runs a line of shell in the namespace that the calling thread is in.
pub fn shell(line: &str) -> Result<(), String> {
    let output = Command::new("sh").args(["-c", line]).output().expect("a shell");
    let said = String::from_utf8_lossy(&output.stderr);
    if output.status.success() { Ok(()) } else { Err(format!("{line}: {said}")) }
}
