//! Loading, attaching, detaching: that they do what they say, whenever they are cut short, and leave nothing.

use std::collections::HashSet;
use std::fs;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use tests::lab::namespace::Namespace;
use tests::lab::{DIRECTOR_SERVERS, Lab, VIP};
use xipvs::director::xdp::neighbour::{self, Managed};
use xipvs::director::xdp::routing::Routing;
use xipvs::netns;

/// What xipvs changes of an interface.
const SETTINGS: [&str; 4] = ["ipv4/forwarding", "ipv4/accept_local", "ipv6/accept_ra", "ipv6/forwarding"];

fn cookie(namespace: &Namespace) -> Result<String> {
    Ok(namespace.enter(netns::cookie)??.to_string())
}

/// Returns the directory of a namespace's maps and programs.
pub fn pins(namespace: &Namespace) -> Result<PathBuf> {
    Ok(Path::new("/sys/fs/bpf/xipvs").join(cookie(namespace)?))
}

/// Everything that xipvs could leave in a namespace.
fn traces(namespace: &Namespace) -> Result<String> {
    let mut traces = String::new();
    for interface in ["clients", "servers", "lo"] {
        for setting in SETTINGS {
            let (family, name) = setting.split_once('/').context("no family")?;
            let file = format!("/proc/sys/net/{family}/conf/{interface}/{name}");
            traces += &format!("{interface} {setting} {}", namespace.enter(|| fs::read_to_string(file))??);
        }
        let link = namespace.run(&format!("ip -o link show {interface}"))?;
        traces += &format!("{interface} xdp {}\n", link.contains("xdp"));
        traces += &namespace.run(&format!("tc qdisc show dev {interface} clsact"))?;
    }
    for number in [120, 121] {
        traces += &namespace.run(&format!("ip neighbour show proto {number}"))?;
    }
    for directory in [pins(namespace)?, Path::new("/run/xipvs").join(cookie(namespace)?)] {
        if directory.exists() {
            traces += &format!("{}\n", directory.display());
        }
    }
    Ok(traces)
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn detach_leaves_nothing_behind() -> Result<()> {
    let lab = Lab::new("detach", 1)?;
    lab.director.sysctl("net/ipv4/conf/servers/forwarding", "0")?;
    let before = traces(&lab.director)?;

    lab.attach()?;
    lab.xipvs(&format!("-A -t {VIP}:80 -s rr"))?;
    lab.xipvs(&format!("-a -t {VIP}:80 -r {}:8080 -m", lab.servers[0].address))?;
    let status = lab.xipvs("status")?;
    assert!(status.contains("clients (native)") && status.contains("servers (native)"), "{status}");
    let during = traces(&lab.director)?;
    for line in [
        "clients ipv4/accept_local 1",
        "servers ipv4/forwarding 1",
        "servers ipv6/forwarding 1",
        "clients ipv6/accept_ra 2",
        "servers xdp true",
    ] {
        assert!(during.contains(line), "{during}");
    }

    lab.xipvs("detach servers")?;
    let half = traces(&lab.director)?;
    for line in [
        "servers ipv4/accept_local 0",
        "servers ipv4/forwarding 0",
        "servers ipv6/forwarding 0",
        "servers ipv6/accept_ra 1",
        "servers xdp false",
        "clients xdp true",
    ] {
        assert!(half.contains(line), "{half}");
    }
    assert!(lab.xipvs("-Ln")?.contains(":8080"));

    lab.xipvs("detach")?;
    assert_eq!(traces(&lab.director)?, before);
    let again = lab.xipvs_output("detach")?;
    assert_eq!((again.status.code(), said(&again).lines().count()), (Some(2), 1));
    Ok(())
}

#[test]
fn the_way_out_is_left_as_it_was() -> Result<()> {
    let lab = Lab::new("way-out", 1)?;
    let has_qdisc = |interface: &str| -> Result<bool> {
        Ok(lab.director.run(&format!("tc qdisc show dev {interface} clsact"))?.contains("clsact"))
    };
    let filters = |interface: &str| -> Result<usize> {
        let listed = lab.director.run(&format!("tc filter show dev {interface} egress"))?;
        Ok(listed.matches("handle").count())
    };
    // Somebody else's.
    lab.director.run("tc qdisc add dev clients clsact")?;
    lab.attach()?;
    lab.attach()?;
    for interface in ["clients", "servers", "lo"] {
        assert_eq!((has_qdisc(interface)?, filters(interface)?), (true, 2), "{interface}");
    }
    let status = lab.xipvs("status")?;
    assert!(status.contains("lo (connections of the director itself)"), "{status}");
    // A filter that is gone is missed, and comes back.
    lab.director.run("tc filter del dev servers egress")?;
    assert!(lab.xipvs("status")?.contains("servers (native, without what the director itself sends)"));
    lab.attach()?;
    assert_eq!(filters("servers")?, 2);

    lab.xipvs("detach servers")?;
    assert_eq!((has_qdisc("servers")?, filters("clients")?, filters("lo")?), (false, 2, 2));
    lab.xipvs("detach clients")?;
    assert_eq!((has_qdisc("clients")?, filters("clients")?, has_qdisc("lo")?), (true, 0, false));
    Ok(())
}

#[test]
fn an_interface_that_lost_its_ipv6_is_detached() -> Result<()> {
    let lab = Lab::new("lost", 1)?;
    lab.attach()?;
    // Too small for IPv6, whose settings go.
    lab.director.ip(&["link set servers mtu 1000"])?;
    lab.xipvs("detach")?;
    assert!(!pins(&lab.director)?.exists());
    let accept_local = || fs::read_to_string("/proc/sys/net/ipv4/conf/servers/accept_local");
    assert_eq!(lab.director.enter(accept_local)??, "0\n");
    Ok(())
}

#[test]
fn a_killed_command_is_made_up_for_by_the_next() -> Result<()> {
    const KILLS: u32 = 6;
    let lab = Lab::new("kill", 1)?;
    let before = traces(&lab.director)?;
    let start = Instant::now();
    lab.attach()?;
    let whole = start.elapsed();
    lab.xipvs("detach")?;
    let mut killed = 0;
    for kill in 0..KILLS {
        let mut child = lab.director.xipvs("attach clients").spawn()?;
        thread::sleep(whole * kill / KILLS);
        child.kill()?;
        killed += u32::from(!child.wait()?.success());

        lab.xipvs(&format!("-A -t {VIP}:80 -s rr"))?;
        lab.attach()?;
        let made: Vec<_> = fs::read_dir(pins(&lab.director)?)?.collect::<std::io::Result<_>>()?;
        assert!(made.iter().all(|entry| entry.file_name() != "new"), "{made:?}");
        assert!(lab.xipvs("-Ln")?.contains(":80 rr"));
        assert!(lab.xipvs("status")?.contains("servers (native)"));
        lab.xipvs("detach")?;
        assert_eq!(traces(&lab.director)?, before, "killed after {:?}", whole * kill / KILLS);
    }
    ensure!(killed > KILLS / 3, "only {killed} of {KILLS} were killed, the rest was through before");
    Ok(())
}

#[test]
fn commands_at_the_same_time_do_not_interleave() -> Result<()> {
    const COMMANDS: u16 = 20;
    let lab = Lab::new("lock", 1)?;
    // Nothing is loaded, so that they compete for that, too.
    thread::scope(|scope| {
        let lab = &lab;
        let change = move |port: u16| -> Result<()> {
            let (service, other) = (format!("-t {VIP}:{port}"), format!("-t {VIP}:{}", 1000 + port));
            lab.xipvs(&format!("-A {service} -s rr"))?;
            lab.xipvs(&format!("-A {other} -s wlc"))?;
            lab.xipvs(&format!("-a {service} -r 10.0.0.11:{port} -m"))?;
            lab.xipvs(&format!("-a {service} -r 10.0.0.12:{port} -m"))?;
            lab.xipvs(&format!("-e {service} -r 10.0.0.11:{port} -m -w {}", 100 + port))?;
            lab.xipvs(&format!("-d {service} -r 10.0.0.12:{port}"))?;
            lab.xipvs(&format!("-D {other}")).map(drop)
        };
        let running: Vec<_> = (1..=COMMANDS).map(|port| scope.spawn(move || change(port))).collect();
        running.into_iter().try_for_each(|one| one.join().expect("no panic"))
    })?;
    let mut wanted = String::new();
    for port in 1..=COMMANDS {
        wanted += &format!("-A -t {VIP}:{port} -s rr\n");
        wanted += &format!("-a -t {VIP}:{port} -r 10.0.0.11:{port} -m -w {}\n", 100 + port);
    }
    assert_eq!(lab.xipvs("-Sn --sort")?, wanted);
    Ok(())
}

#[test]
fn what_cannot_be_attached_is_one_line_and_nothing_done() -> Result<()> {
    let lab = Lab::new("refuse", 0)?;
    let before = traces(&lab.director)?;
    let output = lab.xipvs_output("attach clients no-such-interface")?;
    assert_eq!(output.status.code(), Some(2));
    assert_eq!(said(&output), "xipvs: interface no-such-interface: no such device\n");
    assert_eq!(traces(&lab.director)?, before);

    // The program of somebody else, which any will do as.
    lab.xipvs("-Ln")?;
    let other = pins(&lab.director)?.join("xipvs_sweep");
    let occupy = || Command::new("ip").args(["link", "set", "servers", "xdp", "pinned"]).arg(&other).status();
    ensure!(lab.director.enter(occupy)??.success());
    let output = lab.xipvs_output("attach clients servers")?;
    assert_eq!(output.status.code(), Some(2));
    assert_eq!(said(&output), "xipvs: interface servers: another XDP program is attached to it\n");
    assert!(traces(&lab.director)?.contains("clients xdp false"));
    lab.director.run("ip link set servers xdp off")?;

    let output = lab.director.xipvs("-Ln").env("XIPVS_DIRECTOR", "none").output()?;
    assert_eq!((output.status.code(), said(&output).lines().count()), (Some(2), 1));
    let output = Command::new(tests::lab::binary()).args(["--netns", "no-such-namespace", "-Ln"]).output()?;
    assert_eq!(said(&output), "xipvs: --netns no-such-namespace: no such network namespace\n");
    Ok(())
}

#[test]
fn a_driver_without_xdp_is_attached_in_generic_mode_with_a_warning() -> Result<()> {
    let lab = Lab::new("generic", 0)?;
    let output = lab.xipvs_output("attach lo")?;
    assert!(output.status.success());
    let said = said(&output);
    assert!(said.starts_with("xipvs: warning: lo is attached in generic mode") && said.lines().count() == 1);
    assert!(lab.xipvs("status")?.contains("lo (generic)"));
    let output = lab.xipvs_output("attach lo")?;
    assert!(output.status.success() && self::said(&output).contains("attached already"));
    // One that is named twice is attached once.
    lab.xipvs("detach lo")?;
    assert!(lab.xipvs("status")?.starts_with("interfaces    none;"));
    lab.xipvs("attach lo lo")?;
    Ok(())
}

#[test]
fn an_older_program_is_replaced_and_the_table_stays() -> Result<()> {
    let lab = Lab::new("replace", 1)?;
    lab.attach()?;
    lab.xipvs(&format!("-A -t {VIP}:80 -s rr"))?;
    // Another program in the entry's place, and one that is missing: what an older version may have left.
    let pins = pins(&lab.director)?;
    fs::rename(pins.join("xipvs_start"), pins.join("xipvs"))?;
    let output = lab.xipvs_output("attach clients")?;
    assert!(output.status.success() && said(&output).contains("replaced an older program"), "{output:?}");
    for name in ["xipvs", "xipvs_slow", "xipvs_open", "xipvs_start", "xipvs_sweep"] {
        assert!(pins.join(name).exists(), "{name}");
    }
    let status = lab.xipvs("status")?;
    assert!(status.contains("clients (native)") && status.contains("servers (native)"), "{status}");
    assert!(status.contains("services      1 of"), "{status}");
    // Now it is the newest.
    assert!(!said(&lab.xipvs_output("attach clients")?).contains("replaced"));
    // And looks at checksums as before, if it did.
    let is_of_veth = |link: &str| -> Result<bool> {
        Ok(lab.director.run(&format!("ip -details link show {link}"))?.contains("name xipvs_veth"))
    };
    assert!(is_of_veth("clients")? && is_of_veth("servers")?);
    lab.xipvs("detach servers")?;
    lab.xipvs("attach --whole-checksums servers")?;
    fs::rename(pins.join("xipvs_start"), pins.join("xipvs"))?;
    lab.xipvs("attach clients")?;
    assert!(is_of_veth("clients")? && !is_of_veth("servers")?);
    Ok(())
}

#[test]
fn the_kernel_keeps_next_hops_resolved() -> Result<()> {
    let lab = Lab::new("neighbour", 2)?;
    let (near, other) = (lab.servers[0].address, lab.servers[1].address);
    let far = Ipv4Addr::new(10, 1, 0, 1);
    lab.director.ip(&[
        &format!("route add {far}/32 via {other}"),
        "neighbour add 10.0.0.77 lladdr 02:00:00:00:00:77 dev servers",
    ])?;
    let manage = |address: Ipv4Addr| {
        lab.director.enter(|| -> Result<Managed> {
            let mut routing = Routing::open()?;
            let way = routing.way(address.into())?;
            Ok(neighbour::manage(&mut routing, address.into(), way)?)
        })?
    };
    let entry = |address: Ipv4Addr| lab.director.run(&format!("ip neighbour show {address}"));

    assert_eq!(manage(near)?, Managed::Kept);
    assert_eq!(manage(near)?, Managed::Kept);
    assert_eq!(manage(far)?, Managed::Kept);
    assert_eq!(manage(Ipv4Addr::new(203, 0, 113, 1))?, Managed::NoRoute);
    assert_eq!(manage(DIRECTOR_SERVERS)?, Managed::Local);
    assert_eq!(manage(Ipv4Addr::new(10, 0, 0, 77))?, Managed::Permanent);
    for address in [near, other] {
        let start = Instant::now();
        while !entry(address)?.contains("REACHABLE") {
            ensure!(start.elapsed() < Duration::from_secs(5), "unresolved: {}", entry(address)?);
            thread::sleep(Duration::from_millis(20));
        }
        assert!(entry(address)?.contains("managed"), "{}", entry(address)?);
    }

    // A gateway's entry stays, even when the gateway was a destination, too.
    assert_eq!(manage(other)?, Managed::Kept);
    lab.director.enter(|| -> Result<()> {
        let mut routing = Routing::open()?;
        Ok(neighbour::forget(&mut routing, &HashSet::from([near.into(), other.into()]))?)
    })??;
    assert_eq!(entry(near)?, "");
    assert!(entry(other)?.contains("managed"), "{}", entry(other)?);
    lab.director.enter(|| neighbour::forget_all(&mut Routing::open()?))?.context("forget_all")?;
    assert_eq!(entry(other)?, "");
    assert!(entry(Ipv4Addr::new(10, 0, 0, 77))?.contains("PERMANENT"));
    Ok(())
}
