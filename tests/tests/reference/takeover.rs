//! Live connections of both families and persistence templates go from kernel IPVS to the XDP program and back, with
//! downloads running all the way.

use std::net::{IpAddr, SocketAddr};

use tests::lab::download::{Download, all_go_on, serve, until};
use tests::lab::sockets::{Listener, ask_sip};
use tests::lab::{CLIENT, CLIENT_IPV6, INTERFACES, Lab, VIP, VIP_IPV6};

/// Seconds after which kernel IPVS forgets a connection that it sees no packets of.
const FORGOTTEN: u64 = 20;

/// By NAT and by direct routing, in both families.
fn services() -> [SocketAddr; 4] {
    let at = |address: IpAddr, port| SocketAddr::new(address, port);
    [at(VIP.into(), 80), at(VIP.into(), 81), at(VIP_IPV6.into(), 80), at(VIP_IPV6.into(), 81)]
}

/// Those that have persistence.
fn persistent_services() -> [SocketAddr; 2] {
    let [one, .., two] = services();
    [one, two]
}

/// The packets that clients have sent to each service, by their lines in the exact counters.
fn in_packets(lab: &Lab, director: &str) -> Vec<u64> {
    let listed = lab.xipvs(&format!("--director {director} -L -n --stats --exact")).unwrap();
    let of = |service: SocketAddr| -> u64 {
        let line = listed.lines().find(|line| line.contains(&format!("{service} "))).unwrap();
        line.split_whitespace().nth(3).unwrap().parse().unwrap()
    };
    services().map(of).into()
}

/// The lines of the connection list that have a word, each without its time.
fn listed(lab: &Lab, director: &str, word: &str) -> Vec<String> {
    let listed = lab.xipvs(&format!("--director {director} -L -n -c")).unwrap();
    let mut lines: Vec<String> = listed
        .lines()
        .filter(|line| line.split_whitespace().any(|its| its == word))
        .map(|line| {
            let words = line.split_whitespace().enumerate().filter(|(place, _)| *place != 1);
            words.map(|(_, word)| word).collect::<Vec<_>>().join(" ")
        })
        .collect();
    lines.sort();
    lines
}

/// The active and inactive connections of each destination.
fn counts(lab: &Lab, director: &str) -> Vec<String> {
    let listed = lab.xipvs(&format!("--director {director} -L -n")).unwrap();
    let lines = listed.lines().filter(|line| line.contains(" Masq ") || line.contains(" Route "));
    lines.map(|line| line.split_whitespace().skip(4).collect::<Vec<_>>().join(" ")).collect()
}

/// The numbers in what a command says.
fn numbers(said: &str) -> Vec<u32> {
    said.split(|letter: char| !letter.is_ascii_digit()).filter_map(|word| word.parse().ok()).collect()
}

#[test]
fn downloads_run_on_while_the_director_changes_and_changes_back() {
    let lab = Lab::new("takeover", 2).unwrap();
    lab.director.sysctl("net/ipv6/conf/all/forwarding", "1").unwrap();
    let [one, two] = &lab.servers[..] else { panic!("two servers") };
    for server in [one, two] {
        serve(&server.namespace, 80);
        serve(&server.namespace, 81);
    }
    // Without their templates the connections of a client would go to one server in turn with the other.
    let rules = format!(
        "--set {FORGOTTEN} 120 300
        -A -t {VIP}:80 -s rr -p 600 -M 255.255.255.0
        -a -t {VIP}:80 -r {}:80 -m
        -a -t {VIP}:80 -r {}:80 -m
        -A -t {VIP}:81 -s rr
        -a -t {VIP}:81 -r {} -g
        -A -t [{VIP_IPV6}]:80 -s rr
        -a -t [{VIP_IPV6}]:80 -r [{}]:80 -m
        -A -t [{VIP_IPV6}]:81 -s rr -p 600 -M 64
        -a -t [{VIP_IPV6}]:81 -r [{}]:81 -g
        -a -t [{VIP_IPV6}]:81 -r [{}]:81 -g",
        one.address, two.address, two.address, one.address_ipv6, one.address_ipv6, two.address_ipv6
    );
    for words in rules.lines() {
        lab.xipvs(&format!("--director kernel {words}")).unwrap();
    }
    let twice = services().into_iter().chain(services());
    let mut downloads: Vec<Download> = twice.map(|service| Download::start(&lab.client, service)).collect();
    all_go_on(&downloads);
    assert_eq!(listed(&lab, "kernel", "ESTABLISHED").len(), 8);
    let templates = listed(&lab, "kernel", "ASSURED");
    assert_eq!(templates.len(), 2, "{templates:#?}");
    let persistent = counts(&lab, "kernel");
    assert_eq!(persistent.iter().filter(|counts| *counts == "2 0").count(), 4, "{persistent:?}");

    // What a change would touch is told, and nothing is changed.
    let rehearsed = lab.xipvs(&format!("--director kernel -D -t {VIP}:80 --dry-run")).unwrap();
    assert_eq!(rehearsed, format!("-D -t {VIP}:80 # 2 connections\n"));
    assert_eq!(counts(&lab, "kernel"), persistent);

    lab.xipvs("mirror --from kernel").unwrap();
    lab.xipvs("--set 900 120 300").unwrap();
    assert_eq!(lab.xipvs("adopt").unwrap(), "10 connections taken over, 0 known\n");
    lab.attach().unwrap();
    // Those that no packet has shown to be alive since are taken over anew.
    let again = lab.xipvs("adopt").unwrap();
    assert_eq!(numbers(&again).iter().sum::<u32>(), 10, "{again}");
    all_go_on(&downloads);
    assert_eq!(listed(&lab, "xdp", "ASSURED"), templates);
    assert_eq!(counts(&lab, "xdp"), persistent);

    // New connections follow the templates.
    downloads.extend(services().map(|service| Download::start(&lab.client, service)));
    let one_more: Vec<String> = persistent.iter().map(|counts| counts.replace('2', "3")).collect();
    assert_eq!(counts(&lab, "xdp"), one_more);
    // By their new masks both services have templates of their own, of which the kernel knows nothing.
    lab.xipvs(&format!("-E -t {VIP}:80 -s rr -p 600")).unwrap();
    lab.xipvs(&format!("-E -t [{VIP_IPV6}]:81 -s rr -p 600")).unwrap();
    downloads.extend(persistent_services().map(|service| Download::start(&lab.client, service)));
    all_go_on(&downloads);
    let templates = listed(&lab, "xdp", "ASSURED");
    assert_eq!(templates.len(), 4, "{templates:#?}");
    // The XDP program has the packets, and the kernel none: it forgets.
    let before = in_packets(&lab, "xdp");
    until("kernel IPVS still sees packets", || listed(&lab, "kernel", "ESTABLISHED").is_empty());
    all_go_on(&downloads);
    let after = in_packets(&lab, "xdp");
    assert!(before.iter().zip(&after).all(|(before, after)| before < after), "{before:?} {after:?}");

    lab.xipvs("--director kernel --set 900 120 300").unwrap();
    lab.xipvs("mirror --to kernel").unwrap();
    assert_eq!(lab.xipvs("hand-over").unwrap(), "18 connections handed over\n");
    lab.xipvs(&format!("detach {}", INTERFACES.join(" "))).unwrap();
    let before = (in_packets(&lab, "kernel"), in_packets(&lab, "xdp"));
    all_go_on(&downloads);
    assert_eq!(listed(&lab, "kernel", "ASSURED"), templates);
    assert_eq!(listed(&lab, "kernel", "ESTABLISHED"), listed(&lab, "xdp", "ESTABLISHED"));
    assert_eq!(counts(&lab, "kernel"), counts(&lab, "xdp"));
    until("kernel IPVS counts nothing", || {
        in_packets(&lab, "kernel").iter().zip(&before.0).all(|(now, before)| now > before)
    });
    assert_eq!(in_packets(&lab, "xdp"), before.1);
    assert_eq!(lab.xipvs("--director kernel -L --daemon").unwrap(), "");
    // New connections follow the templates here as well: those that have the client's whole address.
    let client = [CLIENT.to_string(), format!("[{CLIENT_IPV6}]")].map(|address| format!(" {address}:0 "));
    let mut own = templates.iter().filter(|line| client.iter().any(|client| line.contains(client)));
    let [Some(first), Some(second), None] = [own.next(), own.next(), own.next()] else {
        panic!("{templates:#?}")
    };
    // What a line says from the virtual address on.
    let way = |line: &str| line.split(' ').skip(3).collect::<Vec<_>>().join(" ");
    let following = || {
        let all = listed(&lab, "kernel", "ESTABLISHED");
        [first, second].map(|template| all.iter().filter(|line| way(line) == way(template)).count())
    };
    let before = following();
    downloads.extend(persistent_services().map(|service| Download::start(&lab.client, service)));
    assert_eq!(following(), before.map(|count| count + 1));
    all_go_on(&downloads);

    downloads.into_iter().for_each(Download::end);
}

#[test]
fn calls_stay_with_their_servers_while_the_director_changes_and_changes_back() {
    calls_stay("calls", VIP.into(), CLIENT.into());
}

#[test]
fn calls_over_ipv6_stay_too() {
    calls_stay("calls6", VIP_IPV6.into(), CLIENT_IPV6.into());
}

/// Calls stay with their servers from kernel IPVS to the XDP director and back.
fn calls_stay(name: &str, virtual_address: IpAddr, client: IpAddr) {
    let lab = Lab::new(name, 2).unwrap();
    lab.director.sysctl("net/ipv6/conf/all/forwarding", "1").unwrap();
    let service = SocketAddr::new(virtual_address, 5060);
    lab.xipvs(&format!("--director kernel -A -u {service} -s rr -p 600 --pe sip")).unwrap();
    let mut servers = Vec::new();
    for server in &lab.servers {
        let at = SocketAddr::new(server.address_for(client), 5060);
        servers.push(Listener::udp(server, at).unwrap());
        lab.xipvs(&format!("--director kernel -a -u {service} -r {at} -m")).unwrap();
    }
    // Each time from another port. Without templates two rounds of an odd number would not go to the same servers.
    let ask = |call: &[u8]| {
        let socket = lab.client.bind(SocketAddr::new(client, 0)).unwrap();
        ask_sip(&socket, service, call).unwrap().server
    };
    let round = |calls: &[&[u8]]| calls.iter().map(|call| ask(call)).collect::<Vec<_>>();
    let calls: [&[u8]; 5] =
        [b"one@example.com", b"two@example.com", b"thr\xe9e@example.com", b"four@x", b"f\xefve@x"];
    let known = &calls[..3];
    let called = round(known);
    assert_ne!(called[0], called[1]);

    lab.xipvs("mirror --from kernel").unwrap();
    assert_eq!(lab.xipvs("adopt").unwrap(), "6 connections taken over, 0 known\n");
    lab.attach().unwrap();
    assert_eq!([round(known), round(known)], [called.clone(), called]);
    // Of these the kernel is told by the hand-over alone.
    let called = round(&calls);
    assert_eq!(lab.xipvs("hand-over").unwrap(), "19 connections handed over\n");
    lab.xipvs(&format!("detach {}", INTERFACES.join(" "))).unwrap();
    assert_eq!([round(&calls), round(&calls)], [called.clone(), called]);
}
