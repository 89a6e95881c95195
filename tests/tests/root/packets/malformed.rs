//! Frames that end early, contradict themselves or are none of our business: passed as they came, counted by name.

use std::net::{Ipv4Addr, SocketAddrV4};

use lb_common::reason::Reason;

use super::fixture::{Action, CLIENTS, Counted, Expected, Fixture, SERVERS, VIP, client, server, to_server};
use super::frame::{ACK, Change, Frame, SYN};

fn configured() -> Fixture {
    Fixture::configured(
        "-A -t 192.168.1.100:80 -s rr
         -a -t 192.168.1.100:80 -r 10.0.0.11:80 -m
         -A -u 192.168.1.100:80 -s rr
         -a -u 192.168.1.100:80 -r 10.0.0.12:80 -g",
    )
}

/// Expects frames to be passed untouched for a reason, and nothing to be counted.
#[track_caller]
fn passes(fixture: &mut Fixture, what: &str, frame: &[u8], reason: Reason) {
    let outcome = fixture.send(CLIENTS, frame);
    assert_eq!((outcome.action, outcome.reason), (Action::Pass, Some(reason)), "{what}");
    assert_eq!(outcome.bytes, frame, "{what}");
}

#[test]
fn cut_off_anywhere_it_passes() {
    let mut fixture = configured();
    let established = Frame::tcp(client(50000), VIP, SYN);
    fixture.send(CLIENTS, &established.bytes());
    let before = fixture.counted();
    let plain = [
        Frame::tcp(client(40000), VIP, SYN).payload([0; 20]),
        Frame::udp(client(40000), VIP),
        Frame::tcp(client(50000), VIP, ACK),
    ];
    let changes: [Change; 4] = [
        |frame| frame,
        |frame| frame.tagged(0x8100, 7),
        |frame| frame.tagged(0x88a8, 7).tagged(0x8100, 7),
        |frame| frame.tagged(0x8100, 7).options([1; 40]),
    ];
    for frame in plain {
        for change in changes {
            let whole = change(frame.clone()).bytes();
            // Shorter than an Ethernet header no frame gets here.
            for length in 14..whole.len() {
                let what = format!("{length} of {}", whole.len());
                passes(&mut fixture, &what, &whole[..length], Reason::Malformed);
            }
        }
    }
    assert_eq!(fixture.counted(), before);
}

#[test]
fn padding_behind_the_packet_is_kept_and_not_counted() {
    let mut fixture = configured();
    let syn = Frame::tcp(client(40000), VIP, SYN);
    let mut wanted = syn.clone().destination(server(1, 80)).sent(to_server(1)).bytes();
    let mut padded = syn.bytes();
    for bytes in [&mut wanted, &mut padded] {
        bytes.resize(60, 0xee);
    }
    assert_eq!(fixture.send(CLIENTS, &padded).bytes, wanted);
    assert_eq!(fixture.counted()[&server(1, 80)], Counted::opened(&syn));
}

#[test]
fn nonsense_passes() {
    use Reason::{Fragment, Icmp, Malformed, NotIp, OtherProtocol};
    let mut fixture = configured();
    let before = fixture.counted();
    // Bytes of the frame to overwrite, with what, and the reason. The IPv4 header begins at 14.
    let rows: [(&str, usize, &[u8], Reason); 17] = [
        ("ARP", 12, &[0x08, 0x06], NotIp),
        ("IPv4 that claims to be IPv6", 12, &[0x86, 0xdd], Malformed),
        ("a length for a type", 12, &[0x00, 0x40], NotIp),
        ("version 6", 14, &[0x65], Malformed),
        ("version 0", 14, &[0x05], Malformed),
        ("a header of no words", 14, &[0x40], Malformed),
        ("a header of four words", 14, &[0x44], Malformed),
        ("a header beyond the packet", 14, &[0x4f], Malformed),
        ("no length", 16, &[0, 0], Malformed),
        ("a length that ends in the header", 16, &[0, 19], Malformed),
        ("a length that ends in the ports", 16, &[0, 24], Malformed),
        ("a length beyond the frame", 16, &[0, 61], Malformed),
        ("the longest length", 16, &[0xff, 0xff], Malformed),
        ("a later fragment", 20, &[0x20, 185], Fragment),
        ("a last fragment", 20, &[0, 185], Fragment),
        ("ICMP", 23, &[1], Icmp),
        ("ESP", 23, &[50], OtherProtocol),
    ];
    for (what, at, bytes, reason) in rows {
        let mut frame = Frame::tcp(client(40000), VIP, SYN).payload([0; 20]).bytes();
        frame[at..at + bytes.len()].copy_from_slice(bytes);
        passes(&mut fixture, what, &frame, reason);
    }
    let tagged = Frame::tcp(client(40000), VIP, SYN).tagged(0x88a8, 1).tagged(0x8100, 2).tagged(0x8100, 3);
    passes(&mut fixture, "three tags", &tagged.bytes(), NotIp);
    assert_eq!(fixture.counted(), before);
    assert!(fixture.states().is_empty());
}

#[test]
fn what_is_not_ours_passes() {
    let mut fixture = configured();
    let elsewhere = SocketAddrV4::new(Ipv4Addr::new(192, 0, 2, 1), 80);
    let rows = [
        ("between strangers", Frame::tcp(client(40000), elsewhere, SYN), Reason::NotOurs),
        ("to a destination", Frame::tcp(client(40000), server(1, 80), SYN), Reason::NoService),
        ("from a destination", Frame::tcp(server(1, 80), elsewhere, SYN), Reason::NoReplyConnection),
        ("from the virtual address", Frame::udp(VIP, elsewhere), Reason::NoReplyConnection),
    ];
    for (what, frame, reason) in rows {
        fixture.expect(what, SERVERS, &frame, Expected::Pass(reason), &[]);
    }
}
