//! The recorded commands of `tests/golden` on the memory director: every byte must be the same.
//!
//! What cannot run there is counted, and what differs on purpose is left out with its reason. Nothing else is: a record left
//! out that would pass, or that is not in the corpus, fails the test.

use std::collections::BTreeMap;

use tests::golden::{LEFT_OUT, cases, host, names, run};
use xipvs::director::memory::Memory;
use xipvs::table::{ConnectionReport, Stats};

#[test]
fn the_recorded_commands_do_the_same_here() {
    let names = names().unwrap();
    let (mut ran, mut unstable, mut elsewhere, mut different) = (0, 0, 0, Vec::new());
    let mut left_out: BTreeMap<(String, u32), bool> = BTreeMap::new();
    for case in cases().unwrap() {
        let mut memory = Memory::new(host(&case[0].pre).unwrap());
        for record in case {
            if !record.is_command_line() {
                elsewhere += 1;
                continue;
            }
            if let Some(stats) = record.env.get("FAKE_STATS") {
                memory.set_stats(stats_of(stats));
            }
            memory.permitted = record.user.is_none();
            let difference = record.difference(&record.run(&mut memory, &names));
            if record.unstable.is_some() {
                unstable += 1;
            } else if record.is_left_out() {
                left_out.insert((record.case, record.step), difference.is_some());
            } else {
                ran += 1;
                different.extend(difference);
            }
        }
    }
    println!(
        "{ran} commands ran, {unstable} more differ from run to run in the kernel, {elsewhere} need more, \
         {} left out",
        left_out.len()
    );
    for text in different.iter().take(40) {
        println!("{text}");
    }
    assert!(different.is_empty(), "{} of {ran} commands differ", different.len());
    assert!(ran > 6500, "only {ran} commands ran");
    for (case, steps, reason) in LEFT_OUT {
        for step in *steps {
            let differs = left_out.get(&((*case).into(), *step));
            assert_eq!(differs, Some(&true), "{case} {step} need not be left out: {reason}");
        }
    }
}

/// What a program printed of its connections, numerically, is read, and printed again in each form.
#[test]
fn recorded_connections_are_listed_the_same_here() {
    let names = names().unwrap();
    let (mut ran, mut lines) = (0, 0);
    for case in cases().unwrap() {
        let mut memory = Memory::default();
        for record in case.iter().filter(|record| record.case.starts_with("traffic/")) {
            let argv: Vec<&str> = record.argv.iter().flatten().map(String::as_str).collect();
            let recorded = record.stdout_raw.as_ref().unwrap_or(&record.stdout);
            if argv == ["ipvsadm", "-Lnc"] {
                memory.connections = recorded.lines().skip(2).map(connection).collect();
            } else if argv != ["ipvsadm", "-Lc"] {
                continue;
            }
            let printed = run(&argv, "", &mut memory, &names);
            assert_eq!(printed.status, 0);
            if argv[1] == "-Lnc" {
                assert_eq!(printed.stdout, *recorded, "{} {}", record.case, record.step);
            } else {
                // The named listing was made a little later, and in any order.
                let (here, there) = (timeless(&printed.stdout), timeless(recorded));
                assert_eq!(here, there, "{} {}", record.case, record.step);
            }
            ran += 1;
            lines += recorded.lines().count() - 2;
        }
    }
    println!("{ran} listings, {lines} connections");
    assert!(ran >= 15 && lines >= 20, "only {ran} listings with {lines} connections");
}

/// The lines of a listing without their times, in alphabetical order.
fn timeless(listing: &str) -> Vec<String> {
    let mut lines: Vec<String> = listing
        .lines()
        .map(|line| {
            let words = line.split(' ').enumerate();
            words.map(|(index, word)| if index == 1 { "" } else { word }).collect::<Vec<_>>().join(" ")
        })
        .collect();
    lines.sort();
    lines
}

/// A connection from its line in a numeric listing.
fn connection(line: &str) -> ConnectionReport {
    let words: Vec<&str> = line.split_whitespace().collect();
    let [protocol, expires, state, client, service, destination] = words[..] else { panic!("{line}") };
    let (minutes, seconds) = expires.split_once(':').unwrap();
    let ends = [client, service, destination].map(|end| {
        let (address, port) = end.rsplit_once(':').unwrap();
        (address.trim_matches(['[', ']']).parse().unwrap(), port.parse().unwrap())
    });
    ConnectionReport {
        protocol: protocol.into(),
        client: ends[0].0,
        client_port: ends[0].1,
        virtual_address: ends[1].0,
        virtual_port: ends[1].1,
        destination: ends[2].0,
        destination_port: ends[2].1,
        state: state.into(),
        expires: minutes.parse::<u32>().unwrap() * 60 + seconds.parse::<u32>().unwrap(),
        engine: None,
    }
}

/// The counters of group "numbers": five counters and five rates.
fn stats_of(text: &str) -> Stats {
    let values: Vec<u64> = text.split(',').map(|value| value.parse().unwrap()).collect();
    Stats {
        connections: values[0],
        in_packets: values[1],
        out_packets: values[2],
        in_bytes: values[3],
        out_bytes: values[4],
        connection_rate: values[5],
        in_packet_rate: values[6],
        out_packet_rate: values[7],
        in_byte_rate: values[8],
        out_byte_rate: values[9],
    }
}
