//! What is kept of a file that is being downloaded, and whether the download can go on.
//!
//! A journal lies beside each file: a line that says what is downloaded, a line with the hash of every finished piece, and
//! `complete` in the end. Lines are only added, so that one torn by a crash is one piece lost.

use serde::{Deserialize, Serialize};

/// Bytes of a piece.
pub(super) const PIECE: u64 = 4 << 20;

/// The last line of a journal whose file was found right.
pub(super) const COMPLETE: &str = "complete\n";

/// What is being downloaded.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Header {
    /// Where from.
    pub(super) url: String,
    /// Bytes of the whole file.
    pub(super) total: u64,
    /// `ETag` or `Last-Modified`: another file at the same address has another one.
    pub(super) validator: Option<String>,
    /// What the whole file's hash must be, if somebody said so.
    pub(super) sha256: Option<String>,
}

/// A journal as it was read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Journal {
    pub(super) header: Header,
    /// SHA-256 of each finished piece, in hexadecimal digits.
    pub(super) pieces: Vec<String>,
    /// Everything is there and was found right.
    pub(super) complete: bool,
}

impl Journal {
    /// Reads a journal; none when it makes no sense. A line that is not whole ends it.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let mut lines = text.split_inclusive('\n');
        let header: Header = serde_json::from_str(lines.next().filter(|line| line.ends_with('\n'))?).ok()?;
        let mut journal = Self { header, ..Self::default() };
        for line in lines {
            if line == COMPLETE {
                journal.complete = journal.kept() == journal.header.total;
                break;
            }
            let Some(hash) = line.strip_suffix('\n').filter(|hash| super::recipe::is_sha256(hash)) else {
                break;
            };
            journal.pieces.push(hash.to_owned());
        }
        Some(journal)
    }

    /// As it stands in the file.
    pub(super) fn text(&self) -> String {
        let mut text = self.header.line();
        for piece in &self.pieces {
            text.push_str(piece);
            text.push('\n');
        }
        if self.complete {
            text.push_str(COMPLETE);
        }
        text
    }

    /// Bytes of the finished pieces.
    pub(super) fn kept(&self) -> u64 {
        (self.pieces.len() as u64 * PIECE).min(self.header.total)
    }

    /// Whether what is kept belongs to this file: `sha256` is what is expected of it now.
    pub(super) fn is_of(&self, url: &str, sha256: Option<&str>) -> bool {
        let same = |ours: Option<&str>| sha256.is_none() || ours == sha256;
        self.header.url == url && same(self.header.sha256.as_deref())
    }

    /// Whether a download of what is now at the address goes on where this one stopped.
    pub(super) fn goes_on(&self, total: u64, validator: Option<&str>) -> bool {
        self.header.total == total && self.header.validator.as_deref() == validator
    }

    /// Forgets the pieces from `first` on.
    pub(super) fn cut(&mut self, first: usize) {
        self.pieces.truncate(first);
        self.complete = false;
    }
}

impl Header {
    fn line(&self) -> String {
        // Strings and numbers: there is nothing that could fail.
        format!("{}\n", serde_json::to_string(self).unwrap_or_default())
    }
}

/// The bytes of piece `index` of a file of `total`.
pub(super) fn piece(index: usize, total: u64) -> std::ops::Range<u64> {
    let start = (index as u64 * PIECE).min(total);
    start..(start + PIECE).min(total)
}

#[cfg(test)]
mod tests {
    use super::{COMPLETE, Header, Journal, PIECE, piece};

    fn journal(pieces: usize, total: u64) -> Journal {
        let header = Header {
            url: "http://a/b.gguf".into(),
            total,
            validator: Some("\"1\"".into()),
            sha256: Some("aa".repeat(32)),
        };
        Journal { header, pieces: (0..pieces).map(|n| format!("{n:064x}")).collect(), complete: false }
    }

    #[test]
    fn a_journal_is_read_as_it_was_written() {
        for (pieces, complete) in [(0, false), (2, false), (3, false), (3, true)] {
            let journal = Journal { complete, ..journal(pieces, 2 * PIECE + 5) };
            assert_eq!(Journal::parse(&journal.text()).unwrap(), journal);
        }
        assert_eq!(journal(2, 2 * PIECE + 5).kept(), 2 * PIECE);
        assert_eq!(journal(3, 2 * PIECE + 5).kept(), 2 * PIECE + 5);
    }

    #[test]
    fn every_torn_end_is_a_shorter_journal() {
        let whole = Journal { complete: true, ..journal(3, 2 * PIECE + 5) };
        let text = whole.text();
        for length in 0..text.len() {
            let Some(read) = Journal::parse(&text[..length]) else {
                assert!(length <= text.find('\n').unwrap(), "{length}");
                continue;
            };
            assert!(!read.complete, "{length}");
            assert_eq!(read.pieces, whole.pieces[..read.pieces.len()], "{length}");
        }
    }

    #[test]
    fn the_end_counts_only_when_every_piece_is_there() {
        let text = format!("{}{COMPLETE}", journal(2, 2 * PIECE + 5).text());
        assert!(!Journal::parse(&text).unwrap().complete);
        assert_eq!(Journal::parse("not json\n"), None);
        let odd = format!("{}what is this?\n{}\n", journal(1, 9).text(), "0".repeat(64));
        assert_eq!(Journal::parse(&odd).unwrap().pieces.len(), 1);
    }

    #[test]
    fn a_download_goes_on_only_with_the_same_file() {
        let journal = journal(1, 9);
        let (url, hash) = (journal.header.url.as_str(), journal.header.sha256.as_deref());
        assert!(journal.is_of(url, hash) && journal.is_of(url, None));
        assert!(!journal.is_of("http://other", hash) && !journal.is_of(url, Some("bb")));
        assert!(journal.goes_on(9, Some("\"1\"")));
        for (total, validator) in [(8, Some("\"1\"")), (9, Some("\"2\"")), (9, None)] {
            assert!(!journal.goes_on(total, validator));
        }
    }

    #[test]
    fn cutting_forgets_the_rest() {
        let mut journal = Journal { complete: true, ..journal(3, 2 * PIECE + 5) };
        journal.cut(1);
        assert_eq!((journal.pieces.len(), journal.complete, journal.kept()), (1, false, PIECE));
        assert_eq!(piece(0, 5), 0..5);
        assert_eq!(piece(2, 2 * PIECE + 5), 2 * PIECE..2 * PIECE + 5);
    }
}
