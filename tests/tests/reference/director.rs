//! The kernel director against the real ipvsadm: each must read what the other wrote.

use std::net::{IpAddr, UdpSocket};
use std::thread::sleep;
use std::time::{Duration, Instant};

use lb_common::forward::ForwardingMethod;
use lb_common::protocol::Protocol;
use tests::golden;
use xipvs::cli::names::FileNames;
use xipvs::director::Director;
use xipvs::director::kernel::Kernel;
use xipvs::plan::{apply, plan};
use xipvs::table::{
    Destination, DestinationKey, Service, ServiceKey, Stats, SyncDaemon, SyncRole, Table, Timeouts,
};

use super::configuration::{Configuration, as_saved, by_service, configurations, rules_of, sorted};
use super::{ipvsadm, ipvsadm_prints, kernel, shell};

/// A master daemon with everything else left to the kernel's defaults.
fn daemon(interface: &str) -> SyncDaemon {
    SyncDaemon {
        role: SyncRole::Master,
        interface: interface.into(),
        sync_id: 0,
        max_length: 0,
        group: None,
        port: 0,
        ttl: 0,
    }
}

fn configured(kernel: &mut Kernel) -> Table {
    let table = kernel.table().unwrap().configured();
    // The timeouts are not in the rules.
    Table { timeouts: None, ..table }
}

/// Every form of listing, for `-R`: so one process prints them all.
const LISTINGS: &str = "-S -n\n-L -n\n-L -n --stats\n-L -n --rate\n-L -n --thresholds\n\
    -L -n --persistent-conn\n-L -n --tun-info\n-L -n --stats --exact\n-L --timeout\n-L -n -c\n";

/// One after the other, so that plans lead from each to the next: additions, edits and deletions.
#[test]
fn configurations_go_from_ipvsadm_to_us_and_back() {
    let mut kernel = kernel();
    let configurations = configurations();
    assert!(configurations.len() >= 200);
    let no_names = FileNames::parse("", "");
    let mut previous = Table::default();
    for Configuration { title, rules } in configurations {
        // One process for all of it: emulated, a process costs a fifth of a second.
        let listed = ipvsadm_prints(&["-R"], &format!("-C\n{rules}{LISTINGS}"));
        let (saved, _) = listed.split_once("IP Virtual Server").unwrap();
        assert_eq!(sorted(saved), sorted(&as_saved(&rules)), "{title}");
        let wanted = configured(&mut kernel);
        assert_eq!(rules_of(&wanted), sorted(&rules), "{title}: as read");

        kernel.flush().unwrap();
        assert_eq!(configured(&mut kernel).entries, vec![], "{title}: after flush");
        let applied = apply(plan(&Table::default(), &previous), &mut *kernel).unwrap();
        assert!(applied.refused.is_empty(), "{title}: {applied:?}");
        let applied = apply(plan(&previous, &wanted), &mut *kernel).unwrap();
        assert!(applied.refused.is_empty(), "{title}: {applied:?}");
        let changes = applied.made;
        assert_eq!(ipvsadm_prints(&["-R"], LISTINGS), listed, "{title}: as written by {changes:?}");
        let ours = golden::run(&["ipvsadm", "-R"], LISTINGS, &mut *kernel, &no_names);
        assert_eq!((ours.stderr.as_str(), ours.status), ("", 0), "{title}");
        // Of flags without a name ipvsadm writes an option that it does not read.
        assert_eq!(ours.stdout, listed.replace(" -b \n", "\n"), "{title}: as listed by us");

        let written = configured(&mut kernel);
        assert_eq!(by_service(&written), by_service(&wanted), "{title}: as written by {changes:?}");
        assert_eq!(plan(&written, &wanted), vec![], "{title}");
        previous = wanted;
    }
}

fn web() -> ServiceKey {
    ServiceKey::Address { protocol: Protocol::Tcp, address: IpAddr::from([192, 0, 2, 1]), port: 80 }
}

/// Every refusal that both can provoke: the words that ipvsadm has for it are those of our error.
#[test]
fn refusals_have_ipvsadm_s_words() {
    type Attempt = fn(&mut Kernel) -> xipvs::director::Result<()>;
    fn destination(last: u8) -> Destination {
        Destination::new(DestinationKey { address: IpAddr::from([198, 51, 100, last]), port: 80 })
    }
    fn add(kernel: &mut Kernel, address: &str, lower: u32) -> xipvs::director::Result<()> {
        let key = DestinationKey { address: address.parse().unwrap(), port: 80 };
        kernel.add_destination(&web(), &Destination { lower_threshold: lower, ..Destination::new(key) })
    }
    let other = "192.0.2.9:80";
    fn absent() -> ServiceKey {
        ServiceKey::Address { protocol: Protocol::Tcp, address: IpAddr::from([192, 0, 2, 9]), port: 80 }
    }
    let attempts: &[(&[&str], Attempt)] = &[
        (&["-A", "-t", "192.0.2.1:80"], |kernel| kernel.add_service(&Service::new(web()))),
        (&["-A", "-t", other, "-s", "nonesuch"], |kernel| {
            kernel.add_service(&Service { scheduler: "nonesuch".into(), ..Service::new(absent()) })
        }),
        (&["-A", "-t", other, "--pe", "nonesuch"], |kernel| {
            kernel.add_service(&Service { engine: Some("nonesuch".into()), ..Service::new(absent()) })
        }),
        (&["-E", "-t", other], |kernel| kernel.edit_service(&Service::new(absent()))),
        (&["-E", "-t", "192.0.2.1:80", "-s", "nonesuch"], |kernel| {
            kernel.edit_service(&Service { scheduler: "nonesuch".into(), ..Service::new(web()) })
        }),
        (&["-D", "-t", other], |kernel| kernel.delete_service(&absent())),
        (&["-Z", "-t", other], |kernel| kernel.zero(Some(&absent()))),
        (&["-L", "-t", other], |kernel| kernel.service(&absent()).map(drop)),
        (&["-a", "-t", "192.0.2.1:80", "-r", "198.51.100.1"], |kernel| {
            kernel.add_destination(&web(), &destination(1))
        }),
        (&["-e", "-t", "192.0.2.1:80", "-r", "198.51.100.2"], |kernel| {
            kernel.edit_destination(&web(), &destination(2))
        }),
        (&["-d", "-t", "192.0.2.1:80", "-r", "198.51.100.2"], |kernel| {
            kernel.delete_destination(&web(), &destination(2).key)
        }),
        (&["-a", "-t", "192.0.2.1:80", "-r", "224.0.0.1"], |kernel| add(kernel, "224.0.0.1", 0)),
        (&["-a", "-t", "192.0.2.1:80", "-r", "0.0.0.0"], |kernel| add(kernel, "0.0.0.0", 0)),
        (&["-a", "-t", "192.0.2.1:80", "-r", "198.51.100.3", "-y", "1"], |kernel| {
            add(kernel, "198.51.100.3", 1)
        }),
        (&["--start-daemon", "master", "--mcast-interface", "nonesuch"], |kernel| {
            kernel.start_daemon(&daemon("nonesuch"))
        }),
        (&["--start-daemon", "master", "--mcast-interface", "down0"], |kernel| {
            kernel.start_daemon(&daemon("down0"))
        }),
        (&["--stop-daemon", "backup"], |kernel| kernel.stop_daemon(SyncRole::Backup)),
    ];
    let mut kernel = kernel();
    shell("ip link add down0 type dummy");
    kernel.add_service(&Service::new(web())).unwrap();
    kernel.add_destination(&web(), &destination(1)).unwrap();
    for (words, attempt) in attempts {
        let theirs = ipvsadm(words, "");
        let theirs = String::from_utf8(theirs.stderr).unwrap();
        let ours = attempt(&mut kernel).expect_err(&words.join(" ")).to_string();
        assert_eq!(ours, theirs.trim_end(), "{words:?}");
    }
    // One condition, worded by the command line after the kind of command.
    for attempt in [
        (|kernel| kernel.add_destination(&absent(), &destination(1))) as Attempt,
        |kernel| kernel.edit_destination(&absent(), &destination(1)),
        |kernel| kernel.delete_destination(&absent(), &destination(1).key),
    ] {
        assert!(matches!(attempt(&mut kernel), Err(xipvs::director::Error::NoSuchService)));
    }
    assert_eq!(kernel.destinations(&absent()).unwrap(), vec![]);
}

#[test]
fn timeouts_are_set_and_told() {
    let mut kernel = kernel();
    assert_eq!(kernel.timeouts().unwrap(), Timeouts::default());
    kernel.set_timeouts(&Timeouts { tcp: 1000, tcp_fin: 0, udp: 77 }).unwrap();
    assert_eq!(ipvsadm_prints(&["-L", "--timeout"], ""), "Timeout (tcp tcpfin udp): 1000 120 77\n");
    ipvsadm_prints(&["--set", "1", "2", "3"], "");
    assert_eq!(kernel.timeouts().unwrap(), Timeouts { tcp: 1, tcp_fin: 2, udp: 3 });
}

#[test]
fn daemons_are_started_told_and_stopped() {
    let mut kernel = kernel();
    shell("ip link add sync0 type dummy && ip address add 192.0.2.7/24 dev sync0 && ip link set sync0 up");

    let backup = SyncDaemon {
        role: SyncRole::Backup,
        interface: "sync0".into(),
        sync_id: 7,
        max_length: 1400,
        group: Some(IpAddr::from([224, 0, 0, 99])),
        port: 9000,
        ttl: 4,
    };
    let master = daemon("sync0");
    kernel.start_daemon(&backup).unwrap();
    kernel.start_daemon(&master).unwrap();
    assert_eq!(
        ipvsadm_prints(&["-L", "--daemon"], ""),
        "master sync daemon (mcast=sync0, syncid=0, maxlen=1472, group=224.0.0.81, port=8848, ttl=1)\n\
         backup sync daemon (mcast=sync0, syncid=7, maxlen=1400, group=224.0.0.99, port=9000, ttl=4)\n"
    );
    let filled = SyncDaemon {
        max_length: 1472,
        group: Some(IpAddr::from([224, 0, 0, 81])),
        port: 8848,
        ttl: 1,
        ..master.clone()
    };
    assert_eq!(kernel.daemons().unwrap(), vec![filled, backup]);
    assert!(matches!(kernel.start_daemon(&master), Err(xipvs::director::Error::DaemonRuns)));
    kernel.stop_daemon(SyncRole::Backup).unwrap();
    kernel.stop_daemon(SyncRole::Master).unwrap();
    assert_eq!(kernel.daemons().unwrap(), vec![]);
}

/// The kernel says nothing when the thread that it stops has not begun yet: the real ipvsadm waits for ever then.
#[test]
fn a_daemon_may_be_stopped_before_its_thread_begins() {
    let mut kernel = kernel();
    shell("ip link add sync0 type dummy && ip address add 192.0.2.7/24 dev sync0 && ip link set sync0 up");
    for role in [SyncRole::Master, SyncRole::Backup].repeat(200) {
        kernel.start_daemon(&SyncDaemon { role, ..daemon("sync0") }).unwrap();
        kernel.stop_daemon(role).unwrap();
        assert_eq!(kernel.daemons().unwrap(), vec![]);
    }
}

/// A client that finds no server: one connection, one packet, in the counters and in the connection list.
#[test]
fn counters_and_connections_are_told_as_ipvsadm_tells_them() {
    let mut kernel = kernel();
    shell("ip address add 192.0.2.1/32 dev lo && ip address add 198.51.100.1/32 dev lo");
    let key =
        ServiceKey::Address { protocol: Protocol::Udp, address: IpAddr::from([192, 0, 2, 1]), port: 53 };
    kernel.add_service(&Service { scheduler: "rr".into(), ..Service::new(key) }).unwrap();
    let server = DestinationKey { address: IpAddr::from([198, 51, 100, 1]), port: 5353 };
    let destination = Destination { method: ForwardingMethod::Masquerade, ..Destination::new(server) };
    kernel.add_destination(&key, &destination).unwrap();

    let client = UdpSocket::bind("192.0.2.1:4242").unwrap();
    client.send_to(b"twelve bytes", "192.0.2.1:53").unwrap();

    // The kernel tells counters as of its estimator's last turn, every two seconds.
    let deadline = Instant::now() + Duration::from_secs(120);
    while kernel.service(&key).unwrap().stats.connections == 0 && Instant::now() < deadline {
        sleep(Duration::from_millis(100));
    }
    // 20 bytes of IPv4, 8 of UDP and the 12.
    let service = kernel.service(&key).unwrap();
    let report = kernel.destinations(&key).unwrap().remove(0);
    assert_eq!((service.stats.connections, service.stats.in_packets, service.stats.in_bytes), (1, 1, 40));
    assert_eq!((report.active, report.inactive, report.persistent), (0, 1, 0));
    assert_eq!(report.stats, service.stats);
    let listed = ipvsadm_prints(&["-L", "-n", "--stats", "--exact"], "");
    let Stats { connections, in_packets, out_packets, in_bytes, out_bytes, .. } = service.stats;
    let columns = format!("{connections:>9}{in_packets:>9}{out_packets:>9}{in_bytes:>9}{out_bytes:>9}");
    assert_eq!(listed.lines().filter(|line| line.ends_with(&columns)).count(), 2, "{listed}");

    let connections = kernel.connections().unwrap();
    assert_eq!(connections.len(), 1);
    let connection = &connections[0];
    let listed = ipvsadm_prints(&["-L", "-n", "-c"], "");
    let tail = format!(
        "{:<11} {:<18} {:<18} {}:{}",
        connection.state,
        format!("{}:{}", connection.client, connection.client_port),
        format!("{}:{}", connection.virtual_address, connection.virtual_port),
        connection.destination,
        connection.destination_port
    );
    assert!(listed.lines().any(|line| line.starts_with("UDP ") && line.ends_with(&tail)), "{listed}{tail}");
    // Less the time that has passed since, however long that was.
    assert!((1..=300).contains(&connection.expires), "{connection:?}");

    kernel.zero(Some(&key)).unwrap();
    assert_eq!(kernel.service(&key).unwrap().stats, Stats::default());
    assert_eq!(kernel.destinations(&key).unwrap()[0].inactive, 1);
}
