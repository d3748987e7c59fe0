//! Text to token ids and back, from a tokenizer.json or from GGUF metadata.

use std::collections::BTreeSet;

use tokenizers::models::bpe::{BPE, Merges, Vocab};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::sequence::Sequence;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::{AddedToken, PreTokenizerWrapper, SplitDelimiterBehavior};

use super::token_bytes::token_bytes;
use crate::checkpoint::{GgufVocab, TokenizerFile};
use crate::{Error, Result};

/// A model's tokenizer.
#[derive(Clone, Debug)]
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    special: BTreeSet<u32>,
    vocab_size: usize,
    /// Put in front of a prompt. Only for GGUF files: a tokenizer.json brings its own post-processor.
    bos: Option<u32>,
}

impl Tokenizer {
    /// The tokenizer a checkpoint describes.
    ///
    /// # Errors
    /// [`Error::Text`] when the description is broken, [`Error::Unsupported`] naming the kind of tokenizer.
    pub fn from_file(file: &TokenizerFile) -> Result<Self> {
        match file {
            TokenizerFile::Json(bytes) => {
                let inner = tokenizers::Tokenizer::from_bytes(bytes)
                    .map_err(|e| Error::Text(format!("tokenizer.json cannot be used: {e}")))?;
                Ok(Self::new(inner, None))
            }
            TokenizerFile::Gguf(vocab) => match vocab.model.as_str() {
                "gpt2" => byte_level_bpe(vocab),
                other => Err(Error::Unsupported(format!(
                    "a GGUF tokenizer of the kind `{other}` (only byte-level BPE, `gpt2`, is); use the model's \
                     folder with its tokenizer.json instead"
                ))),
            },
        }
    }

    fn new(inner: tokenizers::Tokenizer, bos: Option<u32>) -> Self {
        let added = inner.get_added_tokens_decoder();
        let special = added.iter().filter(|(_, token)| token.special).map(|(&id, _)| id).collect();
        let last = inner.get_vocab(true).into_values().max();
        Self { inner, special, vocab_size: last.map_or(0, |id| id as usize + 1), bos }
    }

    /// The ids of `text`. Special tokens written in the text become their ids; `add_special_tokens` also adds
    /// those the model expects around a plain prompt (begin of sequence). Leave it off for rendered chat
    /// templates, which write theirs.
    ///
    /// # Errors
    /// [`Error::Text`] when the tokenizer cannot express the text.
    pub fn encode(&self, text: &str, add_special_tokens: bool) -> Result<Vec<u32>> {
        let encoding = self
            .inner
            .encode_fast(text, add_special_tokens)
            .map_err(|e| Error::Text(format!("the text cannot be tokenized: {e}")))?;
        let bos = self.bos.filter(|_| add_special_tokens);
        Ok(bos.into_iter().chain(encoding.get_ids().iter().copied()).collect())
    }

    /// The text of `ids`, without special tokens if `skip_special`. Ids without a token are left out, and bytes
    /// that are no UTF-8 become U+FFFD.
    ///
    /// # Errors
    /// [`Error::Text`] when the decoder fails.
    pub fn decode(&self, ids: &[u32], skip_special: bool) -> Result<String> {
        let decode = |ids: &[u32]| self.inner.decode(ids, false);
        let text = if skip_special && ids.iter().any(|&id| self.is_special(id)) {
            decode(&ids.iter().copied().filter(|&id| !self.is_special(id)).collect::<Vec<_>>())
        } else {
            decode(ids)
        };
        text.map_err(|e| Error::Text(format!("the tokens cannot be decoded: {e}")))
    }

    /// The id of a token given as the vocabulary spells it.
    pub fn token_id(&self, token: &str) -> Option<u32> {
        self.inner.token_to_id(token)
    }

    /// The bytes that `id` stands for inside a text; for special tokens, how they are written. They need not be
    /// UTF-8, for a character may be spread over several tokens. None if the id has no token.
    pub fn token_bytes(&self, id: u32) -> Option<Vec<u8>> {
        let token = self.inner.id_to_token(id)?;
        Some(token_bytes(self.inner.get_decoder(), &token))
    }

    /// Every token whose text contains one of `texts`, ascending; no special ones.
    pub fn tokens_containing(&self, texts: &[&str]) -> Vec<u32> {
        let contains =
            |bytes: &[u8], text: &str| bytes.windows(text.len().max(1)).any(|w| w == text.as_bytes());
        (0..self.vocab_size as u32)
            .filter(|&id| !self.is_special(id))
            .filter(|&id| self.token_bytes(id).is_some_and(|b| texts.iter().any(|text| contains(&b, text))))
            .collect()
    }

    /// One more than the highest id; some ids below may have no token.
    pub fn vocab_size(&self) -> usize {
        self.vocab_size
    }

    /// Whether `id` is a control token (begin of sequence, end of turn, ...), not text.
    pub fn is_special(&self, id: u32) -> bool {
        self.special.contains(&id)
    }
}

/// GGUF token types (GGUF specification).
const UNKNOWN: i32 = 2;
const CONTROL: i32 = 3;
const USER_DEFINED: i32 = 4;

fn byte_level_bpe(gguf: &GgufVocab) -> Result<Tokenizer> {
    let failed = |e: tokenizers::Error| Error::Text(format!("the GGUF tokenizer cannot be used: {e}"));
    let (patterns, ignore_merges) = pre_tokenizer(&gguf.pre)?;
    if gguf.tokens.is_empty() {
        return Err(Error::Text("the GGUF tokenizer has no tokens".into()));
    }
    let vocab: Vocab = gguf.tokens.iter().cloned().zip(0..).collect();
    let merges = gguf
        .merges
        .iter()
        .map(|merge| match merge.split_once(' ') {
            Some(("", _)) | None => Err(Error::Text(format!("merge `{merge}` is not `left right`"))),
            Some((left, right)) => Ok((left.to_owned(), right.to_owned())),
        })
        .collect::<Result<Merges>>()?;
    let bpe = BPE::builder().vocab_and_merges(vocab, merges).ignore_merges(ignore_merges).build();
    let mut inner = tokenizers::Tokenizer::new(bpe.map_err(failed)?);

    let mut steps: Vec<PreTokenizerWrapper> = vec![];
    for pattern in patterns {
        let pattern = SplitPattern::Regex((*pattern).to_owned());
        steps.push(Split::new(pattern, SplitDelimiterBehavior::Isolated, false).map_err(failed)?.into());
    }
    steps.push(ByteLevel::new(false, false, false).into());
    inner.with_pre_tokenizer(Some(Sequence::new(steps)));
    inner.with_decoder(Some(ByteLevel::new(false, false, false)));

    let added = gguf.tokens.iter().zip(&gguf.token_types).filter_map(|(token, &kind)| match kind {
        UNKNOWN | CONTROL => Some(AddedToken::from(token.as_str(), true)),
        USER_DEFINED => Some(AddedToken::from(token.as_str(), false).normalized(false)),
        _ => None,
    });
    inner.add_tokens(added.collect::<Vec<_>>()).map_err(failed)?;
    Ok(Tokenizer::new(inner, gguf.bos.filter(|_| gguf.add_bos)))
}

const GPT2: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";
const LLAMA3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const QWEN2: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const DEEPSEEK_V3: &str = r##"[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"##;
const TEKKEN: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// How text is cut before merging, by the name a GGUF file gives it (`tokenizer.ggml.pre`): the patterns, each
/// cutting the pieces the one before left, and whether a piece that is a token is taken whole.
///
/// The patterns are those of the models' own tokenizer.json files; the names are llama.cpp's.
fn pre_tokenizer(name: &str) -> Result<(&'static [&'static str], bool)> {
    Ok(match name {
        // llama.cpp's choice for files from before the key existed.
        "" | "default" => (&[r"[\p{P}\$\+<=>\^~\|]+", GPT2, r"\p{N}+", "[0-9][0-9][0-9]"], false),
        "gpt-2" | "phi-2" | "mpt" | "olmo" | "jais" | "trillion" => (&[GPT2], false),
        "smollm" | "starcoder" | "refact" | "command-r" | "codeshell" | "exaone" | "minerva-7b" => {
            (&[r"\p{N}", GPT2], false)
        }
        "falcon" => (&[r"[\p{P}\$\+<=>\^~\|`]+", GPT2, "[0-9][0-9][0-9]"], false),
        "llama3" | "llama-v3" | "llama-bpe" | "falcon3" | "falcon-h1" | "pixtral" | "lfm2" => {
            (&[LLAMA3], true)
        }
        "dbrx" | "smaug-bpe" | "chatglm-bpe" | "glm4" => (&[LLAMA3], false),
        "qwen2" | "stablelm2" | "deepseek-r1-qwen" | "megrez" => (&[QWEN2], false),
        "deepseek-v3" => (&[r"\p{N}{1,3}", "[一-龥぀-ゟ゠-ヿ]+", DEEPSEEK_V3], false),
        "deepseek-coder" => (&[r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", "[一-龥ࠀ-一가-퟿]+", r"\p{N}"], false),
        "tekken" => (&[TEKKEN], true),
        other => {
            return Err(Error::Unsupported(format!(
                "the GGUF pre-tokenizer `{other}`; use the model's folder with its tokenizer.json instead"
            )));
        }
    })
}
