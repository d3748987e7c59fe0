//! Damaged and hostile checkpoints: each gets an error that names the culprit, never a panic or much memory.

mod config;
mod damage;
mod files;
mod gguf;
mod safetensors;

use std::alloc::System;
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use cap::Cap;
use serde_json::Value;
use tread_core::Result;
use tread_core::backend::{CompileOptions, KvDType};
use tread_core::checkpoint::Checkpoint;
use tread_core::cpu::Cpu;
use tread_core::model::Model;
use tread_core::tensor::{Bytes, Source, Tensor};
use tread_tests::write::{self, Gguf, Stored, TINY_TILE, fp8_weights, tiny_llama, tiny_step3, weights};

/// Ends the run when reading takes more memory, of all tests together, than files of a few kilobytes can be worth.
#[global_allocator]
static ALLOCATOR: Cap<System> = Cap::new(System, 64 << 20);

const Q_PROJ: &str = "model.layers.0.self_attn.q_proj.weight";
const EXPERTS: &str = "model.layers.1.moe.up_proj.weight";

fn source(bytes: impl Into<Cow<'static, [u8]>>) -> Arc<dyn Source> {
    Arc::new(Bytes::new("the-file", bytes))
}

/// The model of config.json and one shard, its weights looked at as a back end does.
fn open(config: &Value, shard: Vec<u8>) -> Result<Model> {
    let files = BTreeMap::from([("config.json".to_owned(), config.to_string().into_bytes())]);
    load(Checkpoint::from_safetensors(&files, vec![source(shard)])?)
}

fn open_gguf(bytes: Vec<u8>) -> Result<Model> {
    load(Checkpoint::from_gguf(&source(bytes))?)
}

fn open_path(path: &Path) -> Result<Model> {
    load(Checkpoint::open(path)?)
}

fn load(checkpoint: Checkpoint) -> Result<Model> {
    let model = Model::new("test", checkpoint)?;
    pollster::block_on(model.load(
        &Cpu::new(),
        CompileOptions::single(16, 16, KvDType::F32),
        &mut |_, _| {},
    ))?;
    Ok(model)
}

/// The result is an error that has all of `parts` in its message.
#[track_caller]
fn refused(what: &str, result: Result<Model>, parts: &[&str]) {
    let message = result.map(|_| "accepted").expect_err(what).to_string();
    for part in parts {
        assert!(message.contains(part), "{what}: `{part}` is not in: {message}");
    }
}

/// What safetensors' writer makes of `config`'s weights after `change`.
fn changed(config: &Value, change: impl FnOnce(&mut Vec<Stored>)) -> Result<Model> {
    let mut tensors = weights(config);
    change(&mut tensors);
    open(config, write::safetensors(&tensors))
}

fn find<'a>(tensors: &'a mut [Stored], name: &str) -> &'a mut Stored {
    tensors.iter_mut().find(|t| t.name == name).expect(name)
}

#[test]
fn what_is_written_is_read() {
    let check = |model: &Model, name: &str, bytes: &[u8]| {
        let tensor = &model.checkpoint.tensors[name];
        assert_eq!(*tensor.read_rows(0..tensor.rows()).unwrap(), *bytes, "{name}");
    };
    for (config, tensors) in [
        (tiny_llama(), weights(&tiny_llama())),
        (tiny_step3(), weights(&tiny_step3())),
        (tiny_step3(), fp8_weights(&tiny_step3(), TINY_TILE)),
    ] {
        let model = open(&config, write::safetensors(&tensors)).unwrap();
        for tensor in tensors.iter().filter(|t| !t.name.ends_with("_scale_inv")) {
            check(&model, &tensor.name, &tensor.bytes);
        }
    }
    let file = Gguf::tiny();
    let model = open_gguf(file.bytes()).unwrap();
    check(&model, Q_PROJ, &file.tensors[2].bytes);
    assert_eq!((model.weights.len(), model.stop_ids.as_slice()), (file.tensors.len(), &[4][..]));
    let text = model.tokenizer().unwrap().encode("abc", false).unwrap();
    assert_eq!(text, [3, 5]);
    assert!(open_gguf(Gguf { version: 2, ..Gguf::tiny() }.bytes()).is_ok());
}

#[test]
fn every_truncation_is_an_error() {
    let shard = write::safetensors(&weights(&tiny_llama()));
    for length in 0..shard.len() {
        assert!(open(&tiny_llama(), shard[..length].to_vec()).is_err(), "{length} bytes");
    }
    refused("no bytes", open(&tiny_llama(), vec![]), &["the-file", "at least 8 bytes"]);
    refused("header", open(&tiny_llama(), shard[..100].to_vec()), &["the-file", "truncated"]);
    let end = shard.len() - 1;
    refused("data", open(&tiny_llama(), shard[..end].to_vec()), &["the-file", "truncated"]);

    let mut file = Gguf::tiny().bytes();
    // Bytes after the last tensor only fill up a block of alignment.
    let last = Gguf::tiny().tensors.pop().map_or(0, |t| t.bytes.len());
    file.truncate(file.len() - (last.next_multiple_of(32) - last));
    for length in 0..file.len() {
        assert!(open_gguf(file[..length].to_vec()).is_err(), "{length} bytes");
    }
    open_gguf(file.clone()).unwrap();
    refused("head", open_gguf(file[..200].to_vec()), &["the-file", "truncated"]);
    file.pop();
    refused("data", open_gguf(file), &["output.weight", "the-file", "truncated"]);
}

/// Counts the bytes that are read.
#[derive(Debug)]
struct Counted(Bytes, AtomicU64);

impl Source for Counted {
    fn name(&self) -> &str {
        self.0.name()
    }
    fn len(&self) -> u64 {
        self.0.len()
    }
    fn read(&self, range: Range<u64>) -> Result<Cow<'_, [u8]>> {
        self.1.fetch_add(range.end - range.start, Ordering::Relaxed);
        self.0.read(range)
    }
}

#[test]
fn one_expert_is_read_without_the_others() {
    let config = tiny_step3();
    let tensors = fp8_weights(&config, TINY_TILE);
    let counted = Arc::new(Counted(Bytes::new("experts", write::safetensors(&tensors)), AtomicU64::new(0)));
    let files = BTreeMap::from([("config.json".to_owned(), config.to_string().into_bytes())]);
    let shard: Arc<dyn Source> = Arc::clone(&counted) as Arc<dyn Source>;
    let model = Model::new("test", Checkpoint::from_safetensors(&files, vec![shard]).unwrap()).unwrap();
    let tensor: &Tensor = &model.checkpoint.tensors[EXPERTS];
    let whole = tensor.to_f32().unwrap();
    let (rows, cols) = (tensor.rows() / tensor.matrices(), tensor.cols());
    for expert in 0..tensor.matrices() {
        let before = counted.1.load(Ordering::Relaxed);
        let mut one = vec![0.0; rows * cols];
        tensor.dequantize_rows(expert * rows..(expert + 1) * rows, &mut one).unwrap();
        assert_eq!(one, whole[expert * rows * cols..][..rows * cols]);
        assert_eq!(counted.1.load(Ordering::Relaxed) - before, (rows * cols) as u64);
    }
}
