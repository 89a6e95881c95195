//! `cargo xtask`: the project's chores. This file only dispatches.

fn main() {}
