//! Random operations and random chains of views: nothing panics, nothing is read or written out of bounds, every value is right.
//! Runs for a second or two; `TESELA_FUZZ=60` runs each test for that many seconds from another seed.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use tesela::{
    DType, Error, Fallback, Op, Result, Runtime, Spec, Tensor,
    op::{Rng, Role},
};

/// Calls `each` with a generator until the time is over; what it was at is told where it panics.
fn fuzz(what: &str, default: Duration, mut each: impl FnMut(&mut Rng)) {
    let asked = std::env::var("TESELA_FUZZ").ok().and_then(|s| s.parse().ok()).map(Duration::from_secs);
    let clock = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let first = if asked.is_some() { clock.as_nanos() as u64 } else { 1 };
    let (start, mut seed) = (Instant::now(), first);
    while start.elapsed() < asked.unwrap_or(default) {
        if let Err(panic) = catch_unwind(AssertUnwindSafe(|| each(&mut Rng(seed)))) {
            eprintln!("{what}: seed {seed}");
            std::panic::resume_unwind(panic);
        }
        seed = seed.wrapping_add(1);
    }
    println!("{what}: {} rounds", seed.wrapping_sub(first));
}

/// Leaves the operation where it is found after an abort.
fn note(op: &Op) {
    if std::env::var_os("TESELA_FUZZ").is_some() {
        let name = std::thread::current().name().unwrap_or("fuzz").to_string();
        let _ = std::fs::write(std::path::Path::new(env!("CARGO_TARGET_TMPDIR")).join(name), op.to_string());
    }
}

fn pick<T: Copy>(rng: &mut Rng, from: &[T]) -> T {
    from[rng.below(from.len())]
}

/// A known operation's text with some words changed: numbers, dtypes, strides, options, words left out or taken from another operation.
fn mutated(cases: &[Op], rng: &mut Rng) -> String {
    let text = pick(rng, cases).to_string();
    let mut words: Vec<String> = text.split(' ').map(String::from).collect();
    for _ in 0..1 + rng.below(3) {
        let at = 1 + rng.below(words.len().max(2) - 1);
        let Some(word) = words.get(at).cloned() else { continue };
        match rng.below(8) {
            0 => {
                words.remove(at);
            }
            1 => {
                let other = pick(rng, cases).to_string();
                let others: Vec<&str> = other.split(' ').skip(1).collect();
                words.push(pick(rng, &others).into());
            }
            2 if word.contains(':') => {
                let (name, rest) = word.split_once('=').unwrap_or(("x", &word));
                let shape = rest.split_once(':').map_or("", |r| r.1);
                words[at] = format!("{name}={}:{shape}", pick(rng, DType::ALL));
            }
            3 if word.contains(':') => {
                let plain = word.split('@').next().unwrap_or(&word);
                let rank = plain.matches('x').count() + 1;
                let strides: Vec<String> = (0..rank).map(|_| number(rng).to_string()).collect();
                words[at] = format!("{plain}@{}", strides.join("x"));
            }
            _ => words[at] = renumbered(&word, rng),
        }
    }
    words.join(" ")
}

/// One of the word's numbers replaced, here or wherever it occurs.
fn renumbered(word: &str, rng: &mut Rng) -> String {
    let runs: Vec<&str> = word.split(|c: char| !c.is_ascii_digit()).filter(|n| !n.is_empty()).collect();
    if runs.is_empty() {
        return word.into();
    }
    word.replacen(pick(rng, &runs), &number(rng).to_string(), 1 + rng.below(2))
}

fn number(rng: &mut Rng) -> u64 {
    match rng.below(8) {
        0 => 1 << rng.below(64),
        1 => (1u64 << rng.below(64)).wrapping_sub(1),
        2 => rng.next() >> rng.below(64),
        3 => pick(rng, &[16, 31, 32, 33, 64, 100, 128, 256, 257]),
        _ => rng.below(9) as u64,
    }
}

/// The operation, and changes of all its shapes together: the same number replaced everywhere.
fn consistent(cases: &[Op], rng: &mut Rng) -> String {
    let text = pick(rng, cases).to_string();
    let numbers: Vec<&str> = text.split(|c: char| !c.is_ascii_digit()).filter(|n| !n.is_empty()).collect();
    let (old, new) = (pick(rng, &numbers), number(rng).to_string());
    // Whole numbers only, in shapes only: after a colon, an x or an @.
    let (mut out, mut rest) = (String::new(), text.as_str());
    while let Some(at) = rest.find(|c: char| c.is_ascii_digit()) {
        let end = rest[at..].find(|c: char| !c.is_ascii_digit()).map_or(rest.len(), |n| at + n);
        let extent = rest[..at].ends_with([':', 'x', '@', '=']);
        out.push_str(&rest[..at]);
        out.push_str(if extent && &rest[at..end] == old { &new } else { &rest[at..end] });
        rest = &rest[end..];
    }
    out + rest
}

fn is_small(op: &Op) -> bool {
    let operands = op.operands();
    let extent = |o: &tesela::op::Operand| o.spec.shape().iter().map(|&n| n.max(1)).product::<usize>();
    op.cost().flops < 1 << 20 && operands.iter().all(|o| o.spec.span() < 1 << 16 && extent(o) < 1 << 13)
}

#[test]
fn any_operation_is_refused_or_runs() {
    let cases = Op::cases();
    let open = |device: &str| {
        let rt = Runtime::builder().allow(&[device]).fallback(Fallback::Forbidden).no_cache();
        rt.memory_limit(1 << 28).threads(2).build().ok()
    };
    let runtimes: Vec<Runtime> = ["cpu", "reference"].into_iter().filter_map(open).collect();
    let (mut valid, mut ran) = (0, 0);
    fuzz("operations", Duration::from_secs(3), |rng| {
        let text = if rng.below(2) == 0 { consistent(&cases, rng) } else { mutated(&cases, rng) };
        let Ok(op) = text.parse::<Op>() else { return };
        note(&op);
        let tried = catch_unwind(AssertUnwindSafe(|| try_everything(&op, &runtimes, rng)));
        match tried {
            Ok(Ok(done)) => (valid, ran) = (valid + usize::from(op.validate().is_ok()), ran + done),
            Ok(Err(e)) => panic!("{op}: {e}"),
            Err(_) => panic!("{op}: panicked"),
        }
    });
    println!("{valid} valid operations, {ran} runs");
    assert!(valid > 0 && ran > 0);
}

/// Every call about an operation, valid or not; and running it on bytes of any kind. Gives the number of runs.
fn try_everything(op: &Op, runtimes: &[Runtime], rng: &mut Rng) -> Result<usize> {
    assert_eq!(op.to_string().parse::<Op>().as_ref(), Ok(op));
    let valid = op.validate().is_ok();
    let _ = (op.cost(), op.class(), op.features(), op.operands());
    op.operands().iter().for_each(|o| {
        op.bound(o.name);
    });
    assert!(!valid || op.class().validate().is_ok(), "its class {} is not valid", op.class());
    let mut ran = 0;
    for rt in runtimes {
        let device = &rt.devices()[0];
        match device.backend().plan(op) {
            Ok(plans) => assert!(valid && !plans.is_empty()),
            Err(Error::Invalid { .. }) => assert!(!valid, "{} plans it as invalid", device),
            Err(Error::Unsupported { .. }) => {}
            Err(other) => return Err(other),
        }
        if !valid || !is_small(op) {
            continue;
        }
        let mut tensors = Vec::new();
        for o in &op.operands() {
            let span = o.spec.span();
            let tensor = rt.zeros_on(device, DType::U8, &[span.max(1)])?;
            let wild = rng.below(3) == 0;
            let bytes: Vec<u8> = (0..span.max(1)).map(|_| if wild { rng.next() as u8 } else { 0 }).collect();
            tensor.write(&bytes)?;
            if !wild && o.spec.is_dense() && o.role != Role::Out && span > 0 {
                tensor.write(&legal(op, o, rng, span)?)?;
            }
            tensors.push(tensor);
        }
        let views: Vec<_> = tensors.iter().filter_map(Tensor::view).collect();
        for plan in device.backend().plan(op).unwrap_or_default() {
            let launch = tesela::dispatch::Launch::new(op, plan, device.backend().token())?;
            if (0..views.len()).any(|i| launch.plan().packing(i).is_some()) {
                continue; // the conformance kit packs
            }
            let scratch = launch.plan().scratch();
            if scratch > 1 << 24 {
                continue; // a field, such as a number of segments, may be large where every operand is small
            }
            let scratch = if scratch > 0 { rt.zeros_on(device, DType::U8, &[scratch])?.view() } else { None };
            launch.run(&views, scratch.as_ref())?;
            ran += 1;
        }
        device.sync()?;
    }
    Ok(ran)
}

/// Contents that the operation itself makes up.
fn legal(op: &Op, operand: &tesela::op::Operand, rng: &mut Rng, span: usize) -> Result<Vec<u8>> {
    let data = op.fill(operand, tesela::op::Fill::Normal, rng);
    let mut bytes = vec![0; span];
    tesela::quant::encode_f64(operand.spec.dtype(), &data, &mut bytes)?;
    Ok(bytes)
}

#[cfg(all(feature = "conformance", feature = "cpu"))]
#[test]
fn random_operations_are_right() {
    use tesela::{
        Backend, Plan,
        backend::OpenOptions,
        conformance::{self, Case, Verdict},
        op::{Fill, Numerics},
    };
    let cases = Op::cases();
    let options = OpenOptions::default();
    let cpu = tesela::Cpu::open(&options).expect("a processor");
    fuzz("values", Duration::from_secs(3), |rng| {
        let text = if rng.below(3) > 0 { consistent(&cases, rng) } else { mutated(&cases, rng) };
        let Ok(op) = text.parse::<Op>() else { return };
        // (Fast results are bounded in the mean, which a handful of small outputs may miss.)
        if op.validate().is_err() || !is_small(&op) || op.numerics() == Numerics::Fast {
            return;
        }
        note(&op);
        let scratch = |p: &std::sync::Arc<dyn Plan>| p.scratch() > 1 << 24;
        if cpu.plan(&op).is_ok_and(|plans| plans.iter().any(scratch)) {
            return;
        }
        let case = Case { op, fill: Fill::Normal, seed: rng.below(1000) as u64 };
        for outcome in conformance::check_case(&cpu, &case) {
            assert!(outcome.verdict != Verdict::Failed, "{case}: {}: {}", outcome.kernel, outcome.why);
        }
    });
}

/// A tensor as plain numbers: its shape and the places of its elements in a shared list.
#[derive(Clone, Debug)]
struct Model {
    shape: Vec<usize>,
    places: Vec<usize>,
}

impl Model {
    fn dense(&self) -> bool {
        self.places.windows(2).all(|w| w[1] == w[0] + 1)
    }

    /// Elements by their index in the shape.
    fn rearranged(&self, shape: &[usize], old: impl Fn(&[usize]) -> Vec<usize>) -> Model {
        let n: usize = shape.iter().product();
        let places = (0..n).map(|i| {
            let mut rest = i;
            let mut index: Vec<usize> = shape.iter().rev().map(|&d| (rest % d, rest /= d).0).collect();
            index.reverse();
            let own = old(&index).iter().zip(&self.shape).fold(0, |at, (i, d)| at * d + i);
            self.places[own]
        });
        Model { places: places.collect(), shape: shape.to_vec() }
    }
}

#[test]
fn chains_of_views_agree_with_plain_numbers() {
    let names: &[&str] = if cfg!(feature = "cpu") { &["cpu", "reference"] } else { &["reference"] };
    let runtimes: Vec<Runtime> =
        names.iter().map(|n| Runtime::builder().allow(&[n]).no_cache().build().expect("a runtime")).collect();
    fuzz("views", Duration::from_secs(1), |rng| {
        let rt = &runtimes[rng.below(runtimes.len())];
        chain(rt, rng).expect("no call that the model allows is refused");
    });
}

fn chain(rt: &Runtime, rng: &mut Rng) -> Result<()> {
    let shape: Vec<usize> = (0..1 + rng.below(4)).map(|_| rng.below(5)).collect();
    let n: usize = shape.iter().product();
    let mut numbers: Vec<f32> = (0..n).map(|_| rng.normal() as f32).collect();
    let mut tensor = rt.from_f32(&shape, &numbers)?;
    let mut model = Model { shape, places: (0..n).collect() };
    for _ in 0..6 {
        let rank = model.shape.len();
        match rng.below(7) {
            0 => {
                let dim = rng.below(rank);
                let start = rng.below(model.shape[dim] + 1);
                let end = start + rng.below(model.shape[dim] - start + 1);
                tensor = tensor.slice(dim, start..end)?;
                let mut shape = model.shape.clone();
                shape[dim] = end - start;
                model = model.rearranged(&shape, |i| {
                    let mut i = i.to_vec();
                    i[dim] += start;
                    i
                });
            }
            1 => {
                let mut order: Vec<usize> = (0..rank).collect();
                (0..rank).for_each(|i| order.swap(i, rng.below(rank)));
                tensor = tensor.permute(&order)?;
                let shape: Vec<usize> = order.iter().map(|&d| model.shape[d]).collect();
                model = model.rearranged(&shape, |i| {
                    let mut own = vec![0; order.len()];
                    order.iter().zip(i).for_each(|(&d, &i)| own[d] = i);
                    own
                });
            }
            2 => {
                let shape = if rng.below(2) == 0 { vec![model.places.len()] } else { vec![1, model.places.len(), 1] };
                match tensor.reshape(&shape) {
                    Ok(t) => (tensor, model.shape) = (t, shape),
                    Err(e) => assert!(!model.dense(), "{e}"),
                }
            }
            3 => {
                let mut shape: Vec<usize> =
                    model.shape.iter().map(|&d| if d == 1 { rng.below(4) } else { d }).collect();
                if rank < 5 {
                    shape.insert(0, 1 + rng.below(3));
                }
                let missing = shape.len() - rank;
                tensor = tensor.broadcast(&shape)?;
                let own = model.shape.clone();
                model = model.rearranged(&shape, |i| {
                    i[missing..].iter().zip(&own).map(|(&i, &d)| if d == 1 { 0 } else { i }).collect()
                });
            }
            4 => {
                let fresh: Vec<f32> = model.places.iter().map(|_| rng.normal() as f32).collect();
                let bytes: Vec<u8> = fresh.iter().flat_map(|v| v.to_le_bytes()).collect();
                match tensor.write(&bytes) {
                    Ok(()) => model.places.iter().zip(&fresh).for_each(|(&p, &v)| numbers[p] = v),
                    Err(e) => assert!(!model.dense(), "{e}"),
                }
            }
            5 => {
                let dense = rt.convert(&tensor).run()?;
                assert_eq!(dense.read_f32()?, tensor.read_f32()?);
            }
            _ => {
                // Nonsense is refused, never a panic.
                let big = number(rng) as usize;
                let (shape, spec) = ([big, big >> 1, number(rng) as usize], Spec::new(DType::F32, &[big]));
                let _ = (tensor.slice(big, 0..1), tensor.slice(0, big..big.wrapping_add(1)), tensor.permute(&[big]));
                let _ = (tensor.reshape(&shape), tensor.broadcast(&shape), tensor.transpose(0, big), spec);
                let _ = (tensor.write(&[0; 3]), tensor.read_into(&mut [0; 3]), tensor.read::<u16>());
                #[expect(clippy::reversed_empty_ranges, reason = "that is the nonsense")]
                let _ = tensor.slice(0, 3..2);
            }
        }
        assert_eq!(tensor.shape(), model.shape);
        let want: Vec<f32> = model.places.iter().map(|&p| numbers[p]).collect();
        assert_eq!(tensor.read_f32()?, want);
    }
    Ok(())
}
