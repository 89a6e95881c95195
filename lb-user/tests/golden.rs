//! Runs the recorded commands of `tests/golden` on the memory director and compares every byte.
//!
//! What cannot run there, or differs on purpose, is in [`LEFT_OUT`] with its reason, and nothing else is:
//! a listed record that would pass, or that is not in the corpus, fails the test.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};

use serde::Deserialize;
use xipvs::cli::names::FileNames;
use xipvs::cli::{Streams, run};
use xipvs::director::memory::{Host, Interface, Memory};
use xipvs::table::{ConnectionReport, Stats};

/// Records that are not compared: the case, its steps (all if none are named), and why.
const LEFT_OUT: &[(&str, &[u32], &str)] = &[
    ("add-service/fwmark-max32", &[1, 2], MARKS),
    ("listing/sort-wraps-fwmark", &[1], MARKS),
    ("save-restore/high-fwmark-round-trip", &[1], MARKS),
    ("add-service/b-comma", &[0, 1, 2], "a list of no flags is no flags, not a crash"),
    ("numbers/m-boundary", &[4, 5], COUNTERS),
    ("numbers/g-boundary", &[2, 3, 4, 5, 6, 7, 8, 9], COUNTERS),
    ("save-restore/sh-flag3-round-trip", &[1], "no -b without flags to name, which could not be restored"),
    ("save-restore/restore-final-space-no-newline", &[3], LAST_LINE),
    ("generated/2-43", &[2], LAST_LINE),
    ("generated/2-74", &[5, 6], MARKS),
    ("generated/2-84", &[7, 8], MARKS),
];

/// A reason in [`LEFT_OUT`].
const MARKS: &str = "marks above 2147483647 are not negative";
/// A reason in [`LEFT_OUT`].
const LAST_LINE: &str = "a last line that ends in blanks is not lost";
/// A reason in [`LEFT_OUT`].
const COUNTERS: &str = "servers' counters are not cut to 32 bits";

/// Groups and programs that need more than a table in memory.
fn needs_more(record: &Record) -> Option<&'static str> {
    if record.case.starts_with("traffic/") {
        Some("needs packets")
    } else if record.argv.as_ref().is_none_or(|argv| argv[0] == "cat") {
        Some("reads /proc")
    } else {
        None
    }
}

#[derive(Deserialize)]
struct Record {
    case: String,
    step: u32,
    argv: Option<Vec<String>>,
    stdin: Option<String>,
    #[serde(default)]
    stdout: String,
    #[serde(default)]
    stderr: String,
    #[serde(default)]
    status: u8,
    #[serde(default)]
    pre: Vec<String>,
    user: Option<String>,
    unstable: Option<String>,
    stdout_raw: Option<String>,
    note: Option<String>,
    #[serde(default)]
    env: BTreeMap<String, String>,
}

#[test]
fn the_recorded_commands_do_the_same_here() {
    let folder = folder();
    let names = names();
    let mut files: Vec<_> = std::fs::read_dir(&folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "jsonl"))
        .collect();
    files.sort();

    let (mut ran, mut unstable, mut elsewhere, mut different) = (0, 0, 0, Vec::new());
    let mut left_out: BTreeMap<(&str, u32), bool> = BTreeMap::new();
    for file in &files {
        let records = records(file);
        for case in records.chunk_by(|a, b| a.case == b.case) {
            let mut memory = Memory::new(host(&case[0].pre));
            for record in case {
                if needs_more(record).is_some() {
                    elsewhere += 1;
                    continue;
                }
                let difference = difference(&mut memory, record, &names);
                if record.unstable.is_some() {
                    unstable += 1;
                    continue;
                }
                match LEFT_OUT
                    .iter()
                    .find(|row| row.0 == record.case && (row.1.is_empty() || row.1.contains(&record.step)))
                {
                    Some(row) => {
                        left_out.insert((row.0, record.step), difference.is_some());
                    }
                    None => {
                        ran += 1;
                        different.extend(difference);
                    }
                }
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
    assert!(ran > 3000, "only {ran} commands ran");
    for (case, steps, _) in LEFT_OUT {
        let mut found = left_out.iter().filter(|(key, _)| key.0 == *case);
        if steps.is_empty() {
            assert!(found.any(|(_, differs)| *differs), "{case} need not be left out");
        }
        for step in *steps {
            assert_eq!(left_out.get(&(*case, *step)), Some(&true), "{case} {step} need not be left out");
        }
    }
}

/// What a program printed of its connections, numerically, is read, and printed again in each form.
#[test]
fn recorded_connections_are_listed_the_same_here() {
    let names = names();
    let (mut ran, mut lines) = (0, 0);
    let records = records(&folder().join("traffic.jsonl"));
    for case in records.chunk_by(|a, b| a.case == b.case) {
        let mut memory = Memory::default();
        for record in case {
            let argv: Vec<&str> = record.argv.iter().flatten().map(String::as_str).collect();
            let recorded = record.stdout_raw.as_ref().unwrap_or(&record.stdout);
            if argv == ["ipvsadm", "-Lnc"] {
                memory.connections = recorded.lines().skip(2).map(connection).collect();
            } else if argv != ["ipvsadm", "-Lc"] {
                continue;
            }
            let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
            let mut streams = Streams { stdin: &mut &b""[..], stdout: &mut stdout, stderr: &mut stderr };
            let argv: Vec<OsString> = argv.iter().map(OsString::from).collect();
            assert_eq!(run(&argv, &mut streams, &mut memory, &names), 0);
            let stdout = String::from_utf8(stdout).unwrap();
            if argv[1] == "-Lnc" {
                assert_eq!(stdout, *recorded, "{} {}", record.case, record.step);
            } else {
                // The named listing was made a little later, and in any order.
                assert_eq!(timeless(&stdout), timeless(recorded), "{} {}", record.case, record.step);
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
        (address.trim_matches(['[', ']']).parse::<IpAddr>().unwrap(), port.parse().unwrap())
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

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden")
}

fn names() -> FileNames {
    let read = |name: &str| std::fs::read_to_string(folder().join(name)).unwrap();
    FileNames::parse(&read("hosts"), &read("services"))
}

fn records(file: &Path) -> Vec<Record> {
    let text = std::fs::read_to_string(file).unwrap();
    text.lines().map(|line| serde_json::from_str(line).expect("a record")).collect()
}

/// Runs one record and says how its output differs, if it does.
fn difference(memory: &mut Memory, record: &Record, names: &FileNames) -> Option<String> {
    if let Some(stats) = record.env.get("FAKE_STATS") {
        memory.set_stats(stats_of(stats));
    }
    let argv: Vec<OsString> = record.argv.iter().flatten().map(OsString::from).collect();
    let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
    let mut stdin = record.stdin.as_deref().unwrap_or_default().as_bytes();
    let mut streams = Streams { stdin: &mut stdin, stdout: &mut stdout, stderr: &mut stderr };
    memory.permitted = record.user.is_none();
    let status = run(&argv, &mut streams, memory, names);
    let mut stdout = String::from_utf8(stdout).unwrap();
    let expected = &record.stdout;
    if record.note.as_deref().is_some_and(|note| note.starts_with("the version line only")) {
        assert!(stdout.len() > expected.len() + 1000, "{} prints no help", record.case);
        stdout.truncate(expected.len());
    }
    let stderr = String::from_utf8(stderr).unwrap();
    (stdout != *expected || stderr != record.stderr || status != record.status).then(|| {
        format!(
            "{} {}: {:?}\n--- recorded, status {}\n{expected}{}--- here, status {status}\n{stdout}{stderr}",
            record.case, record.step, record.argv, record.status, record.stderr
        )
    })
}

/// The host that the shell commands before a case make.
fn host(commands: &[String]) -> Host {
    let mut host = Host::default();
    for command in commands {
        match command.split_whitespace().collect::<Vec<_>>()[..] {
            ["ip", "link", "add", name, ..] => {
                host.interfaces.insert(name.into(), Interface { mtu: 1500, up: false });
            }
            ["ip", "link", "set", name, "up"] => host.interfaces.get_mut(name).unwrap().up = true,
            ["ip", "link", "set", name, "mtu", mtu] | ["ip", "link", "set", "dev", name, "mtu", mtu] => {
                host.interfaces.get_mut(name).unwrap().mtu = mtu.parse().unwrap();
            }
            ["ip", "addr", "add", network, ..] | ["ip", "-6", "addr", "add", network, ..] => {
                let (address, length) = network.split_once('/').unwrap();
                let address: IpAddr = address.parse().unwrap();
                host.local.insert(address);
                if let IpAddr::V4(address) = address {
                    let hosts = u32::MAX >> length.parse::<u32>().unwrap();
                    host.broadcast.insert(Ipv4Addr::from(u32::from(address) | hosts));
                }
            }
            _ => panic!("cannot pretend `{command}`"),
        }
    }
    host
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
