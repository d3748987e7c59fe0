//! What NIXL's interface and its library ask `unsafe` for, and nothing else.
#![allow(unsafe_code)]

use std::ffi::{c_int, c_void};
use std::ptr::{self, NonNull};
use std::slice;
use std::sync::Once;

use bytes::Bytes;
use nixl_sys::{MemType, MemoryRegion, NixlDescriptor};

/// Slots of the same length, one after the other, at an address that does not change.
#[derive(Debug)]
pub(super) struct Memory {
    start: NonNull<u8>,
    slots: usize,
    slot_bytes: usize,
}

// SAFETY: it owns what `start` points to, and nothing of it depends on the thread.
unsafe impl Send for Memory {}
// SAFETY: what is shared can only be read (`Memory::read`), and see there.
unsafe impl Sync for Memory {}

impl Memory {
    /// Zeros. None: so many bytes cannot be addressed.
    pub(super) fn new(slots: usize, slot_bytes: usize) -> Option<Self> {
        let bytes = vec![0_u8; slots.checked_mul(slot_bytes)?].into_boxed_slice();
        Some(Self { start: NonNull::from(Box::leak(bytes)).cast(), slots, slot_bytes })
    }

    /// Where a slot begins, if there is one that holds so many bytes.
    pub(super) fn address(&self, slot: usize, length: usize) -> Option<usize> {
        let fits = slot < self.slots && length <= self.slot_bytes;
        fits.then(|| self.start.as_ptr() as usize + slot * self.slot_bytes)
    }

    /// Puts bytes into a slot. None: they do not fit.
    pub(super) fn write(&mut self, slot: usize, bytes: &[u8]) -> Option<()> {
        self.address(slot, bytes.len())?;
        // SAFETY: the slot is within what `start` points to and as long as `bytes`, which cannot overlap it as nobody is
        // given a reference to it. Others may read it at this moment, but only by NIXL, that is not as memory of this
        // program.
        unsafe {
            let slot = self.start.as_ptr().add(slot * self.slot_bytes);
            ptr::copy_nonoverlapping(bytes.as_ptr(), slot, bytes.len());
        }
        Some(())
    }

    /// A copy of what a slot begins with. None: it is not so long. While NIXL fills a slot the caller must not read it: that
    /// is no danger to memory, but what is read would not be whole.
    pub(super) fn read(&self, slot: usize, length: usize) -> Option<Bytes> {
        self.address(slot, length)?;
        // SAFETY: the bytes are within what `start` points to and were zeros at first. NIXL fills a slot by calls of the one
        // thread that has the link, which is this one, or by a device.
        let bytes = unsafe { slice::from_raw_parts(self.start.as_ptr().add(slot * self.slot_bytes), length) };
        Some(Bytes::copy_from_slice(bytes))
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        let bytes = ptr::slice_from_raw_parts_mut(self.start.as_ptr(), self.slots * self.slot_bytes);
        // SAFETY: this is the box that `new` leaked, with its length.
        drop(unsafe { Box::from_raw(bytes) });
    }
}

impl MemoryRegion for Memory {
    unsafe fn as_ptr(&self) -> *const u8 {
        self.start.as_ptr()
    }

    fn size(&self) -> usize {
        self.slots * self.slot_bytes
    }
}

impl NixlDescriptor for Memory {
    fn mem_type(&self) -> MemType {
        MemType::Dram
    }

    fn device_id(&self) -> u64 {
        0
    }
}

unsafe extern "C" {
    /// As `atexit`, but `function` is told the exit code. In glibc, with which alone NIXL's library comes.
    fn on_exit(function: extern "C" fn(c_int, *mut c_void), argument: *mut c_void) -> c_int;
}

/// From now on this process ends without the destructors of shared libraries: those of NIXL's crash, more so while a thread
/// is still in them. The exit code stays, and what `main` has printed is flushed.
pub(super) fn end_without_destructors() {
    extern "C" fn end(code: c_int, _: *mut c_void) {
        // SAFETY: both may be called at any time; the process ends here.
        unsafe {
            libc::fflush(ptr::null_mut());
            libc::_exit(code)
        }
    }
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        // SAFETY: `end` is a function of that type that never returns; it takes no argument. What is registered last is
        // called first, so before everything that the library has registered when it was loaded.
        unsafe { on_exit(end, ptr::null_mut()) };
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_are_apart_and_as_long_as_they_are() {
        let mut memory = Memory::new(2, 4).unwrap();
        assert_eq!(memory.write(1, &[1, 2, 3, 4]), Some(()));
        assert_eq!(memory.write(0, &[5, 6]), Some(()));
        assert_eq!(memory.read(0, 4).unwrap(), [5, 6, 0, 0][..]);
        assert_eq!(memory.read(1, 3).unwrap(), [1, 2, 3][..]);
        assert_eq!(memory.address(1, 4).unwrap(), memory.address(0, 0).unwrap() + 4);
        assert_eq!(memory.write(2, &[]), None);
        assert_eq!(memory.write(0, &[0; 5]), None);
        assert_eq!(memory.read(0, 5), None);
        assert!(Memory::new(usize::MAX, 2).is_none());
    }
}
