//! Timeouts of a service's own: words that `xipvs` has and ipvsadm has not.

use std::ffi::OsString;

use xipvs::cli::names::FileNames;
use xipvs::cli::{Streams, run};
use xipvs::director::Director;
use xipvs::director::memory::Memory;
use xipvs::table::Timeouts;

/// Status, standard output and standard error of a command line on a director.
fn ask(director: &mut Memory, line: &str, stdin: &str) -> (u8, String, String) {
    let argv: Vec<OsString> = line.split_whitespace().map(OsString::from).collect();
    let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
    let mut stdin = stdin.as_bytes();
    let mut streams = Streams { stdin: &mut stdin, stdout: &mut stdout, stderr: &mut stderr };
    let status = run(&argv, &mut streams, director, &FileNames::default());
    (status, String::from_utf8(stdout).unwrap(), String::from_utf8(stderr).unwrap())
}

fn done(director: &mut Memory, line: &str, stdin: &str) -> String {
    let (status, stdout, stderr) = ask(director, line, stdin);
    assert_eq!((status, stderr.as_str()), (0, ""), "{line}");
    stdout
}

fn own(director: &mut Memory) -> Vec<Option<Timeouts>> {
    director.services().unwrap().iter().map(|report| report.service.own_timeouts).collect()
}

#[test]
fn they_are_set_listed_saved_and_restored() {
    let director = &mut Memory::default();
    done(director, "xipvs -A -t 192.0.2.1:80 -s rr --tcp-timeout 30 --tcp-fin-timeout 5", "");
    done(director, "xipvs -A -u 192.0.2.1:53 -s rr", "");
    let saved = done(director, "xipvs -S -n", "");
    assert_eq!(
        saved,
        "-A -t 192.0.2.1:80 -s rr --tcp-timeout 30 --tcp-fin-timeout 5\n-A -u 192.0.2.1:53 -s rr\n"
    );
    assert!(
        done(director, "xipvs -L -n", "")
            .contains("\nTCP  192.0.2.1:80 rr tcp-timeout 30 tcp-fin-timeout 5\n")
    );
    let json = done(director, "xipvs -L --json", "");
    assert!(json.contains(r#""timeouts":{"tcp":30,"tcp_fin":5,"udp":0}"#), "{json}");
    assert!(json.contains(r#""timeouts":null"#), "{json}");

    let copy = &mut Memory::default();
    done(copy, "xipvs -R", &saved);
    assert_eq!(done(copy, "xipvs -S -n", ""), saved);
    // A file that does not have them takes them away.
    done(copy, "xipvs -R", "-C\n-A -t 192.0.2.1:80 -s rr\n-A -u 192.0.2.1:53 -s rr\n");
    assert_eq!(own(copy), [Some(Timeouts::NONE); 2]);
}

#[test]
fn ipvsadm_does_not_know_them_and_leaves_them_alone() {
    let director = &mut Memory::default();
    let (status, _, said) = ask(director, "ipvsadm -A -t 192.0.2.1:80 --tcp-timeout 30", "");
    assert_eq!((status, said.as_str()), (255, "--tcp-timeout: unknown option\n"));
    done(director, "xipvs -A -t 192.0.2.1:80 -s rr --tcp-timeout 30", "");
    assert!(done(director, "ipvsadm -L -n", "").contains("\nTCP  192.0.2.1:80 rr\n"));
    assert_eq!(done(director, "ipvsadm -S -n", ""), "-A -t 192.0.2.1:80 -s rr\n");
    done(director, "ipvsadm -E -t 192.0.2.1:80 -s wlc", "");
    assert_eq!(own(director), [Some(Timeouts { tcp: 30, ..Timeouts::NONE })]);
    done(director, "xipvs -E -t 192.0.2.1:80 -s wlc --tcp-timeout 0", "");
    assert_eq!(own(director), [Some(Timeouts::NONE)]);
}

#[test]
fn a_second_is_too_short() {
    let director = &mut Memory::default();
    for (port, value, good) in
        [(1, "0", true), (2, "1", false), (3, "2", true), (4, "2678400", true), (5, "2678401", false)]
    {
        let line = format!("xipvs -A -u 192.0.2.1:{port} --udp-timeout {value}");
        let (status, _, said) = ask(director, &line, "");
        assert_eq!(status == 0, good, "{value}");
        assert_eq!(said.contains("illegal udp-timeout specified"), !good, "{said}");
    }
    let (status, _, said) = ask(director, "xipvs -D -t 192.0.2.1:80 --udp-timeout 5", "");
    assert!(status != 0 && said.contains("udp-timeout"), "{said}");
}

#[test]
fn a_dry_run_tells_what_changes() {
    let director = &mut Memory::default();
    done(director, "xipvs -A -t 192.0.2.1:80 -s rr --tcp-timeout 30", "");
    let edit = "xipvs -E -t 192.0.2.1:80 -s rr --dry-run --tcp-timeout";
    assert_eq!(done(director, &format!("{edit} 30"), ""), "");
    assert_eq!(
        done(director, &format!("{edit} 40"), ""),
        "-E -t 192.0.2.1:80 -s rr --tcp-timeout 40 --tcp-fin-timeout 0 --udp-timeout 0\n"
    );
}
