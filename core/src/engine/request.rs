//! What a client asks of the engine, and what it hears back.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::Error;
use crate::afd::PoolStats;
use crate::grammar::Grammar;
use crate::monitor::{OpTime, SequenceRows};
use crate::sampling::{SamplingParams, TokenLogprob};

/// Names a request for as long as it lives; the caller chooses it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct RequestId(pub u64);

/// A prompt and what to do with it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Request {
    /// Token ids of the prompt; at least one.
    pub prompt: Vec<u32>,
    /// What is wanted of it.
    pub task: Task,
}

/// What is wanted of a prompt.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Task {
    /// Continue it.
    Generate(Box<Generate>),
    /// The hidden state of its last token after the final norm: [`Event::Features`], then the end.
    Embed,
}

/// How a prompt is continued.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Generate {
    /// How tokens are chosen. Choice `i` of `n` is sampled with `seed + i`.
    pub sampling: SamplingParams,
    /// Continuations of the same prompt; at least one. They share the prompt's cache blocks.
    pub n: usize,
    /// Most tokens of each continuation; 0 only scores the prompt.
    pub max_tokens: usize,
    /// Stop tokens are not chosen before this many tokens are.
    pub min_tokens: usize,
    /// Go on after the model's stop tokens.
    pub ignore_eos: bool,
    /// Further stop tokens.
    pub stop_ids: Vec<u32>,
    /// A continuation ends before the first of these that its text contains, also across token borders.
    pub stop: Vec<String>,
    /// Keep the stop string in the text.
    pub include_stop: bool,
    /// Leave special tokens out of the text.
    pub skip_special: bool,
    /// Report each chosen token's log probability and those of this many likeliest tokens.
    pub logprobs: Option<usize>,
    /// Report the log probability of each prompt token given those before it, likewise.
    pub prompt_logprobs: Option<PromptLogprobs>,
    /// Admits only what the grammar does; every choice follows it on its own. It stays behind where a request is serialised:
    /// its source goes along and is compiled anew.
    #[serde(skip)]
    pub grammar: Option<Grammar>,
    /// Continuations that an engine which is gone had begun. They go on as they would have there, given the same seed;
    /// [`Event::Prompt`] does not come again, and choices that are not named here are finished. None: begin all.
    pub resume: Option<Vec<Begun>>,
}

/// How far a continuation came elsewhere.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Begun {
    /// Which of the `n` continuations.
    pub choice: usize,
    /// Its tokens that were told, in order.
    pub tokens: Vec<u32>,
}

impl Default for Generate {
    fn default() -> Self {
        Self {
            sampling: SamplingParams::default(),
            n: 1,
            max_tokens: usize::MAX,
            min_tokens: 0,
            ignore_eos: false,
            stop_ids: vec![],
            stop: vec![],
            include_stop: false,
            skip_special: true,
            logprobs: None,
            prompt_logprobs: None,
            grammar: None,
            resume: None,
        }
    }
}

/// Which prompt tokens are scored.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PromptLogprobs {
    /// Index of the first prompt token that is scored. A continuation is scored given its context by putting both in
    /// the prompt and the length of the context here. The first token of all has nothing before it and no score.
    pub from: usize,
    /// Also report this many likeliest tokens.
    pub top: usize,
}

/// What happens to a request, in order. After [`Event::Failed`], or [`Event::Done`], nothing more comes.
#[derive(Debug, Serialize, Deserialize)]
pub enum Event {
    /// The whole prompt is computed. Comes once, before any token.
    Prompt {
        /// Tokens of the prompt.
        tokens: usize,
        /// Of these, how many the prefix cache held.
        cached: usize,
        /// From its submission to its first step.
        waited: Duration,
        /// Scores of the prompt's tokens from [`PromptLogprobs::from`] on (a missing one for the first of all).
        logprobs: Vec<Option<TokenLogprob>>,
    },
    /// The hidden state of the last token after the final norm, `[hidden]`.
    Features(Vec<f32>),
    /// Something new of one continuation.
    Delta(Delta),
    /// Every continuation is finished.
    Done,
    /// The request is given up; what was told before stands.
    Failed(Error),
}

/// New tokens and text of one continuation. Text may come later than its tokens, while it may yet become a stop string
/// or half a character.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Delta {
    /// Which of the `n` continuations.
    pub choice: usize,
    /// The token chosen in this step, a stop token included.
    pub token: Option<u32>,
    /// Its score, if asked for.
    pub logprob: Option<TokenLogprob>,
    /// Text that is certain by now.
    pub text: String,
    /// Why the continuation ended, if it did.
    pub finish: Option<Finish>,
}

/// Why a continuation ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Finish {
    /// The model wrote this stop token.
    StopToken(u32),
    /// The text contains this stop string.
    StopString(String),
    /// The grammar admits nothing more.
    GrammarEnd,
    /// `max_tokens` were written.
    Length,
    /// The sequence fills the context.
    ContextFull,
}

/// What one step did, for metrics.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct StepReport {
    /// Who was in it, in order of arrival; each of `n` continuations is one.
    pub rows: Vec<SequenceRows>,
    /// Prompt rows computed (recomputed ones after a preemption included).
    pub prefill_rows: usize,
    /// Rows of sequences that were decoding.
    pub decode_rows: usize,
    /// Choosing what runs.
    pub schedule: Duration,
    /// From submission to logits on the host.
    pub compute: Duration,
    /// Sampling, detokenising, stop conditions.
    pub sample: Duration,
    /// Kernel launches.
    pub dispatches: usize,
    /// Where the device's time went; empty unless [`super::Engine::profile_next`] asked for it.
    pub ops: Vec<OpTime>,
}

/// Where the engine stands, for metrics.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EngineStats {
    /// Sequences that hold cache blocks (each of `n` continuations counts).
    pub running: usize,
    /// Requests that wait for their first step or, preempted, for blocks.
    pub waiting: usize,
    /// Cache blocks in all.
    pub blocks: usize,
    /// Blocks that running sequences hold.
    pub blocks_used: usize,
    /// Prompt tokens looked up in the prefix cache, since the start.
    pub prefix_queries: u64,
    /// Of these, how many it held.
    pub prefix_hits: u64,
    /// Sequences that lost their blocks and were computed again.
    pub preemptions: u64,
    /// How it fares with its FFN pool, where it has one elsewhere.
    pub pool: PoolStats,
}
