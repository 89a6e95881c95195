//! The lab itself: that what the other tests stand on carries.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddrV4};
use std::path::Path;

use anyhow::Result;
use tests::lab::nginx::Nginx;
use tests::lab::sockets::{Listener, ask_tcp, ask_udp, greeting};
use tests::lab::{CLIENT, DIRECTOR_CLIENTS, Lab, VIP};

#[test]
fn servers_see_the_client_through_the_director() -> Result<()> {
    let lab = Lab::new("routed", 2)?;
    // From the client's own side the servers' network is one hop away, which would pass the director by.
    lab.client.ip(&["link set servers down", &format!("route add 10.0.0.0/24 via {DIRECTOR_CLIENTS}")])?;
    for server in &lab.servers {
        let _tcp = Listener::tcp(server, 8080)?;
        let _udp = Listener::udp(server, SocketAddrV4::new(server.address, 5353))?;
        let answer = ask_tcp(&lab.client, SocketAddrV4::new(server.address, 8080))?;
        assert_eq!((&answer.server, answer.client.ip()), (&server.name, CLIENT.into()));

        let socket = lab.client.bind(SocketAddrV4::new(CLIENT, 0))?;
        let answer = ask_udp(&socket, SocketAddrV4::new(server.address, 5353))?;
        assert_eq!((&answer.server, answer.client.ip()), (&server.name, CLIENT.into()));
    }
    Ok(())
}

#[test]
fn only_the_director_answers_for_the_virtual_address() -> Result<()> {
    let lab = Lab::new("arp", 2)?;
    let _servers: Vec<_> =
        lab.servers.iter().map(|server| Listener::tcp(server, 80)).collect::<Result<_>>()?;
    // Nothing forwards yet, so whoever answers here is the director's stack, and it has no such port.
    let error = lab.client.connect(SocketAddrV4::new(VIP, 80)).unwrap_err();
    assert!(format!("{error:#}").contains("refused"), "{error:#}");
    // Nor does a server answer when asked on its own segment.
    lab.client.ip(&["link set director down", &format!("route add {VIP}/32 dev servers")])?;
    lab.director.ip(&[&format!("addr del {VIP}/32 dev clients")])?;
    let error = lab.client.connect(SocketAddrV4::new(VIP, 80)).unwrap_err();
    assert!(format!("{error:#}").contains("No route to host"), "{error:#}");
    Ok(())
}

#[test]
fn a_connection_sends_back_what_it_gets() -> Result<()> {
    let lab = Lab::new("echo", 1)?;
    let server = &lab.servers[0];
    let _listener = Listener::tcp(server, 7)?;
    let mut stream = lab.client.connect(SocketAddrV4::new(server.address, 7))?;
    assert_eq!(greeting(&stream)?.server, "server1");
    stream.write_all(&[7; 5000])?;
    stream.shutdown(Shutdown::Write)?;
    let mut back = Vec::new();
    stream.read_to_end(&mut back)?;
    assert_eq!(back, [7; 5000]);
    Ok(())
}

#[test]
fn nginx_serves_its_page_and_everything_is_gone_afterwards() -> Result<()> {
    let lab = Lab::new("nginx", 1)?;
    let (name, directory) = (lab.servers[0].namespace.name().to_owned(), lab.directory().to_owned());
    let nginx = Nginx::start(&lab, &lab.servers[0], &[80, 8080])?;
    let page = lab.client.run("curl --silent --show-error --fail http://10.0.0.11:8080/")?;
    assert_eq!(page, "server1\n");
    // Dropped the other way round than it was made, as after a panic in between.
    drop(lab);
    assert!(!Path::new("/run/netns").join(name).exists());
    assert!(!directory.exists());
    drop(nginx);
    Ok(())
}

#[test]
fn a_panic_inside_a_namespace_is_a_panic_outside() {
    let lab = Lab::new("panic", 0).unwrap();
    let address = SocketAddrV4::new(Ipv4Addr::LOCALHOST, 1);
    assert!(lab.client.connect(address).is_err());
    let caught = std::panic::catch_unwind(|| lab.client.enter(|| panic!("inside")));
    assert!(caught.is_err());
}
