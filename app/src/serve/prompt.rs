//! Texts and token ids as prompts.

use serde::Deserialize;
use utoipa::ToSchema;

use super::App;
use super::error::ApiError;

/// A text, token ids, or several of either.
#[derive(Clone, Debug, Deserialize, ToSchema)]
#[serde(
    untagged,
    expecting = "expected a string, a list of strings, a list of token ids, or a list of such lists"
)]
pub(super) enum TextInput {
    /// One text.
    Text(String),
    /// Several texts.
    Texts(Vec<String>),
    /// One prompt's token ids.
    Tokens(Vec<u32>),
    /// Several prompts' token ids.
    TokenLists(Vec<Vec<u32>>),
}

/// A prompt ready for the engine.
#[derive(Debug)]
pub(super) struct Prompt {
    /// Its text, where it came as one.
    pub(super) text: Option<String>,
    pub(super) tokens: Vec<u32>,
}

impl TextInput {
    /// The prompts, each of which fits the context with `room` more tokens. `param` is where they stand in the request.
    /// More than `most` are refused before anything is made of them: a million fit into a body, and each would become a
    /// request with all its parameters.
    pub(super) fn tokenize(
        self,
        app: &App,
        param: &str,
        add_special_tokens: bool,
        room: usize,
        most: usize,
    ) -> Result<Vec<Prompt>, ApiError> {
        let count = self.count();
        if count > most {
            app.metrics.rejected("too_many_sequences");
            let message =
                format!("`{param}` has {count} entries, but this server takes at most {most}: send fewer");
            return Err(ApiError::param(param, message).code("too_many_sequences"));
        }
        let text = |text: String| -> Result<Prompt, ApiError> {
            check_length(app, param, &text)?;
            let tokens = app.model.tokenizer()?.encode(&text, add_special_tokens)?;
            Ok(Prompt { text: Some(text), tokens })
        };
        let ids = |tokens| Prompt { text: None, tokens };
        let prompts = match self {
            Self::Text(one) => vec![text(one)?],
            Self::Texts(texts) => texts.into_iter().map(text).collect::<Result<_, _>>()?,
            Self::Tokens(tokens) => vec![ids(tokens)],
            Self::TokenLists(lists) => lists.into_iter().map(ids).collect(),
        };
        if prompts.is_empty() {
            return Err(ApiError::param(
                param,
                format!("`{param}` is an empty list: send at least one prompt"),
            ));
        }
        prompts.iter().try_for_each(|prompt| check(app, param, &prompt.tokens, room))?;
        Ok(prompts)
    }

    fn count(&self) -> usize {
        match self {
            Self::Text(_) | Self::Tokens(_) => 1,
            Self::Texts(texts) => texts.len(),
            Self::TokenLists(lists) => lists.len(),
        }
    }
}

/// Refuses texts that are too long whatever their tokens are: to find the tokens of megabytes takes seconds.
pub(super) fn check_length(app: &App, param: &str, text: &str) -> Result<(), ApiError> {
    let (least, context) = (text.len() / app.longest_token(), app.options.limits.context_length);
    if least <= context {
        return Ok(());
    }
    let message = format!(
        "the prompt has more than {least} tokens, but the context of this server holds {context}: shorten it"
    );
    Err(ApiError::param(param, message).code("context_length_exceeded"))
}

/// Refuses prompts that cannot be computed, or that leave no room for an answer.
pub(super) fn check(app: &App, param: &str, tokens: &[u32], room: usize) -> Result<(), ApiError> {
    let (length, context) = (tokens.len(), app.options.limits.context_length);
    if length == 0 {
        return Err(ApiError::param(param, format!("`{param}` has no tokens; send at least one")));
    }
    if length + room > context {
        let message = format!(
            "the prompt has {length} tokens, but the context of this server holds {context}{}: shorten it",
            if room > 0 { " with the answer" } else { "" }
        );
        return Err(ApiError::param(param, message).code("context_length_exceeded"));
    }
    tokens.iter().try_for_each(|&token| app.check_token(param, token))
}
