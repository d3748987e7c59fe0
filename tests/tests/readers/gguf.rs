//! Heads and metadata of GGUF.

use tread_core::tensor::DType;
use tread_tests::write::{Gguf, GgufTensor, Meta, TINY};

use super::{open_gguf, refused};

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
