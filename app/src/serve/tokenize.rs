//! `/tokenize` and `/detokenize`, in vLLM's shapes.

use axum::Json;
use axum::extract::State;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::ToSchema;

use super::App;
use super::chat;
use super::error::ApiError;
use super::input::{Input, parse};

/// A text or a conversation.
#[derive(Debug, Deserialize, ToSchema)]
pub(super) struct TokenizeFields {
    /// The text; or else `messages` and what a chat has.
    prompt: Option<String>,
    /// Put the tokens in front of the text that the model expects there [default: true; never before a conversation].
    add_special_tokens: Option<bool>,
    /// Also return the tokens' texts.
    return_token_strs: Option<bool>,
    model: Option<String>,
}

#[derive(Debug, Serialize, ToSchema)]
pub(super) struct TokenizeResponse {
    count: usize,
    /// Most tokens of prompt and answer together.
    max_model_len: usize,
    tokens: Vec<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    token_strs: Option<Vec<String>>,
}

/// The tokens of a text, or of a conversation as the model's template writes it.
#[utoipa::path(
    post,
    path = "/tokenize",
    tag = "Tokenizer",
    request_body = TokenizeFields,
    responses((status = 200, body = TokenizeResponse), (status = "4XX", body = ApiError))
)]
pub(super) async fn tokenize(
    State(app): State<App>,
    Input(value): Input,
) -> Result<Json<TokenizeResponse>, ApiError> {
    app.blocking(move |app| tokens(app, &value)).await.map(Json)
}

fn tokens(app: &App, value: &Value) -> Result<TokenizeResponse, ApiError> {
    let fields: TokenizeFields = parse(value)?;
    app.check_model(fields.model.as_deref())?;
    let tokenizer = app.model.tokenizer()?;
    let tokens = match fields.prompt {
        Some(text) => tokenizer.encode(&text, fields.add_special_tokens.unwrap_or(true))?,
        None if value.get("messages").is_some() => {
            tokenizer.encode(&chat::prompt_text(app, value)?, false)?
        }
        None => return Err(ApiError::param("prompt", "send `prompt`, or `messages`")),
    };
    let text =
        |&id: &u32| String::from_utf8_lossy(&tokenizer.token_bytes(id).unwrap_or_default()).into_owned();
    Ok(TokenizeResponse {
        count: tokens.len(),
        max_model_len: app.options.limits.context_length,
        token_strs: fields.return_token_strs.unwrap_or(false).then(|| tokens.iter().map(text).collect()),
        tokens,
    })
}

/// Token ids.
#[derive(Debug, Deserialize, ToSchema)]
pub(super) struct DetokenizeRequest {
    /// The ids.
    tokens: Vec<u32>,
    /// The model's name; it may be left out.
    model: Option<String>,
}

#[derive(Debug, Serialize, ToSchema)]
pub(super) struct DetokenizeResponse {
    prompt: String,
}

/// The text of tokens, special ones included.
#[utoipa::path(
    post,
    path = "/detokenize",
    tag = "Tokenizer",
    request_body = DetokenizeRequest,
    responses((status = 200, body = DetokenizeResponse), (status = "4XX", body = ApiError))
)]
pub(super) async fn detokenize(
    State(app): State<App>,
    Input(value): Input,
) -> Result<Json<DetokenizeResponse>, ApiError> {
    let fields: DetokenizeRequest = parse(&value)?;
    app.check_model(fields.model.as_deref())?;
    fields.tokens.iter().try_for_each(|&id| app.check_token("tokens", id))?;
    app.blocking(move |app| {
        let prompt = app.model.tokenizer()?.decode(&fields.tokens, false)?;
        Ok(Json(DetokenizeResponse { prompt }))
    })
    .await
}
