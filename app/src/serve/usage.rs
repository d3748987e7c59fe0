//! Numbers of tokens in an answer.

use serde::Serialize;
use utoipa::ToSchema;

/// Numbers of tokens.
#[derive(Clone, Copy, Debug, Default, Serialize, ToSchema)]
pub(super) struct Usage {
    /// Of the prompts.
    pub(super) prompt_tokens: usize,
    /// Of the answers, stop tokens included.
    pub(super) completion_tokens: usize,
    /// Of both.
    pub(super) total_tokens: usize,
    /// More about the prompts.
    pub(super) prompt_tokens_details: PromptTokensDetails,
}

/// More about the prompts' tokens.
#[derive(Clone, Copy, Debug, Default, Serialize, ToSchema)]
pub(super) struct PromptTokensDetails {
    /// Those the cache held already.
    pub(super) cached_tokens: usize,
}

impl Usage {
    /// Counts a prompt, of which the cache held a part.
    pub(super) fn prompt(&mut self, tokens: usize, cached: usize) {
        self.prompt_tokens += tokens;
        self.total_tokens += tokens;
        self.prompt_tokens_details.cached_tokens += cached;
    }

    /// Counts a token of an answer.
    pub(super) fn token(&mut self) {
        self.completion_tokens += 1;
        self.total_tokens += 1;
    }
}
