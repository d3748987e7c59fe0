//! A vocabulary as llguidance wants it: the bytes of every token, in a trie.

use std::sync::Arc;

use toktrie::{ApproximateTokEnv, INVALID_TOKEN, TokEnv, TokRxInfo, TokTrie};

use super::mask::TokenMask;
use crate::text::Tokenizer;
use crate::{Error, Result};

/// The bytes of every token, and the sets of tokens that every grammar needs.
pub(super) struct Vocabulary {
    pub(super) env: TokEnv,
    /// The model's stop tokens.
    pub(super) stops: TokenMask,
    /// Tokens of nothing but white space.
    pub(super) spaces: TokenMask,
}

/// What the trie's 32-bit nodes can hold (toktrie).
const MAX_TOKEN_BYTES: usize = 1000;
const MAX_BYTES: usize = 1 << 22;

impl Vocabulary {
    /// # Errors
    /// [`Error::Text`] when no token has bytes, or they are too many.
    pub(super) fn new(tokenizer: &Tokenizer, stop_ids: &[u32]) -> Result<Self> {
        let size = tokenizer.vocab_size();
        let special = |id: u32| tokenizer.is_special(id) || stop_ids.contains(&id);
        let word = |id: u32| match tokenizer.token_bytes(id) {
            // The marker, which is in no UTF-8, keeps special tokens from being taken for their text.
            Some(bytes) if special(id) => [&[TokTrie::SPECIAL_TOKEN_MARKER], &bytes[..]].concat(),
            Some(bytes) if bytes.first() != Some(&TokTrie::SPECIAL_TOKEN_MARKER) => bytes,
            _ => vec![],
        };
        let words: Vec<Vec<u8>> = (0..size as u32)
            .map(|id| Some(word(id)).filter(|word| word.len() <= MAX_TOKEN_BYTES).unwrap_or_default())
            .collect();
        let bytes: usize = words.iter().map(Vec::len).sum();
        if bytes == 0 || bytes >= MAX_BYTES {
            return Err(Error::Text(format!(
                "structured output does not work with this tokenizer: its {size} tokens have {bytes} bytes, but must \
                 have some and fewer than {MAX_BYTES}"
            )));
        }
        let stop_ids: Vec<u32> = stop_ids.iter().copied().filter(|&id| (id as usize) < size).collect();
        let mut trie = TokTrie::from(&TokRxInfo::new(size as u32, INVALID_TOKEN), &words);
        if !stop_ids.is_empty() {
            trie = trie.with_eos_tokens(&stop_ids);
        }
        let is_space =
            |id: &u32| trie.token(*id).iter().all(u8::is_ascii_whitespace) && !trie.token(*id).is_empty();
        let spaces = TokenMask::of(size, (0..size as u32).filter(is_space));
        let stops = TokenMask::of(size, stop_ids);
        // "Approximate" means that text a grammar leaves no choice about is not cut into tokens as the tokenizer would,
        // but as the model likes best.
        Ok(Self { env: Arc::new(ApproximateTokEnv::new(trie)), stops, spaces })
    }

    pub(super) fn size(&self) -> usize {
        self.env.tok_trie().vocab_size()
    }

    /// The text of a token, as a reader sees it.
    pub(super) fn text(&self, token: u32) -> &[u8] {
        let bytes = self.env.tok_trie().token(token);
        bytes.strip_prefix(&[TokTrie::SPECIAL_TOKEN_MARKER]).unwrap_or(bytes)
    }
}
