//! The example decoder against a float64 oracle's tokens and logits, on every device of the machine.
#![cfg(feature = "gguf")]

#[path = "../examples/generate/config.rs"]
#[allow(dead_code, reason = "the command needs more of it than these tests")]
mod config;
#[path = "../examples/generate/model.rs"]
mod model;
#[path = "../examples/generate/tokenizer.rs"]
#[allow(dead_code, reason = "the command needs more of it than these tests")]
mod tokenizer;

use std::{fs, path::PathBuf};

use model::{Model, Session};
use serde_json::Value;
use tesela::{Runtime, gguf::Gguf, op::Bound};
use tokenizer::Tokenizer;

const VARIANTS: [&str; 4] = ["f32", "f16", "q8_0", "q4_0"];

/// The model of a variant with its golden cases; `None` where the data is absent.
fn golden(variant: &str) -> Option<(Gguf, Vec<Value>)> {
    let base = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../shared/models"));
    let path = base.join(format!("stories260K-{variant}.gguf"));
    if !path.exists() {
        eprintln!("skipped: {} is absent", path.display());
        return None;
    }
    let text = fs::read_to_string(path.with_extension("golden.json")).expect("the golden file lies beside the model");
    let golden: Value = serde_json::from_str(&text).expect("the golden file is JSON");
    Some((Gguf::open(path).expect("the model opens"), golden["cases"].as_array().expect("a list of cases").clone()))
}

fn numbers(value: &Value) -> Vec<u32> {
    value.as_array().expect("a list").iter().map(|v| v.as_u64().expect("an id") as u32).collect()
}

/// A runtime for each device; of those that are a last resort, the reference alone.
fn runtimes() -> Vec<Runtime> {
    let all = Runtime::builder().no_cache().build().expect("the reference is on every machine");
    let wanted = |d: &&tesela::Device| !d.is_last_resort() || d.info().backend == "reference";
    let ids = all.devices().iter().filter(wanted).map(|d| d.info().id.clone());
    ids.map(|id| Runtime::builder().no_cache().allow(&[&id]).build().expect("a device that is there")).collect()
}

#[test]
fn the_oracles_tokens_and_logits() {
    for variant in VARIANTS {
        let Some((file, cases)) = golden(variant) else { return };
        let tokenizer = Tokenizer::load(&file).unwrap();
        for runtime in runtimes() {
            let model = Model::load(&runtime, &file).unwrap();
            for case in &cases {
                let what = format!("{variant} on {}: {}", model.device(), case["prompt"]);
                let prompt = tokenizer.encode(case["prompt"].as_str().expect("a prompt"));
                assert_eq!(prompt, numbers(&case["prompt_ids"]), "{what}");
                let expected = numbers(&case["greedy_ids"]);

                let mut session = Session::new(&model, prompt.len() + expected.len()).unwrap();
                session.prefill(&prompt).unwrap();
                near(&session.logits().unwrap(), &case["logits_after_prompt"], &model, &what);
                let mut ids = Vec::new();
                while ids.len() < expected.len() {
                    ids.push(session.sample(0.0, 0).unwrap());
                    session.advance().unwrap();
                }
                assert_eq!(ids, expected, "{what}");
                let text = tokenizer.decode(&[prompt, ids].concat());
                assert_eq!(text, case["text"].as_str().expect("a text"), "{what}");
            }
        }
    }
}

/// Each operation on the way may be off by its own bound; here the widest product's, of the largest logit.
fn near(logits: &[f32], expected: &Value, model: &Model, what: &str) {
    let expected: Vec<f64> =
        expected.as_array().expect("logits").iter().map(|v| v.as_f64().expect("a number")).collect();
    assert_eq!(logits.len(), expected.len(), "{what}");
    let operations = (9 * model.config.layers + 3) as f64;
    let largest = expected.iter().fold(0f64, |most, v| most.max(v.abs()));
    let limit = operations * Bound::dot(model.config.hidden).relative * largest;
    for (i, (got, want)) in logits.iter().zip(&expected).enumerate() {
        let error = (*got as f64 - want).abs();
        assert!(error <= limit, "{what}: logit {i} is {got}, expected {want}, limit {limit:e}");
    }
}

#[test]
fn a_prompt_in_two_parts_is_the_same_text() {
    let Some((file, cases)) = golden("f32") else { return };
    let prompt = numbers(&cases[0]["prompt_ids"]);
    for runtime in runtimes() {
        let model = Model::load(&runtime, &file).unwrap();
        let mut session = Session::new(&model, 16).unwrap();
        session.prefill(&prompt[..2]).unwrap();
        session.prefill(&prompt[2..]).unwrap();
        near(&session.logits().unwrap(), &cases[0]["logits_after_prompt"], &model, &model.device());
        let too_long = session.prefill(&[1; 12]).unwrap_err().to_string();
        assert!(too_long.contains("17 tokens in a session for 16"), "{too_long}");
    }
}

#[test]
fn sampling_is_seeded() {
    let Some((file, _)) = golden("f32") else { return };
    let runtime = &runtimes()[0];
    let model = Model::load(runtime, &file).unwrap();
    let text = |seed| {
        let mut session = Session::new(&model, 64).unwrap();
        session.prefill(&[1]).unwrap();
        let draw = |_| {
            let id = session.sample(1.0, seed).unwrap();
            session.advance().unwrap();
            id
        };
        (0..40).map(draw).collect::<Vec<u32>>()
    };
    assert_eq!(text(1), text(1));
    assert_ne!(text(1), text(2));
}

#[test]
fn a_model_with_other_shapes_is_refused() {
    let Some((file, _)) = golden("f32") else { return };
    // The number of kv heads, which k's shape must match, changed from 4 to 2.
    let mut bytes = (**file.bytes()).as_ref().to_vec();
    let key = b"llama.attention.head_count_kv";
    let at = bytes.windows(key.len()).position(|w| w == key).expect("the key") + key.len() + 4;
    bytes[at] = 2;
    let error = Model::load(&runtimes()[0], &Gguf::parse(bytes).unwrap()).err().expect("a refusal").to_string();
    assert!(error.contains("attn_k"), "{error}");
}
