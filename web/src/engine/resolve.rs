//! From what the page calls a model to its files: which there are, and what their heads say.

use std::sync::Arc;

use tread_core::checkpoint::{SIDE_FILES, shard_names};
use tread_core::model::Model;
use web_sys::{File, Url};

use super::failure::{Failed, other};
use super::js::{scope, text};
use super::recipe::{self, Address, FileSpec, Recipe};
use super::remote::Remote;
use super::source::{FileSource, Head, Parts, is_side_file};
use super::store::{Folder, Store};
use crate::protocol::ModelRef;

/// The largest small file that is read; real ones are far below.
const MOST_SIDE_BYTES: u64 = 1 << 28;
/// What is read of a file with weights before it is tried; most heads are shorter.
const FIRST_BYTES: u64 = 1 << 20;
/// The longest head that is read.
const MOST_HEAD_BYTES: u64 = 1 << 27;
/// Not needed to know a model's sizes, and as long as all other small files together.
const TOKENIZER: &str = "tokenizer.json";

/// The files of a model that is not the user's own.
pub(super) async fn recipe(store: &Store, model: &ModelRef) -> Result<Recipe, Failed> {
    match model {
        ModelRef::Stored { name } => store.recipe(name).await,
        ModelRef::Catalog { name } => {
            let here = scope().location().href();
            let home = Url::new_with_base("models/", &here).map_err(|error| other(text(&error)))?.href();
            let catalog = small(&format!("{home}catalog.json")).await?;
            let catalog =
                catalog.ok_or_else(|| other(format!("there is no catalogue at {home}catalog.json")))?;
            recipe::from_catalog(&String::from_utf8_lossy(&catalog), &home, name)
        }
        ModelRef::Url { url } => match Address::parse(url)? {
            Address::Gguf(file) => {
                let url = file.url.clone();
                let name = recipe::folder_name(&url, &store.recipes().await?);
                Ok(Recipe { name, url, files: vec![file] })
            }
            Address::Folder(url) => {
                let name = recipe::folder_name(&url, &store.recipes().await?);
                let files = folder_files(&url).await?;
                Ok(Recipe { name, url, files })
            }
        },
        ModelRef::Files { .. } => Err(other("files of this machine are read where they are")),
    }
}

/// The files that a folder behind an address has.
async fn folder_files(folder: &str) -> Result<Vec<FileSpec>, Failed> {
    let spec = |name: &str| FileSpec { name: name.to_owned(), url: format!("{folder}/{name}"), sha256: None };
    let mut files = vec![];
    let mut shards = vec!["model.safetensors".to_owned()];
    for name in SIDE_FILES {
        let file = spec(name);
        let Some(remote) = Remote::open(&file.url, 0).await? else { continue };
        if name.ends_with(".index.json") {
            shards = shard_names(&remote.whole(MOST_SIDE_BYTES).await?)?;
        }
        files.push(file);
    }
    if !files.iter().any(|file| file.name == "config.json") {
        let message =
            "there is no config.json: a model is a .gguf file, or a folder with config.json and safetensors";
        return Err(other(format!("{folder}: {message}")));
    }
    files.extend(shards.iter().map(|name| spec(name)));
    Ok(files)
}

async fn small(url: &str) -> Result<Option<Vec<u8>>, Failed> {
    match Remote::open(url, 0).await? {
        Some(remote) => remote.whole(MOST_SIDE_BYTES).await.map(Some),
        None => Ok(None),
    }
}

/// The files of a kept model, all of them there.
pub(super) async fn kept(folder: &Folder, recipe: &Recipe) -> Result<Parts, Failed> {
    let mut parts = Parts::default();
    for spec in &recipe.files {
        let file = folder.file(&spec.name).await?;
        let file = file.ok_or_else(|| other(format!("{} of {} is gone", spec.name, recipe.name)))?;
        parts.add(&spec.name, Arc::new(FileSource::new(&file)))?;
    }
    Ok(parts)
}

/// The files that the user chose.
pub(super) fn chosen(files: &[File]) -> Result<Parts, Failed> {
    let mut parts = Parts::default();
    for file in files {
        parts.add(&file.name(), Arc::new(FileSource::new(file)))?;
    }
    Ok(parts)
}

/// What the user's files are called together.
pub(super) fn chosen_name(names: &[String]) -> String {
    let gguf = names.iter().find_map(|name| name.strip_suffix(".gguf"));
    gguf.unwrap_or("model of this machine").to_owned()
}

/// A model of which little more than heads was read, and how much of it there is.
#[derive(Debug)]
pub(super) struct Outline {
    /// Its weights cannot be read.
    pub(super) model: Model,
    /// Bytes of each file of the recipe.
    pub(super) totals: Vec<u64>,
    /// Bytes that are kept already.
    pub(super) kept: u64,
}

/// One file of a model while heads are read.
enum Part {
    /// It is here.
    Kept(File),
    /// A small one, read whole.
    Small(Vec<u8>),
    /// Weights elsewhere.
    Far { remote: Remote, bytes: Vec<u8> },
    /// Not needed.
    Passed,
}

/// Reads the heads of a model's files, from the network where they are not kept.
pub(super) async fn outline(store: &Store, recipe: &Recipe) -> Result<Outline, Failed> {
    let folder = store.existing(&recipe.name).await?;
    let (mut parts, mut totals, mut kept) = (vec![], vec![], 0);
    for spec in &recipe.files {
        let journal = match &folder {
            Some(folder) => folder.journal(&spec.name).await?,
            None => None,
        };
        let journal = journal.filter(|journal| journal.is_of(&spec.url, spec.sha256.as_deref()));
        kept += journal.as_ref().map_or(0, |journal| journal.kept());
        if let Some(journal) = journal.filter(|journal| journal.complete)
            && let Some(folder) = &folder
            && let Some(file) = folder.file(&spec.name).await?
        {
            totals.push(journal.header.total);
            parts.push(Part::Kept(file));
            continue;
        }
        let remote = Remote::open(&spec.url, 0).await?;
        let remote = remote.ok_or_else(|| other(format!("there is no file at {}", spec.url)))?;
        totals.push(remote.total);
        parts.push(if spec.name == TOKENIZER {
            Part::Passed
        } else if is_side_file(&spec.name) {
            Part::Small(remote.whole(MOST_SIDE_BYTES).await?)
        } else {
            Part::Far { remote, bytes: vec![] }
        });
    }
    let model = read_heads(recipe, &mut parts).await?;
    Ok(Outline { model, totals, kept })
}

/// Reads on until the heads are whole.
async fn read_heads(recipe: &Recipe, parts: &mut [Part]) -> Result<Model, Failed> {
    for part in &mut *parts {
        if let Part::Far { remote, bytes } = part {
            remote.fill(bytes, FIRST_BYTES).await?;
        }
    }
    loop {
        let (mut all, mut heads) = (Parts::default(), vec![]);
        for (spec, part) in recipe.files.iter().zip(&*parts) {
            match part {
                Part::Kept(file) => all.add(&spec.name, Arc::new(FileSource::new(file)))?,
                Part::Small(bytes) => {
                    all.add(&spec.name, Arc::new(Head::new(&spec.name, bytes.len() as u64, bytes.clone())))?;
                }
                Part::Far { remote, bytes } => {
                    let head = Arc::new(Head::new(&spec.name, remote.total, bytes.clone()));
                    heads.push(Arc::clone(&head));
                    all.add(&spec.name, head)?;
                }
                Part::Passed => {}
            }
        }
        let error = match all.checkpoint().and_then(|checkpoint| Model::new(&recipe.name, checkpoint)) {
            Ok(model) => return Ok(model),
            Err(error) => error,
        };
        if heads.iter().all(|head| head.wanted().is_none()) {
            return Err(error.into());
        }
        let far = parts.iter_mut().filter_map(|part| match part {
            Part::Far { remote, bytes } => Some((remote, bytes)),
            _ => None,
        });
        for ((remote, bytes), head) in far.zip(heads) {
            let Some(wanted) = head.wanted() else { continue };
            if wanted > MOST_HEAD_BYTES {
                return Err(error.into());
            }
            let wanted = wanted.max(2 * bytes.len() as u64);
            remote.fill(bytes, wanted).await?;
        }
    }
}
