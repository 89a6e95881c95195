//! The whole command line on the kernel director: what was recorded of the real ipvsadm must come out again.

use std::thread;

use tests::golden::{Printed, Record, cases, names};
use xipvs::cli::names::FileNames;
use xipvs::director::Director;
use xipvs::director::kernel::Kernel;
use xipvs::table::{SyncRole, Timeouts};

use super::configuration::sorted;
use super::{kernel, shell};

/// Thousands more for the grammar, which the memory director runs in no time and this one, emulated, in many minutes.
const GRAMMAR: [&str; 9] = [
    "addresses/",
    "checks/",
    "daemons/",
    "generated/",
    "matrix-rest/",
    "names/",
    "restoring/",
    "values/",
    "words/",
];

/// Whether our command line alone, as root and without packets, must print what was recorded.
fn is_ours(record: &Record) -> bool {
    record.is_command_line()
        && !GRAMMAR.iter().any(|group| record.case.starts_with(group))
        && record.user.is_none()
        && record.env.is_empty()
        && record.unstable.is_none()
        && record.unordered.is_none()
}

#[test]
fn the_recorded_commands_do_the_same_on_the_kernel() {
    let names = names().unwrap();
    let mut shared = kernel();
    let (mut ran, mut different) = (0, Vec::new());
    for case in cases().unwrap() {
        let case: Vec<&Record> = case.iter().take_while(|record| is_ours(record)).collect();
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
    let difference = |record: &&Record| {
        let printed = record.run(kernel, names);
        let difference = record.difference(&printed).filter(|_| !record.is_left_out())?;
        (!same_in_another_order(record, &printed)).then_some(difference)
    };
    case.iter().filter_map(difference).collect()
}

/// Whether only the order differs, and may: the kernel's own order of services is another one in every boot.
fn same_in_another_order(record: &Record, printed: &Printed) -> bool {
    let mut asked = record.argv.iter().flatten().chain(&record.stdin);
    asked.any(|text| text.contains("--nosort"))
        && sorted(&printed.stdout) == sorted(&record.stdout)
        && (&printed.stderr, printed.status) == (&record.stderr, record.status)
}
