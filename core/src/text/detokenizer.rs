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
    /// The part of the window's text that was given out.
    shown: String,
    /// Tokens since the text last ended in a whole character.
    unfinished: usize,
}

/// An unfinished character has at most this many bytes: the fourth completes it.
const UNFINISHED: usize = 3;
/// Tokens a window may reach before it is cut to half, for streams that never become text.
const WINDOW: usize = 32;

impl Detokenizer {
    /// A detokenizer at the start of a text. `skip_special` leaves special tokens out.
    pub fn new(skip_special: bool) -> Self {
        Self { skip_special, window: vec![], context: 0, shown: String::new(), unfinished: 0 }
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
        let complete = !text.ends_with('\u{FFFD}');
        self.unfinished = if complete { 0 } else { self.unfinished + 1 };
        let piece = match self.certain(&text).strip_prefix(&self.shown) {
            Some(new) => new.to_owned(),
            // A broken run of byte tokens, over at last, has spoilt the text of the context; the new tokens alone
            // give the best there is.
            None if complete => tokenizer.decode(&self.window[self.context..], false)?,
            None => String::new(),
        };
        if complete && !piece.is_empty() {
            self.cut(tokenizer, self.context)?;
        } else if self.window.len() > WINDOW {
            self.cut(tokenizer, WINDOW / 2)?;
        } else {
            self.shown.push_str(&piece);
        }
        Ok(piece)
    }

    /// The rest, at the end of the text; an unfinished character comes as U+FFFD. Starts a new text.
    ///
    /// # Errors
    /// As [`Tokenizer::decode`].
    pub fn finish(&mut self, tokenizer: &Tokenizer) -> Result<String> {
        let text = tokenizer.decode(&self.window, false)?;
        let piece = match text.strip_prefix(&self.shown) {
            Some(new) => new.to_owned(),
            None => tokenizer.decode(&self.window[self.context..], false)?,
        };
        *self = Self::new(self.skip_special);
        Ok(piece)
    }

    /// Forgets the first `count` tokens of the window; what remains is context.
    fn cut(&mut self, tokenizer: &Tokenizer, count: usize) -> Result<()> {
        self.window.drain(..count);
        self.context = self.window.len();
        self.shown = self.certain(&tokenizer.decode(&self.window, false)?).to_owned();
        Ok(())
    }

    /// The part of the window's `text` that no further token can change. An unfinished character shows as U+FFFD,
    /// one for each of its bytes or, where a decoder gives up a whole run of byte tokens, more.
    fn certain<'a>(&self, text: &'a str) -> &'a str {
        if self.unfinished <= UNFINISHED {
            return text.trim_end_matches('\u{FFFD}');
        }
        (0..UNFINISHED).fold(text, |text, _| text.strip_suffix('\u{FFFD}').unwrap_or(text))
    }
}
