//! The whole command line on the kernel director: what was recorded of the real ipvsadm must come out again.

use std::ffi::OsString;
use std::path::Path;
use std::thread;

use serde::Deserialize;
use xipvs::cli::names::FileNames;
use xipvs::cli::{Streams, run};
use xipvs::director::Director;
use xipvs::director::kernel::Kernel;
use xipvs::director::memory::Memory;
use xipvs::table::{SyncRole, Timeouts};

use super::configuration::sorted;
use super::{kernel, shell};

/// One recorded command; tests/golden/README.md has the meaning of the fields.
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
    unordered: Option<serde_json::Value>,
    env: Option<serde_json::Value>,
    note: Option<String>,
}

impl Record {
    /// Whether our command line alone, as root and without packets, must print what was recorded.
    fn is_ours(&self) -> bool {
        !self.case.starts_with("traffic/")
            // A thousand more for the grammar, which the memory director runs in no time.
            && !self.case.starts_with("generated/")
            && self.argv.as_ref().is_some_and(|argv| argv[0] != "cat")
            && self.user.is_none()
            && self.env.is_none()
            && self.unstable.is_none()
            && self.unordered.is_none()
            // The text of the help is our own.
            && !self.note.as_ref().is_some_and(|note| note.starts_with("the version line only"))
    }
}

/// Standard output, standard error and the exit status.
type Printed = (String, String, u8);

/// Runs our command line on a director.
pub fn ours(argv: &[&str], stdin: &str, director: &mut dyn Director, names: &FileNames) -> Printed {
    let argv: Vec<OsString> = argv.iter().map(OsString::from).collect();
    let (mut stdin, mut stdout, mut stderr) = (stdin.as_bytes(), Vec::new(), Vec::new());
    let mut streams = Streams { stdin: &mut stdin, stdout: &mut stdout, stderr: &mut stderr };
    let status = run(&argv, &mut streams, director, names);
    (String::from_utf8(stdout).unwrap(), String::from_utf8(stderr).unwrap(), status)
}

/// What differs from the recorded output differs likewise on the memory director, where each such difference
/// stands with its reason (`lb-user/tests/golden.rs`).
#[test]
fn the_recorded_commands_do_the_same_on_the_kernel() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("golden");
    let read = |name: &str| std::fs::read_to_string(folder.join(name)).unwrap();
    let names = FileNames::parse(&read("hosts"), &read("services"));
    let mut files: Vec<_> = std::fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.retain(|path| path.extension().is_some_and(|extension| extension == "jsonl"));
    files.sort();

    let mut shared = kernel();
    let (mut ran, mut different) = (0, Vec::new());
    for file in files {
        let text = std::fs::read_to_string(file).unwrap();
        let records: Vec<Record> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        for case in records.chunk_by(|a, b| a.case == b.case) {
            let case: Vec<&Record> = case.iter().take_while(|record| record.is_ours()).collect();
            ran += case.len();
            let Some(first) = case.first() else { continue };
            if first.pre.is_empty() {
                reset(&mut shared);
                different.extend(differences(&case, &mut shared, &names));
            } else {
                let prepared = || {
                    let mut kernel = kernel();
                    shell(&first.pre.join(" && "));
                    differences(&case, &mut kernel, &names)
                };
                different.extend(thread::scope(|scope| scope.spawn(prepared).join().unwrap()));
            }
        }
    }
    println!("{ran} commands ran");
    different.iter().take(30).for_each(|text| println!("{text}"));
    assert!(different.is_empty(), "{} of {ran} commands differ", different.len());
    assert!(ran > 2000, "only {ran} commands ran");
}

/// As good as a new network namespace, for what a command line can see.
fn reset(kernel: &mut Kernel) {
    kernel.flush().unwrap();
    kernel.set_timeouts(&Timeouts::default()).unwrap();
    for role in [SyncRole::Master, SyncRole::Backup] {
        let _ = kernel.stop_daemon(role);
    }
}

fn differences(case: &[&Record], kernel: &mut Kernel, names: &FileNames) -> Vec<String> {
    let mut memory = Memory::default();
    let difference = |record: &&Record| {
        let argv: Vec<&str> = record.argv.iter().flatten().map(String::as_str).collect();
        let stdin = record.stdin.as_deref().unwrap_or_default();
        let printed = ours(&argv, stdin, kernel, names);
        let on_memory = ours(&argv, stdin, &mut memory, names);
        let recorded = (record.stdout.clone(), record.stderr.clone(), record.status);
        // The kernel's own order of services is another one in every boot.
        let nosort = argv.contains(&"--nosort") || stdin.contains("--nosort");
        let same = |other: &Printed| {
            printed == *other
                || nosort
                    && sorted(&printed.0) == sorted(&other.0)
                    && (&printed.1, printed.2) == (&other.1, other.2)
        };
        let on_purpose = record.pre.is_empty() && same(&on_memory);
        (!same(&recorded) && !on_purpose).then(|| {
            format!("{} {}: {argv:?}\nrecorded {recorded:?}\nhere {printed:?}", record.case, record.step)
        })
    };
    case.iter().filter_map(difference).collect()
}
