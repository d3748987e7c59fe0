//! `/v1/chat/completions`: answers conversations.

pub(super) mod answer;
mod messages;
mod tools;

use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use serde_json::{Map, Value};
use tread_core::engine::{Event, PromptLogprobs, Request, Task};
use tread_core::grammar::Grammar;
use utoipa::ToSchema;

use super::App;
use super::error::ApiError;
use super::input::{Input, parse};
use super::params::{SamplingFields, check_logprobs};
use super::prompt;
use super::stream;
use answer::{Answer, ChatResponse, Streamed};
use tools::{Chosen, Tools};

/// Where reasoning ends and the answer begins.
const REASONING_END: &str = "</think>";

/// A conversation, and what the answer may use.
#[derive(Debug, Deserialize, ToSchema)]
pub(super) struct ChatFields {
    /// The model's name; it may be left out.
    model: Option<String>,
    /// The conversation: objects with `role` (system, user, assistant, tool), `content` (a string or text parts), and
    /// what else the model's template reads (`tool_calls`, `tool_call_id`, `reasoning_content`, `name`).
    #[schema(value_type = Vec<Object>)]
    messages: Vec<Map<String, Value>>,
    /// Functions the model may call.
    #[schema(value_type = Option<Vec<Object>>)]
    tools: Option<Vec<Value>>,
    /// `none`, `auto`, `required`, or `{"type": "function", "function": {"name": ...}}`.
    #[schema(value_type = Option<Object>)]
    tool_choice: Option<Value>,
    /// Whether one answer may call several functions [default: true].
    parallel_tool_calls: Option<bool>,
    /// OpenAI's older form of `tools`; refused.
    #[schema(value_type = Option<Vec<Object>>)]
    functions: Option<Value>,
    /// Score every token of the answer.
    logprobs: Option<bool>,
    /// Report this many of the likeliest tokens in the place of each.
    top_logprobs: Option<u32>,
    /// Open the assistant's turn [default: unless `continue_final_message`].
    add_generation_prompt: Option<bool>,
    /// Continue the last message instead of answering it.
    continue_final_message: Option<bool>,
    /// Further variables for the model's template, such as `enable_thinking`.
    #[schema(value_type = Option<Object>)]
    chat_template_kwargs: Option<Map<String, Value>>,
}

/// Answer a conversation.
#[utoipa::path(
    post,
    path = "/v1/chat/completions",
    tag = "OpenAI",
    request_body = super::openapi::ChatCompletionRequest,
    responses((status = 200, body = ChatResponse), (status = "4XX", body = ApiError), (status = "5XX", body = ApiError))
)]
pub(super) async fn create(State(app): State<App>, Input(value): Input) -> Result<Response, ApiError> {
    let fields: ChatFields = parse(&value)?;
    let sampling: SamplingFields = parse(&value)?;
    drop(value);
    app.check_model(fields.model.as_deref())?;
    let (streams, include_usage) = (sampling.streams(), sampling.includes_usage());
    let (request, mut answer) = app.blocking(move |app| prepare(app, fields, &sampling)).await?;
    let mut events = app.submit(vec![request])?;
    if streams {
        return stream::answer(events, 1, Streamed::new(answer, include_usage)).await;
    }
    loop {
        match events.next().await? {
            (_, Event::Done) => return Ok(Json(answer.whole()).into_response()),
            (_, event) => answer.take(event),
        }
    }
}

/// The prompt that a chat request makes.
pub(super) fn prompt_text(app: &App, value: &Value) -> Result<String, ApiError> {
    let fields: ChatFields = parse(value)?;
    let tools = Tools::new(app, &fields)?;
    messages::render(app, fields, tools.as_ref())
}

fn prepare(app: &App, fields: ChatFields, sampling: &SamplingFields) -> Result<(Request, Answer), ApiError> {
    let mut generate = sampling.generate(app)?;
    if generate.max_tokens == 0 {
        return Err(ApiError::param("max_tokens", "max_tokens is 0, but a chat's answer has at least 1"));
    }
    if fields.functions.is_some() {
        return Err(ApiError::param("functions", "functions is the older form of tools: send `tools`"));
    }
    let top = match (fields.logprobs.unwrap_or(false), fields.top_logprobs) {
        (false, Some(1..)) => {
            return Err(ApiError::param("top_logprobs", "top_logprobs needs `logprobs` to be true"));
        }
        (false, _) => None,
        (true, count) => Some(check_logprobs("top_logprobs", count.unwrap_or(0))?),
    };
    generate.logprobs = top;
    let prompt_top =
        sampling.prompt_logprobs.map(|count| check_logprobs("prompt_logprobs", count)).transpose()?;
    if prompt_top.is_some() && sampling.streams() {
        return Err(ApiError::param("prompt_logprobs", "prompt_logprobs does not go with `stream`"));
    }
    generate.prompt_logprobs = prompt_top.map(|top| PromptLogprobs { from: 0, top });

    let tools = Tools::new(app, &fields)?;
    let text = messages::render(app, fields, tools.as_ref())?;
    let tokenizer = app.model.tokenizer()?;
    prompt::check_length(app, "messages", &text)?;
    let tokens = tokenizer.encode(&text, false)?;
    prompt::check(app, "messages", &tokens, 1)?;

    let structure = match (sampling.structure()?, tools.as_ref().map(|tools| &tools.choice)) {
        (Some((_, param)), Some(Chosen::Required | Chosen::Named(_))) => {
            let message = format!("{param} and tool_choice both say what the answer looks like: send one");
            return Err(ApiError::param(param, message));
        }
        (Some(structure), _) => Some(structure),
        (None, _) => {
            let spec = tools.as_ref().map(|tools| tools.structure(tokenizer)).transpose()?;
            spec.flatten().map(|spec| (spec, "tools"))
        }
    };
    if let Some((spec, param)) = structure {
        let grammar = app.grammars()?.compile(&spec).map_err(|e| ApiError::from(e).about(param))?;
        generate.grammar = Some(after_reasoning(&text, grammar));
    }
    // Markup of reasoning and tools is special in some vocabularies, and has to be seen to be taken out.
    if tools.is_some() || app.reasons() {
        generate.skip_special = false;
    }
    let answer = Answer::new(app, &text, &generate, tools, prompt_top);
    Ok((Request { prompt: tokens, task: Task::Generate(Box::new(generate)) }, answer))
}

/// Where the prompt opens the model's reasoning, the grammar begins after it.
fn after_reasoning(prompt: &str, grammar: Grammar) -> Grammar {
    if prompt.trim_end().ends_with("<think>") { grammar.after(REASONING_END) } else { grammar }
}
