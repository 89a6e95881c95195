//! Live connections go from kernel IPVS to the XDP program and back, with downloads running all the way.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddrV4, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle, sleep};
use std::time::{Duration, Instant};

use tests::lab::{INTERFACES, Lab, Server, VIP};

/// For whatever has to happen; it may take that long on a machine that is slow and busy.
const PATIENCE: Duration = Duration::from_secs(120);
/// Bytes by which every download has to go on between two looks.
const PROGRESS: u64 = 64 * 1024;
/// Seconds after which kernel IPVS forgets a connection that it sees no packets of.
const FORGOTTEN: u64 = 20;

/// The byte at a place of every download.
fn byte_at(place: u64) -> u8 {
    (place % 251) as u8
}

/// Sends to whoever comes, without an end, as much as a slow machine can take.
fn serve(server: &Server, port: u16) {
    let listener: TcpListener =
        server.namespace.listen(SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, port)).unwrap();
    thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            thread::spawn(move || {
                let mut place = 0;
                loop {
                    let piece: Vec<u8> = (place..place + 4096).map(byte_at).collect();
                    // The client has gone.
                    if stream.write_all(&piece).is_err() {
                        return;
                    }
                    place += piece.len() as u64;
                    sleep(Duration::from_millis(20));
                }
            });
        }
    });
}

/// A client that reads, and looks at every byte.
struct Download {
    name: String,
    received: Arc<AtomicU64>,
    ends: Arc<AtomicBool>,
    thread: JoinHandle<()>,
}

impl Download {
    fn start(lab: &Lab, port: u16) -> Self {
        let mut stream: TcpStream = lab.client.connect(SocketAddrV4::new(VIP, port)).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let name = format!("{} to port {port}", stream.local_addr().unwrap());
        let (received, ends) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
        let (counter, end) = (received.clone(), ends.clone());
        let thread = thread::spawn(move || {
            let mut buffer = [0; 16384];
            let mut place = 0;
            while !end.load(Ordering::Relaxed) {
                let length = stream.read(&mut buffer).expect("the connection was broken");
                assert_ne!(length, 0, "the connection was closed");
                for byte in &buffer[..length] {
                    assert_eq!(*byte, byte_at(place), "at byte {place}");
                    place += 1;
                }
                counter.store(place, Ordering::Relaxed);
            }
        });
        Self { name, received, ends, thread }
    }

    fn received(&self) -> u64 {
        self.received.load(Ordering::Relaxed)
    }
}

/// Waits until every download has gone on.
fn all_go_on(downloads: &[Download]) {
    let before: Vec<u64> = downloads.iter().map(Download::received).collect();
    let start = Instant::now();
    for (download, before) in downloads.iter().zip(before) {
        while download.received() < before + PROGRESS {
            assert!(!download.thread.is_finished(), "{} has ended", download.name);
            assert!(start.elapsed() < PATIENCE, "{} stands still", download.name);
            sleep(Duration::from_millis(50));
        }
    }
}

/// Waits until a question has the answer.
fn until(what: &str, mut look: impl FnMut() -> bool) {
    let start = Instant::now();
    while !look() {
        assert!(start.elapsed() < PATIENCE, "{what}");
        sleep(Duration::from_millis(200));
    }
}

/// The packets that clients have sent to a service, by its line in the exact counters.
fn in_packets(lab: &Lab, director: &str, port: u16) -> u64 {
    let listed = lab.xipvs(&format!("--director {director} -L -n --stats --exact")).unwrap();
    let line = listed.lines().find(|line| line.contains(&format!("{VIP}:{port} "))).unwrap();
    line.split_whitespace().nth(3).unwrap().parse().unwrap()
}

/// The sum over the services of the test.
fn all_in_packets(lab: &Lab, director: &str) -> u64 {
    in_packets(lab, director, 80) + in_packets(lab, director, 81)
}

fn listed_connections(lab: &Lab, director: &str) -> usize {
    let listed = lab.xipvs(&format!("--director {director} -L -n -c")).unwrap();
    listed.lines().filter(|line| line.contains("ESTABLISHED")).count()
}

#[test]
fn downloads_run_on_while_the_director_changes_and_changes_back() {
    let lab = Lab::new("takeover", 2).unwrap();
    let [nat, direct] = &lab.servers[..] else { panic!("two servers") };
    serve(nat, 80);
    serve(direct, 81);
    for words in [
        format!("--set {FORGOTTEN} 120 300"),
        format!("-A -t {VIP}:80 -s rr"),
        format!("-a -t {VIP}:80 -r {}:80 -m", nat.address),
        format!("-A -t {VIP}:81 -s rr"),
        format!("-a -t {VIP}:81 -r {} -g", direct.address),
    ] {
        lab.xipvs(&format!("--director kernel {words}")).unwrap();
    }
    let mut downloads: Vec<Download> =
        [80, 80, 80, 81, 81, 81].map(|port| Download::start(&lab, port)).into();
    all_go_on(&downloads);
    assert_eq!(listed_connections(&lab, "kernel"), 6);

    lab.xipvs("mirror --from kernel").unwrap();
    lab.xipvs("--set 900 120 300").unwrap();
    assert_eq!(lab.xipvs("adopt").unwrap(), "6 connections taken over, 0 known\n");
    lab.attach().unwrap();
    // Those that no packet has shown to be alive since are taken over anew.
    let again = lab.xipvs("adopt").unwrap();
    let numbers =
        again.split(|letter: char| !letter.is_ascii_digit()).filter_map(|word| word.parse::<u32>().ok());
    assert_eq!(numbers.sum::<u32>(), 6, "{again}");
    all_go_on(&downloads);
    // Three connections on each, in a state that counts.
    let counts = |listed: String| {
        let lines = listed.lines().filter(|line| line.contains(" Masq ") || line.contains(" Route "));
        lines.map(|line| line.split_whitespace().skip(4).collect::<Vec<_>>().join(" ")).collect::<Vec<_>>()
    };
    assert_eq!(counts(lab.xipvs("-L -n").unwrap()), ["3 0", "3 0"]);

    // The XDP program has the packets, and the kernel none: it forgets.
    downloads.extend([80, 81].map(|port| Download::start(&lab, port)));
    let before = [80, 81].map(|port| in_packets(&lab, "xdp", port));
    until("kernel IPVS still sees packets", || listed_connections(&lab, "kernel") == 0);
    all_go_on(&downloads);
    let after = [80, 81].map(|port| in_packets(&lab, "xdp", port));
    assert!(before[0] < after[0] && before[1] < after[1], "{before:?} {after:?}");

    lab.xipvs("--director kernel --set 900 120 300").unwrap();
    assert_eq!(lab.xipvs("hand-over").unwrap(), "8 connections handed over\n");
    lab.xipvs(&format!("detach {}", INTERFACES.join(" "))).unwrap();
    let before = (all_in_packets(&lab, "kernel"), all_in_packets(&lab, "xdp"));
    all_go_on(&downloads);
    assert_eq!(counts(lab.xipvs("--director kernel -L -n").unwrap()), ["4 0", "4 0"]);
    until("kernel IPVS counts nothing", || all_in_packets(&lab, "kernel") > before.0);
    assert_eq!(all_in_packets(&lab, "xdp"), before.1);
    assert_eq!(lab.xipvs("--director kernel -L --daemon").unwrap(), "");

    for download in downloads {
        download.ends.store(true, Ordering::Relaxed);
        download.thread.join().unwrap();
    }
}
