//! Model files written and quantized: what comes out, that it does not depend on threads, and what is left when it fails.
#![cfg(feature = "gguf")]

use std::{
    fs,
    path::{Path, PathBuf},
    sync::atomic::{AtomicUsize, Ordering},
};

use proptest::prelude::*;
use tesela::{
    DType, Error, Spec,
    gguf::{Gguf, Importance, Mix, Quantize, Value, Writer},
    op::Rng,
    quant,
};

fn folder(name: &str) -> PathBuf {
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join("quantize").join(name);
    let _ = fs::remove_dir_all(&path);
    fs::create_dir_all(&path).expect("a folder");
    path
}

fn files(folder: &Path) -> Vec<String> {
    let mut names: Vec<String> =
        fs::read_dir(folder).expect("a folder").flatten().map(|f| f.file_name().to_string_lossy().into()).collect();
    names.sort();
    names
}

/// Tensors of a model of the llama architecture: hidden size, layers, and the number of experts, 0 for none.
fn tensors(hidden: usize, layers: usize, experts: usize) -> Vec<(String, Vec<usize>)> {
    let mut all = vec![("token_embd.weight".into(), vec![40, hidden]), ("output_norm.weight".into(), vec![hidden])];
    all.push(("output.weight".into(), vec![40, hidden]));
    for i in 0..layers {
        let mut add = |name: &str, shape: &[usize]| all.push((format!("blk.{i}.{name}.weight"), shape.to_vec()));
        add("attn_norm", &[hidden]);
        add("attn_q", &[hidden, hidden]);
        add("attn_k", &[hidden / 2, hidden]);
        add("attn_v", &[hidden / 2, hidden]);
        add("attn_output", &[hidden, hidden]);
        add("ffn_up", &[64, hidden]);
        match experts {
            0 => add("ffn_down", &[hidden, 64]),
            n => add("ffn_down_exps", &[n, 3, hidden]),
        }
    }
    all
}

fn model(path: &Path, dtype: DType, tensors: &[(String, Vec<usize>)], layers: u32) {
    let mut file = Writer::new();
    file.pair("general.architecture", Value::String("llama")).unwrap();
    file.pair("general.file_type", Value::U32(1)).unwrap();
    for (key, value) in [("block_count", layers), ("attention.head_count", 4), ("attention.head_count_kv", 2)] {
        file.pair(&format!("llama.{key}"), Value::U32(value)).unwrap();
    }
    file.array("tokenizer.ggml.tokens", ["a", "b", "€"].map(Value::String)).unwrap();
    let spec = |shape: &[usize]| Spec::new(if shape.len() > 1 { dtype } else { DType::F32 }, shape).unwrap();
    tensors.iter().for_each(|(name, shape)| file.tensor(name, spec(shape)).unwrap());
    let size = file.size().unwrap();
    let mut data = file.begin(Vec::new()).unwrap();
    let mut rng = Rng(5);
    for (_, shape) in tensors {
        let spec = spec(shape);
        let values: Vec<f32> = (0..spec.numel()).map(|_| rng.normal() as f32).collect();
        let mut bytes = vec![0; spec.bytes()];
        quant::encode(spec.dtype(), &values, &mut bytes).unwrap();
        // In pieces of odd lengths, as a stream might.
        bytes.chunks(1001).for_each(|piece| data.write(piece).unwrap());
    }
    let bytes = data.finish().unwrap();
    assert_eq!(bytes.len(), size);
    fs::write(path, bytes).unwrap();
}

fn dtype_of(file: &Gguf, name: &str) -> DType {
    file.tensor(name).unwrap().spec.dtype()
}

fn mix(name: &str) -> Mix {
    name.parse().unwrap()
}

#[test]
fn a_mix_gives_more_bits_where_they_count() {
    let dir = folder("mix");
    model(&dir.join("in.gguf"), DType::F16, &tensors(256, 16, 0), 16);
    let file = Gguf::open(dir.join("in.gguf")).unwrap();
    let done = Quantize::default().run(&file, &dir.join("out.gguf"), mix("q4_k_m")).unwrap();
    let out = Gguf::open(dir.join("out.gguf")).unwrap();
    assert_eq!(files(&dir), ["in.gguf", "out.gguf"]);
    assert_eq!(out.names().collect::<Vec<_>>(), file.names().collect::<Vec<_>>());
    let keys = |f: &Gguf| f.pairs().map(|(k, _)| k.to_owned()).collect::<Vec<_>>();
    let mut expected = keys(&file);
    expected.push("general.quantization_version".into());
    assert_eq!(keys(&out), expected, "keys stay, in order");
    assert_eq!(out.find("general.file_type").unwrap(), Some(15usize));
    assert_eq!(out.tensor("output_norm.weight").unwrap().bytes(), file.tensor("output_norm.weight").unwrap().bytes());
    assert_eq!(dtype_of(&out, "output.weight"), DType::Q6_K);
    assert_eq!(dtype_of(&out, "token_embd.weight"), DType::Q4_K);
    // The first and the last eighth, and every third layer between.
    let more: Vec<usize> =
        (0..16).filter(|l| dtype_of(&out, &format!("blk.{l}.attn_v.weight")) == DType::Q6_K).collect();
    assert_eq!(more, [0, 1, 4, 7, 10, 13, 14, 15]);
    // Rows of 64 are no blocks of 256: Q4_K becomes Q5_0, Q6_K becomes Q8_0.
    assert_eq!(dtype_of(&out, "blk.2.ffn_down.weight"), DType::Q5_0);
    assert_eq!(dtype_of(&out, "blk.1.ffn_down.weight"), DType::Q8_0);
    assert_eq!(done.tensors.len(), file.names().count());
    assert_eq!(done.bytes.1, out.names().map(|n| out.tensor(n).unwrap().spec.bytes()).sum::<usize>());
    // What was written is what the encoder makes of the values.
    let (name, rows) = ("blk.3.attn_q.weight", 256 * 256);
    let (mut values, mut bytes) = (vec![0.0; rows], vec![0; DType::Q4_K.bytes(rows).unwrap()]);
    quant::decode(DType::F16, file.tensor(name).unwrap().bytes(), &mut values).unwrap();
    quant::encode(DType::Q4_K, &values, &mut bytes).unwrap();
    assert!(out.tensor(name).unwrap().bytes() == bytes);
}

#[test]
fn every_mix_comes_back() {
    let dir = folder("every");
    model(&dir.join("in.gguf"), DType::F32, &tensors(256, 1, 0), 1);
    let file = Gguf::open(dir.join("in.gguf")).unwrap();
    for &mix in Mix::ALL {
        assert_eq!(mix.name().to_lowercase().parse(), Ok(mix));
        let done = Quantize::default().run(&file, &dir.join("out.gguf"), mix).unwrap();
        let out = Gguf::open(dir.join("out.gguf")).unwrap();
        let used: Vec<DType> = done.tensors.iter().map(|t| t.2).collect();
        let plain = mix.name() == "MXFP4_MOE"; // of what is no expert
        assert!(plain || used.contains(&mix.base()), "{mix}: {used:?}");
        let low = mix.name().starts_with("IQ1") || mix.name().starts_with("IQ2") || mix.name() == "IQ3_XXS";
        assert!(!low || done.warnings.iter().any(|w| w.contains("importance")), "{mix}: {:?}", done.warnings);
        for name in out.names().filter(|n| !n.contains("norm")) {
            let (a, b) = (file.tensor(name).unwrap(), out.tensor(name).unwrap());
            let (mut x, mut y) = (vec![0f32; a.spec.numel()], vec![0f32; a.spec.numel()]);
            quant::decode(a.spec.dtype(), a.bytes(), &mut x).unwrap();
            quant::decode(b.spec.dtype(), b.bytes(), &mut y).unwrap();
            let lost = x.iter().zip(&y).map(|(x, y)| (x - y).powi(2)).sum::<f32>() / x.len() as f32;
            assert!(lost < 0.7, "{mix} {name} {}: {lost}", b.spec);
        }
    }
    let wrong = "Q4_X".parse::<Mix>().unwrap_err().to_string();
    assert!(wrong.contains("Q4_K_M"), "{wrong} lists what is known");
}

#[test]
fn the_number_of_threads_changes_nothing() {
    let dir = folder("threads");
    model(&dir.join("in.gguf"), DType::BF16, &tensors(512, 2, 0), 2);
    let file = Gguf::open(dir.join("in.gguf")).unwrap();
    let run = |threads: usize| {
        let done = AtomicUsize::new(0);
        let progress = |n: usize| {
            done.fetch_add(n, Ordering::Relaxed);
        };
        let quantize = Quantize { threads, progress: Some(&progress), ..Quantize::default() };
        let out = dir.join(format!("{threads}.gguf"));
        let summary = quantize.run(&file, &out, mix("Q5_K_M")).unwrap();
        assert_eq!(done.into_inner(), summary.elements);
        fs::read(out).unwrap()
    };
    let one = run(1);
    assert!(one == run(2) && one == run(7));
}

/// Importance files of both forms that say the same of a model's weights.
fn importance(dir: &Path, weights: &[(&str, usize, Vec<f32>)]) -> [PathBuf; 2] {
    let [gguf, dat] = ["importance.gguf", "importance.dat"].map(|f| dir.join(f));
    let mut file = Writer::new();
    let mut old = (weights.len() as i32).to_le_bytes().to_vec();
    let (mut tensors, mut data) = (Vec::new(), Vec::new());
    for (name, experts, columns) in weights {
        let width = columns.len() / experts;
        tensors.push((format!("{name}.in_sum2"), [*experts, width], columns.iter().map(|v| v * 4.0).collect()));
        tensors.push((format!("{name}.counts"), [*experts, 1], vec![4.0f32; *experts]));
        old.extend((name.len() as i32).to_le_bytes());
        old.extend(name.as_bytes());
        old.extend([8i32.to_le_bytes(), (columns.len() as i32).to_le_bytes()].concat());
        old.extend(columns.iter().flat_map(|v| (v * 8.0).to_le_bytes()));
    }
    for (name, shape, values) in &tensors {
        file.tensor(name, Spec::new(DType::F32, shape).unwrap()).unwrap();
        data.extend(values.iter().flat_map(|v| v.to_le_bytes()));
    }
    let mut out = file.begin(Vec::new()).unwrap();
    out.write(&data).unwrap();
    fs::write(&gguf, out.finish().unwrap()).unwrap();
    fs::write(&dat, old).unwrap();
    [gguf, dat]
}

#[test]
fn importance_weights_steer_errors() {
    let dir = folder("importance");
    model(&dir.join("in.gguf"), DType::F32, &tensors(256, 2, 2), 2);
    let file = Gguf::open(dir.join("in.gguf")).unwrap();
    // The even columns matter, for the second expert the odd ones.
    let even: Vec<f32> = (0..256).map(|i| if i % 2 == 0 { 16.0 } else { 0.25 }).collect();
    let odd: Vec<f32> = even.iter().rev().copied().collect();
    let (dense, experts) = ("blk.0.attn_q.weight", "blk.1.ffn_down_exps.weight");
    let weights = [(dense, 1, even.clone()), (experts, 2, [even, odd].concat())];
    let lost = |file: &Gguf, out: &Gguf, name: &str, expert: usize, odd: usize| -> f64 {
        let (a, b) = (file.tensor(name).unwrap(), out.tensor(name).unwrap());
        let (mut x, mut y) = (vec![0f32; a.spec.numel()], vec![0f32; a.spec.numel()]);
        quant::decode(a.spec.dtype(), a.bytes(), &mut x).unwrap();
        quant::decode(b.spec.dtype(), b.bytes(), &mut y).unwrap();
        let rows = a.spec.dim(1) * 256;
        let range = expert * rows + odd..(expert + 1) * rows;
        range.step_by(2).map(|i| ((x[i] - y[i]) as f64).powi(2)).sum()
    };
    let mut outputs = Vec::new();
    for path in importance(&dir, &weights) {
        let read = Importance::open(&path).unwrap();
        assert_eq!((read.len(), read.of(dense).map(|c| (c[0], c[1]))), (2, Some((16.0, 0.25))));
        assert!(read.of("blk.7.attn_q.weight").is_none());
        let out = dir.join("out.gguf");
        Quantize { importance: Some(&read), ..Quantize::default() }.run(&file, &out, mix("IQ3_S")).unwrap();
        outputs.push(fs::read(&out).unwrap());
        let out = Gguf::open(out).unwrap();
        assert_eq!(out.find("quantize.imatrix.entries_count").unwrap(), Some(2usize));
        for (name, expert, matters) in [(dense, 0, 0), (experts, 0, 0), (experts, 1, 1)] {
            let (much, little) =
                (lost(&file, &out, name, expert, matters), lost(&file, &out, name, expert, 1 - matters));
            assert!(much < 0.8 * little, "{name} {expert}: {much} {little}");
        }
        let even = lost(&file, &out, "blk.0.attn_output.weight", 0, 0);
        let odd = lost(&file, &out, "blk.0.attn_output.weight", 0, 1);
        assert!((even / odd - 1.0).abs() < 0.1, "nothing is known of this one: {even} {odd}");
    }
    let name =
        |bytes: &[u8]| Gguf::parse(bytes.to_vec()).unwrap().require::<&str>("quantize.imatrix.file").map(str::to_owned);
    assert_eq!((name(&outputs[0]), name(&outputs[1])), (Ok("importance.gguf".into()), Ok("importance.dat".into())));
    // Of another model.
    let [other, _] = importance(&dir, &[(dense, 1, vec![1.0; 128])]);
    let other = Importance::open(other).unwrap();
    let wrong = Quantize { importance: Some(&other), ..Quantize::default() };
    let error = wrong.run(&file, &dir.join("no.gguf"), mix("Q4_K_M")).unwrap_err();
    assert!(matches!(&error, Error::File { why, .. } if why.contains("another model")), "{error}");
    assert_eq!(files(&dir), ["importance.dat", "importance.gguf", "in.gguf", "out.gguf"]);
}

#[test]
fn failures_leave_nothing() {
    let dir = folder("failures");
    let input = dir.join("in.gguf");
    model(&input, DType::Q8_0, &tensors(256, 2, 0), 2);
    let before = fs::read(&input).unwrap();
    let file = Gguf::open(&input).unwrap();
    let q4 = mix("Q4_0");
    let same = Quantize::default().run(&file, &dir.join("../failures/in.gguf"), q4).unwrap_err();
    assert!(matches!(&same, Error::Invalid { why, .. } if why.contains("input itself")), "{same}");
    let absent = Quantize::default().run(&file, &dir.join("absent/out.gguf"), q4).unwrap_err();
    assert!(matches!(&absent, Error::File { why, .. } if why.contains("folder")), "{absent}");
    fs::create_dir(dir.join("folder")).unwrap();
    fs::write(dir.join("folder/inside"), "").unwrap();
    let taken = Quantize::default().run(&file, &dir.join("folder"), q4).unwrap_err();
    assert!(matches!(taken, Error::File { .. }), "{taken}");
    assert_eq!(files(&dir), ["folder", "in.gguf"]);
    // One that exists is replaced as a whole.
    fs::write(dir.join("out.gguf"), "old").unwrap();
    let done = Quantize::default().run(&file, &dir.join("out.gguf"), q4).unwrap();
    assert!(done.warnings.iter().any(|w| w.contains("already")), "{:?}", done.warnings);
    assert!(Gguf::open(dir.join("out.gguf")).is_ok() && fs::read(&input).unwrap() == before);
    // A part of a model alone.
    let mut part = Writer::new();
    part.pair("split.count", Value::U16(3)).unwrap();
    let part = Gguf::parse(part.begin(Vec::new()).unwrap().finish().unwrap()).unwrap();
    let error = Quantize::default().run(&part, &dir.join("out.gguf"), q4).unwrap_err();
    assert!(error.to_string().contains("3 parts"), "{error}");
}

#[cfg(target_os = "linux")]
#[test]
fn a_full_disk_is_told() {
    // The one device that is always full; it cannot be renamed over, so the writer alone is asked.
    let mut file = Writer::new();
    file.tensor("w", Spec::new(DType::F32, &[1 << 16]).unwrap()).unwrap();
    let full = fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
    let error = file.begin(full).map(|_| ()).unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::StorageFull);
}

#[test]
fn the_writer_refuses_what_the_reader_would() {
    let mut file = Writer::new();
    let spec = |dtype, shape: &[usize]| Spec::new(dtype, shape).unwrap();
    file.tensor("a", spec(DType::F32, &[2])).unwrap();
    assert!(matches!(file.tensor("a", spec(DType::F32, &[2])), Err(Error::Invalid { .. })));
    assert!(matches!(file.tensor("b", spec(DType::F32, &[1; 5])), Err(Error::Invalid { .. })));
    assert!(matches!(file.tensor("b", spec(DType::F8E4M3, &[1])), Err(Error::Unsupported { .. })));
    assert!(matches!(file.pair("general.alignment", Value::U32(48)), Err(Error::Invalid { .. })));
    assert!(matches!(file.array("mixed", [Value::U8(1), Value::U16(1)]), Err(Error::Invalid { .. })));
    file.pair("general.alignment", Value::U32(128)).unwrap();
    let mut data = file.begin(Vec::new()).unwrap();
    data.write(&[1; 7]).unwrap();
    assert!(data.write(&[1; 2]).is_err(), "one byte too many");
    let mut short = Writer::new();
    short.tensor("a", spec(DType::I8, &[2])).unwrap();
    let mut data = short.begin(Vec::new()).unwrap();
    data.write(&[1]).unwrap();
    assert!(data.finish().is_err(), "one byte is missing");
}

proptest! {
    #[test]
    fn what_is_written_is_read(
        texts in proptest::collection::vec("\\PC{0,20}", 0..5),
        numbers in proptest::collection::vec(any::<u64>(), 0..5),
        shapes in proptest::collection::vec(proptest::collection::vec(0usize..5, 1..4), 0..6),
        alignment in 3u32..9,
    ) {
        let mut file = Writer::new();
        file.pair("general.alignment", Value::U32(1 << alignment)).unwrap();
        file.array("texts", texts.iter().map(|t| Value::String(t))).unwrap();
        file.array("numbers", numbers.iter().map(|&n| Value::U64(n))).unwrap();
        let specs: Vec<Spec> = shapes.iter().map(|s| Spec::new(DType::F16, s).unwrap()).collect();
        specs.iter().enumerate().for_each(|(i, &s)| file.tensor(&format!("t{i}"), s).unwrap());
        let size = file.size();
        let mut data = file.begin(Vec::new()).unwrap();
        let bytes = |i: usize, s: &Spec| (0..s.bytes()).map(|b| (7 * i + b) as u8).collect::<Vec<u8>>();
        specs.iter().enumerate().for_each(|(i, s)| data.write(&bytes(i, s)).unwrap());
        let written = data.finish().unwrap();
        prop_assert_eq!(Some(written.len()), size);
        let back = Gguf::parse(written).unwrap();
        for (i, s) in specs.iter().enumerate() {
            let t = back.tensor(&format!("t{i}")).unwrap();
            prop_assert_eq!(t.spec, *s);
            prop_assert_eq!(t.range.start % (1 << alignment), 0);
            prop_assert_eq!(t.bytes(), bytes(i, s));
        }
        let array = |key| back.require::<tesela::gguf::Array<'_>>(key).unwrap();
        let read: Vec<&str> = array("texts").collect().unwrap();
        prop_assert!(read == texts);
        let read: Vec<u64> = array("numbers").collect().unwrap();
        prop_assert!(read == numbers);
    }

    #[test]
    fn any_bytes_are_no_importance_or_some(bytes in proptest::collection::vec(any::<u8>(), 0..300), entries in 0u8..4) {
        let path = folder("any").join(format!("{:?}", std::thread::current().id()));
        let mut file = vec![entries, 0, 0, 0];
        file.extend(&bytes);
        for bytes in [&bytes, &file] {
            fs::write(&path, bytes).unwrap();
            drop(Importance::open(&path));
        }
    }
}
