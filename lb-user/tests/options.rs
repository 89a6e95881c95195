//! Walks the option table: what the word grammar says of each option, and that help and messages agree.

use std::ffi::OsString;

use xipvs::cli::names::FileNames;
use xipvs::cli::options::{Argument, Meaning, OPTIONS};
use xipvs::cli::{Streams, run};
use xipvs::director::memory::Memory;

/// Status, standard output and standard error of a command line under the name `xipvs`.
fn ask(words: &[&str]) -> (u8, String, String) {
    let argv: Vec<OsString> = std::iter::once(&"xipvs").chain(words).map(OsString::from).collect();
    let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
    let mut streams = Streams { stdin: &mut &b""[..], stdout: &mut stdout, stderr: &mut stderr };
    let status = run(&argv, &mut streams, &mut Memory::default(), &FileNames::default());
    (status, String::from_utf8(stdout).unwrap(), String::from_utf8(stderr).unwrap())
}

#[test]
fn every_option_takes_its_argument_or_none() {
    for row in OPTIONS {
        let long = format!("--{}", row.long);
        let letter = row.short.map(|letter| format!("-{}", char::from(letter)));
        for name in std::iter::once(long).chain(letter) {
            let with_value = format!("{name}=1");
            let (words, reason) = match row.argument {
                Argument::None => (with_value, "option does not take an argument"),
                Argument::Required(_) => (name, "missing argument"),
                Argument::Optional(..) => continue,
            };
            let (status, _, stderr) = ask(&["-L", &words]);
            assert_eq!((status, stderr), (255, format!("{words}: {reason}\n")));
        }
    }
}

#[test]
fn a_long_name_must_be_written_in_full() {
    for row in OPTIONS {
        let short = &row.long[..row.long.len() - 1];
        if OPTIONS.iter().any(|other| other.long == short) {
            continue;
        }
        let word = format!("--{short}");
        let (status, _, stderr) = ask(&["-L", &word]);
        let said = format!("{word}: unknown option; `xipvs --help` lists the options\n");
        assert_eq!((status, stderr), (255, said));
    }
}

#[test]
fn an_option_that_is_no_command_cannot_come_first() {
    for row in OPTIONS.iter().filter(|row| !matches!(row.meaning, Meaning::Command(_))) {
        let (status, _, stderr) = ask(&[&format!("--{}", row.long), "1", "-L"]);
        let hint = "the first word is a command, such as -A or -Ln; `xipvs --help` lists them\n";
        assert_eq!((status, stderr.as_str()), (255, hint), "--{}", row.long);
    }
}

#[test]
fn an_option_without_value_is_refused_when_repeated() {
    for row in OPTIONS.iter().filter(|row| row.argument == Argument::None) {
        let Some(slot) = row.slot() else { continue };
        let word = format!("--{}", row.long);
        let (status, _, stderr) = ask(&["-L", &word, &word]);
        assert_eq!((status, stderr), (2, format!("multiple '{}' options specified\n", slot.name())));
    }
}

#[test]
fn help_names_every_option() {
    let (status, stdout, _) = ask(&["-h"]);
    assert_eq!(status, 0);
    for row in OPTIONS {
        assert!(stdout.contains(&format!("--{}", row.long)), "--{}", row.long);
        assert!(stdout.contains(row.help), "--{}", row.long);
    }
    assert!(stdout.lines().all(|line| line.len() <= 110 && line == line.trim_end()), "{stdout}");
}
