//! dnsmasq and drill: names over UDP, by NAT with port translation, and each datagram by itself with direct routing.

use std::collections::BTreeMap;
use std::net::IpAddr;

use anyhow::{Context, Result, ensure};
use tests::lab::program::Program;
use tests::lab::{Lab, Server, VIP, VIP_IPV6};

const QUERIES: usize = 10;

/// Starts dnsmasq, which knows nothing but this server's name and addresses.
fn serve(lab: &Lab, server: &Server) -> Result<Program> {
    let mut command = server.namespace.command("dnsmasq");
    command.args([
        "--keep-in-foreground",
        "--conf-file=/dev/null",
        "--no-resolv",
        "--no-hosts",
        "--pid-file",
    ]);
    command.args(["--log-facility=-", "--user=root", "--port=53", "--local-ttl=0"]);
    command.arg(format!("--txt-record=who.test,{}", server.name));
    command.arg(format!("--host-record=me.test,{},{}", server.address, server.address_ipv6));
    let log = lab.directory().join(format!("dnsmasq-{}", server.name));
    Program::start(command, &log, || {
        server.namespace.run("drill -Q who.test @127.0.0.1 TXT").is_ok_and(|said| said.contains(&server.name))
    })
}

/// Asks by a service of each family, a few times, and returns how often each answer came.
fn ask(lab: &Lab, vip: IpAddr, port: u16, question: &str) -> Result<BTreeMap<String, usize>> {
    let mut answers = BTreeMap::new();
    for _ in 0..QUERIES {
        let answer = lab.client.run(&format!("drill -Q -p {port} {question} @{vip}"))?;
        *answers.entry(answer.trim().to_owned()).or_insert(0) += 1;
    }
    Ok(answers)
}

#[test]
fn names_are_resolved_by_nat_and_datagram_by_datagram() -> Result<()> {
    let lab = Lab::new("dns", 2)?;
    let _servers: Vec<_> = lab.servers.iter().map(|server| serve(&lab, server)).collect::<Result<_>>()?;
    lab.attach()?;
    let [one, two] = &lab.servers[..] else { unreachable!("two servers") };
    for (vip, servers) in [
        (format!("{VIP}"), [format!("{}", one.address), format!("{}", two.address)]),
        (format!("[{VIP_IPV6}]"), [one, two].map(|server| format!("[{}]", server.address_ipv6))),
    ] {
        lab.xipvs(&format!("-A -u {vip}:5300 -s rr"))?;
        lab.xipvs(&format!("-A -u {vip}:53 -s rr -o"))?;
        for server in servers {
            lab.xipvs(&format!("-a -u {vip}:5300 -r {server}:53 -m"))?;
            lab.xipvs(&format!("-a -u {vip}:53 -r {server}:53 -g"))?;
        }
    }
    let half = QUERIES / 2;
    for vip in [IpAddr::from(VIP), VIP_IPV6.into()] {
        for port in [53, 5300] {
            let answers = ask(&lab, vip, port, "who.test TXT").with_context(|| format!("{vip} {port}"))?;
            let wanted = [("\"server1\"".to_owned(), half), ("\"server2\"".to_owned(), half)];
            assert_eq!(answers, wanted.into(), "{vip} {port}");
        }
        // What is kept of one-packet scheduling is a count.
        let table = lab.xipvs("-Lnc")?;
        let rows = table.lines().filter(|line| line.contains(&vip.to_string()));
        ensure!(rows.clone().count() == QUERIES, "{table}");
        ensure!(rows.clone().all(|line| line.contains(":5300")), "{table}");
    }
    // Both addresses of the server, and none of the director's.
    let answers = ask(&lab, VIP.into(), 5300, "me.test AAAA")?;
    assert_eq!(answers.keys().collect::<Vec<_>>(), ["fd00:2::b", "fd00:2::c"]);
    Ok(())
}
