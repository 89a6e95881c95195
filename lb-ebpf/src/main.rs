//! The XDP program.
#![cfg_attr(target_arch = "bpf", no_std, no_main)]

/// There is nothing to run on a host; the crate builds for it so that lints see the code.
#[cfg(not(target_arch = "bpf"))]
fn main() {}

#[cfg(target_arch = "bpf")]
#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}
