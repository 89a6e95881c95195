//! A flood of SYNs that nobody stands behind, through the whole path, while files are being downloaded.

use std::iter;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use anyhow::{Context, Result, ensure};
use etherparse::PacketBuilder;
use rustix::net::{AddressFamily, SendFlags, SocketType, ipproto, sendto, socket};
use tests::lab::nginx::Nginx;
use tests::lab::{CLIENT, INTERFACES, Lab, VIP};

use super::download::Download;

const DOWNLOADS: usize = 4;
/// What a table is made for that is soon full.
const CONNECTIONS: u32 = 1000;

/// Sends so many SYNs, each from another address.
fn flood(lab: &Lab, count: u32) -> Result<()> {
    // This protocol means that packets come with their header.
    let raw = lab.client.enter(|| socket(AddressFamily::INET, SocketType::RAW, Some(ipproto::RAW)))?;
    let raw: OwnedFd = raw?;
    let to = SocketAddrV4::new(VIP, 80);
    for number in 0..count {
        let from = Ipv4Addr::from(0x0b00_0000 + number);
        let mut packet = Vec::new();
        PacketBuilder::ipv4(from.octets(), VIP.octets(), 64)
            .tcp(1024 + (number % 60_000) as u16, 80, number, 64240)
            .syn()
            .write(&mut packet, &[])?;
        sendto(&raw, &packet, SendFlags::empty(), &to)?;
    }
    Ok(())
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
    lab.director.ip(&[&format!("route add 11.0.0.0/8 via {CLIENT}")])?;
    lab.xipvs(&format!("attach --connections {CONNECTIONS} {}", INTERFACES.join(" ")))?;
    lab.xipvs(&format!("-A -t {VIP}:80 -s rr"))?;
    for server in &lab.servers {
        lab.xipvs(&format!("-a -t {VIP}:80 -r {}:80 -m", server.address))?;
    }
    let status = lab.xipvs("status")?;
    let room = status.split(" entries of ").nth(1).and_then(|rest| rest.split([',', '\n']).next());
    let room: u32 = room.context("no size of the table")?.parse()?;

    let mut downloads: Vec<_> = iter::repeat_with(|| Download::begin(&lab, SocketAddrV4::new(VIP, 80)))
        .take(DOWNLOADS)
        .collect::<Result<_>>()?;
    let over = AtomicBool::new(false);
    let new_clients = thread::scope(|scope| -> Result<u32> {
        let flood = scope.spawn(|| {
            let sent = flood(&lab, 4 * room);
            over.store(true, Ordering::Relaxed);
            sent
        });
        let slow = scope.spawn(|| -> Result<()> {
            while !over.load(Ordering::Relaxed) {
                downloads.iter_mut().try_for_each(Download::go_on)?;
            }
            Ok(())
        });
        let mut clients = 0;
        while !over.load(Ordering::Relaxed) {
            lab.client.run(&format!("curl --silent --show-error --fail --max-time 10 http://{VIP}/"))?;
            clients += 1;
        }
        flood.join().expect("no panic")?;
        slow.join().expect("no panic")?;
        Ok(clients)
    })?;
    let status = lab.xipvs("status")?;
    let gave_way = status.lines().find_map(|line| line.split_once(" half-open or closed ones gave way"));
    let gave_way: u32 = gave_way.with_context(|| status.clone())?.0.trim().parse()?;
    // Two entries of each connection did, and all of the flood but what the table holds at the end.
    ensure!(gave_way > 3 * room, "{status}");
    ensure!(!status.contains("table-full"), "{status}");
    ensure!(new_clients > 3, "only {new_clients} new clients, which proves little");
    downloads.into_iter().try_for_each(Download::finish)
}
