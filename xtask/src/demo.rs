//! `cargo xtask demo`: real HTTP requests, balanced by the XDP program, steered with ipvsadm's commands.
//!
//! Everything is in network namespaces and is removed at the end. It fails when a single request fails or when the
//! requests are not spread exactly evenly.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use ::tests::lab::namespace::Namespace;
use ::tests::lab::nginx::Nginx;
use ::tests::lab::{Lab, VIP};
use anyhow::{Context, Result, bail, ensure};

use crate::need::Group;
use crate::{build, command, setup};

/// The port that nginx listens on for NAT; direct routing does not change ports.
const SERVER_PORT: u16 = 8080;
/// The port of the service.
const PORT: u16 = 80;
const REQUESTS: usize = 300;
const DOWNLOAD: &str = "download";
const DOWNLOAD_BYTES: u64 = 100 << 20;
/// How long connections that are being drained may take to end: the requests are short.
const DRAIN: Duration = Duration::from_secs(10);
/// How many lines of the connection list are shown; all of it would be hundreds.
const CONNECTIONS_SHOWN: usize = 8;

/// Carries out `cargo xtask demo`.
pub fn run() -> Result<()> {
    setup::ensure(&[Group::Core])?;
    build::run()?;
    ensure!(
        command::is_root(),
        "the demo makes network namespaces and loads an XDP program, which needs root"
    );
    let demo = Demo::start()?;
    demo.balance_with_nat()?;
    demo.change_to_direct_routing()?;
    demo.balance_with_direct_routing()?;
    let clean = demo.clean_up();
    title("done");
    clean
}

struct Demo {
    // Dropped in this order: what runs in the namespaces before the namespaces.
    nginx: Vec<Nginx>,
    lab: Lab,
    checksum: String,
}

impl Demo {
    fn start() -> Result<Self> {
        title("a client, a director and three real servers with nginx, each in its own network namespace");
        let lab = Lab::new("demo", 3)?;
        let mut nginx = Vec::new();
        for server in &lab.servers {
            nginx.push(Nginx::start(&lab, server, &[PORT, SERVER_PORT])?);
            println!("{}: nginx on {}, ports {PORT} and {SERVER_PORT}", server.name, server.address);
        }
        let file = lab.directory().join(DOWNLOAD);
        let mut random = io::Read::take(File::open("/dev/urandom")?, DOWNLOAD_BYTES);
        io::copy(&mut random, &mut File::create(&file)?)?;
        for server in &nginx {
            fs::hard_link(&file, server.root().join(DOWNLOAD))?;
        }
        let checksum = sha256(Command::new("sha256sum").stdin(File::open(&file)?))?;
        let demo = Self { nginx, lab, checksum };
        for said in demo.lab.attach()?.lines() {
            println!("{said}");
        }
        Ok(demo)
    }

    fn balance_with_nat(&self) -> Result<()> {
        title("NAT: a service, two servers, then a third");
        self.xipvs(&format!("-A -t {VIP}:{PORT} -s rr"))?;
        self.xipvs(&format!("-a -t {VIP}:{PORT} -r {} -m", self.nat(0)))?;
        self.xipvs(&format!("-a -t {VIP}:{PORT} -r {} -m", self.nat(1)))?;
        self.request_evenly(REQUESTS, 2)?;
        self.xipvs(&format!("-a -t {VIP}:{PORT} -r {} -m", self.nat(2)))?;
        self.request_evenly(REQUESTS, 3)?;
        self.list()?;
        self.download()
    }

    fn change_to_direct_routing(&self) -> Result<()> {
        title("from NAT to direct routing, under traffic");
        let ends = AtomicBool::new(false);
        let answered = thread::scope(|scope| -> Result<usize> {
            let traffic = scope.spawn(|| request_until(&self.lab.client, &ends));
            let changed = self.change_all();
            ends.store(true, Ordering::Relaxed);
            let answered = traffic.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            changed.and(answered)
        })?;
        println!("{answered} requests meanwhile, all answered");
        ensure!(answered > 0, "there was no traffic while the servers were changed");
        Ok(())
    }

    fn change_all(&self) -> Result<()> {
        for server in &self.lab.servers {
            self.xipvs(&format!("-a -t {VIP}:{PORT} -r {} -g", server.address))?;
        }
        for index in 0..self.lab.servers.len() {
            // Weight 0 lets the connections that are there end, and no new ones come.
            self.xipvs(&format!("-e -t {VIP}:{PORT} -r {} -m -w 0", self.nat(index)))?;
        }
        for index in 0..self.lab.servers.len() {
            self.wait_until_drained(&self.nat(index))?;
            self.xipvs(&format!("-d -t {VIP}:{PORT} -r {}", self.nat(index)))?;
        }
        Ok(())
    }

    fn balance_with_direct_routing(&self) -> Result<()> {
        title("direct routing: the servers answer the client past the director");
        self.request_evenly(REQUESTS, 3)?;
        self.list()?;
        self.download()
    }

    fn clean_up(self) -> Result<()> {
        title("cleaning up");
        self.xipvs("-C")?;
        self.xipvs("detach")?;
        drop(self.nginx);
        drop(self.lab);
        Ok(())
    }

    /// Runs a command of the director and shows it as an operator would type it there.
    fn xipvs(&self, words: &str) -> Result<String> {
        println!("$ xipvs {words}");
        let said = self.lab.xipvs(words)?;
        print!("{said}");
        Ok(said)
    }

    /// Returns the address and port of a server under NAT.
    fn nat(&self, index: usize) -> String {
        format!("{}:{SERVER_PORT}", self.lab.servers[index].address)
    }

    /// Sends requests one after another, shows who answered, and insists on equal shares for the first `servers`.
    fn request_evenly(&self, requests: usize, servers: usize) -> Result<()> {
        println!("$ curl http://{VIP}/   ({requests} times)");
        let counts = request(&self.lab.client, requests)?;
        for (server, count) in &counts {
            println!("{server} answered {count} times");
        }
        let wanted: BTreeMap<_, _> = self.lab.servers[..servers]
            .iter()
            .map(|server| (server.name.clone(), requests / servers))
            .collect();
        ensure!(counts == wanted, "the requests were not spread evenly: wanted {wanted:?}");
        Ok(())
    }

    fn list(&self) -> Result<()> {
        self.xipvs("-Ln")?;
        self.xipvs("-Ln --stats")?;
        println!("$ xipvs -Lnc");
        let connections = self.lab.xipvs("-Lnc")?;
        for line in connections.lines().take(CONNECTIONS_SHOWN) {
            println!("{line}");
        }
        println!("... {} lines in all", connections.lines().count());
        Ok(())
    }

    /// Downloads a large file through the virtual address and compares its checksum.
    fn download(&self) -> Result<()> {
        println!("$ curl http://{VIP}/{DOWNLOAD} | sha256sum   ({} MiB)", DOWNLOAD_BYTES >> 20);
        let begin = Instant::now();
        let mut curl = curl(&self.lab.client)
            .args(["--max-time", "120", &format!("http://{VIP}/{DOWNLOAD}")])
            .stdout(Stdio::piped())
            .spawn()?;
        let body = curl.stdout.take().context("piped")?;
        let checksum = sha256(Command::new("sha256sum").stdin(body))?;
        ensure!(curl.wait()?.success(), "the download failed");
        ensure!(checksum == self.checksum, "the download is damaged: {checksum}, not {}", self.checksum);
        println!("{checksum} as it should be, in {:.1} s", begin.elapsed().as_secs_f64());
        Ok(())
    }

    fn wait_until_drained(&self, server: &str) -> Result<()> {
        let deadline = Instant::now() + DRAIN;
        loop {
            let active = active_connections(&self.lab.xipvs("-Ln")?, server)?;
            if active == 0 {
                return Ok(());
            }
            ensure!(Instant::now() < deadline, "{server} still has {active} connections");
            thread::sleep(Duration::from_millis(20));
        }
    }
}

/// Reads a server's ActiveConn, the last but one column, from a listing.
fn active_connections(listing: &str, server: &str) -> Result<u64> {
    let line = listing
        .lines()
        .find(|line| line.split_whitespace().nth(1) == Some(server))
        .with_context(|| format!("{server} is not listed"))?;
    Ok(line.split_whitespace().rev().nth(1).context("too few columns")?.parse()?)
}

/// Sends so many requests, each on its own connection, and counts the answers by server.
fn request(client: &Namespace, requests: usize) -> Result<BTreeMap<String, usize>> {
    let output = curl(client)
        .args(["--fail-early", "--max-time", "5", "--header", "Connection: close"])
        .arg(format!("http://{VIP}/?[1-{requests}]"))
        .output()
        .context("curl")?;
    let pages = String::from_utf8(output.stdout)?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        bail!("request {} of {requests} failed: {}", pages.lines().count() + 1, said.trim_end());
    }
    let mut counts = BTreeMap::new();
    for server in pages.lines() {
        *counts.entry(server.to_owned()).or_default() += 1;
    }
    Ok(counts)
}

/// Sends requests until told to end, at least a batch, and returns how many were answered.
fn request_until(client: &Namespace, ends: &AtomicBool) -> Result<usize> {
    const BATCH: usize = 20;
    let mut answered = 0;
    while answered == 0 || !ends.load(Ordering::Relaxed) {
        answered += request(client, BATCH)?.values().sum::<usize>();
    }
    Ok(answered)
}

fn curl(client: &Namespace) -> Command {
    let mut curl = client.command("curl");
    curl.args(["--silent", "--show-error", "--fail"]);
    curl
}

fn sha256(command: &mut Command) -> Result<String> {
    let said = command::output(command)?;
    said.split_whitespace().next().map(str::to_owned).context("sha256sum said nothing")
}

fn title(text: &str) {
    println!("\n== {text}");
}

#[cfg(test)]
mod tests {
    use super::active_connections;

    #[test]
    fn reads_active_connections_from_a_listing() {
        let listing = "IP Virtual Server version 1.2.1 (size=4096)\n\
            Prot LocalAddress:Port Scheduler Flags\n  \
              -> RemoteAddress:Port           Forward Weight ActiveConn InActConn\n\
            TCP  192.168.1.100:80 rr\n  \
              -> 10.0.0.12:8080               Masq    1      7          42\n";
        assert_eq!(active_connections(listing, "10.0.0.12:8080").unwrap(), 7);
        assert!(active_connections(listing, "10.0.0.13:8080").is_err());
    }
}
