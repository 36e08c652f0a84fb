//! Every refusal of a launch, and aliasing against brute force.

use std::sync::{
    Mutex,
    atomic::{AtomicUsize, Ordering},
};

use proptest::prelude::*;

use super::*;
use crate::{
    backend::{Buffer, Packing, RawBuffer},
    dtype::DType,
    op::{Determinism, Elementwise, Matmul, Numerics, elementwise::Function},
};

/// Counts launches and packings; claims what the test wants.
#[derive(Debug)]
struct Claim {
    op: Op,
    scratch: usize,
    packing: Option<Packing>,
    launched: AtomicUsize,
    packed: Mutex<Vec<Range<usize>>>,
}

impl Claim {
    fn of(op: Op) -> Claim {
        Claim { op, scratch: 0, packing: None, launched: AtomicUsize::new(0), packed: Mutex::default() }
    }
}

impl Plan for Claim {
    fn name(&self) -> &str {
        "claim"
    }
    fn op(&self) -> Op {
        self.op
    }
    fn scratch(&self) -> usize {
        self.scratch
    }
    fn packing(&self, operand: usize) -> Option<Packing> {
        self.packing.filter(|_| operand == 1)
    }
    unsafe fn pack(&self, _operand: usize, rows: Range<usize>, _plain: &View, _packed: &View) -> Result<()> {
        self.packed.lock().expect("no panic while locked").push(rows);
        Ok(())
    }
    unsafe fn launch(&self, _args: &[View], _scratch: Option<&View>) -> Result<()> {
        self.launched.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }
}

#[derive(Debug)]
struct Memory {
    len: usize,
    token: Token,
    read_only: bool,
}

impl RawBuffer for Memory {
    fn len(&self) -> usize {
        self.len
    }
    fn token(&self) -> Token {
        self.token
    }
    fn read_only(&self) -> bool {
        self.read_only
    }
}

fn memory(len: usize, token: Token) -> Buffer {
    Arc::new(Memory { len, token, read_only: false })
}

fn view(len: usize, token: Token) -> View {
    View::whole(memory(len, token))
}

fn spec(dtype: DType, shape: &[usize]) -> Spec {
    Spec::new(dtype, shape).expect("a valid spec")
}

fn matmul() -> Op {
    Matmul::new(spec(DType::F32, &[2, 4]), spec(DType::F32, &[8, 4]), spec(DType::F32, &[2, 8])).into()
}

#[track_caller]
fn refused(result: Result<()>, because: &str) {
    match result {
        Err(Error::Invalid { why, .. }) => assert!(why.contains(because), "{why:?} does not mention {because:?}"),
        other => panic!("{other:?}, expected a refusal because of {because:?}"),
    }
}

#[test]
fn operands_are_checked_in_number_size_place_and_kind() {
    let token = Token::new();
    let plan = Arc::new(Claim { scratch: 100, ..Claim::of(matmul()) });
    let launch = Launch::new(&matmul(), plan.clone(), token).expect("a valid operation");
    let good = || vec![view(32, token), view(128, token), view(64, token)];
    let scratch = view(128, token);
    launch.run(&good(), Some(&scratch)).expect("nothing wrong");
    assert_eq!(plan.launched.load(Ordering::Relaxed), 1);

    let with = |i: usize, v: View| {
        let mut args = good();
        args[i] = v;
        launch.run(&args, Some(&scratch))
    };
    refused(launch.run(&good()[..2], Some(&scratch)), "2 operands given, needs 3: x, w, out");
    refused(with(1, view(128, Token::new())), "w is on another device");
    refused(with(0, view(31, token)), "x needs 32 bytes, has 31");
    refused(with(0, view(40, token).slice(2, 34).expect("inside")), "x begins at byte 2");
    refused(with(2, View::whole(Arc::new(Memory { len: 64, token, read_only: true }))), "read-only");
    with(1, View::whole(Arc::new(Memory { len: 128, token, read_only: true }))).expect("weights are only read");
    let out = good()[2].clone();
    let mut args = good();
    (args[0], args[2]) = (out.slice(0, 32).expect("inside"), out);
    refused(launch.run(&args, Some(&scratch)), "out is written and overlaps x");

    refused(launch.run(&good(), None), "100 bytes of scratch");
    refused(launch.run(&good(), Some(&view(99, token))), "100 bytes of scratch");
    refused(launch.run(&good(), Some(&view(128, Token::new()))), "100 bytes of scratch");
    refused(launch.run(&good(), Some(&view(192, token).slice(4, 128).expect("inside"))), "64-byte aligned");
    refused(with(0, scratch.slice(0, 32).expect("inside")), "scratch memory overlaps");
    assert_eq!(plan.launched.load(Ordering::Relaxed), 2, "nothing refused was launched");
    let wrong = Matmul::new(spec(DType::F32, &[2, 4]), spec(DType::F32, &[8, 5]), spec(DType::F32, &[2, 8]));
    assert!(Launch::new(&wrong.into(), Arc::new(Claim::of(wrong.into())), token).is_err());
    let other = matmul().with_mode(Numerics::Fast, Determinism::Any);
    assert!(Launch::new(&other, plan, token).is_err(), "a kernel made for another operation");
}

#[test]
fn packed_weights_are_checked() {
    let token = Token::new();
    let packing = Packing { name: "tiles", bytes: 160, rows: 4 };
    let plan = Arc::new(Claim { packing: Some(packing), ..Claim::of(matmul()) });
    let launch = Launch::new(&matmul(), plan.clone(), token).expect("a valid operation");
    let args = |w: usize| vec![view(32, token), view(w, token), view(64, token)];
    launch.run(&args(160), None).expect("nothing wrong");
    for wrong in [159, 161, 128] {
        refused(launch.run(&args(wrong), None), "packed weight of 160 bytes");
    }
    let (plain, packed) = (view(64, token), view(160, token));
    launch.pack(1, 0..4, &plain, &packed).expect("nothing wrong");
    launch.pack(1, 4..8, &plain, &packed).expect("nothing wrong");
    assert_eq!(*plan.packed.lock().expect("no panic while locked"), [0..4, 4..8]);
    refused(launch.pack(0, 0..2, &plain, &packed), "reads it plain");
    refused(launch.pack(9, 0..2, &plain, &packed), "reads it plain");
    refused(launch.pack(1, 4..9, &plain, &packed), "out of range");
    refused(launch.pack(1, Range { start: 4, end: 0 }, &plain, &packed), "out of range");
    refused(launch.pack(1, 2..6, &plain, &packed), "multiples of 4");
    refused(launch.pack(1, 0..8, &plain, &packed), "sizes");
    refused(launch.pack(1, 0..4, &plain, &view(128, token)), "sizes");
    refused(launch.pack(1, 0..4, &view(64, Token::new()), &packed), "plan's device");
    refused(launch.pack(1, 0..4, &plain, &view(160, Token::new())), "plan's device");
    let fixed = View::whole(Arc::new(Memory { len: 160, token, read_only: true }));
    refused(launch.pack(1, 0..4, &plain, &fixed), "writable");
    refused(launch.pack(1, 0..4, &packed.slice(32, 64).expect("inside"), &packed), "overlap");
}

#[test]
fn an_output_may_be_an_input_where_the_operation_says_so() {
    let mut op = Elementwise::new(spec(DType::F32, &[4, 4]), spec(DType::F32, &[4, 4]));
    op.function = Function::Relu;
    let launch =
        |op: Elementwise| Launch::new(&op.into(), Arc::new(Claim::of(op.into())), Token::new()).expect("valid");
    let at = |launch: &Launch, a: usize, out: usize| {
        let whole = view(4096, launch.token());
        launch.run(&[whole.slice(a, 512).expect("inside"), whole.slice(out, 512).expect("inside")], None)
    };
    at(&launch(op), 0, 0).expect("in place");
    at(&launch(op), 0, 64).expect("next to it");
    refused(at(&launch(op), 0, 4), "overlaps");
    refused(at(&launch(op), 32, 0), "overlaps");
    op.a = Spec::strided(DType::F32, &[4, 4], &[1, 4]).expect("a valid spec");
    refused(at(&launch(op), 0, 0), "overlaps"); // the same place in another order
}

/// `[batch, tokens, heads, d]` slices of a fused row of 3 d heads.
#[test]
fn slices_of_a_fused_row_are_apart() {
    let (batch, tokens, heads, d) = (2, 3, 4, 8);
    let row = 3 * heads * d;
    let part = Spec::strided(DType::F32, &[batch, tokens, heads, d], &[tokens * row, row, d, 1]).expect("valid");
    let at = |i: usize| i * heads * d * 4;
    for (i, j) in [(0, 1), (1, 2), (0, 2), (2, 0)] {
        assert!(interleave(at(i), &part, at(j), &part), "{i} {j}");
    }
    assert!(!interleave(0, &part, 4, &part) && !interleave(0, &part, 0, &part));
    // heads as the outer dimension, and one of the two with fewer tokens
    let turned = Spec::strided(DType::F32, &[batch, heads, tokens, d], &[tokens * row, d, row, 1]).expect("valid");
    let fewer = Spec::strided(DType::F32, &[2, heads, d], &[row, d, 1]).expect("valid");
    assert!(interleave(at(0), &turned, at(1), &part) && interleave(at(1), &fewer, at(2), &turned));
}

fn small_spec() -> impl Strategy<Value = Spec> {
    let dims =
        prop::collection::vec((1usize..4, prop::sample::select(vec![0usize, 1, 2, 3, 4, 6, 8, 12, 16, 24])), 1..4);
    let dtype = prop::sample::select(vec![DType::F32, DType::F16, DType::U8]);
    (dtype, dims).prop_map(|(dtype, dims)| {
        let (shape, strides): (Vec<_>, Vec<_>) = dims.into_iter().unzip();
        Spec::strided(dtype, &shape, &strides).expect("small specs are valid")
    })
}

fn touched(offset: usize, spec: &Spec) -> std::collections::BTreeSet<usize> {
    let (_, size) = spec.dtype().block();
    spec.offsets().flat_map(|at| offset + at..offset + at + size).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4000))]
    #[test]
    fn apart_is_never_said_wrongly(a in small_spec(), b in small_spec(), a_at in 0usize..40, b_at in 0usize..40) {
        if interleave(a_at, &a, b_at, &b) {
            prop_assert!(touched(a_at, &a).is_disjoint(&touched(b_at, &b)), "{} at {} and {} at {}", a, a_at, b, b_at);
        }
    }

    #[test]
    fn columns_of_one_pitch_are_told_apart(
        pitch in 8usize..40, rows in 2usize..5, a_width in 1usize..8, b_width in 1usize..8, at in 0usize..40,
    ) {
        let at = at % (pitch - b_width + 1);
        let columns = |w| Spec::strided(DType::U8, &[rows, w], &[pitch, 1]).expect("a valid spec");
        let apart = touched(0, &columns(a_width)).is_disjoint(&touched(at, &columns(b_width)));
        prop_assert_eq!(interleave(0, &columns(a_width), at, &columns(b_width)), apart);
    }
}
