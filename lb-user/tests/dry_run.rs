//! `--dry-run` and `--watch`: for which command lines, what they print, and that nothing changes.

use std::ffi::OsString;
use std::time::Duration;

use xipvs::cli::names::FileNames;
use xipvs::cli::{Streams, run, watch_interval};
use xipvs::director::Director;
use xipvs::director::memory::Memory;

fn words(line: &str) -> Vec<OsString> {
    line.split(' ').map(OsString::from).collect()
}

/// Status, standard output and standard error of a command line.
fn ask(director: &mut Memory, line: &str, stdin: &str) -> (u8, String, String) {
    let (mut stdin, mut stdout, mut stderr) = (stdin.as_bytes(), Vec::new(), Vec::new());
    let mut streams = Streams { stdin: &mut stdin, stdout: &mut stdout, stderr: &mut stderr };
    let status = run(&words(line), &mut streams, director, &FileNames::default());
    (status, String::from_utf8(stdout).unwrap(), String::from_utf8(stderr).unwrap())
}

/// A service with two destinations, on one of which there are connections.
fn director() -> Memory {
    let mut memory = Memory::default();
    let rules = "-A -t 192.0.2.1:80 -s rr\n-a -t 192.0.2.1:80 -r 198.51.100.1\n\
                 -a -t 192.0.2.1:80 -r 198.51.100.2\n";
    assert_eq!(ask(&mut memory, "ipvsadm -R", rules), (0, String::new(), String::new()));
    let mut table = memory.table().unwrap();
    table.entries[0].destinations[1].active = 3;
    Memory::holding(&table)
}

#[test]
fn a_dry_run_prints_what_would_change_and_changes_nothing() {
    let mut director = director();
    let before = director.table().unwrap();
    for (line, stdin, expected) in [
        ("xipvs -A -f 7 -s wrr --dry-run", "", "-A -f 7 -s wrr\n"),
        ("xipvs -E -t 192.0.2.1:80 -s lc --dry-run", "", "-E -t 192.0.2.1:80 -s lc # 3 connections\n"),
        ("xipvs -D -t 192.0.2.1:80 --dry-run", "", "-D -t 192.0.2.1:80 # 3 connections\n"),
        ("xipvs -C --dry-run", "", "-D -t 192.0.2.1:80 # 3 connections\n"),
        ("xipvs --set 1 0 0 --dry-run", "", "--set 1 120 300 # 3 connections\n"),
        (
            "xipvs -a -t 192.0.2.1:80 -r 198.51.100.3 --dry-run",
            "",
            "-a -t 192.0.2.1:80 -r 198.51.100.3:80 -g -w 1\n",
        ),
        (
            "xipvs -d -t 192.0.2.1:80 -r 198.51.100.1 --dry-run",
            "",
            "-d -t 192.0.2.1:80 -r 198.51.100.1:80 # 3 connections\n",
        ),
        (
            "xipvs -R --dry-run",
            "-C\n-A -t 192.0.2.1:80 -s rr\n-a -t 192.0.2.1:80 -r 198.51.100.1\n-A -f 7 -s rr\n",
            "-d -t 192.0.2.1:80 -r 198.51.100.2:80\n-A -f 7 -s rr\n",
        ),
    ] {
        assert_eq!(ask(&mut director, line, stdin), (0, expected.into(), String::new()), "{line}");
        assert_eq!(director.table().unwrap().entries, before.entries, "{line}");
    }
}

#[test]
fn a_dry_run_is_refused_as_the_change_would_be() {
    let mut director = director();
    for (line, status, said) in [
        ("xipvs -D -t 192.0.2.9:80 --dry-run", 255, "No such service; `xipvs -Ln` lists the services\n"),
        ("xipvs -Z --dry-run", 2, "Illegal 'dry-run' option with the 'zero' command\n"),
        (
            "xipvs --start-daemon master --dry-run",
            2,
            "Illegal 'dry-run' option with the 'start-daemon' command\n",
        ),
        ("xipvs -L --dry-run", 2, "Illegal 'dry-run' option with the 'list' command\n"),
        ("ipvsadm -C --dry-run", 255, "--dry-run: unknown option\n"),
        ("xipvs -C --watch", 2, "Illegal 'watch' option with the 'flush' command\n"),
        ("xipvs -L --watch 0", 2, "illegal watch specified\n"),
    ] {
        assert_eq!(ask(&mut director, line, ""), (status, String::new(), said.into()), "{line}");
    }
    let (status, stdout, stderr) = ask(&mut director, "xipvs -R --dry-run", "-A -f 7 -s rr\n-D -f 8\n");
    assert_eq!((status, stdout.as_str()), (255, "-A -f 7 -s rr\n"));
    assert_eq!(stderr, "line 2: No such service; `xipvs -Ln` lists the services\n");
}

#[test]
fn only_listings_under_the_own_name_are_watched() {
    let interval = |line: &str| watch_interval(&words(line), &FileNames::default());
    for (line, seconds) in [
        ("xipvs -Ln --watch", Some(2)),
        ("xipvs -L --watch=7 -n", Some(7)),
        ("xipvs -Lc --watch 1", Some(1)),
        ("xipvs -L --json --watch=86400", Some(86400)),
        ("xipvs -Ln", None),
        ("xipvs -L --watch=86401", None),
        ("xipvs", None),
        ("ipvsadm -Ln --watch", None),
    ] {
        assert_eq!(interval(line), seconds.map(Duration::from_secs), "{line}");
    }
    let mut director = director();
    let once = ask(&mut director, "xipvs -Ln", "");
    assert_eq!(ask(&mut director, "xipvs -Ln --watch", ""), once);
}
