//! Every program verifies, with no more work for the verifier than was agreed on.
//!
//! The verifier gives up at a million instructions, and loading takes time in proportion: so what a change costs here
//! is seen when it is made. A change that needs more raises the budget in its own commit and says why.

use std::collections::BTreeMap;

use aya::util::KernelVersion;

use super::fixture::Fixture;

/// Instructions that the verifier looks at, by program, on the kernel named in the file.
const BUDGET: &str = include_str!("../../../verifier-budget.txt");

/// The kernel that the budget was measured on; older ones verify differently.
const KERNEL: (u8, u8) = (6, 18);

/// A program may grow by so many hundredths of its budget.
const GROWTH: u32 = 10;

#[test]
fn every_program_verifies_within_its_budget() {
    let lines = BUDGET.lines().filter(|line| !line.starts_with('#') && !line.is_empty());
    let budget: BTreeMap<String, u32> = lines
        .map(|line| line.split_once(' ').unwrap())
        .map(|(name, count)| (name.to_owned(), count.trim().parse().unwrap()))
        .collect();
    let programs = Fixture::new().programs();
    assert!(programs.keys().eq(budget.keys()), "{:?} and {:?}", programs.keys(), budget.keys());
    let measured: BTreeMap<&str, u32> = programs
        .iter()
        .map(|(name, info)| (name.as_str(), info.verified_instruction_count().expect("Linux 5.16")))
        .collect();
    if KernelVersion::current().unwrap() < KernelVersion::new(KERNEL.0, KERNEL.1, 0) {
        return;
    }
    for (name, count) in &measured {
        assert!(*count <= budget[*name] / 100 * (100 + GROWTH), "{name} in {measured:?}");
    }
}
