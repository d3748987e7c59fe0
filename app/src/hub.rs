//! Models from the Hugging Face hub: resumed, cached where every other tool looks, and verified.
//!
//! The hf-hub crate downloads, resumes with ranges and keeps the standard cache; what it leaves out, comparing a
//! file with the SHA-256 that the hub gives for it, is added here.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use hf_hub::api::Progress;
use hf_hub::api::sync::{Api, ApiBuilder, ApiError, ApiRepo};
use hf_hub::{Cache, CacheRepo, Repo, RepoType};
use indicatif::ProgressBar;
use sha2::{Digest, Sha256};
use tread_core::checkpoint::SIDE_FILES;

use crate::progress;

/// Attempts in a row that may bring not one byte before a download is given up.
const ATTEMPTS: u32 = 5;

/// Between two attempts; twice as long after each that brings nothing.
const FIRST_WAIT: Duration = Duration::from_millis(500);

/// `org/name[@revision][:file]`.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Id<'a> {
    repo: &'a str,
    revision: &'a str,
    file: Option<&'a str>,
}

impl<'a> Id<'a> {
    pub(crate) fn parse(text: &'a str) -> Option<Self> {
        let (rest, file) = text.split_once(':').map_or((text, None), |(rest, file)| (rest, Some(file)));
        let (repo, revision) = rest.split_once('@').unwrap_or((rest, "main"));
        let (org, name) = repo.split_once('/')?;
        let good = |part: &str| {
            let plain = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
            !part.is_empty() && !part.starts_with('.') && part.chars().all(plain)
        };
        let path_good = |path: &str| path.split('/').all(good);
        (good(org) && good(name) && path_good(revision) && file.is_none_or(path_good)).then_some(Self {
            repo,
            revision,
            file,
        })
    }
}

/// The cache folder, as every other tool finds it (HF_HOME).
pub(crate) fn cache_folder() -> PathBuf {
    Cache::from_env().path().clone()
}

/// Downloads what a model needs and is not in the cache; returns its GGUF file or its folder.
pub(crate) fn fetch(text: &str) -> Result<PathBuf> {
    let id = Id::parse(text)
        .ok_or_else(|| anyhow!("`{text}` is not of the form org/name[@revision][:file.gguf]"))?;
    let repo = Repo::with_revision(id.repo.to_owned(), RepoType::Model, id.revision.to_owned());
    let cache = Cached(Cache::from_env().repo(repo.clone()));
    if let Some(path) = cache.complete(&id) {
        return Ok(path);
    }
    if std::env::var("HF_HUB_OFFLINE").is_ok_and(|v| !matches!(v.as_str(), "" | "0" | "false")) {
        bail!("{text} is not in the cache {} and HF_HUB_OFFLINE is set", cache_folder().display());
    }
    let api: Api = ApiBuilder::from_env()
        .with_token(std::env::var("HF_TOKEN").ok().or_else(|| Cache::from_env().token()))
        .build()
        .context("preparing to download")?;
    let remote = Remote { repo: api.repo(repo), api, cache, id };
    remote.fetch()
}

struct Remote<'a> {
    api: Api,
    repo: ApiRepo,
    cache: Cached,
    id: Id<'a>,
}

impl Remote<'_> {
    fn fetch(&self) -> Result<PathBuf> {
        let info = self.repo.info().map_err(|e| explain(&e, self.id.repo, None))?;
        let names: Vec<&str> = info.siblings.iter().map(|s| s.rfilename.as_str()).collect();
        if let Some(file) = self.id.file {
            if !names.contains(&file) {
                bail!("{} has no file {file}; it has: {}", self.id.repo, names.join(", "));
            }
            return self.download(file);
        }
        let ggufs: Vec<&str> = names.iter().copied().filter(|n| n.ends_with(".gguf")).collect();
        let has = |name: &str| names.contains(&name);
        if !has("config.json") || !names.iter().any(|n| n.ends_with(".safetensors")) {
            match ggufs[..] {
                [] => bail!("{} holds neither a GGUF file nor config.json with safetensors", self.id.repo),
                [one] => return self.download(one),
                _ => bail!(
                    "{} holds several GGUF files: name one as {}:FILE; it has {}",
                    self.id.repo,
                    self.id.repo,
                    ggufs.join(", ")
                ),
            }
        }
        let mut folder = None;
        for name in SIDE_FILES.into_iter().filter(|name| has(name)) {
            let path = self.download(name)?;
            folder = path.parent().map(Path::to_owned);
        }
        let weights = names.iter().filter(|n| n.starts_with("model") && n.ends_with(".safetensors"));
        for name in weights {
            self.download(name)?;
        }
        folder.context("the cache has no folder for the model")
    }

    /// One file, from the cache or the hub; what comes from the hub is verified.
    fn download(&self, name: &str) -> Result<PathBuf> {
        if let Some(path) = self.cache.verified(name) {
            return Ok(path);
        }
        let marker = self.cache.unverified_marker(name);
        write_marker(&marker).with_context(|| format!("writing {}", marker.display()))?;
        let path = match self.cache.0.get(name) {
            Some(path) => path,
            None => self.resume(name).map_err(|e| explain(&e, self.id.repo, Some(name)))?,
        };
        verify(&path, name)?;
        std::fs::remove_file(&marker).with_context(|| format!("removing {}", marker.display()))?;
        Ok(path)
    }

    /// Downloads a file, going on where the last attempt or the last start stopped. hf-hub can retry by itself, but
    /// gives up after a fixed number of breaks, however far it came between them.
    fn resume(&self, name: &str) -> Result<PathBuf, ApiError> {
        let bar = progress::bytes(name, 0);
        let (mut attempts, mut reached) = (0, 0);
        loop {
            let error = match self.repo.download_with_progress(name, Bar(bar.clone())) {
                Ok(path) => return Ok(path),
                Err(error) => error,
            };
            if bar.position() > reached {
                (attempts, reached) = (0, bar.position());
            }
            attempts += 1;
            let code = status(&error);
            if attempts == ATTEMPTS || code.is_some_and(is_final) {
                return Err(error);
            }
            // Nothing is left to be asked for, and yet the file was not put in its place: it begins anew.
            if matches!(error, ApiError::InvalidResume) || code == Some(416) {
                let blob = self.cache.0.blob_path(self.api.metadata(&self.repo.url(name))?.etag());
                std::fs::remove_file(blob.with_extension("part"))?;
            }
            std::thread::sleep(FIRST_WAIT * 2u32.pow(attempts - 1));
        }
    }
}

fn write_marker(path: &Path) -> std::io::Result<()> {
    path.parent().map_or(Ok(()), std::fs::create_dir_all)?;
    std::fs::write(path, "")
}

/// A model's place in the cache that all tools share.
struct Cached(CacheRepo);

impl Cached {
    /// Stands beside the blobs from before a file is downloaded until it is verified: Tread may be ended in between.
    fn unverified_marker(&self, name: &str) -> PathBuf {
        self.0.blob_path(&format!("{}.unverified", name.replace('/', "--")))
    }

    /// The file, if it is there and nothing is left to be done with it.
    fn verified(&self, name: &str) -> Option<PathBuf> {
        self.0.get(name).filter(|_| !self.unverified_marker(name).exists())
    }

    /// The model, if everything it needs is there.
    fn complete(&self, id: &Id<'_>) -> Option<PathBuf> {
        if let Some(file) = id.file {
            return self.verified(file);
        }
        let Some(config) = self.verified("config.json") else { return self.only_gguf(id.revision) };
        let shards = match self.verified("model.safetensors.index.json") {
            Some(index) => {
                let index: serde_json::Value = serde_json::from_slice(&std::fs::read(index).ok()?).ok()?;
                let map = index.get("weight_map")?.as_object()?;
                map.values()
                    .map(|shard| shard.as_str().map(str::to_owned))
                    .collect::<Option<BTreeSet<_>>>()?
            }
            None => BTreeSet::from(["model.safetensors".to_owned()]),
        };
        let all = shards.iter().all(|shard| self.verified(shard).is_some());
        config.parent().filter(|_| all).map(Path::to_owned)
    }

    /// The one GGUF file there is of a model without config.json.
    fn only_gguf(&self, revision: &str) -> Option<PathBuf> {
        let root = self.0.pointer_path("");
        let commit = std::fs::read_to_string(root.parent()?.join("refs").join(revision)).ok()?;
        let entries = std::fs::read_dir(self.0.pointer_path(&commit)).ok()?;
        let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
        let mut ggufs = names.filter(|name| name.ends_with(".gguf"));
        let one = ggufs.next().filter(|_| ggufs.next().is_none())?;
        self.verified(&one)
    }
}

/// Compares a downloaded file with the SHA-256 under which the hub keeps it; removes it if it differs.
///
/// Large files are stored by their SHA-256, which the cache takes as the blob's name. Small ones (configurations)
/// are stored by a git hash and are checked by being parsed.
fn verify(pointer: &Path, name: &str) -> Result<()> {
    let blob = std::fs::canonicalize(pointer).with_context(|| format!("reading {}", pointer.display()))?;
    let expected = blob.file_name().and_then(|n| n.to_str()).unwrap_or_default().to_owned();
    if expected.len() != 64 || !expected.chars().all(|c| c.is_ascii_hexdigit()) {
        return Ok(());
    }
    let mut file = std::fs::File::open(&blob).with_context(|| format!("reading {}", blob.display()))?;
    let mut hash = Sha256::new();
    let bar = progress::bytes(&format!("verifying {name}"), file.metadata().map_or(0, |m| m.len()));
    std::io::copy(&mut bar.wrap_read(&mut file), &mut HashWriter(&mut hash))
        .with_context(|| format!("reading {}", blob.display()))?;
    bar.finish_and_clear();
    let found: String = hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
    if found == expected.to_lowercase() {
        return Ok(());
    }
    for path in [pointer, &blob] {
        std::fs::remove_file(path).with_context(|| format!("removing the damaged {}", path.display()))?;
    }
    bail!(
        "{name} was damaged on its way: its SHA-256 is {found}, but the hub says {expected}. It was removed; try again"
    )
}

struct HashWriter<'a>(&'a mut Sha256);

impl std::io::Write for HashWriter<'_> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.update(bytes);
        Ok(bytes.len())
    }
    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// A progress bar as hf-hub wants it. After a break it is told to begin anew, then how far the file is.
struct Bar(ProgressBar);

impl Progress for Bar {
    fn init(&mut self, size: usize, _filename: &str) {
        self.0.set_length(size as u64);
        self.0.set_position(0);
    }
    fn update(&mut self, size: usize) {
        self.0.inc(size as u64);
    }
    fn finish(&mut self) {
        self.0.finish_and_clear();
    }
}

/// The HTTP status that the hub answered, if it answered.
fn status(error: &ApiError) -> Option<u16> {
    match error {
        ApiError::RequestError(request) => match **request {
            ureq::Error::StatusCode(code) => Some(code),
            _ => None,
        },
        _ => None,
    }
}

/// Whether another attempt would be answered the same.
fn is_final(status: u16) -> bool {
    matches!(status, 401 | 403 | 404)
}

/// What a failed request means and what to do.
fn explain(error: &ApiError, repo: &str, file: Option<&str>) -> anyhow::Error {
    let endpoint = std::env::var("HF_ENDPOINT").unwrap_or_else(|_| "https://huggingface.co".to_owned());
    let what = file.map_or_else(|| repo.to_owned(), |file| format!("{file} of {repo}"));
    // The hub answers 401 for what does not exist as well as for what is private.
    let hint = match status(error) {
        Some(404) => format!("{endpoint} knows no model {what}"),
        Some(401 | 403) => format!(
            "{endpoint} does not give {what} to everybody, or it does not exist: check the name, accept the model's licence there, and set HF_TOKEN"
        ),
        _ => format!(
            "{what} cannot be had from {endpoint}; without the hub, give a local file or folder: tread chat ./model.gguf"
        ),
    };
    // Not as its source: the errors of hf-hub and ureq repeat theirs.
    anyhow!("{hint} ({error})")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_told_from_paths() {
        let id = Id::parse("org/na-me.1@rev:a/b.gguf").unwrap();
        assert_eq!(id, Id { repo: "org/na-me.1", revision: "rev", file: Some("a/b.gguf") });
        assert_eq!(Id::parse("org/name").unwrap().revision, "main");
        assert_eq!(Id::parse("org/name@refs/pr/1").unwrap().revision, "refs/pr/1");
        for wrong in [
            "name",
            "a/b/c",
            "../up",
            "org/",
            "/abs",
            "org/name:../x",
            "org/na me",
            "org/name@",
            "org/name@../x",
        ] {
            assert_eq!(Id::parse(wrong), None, "{wrong}");
        }
    }
}
