//! The `xipvs` command, which under the names `ipvsadm`, `ipvsadm-save` and `ipvsadm-restore` is that tool.

mod command;
mod drain;
mod follow;
mod marking;
mod signals;
mod status;
mod sync_daemon;
mod takeover;

use std::process::ExitCode;

fn main() -> ExitCode {
    let arguments: Vec<_> = std::env::args_os().collect();
    ExitCode::from(command::run(&arguments))
}
