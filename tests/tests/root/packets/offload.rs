//! Checksums that senders have left to a veth: what goes out is what goes out of a packet that had its checksum.

use etherparse::checksum::Sum16BitWords;
use lb_common::reason::Reason;

use super::fixture::{Action, CLIENTS, Fixture, VIP, client};
use super::frame::{ACK, Frame, PSH, SYN};
use super::ipv6;

/// Bytes of the note before a packet of which the checksum was computed.
const NOTE: usize = 8;
const ETHERNET: usize = 14;

/// Where the segment of a frame without tags and options begins, where its checksum stands, and the sum of its pseudo-header.
fn segment(bytes: &[u8]) -> (usize, usize, Sum16BitWords) {
    let packet = &bytes[ETHERNET..];
    let (header, protocol, addresses) =
        if packet[0] >> 4 == 4 { (20, packet[9], &packet[12..20]) } else { (40, packet[6], &packet[8..40]) };
    let length = ((packet.len() - header) as u16).to_be_bytes();
    let start = ETHERNET + header;
    let place = start + if protocol == 6 { 16 } else { 6 };
    (start, place, Sum16BitWords::new().add_slice(addresses).add_slice(&[0, protocol]).add_slice(&length))
}

/// The frame as a sender leaves it that leaves the checksum to others.
fn left(bytes: &[u8]) -> Vec<u8> {
    let (_, place, pseudo) = segment(bytes);
    let mut bytes = bytes.to_vec();
    bytes[place..place + 2].copy_from_slice(&(!pseudo.ones_complement()).to_le_bytes());
    bytes
}

const SERVICES: &str = "-A -t 192.168.1.100:80 -s rr
    -a -t 192.168.1.100:80 -r 10.0.0.11:8080 -m
    -A -t 192.168.1.100:81 -s rr
    -a -t 192.168.1.100:81 -r 10.0.0.12 -g
    -A -t 192.168.1.100:82 -s rr
    -a -t 192.168.1.100:82 -r 10.0.0.11 -i
    -A -t 192.168.1.100:83 -s rr
    -a -t 192.168.1.100:83 -r 10.0.0.11 -i --tun-type gue --tun-port 6080 --tun-csum
    -A -u 192.168.1.100:53 -s rr
    -a -u 192.168.1.100:53 -r 10.0.0.11:5353 -m";

#[test]
fn what_was_left_is_computed_by_every_method() {
    let mut fixture = Fixture::configured(SERVICES);
    fixture.ipvsadm(ipv6::WEB);
    let mut frames: Vec<(Vec<u8>, Vec<u8>)> = Vec::new();
    for length in [1, 32, 33, 63, 1000, 1399] {
        let payload: Vec<u8> = (0..length).map(|number| (number * 7 / 3) as u8).collect();
        for port in 80..84 {
            let mut vip = VIP;
            vip.set_port(port);
            let syn = Frame::tcp(client(40000), vip, SYN);
            let data = Frame::tcp(client(40000), vip, ACK | PSH).payload(payload.clone());
            frames.push((syn.bytes(), data.bytes()));
        }
        let mut names = VIP;
        names.set_port(53);
        let datagram = Frame::udp(client(40000), names).payload(payload.clone());
        frames.push((datagram.bytes(), datagram.bytes()));
        let datagram = ipv6::Frame::udp(ipv6::client(40000), ipv6::vip(53), &payload);
        frames.push((datagram.bytes(), datagram.bytes()));
        for port in [80, 81] {
            let syn = ipv6::Frame::tcp(ipv6::client(40000), ipv6::vip(port), SYN);
            let data = ipv6::Frame { payload: payload.clone(), flags: Some(ACK | PSH), ..syn.clone() };
            frames.push((syn.bytes(), data.bytes()));
        }
    }
    for (first, data) in frames {
        fixture.send_by_veth(CLIENTS, &left(&first));
        let wanted = fixture.send(CLIENTS, &data);
        assert_eq!(wanted.action, Action::Redirect);
        // What GUE makes of ports is a random number, and the inner packet is at the end.
        let compared = data.len() - ETHERNET;
        let tail = |bytes: &[u8]| bytes[bytes.len() - compared..].to_vec();
        for frame in [left(&data), data.clone()] {
            let outcome = fixture.send_by_veth(CLIENTS, &frame);
            let note = if frame == data { 0 } else { NOTE };
            assert_eq!((outcome.action, outcome.bytes.len()), (Action::Redirect, wanted.bytes.len() + note));
            assert_eq!(tail(&outcome.bytes), tail(&wanted.bytes));
        }
    }
}

#[test]
fn what_only_looks_as_if_it_was_left_stays() {
    let fixture = Fixture::configured(SERVICES);
    fixture.send(CLIENTS, &Frame::tcp(client(40000), VIP, SYN).bytes());
    let same = |frame: &[u8]| {
        let [wanted, outcome] = [fixture.send(CLIENTS, frame), fixture.send_by_veth(CLIENTS, frame)];
        assert_eq!((wanted.action, &wanted.bytes), (outcome.action, &outcome.bytes));
    };
    let frame = Frame::tcp(client(40000), VIP, ACK).payload([7; 40]).bytes();
    // A payload that gives it that very checksum.
    let mut lucky = left(&frame);
    let (start, _, pseudo) = segment(&lucky);
    let last = lucky.len() - 2;
    lucky[last..].fill(0);
    let word = pseudo.add_slice(&lucky[start..]).ones_complement().to_le_bytes();
    lucky[last..].copy_from_slice(&word);
    same(&lucky);
    // A wrong one.
    let mut wrong = frame.clone();
    wrong[segment(&frame).1] ^= 1;
    same(&wrong);
    // Something behind it, as the padding of a wire.
    same(&[&left(&frame)[..], &[0; 4]].concat());
    // A fragment.
    let mut fragment = left(&frame);
    fragment[ETHERNET + 6] = 0x20;
    same(&fragment);
}

#[test]
fn what_passes_has_a_note() {
    let fixture = Fixture::configured(SERVICES);
    let mut elsewhere = VIP;
    elsewhere.set_port(99);
    let frame = Frame::tcp(client(40000), elsewhere, SYN).bytes();
    let outcome = fixture.send_by_veth(CLIENTS, &left(&frame));
    assert_eq!((outcome.action, outcome.reason), (Action::Pass, Some(Reason::NoService)));
    let lengths = u32::from_ne_bytes(outcome.bytes[4..NOTE].try_into().unwrap());
    assert_eq!((lengths >> 16, lengths & 0xffff), (20, 20));
    assert_eq!(outcome.bytes[NOTE..], frame);
}
