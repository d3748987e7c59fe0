//! Reading markup that may not be complete yet.

use super::super::stop::begun;

/// Why reading stops.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stop {
    /// The text ends before it can be said.
    More,
    /// The text is not what is expected, whatever follows.
    Wrong,
}

pub(super) type Read<T> = Result<T, Stop>;

/// A position in a text of which more may come. What it answers other than [`Stop::More`] no further text changes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Cursor<'a> {
    text: &'a str,
    at: usize,
}

impl<'a> Cursor<'a> {
    pub(super) fn new(text: &'a str) -> Self {
        Self { text, at: 0 }
    }

    /// Bytes read.
    pub(super) fn at(&self) -> usize {
        self.at
    }

    pub(super) fn rest(&self) -> &'a str {
        &self.text[self.at..]
    }

    pub(super) fn skip(&mut self, bytes: usize) {
        self.at += bytes;
    }

    pub(super) fn space(&mut self) {
        self.at = self.text.len() - self.rest().trim_start().len();
    }

    /// Reads one of several spellings, none of which is the beginning of another.
    pub(super) fn expect(&mut self, spellings: &[&str]) -> Read<()> {
        let rest = self.rest();
        if let Some(found) = spellings.iter().find(|spelling| rest.starts_with(**spelling)) {
            self.at += found.len();
            return Ok(());
        }
        Err(if spellings.iter().any(|spelling| spelling.starts_with(rest)) {
            Stop::More
        } else {
            Stop::Wrong
        })
    }

    /// Whether one of the spellings is next; reads it if so.
    pub(super) fn accept(&mut self, spellings: &[&str]) -> Read<bool> {
        match self.expect(spellings) {
            Ok(()) => Ok(true),
            Err(Stop::More) => Err(Stop::More),
            Err(Stop::Wrong) => Ok(false),
        }
    }

    /// The text up to `end`, which is read too.
    pub(super) fn until(&mut self, end: &str) -> Read<&'a str> {
        let rest = self.rest();
        let length = rest.find(end).ok_or(Stop::More)?;
        self.at += length + end.len();
        Ok(&rest[..length])
    }

    /// A JSON string's value.
    pub(super) fn json_string(&mut self) -> Read<String> {
        self.expect(&["\""])?;
        let rest = self.rest();
        let mut escaped = false;
        let end = rest.bytes().position(|byte| {
            let ends = byte == b'"' && !escaped;
            escaped = byte == b'\\' && !escaped;
            ends
        });
        let end = end.ok_or(Stop::More)?;
        self.at += end + 1;
        serde_json::from_str(&format!("\"{}\"", &rest[..end])).map_err(|_| Stop::Wrong)
    }
}

/// Where content ends at the first of the `openings`, or may yet end: the bytes of `text` that are content for certain,
/// and whether an opening follows. White space before an opening belongs to it.
pub(super) fn content(text: &str, openings: &[&str]) -> (usize, bool) {
    if let Some(at) = openings.iter().filter_map(|opening| text.find(opening)).min() {
        return (text[..at].trim_end().len(), true);
    }
    let begun = openings.iter().map(|opening| begun(text, opening)).max().unwrap_or(0);
    (text[..text.len() - begun].trim_end().len(), false)
}

/// Follows the nesting of one JSON object that comes in pieces; it does not check more than that.
#[derive(Clone, Debug, Default)]
pub(super) struct JsonNesting {
    /// The brackets that close what is open.
    closing: Vec<u8>,
    in_string: bool,
    escaped: bool,
}

/// How far an object goes in a piece of text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Extent {
    /// Beyond the piece.
    Open,
    /// It ends after this many bytes.
    Ends(usize),
    /// After this many bytes comes something that cannot be in JSON.
    Breaks(usize),
}

impl JsonNesting {
    /// Takes the next piece, which begins with `{` if it is the first.
    pub(super) fn follow(&mut self, text: &str) -> Extent {
        for (at, byte) in text.bytes().enumerate() {
            if self.in_string {
                self.in_string = byte != b'"' || self.escaped;
                self.escaped = byte == b'\\' && !self.escaped;
                continue;
            }
            match byte {
                b'"' => self.in_string = true,
                b'{' => self.closing.push(b'}'),
                b'[' => self.closing.push(b']'),
                b'}' | b']' => {
                    if self.closing.pop() != Some(byte) {
                        return Extent::Breaks(at);
                    }
                    if self.closing.is_empty() {
                        return Extent::Ends(at + 1);
                    }
                }
                b',' | b':' | b'+' | b'-' | b'.' | b'0'..=b'9' | b'a'..=b'z' | b'E' => {}
                _ if byte.is_ascii_whitespace() => {}
                _ => return Extent::Breaks(at),
            }
        }
        Extent::Open
    }
}
