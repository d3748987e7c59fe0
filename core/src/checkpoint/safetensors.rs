//! The safetensors format: a JSON header of names, types, shapes and byte ranges, then the bytes.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::Deserialize;

use super::Tensors;
use crate::tensor::{BlockScales, DType, Source, Tensor};
use crate::{Error, Result};

/// The format's own limit on its header.
const MAX_HEADER: u64 = 100_000_000;

#[derive(Deserialize)]
struct Entry {
    dtype: String,
    shape: Vec<usize>,
    data_offsets: [u64; 2],
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
    let entries: BTreeMap<String, serde_json::Value> =
        serde_json::from_slice(&header).map_err(|e| wrong(format!("its header is not valid JSON: {e}")))?;
    let mut ranges = vec![];
    for (name, value) in entries.into_iter().filter(|(name, _)| name != "__metadata__") {
        let entry: Entry = serde_json::from_value(value)
            .map_err(|e| Error::tensor(&name, format!("bad entry in the header of {file}: {e}")))?;
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
    let names: Vec<String> = tensors.found.keys().filter(|n| n.ends_with("_scale_inv")).cloned().collect();
    for name in names {
        let base = name.trim_end_matches("_scale_inv");
        let (Some(scales), Some(tensor)) = (tensors.found.remove(&name), tensors.found.remove(base)) else {
            return Err(Error::tensor(&name, format!("holds the scales of `{base}`, which is missing")));
        };
        let values = scales.to_f32()?.into();
        tensors.found.insert(base.to_owned(), tensor.with_scales(BlockScales { block, values })?);
    }
    match tensors.found.values().find(|t| t.dtype() == DType::F8E4M3 && t.scales().is_none()) {
        Some(tensor) => {
            let message = format!("F8_E4M3 without its scales `{}_scale_inv`", tensor.name());
            Err(Error::tensor(tensor.name(), message))
        }
        None => Ok(()),
    }
}
