//! `xipvs -R` is a plan; `ipvsadm -R` is line by line.

use std::ffi::OsString;
use std::net::Ipv4Addr;

use xipvs::cli::names::FileNames;
use xipvs::cli::{Streams, run};
use xipvs::director::Director;
use xipvs::director::memory::Memory;

/// Standard output, standard error and the exit status.
fn restore(program: &str, rules: &str, director: &mut Memory) -> (String, String, u8) {
    let argv = [program, "-R"].map(OsString::from);
    let (mut stdin, mut stdout, mut stderr) = (rules.as_bytes(), Vec::new(), Vec::new());
    let mut streams = Streams { stdin: &mut stdin, stdout: &mut stdout, stderr: &mut stderr };
    let status = run(&argv, &mut streams, director, &FileNames::parse("", ""));
    (String::from_utf8(stdout).unwrap(), String::from_utf8(stderr).unwrap(), status)
}

fn done() -> (String, String, u8) {
    (String::new(), String::new(), 0)
}

fn saved(director: &mut Memory) -> String {
    restore("ipvsadm", "-S -n\n", director).0
}

const RULES: &str = "-A -t 192.0.2.1:80 -s rr\n\
    -a -t 192.0.2.1:80 -r 198.51.100.1:80 -g -w 1\n\
    -a -t 192.0.2.1:80 -r 198.51.100.2:80 -g -w 1\n";

/// A table with three connections on each server.
fn director() -> Memory {
    let mut director = Memory::default();
    assert_eq!(restore("ipvsadm", RULES, &mut director), done());
    let mut table = director.table().unwrap();
    table.entries[0].destinations.iter_mut().for_each(|report| report.active = 3);
    Memory::holding(&table)
}

fn connections(director: &mut Memory) -> Vec<u32> {
    let entries = director.table().unwrap().entries;
    let web =
        entries.iter().find(|entry| entry.service.service.key.to_string() == "-t 192.0.2.1:80").unwrap();
    web.destinations.iter().map(|report| report.active).collect()
}

#[test]
fn what_stays_the_same_is_not_touched() {
    let rules = format!("-C\n{}", RULES.replace("2:80 -g -w 1", "2:80 -g -w 7"));
    let mut line_by_line = director();
    assert_eq!(restore("ipvsadm", &rules, &mut line_by_line), done());
    assert_eq!(connections(&mut line_by_line), [0, 0]);
    let mut planned = director();
    assert_eq!(restore("xipvs", &rules, &mut planned), done());
    assert_eq!(connections(&mut planned), [3, 3]);
    assert_eq!(saved(&mut planned), saved(&mut line_by_line));
}

#[test]
fn a_service_is_made_wholly_or_not_at_all() {
    let mut director = director();
    director.host.broadcast.insert(Ipv4Addr::new(198, 51, 100, 255));
    let rules = "-e -t 192.0.2.1:80 -r 198.51.100.1:80 -g -w 9\n\
        -a -t 192.0.2.1:80 -r 198.51.100.255:80 -g -w 1\n\
        -A -t 192.0.2.2:80 -s rr\n\
        -a -t 192.0.2.2:80 -r 198.51.100.255:80 -g -w 1\n\
        -A -t 192.0.2.3:80 -s rr\n";
    let (printed, complaints, status) = restore("xipvs", rules, &mut director);
    assert_eq!((printed.as_str(), status), ("", 255));
    // What is refused is a change of the plan, not a line.
    let mut complaints: Vec<&str> = complaints.lines().collect();
    complaints.sort_unstable();
    let refused = |service: u8| {
        format!(
            "-a -t 192.0.2.{service}:80 -r 198.51.100.255:80 -g -w 1: \
             Invalid operation.  Possibly wrong module version, address not unicast, ..."
        )
    };
    assert_eq!(complaints, [refused(1), refused(2)]);
    assert_eq!(saved(&mut director), format!("{RULES}-A -t 192.0.2.3:80 -s rr\n"));
    assert_eq!(connections(&mut director), [3, 3]);
}

#[test]
fn a_faulty_line_leaves_all_as_it_was() {
    let mut director = director();
    let rules = "-C\n-A -t 192.0.2.9:80 -s rr\n-A -t nonsense -x\n-D -t 192.0.2.1:80\n";
    let (printed, complaints, status) = restore("xipvs", rules, &mut director);
    assert!(printed.is_empty() && !complaints.is_empty() && status != 0, "{complaints} {status}");
    assert_eq!(saved(&mut director), RULES);
    // Line by line it is gone by then, with the same complaint.
    let (_, words, line_by_line) = restore("ipvsadm", rules, &mut director);
    assert!(complaints.starts_with(&format!("line 3: {}; ", words.trim_end())), "{complaints}");
    assert_eq!(line_by_line, status);
    assert_eq!(saved(&mut director), "-A -t 192.0.2.9:80 -s rr\n");
}

#[test]
fn a_refused_line_is_worded_alike_and_the_rest_goes_on() {
    let rules =
        "-A -t 192.0.2.1:80 -s rr\n-d -t 192.0.2.1:80 -r 198.51.100.9:80\n-D -t 192.0.2.8:80\n--set 1 2 3\n";
    let mut outcomes = Vec::new();
    for program in ["ipvsadm", "xipvs"] {
        let mut director = director();
        let (printed, complaints, status) = restore(program, rules, &mut director);
        // Under our own name refusals come with their line, and some with advice.
        let words_of = |(number, line): (usize, &str)| {
            let line = match program {
                "xipvs" => line.strip_prefix(&format!("line {}: ", number + 1)).unwrap(),
                _ => line,
            };
            line.split(';').next().unwrap().to_owned()
        };
        let words: Vec<String> = complaints.lines().enumerate().map(words_of).collect();
        outcomes.push((printed, words, status, director.timeouts().unwrap()));
    }
    assert_eq!(outcomes[0], outcomes[1]);
    assert_eq!(outcomes[0].1.len(), 3);
}

#[test]
fn a_listing_in_between_shows_what_the_lines_before_it_made() {
    let mut director = director();
    let rules = "-A -t 192.0.2.7:80 -s rr\n-S -n\n-D -t 192.0.2.7:80\n-Z\n-S -n\n";
    let (printed, complaints, status) = restore("xipvs", rules, &mut director);
    assert_eq!((complaints.as_str(), status), ("", 0));
    assert_eq!(printed, format!("{RULES}-A -t 192.0.2.7:80 -s rr\n{RULES}"));
}

#[test]
fn rules_that_mark_packets_are_saved_and_restored_under_our_name() {
    let marks = "mark add 7 --protocol tcp --destination 192.0.2.0/24\nmark add 8 --family ipv6\n";
    let mut planned = director();
    assert_eq!(restore("xipvs", &format!("-A -f 7 -s rr\n{marks}"), &mut planned), done());
    let all = restore("xipvs", "-S -n\n", &mut planned).0;
    assert_eq!(all, format!("{RULES}-A -f 7 -s rr\n{marks}"));
    assert_eq!(saved(&mut planned), format!("{RULES}-A -f 7 -s rr\n"));
    // To a table without them, to one with them, and line by line.
    let mut restored = Memory::default();
    assert_eq!(restore("xipvs", &all, &mut restored), done());
    assert_eq!(restore("xipvs", "-S -n\n", &mut restored).0, all);
    let again = restore("xipvs", "mark delete 1\nmark add 8 --family ipv6\n", &mut restored);
    assert_eq!(again, (String::new(), "line 2: Mark rule already exists\n".into(), 255));
    assert_eq!(restored.mark_rules().unwrap().unwrap().len(), 1);
    assert_eq!(restore("xipvs", "mark delete all\n", &mut restored), done());
    assert_eq!(restored.mark_rules().unwrap().unwrap(), []);
    let faulty = restore("xipvs", "mark add 0\n-C\n", &mut restored);
    assert_eq!(faulty, (String::new(), "line 1: mark: 0: not a mark\n".into(), 2));
    assert!(!restored.services().unwrap().is_empty());
    let unknown = restore("ipvsadm", "mark delete all\n", &mut restored);
    assert_eq!(unknown.2, 255);
}
