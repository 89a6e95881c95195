//! A network namespace: made, entered, wired, and removed with all that runs in it.
//!
//! Namespaces are named (`ip netns`), so that `xipvs --netns NAME` and whoever debugs can enter them too.

use std::fs::{self, File};
use std::io::Write;
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsRawFd;
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::sched::{CloneFlags, setns};
use nix::sys::signal::{Signal, kill};
use nix::sys::socket::sockopt::SendTimeout;
use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, SockaddrStorage, bind, connect, setsockopt, socket,
};
use nix::sys::time::{TimeVal, TimeValLike};
use nix::unistd::Pid;

use super::{NAMED, binary};

/// How long a connection may take to come about and an answer to arrive.
pub const PATIENCE: Duration = Duration::from_secs(5);

/// A network namespace; dropping it removes it.
#[derive(Debug)]
pub struct Namespace {
    name: String,
}

impl Namespace {
    /// Makes a namespace with nothing but `lo`.
    pub(super) fn new(name: String) -> Result<Self> {
        run(Command::new("ip").args(["netns", "add", &name]))?;
        let namespace = Self { name };
        namespace.ip(&["link set lo up"])?;
        Ok(namespace)
    }

    /// Takes over a namespace that is there, to drop it.
    pub(super) fn adopt(name: String) -> Self {
        Self { name }
    }

    /// Returns the name for `ip netns` and `xipvs --netns`.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Makes a command that will run in this namespace, with an empty standard input.
    pub fn command(&self, program: &str) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.name, program]).stdin(Stdio::null());
        command
    }

    /// Runs a command (words separated by blanks) and returns its standard output; fails unless it succeeds.
    pub fn run(&self, words: &str) -> Result<String> {
        let mut words = words.split_whitespace();
        let program = words.next().context("no command")?;
        run(self.command(program).args(words))
    }

    /// Runs commands of `ip`, one a line, in one process.
    pub fn ip(&self, lines: &[&str]) -> Result<()> {
        let mut command = Command::new("ip");
        command.args(["-netns", &self.name, "-batch", "-"]);
        let mut child = command.stdin(Stdio::piped()).stderr(Stdio::piped()).spawn().context("ip")?;
        child.stdin.take().context("piped")?.write_all(lines.join("\n").as_bytes())?;
        let output = child.wait_with_output()?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "ip {lines:?} in {}: {}", self.name, said.trim_end());
        Ok(())
    }

    /// Writes a setting, by its path below /proc/sys.
    pub fn sysctl(&self, path: &str, value: &str) -> Result<()> {
        let file = Path::new("/proc/sys").join(path);
        self.enter(|| fs::write(&file, value))?
            .with_context(|| format!("{} in {}", file.display(), self.name))
    }

    /// Wires `name` here to `peer_name` there, both up.
    ///
    /// Transmit offloads are off, so that what is on a link is as on a wire; GRO is on, because a veth takes redirected frames
    /// only if its peer polls.
    pub fn veth(&self, name: &str, peer: &Namespace, peer_name: &str) -> Result<()> {
        self.ip(&[
            &format!("link add {name} type veth peer name {peer_name} netns {}", peer.name),
            &format!("link set {name} up"),
        ])?;
        peer.ip(&[&format!("link set {peer_name} up")])?;
        for (namespace, name) in [(self, name), (peer, peer_name)] {
            namespace.run(&format!("ethtool --offload {name} tx off gro on"))?;
        }
        Ok(())
    }

    /// Calls a function on a thread that is in this namespace. Sockets that it makes stay in it.
    pub fn enter<T: Send>(&self, function: impl FnOnce() -> T + Send) -> Result<T> {
        enter_namespace(&self.name, function)
    }

    /// Opens a TCP connection from here.
    pub fn connect(&self, to: impl Into<SocketAddr>) -> Result<TcpStream> {
        let to = to.into();
        let stream = self
            .enter(|| TcpStream::connect_timeout(&to, PATIENCE))?
            .with_context(|| format!("connecting from {} to {to}", self.name))?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        Ok(stream)
    }

    /// As [`Namespace::connect`], from one of the addresses here.
    pub fn connect_from(&self, from: IpAddr, to: impl Into<SocketAddr>) -> Result<TcpStream> {
        let to = to.into();
        let family = if to.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
        let connect = || -> nix::Result<TcpStream> {
            let socket = socket(family, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
            setsockopt(&socket, SendTimeout, &TimeVal::seconds(PATIENCE.as_secs().cast_signed()))?;
            bind(socket.as_raw_fd(), &SockaddrStorage::from(SocketAddr::new(from, 0)))?;
            connect(socket.as_raw_fd(), &SockaddrStorage::from(to))?;
            Ok(socket.into())
        };
        let stream = self.enter(connect)?.with_context(|| format!("connecting from {from} to {to}"))?;
        stream.set_read_timeout(Some(PATIENCE))?;
        Ok(stream)
    }

    /// Listens for TCP connections here.
    pub fn listen(&self, on: impl Into<SocketAddr>) -> Result<TcpListener> {
        let on = on.into();
        self.enter(|| TcpListener::bind(on))?.with_context(|| format!("listening on {on} in {}", self.name))
    }

    /// Opens a UDP socket here.
    pub fn bind(&self, on: impl Into<SocketAddr>) -> Result<UdpSocket> {
        let on = on.into();
        let socket =
            self.enter(|| UdpSocket::bind(on))?.with_context(|| format!("binding {on} in {}", self.name))?;
        socket.set_read_timeout(Some(PATIENCE))?;
        Ok(socket)
    }

    /// Segments of TCP that were received and sent here, of both families; those that were sent again count too.
    ///
    /// Waits until none has come for a while: what ends a connection comes when its sockets are long closed.
    pub fn segments(&self) -> Result<(u64, u64)> {
        let mut before = self.segments_now()?;
        for _ in 0..100 {
            thread::sleep(Duration::from_millis(300));
            let now = self.segments_now()?;
            if now == before {
                return Ok(now);
            }
            before = now;
        }
        anyhow::bail!("segments come and come")
    }

    fn segments_now(&self) -> Result<(u64, u64)> {
        let table = self.run("cat /proc/net/snmp")?;
        let mut lines = table.lines().filter_map(|line| line.strip_prefix("Tcp: "));
        let (titles, values) = (lines.next().context("no titles")?, lines.next().context("no values")?);
        let value = |title: &str| -> Result<u64> {
            let at = titles.split(' ').position(|word| word == title).context("no such title")?;
            Ok(values.split(' ').nth(at).context("no such value")?.parse()?)
        };
        Ok((value("InSegs")?, value("OutSegs")? + value("RetransSegs")?))
    }

    /// Makes a command of xipvs that works in this namespace.
    pub fn xipvs(&self, words: &str) -> Command {
        let mut command = Command::new(binary());
        command.args(["--netns", &self.name]).args(words.split_whitespace()).stdin(Stdio::null());
        command
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        // Pins would outlive the namespace. Mostly there are none, which xipvs says and nobody needs to hear.
        if let Ok(output) = self.xipvs("detach").output() {
            let said = String::from_utf8_lossy(&output.stderr);
            if !output.status.success() && !said.contains("nothing is attached or loaded") {
                eprintln!("detaching in {}: {}", self.name, said.trim_end());
            }
        }
        // Processes that were started here and outlived their starter; a namespace with one of them would live on.
        let pids = run(Command::new("ip").args(["netns", "pids", &self.name])).unwrap_or_default();
        for pid in pids.lines().filter_map(|line| line.trim().parse().ok()) {
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
        if let Err(error) = run(Command::new("ip").args(["netns", "delete", &self.name])) {
            eprintln!("{error:#}");
        }
    }
}

/// [`Namespace::enter`] for a namespace by its name.
pub fn enter_namespace<T: Send>(name: &str, function: impl FnOnce() -> T + Send) -> Result<T> {
    let file = Path::new(NAMED).join(name);
    let file = File::open(&file).with_context(|| file.display().to_string())?;
    thread::scope(|scope| {
        let inside = scope.spawn(|| -> Result<T> {
            setns(&file, CloneFlags::CLONE_NEWNET).with_context(|| format!("entering {name}"))?;
            Ok(function())
        });
        inside.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

fn run(command: &mut Command) -> Result<String> {
    let output = command.output().with_context(|| format!("{command:?}"))?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{command:?}: {} {}", output.status, said.trim_end());
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
