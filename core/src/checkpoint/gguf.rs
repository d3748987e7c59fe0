//! The GGUF format (versions 2 and 3; ggml's docs/gguf.md): metadata, tensor table, aligned data.

mod metadata;

use std::sync::Arc;

pub(crate) use metadata::Metadata;

use self::metadata::Reader;
use super::{Checkpoint, GgufVocab, Tensors, TextFiles, TokenizerFile};
use crate::config;
use crate::tensor::{DType, Source, Tensor};
use crate::{Error, Result};

/// A bound against lying counts; real files are far below.
const MAX_TENSORS: u64 = 1 << 20;
const MAX_DIMENSIONS: u32 = 4;
/// The output matrix; tied to the embedding where a file has none.
const HEAD: &str = "lm_head.weight";
/// Divisors of rotation speeds (llama 3.1 and later).
const ROPE_FACTORS: &str = "rope_freqs.weight";

/// Reads the head of a GGUF file; tensors stay where they are.
pub(super) fn read(source: &Arc<dyn Source>) -> Result<Checkpoint> {
    let file = source.name().to_owned();
    let mut reader = Reader::new(&**source);
    if reader.array()? != *b"GGUF" {
        return Err(reader.wrong("it does not begin with the letters GGUF".to_owned()));
    }
    let version = reader.u32()?;
    if !(2..=3).contains(&version) {
        return Err(reader.wrong(format!("GGUF version {version}; Tread reads versions 2 and 3")));
    }
    let (tensor_count, key_count) = (reader.u64()?, reader.u64()?);
    reader.limit("tensors", tensor_count, MAX_TENSORS)?;
    let meta = Metadata::read(&mut reader, key_count)?;
    let infos = (0..tensor_count).map(|_| TensorInfo::read(&mut reader)).collect::<Result<Vec<_>>>()?;
    let alignment = meta.size("general.alignment")?.unwrap_or(32) as u64;
    if !alignment.is_power_of_two() || alignment > 1 << 20 {
        let message =
            format!("`general.alignment` is {alignment}, but must be a power of two of at most 2^20");
        return Err(reader.wrong(message));
    }
    let data = reader.at.next_multiple_of(alignment);
    let mut tensors = Tensors::default();
    let mut ranges = vec![];
    for info in infos {
        let name = hugging_face_name(&info.name);
        if info.name.starts_with("blk.") && info.name.ends_with(".bias") {
            return Err(Error::Unsupported(format!(
                "`{}`: Tread runs Llama models without biases",
                info.name
            )));
        }
        let Some(dtype) = dtype(info.kind) else {
            let message = format!(
                "GGUF type {} is not supported; use a file of another quantisation",
                type_name(info.kind)
            );
            tensors.refuse(name, message);
            continue;
        };
        let offset =
            data.checked_add(info.offset).filter(|_| info.offset % alignment == 0).ok_or_else(|| {
                let message = format!("its offset {} is not aligned to {alignment} bytes", info.offset);
                Error::tensor(&info.name, message)
            })?;
        let tensor = Tensor::new(&info.name, dtype, info.shape, Arc::clone(source), offset)?;
        ranges.push((offset, offset + tensor.bytes(), info.name));
        tensors.add(tensor.renamed(name), &file)?;
    }
    super::check_overlap(&file, ranges)?;
    let vocab = vocab(&meta)?;
    // A matrix in a type that is not read is there all the same: without it the answers would be wrong.
    let tied = !tensors.found.contains_key(HEAD) && !tensors.refused.contains_key(HEAD);
    if let Some(reason) = tensors.refused.get(ROPE_FACTORS) {
        return Err(Error::tensor(ROPE_FACTORS, reason));
    }
    let embedding = tensors.found.get("model.embed_tokens.weight").map_or(vocab.tokens.len(), Tensor::rows);
    let config = config::gguf::model(&meta, embedding, tensors.found.get(ROPE_FACTORS), tied)?;
    let text = text(&meta, vocab)?;
    Ok(Checkpoint { config, tensors: tensors.found, refused: tensors.refused, text })
}

fn vocab(meta: &Metadata) -> Result<GgufVocab> {
    let key = |name: &str| format!("tokenizer.ggml.{name}");
    Ok(GgufVocab {
        model: meta.string(&key("model"))?.unwrap_or_default().to_owned(),
        pre: meta.string(&key("pre"))?.unwrap_or("default").to_owned(),
        tokens: meta.strings(&key("tokens"))?.to_vec(),
        token_types: meta.integers(&key("token_type"))?.to_vec(),
        merges: meta.strings(&key("merges"))?.to_vec(),
        bos: meta.id(&key("bos_token_id"))?,
        eos: meta.id(&key("eos_token_id"))?,
        add_bos: meta.flag(&key("add_bos_token"))?,
        add_space_prefix: meta.flag(&key("add_space_prefix"))?,
    })
}

fn text(meta: &Metadata, vocab: GgufVocab) -> Result<TextFiles> {
    let end_of_turn = meta.id("tokenizer.ggml.eot_token_id")?;
    let mut eos_token_ids: Vec<u32> = [vocab.eos, end_of_turn].into_iter().flatten().collect();
    eos_token_ids.dedup();
    let token = |id: Option<u32>| id.and_then(|id| vocab.tokens.get(id as usize).cloned());
    Ok(TextFiles {
        chat_template: meta.string("tokenizer.chat_template")?.map(str::to_owned),
        bos_token: token(vocab.bos),
        eos_token: token(vocab.eos),
        eos_token_ids,
        tokenizer: (!vocab.tokens.is_empty()).then_some(TokenizerFile::Gguf(vocab)),
        ..TextFiles::default()
    })
}

struct TensorInfo {
    name: String,
    shape: Vec<usize>,
    kind: u32,
    offset: u64,
}

impl TensorInfo {
    fn read(reader: &mut Reader<'_>) -> Result<Self> {
        let name = reader.string()?;
        let dimensions = reader.u32()?;
        if dimensions > MAX_DIMENSIONS {
            return Err(Error::tensor(
                name,
                format!("{dimensions} dimensions; at most {MAX_DIMENSIONS} are read"),
            ));
        }
        let mut shape = vec![];
        for _ in 0..dimensions {
            let size = reader.u64()?;
            let size = usize::try_from(size)
                .map_err(|_| Error::tensor(&name, format!("a dimension of {size} cannot be addressed")))?;
            shape.push(size);
        }
        // The file lists the innermost dimension first.
        shape.reverse();
        Ok(Self { name, shape, kind: reader.u32()?, offset: reader.u64()? })
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
