//! Waiting for the text after which a grammar starts.

use super::mask::TokenMask;
use super::vocabulary::Vocabulary;

/// A grammar's wait for its marker and the white space after it.
#[derive(Clone, Debug)]
pub(super) struct Wait {
    marker: Vec<u8>,
    /// The end of the text so far, shorter than the marker.
    tail: Vec<u8>,
    /// Every token that may come before the marker.
    free: TokenMask,
    /// Bytes of white space since the marker.
    space: Option<usize>,
}

/// How a token was taken.
pub(super) enum Passed {
    /// The grammar has not started yet.
    Waiting,
    /// The grammar starts with this token.
    Over,
    /// The token contains the marker and text that the grammar should have seen.
    Refused,
}

/// Most bytes of white space that are skipped: some models would never end.
const MAX_SPACE: usize = 16;

impl Wait {
    pub(super) fn new(marker: &str, vocabulary: &Vocabulary) -> Self {
        let marker = marker.as_bytes().to_vec();
        let free = |&id: &u32| !vocabulary.stops.allows(id) && !overshoots(vocabulary.text(id), &marker);
        let free = TokenMask::of(vocabulary.size(), (0..vocabulary.size() as u32).filter(free));
        let space = marker.is_empty().then_some(0);
        Self { marker, tail: vec![], free, space }
    }

    /// Whether the marker is yet to come.
    pub(super) fn for_marker(&self) -> bool {
        self.space.is_none()
    }

    /// Whether white space may come before the grammar starts.
    pub(super) fn skips_space(&self) -> bool {
        self.space.is_some_and(|bytes| bytes < MAX_SPACE)
    }

    /// The tokens that may come while the marker is awaited: none that completes it and goes on with text of which the
    /// grammar would know nothing.
    pub(super) fn mask(&self, vocabulary: &Vocabulary) -> TokenMask {
        let mut mask = self.free.clone();
        let begun = (1..self.marker.len()).filter(|&n| self.tail.ends_with(&self.marker[..n]));
        for rest in begun.map(|n| &self.marker[n..]) {
            let completes = |id: u32| vocabulary.text(id).strip_prefix(rest);
            let goes_on = |id: u32| completes(id).is_some_and(|after| !is_space(after));
            for id in (0..vocabulary.size() as u32).filter(|&id| goes_on(id)) {
                mask.forbid(id);
            }
        }
        mask
    }

    pub(super) fn pass(&mut self, token: u32, vocabulary: &Vocabulary) -> Passed {
        let text = vocabulary.text(token);
        if let Some(bytes) = &mut self.space {
            if *bytes < MAX_SPACE && vocabulary.spaces.allows(token) {
                *bytes += text.len();
                return Passed::Waiting;
            }
            return Passed::Over;
        }
        self.tail.extend_from_slice(text);
        if let Some(at) = find(&self.tail, &self.marker) {
            let after = &self.tail[at + self.marker.len()..];
            if !is_space(after) {
                return Passed::Refused;
            }
            self.space = Some(after.len());
        }
        self.tail.drain(..self.tail.len().saturating_sub(self.marker.len().saturating_sub(1)));
        Passed::Waiting
    }
}

fn overshoots(text: &[u8], marker: &[u8]) -> bool {
    find(text, marker).is_some_and(|at| !is_space(&text[at + marker.len()..]))
}

fn is_space(text: &[u8]) -> bool {
    text.iter().all(u8::is_ascii_whitespace)
}

fn find(text: &[u8], part: &[u8]) -> Option<usize> {
    text.windows(part.len().max(1)).position(|window| window == part)
}
