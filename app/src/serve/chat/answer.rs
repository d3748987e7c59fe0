//! From the engine's events to a chat's answer, whole or in pieces.

use serde::Serialize;
use tread_core::engine::{Delta, Event, Finish, Generate};
use tread_core::text::{CallDelta, ReasoningSplitter, Split, ToolCallParser};
use utoipa::ToSchema;

use super::super::App;
use super::super::finish::{self, StopReason};
use super::super::logprobs::{ChatLogprob, PromptLogprobs, prompt_logprobs};
use super::super::stream::{Pieces, json};
use super::super::usage::Usage;
use super::tools::Tools;

#[derive(Debug, Serialize, ToSchema)]
pub(in super::super) struct ChatResponse {
    id: String,
    object: &'static str,
    created: u64,
    model: String,
    choices: Vec<ChatChoice>,
    usage: Usage,
    #[serde(skip_serializing_if = "Option::is_none")]
    prompt_logprobs: Option<PromptLogprobs>,
}

#[derive(Debug, Serialize, ToSchema)]
struct ChatChoice {
    index: usize,
    message: AssistantMessage,
    logprobs: Option<ChatLogprobs>,
    finish_reason: Option<&'static str>,
    /// The stop string or token that ended it.
    stop_reason: Option<StopReason>,
}

/// What the model said.
#[derive(Debug, Serialize, ToSchema)]
struct AssistantMessage {
    role: &'static str,
    content: Option<String>,
    /// What it thought before.
    #[serde(skip_serializing_if = "Option::is_none")]
    reasoning_content: Option<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    tool_calls: Vec<ToolCall>,
}

/// What is new of it in a stream.
#[derive(Debug, Default, Serialize, ToSchema)]
struct MessageDelta {
    #[serde(skip_serializing_if = "Option::is_none")]
    role: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    content: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reasoning_content: Option<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    tool_calls: Vec<ToolCall>,
}

/// A call of a function. In a stream, what is new of it.
#[derive(Clone, Debug, Serialize, ToSchema)]
struct ToolCall {
    /// Which call of the answer.
    index: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<String>,
    #[serde(rename = "type", skip_serializing_if = "Option::is_none")]
    kind: Option<&'static str>,
    function: FunctionCall,
}

#[derive(Clone, Debug, Serialize, ToSchema)]
struct FunctionCall {
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<String>,
    /// The text of a JSON object.
    arguments: String,
}

#[derive(Debug, Default, Serialize, ToSchema)]
struct ChatLogprobs {
    content: Vec<ChatLogprob>,
}

/// A piece of a stream.
#[derive(Debug, Serialize, ToSchema)]
struct ChatChunk {
    id: String,
    object: &'static str,
    created: u64,
    model: String,
    choices: Vec<ChunkChoice>,
    #[serde(skip_serializing_if = "Option::is_none")]
    usage: Option<Usage>,
}

#[derive(Debug, Serialize, ToSchema)]
struct ChunkChoice {
    index: usize,
    delta: MessageDelta,
    logprobs: Option<ChatLogprobs>,
    finish_reason: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    stop_reason: Option<StopReason>,
}

/// An answer in the making.
pub(super) struct Answer {
    app: App,
    id: String,
    created: u64,
    choices: Vec<Choice>,
    /// Likeliest tokens asked for, if any scores are.
    top: Option<usize>,
    prompt_top: Option<usize>,
    prompt_logprobs: Option<PromptLogprobs>,
    usage: Usage,
}

/// One of the `n` answers.
#[derive(Clone)]
struct Choice {
    splitter: ReasoningSplitter,
    parser: Option<ToolCallParser>,
    parallel: bool,
    /// Whether a call has begun.
    called: bool,
    stop_ids: Vec<u32>,
    whole: Piece,
}

/// What is new of a choice, or all of it.
#[derive(Clone, Default)]
struct Piece {
    reasoning: String,
    content: String,
    calls: Vec<ToolCall>,
    logprobs: Vec<ChatLogprob>,
    finish_reason: Option<&'static str>,
    stop_reason: Option<StopReason>,
}

impl Answer {
    /// An answer to `prompt`.
    pub(super) fn new(
        app: &App,
        prompt: &str,
        generate: &Generate,
        tools: Option<Tools>,
        prompt_top: Option<usize>,
    ) -> Self {
        let parallel = tools.as_ref().is_none_or(|tools| tools.parallel);
        let choice = Choice {
            splitter: ReasoningSplitter::new(prompt),
            parser: tools.map(|tools| ToolCallParser::new(tools.format, &tools.schemas)),
            parallel,
            called: false,
            stop_ids: generate.stop_ids.clone(),
            whole: Piece::default(),
        };
        Self {
            app: app.clone(),
            id: super::super::new_id("chatcmpl"),
            created: super::super::unix_time(),
            choices: vec![choice; generate.n],
            top: generate.logprobs,
            prompt_top,
            prompt_logprobs: None,
            usage: Usage::default(),
        }
    }

    /// Adds an event to the whole.
    pub(super) fn take(&mut self, event: Event) {
        if let Some((index, piece)) = self.piece(event) {
            self.choices[index].whole.append(piece);
        }
    }

    /// The whole answer.
    pub(super) fn whole(self) -> ChatResponse {
        let scored = self.top.is_some();
        let choice = |(index, choice): (usize, Choice)| {
            let piece = choice.whole;
            let nothing = piece.content.is_empty() && !(piece.calls.is_empty() && piece.reasoning.is_empty());
            ChatChoice {
                index,
                message: AssistantMessage {
                    role: "assistant",
                    content: (!nothing).then_some(piece.content),
                    reasoning_content: Some(piece.reasoning).filter(|text| !text.is_empty()),
                    tool_calls: piece.calls,
                },
                logprobs: scored.then_some(ChatLogprobs { content: piece.logprobs }),
                finish_reason: piece.finish_reason,
                stop_reason: piece.stop_reason,
            }
        };
        ChatResponse {
            id: self.id,
            object: "chat.completion",
            created: self.created,
            model: self.app.model_name().to_owned(),
            choices: self.choices.into_iter().enumerate().map(choice).collect(),
            usage: self.usage,
            prompt_logprobs: self.prompt_logprobs,
        }
    }

    /// What an event adds to which choice.
    fn piece(&mut self, event: Event) -> Option<(usize, Piece)> {
        match event {
            Event::Prompt { tokens, cached, logprobs, .. } => {
                self.usage.prompt(tokens, cached);
                if let (Some(top), Ok(tokenizer)) = (self.prompt_top, self.app.model.tokenizer()) {
                    self.prompt_logprobs = Some(prompt_logprobs(tokenizer, &logprobs, top));
                }
                None
            }
            Event::Delta(delta) => {
                if delta.token.is_some() {
                    self.usage.token();
                }
                let score = self.score(&delta);
                let index = delta.choice;
                let mut piece = self.choices.get_mut(index)?.push(delta);
                piece.logprobs.extend(score);
                Some((index, piece))
            }
            Event::Features(_) | Event::Done | Event::Failed(_) => None,
        }
    }

    /// The score of a token, unless it only ended the answer: its text is not part of the message.
    fn score(&self, delta: &Delta) -> Option<ChatLogprob> {
        let (score, top, tokenizer) = (delta.logprob.as_ref()?, self.top?, self.app.model.tokenizer().ok()?);
        let ends = matches!(delta.finish, Some(Finish::StopToken(id)) if id == score.token);
        (!ends).then(|| ChatLogprob::new(tokenizer, score, top))
    }
}

impl Choice {
    fn push(&mut self, delta: Delta) -> Piece {
        let mut piece = Piece::default();
        let split = self.splitter.push(&delta.text);
        self.split(&split, &mut piece);
        if let Some(finish) = delta.finish {
            let split = self.splitter.finish();
            self.split(&split, &mut piece);
            if let Some(parser) = &mut self.parser {
                let split = parser.finish();
                piece.content.push_str(&split.content);
                self.calls(split.calls, &mut piece);
            }
            let reason = finish::reason(&finish);
            piece.finish_reason = Some(if self.called && reason == "stop" { "tool_calls" } else { reason });
            piece.stop_reason = finish::stop_reason(finish, &self.stop_ids);
        }
        piece
    }

    fn split(&mut self, split: &Split, piece: &mut Piece) {
        piece.reasoning.push_str(&split.reasoning);
        let Some(parser) = &mut self.parser else {
            piece.content.push_str(&split.content);
            return;
        };
        let split = parser.push(&split.content);
        piece.content.push_str(&split.content);
        self.calls(split.calls, piece);
    }

    fn calls(&mut self, calls: Vec<CallDelta>, piece: &mut Piece) {
        let parallel = self.parallel;
        for call in calls.into_iter().filter(|call| parallel || call.index == 0) {
            // A call begins with its name.
            let begins = call.name.is_some();
            self.called = true;
            piece.calls.push(ToolCall {
                index: call.index,
                id: begins.then(call_id),
                kind: begins.then_some("function"),
                function: FunctionCall { name: call.name, arguments: call.arguments },
            });
        }
    }
}

/// Nine letters and digits: the one form that also Mistral's templates take back.
fn call_id() -> String {
    let mut id = uuid::Uuid::new_v4().simple().to_string();
    id.truncate(9);
    id
}

impl Piece {
    fn append(&mut self, new: Self) {
        self.reasoning.push_str(&new.reasoning);
        self.content.push_str(&new.content);
        for call in new.calls {
            match self.calls.iter_mut().find(|known| known.index == call.index) {
                Some(known) => known.function.arguments.push_str(&call.function.arguments),
                None => self.calls.push(call),
            }
        }
        self.logprobs.extend(new.logprobs);
        self.finish_reason = self.finish_reason.or(new.finish_reason);
        self.stop_reason = self.stop_reason.take().or(new.stop_reason);
    }

    fn is_empty(&self) -> bool {
        self.reasoning.is_empty()
            && self.content.is_empty()
            && self.calls.is_empty()
            && self.logprobs.is_empty()
            && self.finish_reason.is_none()
    }
}

/// The same answer in pieces.
pub(super) struct Streamed {
    answer: Answer,
    include_usage: bool,
}

impl Streamed {
    pub(super) fn new(answer: Answer, include_usage: bool) -> Self {
        Self { answer, include_usage }
    }

    fn chunk(&self, choices: Vec<ChunkChoice>, usage: Option<Usage>) -> String {
        let chunk = ChatChunk {
            id: self.answer.id.clone(),
            object: "chat.completion.chunk",
            created: self.answer.created,
            model: self.answer.app.model_name().to_owned(),
            choices,
            usage,
        };
        json(&chunk)
    }
}

impl Pieces for Streamed {
    fn begin(&mut self) -> Vec<String> {
        let first = |index| {
            let (role, content) = (Some("assistant"), Some(String::new()));
            let delta = MessageDelta { role, content, ..MessageDelta::default() };
            self.chunk(
                vec![ChunkChoice { index, delta, logprobs: None, finish_reason: None, stop_reason: None }],
                None,
            )
        };
        (0..self.answer.choices.len()).map(first).collect()
    }

    fn event(&mut self, _: usize, event: Event) -> Vec<String> {
        let Some((index, piece)) = self.answer.piece(event) else { return vec![] };
        if piece.is_empty() {
            return vec![];
        }
        let delta = MessageDelta {
            role: None,
            content: Some(piece.content).filter(|text| !text.is_empty()),
            reasoning_content: Some(piece.reasoning).filter(|text| !text.is_empty()),
            tool_calls: piece.calls,
        };
        let choice = ChunkChoice {
            index,
            delta,
            logprobs: self.answer.top.map(|_| ChatLogprobs { content: piece.logprobs }),
            finish_reason: piece.finish_reason,
            stop_reason: piece.stop_reason,
        };
        vec![self.chunk(vec![choice], None)]
    }

    fn end(&mut self) -> Vec<String> {
        if !self.include_usage {
            return vec![];
        }
        vec![self.chunk(vec![], Some(self.answer.usage))]
    }
}
