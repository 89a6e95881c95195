//! Commands under traffic: what they change, what they leave alone, and what is left of those that are killed.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::SocketAddrV4;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use tests::lab::nginx::Nginx;
use tests::lab::sockets::{Listener, ask_tcp, greeting};
use tests::lab::{Lab, VIP};

use super::super::lifecycle::pins;
use super::download::Download;

#[test]
fn a_deleted_server_falls_silent_and_goes_on_when_it_is_added_again() -> Result<()> {
    let lab = Lab::new("deleted", 1)?;
    let server = &lab.servers[0];
    let _listener = Listener::tcp(server, 8080)?;
    lab.attach()?;
    let add = format!("-a -t {VIP}:80 -r {}:8080 -m", server.address);
    lab.xipvs(&format!("-A -t {VIP}:80"))?;
    lab.xipvs(&add)?;

    let mut stream = lab.client.connect(SocketAddrV4::new(VIP, 80))?;
    greeting(&stream)?;
    let mut echo = |text: &[u8], patience: Duration| -> std::io::Result<Vec<u8>> {
        stream.set_read_timeout(Some(patience))?;
        stream.write_all(text)?;
        let mut back = vec![0; text.len()];
        stream.read_exact(&mut back)?;
        Ok(back)
    };
    assert_eq!(echo(b"before", Duration::from_secs(5))?, b"before");
    lab.xipvs(&format!("-d -t {VIP}:80 -r {}:8080", server.address))?;
    let error = echo(b"during", Duration::from_millis(700)).unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::WouldBlock, "silence, not a reset: {error}");
    assert!(lab.xipvs("status")?.contains("destination-deleted"));
    lab.xipvs(&add)?;
    // It is the same destination, with its connection, and the client's retransmission gets through.
    assert!(lab.xipvs("-Ln")?.contains("Masq    1      1 "), "{}", lab.xipvs("-Ln")?);
    assert_eq!(echo(b"!", Duration::from_secs(10))?.len(), 1);
    Ok(())
}

#[test]
fn nothing_is_lost_while_commands_change_the_table_and_replace_the_program() -> Result<()> {
    let lab = Lab::new("changes", 3)?;
    let _servers: Vec<_> =
        lab.servers.iter().map(|server| Listener::tcp(server, 8080)).collect::<Result<_>>()?;
    lab.attach()?;
    lab.xipvs(&format!("-A -t {VIP}:80 -s wlc"))?;
    for server in &lab.servers {
        lab.xipvs(&format!("-a -t {VIP}:80 -r {}:8080 -m", server.address))?;
    }
    let mut long = lab.client.connect(SocketAddrV4::new(VIP, 80))?;
    greeting(&long)?;
    let nginx = Nginx::start(&lab, &lab.servers[0], &[8081])?;
    Download::offer(&nginx)?;
    lab.xipvs(&format!("-A -t {VIP}:81"))?;
    lab.xipvs(&format!("-a -t {VIP}:81 -r {}:8081 -m", lab.servers[0].address))?;
    let mut download = Download::begin(&lab, SocketAddrV4::new(VIP, 81))?;
    let done = AtomicBool::new(false);
    thread::scope(|scope| -> Result<()> {
        let traffic = scope.spawn(|| -> Result<usize> {
            let mut requests = 0;
            while !done.load(Ordering::Relaxed) {
                ask_tcp(&lab.client, SocketAddrV4::new(VIP, 80))?;
                requests += 1;
            }
            Ok(requests)
        });
        let downloading = scope.spawn(|| -> Result<()> {
            while !done.load(Ordering::Relaxed) {
                download.go_on()?;
            }
            Ok(())
        });
        let changes = || -> Result<()> {
            for round in 0..5 {
                for server in &lab.servers {
                    lab.xipvs(&format!("-e -t {VIP}:80 -r {}:8080 -m -w {}", server.address, 1 + round))?;
                }
                lab.xipvs(&format!("-E -t {VIP}:80 -s {}", ["rr", "wrr", "lc", "wlc", "sh"][round]))?;
                // With one of its programs missing it counts as an older version, all of which is replaced.
                fs::remove_file(pins(&lab.director)?.join("xipvs_tell"))?;
                let output = lab.xipvs_output("attach clients servers")?;
                let said = String::from_utf8_lossy(&output.stderr);
                ensure!(output.status.success() && said.contains("replaced an older program"), "{said}");
            }
            Ok(())
        };
        let changed = changes();
        done.store(true, Ordering::Relaxed);
        let requests = traffic.join().map_err(|_| anyhow::anyhow!("the client panicked"))??;
        changed?;
        downloading.join().expect("no panic")?;
        ensure!(requests > 20, "only {requests} requests, which proves little");
        Ok(())
    })?;
    long.write_all(b"still here")?;
    let mut back = [0; 10];
    long.read_exact(&mut back)?;
    assert_eq!(&back, b"still here");
    download.finish()
}

#[test]
fn a_command_that_is_killed_leaves_a_table_that_the_next_one_can_use() -> Result<()> {
    const ROUNDS: u32 = 30;
    let lab = Lab::new("killed", 1)?;
    let _listener = Listener::tcp(&lab.servers[0], 8080)?;
    lab.attach()?;
    let server = lab.servers[0].address;
    let rule = |port| format!("-A -t {VIP}:{port} -s rr\n-a -t {VIP}:{port} -r {server}:8080 -m\n");
    let rules: String = (2000..2200).map(rule).collect();
    let file = lab.directory().join("to-restore");
    fs::write(&file, &rules)?;
    let timed = |command: &dyn Fn() -> Result<()>| {
        let start = Instant::now();
        command().map(|()| start.elapsed())
    };
    let restored = timed(&|| lab.restore(&rules))?;
    let cleared = timed(&|| lab.xipvs("-C").map(drop))?;
    let (mut killed, mut cut) = (0, 0);
    for round in 0..ROUNDS {
        let port = 1000 + round;
        // By turns it is filled and emptied, and killed later and later.
        let (command, whole) = if round % 2 == 0 { ("-R", restored) } else { ("-C", cleared) };
        lab.xipvs("-C")?;
        if command == "-C" {
            lab.restore(&rules)?;
        }
        let mut child = lab.director.xipvs(command).stdin(File::open(&file)?).spawn()?;
        thread::sleep(whole * round / ROUNDS);
        child.kill()?;
        killed += u32::from(!child.wait()?.success());
        let services = lab.xipvs("-Sn")?.lines().filter(|line| line.starts_with("-A")).count();
        cut += u32::from(services > 0 && services < 200);

        lab.xipvs(&format!("-A -t {VIP}:{port} -s rr"))?;
        lab.xipvs(&format!("-a -t {VIP}:{port} -r {server}:8080 -m"))?;
        assert_eq!(ask_tcp(&lab.client, SocketAddrV4::new(VIP, port as u16))?.server, "server1");
        // What is listed is there: every service that the killed command left takes commands, and can go.
        let listing = lab.xipvs("-Sn")?;
        for rule in listing.lines().filter(|line| line.starts_with("-A")).take(3) {
            let service = rule.split(' ').nth(2).context("no service in the rule")?;
            lab.xipvs(&format!("-D -t {service}"))?;
        }
    }
    eprintln!("{killed} killed, {cut} with some of the services left");
    ensure!(killed > ROUNDS / 3, "only {killed} of {ROUNDS} were killed, the rest was through before");
    Ok(())
}
