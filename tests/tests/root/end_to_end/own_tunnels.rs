//! The director itself as a client of servers behind tunnels.

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use anyhow::{Context, Result, ensure};
use tests::lab::sockets::{Listener, ask_udp, echo, greeting};
use tests::lab::{DIRECTOR_SERVERS, Lab, VIP, VIP_IPV6};

use super::tunnel_ends::{GUE_PORT, TunnelEnds};

/// Bytes of an echo: many times what is on the way at once.
const MUCH: u32 = 1_000_000;

/// Payloads of datagrams: the smallest, an odd one, and nearly as much as fits.
const DATAGRAMS: [usize; 3] = [1, 101, 1372];

/// The director's address on the servers' side.
const DIRECTOR_IPV6: Ipv6Addr = Ipv6Addr::new(0xfd00, 2, 0, 0, 0, 0, 0, 1);

/// What the command line says of each kind of tunnel whose end has checksums, or has none; IPIP has none to have.
fn kinds(checksums: bool) -> Vec<String> {
    let sums = if checksums { "--tun-csum" } else { "--tun-nocsum" };
    let mut kinds = vec![
        "-i".to_owned(),
        format!("-i --tun-type gre {sums}"),
        format!("-i --tun-type gue --tun-port {GUE_PORT} {sums}"),
    ];
    if checksums {
        kinds.push(format!("-i --tun-type gue --tun-port {GUE_PORT} --tun-remcsum"));
    }
    kinds
}

/// Has the director ask by every tunnel, over both families, in both.
fn asks(checksums: bool) -> Result<()> {
    let lab = Lab::new("own-tunnels", 1)?;
    let ends = TunnelEnds::open(&lab.servers[0], checksums)?;
    // Sockets learn how much the way to an address of `lo` takes; that to one of another interface their stack does not ask for
    // anew.
    lab.director.ip(&[
        &format!("addr del {VIP}/32 dev clients"),
        &format!("addr del {VIP_IPV6}/128 dev clients"),
        &format!("addr add {VIP}/32 dev lo"),
        &format!("addr add {VIP_IPV6}/128 dev lo nodad"),
    ])?;
    lab.attach()?;
    if ends.are_devices() {
        // Those take what is still to be cut up and to be summed.
        asks_from(&lab, checksums, 8000)?;
    }
    lab.director.run("ethtool --offload servers tso off gso off tx off")?;
    asks_from(&lab, checksums, 9000)
}

/// The same by services from a port on.
fn asks_from(lab: &Lab, checksums: bool, mut port: u16) -> Result<()> {
    let server = &lab.servers[0];
    let sides: [(IpAddr, IpAddr); 2] =
        [(VIP.into(), DIRECTOR_SERVERS.into()), (VIP_IPV6.into(), DIRECTOR_IPV6.into())];
    for (vip, from) in sides {
        for end in [IpAddr::from(server.address), server.address_ipv6.into()] {
            for kind in kinds(checksums) {
                port += 1;
                let to = SocketAddr::new(vip, port);
                let to_end = format!("-r {} {kind}", SocketAddr::new(end, port));
                let asked = streams(lab, from, to, &to_end).and_then(|()| datagrams(lab, from, to, &to_end));
                asked
                    .with_context(|| format!("{to} {to_end}\n{}", lab.xipvs("status").unwrap_or_default()))?;
            }
        }
    }
    Ok(())
}

/// Talks over a connection of TCP, with questions that leave several packets at once, the last of which is short.
fn streams(lab: &Lab, from: IpAddr, to: SocketAddr, to_end: &str) -> Result<()> {
    let server = &lab.servers[0];
    let _web = Listener::tcp(server, to.port())?;
    lab.xipvs(&format!("-A -t {to} -s rr"))?;
    lab.xipvs(&format!("-a -t {to} {to_end}"))?;
    let stream = lab.director.connect_from(from, to)?;
    let answer = greeting(&stream)?;
    ensure!(answer.server == server.name && answer.client.ip() == from, "{answer:?}");
    let (mut reader, mut writer) = (&stream, &stream);
    for size in [1, 1000, 1999, 4001] {
        let question: Vec<u8> = (0..size).map(|byte| byte as u8).collect();
        writer.write_all(&question)?;
        let mut back = vec![0; question.len()];
        reader.read_exact(&mut back)?;
        ensure!(back == question, "other bytes came back");
    }
    echo(stream, MUCH)
}

/// Asks by datagrams, each of which is counted.
fn datagrams(lab: &Lab, from: IpAddr, to: SocketAddr, to_end: &str) -> Result<()> {
    let _dns = Listener::udp(&lab.servers[0], to)?;
    lab.xipvs(&format!("-A -u {to} -s rr"))?;
    lab.xipvs(&format!("-a -u {to} {to_end}"))?;
    let socket = lab.director.bind(SocketAddr::new(from, 0))?;
    ensure!(ask_udp(&socket, to)?.client == socket.local_addr()?);
    for size in DATAGRAMS {
        let question = vec![0x55; size];
        socket.send_to(&question, to)?;
        let mut buffer = [0; 2000];
        let (length, _) = socket.recv_from(&mut buffer)?;
        ensure!(buffer[..length].ends_with(&question), "other bytes came back");
    }
    let listing = lab.xipvs(&format!("-Ln --stats --exact -u {to}"))?;
    let sent = 1 + DATAGRAMS.len();
    ensure!(listing.contains(&format!(" 1 {sent:>8} ")), "{listing}");
    Ok(())
}

#[test]
fn connections_of_the_director_itself_go_through_tunnels() -> Result<()> {
    asks(false)
}

#[test]
fn connections_of_the_director_itself_go_through_tunnels_that_have_checksums() -> Result<()> {
    asks(true)
}
