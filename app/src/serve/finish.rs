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

pub(super) fn stop_reason(finish: Finish) -> Option<StopReason> {
    match finish {
        Finish::StopToken(id) => Some(StopReason::Token(id)),
        Finish::StopString(text) => Some(StopReason::Text(text)),
        Finish::GrammarEnd | Finish::Length | Finish::ContextFull => None,
    }
}
