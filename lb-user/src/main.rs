//! The `xipvs` command, which under the names `ipvsadm`, `ipvsadm-save` and `ipvsadm-restore` is that tool.

mod command;

use std::process::ExitCode;

fn main() -> ExitCode {
    let arguments: Vec<_> = std::env::args_os().collect();
    ExitCode::from(command::run(&arguments))
}
