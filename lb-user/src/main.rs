//! The `xipvs` command.

fn main() {}
