//! The door to array maps that are mapped into memory: every access is bounds-checked and volatile.
//!
//! The kernel and the packet program read and write the same memory at any time, so that nothing here hands
//! out a reference into it: records are copied in and out, and words that both sides change are stored whole.

use std::alloc::{Layout, handle_alloc_error};
use std::marker::PhantomData;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU8, AtomicU16, AtomicU32, AtomicU64, Ordering};

use memmap2::{MmapOptions, MmapRaw};
use zerocopy::{FromBytes, IntoBytes};

/// An array map in memory, mapped when it is first looked at.
///
/// The kernel enters every page into the process when it maps an array: milliseconds for the large ones, and many commands
/// look at a small part of the maps.
#[derive(Debug)]
pub struct Mapped<T> {
    map: OwnedFd,
    memory: OnceLock<MmapRaw>,
    count: u32,
    kind: PhantomData<T>,
}

impl<T: FromBytes + IntoBytes + Copy> Mapped<T> {
    /// The first `count` elements of a map.
    ///
    /// # Errors
    ///
    /// When the process may not have another file descriptor.
    pub fn new(map: BorrowedFd<'_>, count: u32) -> std::io::Result<Self> {
        Ok(Self { map: map.try_clone_to_owned()?, memory: OnceLock::new(), count, kind: PhantomData })
    }

    /// The beginning of the memory.
    ///
    /// That a map which is open cannot be mapped means that there is no memory for it, and ends the process as for any
    /// other memory.
    fn start(&self) -> *mut T {
        let memory = self.memory.get_or_init(|| {
            let length = (self.count as usize * size_of::<T>()).next_multiple_of(page_size());
            MmapOptions::new().len(length).map_raw(&self.map).unwrap_or_else(|_| {
                handle_alloc_error(Layout::array::<T>(self.count as usize).unwrap_or(Layout::new::<T>()))
            })
        });
        memory.as_mut_ptr().cast()
    }

    /// Elements in the map.
    pub fn count(&self) -> u32 {
        self.count
    }

    fn element(&self, index: u32) -> Option<NonNull<T>> {
        if index >= self.count {
            return None;
        }
        // SAFETY: the index was checked, and the memory is at least so many elements long.
        NonNull::new(unsafe { self.start().add(index as usize) })
    }

    /// A copy of an element.
    pub fn read(&self, index: u32) -> Option<T> {
        // SAFETY: the pointer is to a whole element of mapped memory, and any bytes are a valid `T`. Elements
        // are aligned to their size, as the map begins at a page.
        self.element(index).map(|element| unsafe { element.as_ptr().read_volatile() })
    }

    /// Replaces an element. Not one that the packet program may be using: it would see a mixture.
    pub fn write(&self, index: u32, value: &T) -> Option<()> {
        // SAFETY: as above.
        self.element(index).map(|element| unsafe { element.as_ptr().write_volatile(*value) })
    }

    fn word<W>(&self, index: u32, offset: usize) -> Option<*mut W> {
        let inside = offset.is_multiple_of(size_of::<W>()) && offset + size_of::<W>() <= size_of::<T>();
        assert!(inside, "no such word in the element");
        // SAFETY: checked to lie inside the element.
        self.element(index).map(|element| unsafe { element.as_ptr().byte_add(offset).cast() })
    }

    /// Stores the byte at an offset into an element.
    pub fn store_u8(&self, index: u32, offset: usize, value: u8) -> Option<()> {
        // SAFETY: inside mapped memory that lives as long as `self`, only accessed atomically here.
        self.word(index, offset)
            .map(|byte| unsafe { AtomicU8::from_ptr(byte) }.store(value, Ordering::Release))
    }

    /// Stores the 16-bit word at a byte offset into an element, as [`Mapped::store_u32`] does.
    pub fn store_u16(&self, index: u32, offset: usize, value: u16) -> Option<()> {
        // SAFETY: as above.
        self.word(index, offset)
            .map(|word| unsafe { AtomicU16::from_ptr(word) }.store(value, Ordering::Release))
    }

    /// The 32-bit word at a byte offset into an element.
    pub fn load_u32(&self, index: u32, offset: usize) -> Option<u32> {
        // SAFETY: aligned, inside mapped memory that lives as long as `self`, only accessed atomically here.
        self.word(index, offset).map(|word| unsafe { AtomicU32::from_ptr(word) }.load(Ordering::Acquire))
    }

    /// Stores the 32-bit word at a byte offset into an element, in one piece and after all that was stored before.
    pub fn store_u32(&self, index: u32, offset: usize, value: u32) -> Option<()> {
        // SAFETY: as above.
        self.word(index, offset)
            .map(|word| unsafe { AtomicU32::from_ptr(word) }.store(value, Ordering::Release))
    }

    /// Stores the 64-bit word at a byte offset into an element, as [`Mapped::store_u32`] does.
    pub fn store_u64(&self, index: u32, offset: usize, value: u64) -> Option<()> {
        // SAFETY: as above.
        self.word(index, offset)
            .map(|word| unsafe { AtomicU64::from_ptr(word) }.store(value, Ordering::Release))
    }
}

fn page_size() -> usize {
    // SAFETY: the function takes a number and returns one.
    usize::try_from(unsafe { libc::sysconf(libc::_SC_PAGESIZE) }).unwrap_or(4096)
}

/// Waits until no packet that is being handled now is being handled any more.
pub fn wait_for_readers() {
    const MEMBARRIER_CMD_GLOBAL: libc::c_int = 1;
    // SAFETY: the call takes numbers and touches no memory. It waits for a grace period of RCU, as which the
    // kernel counts the handling of a packet.
    unsafe { libc::syscall(libc::SYS_membarrier, MEMBARRIER_CMD_GLOBAL, 0, 0) };
}
