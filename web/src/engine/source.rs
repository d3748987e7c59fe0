//! Where a model's bytes come from in a browser: files that stay where they are, and heads of files elsewhere.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use js_sys::Uint8Array;
use send_wrapper::SendWrapper;
use tread_core::checkpoint::{Checkpoint, SIDE_FILES};
use tread_core::tensor::{Bytes, Source};
use tread_core::{Error, Result};
use web_sys::{Blob, File, FileReaderSync};

use super::js;

/// A file of the user, or one that the browser keeps. Its bytes are read when they are asked for.
#[derive(Debug)]
pub(super) struct FileSource {
    name: String,
    len: u64,
    /// Sources may be sent between threads, JavaScript's objects may not; a worker has one thread.
    file: SendWrapper<Blob>,
}

impl FileSource {
    pub(super) fn new(file: &File) -> Self {
        let blob: &Blob = file;
        Self { name: file.name(), len: blob.size() as u64, file: SendWrapper::new(blob.clone()) }
    }
}

impl Source for FileSource {
    fn name(&self) -> &str {
        &self.name
    }

    fn len(&self) -> u64 {
        self.len
    }

    fn read(&self, range: Range<u64>) -> Result<Cow<'_, [u8]>> {
        if range.start > range.end || range.end > self.len {
            return Err(outside(&self.name, &range, self.len));
        }
        let read = || {
            let slice = self.file.slice_with_f64_and_f64(range.start as f64, range.end as f64)?;
            FileReaderSync::new()?.read_as_array_buffer(&slice)
        };
        let buffer = read().map_err(|error| {
            let message = format!("{}; was it changed or deleted since it was chosen?", js::text(&error));
            Error::io(&self.name, std::io::Error::other(message))
        })?;
        Ok(Cow::Owned(Uint8Array::new(&buffer).to_vec()))
    }
}

/// The first bytes of a file that is longer. Remembers how many would have been needed.
#[derive(Debug)]
pub(super) struct Head {
    name: String,
    len: u64,
    bytes: Vec<u8>,
    wanted: AtomicU64,
}

impl Head {
    pub(super) fn new(name: impl Into<String>, len: u64, bytes: Vec<u8>) -> Self {
        Self { name: name.into(), len, bytes, wanted: AtomicU64::new(0) }
    }

    /// The end of the furthest read that failed because only the head is here.
    pub(super) fn wanted(&self) -> Option<u64> {
        Some(self.wanted.load(Ordering::Relaxed)).filter(|&wanted| wanted > self.bytes.len() as u64)
    }
}

impl Source for Head {
    fn name(&self) -> &str {
        &self.name
    }

    fn len(&self) -> u64 {
        self.len
    }

    fn read(&self, range: Range<u64>) -> Result<Cow<'_, [u8]>> {
        if range.start > range.end || range.end > self.len {
            return Err(outside(&self.name, &range, self.len));
        }
        let here = usize::try_from(range.start).ok().zip(usize::try_from(range.end).ok());
        if let Some(bytes) = here.and_then(|(start, end)| self.bytes.get(start..end)) {
            return Ok(Cow::Borrowed(bytes));
        }
        self.wanted.fetch_max(range.end, Ordering::Relaxed);
        let have = self.bytes.len();
        Err(Error::format(
            &self.name,
            format!("bytes {range:?} were asked for, but only its first {have} are here"),
        ))
    }
}

fn outside(name: &str, range: &Range<u64>, len: u64) -> Error {
    Error::format(name, format!("bytes {range:?} lie outside its {len} bytes; is it truncated?"))
}

/// A model's files, wherever they are: small ones read, those with weights not.
#[derive(Clone, Debug, Default)]
pub(super) struct Parts {
    side: BTreeMap<String, Vec<u8>>,
    weights: Vec<Arc<dyn Source>>,
}

/// Whether a file is one of the small ones beside safetensors.
pub(super) fn is_side_file(name: &str) -> bool {
    SIDE_FILES.contains(&name)
}

impl Parts {
    /// Adds a file, reading it if it is one of the small ones.
    ///
    /// # Errors
    /// When it cannot be read.
    pub(super) fn add(&mut self, name: &str, source: Arc<dyn Source>) -> Result<()> {
        if is_side_file(name) {
            self.side.insert(name.to_owned(), source.read(0..source.len())?.into_owned());
        } else if name.ends_with(".gguf") || name.ends_with(".safetensors") {
            self.weights.push(source);
        }
        Ok(())
    }

    /// The same with all bytes in memory: for a device that reads them again and again.
    ///
    /// # Errors
    /// [`Error::Capacity`] when they are too many, and when they cannot be read.
    pub(super) fn in_memory(&self, most: u64) -> Result<Self> {
        let bytes: u64 = self.weights.iter().map(|source| source.len()).sum();
        if bytes > most {
            return Err(Error::Capacity(format!(
                "without a GPU that computes correctly a model must fit a page's own memory: its files have {bytes} \
                 bytes, more than {most}; use a smaller model"
            )));
        }
        let read = |source: &Arc<dyn Source>| -> Result<Arc<dyn Source>> {
            let bytes = source.read(0..source.len())?.into_owned();
            Ok(Arc::new(Bytes::new(source.name(), bytes)))
        };
        Ok(Self { side: self.side.clone(), weights: self.weights.iter().map(read).collect::<Result<_>>()? })
    }

    /// Reads the heads of the files.
    ///
    /// # Errors
    /// As [`Checkpoint::from_gguf`] and [`Checkpoint::from_safetensors`].
    pub(super) fn checkpoint(&self) -> Result<Checkpoint> {
        let gguf = |source: &Arc<dyn Source>| source.name().ends_with(".gguf");
        match &self.weights[..] {
            [] => {
                let message =
                    "a model is a .gguf file, or config.json with .safetensors files; these have no weights";
                Err(Error::format("what was chosen", message))
            }
            [source] if gguf(source) => Checkpoint::from_gguf(source),
            sources if sources.iter().any(gguf) => {
                Err(Error::format("what was chosen", "a .gguf file is a whole model: give it alone"))
            }
            sources => {
                let mut shards = sources.to_vec();
                shards.sort_by(|a, b| a.name().cmp(b.name()));
                Checkpoint::from_safetensors(&self.side, shards)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use tread_core::tensor::{Bytes, Source as _};

    use super::{Head, Parts};

    #[test]
    fn a_head_knows_what_it_lacks() {
        let head = Head::new("x.gguf", 100, vec![7; 10]);
        assert_eq!(head.read(2..10).unwrap(), vec![7; 8]);
        assert_eq!(head.wanted(), None);
        assert!(head.read(5..20).is_err() && head.read(8..12).is_err());
        assert_eq!(head.wanted(), Some(20));
        // Beyond the file itself: more bytes would not help.
        let head = Head::new("x.gguf", 100, vec![7; 10]);
        let error = head.read(5..101).unwrap_err().to_string();
        assert!(error.contains("truncated") && head.wanted().is_none(), "{error}");
    }

    #[test]
    fn files_that_are_no_model_are_refused() {
        let parts = |names: &[&str]| {
            let mut parts = Parts::default();
            for name in names {
                let bytes = Bytes::new(*name, b"GGUF".to_vec());
                parts.add(name, Arc::new(bytes)).unwrap();
            }
            parts
        };
        for (names, part) in [
            (&["readme.md"][..], "no weights"),
            (&["a.gguf", "b.safetensors"], "give it alone"),
            (&["a.safetensors"], "config.json is missing"),
        ] {
            let error = parts(names).checkpoint().unwrap_err().to_string();
            assert!(error.contains(part), "{names:?}: {error}");
        }
        let error = parts(&["a.gguf"]).in_memory(3).unwrap_err().to_string();
        assert!(error.contains("4 bytes, more than 3"), "{error}");
    }
}
