//! From a conversation to a prompt, and from the engine's events to what the page hears.

use serde_json::{Map, Value, json};
use tread_core::engine::{Delta, Event, Finish, Generate};
use tread_core::model::Model;
use tread_core::sampling::SamplingParams;
use tread_core::text::{
    CallDelta, Message, ReasoningSplitter, Split, ToolCallParser, ToolFormat, explain_tools,
};
use tread_core::{Error, Result};

use super::failure::in_a_browser;
use crate::chat::{self, ChatEvent, ChatRequest, Sampling, Usage};

/// What the engine is asked.
#[derive(Debug)]
pub(super) struct Question {
    pub(super) prompt: Vec<u32>,
    pub(super) generate: Generate,
    pub(super) answer: Answer,
}

impl Question {
    /// Writes a conversation as the model reads it. `seed` makes the names of tool calls differ from answer to answer.
    ///
    /// # Errors
    /// [`Error::Text`] when the model is not made for chat or refuses the conversation.
    pub(super) fn new(model: &Model, request: &ChatRequest, seed: u64) -> Result<Self> {
        let template = model.template()?;
        let tools = (!request.tools.is_empty()).then(|| Value::Array(request.tools.clone()));
        let mut messages = request.messages.iter().map(message).collect::<Result<Vec<_>>>()?;
        let known = template.knows_tools();
        if let Some(tools) = tools.as_ref().filter(|_| !known) {
            explain(&mut messages, &explain_tools(tools));
        }
        let schemas = tools.as_ref().filter(|_| known);
        let text = if request.continues {
            template.render_unfinished(&messages, schemas, &Map::new())?
        } else {
            template.render(&messages, schemas, true)?
        };
        let prompt = model.tokenizer()?.encode(&text, false)?;
        let parser = tools.map(|tools| ToolCallParser::new(ToolFormat::of(template.source()), &tools));
        let answer = Answer::new(&text, parser, seed);
        Ok(Self { prompt, generate: generate(model, &request.sampling), answer })
    }
}

/// What the page asks for, over what the model suggests.
fn generate(model: &Model, sampling: &Sampling) -> Generate {
    let base = model.sampling.clone();
    let params = SamplingParams {
        temperature: sampling.temperature.unwrap_or(base.temperature),
        top_k: sampling.top_k.unwrap_or(base.top_k),
        top_p: sampling.top_p.unwrap_or(base.top_p),
        min_p: sampling.min_p.unwrap_or(base.min_p),
        repetition_penalty: sampling.repetition_penalty.unwrap_or(base.repetition_penalty),
        seed: sampling.seed.or(base.seed),
        ..base
    };
    // Special tokens stay in the text: in some vocabularies `</think>` is one.
    Generate {
        sampling: params,
        max_tokens: sampling.max_tokens.unwrap_or(usize::MAX),
        stop: sampling.stop.clone(),
        skip_special: false,
        ..Generate::default()
    }
}

/// A message as templates expect it.
fn message(message: &chat::Message) -> Result<Message> {
    let mut extra = Map::new();
    if !message.tool_calls.is_empty() {
        let calls = message.tool_calls.iter().map(call).collect::<Result<_>>()?;
        extra.insert("tool_calls".to_owned(), Value::Array(calls));
    }
    if let Some(id) = &message.tool_call_id {
        extra.insert("tool_call_id".to_owned(), id.clone().into());
    }
    Ok(Message { role: message.role.clone(), content: message.content.clone(), extra })
}

/// Templates iterate over arguments, which are written as the text of a JSON object.
fn call(call: &chat::ToolCall) -> Result<Value> {
    let text = call.function.arguments.trim();
    let arguments: Map<String, Value> = match text {
        "" => Map::new(),
        text => serde_json::from_str(text).map_err(|error| {
            let name = &call.function.name;
            Error::Text(format!("the arguments of the call of `{name}` are not a JSON object: {error}"))
        })?,
    };
    Ok(json!({
        "id": call.id,
        "type": call.kind,
        "function": { "name": call.function.name, "arguments": arguments },
    }))
}

/// Tells a model about tools whose template cannot.
fn explain(messages: &mut Vec<Message>, explanation: &str) {
    match messages.first_mut().filter(|first| first.role == "system") {
        Some(system) => {
            system.content.push_str("\n\n");
            system.content.push_str(explanation);
        }
        None => messages.insert(0, Message::new("system", explanation)),
    }
}

/// An answer in the making.
#[derive(Debug)]
pub(super) struct Answer {
    splitter: ReasoningSplitter,
    parser: Option<ToolCallParser>,
    /// Whether a call has begun.
    called: bool,
    usage: Usage,
    finish: Option<Finish>,
    seed: u64,
}

impl Answer {
    /// An answer to `prompt`.
    fn new(prompt: &str, parser: Option<ToolCallParser>, seed: u64) -> Self {
        let splitter = ReasoningSplitter::new(prompt);
        Self { splitter, parser, called: false, usage: Usage::default(), finish: None, seed }
    }

    /// What the page hears of an event.
    pub(super) fn take(&mut self, event: Event) -> Vec<ChatEvent> {
        match event {
            Event::Prompt { tokens, cached, .. } => {
                self.usage.prompt_tokens = tokens;
                self.usage.cached_tokens = cached;
                vec![]
            }
            Event::Delta(delta) => self.delta(delta),
            Event::Done => vec![ChatEvent::Finished { reason: self.reason().to_owned(), usage: self.usage }],
            Event::Failed(error) => vec![ChatEvent::Failed { message: in_a_browser(&error.to_string()) }],
            Event::Features(_) => vec![],
        }
    }

    fn delta(&mut self, delta: Delta) -> Vec<ChatEvent> {
        let mut events = vec![];
        self.usage.completion_tokens += usize::from(delta.token.is_some());
        let split = self.splitter.push(&delta.text);
        self.split(split, &mut events);
        if delta.finish.is_some() {
            self.finish = delta.finish;
            let split = self.splitter.finish();
            self.split(split, &mut events);
            if let Some(parser) = &mut self.parser {
                let split = parser.finish();
                content(split.content, &mut events);
                self.calls(split.calls, &mut events);
            }
        }
        events
    }

    fn split(&mut self, split: Split, events: &mut Vec<ChatEvent>) {
        if !split.reasoning.is_empty() {
            events.push(ChatEvent::Reasoning { text: split.reasoning });
        }
        let Some(parser) = &mut self.parser else { return content(split.content, events) };
        let split = parser.push(&split.content);
        content(split.content, events);
        self.calls(split.calls, events);
    }

    fn calls(&mut self, calls: Vec<CallDelta>, events: &mut Vec<ChatEvent>) {
        for call in calls {
            self.called = true;
            // A call begins with its name.
            let id = call.name.is_some().then(|| call_id(self.seed, call.index));
            let CallDelta { index, name, arguments } = call;
            events.push(ChatEvent::ToolCall { index, id, name, arguments });
        }
    }

    fn reason(&self) -> &'static str {
        match self.finish {
            Some(Finish::Length | Finish::ContextFull) => "length",
            _ if self.called => "tool_calls",
            _ => "stop",
        }
    }
}

fn content(text: String, events: &mut Vec<ChatEvent>) {
    if !text.is_empty() {
        events.push(ChatEvent::Content { text });
    }
}

/// Nine digits: a form that also Mistral's templates take back.
fn call_id(seed: u64, index: usize) -> String {
    let mixed = (seed ^ (index as u64) << 40).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    format!("{:09}", (mixed >> 20) % 1_000_000_000)
}

#[cfg(test)]
mod tests;
