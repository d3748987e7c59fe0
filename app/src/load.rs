//! From what the user calls a model to the model.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use tread_core::checkpoint::Checkpoint;
use tread_core::model::Model;

use crate::{catalog, embedded, hub};

/// Finds and reads a model, downloading it if need be. See the help for what `name` may be.
pub(crate) fn model(name: Option<&str>) -> Result<Model> {
    let name = name.unwrap_or(embedded::NAME);
    let checkpoint = match place(name)? {
        Place::Embedded => embedded::checkpoint()?,
        Place::Local(path) => Checkpoint::open(&path)?,
        Place::Hub(id) => Checkpoint::open(&hub::fetch(&id)?)?,
    };
    Model::new(name, checkpoint).with_context(|| format!("model {name}"))
}

enum Place {
    Embedded,
    Local(PathBuf),
    Hub(String),
}

fn place(name: &str) -> Result<Place> {
    if let Some(path) = in_models_folder(name) {
        return Ok(Place::Local(path));
    }
    if let Some(entry) = catalog::find(name) {
        return Ok(entry.hub.clone().map_or(Place::Embedded, Place::Hub));
    }
    let path = Path::new(name);
    if path.exists() {
        return Ok(Place::Local(path.to_owned()));
    }
    let gguf_path = name.ends_with(".gguf") && !name.contains(':');
    let looks_like_path = path.is_absolute() || name.starts_with('.') || gguf_path;
    if !looks_like_path && hub::Id::parse(name).is_some() {
        return Ok(Place::Hub(name.to_owned()));
    }
    bail!(
        "there is no model `{name}`: not a file or folder, not in the catalogue ({}), and not a Hugging Face id (org/name)",
        catalog::names()
    )
}

/// The folder in which models are looked for by name.
pub(crate) fn models_folder() -> Option<PathBuf> {
    let set = std::env::var_os("TREAD_MODELS").filter(|v| !v.is_empty()).map(PathBuf::from);
    set.or_else(|| data_folder().map(|data| data.join("models")))
}

/// Where Tread keeps what it must remember.
pub(crate) fn data_folder() -> Option<PathBuf> {
    directories::ProjectDirs::from("", "", "tread").map(|dirs| dirs.data_dir().to_owned())
}

fn in_models_folder(name: &str) -> Option<PathBuf> {
    if name.contains(['/', '\\']) || name.starts_with('.') {
        return None;
    }
    let folder = models_folder()?;
    [folder.join(format!("{name}.gguf")), folder.join(name)].into_iter().find(|path| path.exists())
}
