//! Sync daemons with kernel IPVS on the other side, in both roles: it takes what an XDP master tells, and tells an XDP
//! backup what that takes, for both families and every protocol, and all that is established goes on when the other takes
//! over.

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::thread::sleep;
use std::time::Duration;

use tests::lab::download::{Download, all_go_on, until};
use tests::lab::namespace::Namespace;
use tests::lab::pair::{Director, Pair, services};
use tests::lab::sctp;
use tests::lab::sockets::{Listener, ask_sip, ask_tcp, ask_udp, greeting};
use tests::lab::{CLIENT, INTERFACES, VIP, VIP_IPV6, client_for};

/// Seconds by which times may differ: packets that come late, as FINs that are sent again, move a time that is not told anew.
const TOLERANCE: u32 = 15;

/// A kind of connections for each of which it is shown that it arrives: long ones, closed ones, datagrams' flows, associations,
/// one of a firewall mark with its template.
struct Traffic {
    downloads: Vec<Download>,
    associations: Vec<TcpStream>,
    /// The servers of [`CALLS`].
    called: Vec<String>,
    _servers: Vec<Listener>,
}

/// The service by mark: what is for this port has it.
const MARK: u32 = 7;
const MARKED: u16 = 83;

/// Calls that are begun, and that go on with connections of their own once the other director has taken over.
const CALLS: [&str; 3] = ["one@example.com", "two@example.com", "three@example.com"];

/// The servers that answer what new ports send for the calls.
fn call_all(client: &Namespace) -> Vec<String> {
    let call = |id: &&str| {
        let socket = client.bind(SocketAddr::new(CLIENT.into(), 0)).unwrap();
        // Kernel IPVS tells a connection with its third packet.
        let mut asked = (0..5).map(|_| ask_sip(&socket, (VIP, 5060), id).unwrap().server);
        let server = asked.next().unwrap();
        assert!(asked.all(|again| again == server));
        server
    };
    CALLS.iter().map(call).collect()
}

/// Both directors, and the rules of all the services; what is not the XDP program's is kernel IPVS's.
fn configured(pair: &Pair, directors: [Director<'_>; 2]) {
    for director in directors {
        pair.configure(director).unwrap();
        let [one, two] = &pair.lab.servers[..] else { panic!("two servers") };
        for rule in [
            format!("-A -t {VIP}:82 -s rr"),
            format!("-a -t {VIP}:82 -r {}:82 -m", one.address),
            format!("-A -u {VIP}:53 -s rr"),
            format!("-a -u {VIP}:53 -r {}:53 -m", one.address),
            format!("-A -t [{VIP_IPV6}]:82 -s rr"),
            format!("-a -t [{VIP_IPV6}]:82 -r [{}]:82 -m", one.address_ipv6),
            format!("-A --sctp-service {VIP}:9000 -s rr"),
            format!("-a --sctp-service {VIP}:9000 -r {}:9900 -m", one.address),
            format!("-A --sctp-service [{VIP_IPV6}]:9000 -s rr"),
            format!("-a --sctp-service [{VIP_IPV6}]:9000 -r [{}]:9900 -m", one.address_ipv6),
            format!("-A -u {VIP}:5060 -s rr -p 600 --pe sip"),
            format!("-a -u {VIP}:5060 -r {}:5060 -m", one.address),
            format!("-a -u {VIP}:5060 -r {}:5060 -m", two.address),
            format!("-A -f {MARK} -s rr -p 600"),
            format!("-a -f {MARK} -r {}:{MARKED} -m", one.address),
        ] {
            director.xipvs(&rule).unwrap();
        }
        if director.is_kernel() {
            let rule =
                format!("-t mangle -A PREROUTING -d {VIP} -p tcp --dport {MARKED} -j MARK --set-mark {MARK}");
            director.namespace.run(&format!("iptables {rule}")).unwrap();
        } else {
            let rule = format!("{MARK} --destination {VIP} --protocol tcp --destination-ports {MARKED}");
            director.xipvs(&format!("mark add {rule}")).unwrap();
        }
    }
    // Kernel IPVS takes what is delivered here.
    pair.second
        .ip(&[&format!("addr add {VIP}/32 dev lo"), &format!("addr add {VIP_IPV6}/128 dev lo nodad")])
        .unwrap();
}

impl Traffic {
    fn start(pair: &Pair) -> Self {
        pair.serve();
        let server = &pair.lab.servers[0];
        let mut servers = vec![
            Listener::tcp(server, 82).unwrap(),
            Listener::udp(server, SocketAddr::new(server.address.into(), 53)).unwrap(),
            Listener::tcp(server, MARKED).unwrap(),
            sctp::serve(&server.namespace, &server.name, (server.address, 9900)).unwrap(),
            sctp::serve(&server.namespace, &server.name, (server.address_ipv6, 9900)).unwrap(),
        ];
        servers.extend(
            pair.lab
                .servers
                .iter()
                .map(|server| Listener::udp(server, SocketAddr::new(server.address.into(), 5060)).unwrap()),
        );
        let twice = services().into_iter().chain(services());
        let downloads = twice.map(|service| Download::start(&pair.lab.client, service)).collect();
        for address in [IpAddr::from(VIP), VIP_IPV6.into()] {
            ask_tcp(&pair.lab.client, SocketAddr::new(address, 82)).unwrap();
        }
        ask_tcp(&pair.lab.client, (VIP, MARKED)).unwrap();
        let associations: Vec<TcpStream> = [IpAddr::from(VIP), VIP_IPV6.into()]
            .map(|address| {
                sctp::associate(&pair.lab.client, client_for(address), SocketAddr::new(address, 9000))
                    .unwrap()
            })
            .into();
        for association in &associations {
            greeting(association).unwrap();
        }
        let socket = pair.lab.client.bind(SocketAddr::new(CLIENT.into(), 0)).unwrap();
        for _ in 0..5 {
            ask_udp(&socket, SocketAddr::new(VIP.into(), 53)).unwrap();
        }
        let called = call_all(&pair.lab.client);
        let traffic = Self { downloads, associations, called, _servers: servers };
        traffic.goes_on();
        traffic
    }

    /// Waits until all that is established has gone on.
    fn goes_on(&self) {
        all_go_on(&self.downloads);
        for mut association in &self.associations {
            association.write_all(b"still there?").unwrap();
            association.read_exact(&mut [0; 12]).unwrap();
        }
    }

    /// The calls' next connections go where their first did. Without templates two rounds of an odd number would not.
    fn calls_go_on(&self, pair: &Pair) {
        for _ in 0..2 {
            assert_eq!(call_all(&pair.lab.client), self.called);
        }
    }

    fn end(self) {
        self.downloads.into_iter().for_each(Download::end);
    }
}

/// Waits until the backup lists what the master does; that each has the same time left, and the destinations the same counts.
fn all_arrives(master: Director<'_>, backup: Director<'_>) {
    let all = master.connections();
    let (calls, started): (Vec<_>, Vec<_>) = all.into_iter().partition(|line| line.contains(":5060 "));
    // A connection each, and templates, which look alike for calls that have one server.
    assert_eq!(calls.len(), CALLS.len() + 2, "{calls:#?}");
    let of = |word: &str| started.iter().filter(|line| line.contains(word)).count();
    assert_eq!((of("ESTABLISHED"), of("ASSURED"), of("UDP")), (10, 3, 1), "{started:#?}");
    assert_eq!((of(":82 "), of("SCTP"), of(&format!(":{MARKED} "))), (2, 2, 1), "{started:#?}");
    until("the backup does not list what the master does", || {
        let (wanted, there) = (master.connections(), backup.connections());
        wanted == there
    });
    // Listing takes long on a slow machine: the backup's times lie between two looks at the master.
    let (before, there, after) = (master.listed(), backup.listed(), master.listed());
    for (connection, time) in &there {
        // What has packets all the time has them after it was told as well.
        let is_busy = connection.contains("ESTABLISHED") || connection.contains("ASSURED");
        let tolerance = if is_busy { 120 } else { TOLERANCE };
        let looks = [&before, &after].map(|listed| listed.get(connection).copied());
        let (Some(first), Some(last)) = (looks[0], looks[1].or(looks[0].map(|_| 0))) else {
            panic!("{connection} in {before:#?}")
        };
        let expected = first.min(last).saturating_sub(tolerance)..=first.max(last) + tolerance;
        assert!(expected.contains(time), "{connection}: {time}, and {looks:?}");
    }
    assert_eq!(backup.counts(), master.counts());
}

#[test]
fn kernel_ipvs_takes_over_from_an_xdp_master() {
    sctp::load().unwrap();
    let pair = Pair::new("to-kernel").unwrap();
    let [first, second] = pair.directors();
    let second = second.kernel();
    first.xipvs(&format!("attach {}", INTERFACES.join(" "))).unwrap();
    configured(&pair, [first, second]);
    second.xipvs("--start-daemon backup --mcast-interface sync --syncid 7").unwrap();
    first.xipvs("--start-daemon master --mcast-interface sync --syncid 7").unwrap();
    let mut traffic = Traffic::start(&pair);
    all_arrives(first, second);

    // A backup of ours asks the group for all that there is; the kernel's hears it and goes on as before.
    first.xipvs("--start-daemon backup --mcast-interface sync --syncid 7").unwrap();
    sleep(Duration::from_secs(5));
    traffic.downloads.push(Download::start(&pair.lab.client, services()[2]));
    until("the kernel's backup does not go on", || second.connections() == first.connections());
    // What of ours does not have this number it does not hear.
    first.xipvs("--stop-daemon master").unwrap();
    first.xipvs("--start-daemon master --mcast-interface sync --syncid 8").unwrap();
    traffic.downloads.push(Download::start(&pair.lab.client, services()[2]));
    sleep(Duration::from_secs(5));
    assert_eq!(second.connections().len() + 1, first.connections().len());
    first.xipvs("--stop-daemon master").unwrap();
    first.xipvs("--start-daemon master --mcast-interface sync --syncid 7").unwrap();
    until("the kernel's backup is not told", || second.connections() == first.connections());

    let before = second.in_packets();
    pair.fail_over().unwrap();
    traffic.goes_on();
    traffic.calls_go_on(&pair);
    // The kernel brings the counters that it tells up to date every two seconds.
    until("the kernel's backup counts no packets", || second.in_packets() > before);
    traffic.end();
}

#[test]
fn an_xdp_backup_takes_over_from_kernel_ipvs() {
    sctp::load().unwrap();
    let pair = Pair::new("from-kernel").unwrap();
    let [first, second] = pair.directors();
    let first = first.kernel();
    second.xipvs(&format!("attach {}", INTERFACES.join(" "))).unwrap();
    configured(&pair, [first, second]);
    second.xipvs("--start-daemon backup --mcast-interface sync --syncid 7 --mcast-group ff02::81").unwrap();
    first.xipvs("--start-daemon master --mcast-interface sync --syncid 7 --mcast-group ff02::81").unwrap();
    let mut traffic = Traffic::start(&pair);
    all_arrives(first, second);

    // Kernel IPVS can tell as it did long ago, of IPv4 alone.
    first.namespace.sysctl("net/ipv4/vs/sync_version", "0").unwrap();
    for service in [services()[2], services()[0]] {
        traffic.downloads.push(Download::start(&pair.lab.client, service));
    }
    traffic.goes_on();
    until("version 0 is not understood", || second.connections().len() + 1 == first.connections().len());
    let (told, all) = (second.connections(), first.connections());
    let untold: Vec<&String> = all.iter().filter(|line| !told.contains(line)).collect();
    assert!(untold.len() == 1 && untold[0].contains("[fd00:1::100]:80"), "{untold:?}");
    first.namespace.sysctl("net/ipv4/vs/sync_version", "1").unwrap();
    until("version 1 is not spoken again", || second.connections() == first.connections());

    let before = second.in_packets();
    pair.fail_over().unwrap();
    traffic.goes_on();
    traffic.calls_go_on(&pair);
    assert!(second.in_packets() > before);
    traffic.end();
}
