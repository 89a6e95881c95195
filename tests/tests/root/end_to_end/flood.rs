//! A flood of SYNs that nobody stands behind, through the whole path, while files are being downloaded.

use std::iter;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread;

use anyhow::{Context, Result, ensure};
use etherparse::PacketBuilder;
use rustix::net::{AddressFamily, SendFlags, SocketType, ipproto, sendto, socket};
use tests::lab::nginx::Nginx;
use tests::lab::{CLIENT, CLIENT_IPV6, INTERFACES, Lab, VIP, VIP_IPV6};

use super::download::Download;

const DOWNLOADS: usize = 4;
/// What a table is made for that is soon full.
const CONNECTIONS: u32 = 1000;
/// SYNs that are sent before the director is asked what came of them.
const BURST: u32 = 2000;
/// Clients that have to be served while it lasts.
const NEW_CLIENTS: u32 = 4;

/// Makes a SYN for port 80 from somebody who does not exist, of the virtual address's family.
fn syn(number: u32, vip: IpAddr) -> Result<Vec<u8>> {
    let builder = match vip {
        IpAddr::V4(vip) => {
            PacketBuilder::ipv4(Ipv4Addr::from(0x0b00_0000 + number).octets(), vip.octets(), 64)
        }
        IpAddr::V6(vip) => {
            let from = Ipv6Addr::from((0xfd00_000b << 96) + u128::from(number));
            PacketBuilder::ipv6(from.octets(), vip.octets(), 64)
        }
    };
    let mut packet = Vec::new();
    builder.tcp(1024 + (number % 60_000) as u16, 80, number, 64240).syn().write(&mut packet, &[])?;
    Ok(packet)
}

/// Sends SYNs, each from another address, until one more burst is not wanted; an error if it is after `most` of them.
fn flood(lab: &Lab, vip: IpAddr, most: u32, mut more: impl FnMut() -> Result<bool>) -> Result<()> {
    let family = if vip.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    // This protocol means that packets come with their header.
    let raw = lab.client.enter(|| socket(family, SocketType::RAW, Some(ipproto::RAW)))??;
    let mut sent = 0;
    while more()? {
        ensure!(sent < most, "{sent} SYNs were not enough\n{}", lab.xipvs("status")?);
        for _ in 0..BURST {
            sendto(&raw, &syn(sent, vip)?, SendFlags::empty(), &SocketAddr::new(vip, 0))?;
            sent += 1;
        }
    }
    Ok(())
}

/// Returns how many entries have given way to new ones.
fn gave_way(lab: &Lab) -> Result<u32> {
    let status = lab.xipvs("status")?;
    ensure!(!status.contains("table-full"), "{status}");
    let count = status.lines().find_map(|line| line.split_once(" half-open or closed ones gave way"));
    count.map_or(Ok(0), |(count, _)| Ok(count.trim().parse()?))
}

/// Floods a virtual address while files are being downloaded from it and new clients come, until entries for four times
/// the table's room were made: a busy machine may lose most SYNs before they come to the program, so what counts is
/// what came.
fn is_survived(lab: &Lab, vip: IpAddr, room: u32) -> Result<()> {
    let service = SocketAddr::new(vip, 80);
    let mut downloads: Vec<_> =
        iter::repeat_with(|| Download::begin(lab, service)).take(DOWNLOADS).collect::<Result<_>>()?;
    let before = gave_way(lab)?;
    let over = AtomicBool::new(false);
    let clients = AtomicU32::new(0);
    thread::scope(|scope| {
        let slow = scope.spawn(|| -> Result<()> {
            while !over.load(Ordering::Relaxed) {
                downloads.iter_mut().try_for_each(Download::go_on)?;
            }
            Ok(())
        });
        let new = scope.spawn(|| -> Result<()> {
            while !over.load(Ordering::Relaxed) {
                let curl = "curl --silent --show-error --fail --globoff --max-time 30";
                lab.client.run(&format!("{curl} http://{service}/"))?;
                clients.fetch_add(1, Ordering::Relaxed);
            }
            Ok(())
        });
        // All but what the table holds at the end has to give way.
        let flooded = flood(lab, vip, 100 * room, || {
            let enough = gave_way(lab)? - before > 3 * room && clients.load(Ordering::Relaxed) >= NEW_CLIENTS;
            Ok(!enough && !slow.is_finished() && !new.is_finished())
        });
        over.store(true, Ordering::Relaxed);
        slow.join().expect("no panic")?;
        new.join().expect("no panic")?;
        flooded
    })?;
    downloads.into_iter().try_for_each(Download::finish)
}

#[test]
fn downloads_and_new_clients_get_through_a_flood_of_four_times_the_table() -> Result<()> {
    let lab = Lab::new("flood", 2)?;
    let mut servers = Vec::new();
    for server in &lab.servers {
        let nginx = Nginx::start(&lab, server, &[80])?;
        Download::offer(&nginx)?;
        servers.push(nginx);
    }
    // Answers to those who do not exist go where they came from, and end there.
    lab.director.ip(&[
        &format!("route add 11.0.0.0/8 via {CLIENT}"),
        &format!("route add fd00:b::/32 via {CLIENT_IPV6}"),
    ])?;
    lab.xipvs(&format!("attach --connections {CONNECTIONS} {}", INTERFACES.join(" ")))?;
    lab.xipvs(&format!("-A -t {VIP}:80 -s rr"))?;
    lab.xipvs(&format!("-A -t [{VIP_IPV6}]:80 -s rr"))?;
    for server in &lab.servers {
        lab.xipvs(&format!("-a -t {VIP}:80 -r {}:80 -m", server.address))?;
        lab.xipvs(&format!("-a -t [{VIP_IPV6}]:80 -r [{}]:80 -m", server.address_ipv6))?;
    }
    let status = lab.xipvs("status")?;
    let room = status.split(" entries of ").nth(1).and_then(|rest| rest.split([',', '\n']).next());
    let room: u32 = room.context("no size of the table")?.parse()?;
    for vip in [IpAddr::from(VIP), VIP_IPV6.into()] {
        is_survived(&lab, vip, room).with_context(|| vip.to_string())?;
    }
    Ok(())
}
