//! Following kernel IPVS: what others do there arrives in another director.

use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read};
use std::net::{Ipv4Addr, SocketAddrV4};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use lb_common::protocol::Protocol;
use nix::sched::{CloneFlags, setns};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tests::golden;
use tests::lab::sockets::{Listener, ask_tcp};
use tests::lab::{Lab, Server, VIP, binary};
use xipvs::cli::names::FileNames;
use xipvs::director::kernel::Kernel;
use xipvs::director::memory::Memory;
use xipvs::director::xdp::Xdp;
use xipvs::director::xdp::lifecycle::Pins;
use xipvs::director::{Director, Error};
use xipvs::mirror::{Follower, diff, mirror};
use xipvs::plan::reach;
use xipvs::table::{ServiceKey, Table};

use super::configuration::{Configuration, by_service, configurations, rules_of, sorted};
use super::{ipvsadm_prints, kernel, xdp};

/// Debian's keepalived, unmodified, as one process tree that ends with this value.
struct Keepalived(Child);

impl Keepalived {
    fn start(lab: &Lab) -> Self {
        let path = |name| lab.directory().join(name).display().to_string();
        let [configuration, pid, checkers] = ["keepalived.conf", "keepalived.pid", "checkers.pid"].map(path);
        let real_server = |(server, weight): (&Server, u32)| {
            format!(
                "real_server {} 8080 {{\nweight {weight}\nTCP_CHECK {{\nconnect_timeout 5\nretry 0\nwarmup 0\n}}\n}}\n",
                server.address
            )
        };
        let servers: String = lab.servers.iter().zip(2..).map(real_server).collect();
        let text = format!(
            "virtual_server {VIP} 80 {{\ndelay_loop 1\nlb_algo wrr\nlb_kind NAT\nprotocol TCP\n{servers}}}\n"
        );
        fs::write(&configuration, text).unwrap();
        let words = ["--dont-fork", "--check", "--use-file", &configuration];
        let files = ["--pid", &pid, "--checkers_pid", &checkers];
        let mut command = lab.director.command("keepalived");
        Self(command.args(words).args(files).spawn().expect("keepalived"))
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
        Self::start_with(direction, "500")
    }

    /// With so many milliseconds between two looks.
    fn start_with(direction: &str, interval: &str) -> Self {
        let words = ["serve", "--mirror", direction, "--interval", interval];
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

/// How long anything may take on a machine that is slow and busy.
const PATIENCE: Duration = Duration::from_secs(120);

/// Waits until the table's rules are these, in any order.
fn await_rules(director: &mut dyn Director, expected: &[&str]) {
    let start = Instant::now();
    loop {
        let rules = rules_now(director);
        if rules == expected {
            return;
        }
        assert!(start.elapsed() < PATIENCE, "{rules:?} instead of {expected:?}");
        sleep(Duration::from_millis(50));
    }
}

/// Whether this machine takes longer to start a program than any that is not emulated.
fn is_slow() -> bool {
    let start = Instant::now();
    Command::new(binary()).args(["generate", "completion"]).stdout(Stdio::null()).status().unwrap();
    start.elapsed() > Duration::from_millis(100)
}

fn rules_now(director: &mut dyn Director) -> Vec<String> {
    rules_of(&Table { timeouts: None, ..director.table().unwrap().configured() })
}

/// The servers that answer so many requests to the virtual address, each once.
fn answering(lab: &Lab, requests: usize) -> Vec<String> {
    let ask = |_| ask_tcp(&lab.client, SocketAddrV4::new(VIP, 80)).unwrap().server;
    let mut servers: Vec<String> = (0..requests).map(ask).collect();
    servers.sort();
    servers.dedup();
    servers
}

/// keepalived drives kernel IPVS and knows nothing of us; servers that die and return do so in the XDP program's
/// table too, and it is the XDP program that carries the requests.
#[test]
fn what_keepalived_does_to_the_kernel_steers_the_packets_of_the_xdp_program() {
    let lab = Lab::new("keepalived", 2).unwrap();
    let director = File::open(Path::new("/run/netns").join(lab.director.name())).unwrap();
    setns(director, CloneFlags::CLONE_NEWNET).unwrap();
    lab.attach().unwrap();
    let mut source = Kernel::open().unwrap();
    let mut target = Xdp::open(Pins::find().unwrap().directory()).unwrap();
    let serve = Serve::start("from-kernel");
    let web = "-A -t 192.168.1.100:80 -s wrr";
    let one = "-a -t 192.168.1.100:80 -r 10.0.0.11:8080 -m -w 2";
    let two = "-a -t 192.168.1.100:80 -r 10.0.0.12:8080 -m -w 3";
    let mut first = Listener::tcp(&lab.servers[0], 8080).unwrap();
    let _second = Listener::tcp(&lab.servers[1], 8080).unwrap();
    let keepalived = Keepalived::start(&lab);
    await_rules(&mut target, &[web, one, two]);
    assert_eq!(answering(&lab, 10), ["server1", "server2"]);
    let mut asked = 10;

    // A stopped server is gone within two seconds, of which keepalived has one until it looks. A machine that is busy with
    // something else at that moment gets another chance, and an emulated one need not be that quick.
    let mut quickest = Duration::MAX;
    for _ in 0..5 {
        let stopped = Instant::now();
        drop(first);
        await_rules(&mut target, &[web, two]);
        quickest = quickest.min(stopped.elapsed());
        assert_eq!(answering(&lab, 5), ["server2"]);
        first = Listener::tcp(&lab.servers[0], 8080).unwrap();
        await_rules(&mut target, &[web, one, two]);
        assert_eq!(answering(&lab, 10), ["server1", "server2"]);
        asked += 15;
        if quickest < Duration::from_secs(2) {
            break;
        }
    }
    println!("a stopped server is gone after {quickest:?}");
    assert!(quickest < Duration::from_secs(2) || is_slow(), "{quickest:?}");

    // What happens while nobody follows, killed and not even asked to stop, arrives with the first look at it: with one
    // look a second, as `serve` has by default, that is within two.
    drop(serve);
    drop(first);
    await_rules(&mut source, &[web, two]);
    assert_eq!(target.destinations(&virtual_web()).unwrap().len(), 2);
    assert!(Follower::default().poll(&mut source, &mut target).unwrap().is_some());
    assert_eq!(rules_now(&mut target), [web, two]);
    assert_eq!(answering(&lab, 5), ["server2"]);
    asked += 5;

    // A packet of a client more than the requests need would be one that the kernel had, and the other way round.
    assert_eq!(target.service(&virtual_web()).unwrap().stats.connections, asked);
    assert_eq!(kernel_packets(), 0);

    let serve = Serve::start("from-kernel");
    drop(keepalived);
    await_rules(&mut target, &[]);
    let (told, status) = serve.stop();
    assert_eq!(status.code(), Some(0));
    assert!(told.contains("-D -t 192.168.1.100:80\n"), "{told}");
}

fn virtual_web() -> ServiceKey {
    ServiceKey::Address { protocol: Protocol::Tcp, address: VIP.into(), port: 80 }
}

/// The packets that kernel IPVS has had from clients, of this moment: the sum over the CPUs, in hexadecimal.
fn kernel_packets() -> u64 {
    let text = fs::read_to_string("/proc/thread-self/net/ip_vs_stats_percpu").unwrap();
    let columns = |line: &str| line.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
    let cpus =
        text.lines().skip(2).map(columns).take_while(|columns| columns.first().is_some_and(|cpu| cpu != "~"));
    cpus.map(|columns| u64::from_str_radix(&columns[2], 16).unwrap()).sum()
}

/// Runs `xipvs` and returns what it printed, what it complained of, and its exit status.
fn xipvs(words: &str) -> (String, String, i32) {
    let output = Command::new(binary()).args(words.split_whitespace()).output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (text(output.stdout), text(output.stderr), output.status.code().unwrap())
}

#[test]
fn drift_is_shown_and_mirrored() {
    let _source = kernel();
    let _target = xdp();
    let rules = "-A -t 192.0.2.1:80 -s rr\n-a -t 192.0.2.1:80 -r 198.51.100.1:80 -g -w 5\n";
    let engine = "-A -u 192.0.2.1:5060 -s rr -p 60 --pe sip";
    ipvsadm_prints(&["-R"], &format!("{rules}{engine}\n"));
    let (shown, complaints, status) = xipvs("diff --from kernel");
    let all = format!("{rules}{engine}\n");
    assert_eq!((sorted(&shown), complaints.as_str(), status), (sorted(&all), "", 1));

    let (made, complaints, status) = xipvs("mirror --from kernel");
    assert_eq!((sorted(&made), complaints.as_str(), status), (sorted(&all), "", 0));
    assert_eq!(sorted(&xipvs("-Sn").0), sorted(&all));
    assert_eq!(xipvs("-D -u 192.0.2.1:5060"), (String::new(), String::new(), 0));
    let deletion = "-D -u 192.0.2.1:5060\n";
    assert_eq!(xipvs("diff"), (deletion.into(), String::new(), 1));
    assert_eq!(xipvs("mirror --to kernel"), (deletion.into(), String::new(), 0));
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

        let applied = mirror(&mut *xdp, &mut *kernel).unwrap();
        assert!(applied.refused.is_empty(), "{title}: {applied:?}");
        let saved = golden::run(&["xipvs", "-Sn"], "", &mut *xdp, &no_names);
        assert_eq!((saved.stderr.as_str(), saved.status), ("", 0), "{title}");
        // Of flags without a name ipvsadm writes an option that it does not read.
        assert_eq!(ipvsadm_prints(&["-Sn"], "").replace(" -b \n", "\n"), saved.stdout, "{title}");

        xdp.flush().unwrap();
        let applied = mirror(&mut *kernel, &mut *xdp).unwrap();
        assert!(applied.refused.is_empty(), "{title}: {applied:?}");
        let returned = xdp.table().unwrap().configured();
        assert_eq!(by_service(&returned), by_service(&written), "{title}");
    }
    println!("{whole} configurations went as they are, {partial} in part");
    assert!(whole >= 200, "only {whole} configurations went as they are");
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
    assert!(mirror(&mut *source, &mut memory).unwrap().refused.is_empty());
    assert_eq!(diff(&mut *source, &mut memory).unwrap(), vec![]);

    ipvsadm_prints(&["-C"], "");
    ipvsadm_prints(&["--set", "1", "1", "1"], "");
    assert_eq!(diff(&mut memory, &mut *source).unwrap().len(), 5);
    assert!(mirror(&mut memory, &mut *source).unwrap().refused.is_empty());
    assert_eq!(ipvsadm_prints(&["-S", "-n"], ""), before);
    assert_eq!(ipvsadm_prints(&["-L", "--timeout"], ""), "Timeout (tcp tcpfin udp): 60 61 62\n");
}

/// What `serve` costs with its default of one look a second. `--count-instructions` makes the clock one of instructions, a
/// thousand million a second: the same on every machine. The CPU of which it may take a fiftieth carries out two thousand
/// million, as one of 2 GHz does with an instruction a cycle.
#[test]
#[ignore = "a measurement: run with --ignored under `cargo xtask vm --count-instructions`"]
fn following_a_thousand_services_takes_less_than_a_fiftieth_of_a_cpu() {
    const SECONDS: u64 = 60;
    let _source = kernel();
    let _target = xdp();
    let (mut rules, mut count) = (String::new(), 0);
    for service in 0..1000u32 {
        let address = Ipv4Addr::from(0x0a00_0000 + service);
        let _ = writeln!(rules, "-A -t {address}:80 -s rr");
        for destination in 0..10u32 {
            let destination = Ipv4Addr::from(0x0b00_0000 + destination);
            let _ = writeln!(rules, "-a -t {address}:80 -r {destination}:80 -m");
        }
        count += 11;
    }
    ipvsadm_prints(&["-R"], &rules);
    let mut serve = Serve::start_with("from-kernel", "1000");
    let told = BufReader::new(serve.0.stdout.take().unwrap());
    assert_eq!(told.lines().take(count).filter(Result::is_ok).count(), count);
    // Nanoseconds, which are instructions, on a CPU; in the kernel too.
    let spent = || -> u64 {
        let text = fs::read_to_string(format!("/proc/{}/schedstat", serve.0.id())).unwrap();
        text.split_whitespace().next().unwrap().parse().unwrap()
    };
    // One of these looks compares both tables.
    let before = spent();
    sleep(Duration::from_secs(SECONDS));
    let a_second = (spent() - before) / SECONDS;
    println!("{a_second} instructions a second");
    assert!(a_second < 2_000_000_000 / 50, "{a_second} instructions a second");
}
