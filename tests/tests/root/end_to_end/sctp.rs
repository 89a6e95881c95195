//! SCTP of the kernel at both ends, by NAT with port translation and by direct routing, of both families.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr};

use anyhow::{Context, Result};
use tests::lab::sctp::{self, associate, serve};
use tests::lab::sockets::greeting;
use tests::lab::{DIRECTOR_SERVERS, Lab, VIP, VIP_IPV6, client_for};

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

/// With another port than the virtual one, which its checksum covers: left to a network card that is none, or computed where the
/// interface does not do that.
#[test]
#[ignore = "needs a kernel with SCTP; that of the reference VM has it"]
fn the_director_is_a_client_and_a_server_of_associations() -> Result<()> {
    sctp::load()?;
    let lab = Lab::new("sctp-own", 1)?;
    let server = &lab.servers[0];
    let own: [IpAddr; 2] = [DIRECTOR_SERVERS.into(), "fd00:2::1".parse()?];
    lab.attach()?;
    // Of a size that every way takes: `lo`, by which the client sends, has it believe in much larger ones.
    let data = [7; 1000];
    for (vip, own) in [IpAddr::from(VIP), VIP_IPV6.into()].into_iter().zip(own) {
        let ends = [
            (9002, &server.namespace, server.address_for(vip), &lab.director, own),
            (9003, &lab.director, own, &lab.client, client_for(vip)),
        ];
        for (port, serving, at, asking, from) in ends {
            let service = SocketAddr::new(vip, port);
            let _server = serve(serving, "server", SocketAddr::new(at, 9900))?;
            lab.xipvs(&format!("-A --sctp-service {service} -s rr"))?;
            lab.xipvs(&format!("-a --sctp-service {service} -r {} -m", SocketAddr::new(at, 9900)))?;
            let mut stream = associate(asking, from, service)?;
            let answer = greeting(&stream).with_context(|| service.to_string())?;
            assert_eq!(answer.client.ip(), from);
            stream.write_all(&data)?;
            let mut back = [0; 1000];
            stream.read_exact(&mut back).with_context(|| service.to_string())?;
            assert!(back == data, "{service}: other bytes");
        }
    }
    Ok(())
}
