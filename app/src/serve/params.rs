//! The fields of a request that say how an answer is generated; both kinds of completion share them.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::Value;
use tread_core::engine::Generate;
use tread_core::grammar::GrammarSpec;
use tread_core::sampling::{Dry, SamplingParams};
use utoipa::ToSchema;

use super::App;
use super::error::ApiError;

/// Most stop strings, biases and the like in one request: each costs time at every token.
const MOST_ITEMS: usize = 256;
/// Most bytes of all stop strings of a request: they are copied for every sequence, and looked for at every token.
const MOST_STOP: usize = 16 << 10;
/// Longest grammar, in bytes; a second or two for the worst of them.
const MOST_GRAMMAR: usize = 16 << 10;
/// Most likely tokens that can be asked for beside the chosen one.
pub(super) const MOST_LOGPROBS: usize = 20;

/// How an answer is generated: OpenAI's fields, and below them those of vLLM and llama.cpp. What is left out is as the
/// model suggests.
#[derive(Debug, Default, Deserialize, ToSchema)]
pub(super) struct SamplingFields {
    /// Most tokens of the answer [default: until the context is full].
    pub(super) max_tokens: Option<u64>,
    /// The same; counts before `max_tokens`.
    pub(super) max_completion_tokens: Option<u64>,
    /// Answers to the same prompt.
    n: Option<u32>,
    /// Send the answer in pieces, as server-sent events.
    pub(super) stream: Option<bool>,
    /// What else the stream brings.
    pub(super) stream_options: Option<StreamOptions>,
    /// The answer ends before the first of these.
    stop: Option<OneOrMany>,
    /// 0 always takes the likeliest token.
    temperature: Option<f32>,
    /// Choose among the likeliest tokens that together have this probability.
    top_p: Option<f32>,
    /// Makes tokens less likely the more often the answer has them.
    frequency_penalty: Option<f32>,
    /// Makes tokens less likely that the answer has.
    presence_penalty: Option<f32>,
    /// Added to the logits of tokens, by id.
    logit_bias: Option<BTreeMap<String, f32>>,
    /// Same seed, same answer, whatever else the server does. Answer i of `n` has seed + i.
    seed: Option<i64>,
    /// What the answer looks like.
    response_format: Option<ResponseFormat>,

    /// Choose among this many of the likeliest tokens; 0 or -1: among all.
    top_k: Option<i64>,
    /// Choose among tokens at least this probable relative to the likeliest.
    min_p: Option<f32>,
    /// Choose among the most typical tokens that together have this probability.
    typical_p: Option<f32>,
    /// Above 1 makes recent tokens less likely, those of the prompt too.
    repetition_penalty: Option<f32>,
    /// Tokens that end the answer beside the model's own.
    stop_token_ids: Option<Vec<u32>>,
    /// Stop tokens are not chosen before this many tokens are.
    min_tokens: Option<u64>,
    /// Go on after the model's stop tokens.
    ignore_eos: Option<bool>,
    /// Keep the stop string in the answer.
    include_stop_str_in_output: Option<bool>,
    /// Leave special tokens out of the answer [default: true].
    skip_special_tokens: Option<bool>,
    /// Score the prompt's tokens too, with this many of the likeliest instead.
    pub(super) prompt_logprobs: Option<u32>,
    /// Penalise repeated sequences (DRY); 0 is off.
    dry_multiplier: Option<f32>,
    /// By how much the penalty grows with each repeated token.
    dry_base: Option<f32>,
    /// Repetitions up to this length are free.
    dry_allowed_length: Option<u32>,
    /// Tokens looked back; -1: all.
    dry_penalty_last_n: Option<i64>,
    /// Repetitions do not reach across these.
    dry_sequence_breakers: Option<Vec<String>>,
    /// JSON that this JSON Schema describes.
    #[schema(value_type = Option<Object>)]
    guided_json: Option<Value>,
    /// Text that this regular expression matches.
    guided_regex: Option<String>,
    /// One of these texts.
    guided_choice: Option<Vec<String>>,
    /// Text of this grammar, in llguidance's Lark.
    guided_grammar: Option<String>,
    /// Newer spelling of the `guided_` fields.
    structured_outputs: Option<StructuredOutputs>,
}

/// A string or several.
#[derive(Clone, Debug, Deserialize, ToSchema)]
#[serde(untagged, expecting = "expected a string or a list of strings")]
pub(super) enum OneOrMany {
    /// One.
    One(String),
    /// Several.
    Many(Vec<String>),
}

/// What else a stream brings.
#[derive(Clone, Copy, Debug, Default, Deserialize, ToSchema)]
pub(super) struct StreamOptions {
    /// A last piece with the numbers of tokens.
    include_usage: Option<bool>,
}

/// What an answer looks like.
#[derive(Clone, Debug, Deserialize, ToSchema)]
#[serde(tag = "type", rename_all = "snake_case")]
enum ResponseFormat {
    /// Anything.
    Text,
    /// A JSON object.
    JsonObject,
    /// JSON that a schema describes.
    JsonSchema {
        /// The schema and its name.
        json_schema: NamedSchema,
    },
}

/// A JSON Schema.
#[derive(Clone, Debug, Deserialize, ToSchema)]
struct NamedSchema {
    /// The schema.
    #[schema(value_type = Object)]
    schema: Value,
}

/// vLLM's newer way to ask for structure: one of these.
#[derive(Clone, Debug, Default, Deserialize, ToSchema)]
struct StructuredOutputs {
    /// JSON that this JSON Schema describes.
    #[schema(value_type = Option<Object>)]
    json: Option<Value>,
    /// Any JSON object.
    json_object: Option<bool>,
    /// Text that this regular expression matches.
    regex: Option<String>,
    /// One of these texts.
    choice: Option<Vec<String>>,
    /// Text of this grammar.
    grammar: Option<String>,
}

impl SamplingFields {
    /// Whether the answer comes in pieces.
    pub(super) fn streams(&self) -> bool {
        self.stream.unwrap_or(false)
    }

    /// Whether the stream ends with the numbers of tokens.
    pub(super) fn includes_usage(&self) -> bool {
        self.stream_options.and_then(|options| options.include_usage).unwrap_or(false)
    }

    /// Answers to each prompt.
    pub(super) fn n(&self, app: &App) -> Result<usize, ApiError> {
        let n = self.n.unwrap_or(1) as usize;
        let most = app.options.limits.max_sequences;
        if (1..=most).contains(&n) {
            return Ok(n);
        }
        Err(ApiError::param(
            "n",
            format!("n is {n}, but must be from 1 to {most} on this server (--max-sequences)"),
        ))
    }

    /// What the engine is asked to do, but for grammar and logprobs.
    pub(super) fn generate(&self, app: &App) -> Result<Generate, ApiError> {
        let max_tokens = self.max_completion_tokens.or(self.max_tokens).map_or(usize::MAX, saturate);
        let min_tokens = saturate(self.min_tokens.unwrap_or(0));
        if min_tokens > max_tokens {
            return Err(ApiError::param(
                "min_tokens",
                format!("min_tokens is {min_tokens}, more than max_tokens, which is {max_tokens}"),
            ));
        }
        let stop = match &self.stop {
            None => vec![],
            Some(OneOrMany::One(one)) => vec![one.clone()],
            Some(OneOrMany::Many(many)) => many.clone(),
        };
        few("stop", stop.len())?;
        let bytes: usize = stop.iter().map(String::len).sum();
        if bytes > MOST_STOP {
            return Err(ApiError::param(
                "stop",
                format!("the stop strings have {bytes} bytes, but must have at most {MOST_STOP}"),
            ));
        }
        if stop.iter().any(String::is_empty) {
            return Err(ApiError::param("stop", "a stop string is empty: leave it out"));
        }
        let stop_ids = self.stop_token_ids.clone().unwrap_or_default();
        few("stop_token_ids", stop_ids.len())?;
        stop_ids.iter().try_for_each(|&id| app.check_token("stop_token_ids", id))?;
        Ok(Generate {
            sampling: self.sampling(app)?,
            n: self.n(app)?,
            max_tokens,
            min_tokens,
            ignore_eos: self.ignore_eos.unwrap_or(false),
            stop_ids,
            stop,
            include_stop: self.include_stop_str_in_output.unwrap_or(false),
            skip_special: self.skip_special_tokens.unwrap_or(true),
            ..Generate::default()
        })
    }

    fn sampling(&self, app: &App) -> Result<SamplingParams, ApiError> {
        let base = &app.model.sampling;
        let p = |name: &str, value: Option<f32>, default: f32, ok: fn(f32) -> bool, range: &str| {
            let value = value.unwrap_or(default);
            if ok(value) && value.is_finite() {
                return Ok(value);
            }
            Err(ApiError::param(name, format!("{name} is {value}, but must be {range}")))
        };
        let penalty = |v: f32| (-2.0..=2.0).contains(&v);
        let share = |v: f32| v > 0.0 && v <= 1.0;
        let top_k = match self.top_k {
            None => base.top_k,
            Some(k @ -1..) => usize::try_from(k).unwrap_or(0),
            Some(k) => {
                return Err(ApiError::param(
                    "top_k",
                    format!("top_k is {k}, but must be a number of tokens, or 0 or -1 for all"),
                ));
            }
        };
        Ok(SamplingParams {
            temperature: p("temperature", self.temperature, base.temperature, |v| v >= 0.0, "0 or more")?,
            top_k,
            top_p: p("top_p", self.top_p, base.top_p, share, "above 0 and at most 1")?,
            min_p: p("min_p", self.min_p, base.min_p, |v| (0.0..=1.0).contains(&v), "from 0 to 1")?,
            typical_p: p("typical_p", self.typical_p, base.typical_p, share, "above 0 and at most 1")?,
            repetition_penalty: p(
                "repetition_penalty",
                self.repetition_penalty,
                base.repetition_penalty,
                |v| v > 0.0,
                "above 0",
            )?,
            frequency_penalty: p(
                "frequency_penalty",
                self.frequency_penalty,
                base.frequency_penalty,
                penalty,
                "from -2 to 2",
            )?,
            presence_penalty: p(
                "presence_penalty",
                self.presence_penalty,
                base.presence_penalty,
                penalty,
                "from -2 to 2",
            )?,
            // Negative seeds are as good as others.
            seed: self.seed.map(i64::cast_unsigned).or(base.seed),
            logit_bias: self.logit_bias(app)?,
            dry: self.dry(app)?,
            ..base.clone()
        })
    }

    fn logit_bias(&self, app: &App) -> Result<Vec<(u32, f32)>, ApiError> {
        let Some(map) = &self.logit_bias else { return Ok(app.model.sampling.logit_bias.clone()) };
        few("logit_bias", map.len())?;
        let bias = |(id, &bias): (&String, &f32)| {
            let token = id.parse().map_err(|_| {
                ApiError::param("logit_bias", format!("logit_bias has the key `{id}`, which is no token id"))
            })?;
            app.check_token("logit_bias", token)?;
            if !(-100.0..=100.0).contains(&bias) {
                return Err(ApiError::param(
                    "logit_bias",
                    format!("the bias of token {id} is {bias}, but must be from -100 to 100"),
                ));
            }
            Ok((token, bias))
        };
        map.iter().map(bias).collect()
    }

    fn dry(&self, app: &App) -> Result<Dry, ApiError> {
        let mut dry = app.model.sampling.dry.clone();
        let positive = |name: &str, value: f32, least: f32| {
            if value >= least && value.is_finite() {
                return Ok(value);
            }
            Err(ApiError::param(name, format!("{name} is {value}, but must be {least} or more")))
        };
        if let Some(multiplier) = self.dry_multiplier {
            dry.multiplier = positive("dry_multiplier", multiplier, 0.0)?;
        }
        if let Some(base) = self.dry_base {
            dry.base = positive("dry_base", base, 1.0)?;
        }
        if let Some(length) = self.dry_allowed_length {
            dry.allowed_length = length as usize;
        }
        if let Some(window) = self.dry_penalty_last_n {
            dry.window = usize::try_from(window).unwrap_or(usize::MAX);
        }
        if let Some(breakers) = &self.dry_sequence_breakers {
            few("dry_sequence_breakers", breakers.len())?;
            let breakers: Vec<&str> = breakers.iter().map(String::as_str).collect();
            dry.breakers = app.model.tokenizer()?.tokens_containing(&breakers);
        }
        Ok(dry)
    }

    /// The structure that is asked for, and by which field.
    pub(super) fn structure(&self) -> Result<Option<(GrammarSpec, &'static str)>, ApiError> {
        let newer = self.structured_outputs.clone().unwrap_or_default();
        let format = match &self.response_format {
            None | Some(ResponseFormat::Text) => None,
            Some(ResponseFormat::JsonObject) => Some(GrammarSpec::JsonObject),
            Some(ResponseFormat::JsonSchema { json_schema }) => {
                Some(schema(&json_schema.schema, "response_format")?)
            }
        };
        let json = |value: &Option<Value>, param| value.as_ref().map(|v| schema(v, param)).transpose();
        let found = [
            (format, "response_format"),
            (json(&self.guided_json, "guided_json")?, "guided_json"),
            (self.guided_regex.clone().map(GrammarSpec::Regex), "guided_regex"),
            (self.guided_choice.clone().map(GrammarSpec::Choice), "guided_choice"),
            (self.guided_grammar.clone().map(GrammarSpec::Lark), "guided_grammar"),
            (json(&newer.json, "structured_outputs.json")?, "structured_outputs"),
            (newer.json_object.unwrap_or(false).then_some(GrammarSpec::JsonObject), "structured_outputs"),
            (newer.regex.map(GrammarSpec::Regex), "structured_outputs"),
            (newer.choice.map(GrammarSpec::Choice), "structured_outputs"),
            (newer.grammar.map(GrammarSpec::Lark), "structured_outputs"),
        ];
        let mut found = found.into_iter().filter_map(|(spec, param)| spec.map(|spec| (spec, param)));
        let first = found.next();
        if let (Some((_, a)), Some((_, b))) = (&first, found.next()) {
            return Err(ApiError::param(
                b,
                format!("{a} and {b} both say what the answer looks like: send one"),
            ));
        }
        if let Some((GrammarSpec::Lark(grammar), param)) = &first
            && grammar.len() > MOST_GRAMMAR
        {
            let message = format!(
                "the grammar has {} bytes, but must have at most {MOST_GRAMMAR}: compiling it may take the square of that",
                grammar.len()
            );
            return Err(ApiError::param(*param, message));
        }
        Ok(first)
    }
}

/// A schema as JSON, or as text that holds it.
fn schema(value: &Value, param: &str) -> Result<GrammarSpec, ApiError> {
    let schema = match value {
        Value::String(text) => serde_json::from_str(text)
            .map_err(|error| ApiError::param(param, format!("{param} is not valid JSON: {error}")))?,
        value => value.clone(),
    };
    Ok(GrammarSpec::JsonSchema(schema))
}

fn few(param: &str, count: usize) -> Result<(), ApiError> {
    if count > MOST_ITEMS {
        return Err(ApiError::param(
            param,
            format!("{param} has {count} entries, but {MOST_ITEMS} are the most"),
        ));
    }
    Ok(())
}

fn saturate(tokens: u64) -> usize {
    usize::try_from(tokens).unwrap_or(usize::MAX)
}

/// Checks how many likely tokens are asked for.
pub(super) fn check_logprobs(param: &str, count: u32) -> Result<usize, ApiError> {
    let count = count as usize;
    if count > MOST_LOGPROBS {
        return Err(ApiError::param(
            param,
            format!("{param} is {count}, but must be at most {MOST_LOGPROBS}"),
        ));
    }
    Ok(count)
}
