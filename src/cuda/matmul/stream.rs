//! Tiles whose number would leave a part of the device idle: see kernels/gemm_stream.cu.

use super::{BLOCKS, DType, Kernel, Numerics, Product, SPLITS};

/// The least steps of k that a block's share should have.
const SHARE: usize = 4;

impl Product<'_> {
    /// Blocks with equal shares of all tiles' steps, and the kernel that adds the parts of tiles.
    pub(super) fn stream(&self, processors: usize) -> Option<Vec<Kernel>> {
        let [batch, m, n, k, groups] = self.sizes;
        let (tall, fast) = (m > 64, self.numerics == Numerics::Fast);
        let (x, entry) = match (self.types()?, tall) {
            ((x @ DType::BF16, DType::BF16), true) => (x, "bf16_stream_128"),
            ((x @ DType::BF16, DType::BF16), false) => (x, "bf16_stream_64"),
            ((x @ DType::F16, DType::F16), true) => (x, "f16_stream_128"),
            ((x @ DType::F16, DType::F16), false) => (x, "f16_stream_64"),
            ((x @ DType::F32, DType::F32), true) if fast => (x, "tf32_stream_128"),
            ((x @ DType::F32, DType::F32), false) if fast => (x, "tf32_stream_64"),
            _ => return None,
        };
        let bytes = x.block().1;
        let plain = batch == 1 && groups == 0 && self.spec("up").is_none() && self.w_scales != BLOCKS;
        let height = if tall { 128 } else { 64 };
        let (tiles, steps) = (m.div_ceil(height) * n.div_ceil(128), (k * bytes).div_ceil(64));
        if !plain || m <= 16 || !self.aligned(16 / bytes) || tiles.saturating_mul(steps) > i32::MAX as usize {
            return None;
        }
        let most = 2 * processors; // at once
        // Where tiles, or equal parts of k, keep nine blocks of ten busy, they need nothing else.
        let blocks = tiles * (most / tiles).min(steps / 8).max(1);
        if blocks * 10 >= blocks.next_multiple_of(most) * 9 {
            return None;
        }
        let blocks = most.min((tiles * steps).div_ceil(SHARE));
        let mut main = self.kernel("gemm_stream", entry);
        main.shared = (4 * (height + 128) * 64).max(height * 128 * 4);
        (main.blocks, main.scratch, main.aligned) = (blocks, blocks * 2 * height * 128 * 4, vec!["x", "w"]);
        if self.direct() {
            main.aligned.push("out");
        }
        let mut sum = self.kernel("gemm_stream", if tall { "sum_128" } else { "sum_64" });
        sum.blocks = tiles;
        sum.replace_word(SPLITS, blocks);
        Some(vec![main, sum])
    }
}
