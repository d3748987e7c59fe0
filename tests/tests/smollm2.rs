//! A real model: SmolLM2-135M-Instruct, on every back end and against candle, an independent implementation.

use std::fs::File;
use std::path::PathBuf;

use candle_core::quantized::gguf_file::Content;
use candle_core::{Device, Tensor};
use candle_transformers::models::quantized_llama::ModelWeights;
use tread_core::backend::{Backend, Batch, CompileOptions, KvDType};
use tread_core::checkpoint::Checkpoint;
use tread_core::cpu::Cpu;
use tread_core::model::Model;
use tread_tests::backends::{Sequence, argmax, backends, compile, relative_l2, step};

const PROMPTS: [&str; 3] = [
    "<|im_start|>user\nWhat is the capital of France?<|im_end|>\n<|im_start|>assistant\n",
    "Once upon a time, in a small village by the sea, there lived a fisherman who",
    "fn main() {\n    let numbers = vec![1, 2, 3];\n    for",
];
const NEW_TOKENS: usize = 24;

fn file() -> PathBuf {
    std::env::var_os("TREAD_SMOLLM2").map(PathBuf::from).unwrap_or_else(|| {
        panic!("TREAD_SMOLLM2 is not set; run `cargo xtask test`, which fetches the model and sets it")
    })
}

fn model() -> Model {
    Model::new("smollm2", Checkpoint::open(&file()).expect("the checkpoint")).expect("the model")
}

fn prompts(model: &Model) -> Vec<Vec<u32>> {
    let tokenizer = model.tokenizer().expect("the tokenizer");
    PROMPTS.iter().map(|text| tokenizer.encode(text, false).expect("the prompt")).collect()
}

/// For each prompt the greedy continuation, and the logits each of its tokens was chosen by.
fn continuations(
    model: &Model,
    backend: &dyn Backend,
    prompts: &[Vec<u32>],
) -> Vec<(Vec<u32>, Vec<Vec<f32>>)> {
    let options = CompileOptions::single(256, 64, KvDType::F32);
    let mut executable = compile(backend, &model.graph, &model.weights, options);
    let mut continuation = |prompt: &Vec<u32>| {
        let mut sequence = Sequence::new((0..16).collect());
        let (mut tokens, mut logits, mut next) = (vec![], vec![], prompt.clone());
        while tokens.len() < NEW_TOKENS {
            let mut rows = sequence.extend(&next);
            rows.outputs = vec![next.len() - 1];
            let batch = Batch { sequences: vec![rows], ..Batch::default() };
            let found = step(&mut *executable, &batch).swap_remove(0);
            next = vec![argmax(&found) as u32];
            tokens.push(next[0]);
            logits.push(found);
        }
        (tokens, logits)
    };
    prompts.iter().map(&mut continuation).collect()
}

#[test]
fn continuations_are_the_same_on_every_back_end() {
    let model = model();
    let prompts = prompts(&model);
    let text = |tokens: &[u32]| model.tokenizer().and_then(|t| t.decode(tokens, false)).expect("text");
    let all = backends().into_iter().map(|b| (b.name(), continuations(&model, &*b, &prompts)));
    let all: Vec<_> = all.collect();
    let (_, expected) = &all[0];
    for (name, found) in &all[1..] {
        for ((found, _), (expected, _)) in found.iter().zip(expected) {
            assert_eq!(text(found), text(expected), "{name}");
            assert_eq!(found, expected, "{name}");
        }
    }
    assert!(text(&expected[0].0).contains("Paris"), "{}", text(&expected[0].0));
}

/// candle decodes the weights to f32 and computes in f32 too, because `.cargo/config.toml` sets
/// `CANDLE_DEQUANTIZE_ALL`; left alone it would round the activations to 8 bits.
#[test]
fn logits_equal_candles() {
    let model = model();
    let prompts = prompts(&model);
    let ours = continuations(&model, &Cpu::new(), &prompts);
    let mut file = File::open(file()).expect("the model file");
    let content = Content::read(&mut file).expect("GGUF");
    let mut candle = ModelWeights::from_gguf(content, &mut file, &Device::Cpu).expect("a Llama model");
    for (prompt, (tokens, logits)) in prompts.iter().zip(&ours) {
        let (mut start, mut next) = (0, prompt.clone());
        for (i, (&token, ours)) in tokens.iter().zip(logits).enumerate() {
            let input =
                Tensor::new(next.as_slice(), &Device::Cpu).and_then(|t| t.unsqueeze(0)).expect("input");
            let theirs =
                candle.forward(&input, start).and_then(|t| t.flatten_all()?.to_vec1()).expect("logits");
            let theirs: Vec<f32> = theirs;
            let error = relative_l2(ours, &theirs);
            println!("token {i}: {error:e}");
            assert!(error <= 1e-3, "token {i} after {prompt:?}: relative L2 {error:e}");
            assert_eq!(token as usize, argmax(&theirs), "token {i} after {prompt:?}");
            start += next.len();
            next = vec![token];
        }
    }
}
