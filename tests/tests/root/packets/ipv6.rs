//! IPv6: what goes out, byte by byte, and what is counted; extension headers; what passes.

use std::net::{IpAddr, Ipv6Addr, SocketAddr, SocketAddrV6};

use etherparse::{IpNumber, Ipv6Header, TcpHeader, UdpHeader};
use lb_common::reason::Reason;
use xipvs::director::Director;
use xipvs::table::ConnectionReport;

use super::fixture::{Action, CLIENTS, Fixture, SERVERS, TO_CLIENT, to_server};
use super::frame::{ACK, FIN, Mac, RST, SYN};

pub const WEB: &str = "-A -t [fd00:1::100]:80 -s rr
    -a -t [fd00:1::100]:80 -r [fd00:2::11]:8080 -m
    -A -u [fd00:1::100]:53 -s rr
    -a -u [fd00:1::100]:53 -r [fd00:2::11]:5353 -m
    -A -t [fd00:1::100]:81 -s wlc
    -a -t [fd00:1::100]:81 -r [fd00:2::12]:81 -g
    -A -t [fd00:1::100]:82 -s sh
    -a -t [fd00:1::100]:82 -r [fd00:2::11]:82 -m
    -a -t [fd00:1::100]:82 -r [fd00:2::12]:82 -m
    -a -t [fd00:1::100]:82 -r [fd00:2::13]:82 -m";

pub fn at(address: &str, port: u16) -> SocketAddrV6 {
    SocketAddrV6::new(address.parse().unwrap(), port, 0, 0)
}

pub fn client(port: u16) -> SocketAddrV6 {
    at("fd00:1::10", port)
}

pub fn vip(port: u16) -> SocketAddrV6 {
    at("fd00:1::100", port)
}

/// A frame in words; all checksums are computed from nothing.
#[derive(Clone)]
pub struct Frame {
    pub link: [Mac; 2],
    pub source: SocketAddrV6,
    pub destination: SocketAddrV6,
    pub hop_limit: u8,
    /// Extension headers: kind and content from the third byte on.
    pub extensions: Vec<(u8, Vec<u8>)>,
    /// Flags of a segment; none for a datagram.
    pub flags: Option<u8>,
    pub payload: Vec<u8>,
}

impl Frame {
    pub fn tcp(source: SocketAddrV6, destination: SocketAddrV6, flags: u8) -> Self {
        let link = [[0x02; 6], [0x04; 6]];
        let flags = Some(flags);
        Self { link, source, destination, hop_limit: 64, extensions: Vec::new(), flags, payload: Vec::new() }
    }

    pub fn udp(source: SocketAddrV6, destination: SocketAddrV6, payload: &[u8]) -> Self {
        Self { flags: None, payload: payload.into(), ..Self::tcp(source, destination, 0) }
    }

    /// The frame a hop further on.
    pub fn sent(&self, link: [Mac; 2], source: SocketAddrV6, destination: SocketAddrV6) -> Vec<u8> {
        Self { link, source, destination, hop_limit: self.hop_limit - 1, ..self.clone() }.bytes()
    }

    pub fn bytes(&self) -> Vec<u8> {
        let (source, destination) = (self.source.ip().octets(), self.destination.ip().octets());
        let (from, to) = (self.source.port(), self.destination.port());
        let mut header =
            Ipv6Header { hop_limit: self.hop_limit, source, destination, ..Ipv6Header::default() };
        header.traffic_class = 0xb8;
        let mut transport = if let Some(flags) = self.flags {
            let mut header_of = TcpHeader::new(from, to, 1000, 4096);
            (header_of.fin, header_of.syn) = (flags & FIN != 0, flags & SYN != 0);
            (header_of.rst, header_of.ack) = (flags & RST != 0, flags & ACK != 0);
            header_of.checksum =
                header_of.calc_checksum_ipv6_raw(source, destination, &self.payload).unwrap();
            header_of.to_bytes().to_vec()
        } else {
            UdpHeader::with_ipv6_checksum(from, to, &header, &self.payload).unwrap().to_bytes().to_vec()
        };
        transport.extend_from_slice(&self.payload);
        let transport_kind = if self.flags.is_some() { IpNumber::TCP.0 } else { IpNumber::UDP.0 };
        let mut kinds = self.extensions.iter().map(|(kind, _)| *kind).chain([transport_kind]);
        header.next_header = IpNumber(kinds.next().unwrap());
        let mut chain = Vec::new();
        for ((kind, content), next) in self.extensions.iter().zip(kinds) {
            let units = if *kind == 44 { 0 } else { (content.len() + 2) / 8 - 1 };
            chain.extend([next, units as u8]);
            chain.extend_from_slice(content);
        }
        header.payload_length = (chain.len() + transport.len()) as u16;
        [&self.link.concat(), &[0x86, 0xdd][..], &header.to_bytes(), &chain, &transport].concat()
    }
}

/// Connections, packets and bytes in, packets and bytes out, active, inactive of a destination.
pub fn counted(fixture: &mut Fixture, port: u16) -> [u64; 7] {
    let table = fixture.director.table().unwrap();
    let entry = table.entries.into_iter().find(|entry| match entry.service.service.key {
        xipvs::table::ServiceKey::Address { port: of_service, .. } => of_service == port,
        xipvs::table::ServiceKey::Mark { .. } => false,
    });
    let mut sum = [0; 7];
    for report in entry.unwrap().destinations {
        let stats = report.stats;
        let each = [
            stats.connections,
            stats.in_packets,
            stats.in_bytes,
            stats.out_packets,
            stats.out_bytes,
            report.active.into(),
            report.inactive.into(),
        ];
        sum.iter_mut().zip(each).for_each(|(sum, value)| *sum += value);
    }
    sum
}

#[track_caller]
fn redirects(fixture: &Fixture, what: &str, interface: u32, frame: &Frame, out: &[u8]) {
    let outcome = fixture.send(interface, &frame.bytes());
    assert_eq!((outcome.action, outcome.reason), (Action::Redirect, None), "{what}");
    assert_eq!(outcome.bytes, out, "{what}");
}

#[test]
fn marks_are_a_familys_own() {
    let mut fixture = Fixture::configured(
        "-A -f 7 -6 -s rr -p 300
         -a -f 7 -6 -r [fd00:2::11]:8080 -m
         -a -f 7 -6 -r [fd00:2::12]:8080 -m
         -A -f 7 -s rr
         -A -f 8 -6 -s rr
         -a -f 8 -6 -r [fd00:2::13]:8080 -m",
    );
    super::mark::marked(
        &mut fixture,
        &["7", "8 --protocol udp --destination fd00:9::/16 --source fd00:1::10 --interface clients"],
    );
    // Persistent: one template for all that has the mark, and the packet's port; else the destination's.
    let to = |fixture: &Fixture, frame: &Frame| {
        let outcome = fixture.send(CLIENTS, &frame.bytes());
        assert_eq!(outcome.action, Action::Redirect, "{outcome:?}");
        (outcome.bytes[14 + 39], u16::from_be_bytes([outcome.bytes[56], outcome.bytes[57]]))
    };
    assert_eq!(to(&fixture, &Frame::tcp(client(40000), at("fd00:9::1", 80), SYN)), (0x12, 80));
    assert_eq!(to(&fixture, &Frame::tcp(client(40001), at("fd00:9::2", 443), SYN)), (0x12, 443));
    assert_eq!(to(&fixture, &Frame::tcp(at("fd00:1::11", 1), at("fd00:9::1", 80), SYN)), (0x11, 80));
    assert_eq!(to(&fixture, &Frame::udp(client(40001), at("fd00:9::2", 53), b"?")), (0x13, 8080));
    assert_eq!(to(&fixture, &Frame::udp(at("fd00:1::11", 1), at("fd00:9::2", 53), b"?")), (0x11, 53));
    let rows = fixture.director.connections().unwrap();
    let templates: Vec<_> = rows.iter().filter(|row| row.protocol == "IP").collect();
    assert_eq!(templates.len(), 2, "{rows:?}");
    let [virtual_address, client] = ["0:7::", "fd00:1::10"].map(|text| text.parse::<IpAddr>().unwrap());
    let its = templates.iter().find(|row| row.client == client).unwrap_or_else(|| panic!("{templates:?}"));
    assert_eq!((its.virtual_address, its.virtual_port, its.destination_port), (virtual_address, 0, 0));
}

#[test]
fn a_conversation_is_translated_both_ways() {
    let mut fixture = Fixture::configured(WEB);
    let (client, vip, server) = (client(40000), vip(80), at("fd00:2::11", 8080));
    let segments = [(false, SYN), (true, SYN | ACK), (false, ACK), (false, ACK), (true, ACK), (true, ACK)];
    for (number, (out, flags)) in segments.into_iter().enumerate() {
        let what = format!("segment {number}");
        if out {
            let frame = Frame { payload: vec![7; 30 + number], ..Frame::tcp(server, client, flags) };
            redirects(&fixture, &what, SERVERS, &frame, &frame.sent(TO_CLIENT, vip, client));
        } else {
            let frame = Frame { payload: vec![5; number], ..Frame::tcp(client, vip, flags) };
            redirects(&fixture, &what, CLIENTS, &frame, &frame.sent(to_server(1), client, server));
        }
    }
    // 60 bytes of headers a segment, and the payloads.
    assert_eq!(counted(&mut fixture, 80), [1, 3, 185, 3, 280, 1, 0]);
    let listed = fixture.director.connections().unwrap();
    assert_eq!(listed.len(), 1);
    let report = &listed[0];
    assert_eq!((report.protocol.as_str(), report.state.as_str()), ("TCP", "ESTABLISHED"));
    assert_eq!(SocketAddr::new(report.client, report.client_port), client.into());
    assert_eq!(SocketAddr::new(report.virtual_address, report.virtual_port), vip.into());
    assert_eq!(SocketAddr::new(report.destination, report.destination_port), server.into());
}

#[test]
fn connections_of_another_director_go_on() {
    let mut fixture = Fixture::configured(WEB);
    fixture.ipvsadm("-E -t [fd00:1::100]:80 -s rr -p 300 -M 64");
    let listed = |from: SocketAddrV6, virtual_port, to: SocketAddrV6, state: &str| ConnectionReport {
        protocol: "TCP".into(),
        client: (*from.ip()).into(),
        client_port: from.port(),
        virtual_address: (*vip(0).ip()).into(),
        virtual_port,
        destination: (*to.ip()).into(),
        destination_port: to.port(),
        state: state.into(),
        expires: 100,
        engine: None,
    };
    let (nat, direct) = (at("fd00:2::11", 8080), at("fd00:2::12", 81));
    let mut all = [
        listed(client(40000), 80, nat, "ESTABLISHED"),
        listed(client(40001), 81, direct, "FIN_WAIT"),
        listed(at("fd00:1::", 0), 80, nat, "ASSURED"),
    ];
    let takeover = fixture.director.adopt(&all).unwrap();
    assert_eq!((takeover.taken, takeover.known, takeover.left.len()), (3, 0, 0));
    let mut told = fixture.director.connections().unwrap();
    told.sort_by_key(|connection| connection.client_port);
    all.sort_by_key(|connection| connection.client_port);
    let told = told.into_iter().map(|report| ConnectionReport { expires: 100, ..report });
    assert_eq!(told.collect::<Vec<_>>(), all);

    let frame = Frame::tcp(client(40000), vip(80), ACK);
    redirects(&fixture, "nat", CLIENTS, &frame, &frame.sent(to_server(1), client(40000), nat));
    let frame = Frame::tcp(nat, client(40000), ACK);
    redirects(&fixture, "nat answer", SERVERS, &frame, &frame.sent(TO_CLIENT, vip(80), client(40000)));
    let frame = Frame::tcp(client(40001), vip(81), ACK);
    redirects(&fixture, "direct", CLIENTS, &frame, &frame.sent(to_server(2), client(40001), vip(81)));
    assert_eq!(counted(&mut fixture, 80)[5..], [1, 0]);
    assert_eq!(counted(&mut fixture, 81)[5..], [0, 1]);
    // The template's time is over, but not that of the connection that it controls.
    fixture.wait(102_000);
    assert_eq!(fixture.director.connections().unwrap().len(), 3);
}

#[test]
fn datagrams_are_translated_and_never_lose_their_checksum() {
    let mut fixture = Fixture::configured(WEB);
    let server = at("fd00:2::11", 5353);
    for number in 0..200u16 {
        let from = client(41000 + number % 3);
        let frame = Frame::udp(from, vip(53), &[number as u8; 9]);
        redirects(&fixture, "query", CLIENTS, &frame, &frame.sent(to_server(1), from, server));
        let frame = Frame::udp(server, from, &[0xff, number as u8]);
        redirects(&fixture, "answer", SERVERS, &frame, &frame.sent(TO_CLIENT, vip(53), from));
    }
    assert_eq!(counted(&mut fixture, 53), [3, 200, 200 * 57, 200, 200 * 50, 0, 3]);
}

#[test]
fn direct_routing_changes_the_link_alone_and_answers_that_pass_by_are_counted() {
    let mut fixture = Fixture::configured(WEB);
    let from = client(40000);
    for flags in [SYN, ACK, ACK] {
        let frame = Frame::tcp(from, vip(81), flags);
        redirects(&fixture, "in", CLIENTS, &frame, &frame.sent(to_server(2), from, vip(81)));
    }
    let answer = Frame::tcp(vip(81), from, ACK).bytes();
    let outcome = fixture.send(SERVERS, &answer);
    assert_eq!((outcome.reason, outcome.bytes), (Some(Reason::DirectReply), answer));
    assert_eq!(counted(&mut fixture, 81), [1, 3, 180, 1, 60, 1, 0]);
}

#[test]
fn an_answer_that_goes_to_where_a_service_is_opens_nothing() {
    let mut fixture = Fixture::configured(WEB);
    // The client has the virtual address itself, and a service's port.
    let from = vip(80);
    let frame = Frame::tcp(from, vip(81), SYN);
    redirects(&fixture, "in", CLIENTS, &frame, &frame.sent(to_server(2), from, vip(81)));
    let answer = Frame::tcp(vip(81), from, SYN).bytes();
    let outcome = fixture.send(SERVERS, &answer);
    assert_eq!((outcome.reason, outcome.bytes), (Some(Reason::DirectReply), answer));
    assert_eq!(counted(&mut fixture, 81), [1, 1, 60, 1, 60, 1, 0]);
    assert_eq!(counted(&mut fixture, 80), [0; 7]);
}

#[test]
fn extension_headers_stay_where_they_are() {
    let fixture = Fixture::configured(WEB);
    let server = at("fd00:2::11", 8080);
    let chains: [&[(u8, usize)]; 4] =
        [&[(0, 6)], &[(60, 14)], &[(0, 6), (43, 22), (60, 6)], &[(0, 6), (44, 6), (60, 30)]];
    for (number, chain) in chains.into_iter().enumerate() {
        let from = client(42000 + number as u16);
        let extensions: Vec<_> = chain.iter().map(|(kind, length)| (*kind, vec![0; *length])).collect();
        for flags in [SYN, ACK, ACK] {
            let frame = Frame { extensions: extensions.clone(), ..Frame::tcp(from, vip(80), flags) };
            let out = frame.sent(to_server(1), from, server);
            redirects(&fixture, &format!("{chain:?}"), CLIENTS, &frame, &out);
        }
    }
    let from = client(43000);
    let long = vec![(60, vec![0; 6]); 5];
    let frame = Frame { extensions: long, ..Frame::tcp(from, vip(80), SYN) };
    assert_eq!(fixture.send(CLIENTS, &frame.bytes()).reason, Some(Reason::ExtensionHeaders));
}

/// A frame in pieces, which end behind so many bytes of what the fragment header, its last one, is put in front of.
fn pieces(whole: &[u8], header: usize, identification: u32, ends: &[usize]) -> Vec<Vec<u8>> {
    // The byte that says what follows, and where that begins.
    let (kind, body) = if header == 0 { (20, 54) } else { (54, 54 + header) };
    let rest = &whole[body..];
    let starts = [0].into_iter().chain(ends.iter().copied());
    let ends = ends.iter().copied().chain([rest.len()]);
    let piece = |(from, to): (usize, usize)| {
        let place = from as u16 | u16::from(to != rest.len());
        let mut piece = whole[..body].to_vec();
        piece.extend([piece[kind], 0]);
        piece[kind] = 44;
        piece.extend(place.to_be_bytes());
        piece.extend(identification.to_be_bytes());
        piece.extend(&rest[from..to]);
        let length = (piece.len() - 54) as u16;
        piece[18..20].copy_from_slice(&length.to_be_bytes());
        piece
    };
    starts.zip(ends).map(piece).collect()
}

#[test]
fn fragments_go_where_the_first_one_goes() {
    let mut fixture = Fixture::configured(WEB);
    let real = at("fd00:2::11", 5353);
    let send = |interface, pieces: &[Vec<u8>], out: &[Vec<u8>]| {
        for number in [0, 3, 1, 2] {
            let outcome = fixture.send(interface, &pieces[number]);
            assert_eq!((outcome.action, outcome.reason), (Action::Redirect, None), "piece {number}");
            assert_eq!(outcome.bytes, out[number], "piece {number}");
        }
    };
    let cut = |bytes: &[u8], header| pieces(bytes, header, 77, &[1000, 1008, 2400]);
    for (header, extensions) in [(0, vec![]), (16, vec![(0, vec![0; 14])])] {
        let from = client(40000 + header as u16);
        let query = Frame { extensions, ..Frame::udp(from, vip(53), &[0xee; 3000]) };
        let out = query.sent(to_server(1), from, real);
        send(CLIENTS, &cut(&query.bytes(), header), &cut(&out, header));
        let answer = Frame { source: real, destination: from, ..query.clone() };
        let out = answer.sent(TO_CLIENT, vip(53), from);
        send(SERVERS, &cut(&answer.bytes(), header), &cut(&out, header));
    }
    // Datagrams are counted, and whole.
    assert_eq!(counted(&mut fixture, 53), [2, 2, 2 * 3048 + 16, 2, 2 * 3048 + 16, 0, 2]);
    let other = pieces(&Frame::udp(client(40000), vip(53), &[0xee; 3000]).bytes(), 0, 78, &[1000]);
    assert_eq!(fixture.send(CLIENTS, &other[1]).reason, Some(Reason::Fragment));
    let direct = Frame::tcp(client(40000), vip(81), SYN);
    let direct = Frame { payload: vec![1; 600], ..direct };
    let sent = direct.sent(to_server(2), client(40000), vip(81));
    for (piece, out) in pieces(&direct.bytes(), 0, 79, &[400]).iter().zip(pieces(&sent, 0, 79, &[400])) {
        let outcome = fixture.send(CLIENTS, piece);
        assert_eq!((outcome.action, outcome.bytes), (Action::Redirect, out));
    }
}

#[test]
fn clients_are_hashed_as_the_kernel_hashes_them() {
    let mut fixture = Fixture::configured(WEB);
    // Newest first, one bucket each in turn.
    let servers = ["fd00:2::13", "fd00:2::12", "fd00:2::11"];
    for last in [0x10u16, 0x11, 0x12, 0x2f, 0x1234, 0xfffe] {
        let address = Ipv6Addr::new(0xfd00, 1, 0, 0, 0, 0, 0, last);
        let from = SocketAddrV6::new(address, 40000, 0, 0);
        let key = lb_common::scheduler::address::key_v6(address.octets());
        let position = lb_common::scheduler::sh::bucket(key, 0) as usize % 3;
        fixture.send(CLIENTS, &Frame::tcp(from, vip(82), SYN).bytes());
        let all = fixture.director.connections().unwrap();
        let of_client = all.iter().find(|row| row.client == IpAddr::V6(address));
        assert_eq!(
            of_client.map(|row| row.destination),
            Some(servers[position].parse().unwrap()),
            "{address}"
        );
    }
}

#[test]
fn clients_of_one_network_stay_with_one_destination() {
    let mut fixture = Fixture::configured(
        "-A -t [fd00:1::100]:83 -s rr -p 60 -M 64
         -a -t [fd00:1::100]:83 -r [fd00:2::11]:83 -m
         -a -t [fd00:1::100]:83 -r [fd00:2::12]:83 -m
         -a -t [fd00:1::100]:83 -r [fd00:2::13]:83 -m",
    );
    for (number, network) in (0u16..).zip([0xa, 0xb, 0xc, 0xd]) {
        for host in 1..=5 {
            let from = SocketAddrV6::new(Ipv6Addr::new(0xfd00, 9, 0, network, 0, 0, 0, host), 40000, 0, 0);
            // Newest first, and round again.
            let server = 3 - number % 3;
            let frame = Frame::tcp(from, vip(83), SYN);
            let out = frame.sent(to_server(server as u8), from, at(&format!("fd00:2::1{server}"), 83));
            redirects(&fixture, &format!("{network:x}:{host}"), CLIENTS, &frame, &out);
        }
    }
    let listed = fixture.director.connections().unwrap();
    let templates: Vec<_> = listed.iter().filter(|connection| connection.client_port == 0).collect();
    assert_eq!((listed.len(), templates.len()), (24, 4));
    assert!(templates.iter().any(|template| template.client == "fd00:9:0:b::".parse::<IpAddr>().unwrap()));
    // Templates end with the connections that they control, and a minute later at most.
    for seconds in [61_000, 61_000] {
        fixture.wait(seconds);
        fixture.sweep();
    }
    assert!(fixture.director.maps().entries().unwrap().is_empty());
}

#[test]
fn what_cannot_go_on_says_why() {
    let mut fixture = Fixture::configured(WEB);
    fixture.ipvsadm("-A -t [fd00:1::100]:90 -s rr");
    let from = client(40000);
    let syn = |to| Frame::tcp(from, to, SYN);
    let rows = [
        ("no service", syn(vip(99)), Reason::NoService),
        ("nobody's address", Frame::tcp(from, at("fd00:9::1", 80), SYN), Reason::NotOurs),
        ("no destination", syn(vip(90)), Reason::NoDestination),
        ("no connection", Frame::tcp(from, vip(80), ACK), Reason::NoConnection),
        ("the last hop", Frame { hop_limit: 1, ..syn(vip(80)) }, Reason::TimeExceeded),
    ];
    for (what, frame, reason) in rows {
        let frame = frame.bytes();
        let outcome = fixture.send(CLIENTS, &frame);
        assert_eq!(outcome.reason, Some(reason), "{what}");
        if outcome.action == Action::Pass {
            assert_eq!(outcome.bytes, frame, "{what}");
        }
    }
    let whole = syn(vip(80)).bytes();
    for length in 14..whole.len() {
        assert_eq!(fixture.send(CLIENTS, &whole[..length]).reason, Some(Reason::Malformed), "{length} bytes");
    }
}

#[test]
fn a_flow_that_looks_alike_to_the_table_is_not_taken_for_another() {
    let fixture = Fixture::configured(WEB);
    let from = client(40000);
    for flags in [SYN, ACK] {
        fixture.send(CLIENTS, &Frame::tcp(from, vip(80), flags).bytes());
    }
    // Another flow in the line beside the entry is what two flows with the same handles would see.
    fixture.change_addresses(|addresses| addresses.source[1] ^= 1);
    let outcome = fixture.send(CLIENTS, &Frame::tcp(from, vip(80), ACK).bytes());
    assert_eq!((outcome.action, outcome.reason), (Action::Drop, Some(Reason::LooksAlike)));
}

#[test]
fn idle_connections_end_in_both_directions() {
    let mut fixture = Fixture::configured(WEB);
    for port in 40000..40050 {
        fixture.send(CLIENTS, &Frame::tcp(client(port), vip(80), SYN).bytes());
    }
    assert_eq!(fixture.director.maps().entries().unwrap().len(), 100);
    fixture.wait(61_000);
    fixture.sweep();
    assert!(fixture.director.maps().entries().unwrap().is_empty());
    assert_eq!(counted(&mut fixture, 80)[5..], [0, 0]);
}
