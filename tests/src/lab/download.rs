//! Downloads that never end, of which every byte is looked at: what must not notice that directors change.

use std::io::{Read, Write};
use std::net::{Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle, sleep};
use std::time::{Duration, Instant};

use super::namespace::Namespace;

/// For whatever has to happen; it may take that long on a machine that is slow and busy.
const PATIENCE: Duration = Duration::from_secs(120);
/// Bytes by which every download has to go on between two looks.
const PROGRESS: u64 = 16 * 1024;

/// The byte at a place of every download.
fn byte_at(place: u64) -> u8 {
    (place % 251) as u8
}

/// Sends to whoever comes, without an end, as little as a slow machine can take of many.
pub fn serve(server: &Namespace, port: u16) {
    // Of IPv4 as well.
    let listener: TcpListener = server.listen(SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), port)).unwrap();
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
                    sleep(Duration::from_millis(100));
                }
            });
        }
    });
}

/// A client that reads, and looks at every byte.
#[derive(Debug)]
pub struct Download {
    name: String,
    received: Arc<AtomicU64>,
    ends: Arc<AtomicBool>,
    thread: JoinHandle<()>,
}

impl Download {
    /// Connects, and begins to read.
    pub fn start(client: &Namespace, service: SocketAddr) -> Self {
        let mut stream: TcpStream = client.connect(service).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let name = format!("{} to {service}", stream.local_addr().unwrap());
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

    /// Closes the connection; panics if anything was wrong with it.
    pub fn end(self) {
        self.ends.store(true, Ordering::Relaxed);
        self.thread.join().unwrap();
    }

    fn received(&self) -> u64 {
        self.received.load(Ordering::Relaxed)
    }
}

/// Waits until every download has gone on.
pub fn all_go_on(downloads: &[Download]) {
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
pub fn until(what: &str, mut look: impl FnMut() -> bool) {
    let start = Instant::now();
    while !look() {
        assert!(start.elapsed() < PATIENCE, "{what}");
        sleep(Duration::from_millis(200));
    }
}
