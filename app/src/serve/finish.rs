//! Why an answer ended, in OpenAI's words.

use serde::Serialize;
use tread_core::engine::Finish;
use utoipa::ToSchema;

/// The stop string or stop token that ended an answer (vLLM's `stop_reason`).
#[derive(Clone, Debug, Serialize, ToSchema)]
#[serde(untagged)]
pub(super) enum StopReason {
    /// A stop token's id.
    Token(u32),
    /// A stop string.
    Text(String),
}

/// `stop` or `length`.
pub(super) fn reason(finish: &Finish) -> &'static str {
    match finish {
        Finish::StopToken(_) | Finish::StopString(_) | Finish::GrammarEnd => "stop",
        Finish::Length | Finish::ContextFull => "length",
    }
}

/// None where the model came to its own end; `stop_ids` are the stop tokens of the request.
pub(super) fn stop_reason(finish: Finish, stop_ids: &[u32]) -> Option<StopReason> {
    match finish {
        Finish::StopToken(id) => stop_ids.contains(&id).then_some(StopReason::Token(id)),
        Finish::StopString(text) => Some(StopReason::Text(text)),
        Finish::GrammarEnd | Finish::Length | Finish::ContextFull => None,
    }
}
