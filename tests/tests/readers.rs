//! Damaged and hostile checkpoints: each gets an error that names the culprit, never a panic or much memory.

use std::alloc::System;
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{Seek as _, SeekFrom, Write as _};
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use cap::Cap;
use proptest::prelude::*;
use proptest::test_runner::TestRunner;
use serde_json::{Value, json};
use tread_core::Result;
use tread_core::backend::{CompileOptions, KvDType};
use tread_core::checkpoint::Checkpoint;
use tread_core::cpu::Cpu;
use tread_core::model::Model;
use tread_core::tensor::{Bytes, DType, Source, Tensor};
use tread_tests::fuzz::{self, Target};
use tread_tests::write::{
    Gguf, GgufTensor, Meta, Stored, TINY, TINY_TILE, fp8_weights, safetensors, safetensors_raw, tiny_llama,
    tiny_step3, weights,
};

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
    open(config, safetensors(&tensors))
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
        let model = open(&config, safetensors(&tensors)).unwrap();
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
    let shard = safetensors(&weights(&tiny_llama()));
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

#[test]
fn headers_of_safetensors_that_lie() {
    let config = tiny_llama();
    let raw = |header: &str, data: &[u8]| open(&config, safetensors_raw(header, data));
    let one = |entry: Value| raw(&json!({ "w": entry }).to_string(), &[0; 64]);
    let entry = |dtype: &str, shape: Value, start: u64, end: u64| {
        one(json!({"dtype": dtype, "shape": shape, "data_offsets": [start, end]}))
    };
    for length in [1 << 20, 1 << 40, 1 << 63, u64::MAX] {
        let bytes = [&u64::to_le_bytes(length)[..], b"{}"].concat();
        refused("header length", open(&config, bytes), &["the-file", &length.to_string(), "truncated"]);
    }
    refused("not JSON", raw("{\"w\": ", &[]), &["the-file", "header cannot be read"]);
    refused("not an object", raw("[1, 2]", &[]), &["the-file", "header cannot be read"]);
    refused(
        "not UTF-8",
        open(&config, [&[2, 0, 0, 0, 0, 0, 0, 0][..], &[0xff, 0xfe]].concat()),
        &["the-file"],
    );
    refused("deep", raw(&"{\"w\":".repeat(1 << 16), &[]), &["the-file", "w"]);
    refused("no type", one(json!({"shape": [1], "data_offsets": [0, 4]})), &["`w`", "dtype"]);
    refused("shape of text", entry("F32", json!("4"), 0, 4), &["`w`"]);
    refused("negative size", entry("F32", json!([-1]), 0, 4), &["`w`"]);
    refused("end before start", entry("F32", json!([1]), 8, 4), &["`w`", "8..4"]);
    refused("beyond the end", entry("F32", json!([32]), 0, 128), &["`w`", "0..128", "64 data bytes"]);
    refused("offset 2^63", entry("F32", json!([1]), 1 << 63, (1 << 63) + 4), &["`w`", "9223372036854775808"]);
    refused(
        "too few bytes",
        entry("F32", json!([4]), 0, 12),
        &["`w`", "[4]", "needs 16 bytes", "gives it 12"],
    );
    refused("size 2^63", entry("F32", json!([1u64 << 63]), 0, 4), &["`w`", "more elements"]);
    let huge = json!([1u64 << 32, 1u64 << 32, 16]);
    refused("product over 2^64", entry("F32", huge, 0, 64), &["`w`", "more elements"]);
    refused("bytes over 2^64", entry("F32", json!([0, 1u64 << 63]), 0, 0), &["`w`", "more elements"]);
    let overlap = json!({
        "first": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]},
        "second": {"dtype": "F32", "shape": [4], "data_offsets": [12, 28]},
    });
    refused("overlap", raw(&overlap.to_string(), &[0; 28]), &["the-file", "`first`", "`second`", "overlap"]);
    let entry = r#"{"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}"#;
    let twice = format!(r#"{{"w": {entry}, "w": {entry}}}"#);
    refused("a name twice", raw(&twice, &[0; 4]), &["`w`", "twice"]);
    let again = changed(&config, |tensors| {
        tensors.push(Stored::new("language_model.lm_head.weight", DType::F32, &[1]))
    });
    refused("a name with and without prefix", again, &["lm_head.weight", "twice"]);
    // Holes between tensors waste space, and harm nobody.
    let hole = changed(&config, |tensors| {
        tensors.push(Stored { dtype: "I64".to_owned(), ..Stored::new("unused", DType::F32, &[2]) })
    });
    hole.unwrap();
}

#[test]
fn tensors_that_are_missing_or_of_another_kind() {
    for config in [tiny_llama(), tiny_step3()] {
        for tensor in weights(&config) {
            let missing = changed(&config, |tensors| tensors.retain(|t| t.name != tensor.name));
            refused("missing", missing, &[&tensor.name, "missing from the checkpoint"]);
            let wide = changed(&config, |tensors| {
                let mut shape: Vec<usize> = tensor.shape.iter().map(|&d| d as usize).collect();
                shape[0] += 1;
                *find(tensors, &tensor.name) = Stored::new(&tensor.name, DType::BF16, &shape);
            });
            refused("a row more", wide, &[&tensor.name, "expected shape", "found"]);
            let text = changed(&config, |tensors| find(tensors, &tensor.name).dtype = "I16".to_owned());
            refused("integers", text, &[&tensor.name, "I16 is not supported"]);
        }
    }
    for name in Gguf::tiny().tensors.iter().map(|t| t.name.clone()) {
        // Without an output matrix, the embedding takes its place.
        if name != "output.weight" {
            let reason = "missing from the checkpoint";
            refused("missing", open_gguf(Gguf::tiny().without(&name).bytes()), &[reason]);
        }
        let mut file = Gguf::tiny();
        file.tensor(&name).kind = 13;
        refused("Q5_K", open_gguf(file.bytes()), &["Q5_K is not supported"]);
        let mut file = Gguf::tiny();
        file.tensor(&name).shape.push(1);
        assert!(open_gguf(file.bytes()).is_err(), "{name} of another shape");
    }
    open_gguf(Gguf::tiny().without("output.weight").bytes()).unwrap();
}

#[test]
fn fp8_scales_that_do_not_fit() {
    let config = tiny_step3();
    let name = "model.layers.0.mlp.gate_proj.weight";
    let fp8 = |change: &dyn Fn(&mut Vec<Stored>)| {
        let mut tensors = fp8_weights(&config, TINY_TILE);
        change(&mut tensors);
        open(&config, safetensors(&tensors))
    };
    let scales = format!("{name}_scale_inv");
    let values = |n: usize| -> Vec<f32> { vec![1.0; n] };
    fp8(&|_| {}).unwrap();
    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        let result = fp8(&|t| find(t, &scales).bytes[8..12].copy_from_slice(&bad.to_le_bytes()));
        refused("a scale", result, &[name, "scale 2", &bad.to_string()]);
    }
    let result = fp8(&|t| *find(t, &scales) = Stored::f32(&scales, &[7], &values(7)));
    refused("too few scales", result, &[name, "needs 15 scales", "7"]);
    let result = fp8(&|t| *find(t, &scales) = Stored::f32(&scales, &[0], &[]));
    refused("no scales", result, &[name, "needs 15 scales"]);
    let result = fp8(&|t| t.retain(|t| t.name != scales));
    refused("scales missing", result, &[name, "without its scales", &scales]);
    let result = fp8(&|t| t.retain(|t| t.name != name));
    refused("weight missing", result, &[&scales, name, "missing"]);
    let result = fp8(&|t| *find(t, &scales) = Stored::new(&scales, DType::F8E4M3, &[5, 3]));
    refused("scales in FP8", result, &[&scales, "F8_E4M3"]);
    let result = fp8(&|t| *find(t, name) = Stored::new(name, DType::BF16, &[18, 20]));
    refused("scales of a plain weight", result, &[&scales, "BF16"]);
    let result = fp8(&|t| find(t, name).bytes[25] = 0x7f);
    refused("NaN weight", result, &[name, "row 1", "NaN"]);
    for tile in [json!([0, 8]), json!([4]), json!("4x8"), json!([1u64 << 63, 1])] {
        let mut config = config.clone();
        config["quantization_config"]["weight_block_size"] = tile;
        refused(
            "tile",
            open(&config, safetensors(&fp8_weights(&tiny_step3(), TINY_TILE))),
            &["weight_block_size"],
        );
    }
}

#[test]
fn heads_of_gguf_that_lie() {
    let tiny = Gguf::tiny;
    let bytes = tiny().bytes();
    let patched = |at: usize, with: &[u8]| {
        let mut bytes = bytes.clone();
        bytes[at..at + with.len()].copy_from_slice(with);
        open_gguf(bytes)
    };
    refused("magic", patched(0, b"GGML"), &["the-file", "GGUF"]);
    refused("version 1", patched(4, &1u32.to_le_bytes()), &["the-file", "version 1"]);
    refused("big endian", patched(4, &3u32.to_be_bytes()), &["the-file", "version 50331648"]);
    for count in [1 << 20, 1 << 32, 1 << 63, u64::MAX] {
        refused(
            "tensors",
            patched(8, &u64::to_le_bytes(count)),
            &["the-file", &count.to_string(), "tensors"],
        );
        refused(
            "keys",
            patched(16, &u64::to_le_bytes(count)),
            &["the-file", &count.to_string(), "metadata keys"],
        );
        refused("a key", patched(24, &u64::to_le_bytes(count)), &["the-file", &count.to_string(), "string"]);
        // An array of bytes, and one of strings.
        for kind in [0u32, 8] {
            let array = [&kind.to_le_bytes()[..], &count.to_le_bytes()].concat();
            let file = tiny().with("x", Meta::Raw(9, array));
            refused("items", open_gguf(file.bytes()), &["the-file", &count.to_string(), "items of an array"]);
        }
    }
    let nested = |depth: usize| {
        [[9u32, 1, 0].map(u32::to_le_bytes).as_flattened().repeat(depth), vec![0; 12]].concat()
    };
    open_gguf(tiny().with("x", Meta::Raw(9, nested(3))).bytes()).unwrap();
    refused(
        "nested",
        open_gguf(tiny().with("x", Meta::Raw(9, nested(1000))).bytes()),
        &["the-file", "type 9"],
    );
    refused("type", open_gguf(tiny().with("x", Meta::Raw(13, vec![])).bytes()), &["the-file", "type 13"]);
    let mut twice = tiny();
    twice.meta.push(("llama.block_count".to_owned(), Meta::U32(2)));
    refused("a key twice", open_gguf(twice.bytes()), &["the-file", "llama.block_count", "twice"]);
    for alignment in [0, 24, 1 << 21] {
        let file = tiny().with("general.alignment", Meta::U32(alignment));
        refused("alignment", open_gguf(file.bytes()), &["general.alignment", &alignment.to_string()]);
    }
    open_gguf(Gguf { alignment: 64, ..tiny() }.with("general.alignment", Meta::U32(64)).bytes()).unwrap();

    let name = "blk.0.attn_q.weight";
    let tensor = |change: &dyn Fn(&mut GgufTensor)| {
        let mut file = tiny();
        change(file.tensor(name));
        open_gguf(file.bytes())
    };
    refused("offset within a block", tensor(&|t| t.offset = Some(31)), &[name, "31", "aligned"]);
    refused("offset at the end", tensor(&|t| t.offset = Some(1 << 40)), &[name, "the-file", "truncated"]);
    refused("offset 2^63", tensor(&|t| t.offset = Some(1 << 63)), &[name, "truncated"]);
    refused("offset 2^64 - 32", tensor(&|t| t.offset = Some(u64::MAX - 31)), &[name]);
    refused("overlap", tensor(&|t| t.offset = Some(0)), &["token_embd.weight", name, "overlap"]);
    refused("size 2^63", tensor(&|t| t.shape[0] = 1 << 63), &[name, "more elements"]);
    refused("no whole blocks", tensor(&|t| t.shape[1] = 33), &[name, "33", "Q8_0"]);
    refused("dimensions", tensor(&|t| t.shape = vec![1; 5]), &[name, "5 dimensions"]);
    refused("a million dimensions", tensor(&|t| t.shape = vec![1; 1 << 20]), &[name, "1048576 dimensions"]);
    refused("unknown type", tensor(&|t| t.kind = u32::MAX), &["4294967295", "not supported"]);
    let mut twice = tiny();
    twice.tensors.push(GgufTensor::new(name, DType::F32, &[1]));
    refused("a tensor twice", open_gguf(twice.bytes()), &["q_proj", "the-file"]);
    refused("biases", tensor(&|t| t.name = "blk.0.attn_q.bias".to_owned()), &["blk.0.attn_q.bias", "biases"]);
    for (kind, dtype, at) in [(2, DType::Q4_0, 0), (3, DType::Q4_1, 2), (8, DType::Q8_0, 0)] {
        let result = tensor(&|t| {
            let mut new = GgufTensor::new(name, dtype, &[TINY.hidden, TINY.hidden]);
            new.bytes[dtype.block_bytes() + at..][..2].copy_from_slice(&0x7e00u16.to_le_bytes());
            assert_eq!(new.kind, kind);
            *t = new;
        });
        refused("NaN scale", result, &["q_proj", "row 1", "NaN"]);
    }
}

#[test]
fn metadata_of_gguf_that_makes_no_model() {
    for key in [
        "general.architecture",
        "llama.block_count",
        "llama.context_length",
        "llama.embedding_length",
        "llama.feed_forward_length",
        "llama.attention.head_count",
    ] {
        let part = key.rsplit('.').next().unwrap();
        refused("missing", open_gguf(Gguf::tiny().without(key).bytes()), &[part]);
        let wrong = Gguf::tiny().with(key, Meta::Bool(true));
        refused("of another type", open_gguf(wrong.bytes()), &[key]);
        let zero = Gguf::tiny().with(key, Meta::U32(0));
        refused("zero", open_gguf(zero.bytes()), &[key]);
        let most = Gguf::tiny().with(key, Meta::Raw(10, u64::MAX.to_le_bytes().to_vec()));
        refused("2^64 - 1", open_gguf(most.bytes()), &[key]);
    }
    let with = |key: &str, value: Meta| open_gguf(Gguf::tiny().with(key, value).bytes());
    refused("architecture", with("general.architecture", Meta::from("bert")), &["`bert`", "llama"]);
    refused(
        "heads",
        with("llama.attention.head_count_kv", Meta::U32(3)),
        &["2 query heads", "3 key/value heads"],
    );
    refused("theta", with("llama.rope.freq_base", Meta::F32(f32::NAN)), &["rope_theta", "NaN"]);
    refused(
        "eps",
        with("llama.attention.layer_norm_rms_epsilon", Meta::F32(f32::NAN)),
        &["rms_norm_eps", "NaN"],
    );
    refused("scaling", with("llama.rope.scaling.type", Meta::from("yarn")), &["yarn"]);
    refused("tokenizer", with("tokenizer.ggml.model", Meta::from("t5")), &["t5"]);
    refused("merges", with("tokenizer.ggml.merges", Meta::Strings(vec!["a z".to_owned()])), &["`z`"]);
    refused("template", with("tokenizer.chat_template", Meta::from("{% for")), &["template"]);
}

#[test]
fn configurations_that_make_no_model() {
    type Cases<'a> = &'a [(&'a str, Value, &'a str)];
    let llama: Cases<'_> = &[
        ("model_type", json!("gpt2"), "gpt2"),
        ("model_type", json!(null), "model_type"),
        ("hidden_size", json!(0), "hidden_size"),
        ("hidden_size", json!(1u64 << 63), "hidden_size"),
        ("hidden_size", json!(-32), "hidden_size"),
        ("hidden_size", json!("32"), "hidden_size"),
        ("hidden_size", json!(null), "hidden_size"),
        ("num_hidden_layers", json!(1u64 << 40), "num_hidden_layers"),
        ("num_hidden_layers", json!(2), "model.layers.1.input_layernorm.weight"),
        ("num_attention_heads", json!(0), "num_attention_heads"),
        ("num_key_value_heads", json!(3), "3 key/value heads"),
        ("head_dim", json!(15), "head_dim"),
        ("vocab_size", json!(1u64 << 63), "vocab_size"),
        ("vocab_size", json!(9), "expected shape [9, 32]"),
        ("max_position_embeddings", json!(0), "max_position_embeddings"),
        ("rms_norm_eps", json!("small"), "rms_norm_eps"),
        ("rms_norm_eps", json!(-1), "rms_norm_eps"),
        ("rope_theta", json!(0), "rope_theta"),
        ("rope_scaling", json!({"rope_type": "yarn", "factor": 2}), "yarn"),
        ("rope_scaling", json!({"rope_type": "linear"}), "factor"),
        ("rope_scaling", json!("linear"), "rope_scaling"),
        ("attention_bias", json!(true), "attention_bias"),
        ("hidden_act", json!("gelu"), "gelu"),
        ("tie_word_embeddings", json!("yes"), "tie_word_embeddings"),
    ];
    for (key, value, part) in llama {
        let mut config = tiny_llama();
        config[key] = value.clone();
        refused(key, open(&config, safetensors(&weights(&tiny_llama()))), &[part]);
    }
    let step3: Cases<'_> = &[
        ("moe_top_k", json!(4), "moe_top_k"),
        ("moe_num_experts", json!(0), "moe_num_experts"),
        ("moe_layers_enum", json!("1,x"), "`x`"),
        ("moe_layers_enum", json!([2]), "layer 2"),
        ("moe_layers_enum", json!({"1": true}), "moe_layers_enum"),
        ("share_q_dim", json!(null), "share_q_dim"),
        ("moe_num_experts", json!(4096), EXPERTS.trim_end_matches("up_proj.weight")),
    ];
    for (key, value, part) in step3 {
        let mut config = tiny_step3();
        config["text_config"][key] = value.clone();
        refused(key, open(&config, safetensors(&weights(&tiny_step3()))), &[part]);
    }
    let mut config = tiny_step3();
    config["text_config"] = json!(7);
    refused(
        "text_config",
        open(&config, safetensors(&weights(&tiny_step3()))),
        &["missing from config.json"],
    );
    let files = |config: &[u8]| BTreeMap::from([("config.json".to_owned(), config.to_vec())]);
    let deep = "[".repeat(1 << 16);
    for text in [&b""[..], b"{", b"\xff", b"GGUF", deep.as_bytes()] {
        let error = Checkpoint::from_safetensors(&files(text), vec![]).unwrap_err().to_string();
        assert!(error.contains("config.json"), "{error}");
    }
    let error = Checkpoint::from_safetensors(&BTreeMap::new(), vec![]).unwrap_err().to_string();
    assert!(error.contains("config.json"), "{error}");
}

/// A folder with a valid model in two shards and an index.
fn sharded(config: &Value) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let tensors = weights(config);
    let (first, second) = tensors.split_at(tensors.len() / 2);
    let shards = [("model-1-of-2.safetensors", first), ("model-2-of-2.safetensors", second)];
    let mut map = serde_json::Map::new();
    for (name, tensors) in shards {
        fs::write(folder.path().join(name), safetensors(tensors)).unwrap();
        map.extend(tensors.iter().map(|t| (t.name.clone(), json!(name))));
    }
    write_index(folder.path(), &map.into());
    fs::write(folder.path().join("config.json"), config.to_string()).unwrap();
    folder
}

fn write_index(folder: &Path, map: &Value) {
    let index = json!({"metadata": {"total_size": 1}, "weight_map": map});
    fs::write(folder.join("model.safetensors.index.json"), index.to_string()).unwrap();
}

#[test]
fn folders() {
    let config = tiny_step3();
    let good = sharded(&config);
    open_path(good.path()).unwrap();
    let index = good.path().join("model.safetensors.index.json");
    let map = serde_json::from_slice::<Value>(&fs::read(&index).unwrap()).unwrap()["weight_map"].take();
    fs::remove_file(&index).unwrap();
    open_path(good.path()).unwrap();

    let folder = sharded(&config);
    let (at, first) = (folder.path(), folder.path().join("model-1-of-2.safetensors"));
    let open_with = |name: &str, shard: Value| {
        let mut map = map.clone();
        map[name] = shard;
        write_index(at, &map);
        open_path(at)
    };
    for outside in [
        "../model.safetensors",
        "/etc/passwd",
        "..",
        "a/../b.safetensors",
        "C:\\x.safetensors",
        "config.json",
    ] {
        refused("outside", open_with(EXPERTS, json!(outside)), &[outside, "index.json"]);
    }
    refused(
        "no such shard",
        open_with(EXPERTS, json!("model-9.safetensors")),
        &["model-9.safetensors", "missing"],
    );
    let misplaced = open_with(EXPERTS, json!("model-1-of-2.safetensors"));
    refused("in the other shard", misplaced, &[EXPERTS, "model-1-of-2.safetensors"]);
    refused("a tensor that is nowhere", open_with("ghost", json!("model-1-of-2.safetensors")), &["ghost"]);
    refused("a number for a shard", open_with(EXPERTS, json!(3)), &["index.json"]);
    write_index(at, &map);
    open_path(at).unwrap();
    fs::copy(&first, at.join("model-3.safetensors")).unwrap();
    fs::remove_file(at.join("model.safetensors.index.json")).unwrap();
    refused("a shard twice", open_path(at), &["model-1-of-2.safetensors", "model-3.safetensors", "again"]);
    fs::remove_file(at.join("model-3.safetensors")).unwrap();
    File::options().write(true).open(&first).unwrap().set_len(0).unwrap();
    refused("an empty shard", open_path(at), &["model-1-of-2.safetensors", "at least 8 bytes"]);
    fs::remove_file(&first).unwrap();
    refused("a shard less", open_path(at), &["missing from the checkpoint"]);
    fs::create_dir(&first).unwrap();
    refused("a folder as shard", open_path(at), &["model-1-of-2.safetensors"]);
    fs::remove_dir(&first).unwrap();
    fs::remove_file(at.join("model-2-of-2.safetensors")).unwrap();
    refused("no shards", open_path(at), &["no model*.safetensors"]);
    let config = at.join("config.json");
    File::options().write(true).open(&config).unwrap().set_len(1 << 40).unwrap();
    refused("a terabyte of config", open_path(at), &["config.json", "1099511627776 bytes"]);
    fs::remove_file(&config).unwrap();
    fs::create_dir(&config).unwrap();
    refused("a folder as config", open_path(at), &["config.json"]);
    fs::remove_dir(&config).unwrap();
    refused("no config", open_path(at), &["config.json", ".gguf"]);
    refused("nothing", open_path(&at.join("nothing")), &["cannot read", "nothing"]);
    let lone = good.path().join("model-1-of-2.safetensors");
    refused("one file of safetensors", open_path(&lone), &["model-1-of-2.safetensors", "config.json"]);
    let empty = at.join("empty.gguf");
    File::create(&empty).unwrap();
    refused("an empty GGUF", open_path(&empty), &["empty.gguf", "truncated"]);
}

/// Where tensors lie beyond what 32 bits, signed or not, can say.
#[test]
fn offsets_beyond_four_gibibytes() {
    const FAR: u64 = (1 << 32) + (1 << 31);
    let folder = tempfile::tempdir().unwrap();
    let create = |name: &str, head: &[u8], at: u64, data: &[u8]| {
        let path = folder.path().join(name);
        let mut file = File::create(&path).unwrap();
        file.write_all(head).unwrap();
        file.seek(SeekFrom::Start(at)).unwrap();
        file.write_all(data).unwrap();
        path
    };
    let config = tiny_llama();
    let tensors = weights(&config);
    let mut header = serde_json::Map::new();
    header.insert("filler".to_owned(), json!({"dtype": "U8", "shape": [FAR], "data_offsets": [0, FAR]}));
    let mut at = FAR;
    for t in &tensors {
        let end = at + t.bytes.len() as u64;
        header.insert(t.name.clone(), json!({"dtype": t.dtype, "shape": t.shape, "data_offsets": [at, end]}));
        at = end;
    }
    let head = safetensors_raw(&Value::from(header).to_string(), &[]);
    let data: Vec<u8> = tensors.iter().flat_map(|t| t.bytes.clone()).collect();
    create("model.safetensors", &head, head.len() as u64 + FAR, &data);
    fs::write(folder.path().join("config.json"), config.to_string()).unwrap();
    let model = open_path(folder.path()).unwrap();
    for t in &tensors {
        let tensor = &model.checkpoint.tensors[&t.name];
        assert_eq!(*tensor.read_rows(0..tensor.rows()).unwrap(), *t.bytes, "{}", t.name);
    }

    let mut file = Gguf::tiny();
    let whole = file.bytes();
    let mut length = 0;
    for tensor in &mut file.tensors {
        tensor.offset = Some(FAR + length);
        length += tensor.bytes.len().next_multiple_of(32) as u64;
    }
    let (head, data) = whole.split_at(whole.len() - length as usize);
    let head = &file.bytes()[..head.len()];
    let path = create("model.gguf", head, head.len() as u64 + FAR, data);
    let model = open_path(&path).unwrap();
    let tensor = &model.checkpoint.tensors[Q_PROJ];
    assert_eq!(*tensor.read_rows(0..tensor.rows()).unwrap(), *file.tensors[2].bytes);
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
    let counted = Arc::new(Counted(Bytes::new("experts", safetensors(&tensors)), AtomicU64::new(0)));
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

/// One change to the bytes of a file.
#[derive(Clone, Debug)]
enum Damage {
    Flip { at: usize, bit: u8 },
    Set { at: usize, value: u64, bytes: usize },
    Cut { at: usize, bytes: usize },
    Repeat { at: usize, bytes: usize },
    Truncate { at: usize },
}

fn damage() -> impl Strategy<Value = Damage> {
    // Heads are where the lies are.
    let at = || prop_oneof![3 => 0..2048usize, 1 => any::<usize>()];
    const EDGES: &[u64] =
        &[0, 1, 31, 32, 33, 0xffff_ffff, 1 << 31, 1 << 32, 1 << 62, 1 << 63, u64::MAX - 31, u64::MAX];
    let value = prop_oneof![prop::sample::select(EDGES).boxed(), (0..64u64).boxed(), any::<u64>().boxed()];
    prop_oneof![
        (at(), 0..8u8).prop_map(|(at, bit)| Damage::Flip { at, bit }),
        (at(), value, prop::sample::select(&[1, 4, 8][..])).prop_map(|(at, value, bytes)| Damage::Set {
            at,
            value,
            bytes
        }),
        (at(), 1..64usize).prop_map(|(at, bytes)| Damage::Cut { at, bytes }),
        (at(), 1..256usize).prop_map(|(at, bytes)| Damage::Repeat { at, bytes }),
        at().prop_map(|at| Damage::Truncate { at }),
    ]
}

impl Damage {
    fn apply(&self, data: &mut Vec<u8>) {
        let (end, length) = (data.len(), data.len().max(1));
        let range = |at: usize, bytes: usize| at % length..(at % length + bytes).min(end);
        match *self {
            Self::Flip { at, bit } => data[range(at, 1)].iter_mut().for_each(|b| *b ^= 1 << bit),
            Self::Set { at, value, bytes } => {
                let range = range(at, bytes);
                data[range.clone()].copy_from_slice(&value.to_le_bytes()[..range.len()]);
            }
            Self::Cut { at, bytes } => drop(data.drain(range(at, bytes))),
            Self::Repeat { at, bytes } => {
                let range = range(at, bytes);
                let copy = data[range.clone()].to_vec();
                data.splice(range.start..range.start, copy);
            }
            Self::Truncate { at } => data.truncate(at % length),
        }
    }
}

/// Damages a valid file again and again: whether the result is read or not, the answer comes, within [`ALLOCATOR`]'s
/// limit.
fn survives(name: &str) {
    let Target { read, seed, .. } = fuzz::TARGETS.into_iter().find(|t| t.name == name).expect(name);
    let valid = seed();
    assert!(read(&valid), "the undamaged file is read");
    let config = ProptestConfig { cases: 5000, failure_persistence: None, ..ProptestConfig::default() };
    let strategy = prop::collection::vec(damage(), 1..4);
    let result = TestRunner::new(config).run(&strategy, |damages| {
        let mut data = valid.clone();
        damages.iter().for_each(|damage| damage.apply(&mut data));
        read(&data);
        Ok(())
    });
    result.unwrap_or_else(|e| panic!("{e}"));
}

#[test]
fn damaged_safetensors() {
    survives("safetensors");
}

#[test]
fn damaged_fp8_safetensors() {
    survives("safetensors_fp8");
}

#[test]
fn damaged_gguf() {
    survives("gguf");
}

#[test]
fn damaged_configurations() {
    survives("config");
}
