//! `/v1/embeddings`: the hidden state of a text's last token, at length 1.

use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};
use tread_core::engine::{Event, Request, Task};
use utoipa::ToSchema;

use super::App;
use super::error::ApiError;
use super::input::{Input, parse};
use super::prompt::TextInput;
use super::usage::Usage;

/// Most texts in one request, as at OpenAI.
const MOST_INPUTS: usize = 2048;

/// What to embed.
#[derive(Debug, Deserialize, ToSchema)]
pub(super) struct EmbeddingRequest {
    /// The model's name; it may be left out.
    model: Option<String>,
    /// A text, token ids, or several of either.
    input: TextInput,
    /// How the numbers are written.
    encoding_format: Option<EncodingFormat>,
    /// Keep only the first so many numbers, and bring them to length 1 again.
    dimensions: Option<u64>,
}

#[derive(Clone, Copy, Debug, Default, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
enum EncodingFormat {
    /// A list of numbers.
    #[default]
    Float,
    /// Little-endian f32 in Base64.
    Base64,
}

#[derive(Debug, Serialize, ToSchema)]
pub(super) struct EmbeddingResponse {
    object: &'static str,
    data: Vec<Embedding>,
    model: String,
    usage: Usage,
}

#[derive(Debug, Serialize, ToSchema)]
struct Embedding {
    object: &'static str,
    index: usize,
    embedding: Numbers,
}

#[derive(Debug, Serialize, ToSchema)]
#[serde(untagged)]
enum Numbers {
    Float(Vec<f32>),
    Base64(String),
}

/// Embed texts: the model's hidden state after each text's last token, at length 1.
#[utoipa::path(
    post,
    path = "/v1/embeddings",
    tag = "OpenAI",
    request_body = EmbeddingRequest,
    responses((status = 200, body = EmbeddingResponse), (status = "4XX", body = ApiError), (status = "5XX", body = ApiError))
)]
pub(super) async fn create(State(app): State<App>, Input(value): Input) -> Result<Response, ApiError> {
    let fields: EmbeddingRequest = parse(&value)?;
    drop(value);
    app.check_model(fields.model.as_deref())?;
    let graph = &app.model.graph;
    let Some(features) = graph.features else {
        return Err(ApiError::bad_request(format!("{} has no hidden state to embed with", app.model_name())));
    };
    let hidden = graph.value(features).width;
    let dimensions = match fields.dimensions {
        None => hidden,
        Some(n) => usize::try_from(n).ok().filter(|n| (1..=hidden).contains(n)).ok_or_else(|| {
            ApiError::param("dimensions", format!("dimensions is {n}, but must be from 1 to {hidden}"))
        })?,
    };
    let encoding = fields.encoding_format.unwrap_or_default();
    let prompts = app.blocking(move |app| fields.input.tokenize(app, "input", true, 0, MOST_INPUTS)).await?;
    let mut usage = Usage::default();
    let mut features: Vec<Option<Vec<f32>>> = vec![None; prompts.len()];
    let mut requests = prompts.into_iter().map(|p| Request { prompt: p.tokens, task: Task::Embed });
    // In portions, so that many texts leave room for others.
    let portion = app.options.limits.max_sequences;
    for features in features.chunks_mut(portion) {
        let mut events = app.submit(requests.by_ref().take(portion).collect())?;
        let mut open = features.len();
        while open > 0 {
            match events.next().await? {
                (index, Event::Features(values)) => features[index] = Some(values),
                (_, Event::Prompt { tokens, cached, .. }) => usage.prompt(tokens, cached),
                (_, Event::Done) => open -= 1,
                _ => {}
            }
        }
    }
    let embedding = |(index, values): (usize, Option<Vec<f32>>)| {
        let values = normalise(values.unwrap_or_default(), dimensions);
        let embedding = match encoding {
            EncodingFormat::Float => Numbers::Float(values),
            EncodingFormat::Base64 => {
                let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
                Numbers::Base64(STANDARD.encode(bytes))
            }
        };
        Embedding { object: "embedding", index, embedding }
    };
    let data = features.into_iter().enumerate().map(embedding).collect();
    Ok(Json(EmbeddingResponse { object: "list", data, model: app.model_name().to_owned(), usage })
        .into_response())
}

/// The first `dimensions` values at length 1.
fn normalise(mut values: Vec<f32>, dimensions: usize) -> Vec<f32> {
    values.truncate(dimensions);
    let length = values.iter().map(|&v| f64::from(v) * f64::from(v)).sum::<f64>().sqrt();
    if length > 0.0 {
        values.iter_mut().for_each(|v| *v = (f64::from(*v) / length) as f32);
    }
    values
}

#[cfg(test)]
mod tests {
    use super::normalise;

    #[test]
    fn embeddings_have_length_one() {
        assert_eq!(normalise(vec![3.0, -4.0], 2), [0.6, -0.8]);
        assert_eq!(normalise(vec![3.0, -4.0], 1), [1.0]);
        assert_eq!(normalise(vec![0.0, 0.0], 2), [0.0, 0.0]);
        let large = normalise(vec![1e30, 1e30], 2);
        assert!((large[0] - 0.5f32.sqrt()).abs() < 1e-6, "{large:?}");
    }
}
