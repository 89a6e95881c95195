//! Exit statuses.

/// What went wrong before anything was done, as ipvsadm's when it cannot start.
pub const FAILED: u8 = 2;

/// Tables differ: what `diff` found, or what `mirror`, `adopt`, `hand-over` or `mark import` had to leave out.
pub const DIFFERENT: u8 = 1;
