//! `/v1/completions`: continues texts or token ids as they stand, or only scores them.

use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};
use tread_core::engine::{Delta, Event, PromptLogprobs as Scored, Request, Task};
use tread_core::sampling::TokenLogprob;
use utoipa::ToSchema;

use super::App;
use super::error::ApiError;
use super::finish::{self, StopReason};
use super::input::{Input, parse};
use super::logprobs::{CompletionLogprobs, PromptLogprobs, prompt_logprobs};
use super::params::{SamplingFields, check_logprobs};
use super::prompt::{Prompt, TextInput};
use super::stream::{self, Pieces, json};
use super::usage::Usage;

/// What to continue.
#[derive(Debug, Deserialize, ToSchema)]
pub(super) struct CompletionFields {
    /// The model's name; it may be left out.
    model: Option<String>,
    /// A text, token ids, or several of either.
    prompt: TextInput,
    /// Put the prompt in front of the answer, and its scores in front of the answer's.
    echo: Option<bool>,
    /// Score every token, with this many of the likeliest in its place.
    logprobs: Option<u32>,
    /// Put the tokens in front of the prompt that the model expects there [default: true].
    add_special_tokens: Option<bool>,
    /// Not supported beyond 1 (and `n`).
    best_of: Option<u32>,
    /// Not supported.
    suffix: Option<String>,
}

#[derive(Debug, Serialize, ToSchema)]
pub(super) struct CompletionResponse {
    id: String,
    object: &'static str,
    created: u64,
    model: String,
    choices: Vec<CompletionChoice>,
    #[serde(skip_serializing_if = "Option::is_none")]
    usage: Option<Usage>,
}

#[derive(Clone, Debug, Default, Serialize, ToSchema)]
struct CompletionChoice {
    index: usize,
    text: String,
    logprobs: Option<CompletionLogprobs>,
    finish_reason: Option<&'static str>,
    /// The stop string or token that ended it.
    stop_reason: Option<StopReason>,
    #[serde(skip_serializing_if = "Option::is_none")]
    prompt_logprobs: Option<PromptLogprobs>,
}

/// Continue a prompt, or score it.
///
/// With `echo`, `logprobs` and `max_tokens` 0, nothing is generated and every token of the prompt is scored.
#[utoipa::path(
    post,
    path = "/v1/completions",
    tag = "OpenAI",
    request_body = super::openapi::CompletionRequest,
    responses((status = 200, body = CompletionResponse), (status = "4XX", body = ApiError), (status = "5XX", body = ApiError))
)]
pub(super) async fn create(State(app): State<App>, Input(value): Input) -> Result<Response, ApiError> {
    let fields: CompletionFields = parse(&value)?;
    let sampling: SamplingFields = parse(&value)?;
    drop(value);
    app.check_model(fields.model.as_deref())?;
    let (streams, include_usage) = (sampling.streams(), sampling.includes_usage());
    let (requests, mut answer) = app.blocking(move |app| prepare(app, fields, &sampling)).await?;
    let count = requests.len();
    let mut events = app.submit(requests)?;
    if streams {
        let pieces = Streamed { answer, include_usage };
        return stream::answer(events, count, pieces).await;
    }
    let mut choices: Vec<_> = (0..count * answer.n).map(CompletionChoice::new).collect();
    let mut open = count;
    while open > 0 {
        let (index, event) = events.next().await?;
        open -= usize::from(matches!(event, Event::Done));
        for piece in answer.pieces(index, event) {
            choices[piece.index].append(piece);
        }
    }
    let usage = Some(answer.usage);
    Ok(Json(answer.response(choices, usage)).into_response())
}

fn prepare(
    app: &App,
    fields: CompletionFields,
    sampling: &SamplingFields,
) -> Result<(Vec<Request>, Answer), ApiError> {
    if fields.suffix.as_ref().is_some_and(|suffix| !suffix.is_empty()) {
        return Err(ApiError::param("suffix", "suffix is not supported: this server only continues texts"));
    }
    let mut generate = sampling.generate(app)?;
    if fields.best_of.is_some_and(|best_of| best_of as usize != generate.n) {
        return Err(ApiError::param("best_of", "best_of is not supported: ask for n answers and choose"));
    }
    let top = fields.logprobs.map(|count| check_logprobs("logprobs", count)).transpose()?;
    let prompt_top =
        sampling.prompt_logprobs.map(|count| check_logprobs("prompt_logprobs", count)).transpose()?;
    let echo = fields.echo.unwrap_or(false);
    generate.logprobs = top;
    let scored = [top.filter(|_| echo), prompt_top].into_iter().flatten().max();
    generate.prompt_logprobs = scored.map(|top| Scored { from: 0, top });
    if let Some((spec, param)) = sampling.structure()? {
        generate.grammar = Some(app.grammars()?.compile(&spec).map_err(|e| ApiError::from(e).about(param))?);
    }
    let room = usize::from(generate.max_tokens > 0);
    let add_special_tokens = fields.add_special_tokens.unwrap_or(true);
    let prompts = fields.prompt.tokenize(app, "prompt", add_special_tokens, room, app.engine.capacity())?;
    let request = |prompt: &Prompt| Request {
        prompt: prompt.tokens.clone(),
        task: Task::Generate(Box::new(generate.clone())),
    };
    let requests = prompts.iter().map(request).collect();
    let n = generate.n;
    let offsets = vec![0; prompts.len() * n];
    let id = super::new_id("cmpl");
    let created = super::unix_time();
    let answer = Answer {
        app: app.clone(),
        id,
        created,
        prompts,
        n,
        echo,
        top,
        prompt_top,
        special: !generate.skip_special,
        stop_ids: generate.stop_ids,
        offsets,
        usage: Usage::default(),
    };
    Ok((requests, answer))
}

/// What turns events into pieces of the choices.
struct Answer {
    app: App,
    id: String,
    created: u64,
    prompts: Vec<Prompt>,
    n: usize,
    echo: bool,
    /// Likeliest tokens asked for.
    top: Option<usize>,
    prompt_top: Option<usize>,
    /// Whether special tokens are in the answers' text.
    special: bool,
    stop_ids: Vec<u32>,
    /// Where the next token of each choice starts, in characters.
    offsets: Vec<usize>,
    usage: Usage,
}

impl CompletionChoice {
    fn new(index: usize) -> Self {
        Self { index, ..Self::default() }
    }

    fn append(&mut self, piece: Self) {
        self.text.push_str(&piece.text);
        match (&mut self.logprobs, piece.logprobs) {
            (Some(all), Some(new)) => all.append(new),
            (all, new) => *all = all.take().or(new),
        }
        self.finish_reason = self.finish_reason.or(piece.finish_reason);
        self.stop_reason = self.stop_reason.take().or(piece.stop_reason);
        self.prompt_logprobs = self.prompt_logprobs.take().or(piece.prompt_logprobs);
    }
}

impl Answer {
    fn response(&self, choices: Vec<CompletionChoice>, usage: Option<Usage>) -> CompletionResponse {
        CompletionResponse {
            id: self.id.clone(),
            object: "text_completion",
            created: self.created,
            model: self.app.model_name().to_owned(),
            choices,
            usage,
        }
    }

    /// What an event adds to the choices of prompt `index`.
    fn pieces(&mut self, index: usize, event: Event) -> Vec<CompletionChoice> {
        match event {
            Event::Prompt { tokens, cached, logprobs, .. } => {
                self.usage.prompt(tokens, cached);
                if !self.echo && self.prompt_top.is_none() {
                    return vec![];
                }
                let piece = self.prompt(index, &logprobs);
                let numbers = index * self.n..(index + 1) * self.n;
                numbers.map(|index| CompletionChoice { index, ..piece.clone() }).collect()
            }
            Event::Delta(delta) => vec![self.delta(index, delta)],
            Event::Features(_) | Event::Done | Event::Failed(_) => vec![],
        }
    }

    /// What stands before the answers to prompt `index`.
    fn prompt(&mut self, index: usize, scores: &[Option<TokenLogprob>]) -> CompletionChoice {
        let mut piece = CompletionChoice::default();
        let Ok(tokenizer) = self.app.model.tokenizer() else { return piece };
        let prompt = &self.prompts[index];
        if self.echo {
            let decoded = || tokenizer.decode(&prompt.tokens, false).unwrap_or_default();
            piece.text = prompt.text.clone().unwrap_or_else(decoded);
            if let Some(top) = self.top {
                let (mut list, mut offset) = (CompletionLogprobs::default(), 0);
                // A text has no such tokens in front of it as the tokenizer adds.
                let special = prompt.text.is_none();
                for (&token, score) in prompt.tokens.iter().zip(scores) {
                    offset = list.push(tokenizer, token, score.as_ref(), top, offset, special);
                }
                piece.logprobs = Some(list);
            }
            self.offsets[index * self.n..][..self.n].fill(piece.text.chars().count());
        }
        piece.prompt_logprobs = self.prompt_top.map(|top| prompt_logprobs(tokenizer, scores, top));
        piece
    }

    fn delta(&mut self, prompt: usize, delta: Delta) -> CompletionChoice {
        let index = prompt * self.n + delta.choice;
        let mut piece = CompletionChoice::new(index);
        piece.text = delta.text;
        if delta.token.is_some() {
            self.usage.token();
        }
        if let (Some(score), Some(top), Ok(tokenizer)) =
            (&delta.logprob, self.top, self.app.model.tokenizer())
        {
            let mut list = CompletionLogprobs::default();
            let offset = &mut self.offsets[index];
            *offset = list.push(tokenizer, score.token, Some(score), top, *offset, self.special);
            piece.logprobs = Some(list);
        }
        if let Some(finish) = delta.finish {
            piece.finish_reason = Some(finish::reason(&finish));
            piece.stop_reason = finish::stop_reason(finish, &self.stop_ids);
        }
        piece
    }
}

struct Streamed {
    answer: Answer,
    include_usage: bool,
}

impl Pieces for Streamed {
    fn begin(&mut self) -> Vec<String> {
        vec![]
    }

    fn event(&mut self, index: usize, event: Event) -> Vec<String> {
        let pieces = self.answer.pieces(index, event);
        let silent = |piece: &CompletionChoice| {
            piece.text.is_empty()
                && piece.logprobs.is_none()
                && piece.prompt_logprobs.is_none()
                && piece.finish_reason.is_none()
        };
        pieces.into_iter().filter(|piece| !silent(piece)).map(|piece| self.chunk(vec![piece], None)).collect()
    }

    fn end(&mut self) -> Vec<String> {
        if !self.include_usage {
            return vec![];
        }
        vec![self.chunk(vec![], Some(self.answer.usage))]
    }
}

impl Streamed {
    fn chunk(&self, choices: Vec<CompletionChoice>, usage: Option<Usage>) -> String {
        json(&self.answer.response(choices, usage))
    }
}
