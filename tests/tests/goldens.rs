//! Whole models against the oracle: an implementation in PyTorch that computed logits, hidden states and greedy
//! continuations of each prompt (`golden.safetensors`, `golden.json`).

use std::path::Path;

use safetensors::SafeTensors;
use serde::Deserialize;
use tread_core::backend::{Batch, CompileOptions, KvDType};
use tread_core::checkpoint::Checkpoint;
use tread_core::model::Model;
use tread_tests::backends::{Sequence, argmax, backends, compile, relative_l2, step};

/// The oracle may have taken either of two tokens that are closer than this.
const MARGIN: f32 = 0.05;

#[derive(Deserialize)]
struct Golden {
    prompts: Vec<Vec<u32>>,
    greedy: Vec<Greedy>,
}

#[derive(Deserialize)]
struct Greedy {
    tokens: Vec<u32>,
    top1_minus_top2: Vec<f32>,
}

/// Holds the model in `folder` (relative to this crate) against its goldens, on every back end. `hidden_states` says
/// how many the file has.
fn check(folder: &str, hidden_states: usize) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join(folder);
    let read = |file: &str| std::fs::read(folder.join(file)).expect(file);
    let golden: Golden = serde_json::from_slice(&read("golden.json")).expect("golden.json");
    let bytes = read("golden.safetensors");
    let tensors = SafeTensors::deserialize(&bytes).expect("golden.safetensors");
    let model = Model::new("golden", Checkpoint::open(&folder).expect("the checkpoint")).expect("the model");
    for backend in backends() {
        // The bound is 2e-3; a cache in full precision stays far below it. Rounding the cache to half precision may
        // turn the choice of a router that is nearly undecided, which these few narrow layers do not average out.
        for (kv, limit) in [(KvDType::F32, 1e-4), (KvDType::F16, 3e-2)] {
            let options = CompileOptions { max_outputs: 256, ..CompileOptions::single(256, 256, kv) };
            let mut executable = compile(&*backend, &model.graph, &model.weights, options);
            for (p, prompt) in golden.prompts.iter().enumerate() {
                let label = format!("{}, KV {kv:?}, prompt {p}", backend.name());
                let mut sequence = Sequence::new((0..16).collect());
                let batch =
                    Batch { sequences: vec![sequence.extend(prompt)], hidden: true, ..Batch::default() };
                let mut found = step(&mut *executable, &batch);
                assert_near(&tensors, &format!("logits.{p}"), &found[0], limit, &label);
                for (layer, hidden) in found[1..].iter().enumerate() {
                    let name = format!("hidden.{p}.{layer}");
                    if tensors.tensor(&name).is_ok() {
                        assert_near(&tensors, &name, hidden, limit, &label);
                    }
                }
                for (i, (&token, &margin)) in
                    golden.greedy[p].tokens.iter().zip(&golden.greedy[p].top1_minus_top2).enumerate()
                {
                    let vocab = model.graph.vocab_size;
                    let chosen = argmax(&found[0][found[0].len() - vocab..]) as u32;
                    assert!(
                        chosen == token || margin <= MARGIN,
                        "{label}: token {i} is {chosen}, not {token}"
                    );
                    // After a near tie the oracle's choice stands, so that the rest can be compared.
                    let batch = Batch { sequences: vec![sequence.extend(&[token])], ..Batch::default() };
                    found = step(&mut *executable, &batch);
                }
            }
        }
    }
    let in_file = tensors.names().iter().filter(|name| name.starts_with("hidden.")).count();
    assert_eq!(in_file, hidden_states, "hidden states in golden.safetensors");
}

fn assert_near(tensors: &SafeTensors<'_>, name: &str, found: &[f32], limit: f64, label: &str) {
    let tensor = tensors.tensor(name).expect(name);
    let expected: Vec<f32> =
        tensor.data().as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect();
    let error = relative_l2(found, &expected);
    println!("{label}, {name}: {error:e}");
    assert!(error <= limit, "{label}, {name}: relative L2 {error:e}");
}

#[test]
fn step3_tiny() {
    check("data/step3-tiny", 6);
}

#[test]
fn step3_tiny_fp8() {
    check("data/step3-tiny-fp8", 6);
}

#[test]
fn nano() {
    check("../app/models/nano", 0);
}
