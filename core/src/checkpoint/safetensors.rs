//! The safetensors format: a JSON header of names, types, shapes and byte ranges, then the bytes.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::Deserialize;
use serde::de::{Deserializer, Error as _, IgnoredAny, MapAccess, Visitor};

use super::Tensors;
use crate::tensor::{BlockScales, DType, Source, Tensor};
use crate::{Error, Result};

/// The format's own limit on its header.
const MAX_HEADER: u64 = 100_000_000;

/// What follows a weight's name in the name of its scales.
const SCALES: &str = "_scale_inv";

#[derive(Deserialize)]
struct Entry {
    dtype: String,
    shape: Vec<usize>,
    data_offsets: [u64; 2],
}

/// The tensors of a header. Read straight into entries: a tree of JSON values would take many times the header's
/// size, and would hide a name that is given twice.
struct Header(BTreeMap<String, Entry>);

impl<'de> Deserialize<'de> for Header {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(Self(BTreeMap::new()))
    }
}

impl<'de> Visitor<'de> for Header {
    type Value = Self;

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("an object of tensors")
    }

    fn visit_map<A: MapAccess<'de>>(mut self, mut map: A) -> Result<Self, A::Error> {
        while let Some(name) = map.next_key::<String>()? {
            if name == "__metadata__" {
                map.next_value::<IgnoredAny>()?;
                continue;
            }
            let entry = map.next_value().map_err(|e| A::Error::custom(format!("tensor `{name}`: {e}")))?;
            if self.0.contains_key(&name) {
                return Err(A::Error::custom(format!("tensor `{name}` is there twice")));
            }
            self.0.insert(name, entry);
        }
        Ok(self)
    }
}

/// Adds the tensors of one file.
pub(super) fn read(source: &Arc<dyn Source>, tensors: &mut Tensors) -> Result<()> {
    let file = source.name().to_owned();
    let wrong = |message: String| Error::format(&file, message);
    if source.len() < 8 {
        return Err(wrong(format!("a safetensors file has at least 8 bytes, this one {}", source.len())));
    }
    let mut length = [0; 8];
    length.copy_from_slice(&source.read(0..8)?);
    let length = u64::from_le_bytes(length);
    if length > MAX_HEADER || length > source.len() - 8 {
        return Err(wrong(format!(
            "its header claims {length} bytes, but the file has {}; is it truncated or not safetensors?",
            source.len()
        )));
    }
    let data = 8 + length;
    let header = source.read(8..data)?;
    let Header(entries) =
        serde_json::from_slice(&header).map_err(|e| wrong(format!("its header cannot be read: {e}")))?;
    let mut ranges = vec![];
    for (name, entry) in entries {
        let [start, end] = entry.data_offsets;
        if start > end || end > source.len() - data {
            let message = format!(
                "bytes {start}..{end} lie outside the {} data bytes of {file}; is it truncated?",
                source.len() - data
            );
            return Err(Error::tensor(&name, message));
        }
        ranges.push((start, end, name.clone()));
        let Some(dtype) = dtype(&entry.dtype) else {
            tensors.refuse(name, format!("type {} is not supported", entry.dtype));
            continue;
        };
        let tensor = Tensor::new(&name, dtype, entry.shape, Arc::clone(source), data + start)?;
        if tensor.bytes() != end - start {
            let message = format!(
                "shape {:?} of {dtype} needs {} bytes, but {file} gives it {}",
                tensor.shape(),
                tensor.bytes(),
                end - start
            );
            return Err(Error::tensor(&name, message));
        }
        tensors.add(tensor, &file)?;
    }
    super::check_overlap(&file, ranges)
}

fn dtype(name: &str) -> Option<DType> {
    [DType::F32, DType::F16, DType::BF16, DType::F8E4M3].into_iter().find(|d| d.name() == name)
}

/// Gives every FP8 weight its `weight_scale_inv` (DeepSeek's layout: multiply, whatever the name says).
pub(super) fn pair_scales(tensors: &mut Tensors, block: [usize; 2]) -> Result<()> {
    let names: Vec<String> = tensors.found.keys().filter(|n| n.ends_with(SCALES)).cloned().collect();
    for name in names {
        let base = &name[..name.len() - SCALES.len()];
        let Some(scales) = tensors.found.remove(&name) else { continue };
        if tensors.refused.contains_key(base) {
            continue;
        }
        let Some(tensor) = tensors.found.remove(base) else {
            return Err(Error::tensor(&name, format!("holds the scales of `{base}`, which is missing")));
        };
        if tensor.dtype() != DType::F8E4M3 || scales.dtype() == DType::F8E4M3 {
            let message = format!(
                "scales of type {} for `{base}` of type {}; F8_E4M3 weights have scales of type F32, F16 or BF16",
                scales.dtype(),
                tensor.dtype()
            );
            return Err(Error::tensor(&name, message));
        }
        let values = scales.to_f32()?.into();
        tensors.found.insert(base.to_owned(), tensor.with_scales(BlockScales { block, values })?);
    }
    // Not an error yet: it may belong to a part of the model that does not run, such as a vision tower.
    let bare = |t: &Tensor| t.dtype() == DType::F8E4M3 && t.scales().is_none();
    let names: Vec<String> =
        tensors.found.values().filter(|t| bare(t)).map(|t| t.name().to_owned()).collect();
    for name in names {
        tensors.found.remove(&name);
        tensors.refuse(name.clone(), format!("F8_E4M3 without its scales `{name}{SCALES}`"));
    }
    Ok(())
}
