//! Writers of small model files: valid ones, and ones that lie.

use serde_json::{Map, Value, json};
use tread_core::config::ModelConfig;
use tread_core::models;
use tread_core::tensor::DType;

/// The dimensions of [`tiny_llama`], for those who write the same model in another format.
pub const TINY: Tiny = Tiny { hidden: 32, heads: 2, kv_heads: 1, head_dim: 16, ffn: 64, vocab: 8 };

/// See [`TINY`].
#[derive(Clone, Copy, Debug)]
pub struct Tiny {
    /// `hidden_size`.
    pub hidden: usize,
    /// `num_attention_heads`.
    pub heads: usize,
    /// `num_key_value_heads`.
    pub kv_heads: usize,
    /// `head_dim`.
    pub head_dim: usize,
    /// `intermediate_size`.
    pub ffn: usize,
    /// `vocab_size`.
    pub vocab: usize,
}

/// The config.json of a Llama of one layer.
pub fn tiny_llama() -> Value {
    json!({
        "model_type": "llama",
        "hidden_size": TINY.hidden,
        "num_attention_heads": TINY.heads,
        "num_key_value_heads": TINY.kv_heads,
        "head_dim": TINY.head_dim,
        "intermediate_size": TINY.ffn,
        "num_hidden_layers": 1,
        "vocab_size": TINY.vocab,
        "max_position_embeddings": 64,
        "rms_norm_eps": 1e-5,
        "eos_token_id": [2, 3],
    })
}

/// Rows and columns of an FP8 tile of [`tiny_step3`].
pub const TINY_TILE: [usize; 2] = [4, 8];

/// The config.json of a Step-3 of two layers, the second with experts.
pub fn tiny_step3() -> Value {
    json!({
        "model_type": "step3_vl",
        "eos_token_id": 2,
        "quantization_config": {"quant_method": "fp8", "weight_block_size": TINY_TILE},
        "text_config": {
            "model_type": "step3_text",
            "hidden_size": 20,
            "num_hidden_layers": 2,
            "num_attention_heads": 3,
            "num_attention_groups": 1,
            "head_dim": 6,
            "share_q_dim": 10,
            "intermediate_size": 18,
            "moe_num_experts": 3,
            "moe_top_k": 2,
            "moe_intermediate_size": 7,
            "share_expert_dim": 9,
            "moe_layers_enum": "1",
            "vocab_size": 11,
            "max_position_embedding": 64,
        },
    })
}

/// A tensor to write. Its parts need not fit together.
#[derive(Clone, Debug)]
pub struct Stored {
    /// Its name in the file.
    pub name: String,
    /// Its type, as safetensors spell it.
    pub dtype: String,
    /// Outermost dimension first.
    pub shape: Vec<u64>,
    /// Its bytes.
    pub bytes: Vec<u8>,
}

impl Stored {
    /// A tensor with as many bytes as it needs, counting up from 0 but never to one that makes a NaN.
    pub fn new(name: impl Into<String>, dtype: DType, shape: &[usize]) -> Self {
        let blocks = shape.iter().product::<usize>() / dtype.block_len();
        let bytes = (0..blocks * dtype.block_bytes()).map(|i| (i % 59) as u8).collect();
        let shape = shape.iter().map(|&d| d as u64).collect();
        Self { name: name.into(), dtype: dtype.name().to_owned(), shape, bytes }
    }

    /// An F32 tensor of these values.
    pub fn f32(name: impl Into<String>, shape: &[usize], values: &[f32]) -> Self {
        let bytes = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        Self { bytes, ..Self::new(name, DType::F32, shape) }
    }
}

/// Every weight that the model of `config` needs, in BF16.
///
/// # Panics
/// When `config` is no valid model.
pub fn weights(config: &Value) -> Vec<Stored> {
    let config = ModelConfig::from_json(config).expect("a valid config");
    let graph = models::graph(&config);
    graph.weights.iter().map(|w| Stored::new(&w.name, DType::BF16, &w.shape)).collect()
}

/// As [`weights`], with matrices other than embedding, head and router in FP8, each with its scales.
pub fn fp8_weights(config: &Value, tile: [usize; 2]) -> Vec<Stored> {
    let plain = ["embed_tokens", "lm_head", "norm", "moe.gate.weight"];
    let mut all = vec![];
    for weight in weights(config) {
        if plain.iter().any(|part| weight.name.contains(part)) {
            all.push(weight);
            continue;
        }
        let shape: Vec<usize> = weight.shape.iter().map(|&d| d as usize).collect();
        let (outer, matrix) = shape.split_at(shape.len() - 2);
        let tiles = [matrix[0].div_ceil(tile[0]), matrix[1].div_ceil(tile[1])];
        let scale_shape = [outer, &tiles].concat();
        let values: Vec<f32> = (0..scale_shape.iter().product()).map(|i| 0.5 + i as f32).collect();
        all.push(Stored::f32(format!("{}_scale_inv", weight.name), &scale_shape, &values));
        all.push(Stored::new(weight.name, DType::F8E4M3, &shape));
    }
    all
}

/// A safetensors file.
pub fn safetensors(tensors: &[Stored]) -> Vec<u8> {
    let mut header = Map::new();
    let mut data = vec![];
    for t in tensors {
        let start = data.len();
        data.extend(&t.bytes);
        let entry = json!({"dtype": t.dtype, "shape": t.shape, "data_offsets": [start, data.len()]});
        header.insert(t.name.clone(), entry);
    }
    safetensors_raw(&Value::from(header).to_string(), &data)
}

/// A safetensors file with exactly this header.
pub fn safetensors_raw(header: &str, data: &[u8]) -> Vec<u8> {
    [&(header.len() as u64).to_le_bytes(), header.as_bytes(), data].concat()
}

/// A value of GGUF metadata.
#[derive(Clone, Debug)]
pub enum Meta {
    /// Type 4.
    U32(u32),
    /// Type 6.
    F32(f32),
    /// Type 7.
    Bool(bool),
    /// Type 8.
    String(String),
    /// Type 9 of type 8.
    Strings(Vec<String>),
    /// Type 9 of type 5.
    Integers(Vec<i32>),
    /// Any type, with these bytes.
    Raw(u32, Vec<u8>),
}

impl From<&str> for Meta {
    fn from(text: &str) -> Self {
        Self::String(text.to_owned())
    }
}

/// A tensor of a GGUF file. Its parts need not fit together.
#[derive(Clone, Debug)]
pub struct GgufTensor {
    /// Its name in the file.
    pub name: String,
    /// ggml's number of its type.
    pub kind: u32,
    /// Outermost dimension first (the file has them the other way round).
    pub shape: Vec<u64>,
    /// Its bytes.
    pub bytes: Vec<u8>,
    /// Where the file says that they are, if not where they are.
    pub offset: Option<u64>,
}

impl GgufTensor {
    /// A tensor as [`Stored::new`] makes it.
    pub fn new(name: &str, dtype: DType, shape: &[usize]) -> Self {
        let Stored { name, shape, bytes, .. } = Stored::new(name, dtype, shape);
        let kind = match dtype {
            DType::F32 => 0,
            DType::F16 => 1,
            DType::Q4_0 => 2,
            DType::Q4_1 => 3,
            DType::Q8_0 => 8,
            DType::Q4K => 12,
            DType::Q6K => 14,
            DType::BF16 => 30,
            // GGUF has no FP8; no reader knows this number.
            DType::F8E4M3 => 999,
        };
        Self { name, kind, shape, bytes, offset: None }
    }
}

/// A GGUF file to write.
#[derive(Clone, Debug)]
pub struct Gguf {
    /// 2 and 3 are known.
    pub version: u32,
    /// Of tensor data; written as it is, whatever the metadata says.
    pub alignment: usize,
    /// Keys and values, in order.
    pub meta: Vec<(String, Meta)>,
    /// Tensors, in order.
    pub tensors: Vec<GgufTensor>,
}

impl Gguf {
    /// The model of [`tiny_llama`], its matrices in Q8_0, with a byte-level tokenizer.
    pub fn tiny() -> Self {
        let size = |n: usize| Meta::U32(n as u32);
        let tokens = ["<s>", "a", "b", "ab", "</s>", "c", "d", "e"].map(str::to_owned);
        let meta = [
            ("general.architecture", Meta::from("llama")),
            ("llama.block_count", size(1)),
            ("llama.context_length", size(64)),
            ("llama.embedding_length", size(TINY.hidden)),
            ("llama.feed_forward_length", size(TINY.ffn)),
            ("llama.attention.head_count", size(TINY.heads)),
            ("llama.attention.head_count_kv", size(TINY.kv_heads)),
            ("llama.attention.layer_norm_rms_epsilon", Meta::F32(1e-5)),
            ("llama.rope.dimension_count", size(TINY.head_dim)),
            ("llama.rope.freq_base", Meta::F32(10_000.0)),
            ("tokenizer.ggml.model", Meta::from("gpt2")),
            ("tokenizer.ggml.pre", Meta::from("smollm")),
            ("tokenizer.ggml.tokens", Meta::Strings(tokens.to_vec())),
            ("tokenizer.ggml.token_type", Meta::Integers(vec![3, 1, 1, 1, 3, 1, 1, 1])),
            ("tokenizer.ggml.merges", Meta::Strings(vec!["a b".to_owned()])),
            ("tokenizer.ggml.bos_token_id", size(0)),
            ("tokenizer.ggml.eos_token_id", size(4)),
            ("tokenizer.ggml.add_bos_token", Meta::Bool(true)),
            ("tokenizer.chat_template", Meta::from("{{ bos_token }}{{ messages[0].content }}")),
        ];
        let (q, kv) = (TINY.heads * TINY.head_dim, TINY.kv_heads * TINY.head_dim);
        let matrix = |name: &str, rows, cols| GgufTensor::new(name, DType::Q8_0, &[rows, cols]);
        let vector = |name: &str| GgufTensor::new(name, DType::F32, &[TINY.hidden]);
        let tensors = vec![
            matrix("token_embd.weight", TINY.vocab, TINY.hidden),
            vector("blk.0.attn_norm.weight"),
            matrix("blk.0.attn_q.weight", q, TINY.hidden),
            matrix("blk.0.attn_k.weight", kv, TINY.hidden),
            matrix("blk.0.attn_v.weight", kv, TINY.hidden),
            matrix("blk.0.attn_output.weight", TINY.hidden, q),
            vector("blk.0.ffn_norm.weight"),
            matrix("blk.0.ffn_gate.weight", TINY.ffn, TINY.hidden),
            matrix("blk.0.ffn_up.weight", TINY.ffn, TINY.hidden),
            matrix("blk.0.ffn_down.weight", TINY.hidden, TINY.ffn),
            vector("output_norm.weight"),
            matrix("output.weight", TINY.vocab, TINY.hidden),
        ];
        let meta = meta.into_iter().map(|(key, value)| (key.to_owned(), value)).collect();
        Self { version: 3, alignment: 32, meta, tensors }
    }

    /// Sets a metadata key.
    #[must_use]
    pub fn with(mut self, key: &str, value: impl Into<Meta>) -> Self {
        self.meta.retain(|(k, _)| k != key);
        self.meta.push((key.to_owned(), value.into()));
        self
    }

    /// Removes a metadata key or a tensor.
    #[must_use]
    pub fn without(mut self, name: &str) -> Self {
        self.meta.retain(|(key, _)| key != name);
        self.tensors.retain(|t| t.name != name);
        self
    }

    /// The tensor `name`, to make it lie.
    ///
    /// # Panics
    /// When there is none.
    pub fn tensor(&mut self, name: &str) -> &mut GgufTensor {
        self.tensors.iter_mut().find(|t| t.name == name).expect(name)
    }

    /// The file.
    pub fn bytes(&self) -> Vec<u8> {
        let mut out = b"GGUF".to_vec();
        out.extend(self.version.to_le_bytes());
        out.extend((self.tensors.len() as u64).to_le_bytes());
        out.extend((self.meta.len() as u64).to_le_bytes());
        for (key, value) in &self.meta {
            string(&mut out, key);
            meta_value(&mut out, value);
        }
        let mut data = vec![];
        for t in &self.tensors {
            string(&mut out, &t.name);
            out.extend((t.shape.len() as u32).to_le_bytes());
            t.shape.iter().rev().for_each(|d| out.extend(d.to_le_bytes()));
            out.extend(t.kind.to_le_bytes());
            out.extend(t.offset.unwrap_or(data.len() as u64).to_le_bytes());
            data.extend(&t.bytes);
            data.resize(data.len().next_multiple_of(self.alignment), 0);
        }
        out.resize(out.len().next_multiple_of(self.alignment), 0);
        out.extend(data);
        out
    }
}

fn string(out: &mut Vec<u8>, text: &str) {
    out.extend((text.len() as u64).to_le_bytes());
    out.extend(text.as_bytes());
}

fn meta_value(out: &mut Vec<u8>, value: &Meta) {
    let mut head = |kind: u32| out.extend(kind.to_le_bytes());
    match value {
        Meta::U32(_) => head(4),
        Meta::F32(_) => head(6),
        Meta::Bool(_) => head(7),
        Meta::String(_) => head(8),
        Meta::Strings(_) => [9, 8].into_iter().for_each(head),
        Meta::Integers(_) => [9, 5].into_iter().for_each(head),
        Meta::Raw(kind, _) => head(*kind),
    }
    match value {
        Meta::U32(n) => out.extend(n.to_le_bytes()),
        Meta::F32(f) => out.extend(f.to_le_bytes()),
        Meta::Bool(b) => out.push(u8::from(*b)),
        Meta::String(text) => string(out, text),
        Meta::Strings(items) => {
            out.extend((items.len() as u64).to_le_bytes());
            items.iter().for_each(|item| string(out, item));
        }
        Meta::Integers(items) => {
            out.extend((items.len() as u64).to_le_bytes());
            items.iter().for_each(|item| out.extend(item.to_le_bytes()));
        }
        Meta::Raw(_, bytes) => out.extend(bytes),
    }
}
