//! What the director itself sends: answers of services whose real server is the director, and connections to virtual addresses.

use std::net::{IpAddr, Ipv6Addr, SocketAddr, UdpSocket};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::errno::Errno;
use nix::libc;
use nix::sys::socket::{setsockopt, sockopt};
use tests::lab::sockets::{Listener, ask_sip, ask_tcp, ask_udp, greeting, sends_much};
use tests::lab::{CLIENT, CLIENT_IPV6, DIRECTOR_CLIENTS, DIRECTOR_SERVERS, Lab, VIP, VIP_IPV6};

const REQUESTS: u64 = 100;
/// Bytes of an echo: many times what is on the way at once.
const MUCH: u32 = 4_000_000;

/// The director's address on the servers' side.
const DIRECTOR_IPV6: Ipv6Addr = Ipv6Addr::new(0xfd00, 2, 0, 0, 0, 0, 0, 1);

/// A virtual address, the client's address and an address of the director, by family.
fn families() -> [(IpAddr, IpAddr, IpAddr); 2] {
    [
        (VIP.into(), CLIENT.into(), DIRECTOR_SERVERS.into()),
        (VIP_IPV6.into(), CLIENT_IPV6.into(), DIRECTOR_IPV6.into()),
    ]
}

/// The only destination's counters of a service: connections, packets in and out, bytes in and out.
fn counted(lab: &Lab, service: &str) -> Result<Vec<u64>> {
    let listing = lab.xipvs(&format!("-Ln --stats --exact {service}"))?;
    let line = listing.lines().find(|line| line.starts_with("  -> ") && !line.contains("Remote"));
    let words = line.context("no destination")?.split_whitespace().skip(2);
    Ok(words.map(str::parse).collect::<std::result::Result<_, _>>()?)
}

/// Active and inactive connections of a service's only destination.
fn connections(lab: &Lab, service: &str) -> Result<(u64, u64)> {
    let listing = lab.xipvs(&format!("-Ln {service}"))?;
    let line = listing.lines().find(|line| line.starts_with("  -> ") && !line.contains("Remote"));
    let words: Vec<&str> = line.context("no destination")?.split_whitespace().collect();
    Ok((words[4].parse()?, words[5].parse()?))
}

/// Asks a service whose destination is the director: what client and server send is counted, and states follow it.
fn tcp_service(method: &str, port: u16) -> Result<()> {
    let lab = Lab::new("local", 0)?;
    let _server = Listener::tcp_in(&lab.director, "director", (Ipv6Addr::UNSPECIFIED, port))?;
    lab.attach()?;
    for (vip, client, director) in families() {
        let to = SocketAddr::new(vip, 80);
        lab.xipvs(&format!("-A -t {to} -s rr"))?;
        let destination = SocketAddr::new(director, if method == "-m" { port } else { 80 });
        lab.xipvs(&format!("-a -t {to} -r {destination} {method}"))?;
        let service = format!("-t {to}");

        let open = lab.client.connect(to)?;
        assert_eq!(greeting(&open)?.client.ip(), client);
        assert_eq!(
            connections(&lab, &service)?,
            (1, 0),
            "{to}: the answer is seen, so that it is established"
        );
        let listed = lab.xipvs("-Lnc")?;
        assert!(
            listed.lines().any(|line| line.contains("ESTABLISHED") && line.contains(&vip.to_string())),
            "{listed}"
        );
        drop(open);
        thread::sleep(Duration::from_millis(300));
        assert_eq!(connections(&lab, &service)?, (0, 1), "{to}");

        lab.xipvs("-Z")?;
        let before = lab.client.segments()?;
        for _ in 0..REQUESTS {
            assert_eq!(ask_tcp(&lab.client, to)?.client.ip(), client);
        }
        let after = lab.client.segments()?;
        let counted = counted(&lab, &service)?;
        assert_eq!(counted[..3], [REQUESTS, after.1 - before.1, after.0 - before.0], "{to} {method}");
        sends_much(&lab.client, to, MUCH)?;
    }
    Ok(())
}

#[test]
fn the_director_serves_by_nat_itself() -> Result<()> {
    tcp_service("-m", 8080)
}

#[test]
fn the_director_serves_by_direct_routing_itself() -> Result<()> {
    tcp_service("-g", 80)
}

#[test]
fn the_director_answers_datagrams_itself() -> Result<()> {
    let lab = Lab::new("local-udp", 0)?;
    lab.attach()?;
    for (vip, client, director) in families() {
        let _nat = Listener::udp_in(&lab.director, "nat", SocketAddr::new(director, 5353))?;
        let _direct = Listener::udp_in(&lab.director, "direct", SocketAddr::new(vip, 54))?;
        for (port, destination, method, name) in [(53, 5353, "-m", "nat"), (54, 54, "-g", "direct")] {
            let to = SocketAddr::new(vip, port);
            lab.xipvs(&format!("-A -u {to} -s rr"))?;
            lab.xipvs(&format!("-a -u {to} -r {} {method}", SocketAddr::new(director, destination)))?;
            let socket = lab.client.bind(SocketAddr::new(client, 0))?;
            for _ in 0..REQUESTS {
                let answer = ask_udp(&socket, to)?;
                assert_eq!((answer.server.as_str(), answer.client), (name, socket.local_addr()?));
            }
            let counted = counted(&lab, &format!("-u {to}"))?;
            assert_eq!(counted[..3], [1, REQUESTS, REQUESTS], "{to} {method}");
            let headers = if vip.is_ipv4() { 28 } else { 48 };
            assert_eq!(counted[3], REQUESTS * (headers + 3), "{to} {method}");
            let greeting = format!("{name} {}\n", socket.local_addr()?).len() as u64;
            assert_eq!(counted[4], REQUESTS * (headers + 3 + greeting), "{to} {method}");
        }
    }
    Ok(())
}

/// Takes the virtual addresses off the servers: what the director sends to its own ones has them as its source.
fn without_virtual_addresses(lab: &Lab) -> Result<()> {
    for server in &lab.servers {
        server
            .namespace
            .ip(&[&format!("addr del {VIP}/32 dev lo"), &format!("addr del {VIP_IPV6}/128 dev lo")])?;
    }
    Ok(())
}

/// Adds a service with all servers, reached at a port by a method.
fn add_service(lab: &Lab, option: &str, to: SocketAddr, port: u16, method: &str) -> Result<()> {
    lab.xipvs(&format!("-A {option} {to} -s rr"))?;
    for server in &lab.servers {
        let at = SocketAddr::new(server.address_for(to.ip()), port);
        lab.xipvs(&format!("-a {option} {to} -r {at} {method}"))?;
    }
    Ok(())
}

/// Answers datagrams at a port of each server, at its address of a virtual address's family.
fn udp_servers(lab: &Lab, vip: IpAddr, port: u16) -> Result<Vec<Listener>> {
    let servers = lab.servers.iter();
    servers.map(|server| Listener::udp(server, SocketAddr::new(server.address_for(vip), port))).collect()
}

/// Sums up the counters of a service's destinations.
fn sums(lab: &Lab, service: &str) -> Result<[u64; 3]> {
    let mut sums = [0; 3];
    for line in lab.xipvs(&format!("-Ln --stats --exact {service}"))?.lines() {
        let words: Vec<&str> = line.split_whitespace().collect();
        if words.first() == Some(&"->") && words[1] != "RemoteAddress:Port" {
            for (sum, word) in sums.iter_mut().zip(&words[2..]) {
                *sum += word.parse::<u64>()?;
            }
        }
    }
    Ok(sums)
}

#[test]
fn the_director_itself_is_a_client_of_a_virtual_address_of_its_own() -> Result<()> {
    let lab = Lab::new("own", 3)?;
    without_virtual_addresses(&lab)?;
    let _web: Vec<_> = lab.servers.iter().map(|server| Listener::tcp(server, 8080)).collect::<Result<_>>()?;
    lab.attach()?;
    for (vip, ..) in families() {
        let to = SocketAddr::new(vip, 80);
        add_service(&lab, "-t", to, 8080, "-m")?;
        let before = lab.director.segments()?;
        let mut answered = std::collections::BTreeMap::new();
        for _ in 0..REQUESTS {
            let answer = ask_tcp(&lab.director, to)?;
            // The kernel chooses the address that it connects to, as it is its own, and NAT leaves it.
            assert_eq!(answer.client.ip(), vip);
            *answered.entry(answer.server).or_insert(0) += 1;
        }
        assert!(answered.len() == 3 && answered.values().all(|times| *times >= REQUESTS / 3), "{answered:?}");
        let after = lab.director.segments()?;
        let service = format!("-t {to}");
        assert_eq!(sums(&lab, &service)?, [REQUESTS, after.1 - before.1, after.0 - before.0], "{to}");
        sends_much(&lab.director, to, MUCH)?;
    }
    Ok(())
}

#[test]
fn direct_routing_and_datagrams_of_the_director_itself_go_to_servers() -> Result<()> {
    let lab = Lab::new("own-direct", 2)?;
    let _web: Vec<_> = lab.servers.iter().map(|server| Listener::tcp(server, 80)).collect::<Result<_>>()?;
    lab.attach()?;
    for (vip, _, director) in families() {
        let to = SocketAddr::new(vip, 80);
        add_service(&lab, "-t", to, 80, "-g")?;
        // From another address than the virtual one, which the servers have themselves.
        for _ in 0..REQUESTS {
            let answer = greeting(&lab.director.connect_from(director, to)?)?;
            ensure!(answer.server.starts_with("server") && answer.client.ip() == director, "{answer:?}");
        }
        thread::sleep(Duration::from_millis(300));
        let [connections, received, sent] = sums(&lab, &format!("-t {to}"))?;
        assert_eq!(connections, REQUESTS);
        // The answers come in from the servers directly.
        assert!(received >= 4 * REQUESTS && sent >= 3 * REQUESTS, "{received} {sent}");

        let to = SocketAddr::new(vip, 53);
        add_service(&lab, "-u", to, 5353, "-m")?;
        let _dns = udp_servers(&lab, vip, 5353)?;
        let socket = lab.director.bind(SocketAddr::new(director, 0))?;
        let first = ask_udp(&socket, to)?;
        assert_eq!(first.client, socket.local_addr()?);
        for _ in 1..REQUESTS {
            assert_eq!(ask_udp(&socket, to)?, first);
        }
        assert_eq!(sums(&lab, &format!("-u {to}"))?, [1, REQUESTS, REQUESTS], "{to}");
    }
    Ok(())
}

#[test]
fn calls_of_the_director_itself_stay_with_their_servers() -> Result<()> {
    let lab = Lab::new("own-calls", 3)?;
    lab.attach()?;
    for (vip, _, director) in families() {
        let to = SocketAddr::new(vip, 5060);
        add_service(&lab, "-u", to, 5080, "-m")?;
        lab.xipvs(&format!("-E -u {to} -s rr -p 300 --pe sip"))?;
        let _telephones = udp_servers(&lab, vip, 5080)?;
        // Each time from another port.
        let bind = || lab.director.bind(SocketAddr::new(director, 0));
        let round = || -> Result<Vec<String>> {
            let calls = ["one@example.com", "two@example.com", "three@example.com", "four@example.com"];
            calls.iter().map(|call| Ok(ask_sip(&bind()?, to, call)?.server)).collect()
        };
        let first = round()?;
        ensure!(first[0] != first[1] && first[1] != first[2] && first[2] != first[0], "{first:?}");
        assert_eq!([round()?, round()?], [first.clone(), first]);
        assert_eq!(sums(&lab, &format!("-u {to}"))?, [12, 12, 12], "{to}");
        // What has no Call-ID begins nothing; whether the sender is told so depends on the kernel.
        let _ = bind()?.send_to(b"hello", to);
        assert_eq!(sums(&lab, &format!("-u {to}"))?, [12, 12, 12], "{to}");
    }
    assert!(lab.xipvs("status")?.contains("no-call-id"));
    Ok(())
}

#[test]
fn the_director_itself_is_client_and_server() -> Result<()> {
    let lab = Lab::new("own-local", 0)?;
    let _web = Listener::tcp_in(&lab.director, "director", (Ipv6Addr::UNSPECIFIED, 8080))?;
    lab.attach()?;
    for (vip, _, director) in families() {
        for (port, method, destination) in [(80, "-m", director), (8080, "-g", director), (81, "-m", vip)] {
            let to = SocketAddr::new(vip, port);
            lab.xipvs(&format!("-A -t {to} -s rr"))?;
            lab.xipvs(&format!("-a -t {to} -r {} {method}", SocketAddr::new(destination, 8080)))?;
            let before = lab.director.segments()?;
            for _ in 0..REQUESTS {
                assert_eq!(ask_tcp(&lab.director, to)?.client.ip(), vip);
            }
            let after = lab.director.segments()?;
            let [connections, received, sent] = sums(&lab, &format!("-t {to}"))?;
            // Both sides' segments are the director's.
            assert_eq!((connections, received + sent), (REQUESTS, after.1 - before.1), "{to} {method}");
            sends_much(&lab.director, to, MUCH).with_context(|| format!("{to} {method}"))?;
        }
    }
    Ok(())
}

#[test]
fn a_virtual_address_that_the_director_only_has_a_route_to_is_balanced_for_itself() -> Result<()> {
    let lab = Lab::new("own-routed", 2)?;
    without_virtual_addresses(&lab)?;
    let _web: Vec<_> = lab.servers.iter().map(|server| Listener::tcp(server, 8080)).collect::<Result<_>>()?;
    let _own = Listener::tcp_in(&lab.director, "director", (Ipv6Addr::UNSPECIFIED, 8080))?;
    lab.director.ip(&[
        &format!("addr del {VIP}/32 dev clients"),
        &format!("addr del {VIP_IPV6}/128 dev clients"),
        &format!("route add {VIP}/32 via {CLIENT}"),
        &format!("route add {VIP_IPV6}/128 via {CLIENT_IPV6}"),
    ])?;
    lab.attach()?;
    let sources: [IpAddr; 2] = [DIRECTOR_CLIENTS.into(), "fd00:1::1".parse()?];
    for ((vip, _, director), source) in families().into_iter().zip(sources) {
        let to = SocketAddr::new(vip, 80);
        add_service(&lab, "-t", to, 8080, "-m")?;
        let before = lab.director.segments()?;
        for _ in 0..REQUESTS {
            let answer = ask_tcp(&lab.director, to)?;
            assert_eq!(answer.client.ip(), source);
            assert!(answer.server.starts_with("server"), "{answer:?}");
        }
        let after = lab.director.segments()?;
        let service = format!("-t {to}");
        assert_eq!(sums(&lab, &service)?, [REQUESTS, after.1 - before.1, after.0 - before.0], "{to}");
        sends_much(&lab.director, to, MUCH)?;

        // And to itself.
        let to = SocketAddr::new(vip, 82);
        lab.xipvs(&format!("-A -t {to} -s rr"))?;
        lab.xipvs(&format!("-a -t {to} -r {} -m", SocketAddr::new(director, 8080)))?;
        assert_eq!(ask_tcp(&lab.director, to)?.server, "director");
    }
    Ok(())
}

/// A datagram socket of the director that is connected, which has it hear of ICMP errors.
fn connected(lab: &Lab, from: IpAddr, to: SocketAddr) -> Result<UdpSocket> {
    let socket = lab.director.bind(SocketAddr::new(from, 0))?;
    socket.connect(to)?;
    Ok(socket)
}

/// The error that a socket is told of which waits for an answer.
fn told(socket: &UdpSocket) -> Result<i32> {
    let error = socket.recv(&mut [0; 16]).err().context("answered")?;
    error.raw_os_error().context("no error of the kernel")
}

/// A virtual address that the director has only a route to, and one of its own addresses, for each family.
const ROUTED: [(&str, &str); 2] = [("203.0.113.5", "192.168.1.1"), ("2001:db8:5::5", "fd00:1::1")];

fn add_routes(lab: &Lab) -> Result<()> {
    let [(ipv4, _), (ipv6, _)] = ROUTED;
    lab.director.ip(&[
        &format!("route add {ipv4}/32 via {CLIENT}"),
        &format!("route add {ipv6}/128 via {CLIENT_IPV6}"),
    ])
}

#[test]
fn without_a_server_the_directors_own_sockets_are_refused_and_it_is_counted() -> Result<()> {
    let lab = Lab::new("own-none", 1)?;
    add_routes(&lab)?;
    lab.attach()?;
    let _own = Listener::tcp_in(&lab.director, "director", (Ipv6Addr::UNSPECIFIED, 80))?;
    for ((vip, _, director), (routed, source)) in families().into_iter().zip(ROUTED) {
        let server = lab.servers[0].address_for(vip);
        for (vip, from) in [(vip, vip), (vip, director), (routed.parse()?, source.parse()?)] {
            let to = SocketAddr::new(vip, 80);
            for option in ["-t", "-u"] {
                // The same address again, from another.
                if from == director {
                    break;
                }
                lab.xipvs(&format!("-A {option} {to} -s rr"))?;
                lab.xipvs(&format!("-a {option} {to} -r {} -m -w 0", SocketAddr::new(server, 80)))?;
            }
            let refused = lab.director.connect_from(from, to).err().context("connected")?;
            assert_eq!(refused.root_cause().downcast_ref(), Some(&Errno::ECONNREFUSED), "{to}: {refused:#}");
            let socket = connected(&lab, from, to)?;
            for _ in 0..3 {
                socket.send(b"who")?;
                assert_eq!(told(&socket)?, libc::ECONNREFUSED, "{to} from {from}");
            }
        }
    }
    let status = lab.xipvs("status")?;
    let line = status.lines().find(|line| line.contains("no-destination")).context("not counted")?;
    let counted: u32 = line.split_whitespace().nth(1).context("no number")?.parse()?;
    // Two families, three ways, a segment and three datagrams each; a segment is sent again if the kernel is told within the call
    // that sends it.
    assert!(counted >= 24, "{line}");
    // What no service takes is the stack's.
    let _other = Listener::tcp_in(&lab.director, "director", (Ipv6Addr::UNSPECIFIED, 90))?;
    assert_eq!(ask_tcp(&lab.director, SocketAddr::new(VIP.into(), 90))?.server, "director");
    Ok(())
}

#[test]
fn whoever_asks_a_closed_port_of_the_director_or_answers_one_is_refused() -> Result<()> {
    let lab = Lab::new("own-closed", 1)?;
    lab.attach()?;
    let server = &lab.servers[0];
    for (vip, client, director) in families() {
        let to = SocketAddr::new(vip, 54);
        lab.xipvs(&format!("-A -u {to} -s rr"))?;
        lab.xipvs(&format!("-a -u {to} -r {} -m", SocketAddr::new(director, 5354)))?;
        let socket = lab.client.bind(SocketAddr::new(client, 0))?;
        socket.connect(to)?;
        socket.send(b"who")?;
        assert_eq!(told(&socket)?, libc::ECONNREFUSED, "{to}");
        assert_eq!(counted(&lab, &format!("-u {to}"))?[..3], [1, 1, 1], "{to}: the error is an answer");

        let to = SocketAddr::new(vip, 53);
        add_service(&lab, "-u", to, 5353, "-m")?;
        let answering = server.namespace.bind(SocketAddr::new(server.address_for(vip), 5353))?;
        let asking = connected(&lab, director, to)?;
        asking.send(b"who")?;
        let (_, asked_by) = answering.recv_from(&mut [0; 16])?;
        answering.connect(asked_by)?;
        drop(asking);
        answering.send(b"you")?;
        assert_eq!(told(&answering)?, libc::ECONNREFUSED, "{to}");
        assert_eq!(counted(&lab, &format!("-u {to}"))?[..3], [1, 2, 1], "{to}");
    }
    Ok(())
}

#[test]
fn the_directors_own_sockets_are_told_that_no_hop_is_left() -> Result<()> {
    let lab = Lab::new("own-hops", 1)?;
    lab.attach()?;
    for (vip, _, director) in families() {
        let to = SocketAddr::new(vip, 53);
        add_service(&lab, "-u", to, 5353, "-m")?;
        let socket = connected(&lab, director, to)?;
        // Only those who ask for more than refusals are told.
        if vip.is_ipv4() {
            setsockopt(&socket, sockopt::Ipv4RecvErr, &true)?;
            setsockopt(&socket, sockopt::Ipv4Ttl, &1)?;
        } else {
            setsockopt(&socket, sockopt::Ipv6RecvErr, &true)?;
            setsockopt(&socket, sockopt::Ipv6Ttl, &1)?;
        }
        socket.send(b"who")?;
        assert_eq!(told(&socket)?, libc::EHOSTUNREACH, "{to}");
    }
    Ok(())
}

#[test]
fn the_directors_own_sockets_learn_how_much_the_way_to_a_server_takes() -> Result<()> {
    let lab = Lab::new("own-large", 1)?;
    without_virtual_addresses(&lab)?;
    add_routes(&lab)?;
    let server = &lab.servers[0];
    let _web = Listener::tcp(server, 8080)?;
    // Of the way there only: a veth takes nothing that is larger than what it may send.
    lab.director.ip(&[
        &format!("route add {}/32 dev servers mtu lock 1400", server.address),
        &format!("route add {}/128 dev servers mtu lock 1400", server.address_ipv6),
    ])?;
    lab.attach()?;
    for ((vip, _, director), (routed, _)) in families().into_iter().zip(ROUTED) {
        // The server would take segments that fill 1,500 bytes, and they leave many at once.
        let to = SocketAddr::new(routed.parse()?, 80);
        add_service(&lab, "-t", to, 8080, "-m")?;
        sends_much(&lab.director, to, MUCH).with_context(|| to.to_string())?;

        let _dns = udp_servers(&lab, vip, 5353)?;
        let to = SocketAddr::new(vip, 53);
        add_service(&lab, "-u", to, 5353, "-m")?;
        let socket = connected(&lab, director, to)?;
        socket.send(&[0; 1440])?;
        assert_eq!(told(&socket)?, libc::EMSGSIZE, "{to}");
        let fits = [0; 1300];
        socket.send(&fits)?;
        assert!(socket.recv(&mut [0; 1500])? > fits.len(), "{to}");
    }
    assert!(lab.xipvs("status")?.contains("too-big"));
    Ok(())
}

#[test]
fn datagrams_of_the_director_itself_that_leave_in_fragments_arrive() -> Result<()> {
    let lab = Lab::new("own-fragments", 2)?;
    without_virtual_addresses(&lab)?;
    add_routes(&lab)?;
    for (routed, director) in ROUTED {
        lab.client.ip(&[&format!("route add {routed} via {director}")])?;
    }
    lab.attach()?;
    for ((_, client, _), (routed, source)) in families().into_iter().zip(ROUTED) {
        let vip: IpAddr = routed.parse()?;
        let to = SocketAddr::new(vip, 53);
        add_service(&lab, "-u", to, 5353, "-m")?;
        let _dns = udp_servers(&lab, vip, 5353)?;
        // A server that is the director itself, and a client from outside: its answers leave in fragments.
        let local = SocketAddr::new(vip, 54);
        let own: IpAddr = source.parse()?;
        lab.xipvs(&format!("-A -u {local} -s rr"))?;
        lab.xipvs(&format!("-a -u {local} -r {} -m", SocketAddr::new(own, 5354)))?;
        let _local = Listener::udp_in(&lab.director, "director", SocketAddr::new(own, 5354))?;
        let sockets = [
            (lab.director.bind(SocketAddr::new(own, 0))?, to),
            (lab.director.bind(SocketAddr::new(own, 0))?, local),
            (lab.client.bind(SocketAddr::new(client, 0))?, local),
        ];
        for (socket, to) in sockets {
            let sent: Vec<u8> = (0..4000_u32).map(|number| (number / 7) as u8).collect();
            let mut got = [0; 8000];
            for _ in 0..REQUESTS {
                socket.send_to(&sent, to)?;
                let (length, from) = socket.recv_from(&mut got).with_context(|| to.to_string())?;
                ensure!(from == to && got[..length].ends_with(&sent), "{length} bytes from {from}");
            }
            let counted = sums(&lab, &format!("-u {to}"))?;
            assert_eq!(counted[1..], [REQUESTS * counted[0], REQUESTS * counted[0]], "{to}");
        }
    }
    Ok(())
}
