//! The reader of model files: what it reads, and what it says of everything else.
#![cfg(feature = "gguf")]

use std::{
    alloc::{GlobalAlloc, Layout, System},
    cell::Cell,
    path::Path,
};

use proptest::prelude::*;
use tesela::{
    DType, Error,
    gguf::{Array, Gguf, Value},
};

/// Counts what a thread holds, and the most it held.
struct Counting;

thread_local! {
    static HELD: Cell<(isize, isize)> = const { Cell::new((0, 0)) };
}

fn count(bytes: isize) {
    // Fails only while the thread ends.
    let _ = HELD.try_with(|held| {
        let now = held.get().0 + bytes;
        held.set((now, held.get().1.max(now)));
    });
}

// SAFETY: hands every call on to the system's allocator.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size() as isize);
        // SAFETY: the caller's promise, handed on.
        unsafe { System.alloc(layout) }
    }
    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        count(-(layout.size() as isize));
        // SAFETY: the caller's promise, handed on.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Writes a file piece by piece.
#[derive(Default)]
struct Writer(Vec<u8>);

impl Writer {
    fn head(version: u32, tensors: u64, pairs: u64) -> Writer {
        Writer(b"GGUF".to_vec()).u32(version).u64(tensors).u64(pairs)
    }
    fn u32(mut self, v: u32) -> Self {
        self.0.extend(v.to_le_bytes());
        self
    }
    fn u64(mut self, v: u64) -> Self {
        self.0.extend(v.to_le_bytes());
        self
    }
    fn raw(mut self, bytes: &[u8]) -> Self {
        self.0.extend(bytes);
        self
    }
    fn text(self, s: &str) -> Self {
        self.u64(s.len() as u64).raw(s.as_bytes())
    }
    fn pair(self, key: &str, kind: u32, value: &[u8]) -> Self {
        self.text(key).u32(kind).raw(value)
    }
    fn array(self, kind: u32, len: u64) -> Self {
        self.u32(kind).u64(len)
    }
    fn tensor(self, name: &str, extents: &[u64], kind: u32, offset: u64) -> Self {
        let head = self.text(name).u32(extents.len() as u32);
        extents.iter().fold(head, |w, &n| w.u64(n)).u32(kind).u64(offset)
    }
    fn data(mut self, alignment: usize, bytes: usize) -> Vec<u8> {
        self.0.resize(self.0.len().next_multiple_of(alignment), 0);
        self.0.extend((0..bytes).map(|i| i as u8));
        self.0
    }
}

/// Every kind of value, and tensors of a known and of an unknown type.
fn sample() -> Vec<u8> {
    let values = Writer::head(3, 3, 15)
        .pair("u8", 0, &[200])
        .pair("i8", 1, &[200])
        .pair("u16", 2, &[1, 2])
        .pair("i16", 3, &[255, 255])
        .pair("u32", 4, &[7, 0, 0, 0])
        .pair("i32", 5, &[255; 4])
        .pair("f32", 6, &1.5f32.to_le_bytes())
        .pair("bool", 7, &[1])
        .pair("string", 8, &Writer::default().text("mañana").0)
        .pair("ints", 9, &Writer::default().array(5, 3).u32(1).u32(2).u32(3).0)
        .pair("words", 9, &Writer::default().array(8, 2).text("a").text("").0)
        .pair("nested", 9, &Writer::default().array(9, 2).array(0, 2).raw(&[1, 2]).array(8, 1).text("x").0)
        .pair("u64", 10, &[255; 8])
        .pair("i64", 11, &[255; 8])
        .pair("f64", 12, &0.1f64.to_le_bytes());
    values.tensor("w", &[64, 3], 8, 0).tensor("norm", &[5], 0, 224).tensor("odd", &[256, 2], 28, 256).data(32, 600)
}

fn why(bytes: Vec<u8>) -> String {
    match Gguf::parse(bytes) {
        Err(Error::File { why, .. }) => why,
        other => panic!("expected a file error, got {other:?}"),
    }
}

#[test]
fn values_and_tensors() {
    let file = Gguf::parse(sample()).unwrap();
    assert_eq!(file.version(), 3);
    let text: Vec<String> = file.pairs().map(|(key, value)| format!("{key}={value:?}")).collect();
    assert_eq!(
        text.join(" "),
        "u8=200 i8=-56 u16=513 i16=-1 u32=7 i32=-1 f32=1.5 bool=true string=\"mañana\" ints=[1, 2, 3] \
         words=[\"a\", \"\"] nested=[[1, 2], [\"x\"]] u64=18446744073709551615 i64=-1 f64=0.1"
    );
    assert_eq!(file.require::<usize>("u16").unwrap(), 513);
    assert_eq!(file.require::<&str>("string").unwrap(), "mañana");
    assert_eq!(file.find::<f32>("f64").unwrap(), Some(0.1));
    assert_eq!(file.find::<u32>("nothing").unwrap(), None);
    assert_eq!(file.require::<Array>("words").unwrap().collect::<&str>(), Some(vec!["a", ""]));
    let nested = file.require::<Array>("nested").unwrap().collect::<Array>().unwrap();
    assert_eq!(nested[1].iter().next(), Some(Value::String("x")));
    for (key, error) in [
        ("i8", "i8 is -56, and should be an integer that fits usize"),
        ("string", "string is \"mañana\", and should be an integer that fits usize"),
        ("none", "has no none"),
    ] {
        assert!(file.require::<usize>(key).unwrap_err().to_string().contains(error), "{key}");
    }

    assert_eq!(file.names().collect::<Vec<_>>(), ["w", "norm", "odd"]);
    let w = file.tensor("w").unwrap();
    assert_eq!((w.spec.dtype(), w.spec.shape()), (DType::Q8_0, &[3, 64][..]));
    assert_eq!((w.bytes().len(), w.bytes()[1]), (3 * 2 * 34, 1));
    assert_eq!(&(**file.bytes()).as_ref()[w.range.clone()], w.bytes());
    assert_eq!(file.tensor("norm").unwrap().bytes()[..2], [224, 225]);
    let unknown = file.tensor("odd").unwrap_err();
    assert!(matches!(&unknown, Error::Unsupported { .. }) && unknown.to_string().contains("F64"), "{unknown}");
    assert!(file.tensor("x").unwrap_err().to_string().contains("has no tensor x"));
}

#[test]
fn foreign_files_are_named() {
    for (bytes, says) in [
        (&b""[..], "is empty"),
        (b"GG", "not a GGUF"),
        (b"GGU", "truncated"),
        (b"GGUF", "truncated"),
        (b"PK\x03\x04model", "zip archive"),
        (b"<!DOCTYPE html>", "web page"),
        (b"tjgg\x01\0\0\0", "before GGUF"),
        (b"\x10\0\0\0\0\0\0\0{\"a\":1}", "safetensors"),
        (b"version https://git-lfs.github.com/spec/v1", "Git LFS"),
        (b"GGUF\0\0\0\x03", "big-endian"),
        (b"GGUF\x01\0\0\0", "version 1"),
        (b"GGUF\x04\0\0\0", "version 4"),
    ] {
        let why = why(bytes.to_vec());
        assert!(why.contains(says), "{bytes:?}: {why}");
    }
}

#[test]
fn corrupt_files_are_refused() {
    let one = |w: Writer| w.data(32, 64);
    for (bytes, says) in [
        (Writer::head(3, u64::MAX, 0).0, "a count of 18446744073709551615"),
        (Writer::head(3, 0, 1 << 40).0, "a count of 1099511627776"),
        (Writer::head(3, 0, 1).pair("a", 8, &[]).u64(1 << 60).0, "a count of 1152921504606846976 at byte 37"),
        (Writer::head(3, 0, 1).pair("a", 9, &[]).array(4, u64::MAX / 2).0, "at most 0 fit"),
        (Writer::head(3, 0, 1).pair("a", 13, &[0; 8]).0, "kind 13"),
        (Writer::head(3, 0, 1).pair("a", 7, &[2; 9]).0, "a boolean of 2"),
        (Writer::head(3, 0, 1).u64(2).raw(&[0xff, 0xfe]).u64(0).0, "not UTF-8"),
        (Writer::head(3, 0, 2).pair("a", 0, &[1]).pair("a", 0, &[1]).0, "the key a is there twice"),
        (Writer::head(3, 0, 1).pair("general.alignment", 4, &[12, 0, 0, 0]).0, "alignment is 12"),
        (Writer::head(3, 0, 1).pair("general.alignment", 6, &[0; 4]).0, "should be an integer"),
        (one(Writer::head(3, 1, 0).tensor("t", &[], 0, 0)), "0 dimensions"),
        (one(Writer::head(3, 1, 0).tensor("t", &[1; 5], 0, 0)), "5 dimensions"),
        (one(Writer::head(3, 1, 0).tensor("t", &[17], 0, 0)), "tensor t ends at byte"),
        (one(Writer::head(3, 1, 0).tensor("t", &[1], 0, 64)), "tensor t ends at byte"),
        (one(Writer::head(3, 1, 0).tensor("t", &[1], 0, 4)), "tensor t has the offset 4"),
        (one(Writer::head(3, 1, 0).tensor("t", &[1], 0, u64::MAX - 31)), "tensor t"),
        (one(Writer::head(3, 1, 0).tensor("t", &[1 << 40, 1 << 40], 0, 0)), "too many elements"),
        (one(Writer::head(3, 1, 0).tensor("t", &[33], 8, 0)), "multiple of 32"),
        (one(Writer::head(3, 2, 0).tensor("t", &[1], 0, 0).tensor("t", &[1], 0, 32)), "tensor t is there twice"),
        (one(Writer::head(3, 2, 0).tensor("a", &[9], 0, 0).tensor("b", &[1], 0, 32)), "tensors a and b overlap"),
    ] {
        let why = why(bytes);
        assert!(why.contains(says), "{says}: {why}");
    }
    let deep = (0..2000).fold(Writer::head(3, 0, 1).pair("a", 9, &[]), |w, _| w.array(9, 1));
    assert!(why(deep.0).contains("nested deeper"));
    // No tensors and no data is a legal file, and so is an empty tensor at its end.
    assert!(Gguf::parse(Writer::head(2, 0, 0).0).is_ok());
    let empty = Gguf::parse(Writer::head(3, 1, 0).tensor("t", &[0, 4], 0, 0).data(32, 0)).unwrap();
    assert!(empty.tensor("t").unwrap().bytes().is_empty());
}

#[test]
fn every_truncation_is_an_error() {
    let whole = sample();
    let needed = whole.len() - 600 + 256; // the last tensor is of unknown size
    for len in 0..needed {
        assert!(Gguf::parse(whole[..len].to_vec()).is_err(), "{len}");
    }
    assert!(Gguf::parse(whole[..needed].to_vec()).is_ok());
}

#[test]
fn what_is_not_there_says_where_to_get_one() {
    let missing = Gguf::open("no/such/model.gguf").unwrap_err().to_string();
    assert!(missing.contains("no/such/model.gguf") && missing.contains("https://huggingface.co"), "{missing}");
    assert!(Gguf::open(env!("CARGO_MANIFEST_DIR")).unwrap_err().to_string().contains("folder"));
}

/// Opens bytes, touches everything, and says whether memory stayed in proportion.
fn exercise(bytes: Vec<u8>) -> Result<(), TestCaseError> {
    let len = bytes.len() as isize;
    let before = HELD.get().0;
    HELD.set((before, before));
    if let Ok(file) = Gguf::parse(bytes) {
        for (key, value) in file.pairs() {
            let _ = (key, format!("{value:?}"), file.find::<usize>(key), file.find::<Array>(key));
        }
        for name in file.names() {
            let _ = file.tensor(name).map(|t| t.bytes().iter().map(|&b| b as u64).sum::<u64>());
        }
    }
    let most = HELD.get().1 - before;
    prop_assert!(most <= 16 * len + 4096, "{most} bytes held for a file of {len}");
    Ok(())
}

fn mutated(mut bytes: Vec<u8>, edits: &[(usize, u8)], cut: Option<usize>) -> Vec<u8> {
    for &(at, value) in edits {
        let len = bytes.len();
        bytes[at % len] = value;
    }
    bytes.truncate(cut.map_or(bytes.len(), |n| n % bytes.len()));
    bytes
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn arbitrary_bytes(bytes in proptest::collection::vec(any::<u8>(), 0..400), head: bool) {
        exercise(if head { [&b"GGUF\x03\0\0\0"[..], &bytes].concat() } else { bytes })?;
    }

    #[test]
    fn a_mutated_file(
        edits in proptest::collection::vec((0usize..900, any::<u8>()), 1..8),
        cut in proptest::option::of(any::<usize>()),
    ) {
        exercise(mutated(sample(), &edits, cut))?;
    }
}

#[test]
fn mutated_models() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../shared/models/stories260K-q4_0.gguf");
    if !Path::new(path).exists() {
        eprintln!("skipped: {path} is absent");
        return;
    }
    let whole = std::fs::read(path).unwrap();
    let directory = 16_000; // about where its data begins
    proptest!(
        ProptestConfig::with_cases(300),
        |(
            edits in proptest::collection::vec((0usize..directory, any::<u8>()), 1..6),
            cut in proptest::option::of(any::<usize>()),
        )| exercise(mutated(whole.clone(), &edits, cut))?
    );
    let file = Gguf::open(path).unwrap();
    assert_eq!(file.require::<&str>("general.architecture").unwrap(), "llama");
    assert_eq!(file.tensor("token_embd.weight").unwrap().spec.shape(), [512, 64]);
}
