//! Writing new keys or values into a cache, converting to its dtype.
//!
//! `cache[slots[t]] = x[t]` for each token; a slot below 0 or beyond the cache writes nothing. Where two tokens name the
//! same slot the later one wins. Rows of the cache that no slot names keep their bytes.
//!
//! A paged cache `[pages, page, heads, d]` counts its rows through: slot `page * page_size + row`. Quantized caches
//! (q8_0, q4_0) are encoded exactly as `convert` does, in blocks along `d`; values beyond a float format's range saturate
//! in fp8 and become infinite elsewhere.

use super::*;
use crate::{dtype::DType, layout::Spec};

descriptor! {
    /// `cache[slots[t]] = x[t]`: see the [module](self).
    KvAppend = "kv_append";
    operands {
        /// `[tokens, heads, d]`
        x: In,
        /// i32 `[tokens]`
        slots: In,
        /// `[capacity, heads, d]` or `[pages, page, heads, d]`
        cache: InOut,
    }
    optional {}
    fields {}
}

super::descriptor::unwritten!(KvAppend);
