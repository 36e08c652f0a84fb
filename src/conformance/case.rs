//! Which cases there are: the operations' own, in several layouts, filled with several kinds of numbers.

use std::{fmt, str::FromStr};

use super::{Level, Options};
use crate::{
    error::{Error, Result},
    layout::Spec,
    op::{Determinism, Fill, Numerics, Op, Operand, Rng},
};

/// One test: an operation and what its operands hold. Prints as `OP #FILL.SEED`, which parses back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Case {
    /// The operation.
    pub op: Op,
    /// Which numbers it computes on.
    pub fill: Fill,
    /// Which of them; the operation's text is part of the generator's seed too.
    pub seed: u64,
}

const FILLS: [(Fill, &str); 4] =
    [(Fill::Normal, "normal"), (Fill::Large, "large"), (Fill::Tiny, "tiny"), (Fill::Special, "special")];

impl fmt::Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let fill = FILLS.iter().find(|k| k.0 == self.fill).map_or("", |k| k.1);
        write!(f, "{} #{fill}.{}", self.op, self.seed)
    }
}

impl FromStr for Case {
    type Err = Error;

    fn from_str(s: &str) -> Result<Case> {
        let fail = || Error::invalid(s, "a case's text is `OPERATION #FILL.SEED`, fill normal, large, tiny or special");
        let (op, rest) = s.rsplit_once(" #").ok_or_else(fail)?;
        let (fill, seed) = rest.split_once('.').ok_or_else(fail)?;
        let fill = FILLS.iter().find(|k| k.1 == fill).ok_or_else(fail)?.0;
        Ok(Case { op: op.parse()?, fill, seed: seed.parse().map_err(|_| fail())? })
    }
}

impl Case {
    /// The generator of the case's numbers: the same for the same text, on every machine.
    pub fn rng(&self) -> Rng {
        Rng(fnv1a(self.to_string().as_bytes()))
    }
}

/// What an operation's operands are made of: `f32 q8_0 -> f32`. Index operands are left out.
pub fn dtypes(op: &Op) -> String {
    let mut sides = [Vec::new(), Vec::new()];
    let operands = op.operands();
    for o in &operands {
        let name = o.spec.dtype().name();
        let side = &mut sides[usize::from(o.role.writes())];
        if !side.contains(&name) && (name != "i32" || o.role.writes()) {
            side.push(name);
        }
    }
    format!("{} -> {}", sides[0].join(" "), sides[1].join(" "))
}

/// The level an operation belongs to.
pub fn level(op: &Op) -> Level {
    if op.determinism() > Determinism::RunToRun {
        return Level::Determinism;
    }
    match op {
        Op::Attention(_) | Op::LinearAttention(_) | Op::Rope(_) | Op::KvAppend(_) => Level::Attention,
        Op::Conv1d(_) | Op::SsmScan(_) | Op::SelectiveScan(_) => Level::Ssm,
        _ if op.operands().iter().any(|o| o.spec.dtype().is_quantized()) => Level::Quant,
        _ => Level::Core,
    }
}

/// The cases that the options choose, in a stable order.
pub fn cases(options: &Options) -> Result<Vec<Case>> {
    let filter = options.filter.as_deref().unwrap_or_default();
    if let Ok(case) = filter.parse::<Case>() {
        case.op.validate()?;
        return Ok(vec![case]);
    }
    let base = match filter.parse::<Op>() {
        Ok(op) => {
            op.validate()?;
            vec![op]
        }
        Err(_) => Op::cases()
            .into_iter()
            .filter(|op| options.levels.is_empty() || options.levels.contains(&level(op)))
            .collect(),
    };
    let only_one = base.len() == 1;
    let mut all = Vec::new();
    for op in if options.quick { thin(base, 10) } else { base } {
        let case = |op, fill| Case { op, fill, seed: options.seed };
        all.extend(fills(&op).iter().map(|&fill| case(op, fill)));
        if !options.quick {
            all.extend(layouts(&op).into_iter().map(|op| case(op, Fill::Normal)));
        }
    }
    let words: Vec<&str> = filter.split_ascii_whitespace().collect();
    all.retain(|case| {
        let text = case.to_string();
        (!options.quick || case.fill == Fill::Normal) && (only_one || words.iter().all(|w| text.contains(w)))
    });
    let mut seen = std::collections::HashSet::new();
    all.retain(|case| seen.insert(*case));
    Ok(all)
}

/// A random operation near one of the known cases: one of its numbers replaced throughout its text by another.
pub fn mutate(cases: &[Op], rng: &mut Rng) -> Option<Op> {
    let text = cases.get(rng.below(cases.len()))?.to_string();
    let digit = |c: char| c.is_ascii_digit();
    // Numbers of shapes and strides stand after ':', 'x' or '@'; digits of dtypes and fields are left alone.
    let mut numbers: Vec<(usize, &str)> = text
        .match_indices([':', 'x', '@'])
        .map(|(i, _)| i + 1)
        .filter_map(|start| {
            let rest = &text[start..];
            let end = rest.find(|c| !digit(c)).unwrap_or(rest.len());
            (end > 0).then(|| (start, &rest[..end]))
        })
        .collect();
    numbers.dedup();
    let old = numbers.get(rng.below(numbers.len()))?.1;
    let new = [0, 1, 2, 3, 5, 8, 17, 31, 32, 33, 64, 96, 100, 127, 256][rng.below(15)].to_string();
    let (mut out, mut from) = (String::new(), 0);
    for (start, number) in &numbers {
        out.push_str(&text[from..*start]);
        out.push_str(if *number == old { &new } else { number });
        from = start + number.len();
    }
    out.push_str(&text[from..]);
    let op: Op = out.parse().ok()?;
    let small = op.operands().iter().all(|o| o.spec.numel() < 1 << 16 && o.spec.span() < 1 << 20);
    (small && op.cost().flops < 1 << 24 && op.validate().is_ok()).then_some(op)
}

/// Only kinds of numbers for which the operation's meaning leaves no freedom.
fn fills(op: &Op) -> &'static [Fill] {
    let fast = op.numerics() == Numerics::Fast;
    match op {
        // Recurrences may be computed in chunks, which spreads infinities differently, and their decay must stay below 1.
        Op::SsmScan(_) | Op::SelectiveScan(_) | Op::LinearAttention(_) => &[Fill::Normal, Fill::Tiny],
        // Quantized activations of a block that holds an infinity mean nothing.
        _ if fast => &[Fill::Normal, Fill::Large],
        _ => &[Fill::Normal, Fill::Large, Fill::Tiny, Fill::Special],
    }
}

/// The operation with its operands in memory orders its own cases may lack: rows with gaps between them, and one of
/// transposed, every second element, or repeated along the first dimension.
fn layouts(op: &Op) -> Vec<Op> {
    type Change = fn(&Operand) -> Option<Spec>;
    let gaps: Change = |o| {
        let s = &o.spec;
        let (block, _) = s.dtype().block();
        let inner = s.dim(0).checked_next_multiple_of(block)? + if block == 1 { 3 } else { block };
        let mut strides = vec![1; s.rank()];
        let mut step = inner;
        for i in (0..s.rank() - 1).rev() {
            strides[i] = step;
            step *= s.shape()[i].max(1);
        }
        Spec::strided(s.dtype(), s.shape(), &strides).ok()
    };
    let transposed: Change = |o| {
        let s = &o.spec;
        let rank = s.rank();
        let mut strides = s.strides().to_vec();
        (rank > 1).then(|| (strides[rank - 1], strides[rank - 2]) = (s.dim(1).max(1), 1))?;
        Spec::strided(s.dtype(), s.shape(), &strides).ok()
    };
    let second: Change = |o| {
        let s = &o.spec;
        let strides: Vec<usize> = s.strides().iter().map(|n| 2 * n).collect();
        Spec::strided(s.dtype(), s.shape(), &strides).ok()
    };
    let repeated: Change = |o| {
        let s = &o.spec;
        let mut strides = s.strides().to_vec();
        strides[0] = 0;
        (!o.role.writes() && s.rank() > 1).then(|| Spec::strided(s.dtype(), s.shape(), &strides).ok())?
    };
    if op.operands().iter().any(|o| !o.spec.is_dense()) {
        return Vec::new();
    }
    // Repeated rows of both factors leave one number of an output, of which a mean error says nothing.
    let odd = match op.numerics() {
        Numerics::Exact => &[transposed, second, repeated][..],
        Numerics::Fast => &[transposed, second],
    };
    let odd = odd[fnv1a(op.to_string().as_bytes()) as usize % odd.len()];
    [gaps, odd].iter().filter_map(|change| rewrite(op, *change)).collect()
}

/// The operation with each operand's spec changed; `None` where nothing legal comes of it.
pub(crate) fn rewrite(op: &Op, change: impl Fn(&Operand) -> Option<Spec>) -> Option<Op> {
    let operands = op.operands();
    let text: Vec<String> = op
        .to_string()
        .split(' ')
        .map(|word| {
            let operand = word.split_once('=').and_then(|(key, _)| operands.iter().find(|o| o.name == key));
            match operand.and_then(|o| Some((o.name, change(o)?))) {
                Some((name, spec)) => format!("{name}={spec}"),
                None => word.to_string(),
            }
        })
        .collect();
    let changed: Op = text.join(" ").parse().ok()?;
    (changed != *op && changed.validate().is_ok()).then_some(changed)
}

/// At most `keep` cases of each operation, evenly spread over its list.
fn thin(ops: Vec<Op>, keep: usize) -> Vec<Op> {
    let mut kept = Vec::new();
    for name in Op::NAMES {
        let own: Vec<&Op> = ops.iter().filter(|op| op.name() == *name).collect();
        let step = own.len().div_ceil(keep).max(1);
        kept.extend(own.into_iter().step_by(step));
    }
    kept
}

/// A hash that is the same on every machine and for all time.
pub(crate) fn fnv1a(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |h, &b| (h ^ b as u64).wrapping_mul(0x100_0000_01b3))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_case_is_its_text() {
        let all = cases(&Options::default()).expect("cases");
        assert!(all.len() > 500);
        for case in &all {
            assert_eq!(case.to_string().parse::<Case>().expect("parses"), *case);
        }
        let strided = all.iter().filter(|c| c.op.operands().iter().any(|o| !o.spec.is_dense())).count();
        assert!(strided * 5 > all.len(), "{strided} of {}", all.len());
    }

    #[test]
    fn filters_choose() {
        let one = "matmul x=f32:3x40 w=f32:5x40 out=f32:3x5 #large.9";
        let pick = |filter: &str| cases(&Options { filter: Some(filter.into()), ..Options::default() }).expect("cases");
        assert_eq!(pick(one).iter().map(Case::to_string).collect::<Vec<_>>(), [one]);
        assert!(pick("matmul q8_0").iter().all(|c| c.to_string().contains("q8_0")));
        assert!(pick("no-such-thing").is_empty());
        let bad = Options { filter: Some("matmul x=f32:3x41 w=f32:5x40 out=f32:3x5".into()), ..Options::default() };
        assert!(cases(&bad).is_err());
    }

    #[test]
    fn mutations_are_legal() {
        let (base, mut rng) = (Op::cases(), Rng(1));
        let found = (0..300).filter_map(|_| mutate(&base, &mut rng)).collect::<Vec<_>>();
        assert!(found.len() > 30, "{}", found.len());
        assert!(found.iter().all(|op| op.validate().is_ok()));
    }
}
