//! What several tests have clients do, and what they look at then.

use std::io::{Read, Write};
use std::net::SocketAddr;
use std::thread;

use anyhow::{Context, Result, ensure};
use tests::lab::Lab;
use tests::lab::namespace::Namespace;
use tests::lab::sockets::greeting;

/// How many packets were counted under a reason.
pub fn counted(lab: &Lab, reason: &str) -> Result<u64> {
    let status = lab.xipvs("status --all")?;
    let line = status.lines().find(|line| line.split_whitespace().next() == Some(reason));
    Ok(line.with_context(|| status.clone())?.split_whitespace().nth(1).context("no number")?.parse()?)
}

/// Has an echo of 300,000 bytes.
pub fn sends_much(from: &Namespace, to: SocketAddr) -> Result<()> {
    let mut stream = from.connect(to)?;
    greeting(&stream)?;
    let data: Vec<u8> = (0..300_000_u32).map(|number| (number / 7) as u8).collect();
    let mut writer = stream.try_clone()?;
    let sent = data.clone();
    let sender = thread::spawn(move || writer.write_all(&sent));
    let mut back = vec![0; data.len()];
    stream.read_exact(&mut back)?;
    sender.join().map_err(|_| anyhow::anyhow!("the sender panicked"))??;
    ensure!(back == data, "what came back is not what was sent");
    Ok(())
}
