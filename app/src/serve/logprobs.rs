//! Scores of tokens in the shapes clients know.

use std::collections::BTreeMap;

use serde::Serialize;
use tread_core::sampling::TokenLogprob;
use tread_core::text::Tokenizer;
use utoipa::ToSchema;

/// JSON has no infinity; OpenAI writes this for what is next to impossible.
const LEAST: f32 = -9999.0;

/// A token of a chat's answer with its score.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub(super) struct ChatLogprob {
    #[serde(flatten)]
    chosen: TopLogprob,
    /// The likeliest tokens in its place.
    top_logprobs: Vec<TopLogprob>,
}

/// A token and its score.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub(super) struct TopLogprob {
    /// Its text; bytes that are half a character become U+FFFD.
    token: String,
    /// Natural logarithm of its probability.
    logprob: f32,
    /// Its bytes.
    bytes: Vec<u8>,
}

impl ChatLogprob {
    pub(super) fn new(tokenizer: &Tokenizer, score: &TokenLogprob, top: usize) -> Self {
        let entry = |(id, logprob): (u32, f32)| {
            let bytes = tokenizer.token_bytes(id).unwrap_or_default();
            TopLogprob {
                token: String::from_utf8_lossy(&bytes).into_owned(),
                logprob: logprob.max(LEAST),
                bytes,
            }
        };
        Self {
            chosen: entry((score.token, score.logprob)),
            top_logprobs: score.top.iter().take(top).copied().map(entry).collect(),
        }
    }
}

/// The scores of a plain completion's tokens, in four lists of the same length.
#[derive(Clone, Debug, Default, Serialize, ToSchema)]
pub(super) struct CompletionLogprobs {
    /// The tokens' texts; those that are no UTF-8 as `bytes:\x..`.
    tokens: Vec<String>,
    /// Natural logarithms of their probabilities; null for the first of all, which has nothing before it.
    token_logprobs: Vec<Option<f32>>,
    /// The likeliest tokens in their place.
    top_logprobs: Vec<Option<BTreeMap<String, f32>>>,
    /// Where they start in the text, in characters.
    text_offset: Vec<usize>,
}

impl CompletionLogprobs {
    /// Adds a token that starts at character `offset`; returns where the next one starts. `special` tells whether
    /// special tokens are in the text.
    pub(super) fn push(
        &mut self,
        tokenizer: &Tokenizer,
        token: u32,
        score: Option<&TokenLogprob>,
        top: usize,
        offset: usize,
        special: bool,
    ) -> usize {
        let name = |id| {
            let bytes = tokenizer.token_bytes(id).unwrap_or_default();
            String::from_utf8(bytes).unwrap_or_else(|error| escaped(error.as_bytes()))
        };
        self.tokens.push(name(token));
        self.token_logprobs.push(score.map(|score| score.logprob.max(LEAST)));
        self.top_logprobs.push(score.map(|score| {
            let top = score.top.iter().copied().take(top).chain([(score.token, score.logprob)]);
            top.map(|(id, logprob)| (name(id), logprob.max(LEAST))).collect()
        }));
        self.text_offset.push(offset);
        // Half a character counts with its other half.
        let bytes = tokenizer.token_bytes(token).unwrap_or_default();
        let starts = bytes.iter().filter(|&&byte| byte & 0xC0 != 0x80).count();
        offset + if special || !tokenizer.is_special(token) { starts } else { 0 }
    }

    pub(super) fn append(&mut self, mut other: Self) {
        self.tokens.append(&mut other.tokens);
        self.token_logprobs.append(&mut other.token_logprobs);
        self.top_logprobs.append(&mut other.top_logprobs);
        self.text_offset.append(&mut other.text_offset);
    }
}

/// `bytes:\xe2\x80`, as OpenAI writes tokens that are half a character.
fn escaped(bytes: &[u8]) -> String {
    let hex: String = bytes.iter().map(|byte| format!("\\x{byte:02x}")).collect();
    format!("bytes:{hex}")
}

/// vLLM's form of a prompt's scores: for each token but the first, candidates by id.
pub(super) type PromptLogprobs = Vec<Option<BTreeMap<String, PromptLogprob>>>;

/// A candidate for a place in the prompt.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub(super) struct PromptLogprob {
    /// Natural logarithm of its probability.
    logprob: f32,
    /// 1 for the likeliest.
    rank: usize,
    /// Its text.
    decoded_token: String,
}

pub(super) fn prompt_logprobs(
    tokenizer: &Tokenizer,
    scores: &[Option<TokenLogprob>],
    top: usize,
) -> PromptLogprobs {
    let entry = |(id, logprob): (u32, f32), rank| {
        let bytes = tokenizer.token_bytes(id).unwrap_or_default();
        let decoded_token = String::from_utf8_lossy(&bytes).into_owned();
        (id.to_string(), PromptLogprob { logprob: logprob.max(LEAST), rank, decoded_token })
    };
    let place = |score: &TokenLogprob| {
        let top = score.top.iter().take(top).zip(1..).map(|(&token, rank)| entry(token, rank));
        top.chain([entry((score.token, score.logprob), score.rank)]).collect()
    };
    scores.iter().map(|score| score.as_ref().map(place)).collect()
}
