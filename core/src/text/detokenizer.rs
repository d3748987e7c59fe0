//! Streaming detokenizer: tokens in, text ready to show out.

use super::Tokenizer;
use crate::Result;

/// Turns tokens into text as they come. The pieces together are what decoding all tokens at once gives.
///
/// A character may be spread over several tokens, and a decoder may treat a token by its neighbours (a leading
/// space at the start of a text, runs of byte tokens). So it decodes a short window: the tokens of the last piece
/// shown, then those still undecided. The work for a token does not grow with the text.
#[derive(Clone, Debug)]
pub struct Detokenizer {
    skip_special: bool,
    /// Context tokens, then pending ones.
    window: Vec<u32>,
    /// How many of `window` are context.
    context: usize,
    /// Bytes of the window's text already given out.
    shown: usize,
}

/// An unfinished character decodes to at most this many U+FFFD (one a byte, and the fourth completes it).
const UNFINISHED: usize = 3;
/// Tokens a window may reach before it is cut to half, for streams that never become text.
const WINDOW: usize = 32;

impl Detokenizer {
    /// A detokenizer at the start of a text. `skip_special` leaves special tokens out.
    pub fn new(skip_special: bool) -> Self {
        Self { skip_special, window: vec![], context: 0, shown: 0 }
    }

    /// Takes the next token and gives the text that is certain by now: never half a character.
    ///
    /// # Errors
    /// As [`Tokenizer::decode`].
    pub fn push(&mut self, tokenizer: &Tokenizer, id: u32) -> Result<String> {
        if self.skip_special && tokenizer.is_special(id) {
            return Ok(String::new());
        }
        self.window.push(id);
        let text = tokenizer.decode(&self.window, false)?;
        let certain = certain(&text);
        let piece = text.get(self.shown..certain).unwrap_or_default().to_owned();
        self.shown = self.shown.max(certain);
        if certain == text.len() && !piece.is_empty() {
            self.cut(tokenizer, self.context)?;
        } else if self.window.len() > WINDOW {
            self.cut(tokenizer, WINDOW / 2)?;
        }
        Ok(piece)
    }

    /// The rest, at the end of the text; an unfinished character comes as U+FFFD. Starts a new text.
    ///
    /// # Errors
    /// As [`Tokenizer::decode`].
    pub fn finish(&mut self, tokenizer: &Tokenizer) -> Result<String> {
        let text = tokenizer.decode(&self.window, false)?;
        let piece = text.get(self.shown..).unwrap_or_default().to_owned();
        *self = Self::new(self.skip_special);
        Ok(piece)
    }

    /// Forgets the first `count` tokens of the window; what remains is context.
    fn cut(&mut self, tokenizer: &Tokenizer, count: usize) -> Result<()> {
        self.window.drain(..count);
        self.context = self.window.len();
        self.shown = certain(&tokenizer.decode(&self.window, false)?);
        Ok(())
    }
}

/// Length of the part of `text` that no further token can change.
fn certain(text: &str) -> usize {
    let mut end = text.len();
    for _ in 0..UNFINISHED {
        end = text[..end].strip_suffix('\u{FFFD}').map_or(end, str::len);
    }
    end
}
