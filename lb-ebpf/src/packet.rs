//! The door to a packet's bytes: every pointer into a packet is made here, and only after its bounds check.

use core::hint::assert_unchecked;
use core::ops::Range;
use core::ptr::{addr_of, addr_of_mut, read_volatile, write_volatile};

use aya_ebpf::bindings::{__sk_buff, xdp_md};
use aya_ebpf::helpers::generated::{
    bpf_skb_change_head, bpf_skb_change_tail, bpf_skb_load_bytes, bpf_skb_store_bytes, bpf_xdp_adjust_head,
    bpf_xdp_adjust_meta, bpf_xdp_adjust_tail, bpf_xdp_load_bytes,
};
use aya_ebpf::programs::{TcContext, XdpContext};
use lb_common::packet::Frame;

use crate::machine::opaque;

/// Largest offset that is asked for: two tags and an IPv4 header with all its options, and some room. The
/// verifier wants to see a bound on what is added to a packet pointer.
const OFFSET_MASK: usize = 0xff;

/// Largest offset that a packet's contents are read at; a frame that XDP sees whole is not longer.
const FAR_MASK: usize = 0x3fff;

/// The bytes of the packet that the program runs on, as far as they lie in one piece: its headers do.
#[derive(Clone, Copy)]
pub struct Bytes<C> {
    start: usize,
    end: usize,
    context: *mut C,
}

/// Those of a packet that comes in.
pub type Window = Bytes<xdp_md>;
/// Those of a packet that the stack has.
pub type OutWindow = Bytes<__sk_buff>;

impl<C> Bytes<C> {
    /// Where the `N` bytes from `offset` on lie, if they are there.
    #[inline(always)]
    fn find<const N: usize>(&self, offset: usize) -> Option<*mut [u8; N]> {
        let from = self.start + (offset & OFFSET_MASK);
        (from + N <= self.end).then_some(from as *mut [u8; N])
    }

    /// The `N` bytes from `offset` on, to write.
    #[inline(always)]
    pub fn bytes_mut<const N: usize>(&mut self, offset: usize) -> Option<&mut [u8; N]> {
        // SAFETY: the range lies inside the packet, checked in the form that the verifier follows; the borrow of `self`
        // keeps other views away for as long as this one lives.
        self.find(offset).map(|bytes| unsafe { &mut *bytes })
    }
}

impl Window {
    /// The packet as it lies now; made anew after every change of its head.
    #[inline(always)]
    pub fn of(context: &XdpContext) -> Self {
        let start = context.data();
        // SAFETY: the kernel has no packet at address 0. Else every range that is found would be compared with that.
        unsafe { assert_unchecked(start != 0) };
        Self { start, end: context.data_end(), context: context.ctx }
    }
}

impl Frame for Window {
    #[inline(always)]
    fn bytes<const N: usize>(&self, offset: usize) -> Option<&[u8; N]> {
        // SAFETY: as above.
        self.find(offset).map(|bytes| unsafe { &*bytes })
    }

    #[inline(always)]
    fn reaches(&self, bytes: usize) -> bool {
        // Hidden, so that the compiler concludes nothing from it for the comparisons of pointers that the verifier wants to see.
        self.start as u64 + opaque(bytes as u64) <= self.end as u64
    }

    #[inline(always)]
    fn length(&self) -> usize {
        // Read anew, so that the compiler cannot conclude from a comparison of lengths that a range lies inside
        // the packet, and leave out the comparison of pointers that the verifier wants to see.
        // SAFETY: the context lives as long as the program runs.
        unsafe {
            read_volatile(addr_of!((*self.context).data_end)) as usize
                - read_volatile(addr_of!((*self.context).data)) as usize
        }
    }
}

/// A packet whose contents can be read wherever they lie.
pub trait Contents: Frame {
    /// What the kernel hands a program that sees such packets.
    type Context;

    /// The packet as it lies now.
    ///
    /// # Safety
    ///
    /// The context is the running program's own.
    unsafe fn of_raw(context: *mut Self::Context) -> Self;

    /// Where the bytes begin and end.
    fn bounds(&self) -> (usize, usize);

    /// The `N` bytes from `offset` on, wherever in the packet that is.
    #[inline(always)]
    fn far_bytes<const N: usize>(&self, offset: usize) -> Option<&[u8; N]> {
        let (start, end) = self.bounds();
        // Hidden, because the compiler would compare with the byte before, from which the verifier learns nothing.
        let past = opaque((start + (offset & FAR_MASK) + N) as u64) as usize;
        if past > end {
            return None;
        }
        // SAFETY: the range lies inside the packet, checked above.
        Some(unsafe { &*((past - N) as *const [u8; N]) })
    }
}

impl Contents for Window {
    type Context = xdp_md;

    #[inline(always)]
    unsafe fn of_raw(context: *mut xdp_md) -> Self {
        // SAFETY: the caller's promise.
        unsafe { Self { start: (*context).data as usize, end: (*context).data_end as usize, context } }
    }

    #[inline(always)]
    fn bounds(&self) -> (usize, usize) {
        (self.start, self.end)
    }
}

/// Copies a range of the packet into a buffer, as much as there is room for; how many bytes that were, none if there are none.
#[inline(always)]
pub fn copy<const N: usize>(
    context: &XdpContext,
    range: Range<usize>,
    buffer: &mut [u8; N],
) -> Option<usize> {
    let length = length_of(&range, N)?;
    let (from, to) = (range.start as u32, buffer.as_mut_ptr().cast());
    // SAFETY: the context is the program's own; the buffer has room for so many; the helper checks the packet's bounds.
    let result = unsafe { bpf_xdp_load_bytes(context.ctx, from, to, length as u32) };
    (result == 0).then_some(length)
}

/// [`copy`], of a packet of the director itself.
#[inline(always)]
pub fn copy_own<const N: usize>(
    context: &TcContext,
    range: Range<usize>,
    buffer: &mut [u8; N],
) -> Option<usize> {
    let length = length_of(&range, N)?;
    let (from, to) = (range.start as u32, buffer.as_mut_ptr().cast());
    // SAFETY: as above.
    let result = unsafe { bpf_skb_load_bytes(context.skb.skb.cast(), from, to, length as u32) };
    (result == 0).then_some(length)
}

/// How much of a range fits into so many bytes, a power of two: at least one, in a form that the verifier follows.
#[inline(always)]
fn length_of(range: &Range<usize>, room: usize) -> Option<usize> {
    let behind = range.end.checked_sub(range.start + 1)?;
    Some((opaque(behind.min(room - 1) as u64) as usize & (room - 1)) + 1)
}

/// Moves the beginning of the packet by so many bytes; existing windows are void after it.
#[inline(always)]
pub fn move_head(context: &XdpContext, by: i32) -> bool {
    // SAFETY: the context is the program's own; the helper checks the distance.
    unsafe { bpf_xdp_adjust_head(context.ctx, by) == 0 }
}

/// Cuts the packet off after so many bytes; existing windows are void after it.
#[inline(always)]
pub fn cut(context: &XdpContext, length: usize) -> bool {
    // Hidden, because the compiler would compute with the halves of pointers.
    let by = length as i32 - opaque(Window::of(context).length() as u64) as i32;
    // SAFETY: as above.
    unsafe { bpf_xdp_adjust_tail(context.ctx, by) == 0 }
}

/// Begins a note that says where to, so that what a driver writes before packets is not taken for one: "xipv".
const WAY: u32 = u32::from_ne_bytes(*b"xipv");

/// What stands before a packet for the stack to read: what it is about, and a number.
type Note = [u32; 2];

/// Notes the interface that a packet is to go out of, before the packet; existing windows are void after it.
#[inline(always)]
pub fn leave_way(context: &XdpContext, interface: u32) -> bool {
    leave_note(context, [WAY, interface])
}

/// Notes before a packet of which segment the checksum was computed here; existing windows are void after it. `director` is
/// a number that no other director begins notes with: a packet that was sent on may keep them.
#[inline(always)]
pub fn leave_segment(context: &XdpContext, director: u32, header: u16, length: u16) -> bool {
    leave_note(context, [director, u32::from(header) << 16 | u32::from(length)])
}

#[inline(always)]
fn leave_note(context: &XdpContext, note: Note) -> bool {
    // SAFETY: the context is the program's own; the helper checks that there is room.
    if unsafe { bpf_xdp_adjust_meta(context.ctx, -(size_of::<Note>() as i32)) } != 0 {
        return false;
    }
    let (start, end) = (context.metadata(), context.data());
    if start + size_of::<Note>() > end {
        return false;
    }
    // SAFETY: the range lies before the packet, checked above in the form that the verifier follows; it is aligned, as the
    // helper takes multiples of four only, and where packets begin depends on the driver: so not written as one word of eight.
    unsafe { (start as *mut Note).write_unaligned(note) };
    true
}

/// Takes what [`leave_way`] has noted: nobody shall find it a second time.
#[inline(always)]
pub fn take_way(context: &TcContext) -> Option<u32> {
    take_note::<0>(context, WAY)
}

/// Takes what [`leave_segment`] has noted, from behind so many newer notes: bytes of the header, and of the segment.
#[inline(always)]
pub fn take_segment<const NEWER: usize>(context: &TcContext, director: u32) -> Option<(u16, u16)> {
    take_note::<NEWER>(context, director).map(|lengths| ((lengths >> 16) as u16, lengths as u16))
}

/// Takes the one at a place, if it begins so.
#[inline(always)]
fn take_note<const PLACE: usize>(context: &TcContext, begin: u32) -> Option<u32> {
    let packet = context.skb.skb;
    // SAFETY: the context lives as long as the program runs.
    let (start, end) = unsafe { ((*packet).data_meta as usize, (*packet).data as usize) };
    let from = start + PLACE * size_of::<Note>();
    if from + size_of::<Note>() > end {
        return None;
    }
    // SAFETY: the range lies before the packet, checked above.
    let [mark, number] = unsafe { (from as *const Note).read_unaligned() };
    if mark != begin {
        return None;
    }
    // SAFETY: as above.
    unsafe { (from as *mut Note).write_unaligned([0; 2]) };
    Some(number)
}

/// Copies bytes of a packet that the stack has, wherever in it they lie; whether there are so many.
#[inline(always)]
pub fn read<const N: usize>(context: &TcContext, offset: usize, into: &mut [u8; N]) -> bool {
    let packet = context.skb.skb.cast_const().cast();
    // SAFETY: the context is the program's own; the helper writes as many bytes as there is room for, or none.
    unsafe { bpf_skb_load_bytes(packet, offset as u32, into.as_mut_ptr().cast(), N as u32) == 0 }
}

/// What [`set_handled`] leaves in a packet's `tc_index`, which nothing else uses but classifiers of long ago.
const HANDLED: u32 = 0x7669;

impl OutWindow {
    /// The packet as it lies now; made anew after every change of it.
    #[inline(always)]
    pub fn of(context: &TcContext) -> Self {
        let start = context.data();
        // SAFETY: as of [`Window`].
        unsafe { assert_unchecked(start != 0) };
        Self { start, end: context.data_end(), context: context.skb.skb }
    }
}

impl Frame for OutWindow {
    #[inline(always)]
    fn bytes<const N: usize>(&self, offset: usize) -> Option<&[u8; N]> {
        // SAFETY: the range lies inside the packet, checked in the form that the verifier follows.
        self.find(offset).map(|bytes| unsafe { &*bytes })
    }

    #[inline(always)]
    fn length(&self) -> usize {
        // SAFETY: the context lives as long as the program runs.
        unsafe { read_volatile(addr_of!((*self.context).len)) as usize }
    }

    /// Of larger packets, which `lo` takes and the kernel cuts up later, as much as can be said.
    #[inline(always)]
    fn whole(&self, header: usize, length: u16) -> Option<u16> {
        // SAFETY: as above.
        let is_cut_later = unsafe { read_volatile(addr_of!((*self.context).gso_size)) } != 0;
        Some(if length == 0 && is_cut_later { u16::MAX } else { length.saturating_add(header as u16) })
    }
}

/// As far as it lies in one piece.
impl Contents for OutWindow {
    type Context = __sk_buff;

    #[inline(always)]
    unsafe fn of_raw(context: *mut __sk_buff) -> Self {
        // SAFETY: the caller's promise.
        unsafe { Self { start: (*context).data as usize, end: (*context).data_end as usize, context } }
    }

    #[inline(always)]
    fn bounds(&self) -> (usize, usize) {
        (self.start, self.end)
    }
}

/// [`cut_off`], and has what is left lie in one piece.
#[inline(always)]
pub fn cut_own(context: &TcContext, length: u32) -> bool {
    cut_off(context, length) && context.pull_data(length).is_ok()
}

/// Cuts a packet that the stack has off after so many bytes, and makes one of several; existing windows are void after it.
#[inline(always)]
pub fn cut_off(context: &TcContext, length: u32) -> bool {
    // SAFETY: the context is the program's own; the helper checks that the headers stay.
    unsafe { bpf_skb_change_tail(context.skb.skb, length, 0) == 0 }
}

/// Copies so many bytes of a packet that the stack has to another place in it; existing windows are void after it.
#[inline(always)]
pub fn copy_within<const N: usize>(
    context: &TcContext,
    from: u32,
    to: u32,
    length: u32,
    room: &mut [u8; N],
) -> bool {
    const { assert!(N.is_power_of_two()) };
    let Some(behind) = length.checked_sub(1).filter(|behind| (*behind as usize) < N) else { return false };
    // In a form that the verifier follows.
    let length = (opaque(behind.into()) as u32 & (N as u32 - 1)) + 1;
    let packet = context.skb.skb;
    // SAFETY: the context is the program's own; the buffer has room for so many; the helpers check the packet's bounds.
    unsafe {
        bpf_skb_load_bytes(packet.cast_const().cast(), from, room.as_mut_ptr().cast(), length) == 0
            && bpf_skb_store_bytes(packet, to, room.as_ptr().cast(), length, 0) == 0
    }
}

/// Writes so many of these bytes into a packet that the stack has; existing windows are void after it.
#[inline(always)]
pub fn write<const N: usize>(context: &TcContext, to: usize, bytes: &[u8; N], length: usize) -> bool {
    const { assert!(N.is_power_of_two()) };
    // As above.
    let length = (opaque(length as u64 - 1) as u32 & (N as u32 - 1)) + 1;
    // SAFETY: as above.
    unsafe { bpf_skb_store_bytes(context.skb.skb, to as u32, bytes.as_ptr().cast(), length, 0) == 0 }
}

/// Makes so much room before a packet that the stack has; existing windows are void after it.
#[inline(always)]
pub fn make_room(context: &TcContext, room: usize) -> bool {
    // SAFETY: as above.
    unsafe { bpf_skb_change_head(context.skb.skb, room as u32, 0) == 0 }
}

/// Whether a packet on its way out comes from a socket of this machine, and no program of ours has seen it: what is forwarded
/// has come in on an interface.
#[inline(always)]
pub fn is_own(context: &TcContext) -> bool {
    let packet = context.skb.skb;
    // SAFETY: as above.
    unsafe {
        read_volatile(addr_of!((*packet).ingress_ifindex)) == 0
            && read_volatile(addr_of!((*packet).tc_index)) != HANDLED
    }
}

/// Has the packet let through by the programs of the interfaces that it passes from here on: it is counted.
#[inline(always)]
pub fn set_handled(context: &TcContext) {
    // SAFETY: as above; the field may be written.
    unsafe { write_volatile(addr_of_mut!((*context.skb.skb).tc_index), HANDLED) };
}

/// What [`set_piece`] leaves there.
const PIECE: u32 = 0x7670;

/// Has copies of the packet taken for what [`Cutting`](crate::maps::Cutting) says of them.
#[inline(always)]
pub fn set_piece(context: &TcContext) {
    // SAFETY: as above.
    unsafe { write_volatile(addr_of_mut!((*context.skb.skb).tc_index), PIECE) };
}

/// Whether a packet is such a copy.
#[inline(always)]
pub fn is_piece(context: &TcContext) -> bool {
    // SAFETY: as above.
    unsafe { read_volatile(addr_of!((*context.skb.skb).tc_index)) == PIECE }
}

/// The interface that a packet leaves by.
#[inline(always)]
pub fn leaves_by(context: &TcContext) -> u32 {
    // SAFETY: as above.
    unsafe { read_volatile(addr_of!((*context.skb.skb).ifindex)) }
}

/// Bytes of payload in each of those that a packet is still; 0 if it is one.
#[inline(always)]
pub fn segment(context: &TcContext) -> u32 {
    // SAFETY: as above.
    unsafe { read_volatile(addr_of!((*context.skb.skb).gso_size)) }
}
