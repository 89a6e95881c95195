//! Being told to stop: SIGTERM and SIGINT, as something that can be read.

use std::os::fd::AsFd;
use std::time::Duration;

use anyhow::{Context, Result};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};

/// Blocks both signals; the answer can be read once there is one. To be called before anything that may start threads.
pub fn to_stop() -> Result<SignalFd> {
    let signals: SigSet = [Signal::SIGTERM, Signal::SIGINT].into_iter().collect();
    signals.thread_block().context("blocking signals")?;
    SignalFd::with_flags(&signals, SfdFlags::SFD_CLOEXEC).context("waiting for signals")
}

/// Waits for a signal, at most so long, and says whether there was one.
pub fn came(stop: &SignalFd, limit: Duration) -> bool {
    let timeout = PollTimeout::try_from(limit).unwrap_or(PollTimeout::MAX);
    loop {
        match poll(&mut [PollFd::new(stop.as_fd(), PollFlags::POLLIN)], timeout) {
            Err(Errno::EINTR) => {}
            Ok(0) => return false,
            // Without a way to be told to stop, stopping is the safe thing.
            Ok(_) | Err(_) => return true,
        }
    }
}
