//! Sync daemons: two XDP directors of which one takes over from the other, and what starts, lists and stops them.

use std::fs;
use std::net::SocketAddr;
use std::process::Stdio;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tests::lab::download::{Download, all_go_on, until};
use tests::lab::namespace::Namespace;
use tests::lab::pair::{Director, Pair, services};
use tests::lab::{CLIENT, VIP};

/// The line of `-L --daemon` for a daemon without options on the link.
fn line(role: &str) -> String {
    format!("{role} sync daemon (mcast=sync, syncid=0, maxlen=1472, group=224.0.0.81, port=8848, ttl=1)\n")
}

/// The processes of sync daemons in a namespace.
fn daemons(namespace: &Namespace) -> Vec<Pid> {
    let pids = namespace.run(&format!("ip netns pids {}", namespace.name())).unwrap();
    let is_daemon = |pid: &Pid| {
        let words = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        words.split(|byte| *byte == 0).any(|word| word == b"--background" || word == b"sync")
    };
    pids.lines().filter_map(|pid| pid.trim().parse().ok()).map(Pid::from_raw).filter(is_daemon).collect()
}

#[test]
fn downloads_survive_the_failure_of_their_director() -> Result<()> {
    let pair = Pair::new("failover")?;
    let [first, second] = pair.directors();
    pair.serve();
    pair.attach()?;
    for director in pair.directors() {
        pair.configure(director)?;
    }
    second.xipvs("--start-daemon backup --mcast-interface sync --syncid 7")?;
    first.xipvs("--start-daemon master --mcast-interface sync --syncid 7")?;

    let twice = services().into_iter().chain(services());
    let downloads: Vec<Download> = twice.map(|service| Download::start(&pair.lab.client, service)).collect();
    all_go_on(&downloads);
    let wanted = first.connections();
    assert_eq!(wanted.iter().filter(|line| line.contains("ESTABLISHED")).count(), 8, "{wanted:#?}");
    assert_eq!(wanted.iter().filter(|line| line.contains("ASSURED")).count(), 2, "{wanted:#?}");
    until("the second director is not told all", || second.connections() == wanted);
    assert_eq!(second.counts(), first.counts());
    assert_eq!(second.in_packets(), 0);

    // The first one dies, and all that it knew.
    pair.fail_over()?;
    first.xipvs("detach")?;
    all_go_on(&downloads);
    assert_eq!(second.connections(), wanted);
    assert!(second.in_packets() > 0);
    // New connections follow the templates that were told of.
    let more = Download::start(&pair.lab.client, services()[0]);
    let template = wanted.iter().find(|line| line.contains("ASSURED") && line.contains(&VIP.to_string()));
    let destination =
        template.context("no template")?.split(' ').nth(4).context("no destination")?.to_owned();
    let now = second.connections();
    let new: Vec<&String> = now.iter().filter(|line| !wanted.contains(line)).collect();
    assert!(new.len() == 1 && new[0].ends_with(&destination), "{new:?} {destination}");

    // It comes back as the backup, and learns what it once knew.
    pair.configure(first)?;
    second.xipvs("--stop-daemon backup")?;
    second.xipvs("--start-daemon master --mcast-interface sync --syncid 7")?;
    first.xipvs("--start-daemon backup --mcast-interface sync --syncid 7")?;
    until("the first director is not told all", || first.connections() == second.connections());
    downloads.into_iter().chain([more]).for_each(Download::end);
    Ok(())
}

#[test]
fn who_joins_late_is_told_all_and_what_cannot_be_placed_waits() -> Result<()> {
    let pair = Pair::new("late")?;
    let [first, second] = pair.directors();
    pair.serve();
    pair.attach()?;
    pair.configure(first)?;
    first.xipvs("--start-daemon master --mcast-interface sync --mcast-group ff02::99 --mcast-port 9999")?;
    let downloads: Vec<Download> =
        services().into_iter().map(|service| Download::start(&pair.lab.client, service)).collect();
    all_go_on(&downloads);
    let wanted = first.connections();
    // Long enough that all of it was told to nobody; it is due again when half of fifteen minutes is over.
    thread::sleep(Duration::from_secs(3));

    // Nothing of the table is there yet.
    let start = Instant::now();
    second.xipvs("--start-daemon backup --mcast-interface sync --mcast-group ff02::99 --mcast-port 9999")?;
    until("nothing waits", || second.xipvs("status").unwrap().contains("6 waiting"));
    assert!(second.connections().is_empty());
    pair.configure(second)?;
    until("the late one is not told all", || second.connections() == wanted);
    assert!(start.elapsed() < Duration::from_secs(120), "{:?}", start.elapsed());
    assert_eq!(second.counts(), first.counts());
    let status = second.xipvs("status")?;
    assert!(status.contains("0 waiting"), "{status}");
    pair.fail_over()?;
    all_go_on(&downloads);
    downloads.into_iter().for_each(Download::end);
    Ok(())
}

#[test]
fn what_ends_ends_on_both_sides_although_both_tell_each_other() -> Result<()> {
    let pair = Pair::new("both")?;
    pair.attach()?;
    for director in pair.directors() {
        director.xipvs("--set 0 0 20")?;
        director.xipvs(&format!("-A -u {VIP}:53 -s rr"))?;
        director.xipvs(&format!("-a -u {VIP}:53 -r {}:5353 -m", pair.lab.servers[0].address))?;
        for role in ["master", "backup"] {
            director.xipvs(&format!("--start-daemon {role} --mcast-interface sync"))?;
        }
        assert_eq!(director.xipvs("-L --daemon")?, line("master") + &line("backup"));
    }
    let [first, second] = pair.directors();
    let socket = pair.lab.client.bind(SocketAddr::new(CLIENT.into(), 0))?;
    socket.send_to(b"who", SocketAddr::new(VIP.into(), 53))?;
    assert_eq!(first.connections().len(), 1);
    until("the second is not told", || second.connections() == first.connections());
    // Nothing but the other's word keeps it in either.
    let start = Instant::now();
    until("it does not end", || first.connections().is_empty() && second.connections().is_empty());
    assert!(start.elapsed() < Duration::from_secs(60), "{:?}", start.elapsed());
    Ok(())
}

#[test]
fn daemons_are_started_once_listed_while_they_run_and_stopped() -> Result<()> {
    let pair = Pair::new("daemons")?;
    let director = Director::of(&pair.second);
    let namespace = director.namespace;
    let refused = |words: &str| -> Result<String> {
        let output = namespace.xipvs(words).output()?;
        ensure!(output.status.code() == Some(255), "`{words}`: {}", output.status);
        Ok(String::from_utf8_lossy(&output.stderr).into_owned())
    };
    let start = "--start-daemon master --mcast-interface sync";
    // By many at once.
    let started: usize = thread::scope(|scope| {
        let all: Vec<_> = (0..8)
            .map(|_| scope.spawn(|| namespace.xipvs(start).output().unwrap().status.success()))
            .collect();
        all.into_iter().map(|one| usize::from(one.join().unwrap())).sum()
    });
    assert_eq!((started, daemons(namespace).len()), (1, 1));
    assert!(refused(start)?.starts_with("Daemon has already run"));
    assert_eq!(director.xipvs("-L --daemon")?, line("master"));
    assert!(refused("--start-daemon backup --mcast-interface nosuch")?.starts_with("No such device"));
    namespace.ip(&["link add dull type veth peer name dull2"])?;
    assert!(refused("--stop-daemon backup")?.starts_with("No daemon is running"));

    // One that was killed is not listed, and in nobody's way.
    kill(daemons(namespace)[0], Signal::SIGKILL)?;
    until("the dead one is listed", || director.xipvs("-L --daemon").unwrap().is_empty());
    assert!(refused("--stop-daemon master")?.starts_with("No daemon is running"));
    assert!(refused("--start-daemon master --mcast-interface dull")?.starts_with("Network is unreachable"));
    director.xipvs(start)?;
    director.xipvs("--stop-daemon master")?;
    assert_eq!((director.xipvs("-L --daemon")?, daemons(namespace).len()), (String::new(), 0));

    // In the foreground, as for a service manager.
    let mut child = namespace.xipvs("sync backup --mcast-interface sync").stderr(Stdio::null()).spawn()?;
    until("it is not listed", || director.xipvs("-L --daemon").unwrap() == line("backup"));
    assert!(refused("--start-daemon backup --mcast-interface sync")?.starts_with("Daemon has already run"));
    director.xipvs("--stop-daemon backup")?;
    assert!(child.wait()?.success());

    // Families do not mix while a daemon runs, and no daemon starts while they do.
    director.xipvs(&format!("-A -t {VIP}:80 -s rr"))?;
    let mixed = format!("-t {VIP}:80 -r fd00:2::b -i");
    director.xipvs(start)?;
    assert!(refused(&format!("-a {mixed}"))?.starts_with("Invalid operation"));
    director.xipvs("--stop-daemon master")?;
    director.xipvs(&format!("-a {mixed}"))?;
    assert!(refused(start)?.starts_with("Invalid operation"));
    director.xipvs("-C")?;

    // With the table the daemons go.
    director.xipvs(start)?;
    director.xipvs("--start-daemon backup --mcast-interface sync")?;
    assert_eq!(daemons(namespace).len(), 2);
    director.xipvs("detach")?;
    assert!(daemons(namespace).is_empty());
    Ok(())
}
