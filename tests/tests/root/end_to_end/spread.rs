//! Requests and datagrams of plain sockets: how evenly they are spread, and that every packet is counted.

use std::collections::BTreeMap;
use std::net::{SocketAddr, SocketAddrV4, SocketAddrV6};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Result;
use tests::lab::sockets::{Listener, ask_tcp, ask_udp};
use tests::lab::{CLIENT, Lab, VIP, VIP_IPV6, client_for};

const SERVERS: u8 = 4;
const REQUESTS: usize = 1000;

/// Sums up the lines of servers in `-Ln --stats --exact`: connections, packets in, packets out.
fn counted(lab: &Lab) -> Result<[u64; 3]> {
    let mut sum = [0; 3];
    for line in lab
        .xipvs("-Ln --stats --exact")?
        .lines()
        .filter(|line| line.starts_with("  -> 10.") || line.starts_with("  -> [fd00:"))
    {
        for (sum, word) in sum.iter_mut().zip(line.split_whitespace().skip(2)) {
            *sum += word.parse::<u64>()?;
        }
    }
    Ok(sum)
}

/// Asks many times, and checks who answered how often.
fn ask_evenly(lab: &Lab, to: impl Into<SocketAddr>) -> Result<()> {
    let to = to.into();
    let client = client_for(to.ip());
    let mut answered = BTreeMap::new();
    for _ in 0..REQUESTS {
        let answer = ask_tcp(&lab.client, to)?;
        assert_eq!(answer.client.ip(), client);
        *answered.entry(answer.server).or_insert(0) += 1;
    }
    assert_eq!(answered.len(), usize::from(SERVERS));
    assert!(answered.values().all(|count| *count == REQUESTS / usize::from(SERVERS)), "{answered:?}");
    Ok(())
}

/// Waits until the client has nothing more to say: its connections have ended.
fn settle() {
    thread::sleep(Duration::from_millis(300));
}

#[test]
fn a_thousand_requests_are_spread_evenly_with_nat_and_every_packet_is_counted() -> Result<()> {
    let lab = Lab::new("nat", SERVERS)?;
    let _servers: Vec<_> =
        lab.servers.iter().map(|server| Listener::tcp(server, 8080)).collect::<Result<_>>()?;
    lab.attach()?;
    lab.xipvs(&format!("-A -t {VIP}:80 -s rr"))?;
    for server in &lab.servers {
        lab.xipvs(&format!("-a -t {VIP}:80 -r {}:8080 -m", server.address))?;
    }
    let before = lab.client.segments()?;
    ask_evenly(&lab, SocketAddrV4::new(VIP, 80))?;
    settle();
    let after = lab.client.segments()?;
    assert_eq!(counted(&lab)?, [REQUESTS as u64, after.1 - before.1, after.0 - before.0]);
    Ok(())
}

#[test]
fn a_thousand_requests_are_spread_evenly_with_direct_routing_and_every_packet_is_counted() -> Result<()> {
    let lab = Lab::new("direct", SERVERS)?;
    let _servers: Vec<_> =
        lab.servers.iter().map(|server| Listener::tcp(server, 80)).collect::<Result<_>>()?;
    lab.attach()?;
    lab.xipvs(&format!("-A -t {VIP}:80 -s rr"))?;
    for server in &lab.servers {
        lab.xipvs(&format!("-a -t {VIP}:80 -r {} -g", server.address))?;
    }
    let before = lab.client.segments()?;
    ask_evenly(&lab, SocketAddrV4::new(VIP, 80))?;
    settle();
    let after = lab.client.segments()?;
    // The answers do not pass the director.
    assert_eq!(counted(&lab)?, [REQUESTS as u64, after.1 - before.1, 0]);
    Ok(())
}

#[test]
fn ipv6_is_balanced_with_both_forwarding_methods() -> Result<()> {
    let lab = Lab::new("ipv6", SERVERS)?;
    let _web: Vec<_> = lab.servers.iter().map(|server| Listener::tcp(server, 8080)).collect::<Result<_>>()?;
    let _direct: Vec<_> =
        lab.servers.iter().map(|server| Listener::tcp(server, 81)).collect::<Result<_>>()?;
    lab.attach()?;
    lab.xipvs(&format!("-A -t [{VIP_IPV6}]:80 -s rr"))?;
    lab.xipvs(&format!("-A -t [{VIP_IPV6}]:81 -s rr"))?;
    for server in &lab.servers {
        lab.xipvs(&format!("-a -t [{VIP_IPV6}]:80 -r [{}]:8080 -m", server.address_ipv6))?;
        lab.xipvs(&format!("-a -t [{VIP_IPV6}]:81 -r [{}]:81 -g", server.address_ipv6))?;
    }
    for (port, answers_pass) in [(80, true), (81, false)] {
        lab.xipvs("-Z")?;
        let before = lab.client.segments()?;
        ask_evenly(&lab, SocketAddrV6::new(VIP_IPV6, port, 0, 0))?;
        settle();
        let after = lab.client.segments()?;
        let answers = if answers_pass { after.0 - before.0 } else { 0 };
        assert_eq!(counted(&lab)?, [REQUESTS as u64, after.1 - before.1, answers], "port {port}");
    }
    Ok(())
}

#[test]
fn datagrams_of_a_flow_go_to_one_server_and_an_idle_flow_is_forgotten() -> Result<()> {
    let lab = Lab::new("udp", 2)?;
    let _servers: Vec<_> = lab
        .servers
        .iter()
        .map(|server| Listener::udp(server, SocketAddrV4::new(server.address, 5353)))
        .collect::<Result<_>>()?;
    lab.attach()?;
    lab.xipvs(&format!("-A -u {VIP}:53 -s rr"))?;
    for server in &lab.servers {
        lab.xipvs(&format!("-a -u {VIP}:53 -r {}:5353 -m", server.address))?;
    }
    let vip = SocketAddrV4::new(VIP, 53);
    let sockets =
        [lab.client.bind(SocketAddrV4::new(CLIENT, 0))?, lab.client.bind(SocketAddrV4::new(CLIENT, 0))?];
    let mut servers = Vec::new();
    for socket in &sockets {
        let first = ask_udp(socket, vip)?;
        for _ in 0..20 {
            assert_eq!(ask_udp(socket, vip)?, first);
        }
        servers.push(first.server);
    }
    assert_ne!(servers[0], servers[1]);
    assert_eq!(lab.xipvs("-Lnc")?.lines().filter(|line| line.starts_with("UDP")).count(), 2);
    // The last column counts connections that are not active, which those of UDP never are.
    let inactive = |listing: &str| -> u32 {
        let rows = listing.lines().filter(|line| line.starts_with("  -> 10."));
        rows.filter_map(|line| line.split_whitespace().last()?.parse::<u32>().ok()).sum()
    };
    assert_eq!(inactive(&lab.xipvs("-Ln")?), 2);
    // A shorter timeout holds from a flow's next packet on that does not come in the same second: the second flow has none.
    lab.xipvs("--set 0 0 2")?;
    assert_eq!(lab.xipvs("-L --timeout")?, "Timeout (tcp tcpfin udp): 900 120 2\n");
    thread::sleep(Duration::from_millis(1100));
    let asked = Instant::now();
    ask_udp(&sockets[0], vip)?;
    while inactive(&lab.xipvs("-Ln")?) == 2 {
        assert!(asked.elapsed() < Duration::from_secs(60), "the idle flow is not forgotten");
        thread::sleep(Duration::from_millis(100));
    }
    assert!(asked.elapsed() >= Duration::from_millis(1500), "forgotten after {:?}", asked.elapsed());
    assert_eq!(inactive(&lab.xipvs("-Ln")?), 1);
    assert_eq!(lab.xipvs("-Lnc")?.lines().count(), 3);
    Ok(())
}
