//! A director between two wires, in network namespaces that nothing else sees.
//!
//! Namespaces and bpffs are this process's own and are gone with it, however it ends. All neighbours are permanent, so
//! that the kernel's answers about next hops are those of a director at work.
//!
//! ```text
//!  namespace client                     director                            namespace sink
//!  172.16.0.0/12 ... 192.168.1.254      192.168.1.1, .100      10.0.0.1     10.0.0.11 ... 10.0.0.26
//!                        uplink ------- clients (11)       servers (12) --- uplink
//! ```

use std::io::Write;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, CpuSet, sched_setaffinity, unshare};
use nix::unistd::Pid;

use xipvs::director::xdp::lifecycle::Manner;

use crate::lab::namespace::enter_namespace;

/// The namespaces beside the director's: where packets come from and where they go.
pub const CLIENT: &str = "client";
/// As above.
pub const SINK: &str = "sink";
/// What the one interface of each is called.
pub const UPLINK: &str = "uplink";
/// Its index, there as there.
pub const UPLINK_INDEX: u32 = 21;
/// Index of the interface that clients' packets come in at.
pub const CLIENTS: u32 = 11;
/// Index of the interface that destinations' packets come in at.
pub const SERVERS: u32 = 12;
/// The virtual address.
pub const VIP: Ipv4Addr = Ipv4Addr::new(192, 168, 1, 100);
/// [`VIP`] in the other family.
pub const VIP_IPV6: Ipv6Addr = Ipv6Addr::new(0xfd00, 1, 0, 0, 0, 0, 0, 0x100);
/// Destinations of every service.
pub const DESTINATIONS: u8 = 16;

/// Moves this process into namespaces of its own, for good, and onto one CPU. To be called before it has threads.
pub fn enter() -> Result<()> {
    let apart = CloneFlags::CLONE_FS | CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWNET;
    unshare(apart).context("measuring needs namespaces of its own, and those need root")?;
    let none = None::<&str>;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none)?;
    mount(Some("bpf"), "/sys/fs/bpf", Some("bpf"), MsFlags::empty(), none)?;
    mount(Some("tmpfs"), "/run", Some("tmpfs"), MsFlags::empty(), none)?;
    std::fs::write("/proc/sys/net/ipv6/conf/default/accept_ra", "0")?;
    std::fs::write("/proc/sys/net/ipv6/conf/default/router_solicitations", "0")?;
    std::fs::write("/proc/sys/net/ipv6/conf/default/addr_gen_mode", "1")?;
    let mut cpus = CpuSet::new();
    // Interrupts of devices mostly go to the first.
    cpus.set(std::thread::available_parallelism()?.get() - 1)?;
    sched_setaffinity(Pid::from_raw(0), &cpus)?;

    for namespace in [CLIENT, SINK] {
        run(Command::new("ip").args(["netns", "add", namespace]))?;
        // Nobody shall ask for neighbours or announce anything while something is measured.
        let quiet = || std::fs::write("/proc/sys/net/ipv6/conf/all/disable_ipv6", "1");
        enter_namespace(namespace, quiet)??;
    }
    std::fs::write("/proc/sys/net/ipv4/ip_forward", "1")?;
    let mut lines = String::from(
        "link add clients index 11 address 02:00:00:00:00:0b type veth peer name uplink index 21 netns client
         link add servers index 12 address 02:00:00:00:00:0c type veth peer name uplink index 21 netns sink
         link set lo up
         link set clients up
         link set servers up
         addr add 192.168.1.1/24 dev clients
         addr add 192.168.1.100/32 dev clients
         addr add 10.0.0.1/24 dev servers
         addr add fd00:1::1/64 dev clients nodad
         addr add fd00:1::100/128 dev clients nodad
         addr add fd00:2::1/64 dev servers nodad
         route add default via 192.168.1.254
         route add 10.1.0.0/16 via 10.0.0.11
         route add default via fd00:1::fe dev clients
         neigh add 192.168.1.254 lladdr 02:01:00:00:00:fe dev clients nud permanent
         neigh add fd00:1::fe lladdr 02:01:00:00:00:fe dev clients nud permanent\n",
    );
    for number in 1..=DESTINATIONS {
        for address in [server(number).into(), server_ipv6(number).into()] as [IpAddr; 2] {
            let link = format!("02:02:00:00:00:{number:02x}");
            lines += &format!("neigh add {address} lladdr {link} dev servers nud permanent\n");
        }
    }
    let mut ip = Command::new("ip").args(["-batch", "-"]).stdin(Stdio::piped()).spawn().context("ip")?;
    ip.stdin.take().context("piped")?.write_all(lines.as_bytes())?;
    ensure!(ip.wait()?.success(), "ip failed");
    for namespace in [CLIENT, SINK] {
        run(Command::new("ip").args(["-netns", namespace, "link", "set", UPLINK, "up"]))?;
        offload(Command::new("ip").args(["netns", "exec", namespace, "ethtool"]), UPLINK)?;
    }
    ["clients", "servers"].iter().try_for_each(|name| offload(&mut Command::new("ethtool"), name))
}

/// How a director is attached to veths that stand for network cards: the frames that are fed have their checksums.
pub const AS_ON_CARDS: Manner = Manner { generic: false, whole_checksums: true };

/// Transmit offloads off, as XDP wants it; GRO on, because a veth takes redirected frames only if its peer polls.
fn offload(ethtool: &mut Command, interface: &str) -> Result<()> {
    run(ethtool.args(["--offload", interface, "tx", "off", "gro", "on"]))
}

/// Runs a command; fails with what it says unless it succeeds.
pub fn run(command: &mut Command) -> Result<()> {
    let output = command.output().with_context(|| format!("{command:?}"))?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{command:?}: {} {}", output.status, said.trim_end());
    Ok(())
}

/// The address of server 1, 2 ...
pub fn server(number: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 0, 0, 10 + number)
}

/// [`server`] in the other family.
pub fn server_ipv6(number: u8) -> Ipv6Addr {
    Ipv6Addr::new(0xfd00, 2, 0, 0, 0, 0, 0, 10 + u16::from(number))
}
