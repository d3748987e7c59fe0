//! What is asked and what is heard, wherever the model runs: the tab's worker and a server answer alike.

pub mod conversation;
pub mod highlight;
pub mod markdown;
pub mod settings;
pub mod sse;
pub mod transfer;

use serde::{Deserialize, Serialize};

/// A conversation to be answered.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ChatRequest {
    /// What was said so far, the system prompt first. The fields are OpenAI's.
    pub messages: Vec<Message>,
    /// How tokens are chosen.
    pub sampling: Sampling,
    /// Functions the model may call, as in OpenAI's `tools`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tools: Vec<serde_json::Value>,
    /// The last message is the model's own and is to be continued.
    #[serde(default)]
    pub continues: bool,
}

/// One message.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Message {
    /// `system`, `user`, `assistant` or `tool`.
    pub role: String,
    /// The text.
    pub content: String,
    /// Calls of functions that an assistant's message makes.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tool_calls: Vec<ToolCall>,
    /// The call that a tool's message answers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tool_call_id: Option<String>,
}

/// A call of a function.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ToolCall {
    /// Names the call for its answer.
    pub id: String,
    /// Always `function`.
    #[serde(rename = "type", default = "function_kind")]
    pub kind: String,
    /// What is called.
    pub function: Function,
}

fn function_kind() -> String {
    "function".to_owned()
}

/// A function and what it is given.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Function {
    /// Its name.
    pub name: String,
    /// JSON, as the model wrote it.
    pub arguments: String,
}

/// How tokens are chosen; what is left out is the model's own.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Sampling {
    /// 0 always takes the likeliest token.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub temperature: Option<f32>,
    /// Among the likeliest tokens that together have this probability.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub top_p: Option<f32>,
    /// Among the K likeliest; 0: among all.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub top_k: Option<usize>,
    /// Among tokens at least this probable relative to the likeliest.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub min_p: Option<f32>,
    /// Above 1 makes recent tokens less likely.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub repetition_penalty: Option<f32>,
    /// Makes the choice repeatable.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub seed: Option<u64>,
    /// Most tokens of the answer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_tokens: Option<usize>,
    /// The answer ends before any of these.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub stop: Vec<String>,
}

/// What happens to a request, in order. Nothing comes after [`ChatEvent::Finished`] or [`ChatEvent::Failed`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum ChatEvent {
    /// More of the model's reasoning.
    Reasoning {
        /// New text.
        text: String,
    },
    /// More of the answer.
    Content {
        /// New text.
        text: String,
    },
    /// More of a call of a function; `id` and `name` come with its first piece.
    ToolCall {
        /// Which call of the answer.
        index: usize,
        /// Names the call.
        id: Option<String>,
        /// The function.
        name: Option<String>,
        /// New text of its arguments.
        arguments: String,
    },
    /// The end.
    Finished {
        /// `stop`, `length`, `tool_calls`.
        reason: String,
        /// What it took.
        usage: Usage,
    },
    /// The request is given up; what was said before stands.
    Failed {
        /// Why, and what to do.
        message: String,
    },
}

/// What an answer took. Times are taken where the page hears of them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Usage {
    /// Tokens of the prompt.
    pub prompt_tokens: usize,
    /// Of these, held by the prefix cache.
    pub cached_tokens: usize,
    /// Tokens of the answer.
    pub completion_tokens: usize,
}
