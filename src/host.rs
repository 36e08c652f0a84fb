//! Host memory as device memory: the buffers of the CPU backend and of the reference.

use std::{
    alloc::{Layout, alloc_zeroed, dealloc},
    fmt,
    ptr::NonNull,
    sync::{Arc, Mutex},
};

use memmap2::{MmapMut, MmapRaw};

use crate::{
    backend::{Buffer, Memory, RawBuffer, Token, View},
    error::{Error, Result},
};

/// Counts bytes against a limit; shared by a device and its buffers.
#[derive(Debug)]
pub(crate) struct Account {
    device: String,
    memory: Mutex<Memory>,
}

impl Account {
    pub(crate) fn new(device: impl Into<String>, limit: usize) -> Arc<Self> {
        Arc::new(Account { device: device.into(), memory: Mutex::new(Memory { limit, ..Memory::default() }) })
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Memory> {
        self.memory.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    pub(crate) fn memory(&self) -> Memory {
        *self.lock()
    }

    pub(crate) fn take(&self, bytes: usize) -> Result<()> {
        let mut m = self.lock();
        let available = if m.limit == 0 { usize::MAX } else { m.limit.saturating_sub(m.used) };
        if bytes > available {
            return Err(Error::OutOfMemory { device: self.device.clone(), bytes, available: Some(available) });
        }
        m.used += bytes;
        m.peak = m.peak.max(m.used);
        Ok(())
    }

    pub(crate) fn give_back(&self, bytes: usize) {
        self.lock().used -= bytes;
    }
}

enum Storage {
    /// Large memory, of pages that the system was asked to make large.
    Mapped {
        map: MmapRaw,
        account: Arc<Account>,
    },
    Owned {
        pointer: NonNull<u8>,
        layout: Layout,
        account: Arc<Account>,
    },
    /// Asked for its bytes once: nothing keeps `as_ref` from giving other ones later.
    Adopted {
        pointer: NonNull<u8>,
        _owner: Arc<dyn AsRef<[u8]> + Send + Sync>,
    },
}

/// Bytes on the host. Access goes through raw pointers: the owning device serializes it (its queue's lock).
pub(crate) struct HostBuffer {
    storage: Storage,
    len: usize,
    token: Token,
}

// SAFETY: the memory is owned (or shared read-only) and touched only under the owning device's queue lock.
unsafe impl Send for HostBuffer {}
// SAFETY: as above; `&HostBuffer` gives out no references to the bytes, only pointers used under that lock.
unsafe impl Sync for HostBuffer {}

/// Alignment of every owned buffer: a cache line, and the widest vector.
pub(crate) const ALIGN: usize = 64;

/// Bytes from which memory is mapped in large pages, two of them at least: walking the tables of small ones costs a sixth of what a core
/// reads from memory (Xeon, model 207: 12 to 13 GB/s instead of 15 to 16).
const LARGE: usize = 4 << 20;

impl HostBuffer {
    /// Zeroed memory.
    pub(crate) fn alloc(bytes: usize, token: Token, account: &Arc<Account>) -> Result<Buffer> {
        // Rounded up so that a vector load at the last element stays inside, and never of size 0.
        let padded = bytes.max(1).checked_next_multiple_of(ALIGN);
        let layout = padded.and_then(|n| Layout::from_size_align(n, ALIGN).ok());
        let oom = || Error::OutOfMemory { device: account.device.clone(), bytes, available: None };
        let layout = layout.ok_or_else(oom)?;
        account.take(layout.size())?;
        if layout.size() >= LARGE
            && let Some(map) = map(layout.size())
        {
            return Ok(Arc::new(HostBuffer {
                storage: Storage::Mapped { map, account: account.clone() },
                len: bytes,
                token,
            }));
        }
        // SAFETY: the layout's size is at least 1.
        let Some(pointer) = NonNull::new(unsafe { alloc_zeroed(layout) }) else {
            account.give_back(layout.size());
            return Err(oom());
        };
        let storage = Storage::Owned { pointer, layout, account: account.clone() };
        Ok(Arc::new(HostBuffer { storage, len: bytes, token }))
    }

    /// Someone else's memory, read in place; `None` where it is less aligned than any element may be.
    pub(crate) fn adopt(bytes: Arc<dyn AsRef<[u8]> + Send + Sync>, token: Token) -> Option<Buffer> {
        // Shared borrows of the owner live as long as it is held, so the pointer stays good.
        let slice = (*bytes).as_ref();
        let (pointer, len) = (NonNull::from(slice).cast::<u8>(), slice.len());
        let aligned = pointer.addr().get().is_multiple_of(8);
        aligned.then(|| -> Buffer {
            Arc::new(HostBuffer { storage: Storage::Adopted { pointer, _owner: bytes }, len, token })
        })
    }

    /// First byte. Valid for `len` bytes; for writes only where the buffer is not read-only.
    pub(crate) fn pointer(&self) -> *mut u8 {
        match &self.storage {
            Storage::Mapped { map, .. } => map.as_mut_ptr(),
            Storage::Owned { pointer, .. } | Storage::Adopted { pointer, .. } => pointer.as_ptr(),
        }
    }
}

/// Zeroed memory from the system, where it gives any.
fn map(bytes: usize) -> Option<MmapRaw> {
    let map = MmapRaw::from(MmapMut::map_anon(bytes).ok()?);
    #[cfg(target_os = "linux")]
    let _ = map.advise(memmap2::Advice::HugePage); // a wish
    Some(map)
}

impl Drop for HostBuffer {
    fn drop(&mut self) {
        match &self.storage {
            Storage::Mapped { map, account } => account.give_back(map.len()),
            Storage::Owned { pointer, layout, account } => {
                // SAFETY: allocated in `alloc` with this layout, freed once.
                unsafe { dealloc(pointer.as_ptr(), *layout) };
                account.give_back(layout.size());
            }
            Storage::Adopted { .. } => {}
        }
    }
}

impl fmt::Debug for HostBuffer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HostBuffer").field("len", &self.len).field("token", &self.token).finish_non_exhaustive()
    }
}

impl RawBuffer for HostBuffer {
    fn len(&self) -> usize {
        self.len
    }
    fn token(&self) -> Token {
        self.token
    }
    fn read_only(&self) -> bool {
        matches!(self.storage, Storage::Adopted { .. })
    }
}

/// First byte of a view of the device `token`'s buffer; an error for another's, which another lock guards.
pub(crate) fn pointer(view: &View, token: Token) -> Result<*mut u8> {
    let buffer: Option<&HostBuffer> = view.downcast();
    let buffer = buffer.filter(|b| b.token == token);
    let buffer = buffer.ok_or_else(|| Error::invalid("view", "not of this device's memory"))?;
    // SAFETY: a view's offset lies inside its buffer, or at its end.
    Ok(unsafe { buffer.pointer().add(view.offset()) })
}

/// Copies host bytes in. The caller holds the lock of the device `token`.
pub(crate) fn write(dst: &View, src: &[u8], token: Token) -> Result<()> {
    if dst.buffer().read_only() {
        return Err(Error::invalid("write", "the memory was adopted, and is only read"));
    }
    if dst.len() != src.len() {
        return Err(Error::invalid("write", format_args!("{} bytes into a view of {}", src.len(), dst.len())));
    }
    let to = pointer(dst, token)?;
    // SAFETY: `to` is valid for `dst.len()` writable bytes, and `src` is a borrow that cannot overlap device memory
    // being written under the device's lock.
    unsafe { std::ptr::copy_nonoverlapping(src.as_ptr(), to, src.len()) };
    Ok(())
}

/// Copies bytes out. The caller holds the lock of the device `token`.
pub(crate) fn read(src: &View, dst: &mut [u8], token: Token) -> Result<()> {
    if dst.len() != src.len() {
        return Err(Error::invalid("read", format_args!("a view of {} bytes into {}", src.len(), dst.len())));
    }
    let from = pointer(src, token)?;
    // SAFETY: `from` is valid for `src.len()` bytes; `dst` is a distinct mutable borrow.
    unsafe { std::ptr::copy_nonoverlapping(from, dst.as_mut_ptr(), dst.len()) };
    Ok(())
}
