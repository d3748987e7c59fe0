//! The head of a GGUF file: little-endian values read one after the other, and the metadata they make up.

use std::borrow::Cow;
use std::collections::BTreeMap;

use crate::tensor::Source;
use crate::{Error, Result};

/// Bounds against lying counts; real files are far below.
const MAX_KEYS: u64 = 1 << 16;
const MAX_ITEMS: u64 = 1 << 24;
/// Arrays of arrays are allowed by the format and used by nobody.
const MAX_DEPTH: u32 = 4;
/// Bytes fetched at a time.
const WINDOW: u64 = 1 << 20;

/// A metadata value: what is used, so that a hostile file cannot take up many times its size in memory.
#[derive(Clone, Debug)]
enum MetaValue {
    /// Any integer type; those above `i64::MAX` are no use to anyone and become it.
    Integer(i64),
    Float(f64),
    Bool(bool),
    String(String),
    Integers(Vec<i32>),
    Strings(Vec<String>),
    /// An array of anything else.
    Skipped,
}

/// The key-value part of a GGUF file. Asking for a key whose value has another type is an error, so that a damaged
/// file does not fall back to defaults.
#[derive(Debug, Default)]
pub(crate) struct Metadata(BTreeMap<String, MetaValue>);

impl Metadata {
    /// Reads `count` keys and values.
    pub(super) fn read(reader: &mut Reader<'_>, count: u64) -> Result<Self> {
        reader.limit("metadata keys", count, MAX_KEYS)?;
        let mut values = BTreeMap::new();
        for _ in 0..count {
            let key = reader.string()?;
            let kind = reader.u32()?;
            if values.contains_key(&key) {
                return Err(reader.wrong(format!("the metadata key `{key}` is there twice")));
            }
            let value = reader.value(kind, 0)?;
            values.insert(key, value);
        }
        Ok(Self(values))
    }

    fn get<'a, T>(
        &'a self,
        key: &str,
        kind: &str,
        convert: impl Fn(&'a MetaValue) -> Option<T>,
    ) -> Result<Option<T>> {
        let wrong = || Error::Config(format!("the GGUF metadata `{key}` is not {kind}"));
        self.0.get(key).map(|value| convert(value).ok_or_else(wrong)).transpose()
    }

    pub(crate) fn string(&self, key: &str) -> Result<Option<&str>> {
        self.get(key, "a string", |value| match value {
            MetaValue::String(s) => Some(s.as_str()),
            _ => None,
        })
    }

    pub(crate) fn number(&self, key: &str) -> Result<Option<f64>> {
        self.get(key, "a number", |value| match value {
            MetaValue::Float(f) => Some(*f),
            MetaValue::Integer(i) => Some(*i as f64),
            _ => None,
        })
    }

    pub(crate) fn size(&self, key: &str) -> Result<Option<usize>> {
        self.get(key, "a whole number of at least 0", |value| match value {
            MetaValue::Integer(i) => usize::try_from(*i).ok(),
            _ => None,
        })
    }

    /// A token id. Converters write -1 or 2^32 - 1 for "none", so what is not an id is none.
    pub(super) fn id(&self, key: &str) -> Result<Option<u32>> {
        let id = self.get(key, "an integer", |value| match value {
            MetaValue::Integer(i) => Some(u32::try_from(*i).ok()),
            _ => None,
        })?;
        Ok(id.flatten().filter(|&id| id != u32::MAX))
    }

    pub(super) fn flag(&self, key: &str) -> Result<bool> {
        let flag = self.get(key, "true or false", |value| match value {
            MetaValue::Bool(b) => Some(*b),
            _ => None,
        })?;
        Ok(flag.unwrap_or(false))
    }

    pub(super) fn strings(&self, key: &str) -> Result<&[String]> {
        let strings = self.get(key, "an array of strings", |value| match value {
            MetaValue::Strings(items) => Some(items.as_slice()),
            _ => None,
        })?;
        Ok(strings.unwrap_or_default())
    }

    pub(super) fn integers(&self, key: &str) -> Result<&[i32]> {
        let integers = self.get(key, "an array of integers", |value| match value {
            MetaValue::Integers(items) => Some(items.as_slice()),
            _ => None,
        })?;
        Ok(integers.unwrap_or_default())
    }
}

/// Reads little-endian values one after the other through a window.
pub(super) struct Reader<'a> {
    source: &'a dyn Source,
    /// The next byte.
    pub(super) at: u64,
    window: Cow<'a, [u8]>,
    window_at: u64,
}

impl<'a> Reader<'a> {
    pub(super) fn new(source: &'a dyn Source) -> Self {
        Self { source, at: 0, window: Cow::Borrowed(&[]), window_at: 0 }
    }

    /// An error about the file.
    pub(super) fn wrong(&self, message: String) -> Error {
        Error::format(self.source.name(), message)
    }

    fn take(&mut self, count: u64) -> Result<&[u8]> {
        let end = self.at.checked_add(count).filter(|&e| e <= self.source.len()).ok_or_else(|| {
            self.wrong(format!(
                "{count} bytes are expected at {}, but it has only {}; is it truncated?",
                self.at,
                self.source.len()
            ))
        })?;
        let inside = self.at >= self.window_at && end <= self.window_at + self.window.len() as u64;
        if !inside {
            let window_end = (self.at + WINDOW).max(end).min(self.source.len());
            self.window = self.source.read(self.at..window_end)?;
            self.window_at = self.at;
        }
        let start = (self.at - self.window_at) as usize;
        self.at = end;
        Ok(&self.window[start..start + count as usize])
    }

    pub(super) fn array<const N: usize>(&mut self) -> Result<[u8; N]> {
        let mut bytes = [0; N];
        bytes.copy_from_slice(self.take(N as u64)?);
        Ok(bytes)
    }

    pub(super) fn u32(&mut self) -> Result<u32> {
        self.array().map(u32::from_le_bytes)
    }

    pub(super) fn u64(&mut self) -> Result<u64> {
        self.array().map(u64::from_le_bytes)
    }

    /// An error when a count is more than `most` or more than the file could hold.
    pub(super) fn limit(&self, what: &str, found: u64, most: u64) -> Result<()> {
        if found > most || found > self.source.len() {
            return Err(self.wrong(format!("it claims {found} {what}; at most {most} are read")));
        }
        Ok(())
    }

    pub(super) fn string(&mut self) -> Result<String> {
        let length = self.u64()?;
        self.limit("bytes of a string", length, MAX_ITEMS)?;
        Ok(String::from_utf8_lossy(self.take(length)?).into_owned())
    }

    /// A value of GGUF type `kind`.
    fn value(&mut self, kind: u32, depth: u32) -> Result<MetaValue> {
        use MetaValue::{Bool, Float, Integer};
        Ok(match kind {
            0 => Integer(u8::from_le_bytes(self.array()?).into()),
            1 => Integer(i8::from_le_bytes(self.array()?).into()),
            2 => Integer(u16::from_le_bytes(self.array()?).into()),
            3 => Integer(i16::from_le_bytes(self.array()?).into()),
            4 => Integer(self.u32()?.into()),
            5 => Integer(i32::from_le_bytes(self.array()?).into()),
            6 => Float(f32::from_le_bytes(self.array()?).into()),
            7 => Bool(self.array::<1>()? != [0]),
            8 => MetaValue::String(self.string()?),
            9 if depth < MAX_DEPTH => self.items(depth + 1)?,
            10 => Integer(i64::try_from(self.u64()?).unwrap_or(i64::MAX)),
            11 => Integer(i64::from_le_bytes(self.array()?)),
            12 => Float(f64::from_le_bytes(self.array()?)),
            _ => return Err(self.wrong(format!("metadata of unknown type {kind} before byte {}", self.at))),
        })
    }

    /// An array. The lists grow as items are really there: a count alone must not make a huge allocation.
    fn items(&mut self, depth: u32) -> Result<MetaValue> {
        let kind = self.u32()?;
        let count = self.u64()?;
        self.limit("items of an array", count, MAX_ITEMS)?;
        let (mut strings, mut integers) = (vec![], vec![]);
        for _ in 0..count {
            match self.value(kind, depth)? {
                MetaValue::String(s) => strings.push(s),
                MetaValue::Integer(i) => integers.push(i32::try_from(i).unwrap_or(i32::MAX)),
                _ => {}
            }
        }
        Ok(match kind {
            8 => MetaValue::Strings(strings),
            0..=5 | 10 | 11 => MetaValue::Integers(integers),
            _ => MetaValue::Skipped,
        })
    }
}
