//! Device memory: separate buffers with gaps between them; every access is checked.

/// Where a file's own arrays lie.
pub const GLW: u64 = 0x6000_0000_0000;
pub const SHW: u64 = 0x7000_0000_0000;
pub const PAW: u64 = 0x7100_0000_0000;
pub const LOW: u64 = 0x7200_0000_0000;
/// device memory: separate buffers with guard gaps, every access bounds-checked
#[derive(Default)]
pub struct Mem {
    pub bufs: Vec<(u64, Vec<u8>)>,
}
impl Mem {
    pub fn alloc(&mut self, d: Vec<u8>) -> u64 {
        let a = self.bufs.last().map_or(0x10_0000, |(b, v)| (b + v.len() as u64 + 4096).div_ceil(512) * 512);
        self.bufs.push((a, d));
        a
    }
    /// The bytes at an address, where they lie within one buffer.
    pub fn at(&mut self, a: u64, n: usize) -> Option<&mut [u8]> {
        let i = self.bufs.partition_point(|b| b.0 <= a);
        let b = self.bufs.get_mut(i.checked_sub(1)?)?;
        let o = (a - b.0) as usize;
        b.1.get_mut(o..o + n)
    }
    /// Forgets a buffer: any later access to it is an error.
    pub fn free(&mut self, a: u64) {
        self.bufs.retain(|b| b.0 != a);
    }
}
