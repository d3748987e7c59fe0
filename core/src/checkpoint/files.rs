//! Opening a checkpoint on disk: mapped, not read.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::{Checkpoint, SIDE_FILES};
use crate::tensor::{Source, slice};
use crate::{Error, Result};

/// The largest side file that is read; real ones are far below.
const MAX_SIDE_FILE: u64 = 1 << 28;

/// A file mapped into memory.
#[derive(Debug)]
struct Mapped {
    name: String,
    map: memmap2::Mmap,
}

impl Mapped {
    #[allow(unsafe_code)]
    fn open(path: &Path) -> Result<Self> {
        let name = path.display().to_string();
        let file = File::open(path).map_err(|e| Error::io(&name, e))?;
        // SAFETY: the map is only ever read, as bytes. Whoever truncates or rewrites a model file that is in use gets
        // a crash or other weights, as with every program that maps its model; that is documented for users.
        let map = unsafe { memmap2::Mmap::map(&file) }.map_err(|e| Error::io(&name, e))?;
        Ok(Self { name, map })
    }
}

impl Source for Mapped {
    fn name(&self) -> &str {
        &self.name
    }
    fn len(&self) -> u64 {
        self.map.len() as u64
    }
    fn read(&self, range: std::ops::Range<u64>) -> Result<std::borrow::Cow<'_, [u8]>> {
        slice(&self.name, &self.map, range).map(std::borrow::Cow::Borrowed)
    }
}

/// Opens a GGUF file, or a folder with config.json and safetensors.
pub(super) fn open(path: &Path) -> Result<Checkpoint> {
    let kind = std::fs::metadata(path).map_err(|e| Error::io(path.display(), e))?;
    if kind.is_dir() {
        return open_folder(path);
    }
    let source: Arc<dyn Source> = Arc::new(Mapped::open(path)?);
    if path.extension().is_some_and(|e| e == "safetensors") {
        let message =
            "one safetensors file is not a whole model: give the folder that holds it and config.json";
        return Err(Error::format(path.display().to_string(), message));
    }
    super::gguf::read(&source)
}

fn open_folder(folder: &Path) -> Result<Checkpoint> {
    let mut files = BTreeMap::new();
    for name in SIDE_FILES {
        if let Some(bytes) = read_side_file(&folder.join(name))? {
            files.insert(name.to_owned(), bytes);
        }
    }
    if !files.contains_key("config.json") {
        let message = "there is no config.json in it: a model is a .gguf file, or a folder with config.json and safetensors";
        return Err(Error::format(folder.display().to_string(), message));
    }
    let shards = shard_paths(folder, files.get(super::INDEX).map(Vec::as_slice))?
        .iter()
        .map(|path| Mapped::open(path).map(|m| Arc::new(m) as Arc<dyn Source>))
        .collect::<Result<_>>()?;
    Checkpoint::from_safetensors(&files, shards)
}

/// The bytes of a small file; none when it is not there.
fn read_side_file(path: &Path) -> Result<Option<Vec<u8>>> {
    let length = match std::fs::metadata(path) {
        Ok(metadata) => metadata.len(),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(Error::io(path.display(), e)),
    };
    if length > MAX_SIDE_FILE {
        let message = format!("it has {length} bytes; at most {MAX_SIDE_FILE} are read");
        return Err(Error::format(path.display().to_string(), message));
    }
    std::fs::read(path).map(Some).map_err(|e| Error::io(path.display(), e))
}

/// The shards the index names, else `model*.safetensors`.
fn shard_paths(folder: &Path, index: Option<&[u8]>) -> Result<Vec<PathBuf>> {
    if let Some(index) = index {
        let names = super::index_shards(index)?;
        return names
            .keys()
            .map(|name| {
                let path = folder.join(name);
                if path.is_file() {
                    return Ok(path);
                }
                let message = format!(
                    "the shard {name} that {} names is missing: download it again or remove the folder",
                    super::INDEX
                );
                Err(Error::format(folder.display().to_string(), message))
            })
            .collect();
    }
    let entries = std::fs::read_dir(folder).map_err(|e| Error::io(folder.display(), e))?;
    let mut paths: Vec<PathBuf> = entries
        .filter_map(|entry| entry.ok().map(|e| e.path()))
        .filter(|path| {
            let name = path.file_name().and_then(|n| n.to_str()).unwrap_or_default();
            name.starts_with("model") && name.ends_with(".safetensors")
        })
        .collect();
    paths.sort();
    if paths.is_empty() {
        let message = "there are no model*.safetensors in it: download the weights too";
        return Err(Error::format(folder.display().to_string(), message));
    }
    Ok(paths)
}
