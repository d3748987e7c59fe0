//! Models that the page's own origin offers: `models/catalog.json`.

use serde::Deserialize;

/// A model of the catalogue, as far as it is shown; the worker reads where its files are.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub(super) struct Entry {
    /// Its name.
    pub(super) name: String,
    /// What it is.
    #[serde(default)]
    pub(super) about: String,
    /// Under which it may be used.
    #[serde(default)]
    pub(super) licence: String,
    files: Vec<EntryFile>,
}

#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
struct EntryFile {
    #[serde(default)]
    bytes: u64,
}

#[derive(Deserialize)]
struct Catalog {
    models: Vec<Entry>,
}

impl Entry {
    /// Of all its files.
    pub(super) fn bytes(&self) -> u64 {
        self.files.iter().map(|file| file.bytes).sum()
    }
}

/// Reads a catalogue.
pub(super) fn parse(text: &str) -> Result<Vec<Entry>, String> {
    let catalog: Catalog =
        serde_json::from_str(text).map_err(|error| format!("the catalogue cannot be read: {error}"))?;
    Ok(catalog.models)
}

/// The models with fewer bytes, the largest first.
pub(super) fn smaller(entries: &[Entry], bytes: u64) -> Vec<Entry> {
    let mut smaller: Vec<Entry> = entries.iter().filter(|entry| entry.bytes() < bytes).cloned().collect();
    smaller.sort_by_key(|entry| std::cmp::Reverse(entry.bytes()));
    smaller
}

#[cfg(test)]
mod tests {
    use super::{parse, smaller};

    const TEXT: &str = r#"{"models":[
        {"name":"a","about":"small","licence":"MIT","files":[{"path":"a/1","bytes":5},{"path":"a/2","bytes":6}]},
        {"name":"b","files":[{"path":"b","bytes":100,"sha256":"00"}],"base":"http://x/"},
        {"name":"c","files":[{"path":"c","bytes":50}]}]}"#;

    #[test]
    fn a_catalogue_is_read() {
        let entries = parse(TEXT).unwrap();
        assert_eq!(entries.iter().map(|entry| entry.bytes()).collect::<Vec<_>>(), [11, 100, 50]);
        assert_eq!((entries[0].about.as_str(), entries[1].licence.as_str()), ("small", ""));
        assert!(parse("<html>").unwrap_err().contains("cannot be read"));
    }

    #[test]
    fn what_is_smaller_is_found() {
        let entries = parse(TEXT).unwrap();
        let names = |bytes| smaller(&entries, bytes).into_iter().map(|entry| entry.name).collect::<Vec<_>>();
        assert_eq!(names(100), ["c", "a"]);
        assert!(names(11).is_empty());
    }
}
