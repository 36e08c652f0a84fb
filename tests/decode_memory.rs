//! What a loaded model and its decoding take of memory, on the CPU: the weights once, and no allocation per token.
#![cfg(all(feature = "gguf", feature = "cpu"))]

#[path = "../examples/generate/config.rs"]
#[allow(dead_code, reason = "the command needs more of it than these tests")]
mod config;
#[path = "../examples/generate/model.rs"]
#[allow(dead_code, reason = "the command needs more of it than these tests")]
mod model;

use std::{
    alloc::{GlobalAlloc, Layout, System},
    path::Path,
    sync::atomic::{AtomicUsize, Ordering},
};

use model::{Model, Session};
use tesela::{Runtime, gguf::Gguf};

/// Counts allocations, of all threads: so there is one test in this file.
struct Counting;

static COUNT: AtomicUsize = AtomicUsize::new(0);

// SAFETY: hands every call on to the system's allocator.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        COUNT.fetch_add(1, Ordering::Relaxed);
        // SAFETY: the caller's promise, handed on.
        unsafe { System.alloc(layout) }
    }
    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the caller's promise, handed on.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

#[test]
fn weights_are_held_once_and_decoding_allocates_nothing() {
    for variant in ["f32", "f16", "q8_0", "q4_0"] {
        let path = format!("{}/../shared/models/stories260K-{variant}.gguf", env!("CARGO_MANIFEST_DIR"));
        if !Path::new(&path).exists() {
            eprintln!("skipped: {path} is absent");
            return;
        }
        let file = Gguf::open(&path).unwrap();
        let size = (**file.bytes()).as_ref().len();
        let runtime = Runtime::builder().no_cache().allow(&["cpu"]).threads(2).build().unwrap();
        let memory = || runtime.default_device().memory();
        let model = Model::load(&runtime, &file).unwrap();
        let loaded = memory();
        assert!(
            loaded.peak as f64 <= 1.05 * size as f64,
            "{variant}: {} bytes at most, of a file of {size}",
            loaded.peak
        );

        let mut session = Session::new(&model, 64).unwrap();
        let state = memory().used - loaded.used;
        session.prefill(&[1, 403, 407]).unwrap();
        let mut decode = |tokens: usize| {
            for _ in 0..tokens {
                session.sample(0.0, 0).unwrap();
                session.advance().unwrap();
            }
        };
        decode(3); // plans, measures and remembers

        let before = COUNT.load(Ordering::Relaxed);
        decode(40);
        let allocations = COUNT.load(Ordering::Relaxed) - before;
        assert_eq!(allocations, 0, "{variant}: allocations in 40 tokens");

        runtime.default_device().trim(); // scratch memory of the kernels
        let used = memory().used - state;
        assert!(used as f64 <= 1.05 * size as f64, "{variant}: {used} bytes of weights in use, of a file of {size}");
    }
}
