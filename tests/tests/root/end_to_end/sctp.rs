//! SCTP of the kernel at both ends, by NAT with port translation and by direct routing, of both families.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr};

use anyhow::{Context, Result};
use tests::lab::sctp::{self, associate, serve};
use tests::lab::sockets::greeting;
use tests::lab::{Lab, VIP, VIP_IPV6, client_for};

#[test]
#[ignore = "needs a kernel with SCTP; that of the reference VM has it"]
fn associations_are_spread_and_carry_data() -> Result<()> {
    sctp::load()?;
    let lab = Lab::new("sctp", 2)?;
    let mut listeners = Vec::new();
    for server in &lab.servers {
        let on: [SocketAddr; 4] = [
            (server.address, 9900).into(),
            (server.address_ipv6, 9900).into(),
            (VIP, 9001).into(),
            (VIP_IPV6, 9001).into(),
        ];
        for on in on {
            listeners.push(serve(&server.namespace, &server.name, on)?);
        }
    }
    lab.attach()?;
    for (service, method) in [(9000, "-m"), (9001, "-g")] {
        lab.xipvs(&format!("-A --sctp-service {VIP}:{service} -s rr"))?;
        lab.xipvs(&format!("-A --sctp-service [{VIP_IPV6}]:{service} -s rr"))?;
        let port = if method == "-m" { 9900 } else { service };
        for server in &lab.servers {
            let (v4, v6) = (server.address, server.address_ipv6);
            lab.xipvs(&format!("-a --sctp-service {VIP}:{service} -r {v4}:{port} {method}"))?;
            lab.xipvs(&format!("-a --sctp-service [{VIP_IPV6}]:{service} -r [{v6}]:{port} {method}"))?;
        }
    }
    let data: Vec<u8> = (0..20_000).map(|at| (at % 251) as u8).collect();
    for vip in [IpAddr::from(VIP), VIP_IPV6.into()] {
        for port in [9000, 9001] {
            let service = SocketAddr::new(vip, port);
            let mut served = BTreeMap::new();
            for _ in 0..4 {
                let mut stream = associate(&lab.client, client_for(vip), service)?;
                let answer = greeting(&stream).with_context(|| service.to_string())?;
                *served.entry(answer.server).or_insert(0) += 1;
                stream.write_all(&data)?;
                let mut back = vec![0; data.len()];
                stream.read_exact(&mut back)?;
                assert!(back == data, "{service}: other bytes");
            }
            assert_eq!(served, BTreeMap::from([("server1".to_owned(), 2), ("server2".to_owned(), 2)]));
        }
    }
    let table = lab.xipvs("-Lnc")?;
    assert_eq!(table.lines().filter(|line| line.starts_with("SCTP")).count(), 16, "{table}");
    Ok(())
}
