//! What holds for every operation: texts that parse back, nothing that panics, cases that leave nothing out.

use std::{collections::HashSet, sync::LazyLock};

use proptest::prelude::*;

use super::{Rng, *};
use crate::dtype::DType;

/// An operation as its text declares it.
struct Declared {
    name: &'static str,
    required: &'static [&'static str],
    optional: &'static [&'static str],
    /// Each field with values that it parses.
    fields: Vec<(&'static str, Vec<String>)>,
}

impl Declared {
    fn minimal(&self) -> String {
        self.required.iter().fold(self.name.to_string(), |text, r| text + &format!(" {r}=f32:1"))
    }
}

static DECLARED: LazyLock<Vec<Declared>> = LazyLock::new(|| {
    let declare = |(&name, [required, optional, fields]): (&&'static str, &[&'static [&'static str]; 3])| {
        let mut op = Declared { name, required, optional, fields: Vec::new() };
        let minimal = op.minimal();
        op.fields = fields.iter().map(|&field| (field, values_of(&minimal, field))).collect();
        op
    };
    Op::NAMES.iter().zip(Op::KEYS).map(declare).collect()
});

/// Values that a field parses: the words its error message lists, or numbers.
fn values_of(minimal: &str, field: &str) -> Vec<String> {
    let parses = |value: &str| format!("{minimal} {field}={value}").parse::<Op>();
    let error = parses("?").expect_err("no field parses a question mark").to_string();
    let words = error.split_once("known:").map_or("", |(_, words)| words).split_ascii_whitespace();
    let numbers = ["0", "1", "2", "7", "64", "18446744073709551615", "0.5", "-1.5", "3e38", "1e-45", "true", "false"];
    words.chain(numbers).filter(|value| parses(value).is_ok()).map(String::from).collect()
}

fn pick<'a, T>(from: &'a [T], rng: &mut Rng) -> &'a T {
    &from[rng.below(from.len())]
}

/// The text of a tensor, legal or not.
fn spec_text(rng: &mut Rng) -> String {
    let usual = [0, 1, 2, 3, 4, 5, 8, 32, 64, 128, 256, 512];
    let absurd = [usize::MAX, usize::MAX / 2, usize::MAX / 32, u32::MAX as usize, 1 << 59, (1 << 31) - 1, 1 << 20];
    let wild = rng.below(6) == 0;
    let number = |rng: &mut Rng| *if wild && rng.below(3) == 0 { pick(&absurd, rng) } else { pick(&usual, rng) };
    let rank = 1 + rng.below(if wild { 7 } else { 4 });
    let dims = |rng: &mut Rng| (0..rank).map(|_| number(rng).to_string()).collect::<Vec<_>>().join("x");
    let plain = [DType::F32, DType::F16, DType::BF16, DType::I32, DType::U8];
    let dtype = if rng.below(3) == 0 { pick(DType::ALL, rng) } else { pick(&plain, rng) };
    let shape = dims(rng);
    if rng.below(3) == 0 { format!("{dtype}:{shape}@{}", dims(rng)) } else { format!("{dtype}:{shape}") }
}

/// The text of an operation, legal or not: of random tensors, or a case with some of its values replaced.
fn op_text(rng: &mut Rng) -> String {
    static CASES: LazyLock<Vec<String>> = LazyLock::new(|| Op::cases().iter().map(Op::to_string).collect());
    if rng.below(2) == 0 {
        let text = pick(&CASES, rng);
        let name = text.split_once(' ').map_or("", |(name, _)| name);
        let op = DECLARED.iter().find(|op| op.name == name).expect("a case of a declared operation");
        let replace = |word: &str| match word.split_once('=') {
            Some((key, _)) if rng.below(6) == 0 => format!("{key}={}", value_text(op, key, rng)),
            _ => word.to_string(),
        };
        return text.split(' ').map(replace).collect::<Vec<_>>().join(" ");
    }
    let op = pick(&DECLARED, rng);
    let mut keys: Vec<&str> = op.required.to_vec();
    let optional = op.optional.iter().copied().chain(op.fields.iter().map(|f| f.0)).chain(["numerics", "determinism"]);
    keys.extend(optional.filter(|_| rng.below(3) == 0));
    // One spec for all now and then: shapes that fit by chance are rare.
    let shared = (rng.below(4) == 0).then(|| spec_text(rng));
    keys.iter().fold(op.name.to_string(), |text, key| {
        let own = value_text(op, key, rng);
        let tensor = op.required.contains(key) || op.optional.contains(key);
        text + &format!(" {key}={}", shared.as_ref().filter(|_| tensor).unwrap_or(&own))
    })
}

fn value_text(op: &Declared, key: &str, rng: &mut Rng) -> String {
    match (key, op.fields.iter().find(|f| f.0 == key)) {
        ("numerics", _) => pick(Numerics::ALL, rng).to_string(),
        ("determinism", _) => pick(Determinism::ALL, rng).to_string(),
        (_, Some((_, values))) => pick(values, rng).clone(),
        _ => spec_text(rng),
    }
}

/// Asks an operation everything that can be asked of one, legal or not. Returns whether it is legal.
fn examine(op: &Op) -> bool {
    let text = op.to_string();
    assert_eq!(text.parse::<Op>().as_ref(), Ok(op), "{text}");
    assert!(text.starts_with(op.name()));
    let _ = (op.features(), op.require(Features::empty()), op.cost(), op.numerics());
    let strict = op.with_mode(Numerics::Fast, Determinism::BatchInvariant);
    assert!(strict.features().contains(Features::FAST | Features::DETERMINISM), "{text}");
    let operands = op.operands();
    for o in &operands {
        let bound = op.bound(o.name);
        assert!(bound.relative >= 0.0 && bound.ulps >= 0.0, "{text}: {bound:?}");
        operands.iter().for_each(|other| _ = op.may_alias(o.name, other.name));
    }
    let class = op.class();
    let legal = op.validate().is_ok();
    if legal {
        assert_eq!(class.validate(), Ok(()), "the class of {text}");
        assert_eq!(class.class(), class, "the class of the class of {text}");
        assert_eq!((class.name(), class.operands().len()), (op.name(), operands.len()), "{text}");
        assert!(class.operands().iter().all(|o| o.spec.is_dense()) || class == *op, "{class}");
    }
    legal
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_descriptor_prints_parses_and_answers(seed: u64) {
        if let Ok(op) = op_text(&mut Rng(seed)).parse::<Op>() {
            examine(&op);
        }
    }

    #[test]
    fn mutated_text_never_panics(seed: u64, cuts in prop::collection::vec((any::<u16>(), "[ -~]|é|", 0u8..3), 1..4)) {
        let mut text: Vec<char> = op_text(&mut Rng(seed)).chars().collect();
        for (at, with, kind) in cuts {
            let at = at as usize % (text.len() + 1);
            let end = if kind == 0 { at } else { (at + kind as usize).min(text.len()) };
            text.splice(at..end, with.chars());
        }
        if let Ok(op) = text.into_iter().collect::<String>().parse::<Op>() {
            examine(&op);
        }
    }

    #[test]
    fn arbitrary_text_never_panics(text: String) {
        let _ = text.parse::<Op>();
        let _ = format!("matmul {text}").parse::<Op>();
    }
}

#[test]
fn random_descriptors_reach_legal_and_illegal_ones_of_every_operation() {
    let mut rng = Rng(1);
    let (mut legal, mut illegal) = (HashSet::new(), HashSet::new());
    for _ in 0..20_000 {
        if let Ok(op) = op_text(&mut rng).parse::<Op>() {
            let names = if op.validate().is_ok() { &mut legal } else { &mut illegal };
            names.insert(op.name());
        }
    }
    assert_eq!(illegal.len(), Op::NAMES.len());
    let with_cases: HashSet<&str> = Op::cases().iter().map(Op::name).collect();
    assert!(legal.is_superset(&with_cases), "never legal: {:?}", with_cases.difference(&legal));
}

#[test]
fn every_case_is_legal_and_has_a_text_of_its_own() {
    let mut seen = HashSet::new();
    for op in Op::cases() {
        assert_eq!(op.validate(), Ok(()));
        assert!(examine(&op));
        assert!(seen.insert(op), "twice: {op}");
    }
}

#[test]
fn cases_leave_out_no_operand_field_or_word() {
    let texts: Vec<String> = Op::cases().iter().map(Op::to_string).collect();
    let mut left_out = Vec::new();
    for op in DECLARED.iter() {
        // Each is looked for as the beginning of `key=value`.
        let mut wanted: Vec<String> = op.optional.iter().map(|key| format!("{key}=")).collect();
        for (field, values) in &op.fields {
            assert!(values.len() > 1, "{}'s {field} parses {values:?} only", op.name);
            wanted.push(format!("{field}="));
            let words = values.iter().filter(|v| v.starts_with(|c: char| c.is_ascii_alphabetic()));
            let pairs = words.map(|word| format!("{field}={word}"));
            // Defaults are not printed.
            let printed = |pair: &String| {
                let op: Op = format!("{} {pair}", op.minimal()).parse().expect("a field's own word");
                op.to_string().contains(pair)
            };
            wanted.extend(pairs.filter(printed));
        }
        let cases: Vec<&String> = texts.iter().filter(|t| t.split(' ').next() == Some(op.name)).collect();
        assert!(!cases.is_empty(), "{} has no cases", op.name);
        let occurs = |pair: &String| cases.iter().any(|t| t.split(' ').any(|word| word.starts_with(pair)));
        let missing = wanted.iter().filter(|pair| !occurs(pair));
        left_out.extend(missing.map(|pair| format!("{} {pair}", op.name)));
    }
    assert!(left_out.is_empty(), "no case has: {left_out:#?}");
}

#[test]
fn wrong_texts_say_what_is_wrong() {
    for (text, why) in [
        ("", "NAME"),
        ("matmull x=f32:1", "no such operation"),
        ("softmax x=f32:1", "operand out is missing"),
        ("softmax x=f32:1 out=f32:1 x=f32:1", "twice"),
        ("softmax x=f32:1 out=f32:1 tau=3", "no operand or field tau"),
        ("softmax x=f32:1 out=f32:1 scale=inf", "not a finite number"),
        ("softmax x=f32:1 out=f32:1 scale", "key=value"),
        ("softmax x=f31:1 out=f32:1", "no such dtype"),
        ("softmax x=f32:1 out=f32:1y2", "joined by x"),
        ("softmax x=f32:1 out=f32:1 numerics=sloppy", "known: exact fast"),
    ] {
        let error = text.parse::<Op>().expect_err(text).to_string();
        assert!(error.contains(why), "{text:?}: {error}");
    }
}

#[test]
fn outputs_that_overlap_themselves_are_refused() {
    for (text, legal) in [
        ("convert x=f32:4x3@0x1 out=f32:4x3", true),
        ("convert x=f32:4x3 out=f32:4x3@0x1", false),
        ("convert x=f32:4x3 out=f32:4x3@2x1", false),
        ("convert x=f32:4x3 out=f32:4x3@1x4", true),
    ] {
        assert_eq!(text.parse::<Op>().expect("a text").validate().is_ok(), legal, "{text}");
    }
}

#[test]
fn a_reference_says_what_it_lacks() {
    for op in Op::cases() {
        let all = testing::filled(op, Fill::Normal, 1);
        for o in &op.operands() {
            let spoilt = |spoil: &dyn Fn(&mut Array)| {
                let mut arrays = all.clone();
                arrays.get_mut(o.name).map(spoil);
                arrays
            };
            let mut missing = Arrays::default();
            all.iter().filter(|(name, _)| *name != o.name).for_each(|(name, array)| missing.push(name, array.clone()));
            let longer = spoilt(&|array| array.data.push(0.0));
            let reshaped = spoilt(&|array| array.spec = testing::spec(DType::F32, &[3, 1, 4, 1, 5, 9]));
            for mut arrays in [missing, longer, reshaped] {
                let got = Array::zeros(o.spec);
                assert!(!matches!(op.judge(o.name, &arrays, &got), Some(Ok(()))), "{} of {op}", o.name);
                let why = op.reference(&mut arrays).expect_err("must be refused").to_string();
                assert!(why.contains(o.name), "{why}");
            }
        }
    }
}

#[test]
fn arrays_and_memory_of_other_sizes_are_refused() {
    let spec = testing::spec(DType::F16, &[3, 4]);
    assert!(Array::decode(spec, &[0; 23]).is_err());
    let mut array = Array::zeros(spec);
    assert!(array.encode(None, &mut [0; 23]).is_err());
    assert!(array.encode(Some(&[0.0; 11]), &mut [0; 24]).is_err());
    assert_eq!((array.row(2).len(), array.row(3).len(), array.row(usize::MAX).len()), (4, 0, 0));
    assert_eq!((array.magnitude(12), Bound::relative(1.0).allowed(&array, 12)), (0.0, 0.0));
    array.data.pop();
    assert!(array.encode(None, &mut [0; 24]).is_err());
}
