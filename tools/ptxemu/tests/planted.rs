//! The interpreter is itself tested: each planted bug must be caught, with every order of the warps, and its correct twin must run.

use ptxemu::{Grid, Memory, Module};

/// A kernel of 64 threads with a buffer of 64 words as its parameter, `%rd1` its address, `%r1` the thread, `%rd2` the thread's word.
fn text(body: &str) -> String {
    format!(
        ".version 8.0\n.target sm_90a\n.address_size 64\n.visible .entry k(.param .u64 p)\n{{\n\
         .reg .pred %p<4>; .reg .b32 %r<16>; .reg .b64 %rd<16>; .reg .f32 %f<16>;\n.shared .align 1024 .b8 s[16384];\n\
         ld.param.u64 %rd1, [p]; mov.u32 %r1, %tid.x; mul.wide.u32 %rd2, %r1, 4; add.s64 %rd2, %rd1, %rd2;\n\
         mov.u32 %r2, s; shl.b32 %r3, %r1, 2; add.s32 %r3, %r2, %r3;\n{body}\nret;\n}}\n"
    )
}

/// What each of several orders says.
fn run(body: &str, threads: u32) -> Vec<Result<Vec<u32>, String>> {
    run_text(&text(body), threads)
}

fn run_text(text: &str, threads: u32) -> Vec<Result<Vec<u32>, String>> {
    let module = match Module::new(text) {
        Ok(module) => module,
        Err(why) => return vec![Err(why)],
    };
    let one = |seed: u64| {
        let mut memory = Memory::default();
        let at = memory.alloc((0..64u32).flat_map(|i| (i + 1).to_le_bytes()).collect());
        let grid = Grid { blocks: [1, 1, 1], threads, cluster: 1, shared: 0 };
        module.launch("k", &mut memory, &at.to_le_bytes(), grid, seed.wrapping_mul(0x9e37_79b9_7f4a_7c15))?;
        let bytes = memory.at(at, 256).ok_or("no buffer")?;
        Ok(bytes.chunks(4).map(|c| u32::from_le_bytes([c[0], c[1], c[2], c[3]])).collect())
    };
    (1..9).map(one).collect()
}

#[track_caller]
fn caught(body: &str, threads: u32, word: &str) {
    for outcome in run(body, threads) {
        let why = outcome.expect_err("a planted bug");
        assert!(why.contains(word), "{why}");
    }
}

#[track_caller]
fn runs(body: &str, threads: u32) -> Vec<u32> {
    run(body, threads).into_iter().map(|r| r.expect("a right kernel")).next_back().expect("a run")
}

const SWAP: &str = "ld.global.u32 %r4, [%rd2]; st.shared.u32 [%r3], %r4; BARRIER xor.b32 %r5, %r1, 63; shl.b32 %r5, %r5, 2; \
                    add.s32 %r5, %r2, %r5; ld.shared.u32 %r6, [%r5]; st.global.u32 [%rd2], %r6;";

#[test]
fn a_missing_barrier() {
    let got = runs(&SWAP.replace("BARRIER", "bar.sync 0;"), 64);
    assert_eq!(got, (1..=64).rev().collect::<Vec<u32>>());
    caught(&SWAP.replace("BARRIER", ""), 64, "race");
}

#[test]
fn access_outside_and_askew() {
    caught("ld.global.u32 %r4, [%rd2+256]; st.global.u32 [%rd2], %r4;", 64, "out-of-bounds");
    caught("ld.global.u32 %r4, [%rd2+2];", 32, "misaligned");
    caught("st.shared.u32 [%r3+16384], %r1;", 32, "out-of-bounds");
}

#[test]
fn memory_given_back() {
    let module = Module::new(&text("st.global.u32 [%rd2], %r1;")).expect("parses");
    let mut memory = Memory::default();
    let at = memory.alloc(vec![0; 256]);
    memory.free(at);
    let grid = Grid { blocks: [1, 1, 1], threads: 32, cluster: 1, shared: 0 };
    assert!(module.launch("k", &mut memory, &at.to_le_bytes(), grid, 1).is_err());
}

#[test]
fn arrays_of_the_file() {
    let body = "mov.u64 %rd3, t; mul.wide.u32 %rd4, %r1, 2; add.s64 %rd3, %rd3, %rd4; ld.global.nc.u16 %r4, [%rd3]; \
                st.global.u32 [%rd2], %r4;";
    let with = |threads| {
        let text = text(body).replace(".visible", ".global .align 2 .b8 t[8] = {1, 0, 2, 1, 3};\n.visible");
        let (module, mut memory) = (Module::new(&text).expect("parses"), Memory::default());
        let at = memory.alloc(vec![0; 256]);
        let grid = Grid { blocks: [1, 1, 1], threads, cluster: 1, shared: 0 };
        module.launch("k", &mut memory, &at.to_le_bytes(), grid, 1).map(|_| memory.at(at, 16).map(|b| b.to_vec()))
    };
    let words = [1u32, 258, 3, 0].iter().flat_map(|w| w.to_le_bytes()).collect::<Vec<u8>>();
    assert_eq!(with(4), Ok(Some(words)));
    assert!(with(5).is_err_and(|why| why.contains("out-of-bounds")));
}

const COPY: &str = "mul.wide.u32 %rd3, %r1, 16; add.s64 %rd3, %rd1, %rd3; shl.b32 %r4, %r1, 4; add.s32 %r4, %r2, %r4; \
                    setp.gt.u32 %p1, %r1, 15; @%p1 bra DONE; cp.async.cg.shared.global [%r4], [%rd3], 16; cp.async.commit_group; \
                    WAIT ld.shared.u32 %r5, [%r4]; st.global.u32 [%rd3], %r5; DONE:";

#[test]
fn a_copy_nobody_waited_for() {
    let right = runs(&COPY.replace("WAIT", "cp.async.wait_group 0;"), 32);
    assert_eq!(right, (1..=64).collect::<Vec<u32>>());
    for wrong in run(&COPY.replace("WAIT", ""), 32) {
        assert_ne!(wrong.expect("runs"), right, "the target is poisoned");
    }
}

#[test]
fn a_barrier_that_some_never_reach() {
    caught("setp.lt.u32 %p1, %r1, 32; LOOP: @%p1 bra LOOP; bar.sync 0;", 64, "deadlock");
}

#[test]
fn part_of_a_warp_at_a_shuffle() {
    let all = "setp.ne.u32 %p1, %r1, 99; @%p1 shfl.sync.bfly.b32 %r4, %r1, 1, 31, -1; st.global.u32 [%rd2], %r4;";
    assert_eq!(runs(all, 32)[..4], [1, 0, 3, 2]);
    caught(&all.replace("99", "0"), 32, "inactive");
}

/// Each warp's odd threads, counted by one ballot; each thread adds its own number to one of two sums.
const COUNT: &str = "st.shared.u32 [%r3], 0; BARRIER and.b32 %r4, %r1, 1; setp.eq.u32 %p1, %r4, 1; vote.sync.ballot.b32 %r5, %p1, -1; \
                     popc.b32 %r5, %r5; shl.b32 %r6, %r4, 2; add.s32 %r6, %r2, %r6; atom.shared.add.u32 %r7, [%r6], %r1; bar.sync 0; \
                     ld.shared.u32 %r8, [%r6]; add.s32 %r8, %r8, %r5; st.global.u32 [%rd2], %r8;";

#[test]
fn ballots_and_atomic_sums() {
    let got = runs(&COUNT.replace("BARRIER", "bar.sync 0;"), 64);
    assert_eq!(got[..2], [992 + 16, 1024 + 16]);
    assert_eq!(got[62..], got[..2]);
    caught(&COUNT.replace("BARRIER", ""), 64, "race");
    caught("atom.shared.add.u32 %r7, [%r2], 1; ld.shared.u32 %r8, [%r2]; st.global.u32 [%rd2], %r8;", 64, "race");
    caught("red.shared.add.f32 [%r2], %f1;", 32, "not supported");
    caught("setp.lt.u32 %p1, %r1, 32; vote.sync.ballot.b32 %r5, %p1, 255;", 32, "vote");
}

#[test]
fn what_is_not_known_is_an_error() {
    caught("frobnicate.b32 %r4, %r1;", 32, "not supported");
    caught("add.rp.f32 %f1, %f2, %f3;", 32, "not supported");
    caught("mov.u32 %r4, %clock;", 32, "not understood");
}

/// A product of a warpgroup whose accumulators are written before and read after.
const PRODUCT: &str = "mov.f32 %f0, 0f00000000; mov.f32 %f1, %f0; mov.f32 %f2, %f0; mov.f32 %f3, %f0; mov.u64 %rd5, 0x4000004000010000; \
                       st.shared.u32 [%r3], 0; bar.sync 0; setp.eq.u32 %p1, %r1, %r1; FENCE \
                       wgmma.mma_async.sync.aligned.m64n8k16.f32.bf16.bf16 {%f0,%f1,%f2,%f3}, %rd5, %rd5, %p1, 1, 1, 0, 0; \
                       wgmma.commit_group.sync.aligned; WAIT add.f32 %f4, %f0, %f1;";

#[test]
fn products_without_fence_or_wait() {
    let (fence, wait) = ("wgmma.fence.sync.aligned;", "wgmma.wait_group.sync.aligned 0;");
    let with = |f: &str, w: &str| PRODUCT.replace("FENCE", f).replace("WAIT", w);
    runs(&with(fence, wait), 128);
    caught(&with("", wait), 128, "wgmma.fence");
    caught(&with(fence, ""), 128, "wgmma.wait_group");
    caught(&with(fence, "wgmma.wait_group.sync.aligned 1;"), 128, "wgmma.wait_group");
}

/// Two blocks of 32 threads that meet: each reads what the other wrote to its shared memory.
fn exchange(cluster: u32, meet: &str) -> Vec<Result<Vec<u32>, String>> {
    let body = format!(
        "mov.u32 %r7, %cluster_ctarank; mov.u32 %r8, %ctaid.x; xor.b32 %r9, %r7, 1; shl.b32 %r4, %r8, 8; add.s32 %r4, %r4, %r1;\n\
         st.shared.u32 [%r3], %r4; {meet}\nmapa.shared::cluster.u32 %r5, %r3, %r9; ld.shared::cluster.u32 %r6, [%r5];\n\
         mul.wide.u32 %rd3, %r8, 128; add.s64 %rd2, %rd2, %rd3; st.global.u32 [%rd2], %r6;"
    );
    let module = Module::new(&text(&body)).expect("parses");
    let one = |seed: u64| {
        let mut memory = Memory::default();
        let at = memory.alloc(vec![0; 256]);
        let grid = Grid { blocks: [2, 1, 1], threads: 32, cluster, shared: 0 };
        module.launch("k", &mut memory, &at.to_le_bytes(), grid, seed.wrapping_mul(0x9e37_79b9_7f4a_7c15))?;
        let bytes = memory.at(at, 256).ok_or("no buffer")?;
        Ok(bytes.chunks(4).map(|c| u32::from_le_bytes([c[0], c[1], c[2], c[3]])).collect())
    };
    (1..9).map(one).collect()
}

#[test]
fn clusters() {
    let meet = "barrier.cluster.arrive.release; barrier.cluster.wait.acquire;";
    let swapped: Vec<u32> = (256..288).chain(0..32).collect();
    assert!(exchange(2, meet).into_iter().all(|r| r.as_ref() == Ok(&swapped)));
    assert!(exchange(1, meet).into_iter().all(|r| r.is_err()), "no second block to read from");
    assert!(exchange(2, "").into_iter().any(|r| r.as_ref() != Ok(&swapped)), "blocks that do not wait for each other");
}

#[test]
fn tensors_copied_to_a_cluster() {
    // A box of 4 rows of 128 bytes from row 1 of a tensor of 3: rows 1 and 2, then zeros, swizzled; to both blocks.
    let map = ptxemu::TensorMap {
        address: 0,
        extents: [64, 3, 2, 1],
        strides: [128, 384, 768],
        rows: 4,
        columns: 64,
        element: 2,
        swizzled: true,
    };
    let text = ".version 8.0\n.target sm_90a\n.address_size 64\n.visible .entry k(.param .align 64 .b8 p[192])\n{\n\
         .reg .pred %p<4>; .reg .b16 %h<2>; .reg .b32 %r<16>; .reg .b64 %rd<16>;\n.shared .align 1024 .b8 s[1024];\n.shared .align 8 .b8 m[8];\n\
         mov.u64 %rd1, p; cvta.param.u64 %rd2, %rd1; ld.param.u64 %rd3, [p+128]; mov.u32 %r1, %tid.x; mov.u32 %r2, s; mov.u32 %r3, m;\n\
         mov.u32 %r4, %cluster_ctarank; setp.ne.u32 %p1, %r1, 0; mov.u16 %h1, 3;\n\
         @!%p1 mbarrier.init.shared::cta.b64 [%r3], 1; @!%p1 mbarrier.arrive.expect_tx.shared::cta.b64 _, [%r3], 512;\n\
         barrier.cluster.arrive.release; barrier.cluster.wait.acquire; setp.eq.u32 %p2, %r4, 0; @%p1 bra W; @!%p2 bra W;\n\
         cp.async.bulk.tensor.4d.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster [%r2], [%rd2, {0, 1, 1, 0}], [%r3], %h1;\n\
         W: mbarrier.try_wait.parity.shared::cta.b64 %p3, [%r3], 0; @!%p3 bra W;\n\
         shl.b32 %r5, %r1, 4; add.s32 %r5, %r2, %r5; ld.shared.v4.u32 {%r6, %r7, %r8, %r9}, [%r5];\n\
         mul.wide.u32 %rd4, %r4, 512; mul.wide.u32 %rd5, %r1, 16; add.s64 %rd3, %rd3, %rd4; add.s64 %rd3, %rd3, %rd5;\n\
         st.global.v4.u32 [%rd3], {%r6, %r7, %r8, %r9}; barrier.cluster.arrive.release; barrier.cluster.wait.acquire;\nret;\n}\n";
    let module = Module::new(text).expect("parses");
    for seed in 1..9u64 {
        let mut memory = Memory::default();
        let values: Vec<u16> = (0..2 * 3 * 64).collect();
        let from = memory.alloc(values.iter().flat_map(|v| v.to_le_bytes()).collect());
        let to = memory.alloc(vec![0xff; 1024]);
        let mut params: Vec<u8> =
            ptxemu::TensorMap { address: from, ..map }.encoded().iter().flat_map(|w| w.to_le_bytes()).collect();
        params.extend([to, 0, 0, 0, 0, 0, 0, 0].iter().flat_map(|w| w.to_le_bytes()));
        let grid = Grid { blocks: [2, 1, 1], threads: 32, cluster: 2, shared: 0 };
        module.launch("k", &mut memory, &params, grid, seed * 77).expect("runs");
        let got: Vec<u16> =
            memory.at(to, 1024).expect("it").chunks(2).map(|c| u16::from_le_bytes([c[0], c[1]])).collect();
        for (i, &v) in got.iter().enumerate() {
            let (row, chunk, inside) = (i % 256 / 64, i % 64 / 8, i % 8);
            let column = (chunk ^ row) * 8 + inside;
            let want = if row < 2 { 192 + (row + 1) * 64 + column } else { 0 };
            assert_eq!(v as usize, want, "element {i}");
        }
    }
}

#[test]
fn writes_before_the_launches_before_are_done() {
    let (wait, next, write) =
        ("griddepcontrol.wait;", "griddepcontrol.launch_dependents;", "st.global.u32 [%rd2], %r1;");
    runs(&format!("ld.global.u32 %r4, [%rd2]; {wait} {next} {write}"), 64);
    caught(&format!("{write} {wait} {next}"), 64, "has waited");
    caught(&format!("red.global.add.u32 [%rd2], %r1; {wait}"), 64, "has waited");
    caught(&format!("{next} {wait} {write}"), 64, "has waited");
    caught(&format!("setp.lt.u32 %p1, %r1, 32; @%p1 bra E; {wait} E:"), 64, "has waited");
}

#[test]
fn one_lane_elected() {
    let elect = "elect.sync %r4|%p1, -1; selp.u32 %r5, 1, 0, %p1; st.global.u32 [%rd2], %r5;";
    let got = runs(elect, 64);
    assert_eq!((got.iter().sum::<u32>(), got[0], got[32]), (2, 1, 1));
    caught(&format!("setp.lt.u32 %p2, %r1, 16; @%p2 bra E; {elect} E:"), 32, "elected");
}

/// 256 bytes of shared memory to 1024 bytes behind, which a barrier at 4096 learns of; then each thread takes its word of the copy.
const SENT: &str = "setp.ne.u32 %p1, %r1, 0; @%p1 bra M; add.s32 %r8, %r2, 4096; mbarrier.init.shared::cta.b64 [%r8], 1; M: \
                    st.shared.u32 [%r3], %r1; fence.proxy.async; bar.sync 0; add.s32 %r8, %r2, 4096; add.s32 %r9, %r2, 1024; \
                    mapa.shared::cluster.u32 %r10, %r9, 0; mapa.shared::cluster.u32 %r11, %r8, 0; @%p1 bra W; \
                    mbarrier.arrive.expect_tx.shared::cta.b64 _, [%r8], BYTES; \
                    cp.async.bulk.shared::cluster.shared::cta.mbarrier::complete_tx::bytes [%r10], [%r2], BYTES, [%r11]; W: bar.sync 0; \
                    T: mbarrier.try_wait.parity.shared::cta.b64 %p2, [%r8], 0; @!%p2 bra T; \
                    ld.shared.u32 %r4, [%r3+1024]; st.global.u32 [%rd2], %r4;";

#[test]
fn copies_between_blocks() {
    assert_eq!(runs(&SENT.replace("BYTES", "256"), 64), (0..64).collect::<Vec<u32>>());
    caught(&SENT.replace("BYTES", "100"), 64, "misaligned");
    let early = SENT.replace("BYTES", "256").replace("@!%p2 bra T;", "");
    assert!(
        run(&early, 64).into_iter().any(|r| r.is_ok_and(|words| words.contains(&u32::MAX))),
        "read before it is there"
    );
}

#[test]
fn more_registers_than_there_are() {
    // Three warpgroups begin with 168 registers a thread.
    let split = |down: u32, up: u32| {
        format!(
            "setp.lt.u32 %p1, %r1, 128; @%p1 bra D; setmaxnreg.inc.sync.aligned.u32 {up}; bra E;\n\
             D: setmaxnreg.dec.sync.aligned.u32 {down};\nE:"
        )
    };
    runs(&split(56, 224), 384);
    caught(&split(64, 224), 384, "registers");
    // With two blocks a multiprocessor, 80.
    let two = |down: u32, up: u32| text(&split(down, up)).replace("(.param .u64 p)", "(.param .u64 p) .minnctapersm 2");
    assert!(run_text(&two(32, 104), 384).iter().all(Result::is_ok));
    assert!(run_text(&two(40, 104), 384).iter().all(|r| r.as_ref().is_err_and(|why| why.contains("registers"))));
}

/// A product of weights in registers, ones at k = 0, 2, 4, 6 of rows 0 .. 7 and 8, 10, 12, 14 of rows 8 .. 15 of each warp, and a tile
/// of lines of k, each of k + 1 throughout.
const FRAGMENT: &str = "shr.u32 %r4, %r1, 3; add.s32 %r5, %r4, 1; cvt.rn.f32.u32 %f5, %r5; mov.b32 %r6, %f5; shr.u32 %r7, %r6, 16; or.b32 %r6, %r6, %r7; \
                        shl.b32 %r8, %r1, 4; add.s32 %r8, %r2, %r8; st.shared.v4.u32 [%r8], {%r6,%r6,%r6,%r6}; fence.proxy.async; bar.sync 0; \
                        mov.u32 %r9, 16256; mov.u32 %r10, 0; mov.u64 %rd5, 0x4000004000010000; setp.ne.u32 %p1, %r1, %r1; FENCE \
                        wgmma.mma_async.sync.aligned.m64n8k16.f32.bf16.bf16 {%f0,%f1,%f2,%f3}, {%r9,%r10,%r10,%r9}, %rd5, %p1, 1, 1, 1; \
                        wgmma.commit_group.sync.aligned; WAIT mov.u32 %r9, 0; FINISH cvt.rzi.u32.f32 %r11, %f0; cvt.rzi.u32.f32 %r12, %f3; \
                        shl.b32 %r11, %r11, 8; or.b32 %r11, %r11, %r12; setp.lt.u32 %p2, %r1, 64; @%p2 st.global.u32 [%rd2], %r11;";

#[test]
fn products_of_fragments_and_transposed_tiles() {
    let (fence, wait) = ("wgmma.fence.sync.aligned;", "wgmma.wait_group.sync.aligned 0;");
    let with = |f: &str, w: &str, l: &str| FRAGMENT.replace("FENCE", f).replace("WAIT", w).replace("FINISH", l);
    assert_eq!(runs(&with(fence, wait, ""), 128), [(1 + 3 + 5 + 7) << 8 | (9 + 11 + 13 + 15); 64]);
    caught(&with("", wait, ""), 128, "wgmma.fence");
    caught(&with(fence, "", wait), 128, "wgmma.wait_group");
}
