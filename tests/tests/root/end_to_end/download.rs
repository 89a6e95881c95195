//! A download that lasts as long as it is to last.

use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tests::lab::Lab;
use tests::lab::nginx::Nginx;

/// Bytes of the file: twice what the kernel keeps at most of what nobody reads, 6 MiB.
const FILE: usize = 16_000_000;
/// How much is read at once, and how long is waited then.
const BIT: usize = 10_000;
const PAUSE: Duration = Duration::from_millis(5);

/// A download that is read bit by bit, at most to its middle, before it is to finish.
pub struct Download {
    stream: TcpStream,
    read: Vec<u8>,
}

impl Download {
    /// Puts the file where nginx offers it.
    pub fn offer(nginx: &Nginx) -> Result<()> {
        Ok(fs::write(nginx.root().join("download"), file())?)
    }

    /// Asks for the file.
    pub fn begin(lab: &Lab, service: impl Into<SocketAddr>) -> Result<Self> {
        let mut stream = lab.client.connect(service)?;
        stream.write_all(b"GET /download HTTP/1.0\r\n\r\n")?;
        Ok(Self { stream, read: Vec::new() })
    }

    /// Reads a bit.
    pub fn go_on(&mut self) -> Result<()> {
        thread::sleep(PAUSE);
        if self.read.len() < FILE / 2 {
            let mut buffer = [0; BIT];
            let length = self.stream.read(&mut buffer).context("the download")?;
            ensure!(length > 0, "the download ended early");
            self.read.extend_from_slice(&buffer[..length]);
        }
        Ok(())
    }

    /// Reads the rest, and fails unless all came.
    pub fn finish(mut self) -> Result<()> {
        self.stream.read_to_end(&mut self.read).context("the rest of the download")?;
        let head = self.read.windows(4).position(|end| end == b"\r\n\r\n").context("no end of the head")?;
        let body = &self.read[head + 4..];
        ensure!(body == file(), "{} bytes of {FILE}, or other ones", body.len());
        Ok(())
    }
}

fn file() -> Vec<u8> {
    let part: Vec<u8> = (0..FILE / 1000).map(|at| (at % 251) as u8).collect();
    part.repeat(1000)
}
