//! The GGUF format (versions 2 and 3; ggml's docs/gguf.md): metadata, tensor table, aligned data.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::Arc;

use super::{Checkpoint, GgufVocab, Tensors, TextFiles, TokenizerFile};
use crate::config;
use crate::tensor::{DType, Source, Tensor};
use crate::{Error, Result};

/// Bounds against lying counts; real files are far below.
const MAX_TENSORS: u64 = 1 << 20;
const MAX_KEYS: u64 = 1 << 16;
const MAX_ITEMS: u64 = 1 << 24;
const MAX_DIMENSIONS: u32 = 4;
/// Arrays of arrays are allowed by the format and used by nobody.
const MAX_DEPTH: u32 = 4;
/// Bytes fetched at a time while the head of the file is read.
const WINDOW: u64 = 1 << 20;

/// A metadata value, numbers widened.
#[derive(Clone, Debug)]
enum MetaValue {
    Integer(i128),
    Float(f64),
    Bool(bool),
    String(String),
    Array(Vec<MetaValue>),
}

/// The key-value part of a GGUF file.
#[derive(Debug, Default)]
pub(crate) struct Metadata(BTreeMap<String, MetaValue>);

impl Metadata {
    pub(crate) fn string(&self, key: &str) -> Option<&str> {
        match self.0.get(key) {
            Some(MetaValue::String(s)) => Some(s),
            _ => None,
        }
    }

    pub(crate) fn number(&self, key: &str) -> Option<f64> {
        match self.0.get(key) {
            Some(MetaValue::Float(f)) => Some(*f),
            Some(MetaValue::Integer(i)) => Some(*i as f64),
            _ => None,
        }
    }

    /// A size; none when the key is not there.
    pub(crate) fn size(&self, key: &str) -> Result<Option<usize>> {
        match self.0.get(key) {
            None => Ok(None),
            Some(MetaValue::Integer(i)) if usize::try_from(*i).is_ok() => Ok(usize::try_from(*i).ok()),
            Some(_) => Err(Error::Config(format!("`{key}` is not a whole number of at least 0"))),
        }
    }

    fn id(&self, key: &str) -> Option<u32> {
        match self.0.get(key) {
            Some(MetaValue::Integer(i)) => u32::try_from(*i).ok(),
            _ => None,
        }
    }

    fn flag(&self, key: &str) -> bool {
        matches!(self.0.get(key), Some(MetaValue::Bool(true)))
    }

    fn strings(&self, key: &str) -> Vec<String> {
        let Some(MetaValue::Array(items)) = self.0.get(key) else { return vec![] };
        let text = |item: &MetaValue| match item {
            MetaValue::String(s) => s.clone(),
            _ => String::new(),
        };
        items.iter().map(text).collect()
    }

    fn integers(&self, key: &str) -> Vec<i32> {
        let Some(MetaValue::Array(items)) = self.0.get(key) else { return vec![] };
        let integer = |item: &MetaValue| match item {
            MetaValue::Integer(i) => i32::try_from(*i).unwrap_or(0),
            _ => 0,
        };
        items.iter().map(integer).collect()
    }
}

/// Reads the head of a GGUF file; tensors stay where they are.
pub(super) fn read(source: &Arc<dyn Source>) -> Result<Checkpoint> {
    let file = source.name().to_owned();
    let mut reader = Reader { source: &**source, at: 0, window: Cow::Borrowed(&[]), window_at: 0 };
    if reader.take(4)?.as_ref() != b"GGUF" {
        return Err(Error::format(file, "it does not begin with the letters GGUF"));
    }
    let version = reader.u32()?;
    if !(2..=3).contains(&version) {
        return Err(Error::format(file, format!("GGUF version {version}; Tread reads versions 2 and 3")));
    }
    let (tensor_count, key_count) = (reader.u64()?, reader.u64()?);
    reader.limit("tensors", tensor_count, MAX_TENSORS)?;
    reader.limit("metadata keys", key_count, MAX_KEYS)?;
    let mut meta = Metadata::default();
    for _ in 0..key_count {
        let key = reader.string()?;
        let kind = reader.u32()?;
        let value = reader.value(kind, 0)?;
        meta.0.insert(key, value);
    }
    let infos = (0..tensor_count).map(|_| reader.tensor_info()).collect::<Result<Vec<_>>>()?;
    let alignment = meta.size("general.alignment")?.unwrap_or(32) as u64;
    if !alignment.is_power_of_two() || alignment > 1 << 20 {
        return Err(Error::format(file, format!("an alignment of {alignment}")));
    }
    let data = reader.at.next_multiple_of(alignment);
    let mut tensors = Tensors::default();
    let mut ranges = vec![];
    for info in infos {
        let name = hugging_face_name(&info.name);
        let Some(dtype) = dtype(info.kind) else {
            tensors.refuse(name, format!("GGUF type {} is not supported", type_name(info.kind)));
            continue;
        };
        let offset = data
            .checked_add(info.offset)
            .ok_or_else(|| Error::tensor(&info.name, format!("an offset of {} bytes", info.offset)))?;
        let tensor = Tensor::new(&info.name, dtype, info.shape, Arc::clone(source), offset)?;
        ranges.push((offset, offset + tensor.bytes(), info.name));
        tensors.add(tensor.renamed(name), &file)?;
    }
    super::check_overlap(&file, ranges)?;
    let vocab = vocab(&meta);
    let tied = !tensors.found.contains_key("lm_head.weight");
    let embedding = tensors.found.get("model.embed_tokens.weight").map_or(vocab.tokens.len(), Tensor::rows);
    let config = config::gguf::model(&meta, embedding, tensors.found.get("rope_freqs.weight"), tied)?;
    let text = text(&meta, vocab);
    Ok(Checkpoint { config, tensors: tensors.found, refused: tensors.refused, text })
}

fn vocab(meta: &Metadata) -> GgufVocab {
    let key = |name: &str| format!("tokenizer.ggml.{name}");
    GgufVocab {
        model: meta.string(&key("model")).unwrap_or_default().to_owned(),
        pre: meta.string(&key("pre")).unwrap_or("default").to_owned(),
        tokens: meta.strings(&key("tokens")),
        token_types: meta.integers(&key("token_type")),
        merges: meta.strings(&key("merges")),
        bos: meta.id(&key("bos_token_id")),
        eos: meta.id(&key("eos_token_id")),
        add_bos: meta.flag(&key("add_bos_token")),
        add_space_prefix: meta.flag(&key("add_space_prefix")),
    }
}

fn text(meta: &Metadata, vocab: GgufVocab) -> TextFiles {
    let ids = ["eos_token_id", "eot_token_id"].map(|name| meta.id(&format!("tokenizer.ggml.{name}")));
    let mut eos_token_ids: Vec<u32> = ids.into_iter().flatten().collect();
    eos_token_ids.dedup();
    let token = |id: Option<u32>| id.and_then(|id| vocab.tokens.get(id as usize).cloned());
    TextFiles {
        chat_template: meta.string("tokenizer.chat_template").map(str::to_owned),
        bos_token: token(vocab.bos),
        eos_token: token(vocab.eos),
        eos_token_ids,
        tokenizer: (!vocab.tokens.is_empty()).then_some(TokenizerFile::Gguf(vocab)),
        ..TextFiles::default()
    }
}

struct TensorInfo {
    name: String,
    shape: Vec<usize>,
    kind: u32,
    offset: u64,
}

/// Reads little-endian values one after the other through a window.
struct Reader<'a> {
    source: &'a dyn Source,
    at: u64,
    window: Cow<'a, [u8]>,
    window_at: u64,
}

impl Reader<'_> {
    fn take(&mut self, count: u64) -> Result<Cow<'_, [u8]>> {
        let end = self.at.checked_add(count).filter(|&e| e <= self.source.len()).ok_or_else(|| {
            let message = format!(
                "{count} bytes are expected at {}, but it has only {}; is it truncated?",
                self.at,
                self.source.len()
            );
            Error::format(self.source.name(), message)
        })?;
        let inside = self.at >= self.window_at && end <= self.window_at + self.window.len() as u64;
        if !inside {
            let window_end = (self.at + WINDOW).max(end).min(self.source.len());
            self.window = self.source.read(self.at..window_end)?;
            self.window_at = self.at;
        }
        let start = (self.at - self.window_at) as usize;
        self.at = end;
        Ok(Cow::Borrowed(&self.window[start..start + count as usize]))
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N]> {
        let mut bytes = [0; N];
        bytes.copy_from_slice(&self.take(N as u64)?);
        Ok(bytes)
    }

    fn u32(&mut self) -> Result<u32> {
        self.array().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Result<u64> {
        self.array().map(u64::from_le_bytes)
    }

    fn limit(&self, what: &str, found: u64, most: u64) -> Result<()> {
        if found > most || found > self.source.len() {
            return Err(Error::format(
                self.source.name(),
                format!("it claims {found} {what}; at most {most} are read"),
            ));
        }
        Ok(())
    }

    fn string(&mut self) -> Result<String> {
        let length = self.u64()?;
        self.limit("bytes of a string", length, MAX_ITEMS)?;
        Ok(String::from_utf8_lossy(&self.take(length)?).into_owned())
    }

    /// A value of GGUF type `kind`.
    fn value(&mut self, kind: u32, depth: u32) -> Result<MetaValue> {
        use MetaValue::{Array, Bool, Float, Integer};
        Ok(match kind {
            0 => Integer(u8::from_le_bytes(self.array()?).into()),
            1 => Integer(i8::from_le_bytes(self.array()?).into()),
            2 => Integer(u16::from_le_bytes(self.array()?).into()),
            3 => Integer(i16::from_le_bytes(self.array()?).into()),
            4 => Integer(self.u32()?.into()),
            5 => Integer(i32::from_le_bytes(self.array()?).into()),
            6 => Float(f32::from_le_bytes(self.array()?).into()),
            7 => Bool(self.array::<1>()? != [0]),
            8 => MetaValue::String(self.string()?),
            9 if depth < MAX_DEPTH => {
                let item = self.u32()?;
                let count = self.u64()?;
                self.limit("items of an array", count, MAX_ITEMS)?;
                // Grown as items are really there: the count alone must not make a huge allocation.
                let mut items = vec![];
                for _ in 0..count {
                    items.push(self.value(item, depth + 1)?);
                }
                Array(items)
            }
            10 => Integer(self.u64()?.into()),
            11 => Integer(i64::from_le_bytes(self.array()?).into()),
            12 => Float(f64::from_le_bytes(self.array()?)),
            _ => {
                let message = format!("metadata of unknown type {kind} before byte {}", self.at);
                return Err(Error::format(self.source.name(), message));
            }
        })
    }

    fn tensor_info(&mut self) -> Result<TensorInfo> {
        let name = self.string()?;
        let dimensions = self.u32()?;
        if dimensions > MAX_DIMENSIONS {
            return Err(Error::tensor(
                name,
                format!("{dimensions} dimensions; at most {MAX_DIMENSIONS} are read"),
            ));
        }
        let mut shape = vec![];
        for _ in 0..dimensions {
            let size = self.u64()?;
            let size = usize::try_from(size)
                .map_err(|_| Error::tensor(&name, format!("a dimension of {size} cannot be addressed")))?;
            shape.push(size);
        }
        // The file lists the innermost dimension first.
        shape.reverse();
        Ok(TensorInfo { name, shape, kind: self.u32()?, offset: self.u64()? })
    }
}

fn dtype(kind: u32) -> Option<DType> {
    Some(match kind {
        0 => DType::F32,
        1 => DType::F16,
        2 => DType::Q4_0,
        3 => DType::Q4_1,
        8 => DType::Q8_0,
        12 => DType::Q4K,
        14 => DType::Q6K,
        30 => DType::BF16,
        _ => return None,
    })
}

/// The name of a type that is not read.
fn type_name(kind: u32) -> String {
    let name = match kind {
        6 => "Q5_0",
        7 => "Q5_1",
        10 => "Q2_K",
        11 => "Q3_K",
        13 => "Q5_K",
        _ => return format!("number {kind}"),
    };
    name.to_owned()
}

/// GGUF tensor names in Hugging Face terms; others stay as they are.
fn hugging_face_name(name: &str) -> String {
    let whole = match name {
        "token_embd.weight" => Some("model.embed_tokens.weight"),
        "output_norm.weight" => Some("model.norm.weight"),
        "output.weight" => Some("lm_head.weight"),
        _ => None,
    };
    if let Some(found) = whole {
        return found.to_owned();
    }
    let layered = || {
        let (layer, part) = name.strip_prefix("blk.")?.split_once('.')?;
        let part = match part.strip_suffix(".weight")? {
            "attn_norm" => "input_layernorm",
            "attn_q" => "self_attn.q_proj",
            "attn_k" => "self_attn.k_proj",
            "attn_v" => "self_attn.v_proj",
            "attn_output" => "self_attn.o_proj",
            "ffn_norm" => "post_attention_layernorm",
            "ffn_gate" => "mlp.gate_proj",
            "ffn_up" => "mlp.up_proj",
            "ffn_down" => "mlp.down_proj",
            _ => return None,
        };
        Some(format!("model.layers.{layer}.{part}.weight"))
    };
    layered().unwrap_or_else(|| name.to_owned())
}
