//! The door to many elements of an array map at once, each copied under its lock.
//!
//! Maps with locks cannot be mapped into memory, and a system call an element is dear for whoever looks at all of them
//! once a second.

use std::fmt;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use aya::maps::MapData;
use aya_obj::generated::{bpf_attr, bpf_cmd};
use zerocopy::{FromBytes, IntoBytes};

/// `BPF_F_LOCK`: the kernel copies an element under its lock.
const LOCKED: u64 = 4;

/// An array map whose elements have locks, and the room to read some of them.
pub struct Batch<T> {
    map: OwnedFd,
    count: u32,
    room: Vec<T>,
    keys: Vec<u32>,
}

impl<T> fmt::Debug for Batch<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Batch").field("map", &self.map).field("count", &self.count).finish_non_exhaustive()
    }
}

impl<T: FromBytes + IntoBytes + Clone> Batch<T> {
    /// Of a map with elements of this type, to read so many at most at once.
    ///
    /// # Errors
    ///
    /// When the elements have another size, or the process may not have another file descriptor.
    pub fn new(map: &MapData, most: u32) -> io::Result<Self> {
        let info = map.info().map_err(io::Error::other)?;
        if info.value_size() as usize != size_of::<T>() || !size_of::<T>().is_multiple_of(8) {
            return Err(io::Error::other("elements of another size"));
        }
        let map = map.fd().as_fd().try_clone_to_owned()?;
        let room = vec![T::new_zeroed(); most as usize];
        Ok(Self { map, count: info.max_entries(), room, keys: vec![0; most as usize] })
    }

    /// Elements in the map.
    pub fn count(&self) -> u32 {
        self.count
    }

    /// A copy of one element, if it is there.
    ///
    /// # Errors
    ///
    /// What the kernel says.
    pub fn one(&self, number: u32) -> io::Result<Option<T>> {
        let mut room = [T::new_zeroed()];
        let copied = look_up(&self.map, number, self.count, &mut room, &mut [0])?;
        Ok(room.into_iter().next().filter(|_| copied == 1))
    }

    /// Copies of the elements from `first` on, as many as there is room for and are there.
    ///
    /// # Errors
    ///
    /// What the kernel says.
    pub fn read(&mut self, first: u32) -> io::Result<&[T]> {
        let Self { map, count, room, keys } = self;
        let copied = look_up(map, first, *count, room, keys)?;
        Ok(&room[..copied])
    }
}

/// Copies elements of a map that has so many into the room for them, which has as many places for keys, and says how
/// many. Their size is that of the map's, which [`Batch::new`] has seen to.
fn look_up<T: FromBytes>(
    map: &OwnedFd,
    first: u32,
    count: u32,
    room: &mut [T],
    keys: &mut [u32],
) -> io::Result<usize> {
    let wanted = count.saturating_sub(first).min(room.len().min(keys.len()) as u32);
    if wanted == 0 {
        return Ok(0);
    }
    // The kernel begins behind the key that it is given; without one, at the first.
    let before = first.wrapping_sub(1);
    let mut next = 0u32;
    // SAFETY: a union of structures of numbers, of which zeroes are a value.
    let mut attributes: bpf_attr = unsafe { std::mem::zeroed() };
    attributes.batch.in_batch = if first == 0 { 0 } else { std::ptr::from_ref(&before) as u64 };
    attributes.batch.out_batch = std::ptr::from_mut(&mut next) as u64;
    attributes.batch.keys = keys.as_mut_ptr() as u64;
    attributes.batch.values = room.as_mut_ptr() as u64;
    attributes.batch.count = wanted;
    attributes.batch.map_fd = map.as_raw_fd() as u32;
    attributes.batch.elem_flags = LOCKED;
    // SAFETY: the kernel reads one key and writes one, and writes at most `wanted` keys and elements into room for so
    // many, whose sizes are those of the map; any bytes are an element. It keeps no pointer.
    let answer = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            bpf_cmd::BPF_MAP_LOOKUP_BATCH as libc::c_int,
            std::ptr::from_mut(&mut attributes),
            size_of::<bpf_attr>(),
        )
    };
    if answer < 0 {
        let error = io::Error::last_os_error();
        // That was the end of the map.
        if error.raw_os_error() != Some(libc::ENOENT) {
            return Err(error);
        }
    }
    // SAFETY: the kernel has stored there how many it copied.
    let copied = unsafe { attributes.batch.count };
    Ok(copied.min(wanted) as usize)
}
