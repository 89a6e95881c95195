//! Formatting and lints: the workspace for the host, and the BPF crate for its own target.

use anyhow::Result;

use crate::command::{self, run as run_command};
use crate::need::Group;
use crate::{build, setup};

/// Checks the formatting and runs clippy on everything; any warning fails.
pub fn run() -> Result<()> {
    setup::ensure(&[Group::Core, Group::Lint])?;
    run_command(command::cargo().args(["fmt", "--all", "--check"]))?;
    let everything = ["clippy", "--quiet", "--workspace", "--all-targets", "--all-features"];
    run_command(command::cargo().args(everything).args(["--", "--deny", "warnings"]))?;
    // On the host the BPF crate is little more than its imports; what runs in the kernel is seen by this one only.
    run_command(build::clippy()?.args(["--quiet", "--", "--deny", "warnings"]))
}
