//! Following kernel IPVS: what others do there arrives in another director.

use std::fs;
use std::net::{IpAddr, TcpListener};
use std::process::{Child, Command};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, sleep};
use std::time::{Duration, Instant};

use lb_common::protocol::Protocol;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use xipvs::director::Director;
use xipvs::director::memory::Memory;
use xipvs::mirror::{Follower, diff, mirror};
use xipvs::table::{Destination, DestinationKey, Service, ServiceKey};

use super::{ipvsadm_prints, kernel, shell};

const POLL: Duration = Duration::from_millis(200);

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

const CONFIGURATION: &str = "\
virtual_server 192.0.2.1 80 {
    delay_loop 1
    lb_algo wrr
    lb_kind NAT
    protocol TCP
    real_server 127.0.0.2 8080 {
        weight 2
        TCP_CHECK { connect_timeout 1 }
    }
    real_server 127.0.0.3 8080 {
        weight 3
        TCP_CHECK { connect_timeout 1 }
    }
}
";

/// keepalived drives kernel IPVS and knows nothing of us; servers that die and return do so in the follower's
/// target, too.
#[test]
fn what_keepalived_does_to_the_kernel_arrives() {
    let mut source = kernel();
    shell("ip address add 192.0.2.1/32 dev lo");
    let mut target = Memory::default();
    let mut follower = Follower::default();
    let key =
        ServiceKey::Address { protocol: Protocol::Tcp, address: IpAddr::from([192, 0, 2, 1]), port: 80 };
    let mut await_servers = |expected: &[&str], limit: u64| {
        let start = Instant::now();
        loop {
            let _ = follower.poll(&mut source, &mut target).unwrap();
            let reports = target.destinations(&key).unwrap();
            let mut servers: Vec<String> = reports
                .iter()
                .map(|report| format!("{} {}", report.destination.key, report.destination.weight))
                .collect();
            servers.sort();
            if servers == expected {
                return start.elapsed();
            }
            assert!(start.elapsed() < Duration::from_secs(limit), "{servers:?} instead of {expected:?}");
            sleep(POLL);
        }
    };
    let (two, three) = ("127.0.0.2:8080 2", "127.0.0.3:8080 3");
    let first = Server::start("127.0.0.2:8080");
    let _second = Server::start("127.0.0.3:8080");
    let keepalived = Keepalived::start(CONFIGURATION);
    await_servers(&[two, three], 60);

    drop(first);
    let gone = await_servers(&[three], 10);
    let _first = Server::start("127.0.0.2:8080");
    let back = await_servers(&[two, three], 10);
    println!("gone after {gone:?}, back after {back:?}");

    drop(keepalived);
    await_servers(&[], 10);
    assert_eq!(target.services().unwrap(), vec![]);
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
    (0..5).for_each(|_| time("nothing new"));
}
