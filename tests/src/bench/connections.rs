//! Real sockets: new TCP connections a second, and how long a question and its answer take.
//!
//! A client asks one server, one question after the other, through the kernel's own forwarding and through directors in
//! turn. Both ends and what is between them share one CPU, so that what a director adds is not hidden by waiting.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use xipvs::director::Director;
use xipvs::director::kernel::Kernel;

use super::Unit;
use super::stage::Record;
use super::topology::{CLIENT, SINK, VIP, run, server};
use super::world::{World, ipvsadm};
use crate::lab::namespace::enter_namespace;

/// Connections of a round, one after the other.
const CONNECTIONS: u32 = 1000;
/// Questions of a round on one connection.
const QUESTIONS: u32 = 4000;
/// The server's ports, one for each way: of two connections with one port of the client the answers would look alike if both
/// ended at one port of the server.
const FORWARDED: u16 = 8080;
const ROUTED: u16 = 8081;
const TRANSLATED: u16 = 8082;
const BY_KERNEL: u16 = 8083;
/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(5);

/// The client's address: that of the gateway, whom the director has as a neighbour.
const GATEWAY: Ipv4Addr = Ipv4Addr::new(192, 168, 1, 254);

/// Measures connections through each.
pub fn measure(rounds: u32, record: &mut Record) -> Result<()> {
    wire()?;
    for port in [FORWARDED, ROUTED, TRANSLATED, BY_KERNEL] {
        enter_namespace(SINK, || TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).map(serve))??;
    }
    let mut world = World::load(1 << 16)?;
    let mut ways = vec![("kernel forwarding", SocketAddr::from((server(1), FORWARDED)))];
    for (name, method, port, real) in
        [("xipvs, DR", "-g", ROUTED, ROUTED), ("xipvs, NAT", "-m", 80, TRANSLATED)]
    {
        ways.push((name, offer(&mut world.director, method, port, real)?));
    }
    if let Ok(mut kernel) = Kernel::open() {
        ways.push(("kernel IPVS, NAT", offer(&mut kernel, "-m", 90, BY_KERNEL)?));
    }
    for round in 1..=rounds {
        eprintln!("measuring connections, round {round}");
        for (name, to) in &ways {
            let taken = enter_namespace(CLIENT, || connections(*to))?.with_context(|| (*name).to_owned())?;
            let rate = f64::from(CONNECTIONS) / taken.iter().sum::<Duration>().as_secs_f64();
            let row = format!("new TCP connections, {name}");
            record.measured.note(&row, CONNECTIONS, Unit::ConnectionsPerSecond, rate);
            let taken = enter_namespace(CLIENT, || questions(*to))?.with_context(|| (*name).to_owned())?;
            for (part, name) in [(0.5, format!("answer p50, {name}")), (0.99, format!("answer p99, {name}"))]
            {
                record.measured.note(&name, QUESTIONS, Unit::Microseconds, quantile(&taken, part));
            }
        }
    }
    for part in ["p50", "p99"] {
        let of = |name: &str| {
            record.measured.median(&format!("answer {part}, {name}"), QUESTIONS, Unit::Microseconds)
        };
        let forwarding = of(ways[0].0).context("forwarding")?;
        let added: Vec<_> =
            ways[1..].iter().filter_map(|(name, _)| Some((*name, of(name)? - forwarding))).collect();
        for (name, added) in added {
            let row = format!("answer {part}, {name}, above kernel forwarding");
            record.measured.note(&row, QUESTIONS, Unit::Microseconds, added);
        }
    }
    world.unload()
}

/// Gives both ends addresses: the client is its network's gateway, the server is the first one, with the virtual address too.
fn wire() -> Result<()> {
    let ip = |namespace: &str, words: &str| {
        run(Command::new("ip").args(["-netns", namespace]).args(words.split(' ')))
    };
    ip(CLIENT, "link set lo up")?;
    ip(CLIENT, "link set uplink address 02:01:00:00:00:fe")?;
    ip(CLIENT, &format!("addr add {GATEWAY}/24 dev uplink"))?;
    ip(CLIENT, "route add default via 192.168.1.1")?;
    ip(SINK, "link set lo up")?;
    ip(SINK, "link set uplink address 02:02:00:00:00:01")?;
    ip(SINK, &format!("addr add {}/24 dev uplink", server(1)))?;
    ip(SINK, &format!("addr add {VIP}/32 dev lo"))?;
    ip(SINK, "route add default via 10.0.0.1")
}

/// Adds a service with the one server, at its port `real`, and returns its address.
fn offer(director: &mut dyn Director, method: &str, port: u16, real: u16) -> Result<SocketAddr> {
    let service = SocketAddr::from((VIP, port));
    ipvsadm(director, &format!("-A -t {service} -s wlc"))?;
    ipvsadm(director, &format!("-a -t {service} -r {}:{real} {method}", server(1)))?;
    Ok(service)
}

/// Answers each byte with itself, connection after connection, until the process ends.
fn serve(listener: TcpListener) {
    thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let _ = stream.set_nodelay(true);
            let mut byte = [0];
            // A client that goes away ends its connection, and that is all.
            while stream.read_exact(&mut byte).and_then(|()| stream.write_all(&byte)).is_ok() {}
        }
    });
}

/// How long each of many connections took, a question and its answer included.
fn connections(to: SocketAddr) -> Result<Vec<Duration>> {
    let one = || {
        let began = Instant::now();
        ask(&mut connect(to)?)?;
        Ok(began.elapsed())
    };
    (0..CONNECTIONS).map(|_| one()).collect()
}

/// How long each of many answers on one connection took.
fn questions(to: SocketAddr) -> Result<Vec<Duration>> {
    let mut stream = connect(to)?;
    let mut one = || {
        let began = Instant::now();
        ask(&mut stream)?;
        Ok(began.elapsed())
    };
    (0..QUESTIONS).map(|_| one()).collect()
}

fn connect(to: SocketAddr) -> Result<TcpStream> {
    let stream = TcpStream::connect_timeout(&to, PATIENCE).with_context(|| format!("connecting to {to}"))?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    Ok(stream)
}

fn ask(stream: &mut TcpStream) -> Result<()> {
    let mut byte = [0];
    stream.write_all(b"?")?;
    stream.read_exact(&mut byte).context("no answer")?;
    ensure!(byte == *b"?", "another answer");
    Ok(())
}

/// Below how many microseconds so large a part of all lies.
fn quantile(taken: &[Duration], part: f64) -> f64 {
    let mut sorted = taken.to_vec();
    sorted.sort_unstable();
    let place = (part * (sorted.len() - 1) as f64).round() as usize;
    sorted[place].as_secs_f64() * 1e6
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quantile_is_a_value_of_the_sorted_ones() {
        let taken: Vec<_> = (0..=100).rev().map(Duration::from_micros).collect();
        assert!((quantile(&taken, 0.5) - 50.0).abs() < 1e-6);
        assert!((quantile(&taken, 0.99) - 99.0).abs() < 1e-6);
        assert!((quantile(&taken[..1], 0.99) - 100.0).abs() < 1e-6);
    }
}
