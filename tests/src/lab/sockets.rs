//! Servers that say who they are and whom they see, and the clients that ask them.
//!
//! A TCP server greets every connection with one line, `NAME CLIENT:PORT`, and then sends back what it gets until the
//! client has finished. A UDP server answers every datagram with that line and the datagram.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};

use anyhow::{Context, Result, ensure};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::Server;
use super::namespace::Namespace;

/// How often a server looks whether it is to end, in milliseconds.
const TICK: u16 = 50;

/// What a server said.
#[derive(Debug, PartialEq, Eq)]
pub struct Answer {
    /// The server's name.
    pub server: String,
    /// Where the server saw the request come from.
    pub client: SocketAddr,
}

/// A running server; dropping it ends it.
///
/// Connections that are open then stay open until their client closes them.
#[derive(Debug)]
pub struct Listener {
    ends: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Listener {
    /// Starts a TCP server on all addresses of a real server, of both families, the virtual ones included.
    pub fn tcp(server: &Server, port: u16) -> Result<Self> {
        Self::tcp_in(&server.namespace, &server.name, any(port))
    }

    /// Starts a TCP server in a namespace.
    pub fn tcp_in(namespace: &Namespace, name: &str, on: impl Into<SocketAddr>) -> Result<Self> {
        Self::listening(name, namespace.listen(on)?)
    }

    /// Starts a server with a socket that listens already, one of another protocol perhaps.
    pub fn listening(name: &str, listener: TcpListener) -> Result<Self> {
        listener.set_nonblocking(true)?;
        Ok(Self::begin(name, move |name| accept(&listener, name)))
    }

    /// Starts a UDP server on one address of a real server (its own for NAT, the virtual one for direct routing).
    ///
    /// One that is bound to all addresses would not know which one it was asked at, and answer from another.
    pub fn udp(server: &Server, on: impl Into<SocketAddr>) -> Result<Self> {
        Self::udp_in(&server.namespace, &server.name, on)
    }

    /// Starts a UDP server in a namespace.
    pub fn udp_in(namespace: &Namespace, name: &str, on: impl Into<SocketAddr>) -> Result<Self> {
        let socket = namespace.bind(on)?;
        socket.set_nonblocking(true)?;
        Ok(Self::begin(name, move |name| answer(&socket, name)))
    }

    /// Calls a function with the server's name over and over; it is to return after some milliseconds, so that this can end.
    pub fn start(server: &Server, serve: impl FnMut(&str) -> io::Result<()> + Send + 'static) -> Self {
        Self::begin(&server.name, serve)
    }

    fn begin(name: &str, mut serve: impl FnMut(&str) -> io::Result<()> + Send + 'static) -> Self {
        let ends = Arc::new(AtomicBool::new(false));
        let (end, name) = (Arc::clone(&ends), name.to_owned());
        let thread = thread::spawn(move || {
            while !end.load(Ordering::Relaxed) {
                if let Err(error) = serve(&name) {
                    eprintln!("{name}: {error}");
                }
            }
        });
        Self { ends, thread: Some(thread) }
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        self.ends.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Opens a connection, reads the greeting, and closes.
pub fn ask_tcp(from: &Namespace, to: impl Into<SocketAddr>) -> Result<Answer> {
    greeting(&from.connect(to)?)
}

/// Reads the greeting from a connection just opened, and not a byte more.
pub fn greeting(mut stream: &TcpStream) -> Result<Answer> {
    let mut line = Vec::new();
    let mut reader = BufReader::with_capacity(1, &mut stream);
    reader.read_until(b'\n', &mut line)?;
    parse(&String::from_utf8(line)?)
}

/// Has an echo of so many bytes.
pub fn sends_much(from: &Namespace, to: SocketAddr, bytes: u32) -> Result<()> {
    let stream = from.connect(to)?;
    greeting(&stream)?;
    echo(stream, bytes)
}

/// Has an echo of so many bytes of a server that has greeted.
pub fn echo(mut stream: TcpStream, bytes: u32) -> Result<()> {
    let data: Vec<u8> = (0..bytes).map(|number| (number / 7) as u8).collect();
    let mut writer = stream.try_clone()?;
    let sent = data.clone();
    let sender = thread::spawn(move || writer.write_all(&sent));
    let mut back = vec![0; data.len()];
    stream.read_exact(&mut back)?;
    sender.join().map_err(|_| anyhow::anyhow!("the sender panicked"))??;
    ensure!(back == data, "what came back is not what was sent");
    Ok(())
}

/// Sends one datagram from a socket and waits for the answer to it.
pub fn ask_udp(from: &UdpSocket, to: impl Into<SocketAddr>) -> Result<Answer> {
    ask_with(from, to, b"who")
}

/// The same with a message of SIP, of the call with this Call-ID.
pub fn ask_sip(from: &UdpSocket, to: impl Into<SocketAddr>, call: impl AsRef<[u8]>) -> Result<Answer> {
    let message = [b"INVITE sip:bob@example.com SIP/2.0\r\nCall-ID: ", call.as_ref(), b"\r\n\r\n"].concat();
    ask_with(from, to, &message)
}

fn ask_with(from: &UdpSocket, to: impl Into<SocketAddr>, message: &[u8]) -> Result<Answer> {
    let to = to.into();
    from.send_to(message, to)?;
    let mut buffer = [0; 1500];
    let (length, sender) = from.recv_from(&mut buffer).with_context(|| format!("no answer from {to}"))?;
    anyhow::ensure!(sender == to, "asked {to}, answered by {sender}");
    let greeting = buffer[..length].strip_suffix(message).context("the datagram did not come back")?;
    parse(std::str::from_utf8(greeting)?)
}

fn parse(line: &str) -> Result<Answer> {
    let (server, client) =
        line.trim_end().split_once(' ').with_context(|| format!("greeted with {line:?}"))?;
    Ok(Answer { server: server.to_owned(), client: client.parse()? })
}

/// All addresses: a socket of IPv6 takes those of IPv4 too.
fn any(port: u16) -> SocketAddr {
    SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), port)
}

/// Accepts what comes within a tick.
fn accept(listener: &TcpListener, name: &str) -> io::Result<()> {
    if !is_ready(listener)? {
        return Ok(());
    }
    let (stream, client) = listener.accept()?;
    let (name, client) = (name.to_owned(), SocketAddr::new(client.ip().to_canonical(), client.port()));
    // A client that goes away in the middle is the test's business, not the server's.
    thread::spawn(move || drop(serve(stream, &format!("{name} {client}\n"))));
    Ok(())
}

fn serve(stream: TcpStream, greeting: &str) -> io::Result<()> {
    stream.set_nonblocking(false)?;
    let (mut reader, mut writer) = (&stream, &stream);
    io::Write::write_all(&mut writer, greeting.as_bytes())?;
    io::copy(&mut reader, &mut writer)?;
    Ok(())
}

/// Answers what comes within a tick.
fn answer(socket: &UdpSocket, name: &str) -> io::Result<()> {
    if !is_ready(socket)? {
        return Ok(());
    }
    let mut buffer = [0; 65536];
    let (length, client) = socket.recv_from(&mut buffer)?;
    let mut answer = format!("{name} {client}\n").into_bytes();
    answer.extend_from_slice(&buffer[..length]);
    socket.send_to(&answer, client)?;
    Ok(())
}

fn is_ready(socket: &impl AsFd) -> io::Result<bool> {
    let mut set = [PollFd::new(socket.as_fd(), PollFlags::POLLIN)];
    Ok(poll(&mut set, PollTimeout::from(TICK))? > 0)
}
