//! What only instructions of the machine can do: atomic read-modify-write, and hiding a value from the compiler.
//!
//! The BPF target's `core` has no atomic types with these operations, though the machine has the instructions
//! (since Linux 5.12); the compiler's intrinsics reach them. On the host, where this crate is only linted, the
//! ordinary atomic types do.

/// Adds to a number and returns what it was.
///
/// # Safety
///
/// `number` must be aligned, inside a live map element, and changed by atomic operations alone.
#[inline(always)]
pub unsafe fn add(number: *mut u32, change: u32) -> u32 {
    #[cfg(target_arch = "bpf")]
    {
        use core::intrinsics::{AtomicOrdering, atomic_xadd};
        // SAFETY: the caller's promise.
        unsafe { atomic_xadd::<u32, u32, { AtomicOrdering::SeqCst }>(number, change) }
    }
    #[cfg(not(target_arch = "bpf"))]
    {
        use core::sync::atomic::{AtomicU32, Ordering};
        // SAFETY: the caller's promise.
        unsafe { AtomicU32::from_ptr(number) }.fetch_add(change, Ordering::SeqCst)
    }
}

/// Replaces `from` by `to`; whether the number was `from`.
///
/// # Safety
///
/// As for [`add`].
#[inline(always)]
pub unsafe fn replace(number: *mut u64, from: u64, to: u64) -> bool {
    #[cfg(target_arch = "bpf")]
    {
        use core::intrinsics::{AtomicOrdering, atomic_cxchg};
        // SAFETY: the caller's promise.
        let (_, done) = unsafe {
            atomic_cxchg::<u64, { AtomicOrdering::SeqCst }, { AtomicOrdering::SeqCst }>(number, from, to)
        };
        done
    }
    #[cfg(not(target_arch = "bpf"))]
    {
        use core::sync::atomic::{AtomicU64, Ordering};
        // SAFETY: the caller's promise.
        unsafe { AtomicU64::from_ptr(number) }
            .compare_exchange(from, to, Ordering::SeqCst, Ordering::SeqCst)
            .is_ok()
    }
}

/// Sets bits of a number.
///
/// # Safety
///
/// As for [`add`].
#[inline(always)]
pub unsafe fn set_bits(number: *mut u64, bits: u64) {
    #[cfg(target_arch = "bpf")]
    {
        use core::intrinsics::{AtomicOrdering, atomic_or};
        // SAFETY: the caller's promise.
        unsafe { atomic_or::<u64, u64, { AtomicOrdering::SeqCst }>(number, bits) };
    }
    #[cfg(not(target_arch = "bpf"))]
    {
        use core::sync::atomic::{AtomicU64, Ordering};
        // SAFETY: the caller's promise.
        unsafe { AtomicU64::from_ptr(number) }.fetch_or(bits, Ordering::SeqCst);
    }
}

/// Replaces a number, and returns what it was.
///
/// # Safety
///
/// As for [`add`].
#[inline(always)]
pub unsafe fn exchange(number: *mut u64, to: u64) -> u64 {
    #[cfg(target_arch = "bpf")]
    {
        use core::intrinsics::{AtomicOrdering, atomic_xchg};
        // SAFETY: the caller's promise.
        unsafe { atomic_xchg::<u64, { AtomicOrdering::SeqCst }>(number, to) }
    }
    #[cfg(not(target_arch = "bpf"))]
    {
        use core::sync::atomic::{AtomicU64, Ordering};
        // SAFETY: the caller's promise.
        unsafe { AtomicU64::from_ptr(number) }.swap(to, Ordering::SeqCst)
    }
}

/// The same pointer, which the compiler now computes here and nowhere else: the verifier knows no bounds of a number that
/// was put aside before it was compared, but those of a pointer that was.
#[inline(always)]
pub fn settled<T>(pointer: *mut T) -> *mut T {
    #[cfg(target_arch = "bpf")]
    {
        let mut pointer = pointer;
        #[expect(clippy::pointers_in_nomem_asm_block, reason = "the pointer is moved, not followed")]
        // SAFETY: one instruction, which moves the pointer to where it is.
        unsafe {
            core::arch::asm!("{0} = {0}", inout(reg) pointer, options(pure, nomem, nostack, preserves_flags))
        };
        pointer
    }
    #[cfg(not(target_arch = "bpf"))]
    pointer
}

/// As [`settled`]: what the compiler has in registers of what is behind the reference, it writes before and reads again.
#[inline(always)]
pub fn settled_reference<T>(reference: &mut T) -> &mut T {
    // SAFETY: the pointer is the reference's own, which is not used again while the other lives.
    unsafe { &mut *settled(core::ptr::from_mut(reference)) }
}

/// The same number, of which the compiler now knows nothing.
#[inline(always)]
pub fn opaque(number: u64) -> u64 {
    #[cfg(target_arch = "bpf")]
    {
        let mut number = number;
        // SAFETY: one instruction, which moves the number to where it is. (With none at all the line table would
        // name an instruction twice, which the kernel refuses.)
        unsafe {
            core::arch::asm!("{0} = {0}", inout(reg) number, options(pure, nomem, nostack, preserves_flags))
        };
        number
    }
    #[cfg(not(target_arch = "bpf"))]
    {
        core::hint::black_box(number)
    }
}

/// The number `N` in an instruction that has nothing else: the loader finds it there and may put another in its place. Each
/// call has one: whoever needs a register more than an instruction calls again.
#[inline(always)]
pub fn constant<const N: u64>() -> u64 {
    #[cfg(target_arch = "bpf")]
    {
        let number: u64;
        // SAFETY: one instruction, which loads a number.
        unsafe {
            core::arch::asm!("{0} = {1} ll", out(reg) number, const N, options(nomem, nostack, preserves_flags))
        };
        number
    }
    #[cfg(not(target_arch = "bpf"))]
    {
        core::hint::black_box(N)
    }
}
