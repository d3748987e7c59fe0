//! Structured output: a grammar says which tokens may come next (llguidance).

mod compiler;
mod limits;
mod mask;
mod source;
mod vocabulary;
mod wait;

use std::sync::Arc;

use llguidance::Matcher;
use llguidance::api::StopReason;

pub use compiler::GrammarCompiler;
pub(crate) use compiler::{lark_string, with_bounded_space};
pub(crate) use limits::check_schema;
pub use mask::TokenMask;
pub use source::{GrammarSource, GrammarSpec};

use self::vocabulary::Vocabulary;
use self::wait::{Passed, Wait};
use crate::{Error, Result};

/// A grammar in the middle of a text. A clone goes on independently.
#[derive(Clone)]
pub struct Grammar {
    matcher: Matcher,
    vocabulary: Arc<Vocabulary>,
    /// What the text must contain before the grammar starts.
    wait: Option<Wait>,
    source: Arc<GrammarSource>,
}

impl Grammar {
    /// The same grammar for what follows `marker`: until the text contains it, every token but the model's stop
    /// tokens is allowed; then white space is skipped, and the grammar starts. For answers that begin with reasoning.
    #[must_use]
    pub fn after(self, marker: &str) -> Self {
        let wait = Some(Wait::new(marker, &self.vocabulary));
        let source = GrammarSource { after: Some(marker.to_owned()), ..(*self.source).clone() };
        Self { wait, source: Arc::new(source), ..self }
    }

    /// What it was compiled from.
    pub fn source(&self) -> &GrammarSource {
        &self.source
    }

    /// The tokens that may come next; where the text may end, the model's stop tokens are among them.
    ///
    /// # Errors
    /// [`Error::Config`] when the grammar grows beyond what can be computed.
    pub fn mask(&mut self) -> Result<TokenMask> {
        if let Some(wait) = &self.wait
            && wait.for_marker()
        {
            return Ok(wait.mask(&self.vocabulary));
        }
        let mut mask =
            self.matcher.compute_mask_or_eos().map(TokenMask::new).map_err(|error| failed(&error))?;
        if self.wait.as_ref().is_some_and(Wait::skips_space) {
            mask.allow(&self.vocabulary.spaces);
        }
        Ok(mask)
    }

    /// Goes on past `token`, which the mask allowed.
    ///
    /// # Errors
    /// As [`Grammar::mask`], and when the token was not allowed.
    pub fn accept(&mut self, token: u32) -> Result<()> {
        if let Some(wait) = &mut self.wait {
            match wait.pass(token, &self.vocabulary) {
                Passed::Waiting => return Ok(()),
                Passed::Refused => return Err(refused(token)),
                Passed::Over => self.wait = None,
            }
        }
        if self.is_complete() {
            return if self.vocabulary.stops.allows(token) { Ok(()) } else { Err(refused(token)) };
        }
        match self.matcher.try_consume_tokens(&[token]) {
            Ok(1) => Ok(()),
            Ok(_) => Err(refused(token)),
            Err(error) => Err(failed(&error)),
        }
    }

    /// Whether nothing more can come: the text is complete.
    pub fn is_complete(&self) -> bool {
        let ended = matches!(self.matcher.stop_reason(), StopReason::NoExtension | StopReason::EndOfSentence);
        self.wait.is_none() && ended
    }
}

impl std::fmt::Debug for Grammar {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let state = self.matcher.stop_reason();
        f.debug_struct("Grammar").field("state", &state).field("wait", &self.wait).finish_non_exhaustive()
    }
}

fn refused(token: u32) -> Error {
    Error::Config(format!("the grammar does not allow token {token} here"))
}

fn failed(error: &impl std::fmt::Display) -> Error {
    let error = error.to_string();
    let message = match brief(&error) {
        "NoExtensionBias" => {
            "no token of the model's vocabulary can continue the text as the grammar wants it"
        }
        message => message,
    };
    Error::Config(format!("the grammar cannot be followed further: {message}"))
}

/// llguidance's message without the dumps of its state it may add; it may quote a whole grammar, too.
fn brief(message: &str) -> &str {
    let message = message.split("\n<").next().unwrap_or(message).trim_end();
    &message[..message.floor_char_boundary(MAX_MESSAGE)]
}

const MAX_MESSAGE: usize = 1000;

#[cfg(test)]
pub(crate) mod tests;
