//! Models that the browser keeps, in its origin private file system: a folder each, with a recipe and, beside every file,
//! its journal.

use js_sys::{AsyncIterator, Reflect};
use wasm_bindgen::prelude::*;
use web_sys::{
    File, FileSystemDirectoryHandle, FileSystemFileHandle, FileSystemGetDirectoryOptions,
    FileSystemGetFileOptions, FileSystemReadWriteOptions, FileSystemRemoveOptions,
    FileSystemSyncAccessHandle, StorageEstimate,
};

use super::failure::{Failed, failed, other};
use super::journal::Journal;
use super::js::{is_named, scope, text, wait};
use super::recipe::Recipe;
use crate::protocol::{FailureKind, StoredModel};

/// The folder of all models.
const FOLDER: &str = "models";
/// What a model's folder says about itself.
const RECIPE: &str = "recipe.json";

/// All kept models.
#[derive(Clone, Debug)]
pub(super) struct Store(FileSystemDirectoryHandle);

impl Store {
    /// Opens the browser's storage; fails in private windows of some browsers.
    pub(super) async fn open() -> Result<Self, Failed> {
        let refused = |error: JsValue| {
            let message = "this browser keeps no files here (a private window?), so models cannot be downloaded; choose \
                           a file of this machine instead, or use an ordinary window";
            other(format!("{message}: {}", text(&error)))
        };
        let root: FileSystemDirectoryHandle =
            wait(scope().navigator().storage().get_directory()).await.map_err(refused)?;
        let options = FileSystemGetDirectoryOptions::new();
        options.set_create(true);
        let models = wait(root.get_directory_handle_with_options(FOLDER, &options)).await.map_err(refused)?;
        Ok(Self(models))
    }

    /// The folder of a model, made if it is not there.
    pub(super) async fn folder(&self, name: &str) -> Result<Folder, Failed> {
        let options = FileSystemGetDirectoryOptions::new();
        options.set_create(true);
        let folder = wait(self.0.get_directory_handle_with_options(name, &options)).await;
        folder.map(Folder).map_err(|error| storage(name, &error))
    }

    /// The folder of a model; none when it is not there.
    pub(super) async fn existing(&self, name: &str) -> Result<Option<Folder>, Failed> {
        match wait(self.0.get_directory_handle(name)).await {
            Err(error) if is_named(&error, "NotFoundError") => Ok(None),
            Err(error) => Err(storage(name, &error)),
            Ok(folder) => Ok(Some(Folder(folder))),
        }
    }

    /// The recipes of all models.
    pub(super) async fn recipes(&self) -> Result<Vec<Recipe>, Failed> {
        let mut recipes = vec![];
        for name in names(&self.0).await? {
            // It may be deleted meanwhile, and is not made again by being looked at.
            let Some(folder) = self.existing(&name).await? else { continue };
            let recipe = folder.read(RECIPE).await?.and_then(|text| serde_json::from_str(&text).ok());
            // A folder that says nothing is left from a crash; it can still be deleted.
            recipes.push(Recipe { name: name.clone(), ..recipe.unwrap_or_default() });
        }
        recipes.sort_by(|a: &Recipe, b| a.name.cmp(&b.name));
        Ok(recipes)
    }

    /// The recipe of a model.
    pub(super) async fn recipe(&self, name: &str) -> Result<Recipe, Failed> {
        let found = self.recipes().await?.into_iter().find(|recipe| recipe.name == name);
        let found = found.filter(|recipe| !recipe.files.is_empty());
        found.ok_or_else(|| other(format!("no model `{name}` is kept in this browser")))
    }

    /// What is kept.
    pub(super) async fn list(&self) -> Result<Vec<StoredModel>, Failed> {
        let mut models = vec![];
        for recipe in self.recipes().await? {
            let Some(folder) = self.existing(&recipe.name).await? else { continue };
            let mut model = StoredModel { name: recipe.name, url: recipe.url, ..StoredModel::default() };
            for file in &recipe.files {
                if let Some(journal) = folder.journal(&file.name).await? {
                    model.bytes += journal.kept();
                    model.total += journal.header.total;
                }
            }
            models.push(model);
        }
        Ok(models)
    }

    /// Deletes a model.
    pub(super) async fn delete(&self, name: &str) -> Result<(), Failed> {
        let options = FileSystemRemoveOptions::new();
        options.set_recursive(true);
        match wait::<JsValue>(self.0.remove_entry_with_options(name, &options)).await {
            Err(error) if !is_named(&error, "NotFoundError") => Err(storage(name, &error)),
            _ => Ok(()),
        }
    }
}

/// Bytes that this origin's storage takes, and may take.
pub(super) async fn estimate() -> (Option<u64>, Option<u64>) {
    let Ok(promise) = scope().navigator().storage().estimate() else { return (None, None) };
    let Ok(estimate) = wait::<StorageEstimate>(promise).await else { return (None, None) };
    (estimate.get_usage().map(|bytes| bytes as u64), estimate.get_quota().map(|bytes| bytes as u64))
}

/// The names in a folder.
async fn names(folder: &FileSystemDirectoryHandle) -> Result<Vec<String>, Failed> {
    let failed = |error: JsValue| storage(FOLDER, &error);
    let keys: AsyncIterator = folder.keys();
    let mut names = vec![];
    loop {
        let next: JsValue = wait(keys.next().map_err(failed)?).await.map_err(failed)?;
        if Reflect::get(&next, &"done".into()).is_ok_and(|done| done.is_truthy()) {
            return Ok(names);
        }
        names.extend(Reflect::get(&next, &"value".into()).ok().and_then(|name| name.as_string()));
    }
}

/// A model's folder.
#[derive(Clone, Debug)]
pub(super) struct Folder(FileSystemDirectoryHandle);

impl Folder {
    /// Writes down which files belong here.
    pub(super) async fn describe(&self, recipe: &Recipe) -> Result<(), Failed> {
        let text = serde_json::to_string(recipe).map_err(|error| other(error.to_string()))?;
        let access = self.access(RECIPE).await?;
        access.truncate(0)?;
        access.write(0, text.as_bytes())
    }

    /// The text of a file; none when it is not there.
    async fn read(&self, name: &str) -> Result<Option<String>, Failed> {
        let Some(file) = self.file(name).await? else { return Ok(None) };
        let text = wait::<JsValue>(file.text()).await.map_err(|error| storage(name, &error))?;
        Ok(text.as_string())
    }

    /// What is known of a file; none: nothing.
    pub(super) async fn journal(&self, name: &str) -> Result<Option<Journal>, Failed> {
        Ok(self.read(&journal_name(name)).await?.and_then(|text| Journal::parse(&text)))
    }

    /// A file as it is now; none when it is not there.
    pub(super) async fn file(&self, name: &str) -> Result<Option<File>, Failed> {
        match wait::<FileSystemFileHandle>(self.0.get_file_handle(name)).await {
            Err(error) if is_named(&error, "NotFoundError") => Ok(None),
            Err(error) => Err(storage(name, &error)),
            Ok(handle) => wait(handle.get_file()).await.map(Some).map_err(|error| storage(name, &error)),
        }
    }

    /// Opens a file for writing, made if it is not there. One at a time can have it.
    pub(super) async fn access(&self, name: &str) -> Result<Access, Failed> {
        let options = FileSystemGetFileOptions::new();
        options.set_create(true);
        let handle: FileSystemFileHandle = wait(self.0.get_file_handle_with_options(name, &options))
            .await
            .map_err(|error| storage(name, &error))?;
        let handle = wait(handle.create_sync_access_handle()).await.map_err(|error| storage(name, &error))?;
        Ok(Access { name: name.to_owned(), handle })
    }

    /// Deletes a file and its journal.
    pub(super) async fn remove(&self, name: &str) {
        for name in [journal_name(name), name.to_owned()] {
            // It may not be there.
            let _ = wait::<JsValue>(self.0.remove_entry(&name)).await;
        }
    }
}

/// The file in which the journal of a file is.
pub(super) fn journal_name(name: &str) -> String {
    format!("{name}.journal")
}

/// A file that is being written.
#[derive(Debug)]
pub(super) struct Access {
    name: String,
    handle: FileSystemSyncAccessHandle,
}

impl Access {
    pub(super) fn write(&self, at: u64, bytes: &[u8]) -> Result<(), Failed> {
        let options = FileSystemReadWriteOptions::new();
        options.set_at(at as f64);
        let mut done = 0;
        while done < bytes.len() {
            options.set_at((at + done as u64) as f64);
            match self.handle.write_with_u8_array_and_options(&bytes[done..], &options) {
                Ok(written) if written >= 1.0 => done += written as usize,
                Ok(_) => return Err(full(&self.name, (bytes.len() - done) as u64)),
                Err(error) if is_named(&error, "QuotaExceededError") => {
                    return Err(full(&self.name, (bytes.len() - done) as u64));
                }
                Err(error) => return Err(storage(&self.name, &error)),
            }
        }
        self.handle.flush().map_err(|error| storage(&self.name, &error))
    }

    pub(super) fn truncate(&self, bytes: u64) -> Result<(), Failed> {
        self.handle.truncate_with_f64(bytes as f64).map_err(|error| storage(&self.name, &error))
    }
}

impl Drop for Access {
    fn drop(&mut self) {
        self.handle.close();
    }
}

/// The browser gives no more room.
pub(super) fn full(name: &str, bytes: u64) -> Failed {
    let message = format!(
        "the browser's storage is full: {bytes} more bytes of {name} do not fit; delete kept models, or free space on \
         this machine"
    );
    failed(FailureKind::Other, message)
}

fn storage(name: &str, error: &JsValue) -> Failed {
    if is_named(error, "NoModificationAllowedError") {
        return other(format!("{name} is in use by another tab of this browser; close it and try again"));
    }
    if is_named(error, "QuotaExceededError") {
        return other("the browser's storage is full; delete kept models, or free space on this machine");
    }
    other(format!("the browser's storage failed at {name}: {}", text(error)))
}
