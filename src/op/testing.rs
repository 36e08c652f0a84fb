//! What the operations' own tests share: running the reference on given numbers, and what every list of cases owes.

use super::*;
use crate::{dtype::DType, layout::Spec};

/// A dense spec.
pub(crate) fn spec(dtype: DType, shape: &[usize]) -> Spec {
    Spec::new(dtype, shape).expect("a legal spec")
}

/// The reference's results. Operands not given hold zeros.
pub(crate) fn compute(op: impl Into<Op>, given: &[(&str, &[f64])]) -> Arrays {
    let op = op.into();
    op.validate().expect("a legal operation");
    let operands = op.operands();
    for (name, values) in given {
        let o = operands.iter().find(|o| o.name == *name).unwrap_or_else(|| panic!("{op} has no {name}"));
        assert_eq!(o.spec.numel(), values.len(), "length of {name}");
    }
    let mut arrays = Arrays::default();
    for o in &operands {
        let mut array = Array::zeros(o.spec);
        if let Some((_, values)) = given.iter().find(|g| g.0 == o.name) {
            array.data = values.to_vec();
        }
        arrays.push(o.name, array);
    }
    op.reference(&mut arrays).unwrap();
    arrays
}

/// Inputs as a conformance run fills them, before the reference runs.
pub(crate) fn filled(op: impl Into<Op>, fill: Fill, seed: u64) -> Arrays {
    let (op, mut rng, mut arrays) = (op.into(), Rng(seed), Arrays::default());
    for o in &op.operands() {
        let mut array = Array::zeros(o.spec);
        if o.role != Role::Out {
            array.data = op.fill(o, fill, &mut rng);
            assert_eq!(array.data.len(), o.spec.numel(), "fill of {} in {op}", o.name);
        }
        arrays.push(o.name, array);
    }
    arrays
}

/// `n` reproducible normal numbers.
pub(crate) fn normal(n: usize, seed: u64) -> Vec<f64> {
    let mut rng = Rng(seed);
    (0..n).map(|_| rng.value(Fill::Normal)).collect()
}

/// Asserts that two lists agree to f64 accuracy.
#[track_caller]
pub(crate) fn assert_close(got: &[f64], want: &[f64]) {
    assert_eq!(got.len(), want.len());
    for (i, (g, w)) in got.iter().zip(want).enumerate() {
        let same = g == w || (g.is_nan() && w.is_nan()) || (g - w).abs() <= 1e-9 * w.abs().max(1.0);
        assert!(same, "element {i}: {g}, expected {w}");
    }
}

/// Asserts that an operation is refused with a message that mentions `why`.
#[track_caller]
pub(crate) fn assert_refused(op: impl Into<Op>, why: &str) {
    let message = op.into().validate().expect_err("must be refused").to_string();
    assert!(message.contains(why), "{message:?} does not mention {why:?}");
}

/// Holds every case to what all operations owe: legal, distinct, small, readable back, computable with every fill; and
/// no text near it makes anything panic.
pub(crate) fn check_cases<T: Semantics>() {
    let mut seen = std::collections::HashSet::new();
    for (i, case) in T::cases().into_iter().enumerate() {
        let op: Op = case.into();
        let text = op.to_string();
        assert!(seen.insert(text.clone()), "twice: {text}");
        op.validate().unwrap();
        assert_eq!(text.parse::<Op>().unwrap(), op);
        assert!(op.cost().flops <= 2_000_000, "{} flops: {text}", op.cost().flops);
        op.class().validate().unwrap();
        assert_eq!(op.class().class(), op.class(), "{text}");
        for fill in [Fill::Normal, Fill::Large, Fill::Tiny, Fill::Special] {
            let mut arrays = filled(op, fill, i as u64);
            op.reference(&mut arrays).unwrap();
            for o in op.operands().iter().filter(|o| o.role.writes()) {
                let array = arrays.of(o.name);
                assert_eq!(array.data.len(), o.spec.numel(), "{} of {text}", o.name);
                assert!(array.magnitude.is_empty() || array.magnitude.len() == array.data.len(), "{text}");
                assert!(op.bound(o.name).relative >= 0.0);
                if fill == Fill::Special {
                    continue;
                }
                for (e, v) in array.data.iter().enumerate() {
                    assert!(!v.is_nan() && array.magnitude(e).is_finite(), "{}[{e}] = {v} in {text}", o.name);
                    let (m, exact) = (array.magnitude(e), !array.magnitude.is_empty() && array.magnitude[e] == 0.0);
                    let covered = v.is_infinite() || exact || m >= v.abs() * (1.0 - 1e-9);
                    assert!(covered, "{}[{e}] = {v} beyond its magnitude {} in {text}", o.name, array.magnitude(e));
                }
            }
        }
        let mut rng = Rng(i as u64);
        (0..60).for_each(|_| survives(&mutated(&text, &mut rng)));
    }
}

/// Nothing about an operation's description may panic, whether it is legal or not.
fn survives(text: &str) {
    let Ok(op) = text.parse::<Op>() else { return };
    if op.validate().is_ok() {
        let class = op.class();
        class.validate().unwrap_or_else(|e| panic!("class of {text}: {e}"));
        let _ = (op.features(), op.cost());
        for o in &op.operands() {
            op.bound(o.name);
        }
    }
}

/// The text with one to three of its numbers, dtypes or dimensions replaced by others, absurd ones among them.
fn mutated(text: &str, rng: &mut Rng) -> String {
    let numbers =
        ["0", "1", "2", "3", "32", "4294967296", "576460752303423487", "18446744073709551615", "5x3", "1x1x2"];
    let mut tokens: Vec<String> = Vec::new();
    for c in text.chars() {
        match tokens.last_mut() {
            Some(t)
                if c.is_ascii_alphanumeric()
                    && t.ends_with(|p: char| p.is_ascii_alphanumeric() && p != 'x')
                    && c != 'x' =>
            {
                t.push(c)
            }
            _ => tokens.push(c.into()),
        }
    }
    for _ in 0..1 + rng.below(3) {
        let at = rng.below(tokens.len());
        if tokens[at].starts_with(|c: char| c.is_ascii_digit()) {
            tokens[at] = numbers[rng.below(numbers.len())].into();
        } else if tokens[at].parse::<DType>().is_ok() {
            tokens[at] = DType::ALL[rng.below(DType::ALL.len())].to_string();
        }
    }
    tokens.concat()
}
