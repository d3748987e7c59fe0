//! Names for well-known models. The page's catalogue is made of the same file (`cargo xtask web`).

use std::sync::LazyLock;

use serde::Deserialize;

/// A model that has a name of its own.
#[derive(Debug, Deserialize)]
pub(crate) struct Entry {
    pub(crate) name: String,
    /// `org/name[:file.gguf]` on the hub; none: inside the binary.
    pub(crate) hub: Option<String>,
    pub(crate) about: String,
    /// About how many there are to download.
    pub(crate) bytes: u64,
    pub(crate) licence: String,
}

impl Entry {
    /// `145 MB`.
    pub(crate) fn size(&self) -> String {
        match self.bytes / 1_000_000 {
            megabytes @ ..1000 => format!("{megabytes} MB"),
            megabytes => format!("{} GB", megabytes / 1000),
        }
    }
}

/// All names. That the file is a catalogue is what the test below sees to.
pub(crate) static ENTRIES: LazyLock<Vec<Entry>> =
    LazyLock::new(|| serde_json::from_str(include_str!("../models/catalog.json")).unwrap_or_default());

/// The entry called `name`.
pub(crate) fn find(name: &str) -> Option<&'static Entry> {
    ENTRIES.iter().find(|e| e.name == name)
}

/// All names in a row, for errors.
pub(crate) fn names() -> String {
    ENTRIES.iter().map(|e| e.name.as_str()).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::{ENTRIES, find, names};

    #[test]
    fn the_catalogue_is_read_whole() {
        assert!(names().starts_with("nano, smollm2, "), "{}", names());
        assert_eq!(find(crate::embedded::NAME).unwrap().hub, None);
        assert!(ENTRIES.iter().filter(|entry| entry.hub.is_none()).count() == 1);
        assert_eq!(find("smollm2").unwrap().size(), "145 MB");
        assert_eq!(find("step3").unwrap().size(), "642 GB");
    }
}
