//! Following kernel IPVS: what others do there arrives in another director.

use std::fs;
use std::io::Read;
use std::net::{IpAddr, TcpListener};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, sleep};
use std::time::{Duration, Instant};

use lb_common::protocol::Protocol;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tests::golden;
use tests::lab::binary;
use xipvs::cli::names::FileNames;
use xipvs::director::memory::Memory;
use xipvs::director::{Director, Error};
use xipvs::mirror::{Follower, diff, mirror};
use xipvs::plan::reach;
use xipvs::table::{Destination, DestinationKey, Service, ServiceKey, Table};

use super::configuration::{Configuration, by_service, configurations, rules_of, sorted};
use super::{ipvsadm_prints, kernel, shell, xdp};

/// A real server that accepts until it is dropped.
struct Server {
    stop: Arc<AtomicBool>,
    thread: Option<thread::JoinHandle<()>>,
}

impl Server {
    fn start(address: &str) -> Self {
        let listener = TcpListener::bind(address).unwrap();
        listener.set_nonblocking(true).unwrap();
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let thread = thread::spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                let _ = listener.accept();
                sleep(Duration::from_millis(20));
            }
        });
        Self { stop, thread: Some(thread) }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Debian's keepalived, unmodified, as one process tree that ends with this value.
struct Keepalived(Child);

impl Keepalived {
    fn start(configuration: &str) -> Self {
        fs::write("/tmp/keepalived.conf", configuration).unwrap();
        let words = "--dont-fork --check --use-file /tmp/keepalived.conf \
                     --pid /tmp/keepalived.pid --checkers_pid /tmp/checkers.pid";
        Self(Command::new("keepalived").args(words.split_whitespace()).spawn().expect("keepalived"))
    }
}

impl Drop for Keepalived {
    fn drop(&mut self) {
        let _ = kill(Pid::from_raw(self.0.id() as i32), Signal::SIGTERM);
        let _ = self.0.wait();
    }
}

/// `xipvs serve`; killed with this value.
struct Serve(Child);

impl Serve {
    fn start(direction: &str) -> Self {
        let words = ["serve", "--mirror", direction, "--interval", "500"];
        Self(Command::new(binary()).args(words).stdout(Stdio::piped()).spawn().expect("xipvs"))
    }

    /// Ends it as an operator does, and returns what it told and how it ended.
    fn stop(mut self) -> (String, ExitStatus) {
        kill(Pid::from_raw(self.0.id() as i32), Signal::SIGTERM).unwrap();
        let mut told = String::new();
        self.0.stdout.take().unwrap().read_to_string(&mut told).unwrap();
        (told, self.0.wait().unwrap())
    }
}

impl Drop for Serve {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

const CONFIGURATION: &str = "\
virtual_server 192.0.2.1 80 {
    delay_loop 1
    lb_algo wrr
    lb_kind NAT
    protocol TCP
    real_server 127.0.0.2 8080 {
        weight 2
        TCP_CHECK {
            connect_timeout 1
            retry 0
            warmup 0
        }
    }
    real_server 127.0.0.3 8080 {
        weight 3
        TCP_CHECK {
            connect_timeout 1
            retry 0
            warmup 0
        }
    }
}
";

/// Waits until the table's rules are these, in any order, and returns how long that took.
fn await_rules(director: &mut dyn Director, expected: &[&str], limit: u64) -> Duration {
    let start = Instant::now();
    loop {
        let rules = rules_of(&Table { timeouts: None, ..director.table().unwrap().configured() });
        if rules == expected {
            return start.elapsed();
        }
        assert!(start.elapsed() < Duration::from_secs(limit), "{rules:?} instead of {expected:?}");
        sleep(Duration::from_millis(50));
    }
}

/// keepalived drives kernel IPVS and knows nothing of us; servers that die and return do so in the XDP program's
/// table, too.
#[test]
fn what_keepalived_does_to_the_kernel_arrives_in_the_xdp_table() {
    let mut source = kernel();
    let mut target = xdp();
    shell("ip address add 192.0.2.1/32 dev lo");
    let serve = Serve::start("from-kernel");
    let web = "-A -t 192.0.2.1:80 -s wrr";
    let two = "-a -t 192.0.2.1:80 -r 127.0.0.2:8080 -m -w 2";
    let three = "-a -t 192.0.2.1:80 -r 127.0.0.3:8080 -m -w 3";
    let first = Server::start("127.0.0.2:8080");
    let _second = Server::start("127.0.0.3:8080");
    let keepalived = Keepalived::start(CONFIGURATION);
    await_rules(&mut *target, &[web, two, three], 60);

    drop(first);
    let gone = await_rules(&mut *target, &[web, three], 10);
    assert!(gone < Duration::from_secs(2), "gone after {gone:?}");
    let first = Server::start("127.0.0.2:8080");
    let back = await_rules(&mut *target, &[web, two, three], 10);
    println!("gone after {gone:?}, back after {back:?}");

    // What happens while nobody follows, killed and not even asked to stop, arrives when somebody does again.
    drop(serve);
    drop(first);
    await_rules(&mut source, &[web, three], 10);
    assert_eq!(target.destinations(&key()).unwrap().len(), 2);
    let serve = Serve::start("from-kernel");
    await_rules(&mut *target, &[web, three], 10);

    drop(keepalived);
    await_rules(&mut *target, &[], 10);
    let (told, status) = serve.stop();
    assert_eq!(status.code(), Some(0));
    assert!(told.contains("-d -t 192.0.2.1:80 -r 127.0.0.2:8080\n"), "{told}");
    assert!(told.contains("-D -t 192.0.2.1:80\n"), "{told}");
}

fn key() -> ServiceKey {
    ServiceKey::Address { protocol: Protocol::Tcp, address: IpAddr::from([192, 0, 2, 1]), port: 80 }
}

/// Runs `xipvs` and returns what it printed, what it complained of, and its exit status.
fn xipvs(words: &str) -> (String, String, i32) {
    let output = Command::new(binary()).args(words.split_whitespace()).output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (text(output.stdout), text(output.stderr), output.status.code().unwrap())
}

#[test]
fn drift_is_shown_and_mirrored_and_what_cannot_be_is_named() {
    let _source = kernel();
    let _target = xdp();
    let rules = "-A -t 192.0.2.1:80 -s rr\n-a -t 192.0.2.1:80 -r 198.51.100.1:80 -g -w 5\n";
    ipvsadm_prints(&["-R"], &format!("{rules}-A -f 7 -s rr\n"));
    let (shown, complaints, status) = xipvs("diff --from kernel");
    assert_eq!(
        (sorted(&shown), complaints.as_str(), status),
        (sorted(&format!("{rules}-A -f 7 -s rr\n")), "", 1)
    );

    let (made, complaints, status) = xipvs("mirror --from kernel");
    assert_eq!((made.as_str(), status), (rules, 1));
    let refused = "xipvs: not mirrored: -A -f 7 -s rr: The XDP director does not have firewall mark services (-f) yet\n";
    assert_eq!(complaints, refused);
    assert_eq!(xipvs("-Sn"), (rules.into(), String::new(), 0));
    assert_eq!(xipvs("diff"), ("-D -f 7\n".into(), String::new(), 1));
    assert_eq!(xipvs("mirror --to kernel"), ("-D -f 7\n".into(), String::new(), 0));
    assert_eq!(ipvsadm_prints(&["-Sn"], ""), rules);
    assert_eq!(xipvs("diff"), (String::new(), String::new(), 0));

    // A table that is not there is not an empty one.
    assert_eq!(xipvs("detach").2, 0);
    let (made, complaints, status) = xipvs("mirror --to kernel");
    let unloaded = "xipvs: the XDP director is not loaded in this network namespace\n";
    assert_eq!((made.as_str(), complaints.as_str(), status), ("", unloaded, 2));
    assert_eq!(ipvsadm_prints(&["-Sn"], ""), rules);
}

/// From the command line's rules into the XDP table, on to the kernel, and back from there into an empty table. What the
/// XDP director cannot do it names; what it takes of such a configuration goes the same way.
#[test]
fn configurations_go_from_xdp_to_the_kernel_and_back() {
    let mut kernel = kernel();
    let mut xdp = xdp();
    let no_names = FileNames::parse("", "");
    let (mut whole, mut partial) = (0, 0);
    for Configuration { title, rules } in configurations() {
        let mut memory = Memory::default();
        let complaints = golden::run(&["xipvs", "-R"], &rules, &mut memory, &no_names).stderr;
        assert_eq!(complaints, "", "{title}");
        let wanted = memory.table().unwrap().configured();
        let applied = reach(wanted.clone(), &mut *xdp).unwrap();
        for refused in &applied.refused {
            assert!(matches!(refused.error, Error::Unsupported(_)), "{title}: {refused}");
            assert!(refused.error.to_string().starts_with("The XDP director does not have "), "{refused}");
        }
        let written = xdp.table().unwrap().configured();
        if applied.refused.is_empty() {
            whole += 1;
            assert_eq!(by_service(&written), by_service(&wanted), "{title}");
        } else if written.entries.is_empty() {
            continue;
        } else {
            partial += 1;
        }

        let applied = mirror(&mut *xdp, &mut kernel).unwrap();
        assert!(applied.refused.is_empty(), "{title}: {applied:?}");
        let saved = golden::run(&["xipvs", "-Sn"], "", &mut *xdp, &no_names);
        assert_eq!((saved.stderr.as_str(), saved.status), ("", 0), "{title}");
        assert_eq!(ipvsadm_prints(&["-Sn"], ""), saved.stdout, "{title}");

        xdp.flush().unwrap();
        let applied = mirror(&mut kernel, &mut *xdp).unwrap();
        assert!(applied.refused.is_empty(), "{title}: {applied:?}");
        let returned = xdp.table().unwrap().configured();
        assert_eq!(by_service(&returned), by_service(&written), "{title}");
    }
    println!("{whole} configurations went as they are, {partial} in part");
    assert!(whole >= 21 && partial > 0, "only {whole} went as they are, {partial} in part");
}

#[test]
fn the_kernel_is_mirrored_both_ways() {
    let mut source = kernel();
    let rules = "-A -t 192.0.2.1:80 -s sh -p 300 -b sh-port\n\
                 -a -t 192.0.2.1:80 -r 198.51.100.1:80 -i -w 5 --tun-type gue --tun-port 6080 --tun-csum\n\
                 -A -f 7 -6 -s mh\n-a -f 7 -6 -r [2001:db8::1]:0 -g -w 1\n";
    ipvsadm_prints(&["-R"], rules);
    ipvsadm_prints(&["--set", "60", "61", "62"], "");
    let before = ipvsadm_prints(&["-S", "-n"], "");
    let mut memory = Memory::default();
    assert!(mirror(&mut source, &mut memory).unwrap().refused.is_empty());
    assert_eq!(diff(&mut source, &mut memory).unwrap(), vec![]);

    ipvsadm_prints(&["-C"], "");
    ipvsadm_prints(&["--set", "1", "1", "1"], "");
    assert_eq!(diff(&mut memory, &mut source).unwrap().len(), 5);
    assert!(mirror(&mut memory, &mut source).unwrap().refused.is_empty());
    assert_eq!(ipvsadm_prints(&["-S", "-n"], ""), before);
    assert_eq!(ipvsadm_prints(&["-L", "--timeout"], ""), "Timeout (tcp tcpfin udp): 60 61 62\n");
}

/// `--count-instructions` makes the time that this prints a number of instructions.
#[test]
#[ignore = "a measurement: run with --ignored under `cargo xtask vm --count-instructions`"]
fn polling_a_thousand_services() {
    let mut source = kernel();
    for service in 0..1000u32 {
        let address = IpAddr::from((0x0a00_0000 + service).to_be_bytes());
        let key = ServiceKey::Address { protocol: Protocol::Tcp, address, port: 80 };
        source.add_service(&Service { scheduler: "rr".into(), ..Service::new(key) }).unwrap();
        for destination in 0..10u32 {
            let address = IpAddr::from((0x0b00_0000 + destination).to_be_bytes());
            source.add_destination(&key, &Destination::new(DestinationKey { address, port: 80 })).unwrap();
        }
    }
    let mut target = Memory::default();
    let mut follower = Follower::default();
    let mut time = |what: &str| {
        let start = Instant::now();
        let told = follower.poll(&mut source, &mut target).unwrap().map_or(0, |applied| applied.made.len());
        println!("{what}: {:?}, {told} changes", start.elapsed());
    };
    time("first poll");
    // Every thirtieth one compares both tables.
    let start = Instant::now();
    (0..30).for_each(|_| time("nothing new"));
    println!("a poll on average: {:?}", start.elapsed() / 30);
}
