//! Which files make up a model, and where each comes from.

use serde::{Deserialize, Serialize};

use super::failure::{Failed, other};

/// A model's files. Kept beside them, so that a download can go on without the page that began it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Recipe {
    /// The folder's name, for people too.
    pub(super) name: String,
    /// Where the model came from.
    pub(super) url: String,
    /// All files.
    pub(super) files: Vec<FileSpec>,
}

/// One file.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct FileSpec {
    /// Its name in the model's folder.
    pub(super) name: String,
    /// Where it is.
    pub(super) url: String,
    /// Its SHA-256 in lower-case hexadecimal digits, if somebody said so.
    pub(super) sha256: Option<String>,
}

/// `models/catalog.json`.
#[derive(Debug, Deserialize)]
struct Catalog {
    models: Vec<Entry>,
}

#[derive(Debug, Deserialize)]
struct Entry {
    name: String,
    /// What paths begin with; none: the catalogue's own folder.
    base: Option<String>,
    files: Vec<EntryFile>,
}

#[derive(Debug, Deserialize)]
struct EntryFile {
    path: String,
    sha256: Option<String>,
}

/// The entry `name` of a catalogue that lies in the folder `home`.
pub(super) fn from_catalog(catalog: &str, home: &str, name: &str) -> Result<Recipe, Failed> {
    let catalog: Catalog = serde_json::from_str(catalog)
        .map_err(|error| other(format!("the catalogue cannot be read: {error}")))?;
    let known: Vec<_> = catalog.models.iter().map(|entry| entry.name.as_str()).collect();
    let Some(entry) = catalog.models.iter().find(|entry| entry.name == name) else {
        return Err(other(format!(
            "there is no model `{name}` in the catalogue; it has: {}",
            known.join(", ")
        )));
    };
    let base = entry.base.as_deref().unwrap_or(home);
    let files = entry.files.iter().map(|file| FileSpec {
        name: last_part(&file.path).to_owned(),
        url: format!("{}/{}", base.trim_end_matches('/'), file.path),
        sha256: file.sha256.clone(),
    });
    let files: Vec<_> = files.collect();
    let url = files.first().map(|file| file.url.clone()).unwrap_or_default();
    Ok(Recipe { name: entry.name.clone(), url, files })
}

/// What an address names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Address {
    /// One file that is a whole model.
    Gguf(FileSpec),
    /// A folder with config.json and safetensors; without a slash at the end.
    Folder(String),
}

impl Address {
    /// Understands what users paste: a file, a folder, a repository of the Hugging Face hub or a page of it.
    pub(super) fn parse(url: &str) -> Result<Self, Failed> {
        let (address, fragment) = url.trim().split_once('#').unwrap_or((url.trim(), ""));
        if !(address.starts_with("https://") || address.starts_with("http://")) {
            return Err(other(format!(
                "`{url}` is no address of a model: it must begin with https:// or http://"
            )));
        }
        let sha256 = fragment.strip_prefix("sha256=").map(hash).transpose()?;
        let address = hub(address);
        let path = address.split('?').next().unwrap_or_default();
        if path.ends_with(".gguf") {
            return Ok(Self::Gguf(FileSpec { name: file_name(path), url: address, sha256 }));
        }
        if sha256.is_some() {
            return Err(other(format!("`{url}` gives a hash for a folder; only a .gguf file can have one")));
        }
        let folder = path.strip_suffix("/config.json").unwrap_or(path);
        if last_part(folder).ends_with(".safetensors") {
            let message =
                "one safetensors file is not a whole model: give the folder that holds it and config.json";
            return Err(other(message.to_owned()));
        }
        Ok(Self::Folder(folder.trim_end_matches('/').to_owned()))
    }
}

/// A SHA-256 as it is compared.
fn hash(text: &str) -> Result<String, Failed> {
    is_sha256(text)
        .then(|| text.to_ascii_lowercase())
        .ok_or_else(|| other(format!("`{text}` is no SHA-256: it must have 64 hexadecimal digits")))
}

/// Whether a text is a SHA-256 in hexadecimal digits.
pub(super) fn is_sha256(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|byte| byte.is_ascii_hexdigit())
}

/// On the Hugging Face hub, files lie under `resolve/REVISION`; their pages under `blob` and `tree`.
fn hub(url: &str) -> String {
    let Some(rest) = url.strip_prefix("https://huggingface.co/") else { return url.to_owned() };
    let parts: Vec<_> = rest.trim_end_matches('/').split('/').collect();
    match parts[..] {
        [owner, name] => format!("https://huggingface.co/{owner}/{name}/resolve/main"),
        [owner, name, "blob" | "tree", ref rest @ ..] => {
            format!("https://huggingface.co/{owner}/{name}/resolve/{}", rest.join("/"))
        }
        _ => url.to_owned(),
    }
}

fn last_part(path: &str) -> &str {
    path.trim_end_matches('/').rsplit('/').next().unwrap_or_default()
}

/// A name that any storage takes.
pub(super) fn file_name(path: &str) -> String {
    let part = last_part(path);
    let allowed = |c: char| if c.is_alphanumeric() || "-_.".contains(c) { c } else { '_' };
    part.trim_start_matches('.').chars().map(allowed).take(120).collect()
}

/// The folder for a model from `url`: that of the same address, else a name that nobody has yet.
pub(super) fn folder_name(url: &str, kept: &[Recipe]) -> String {
    if let Some(recipe) = kept.iter().find(|recipe| recipe.url == url) {
        return recipe.name.clone();
    }
    let path = url.split(['?', '#']).next().unwrap_or_default();
    // In `.../SmolLM2-135M-Instruct/resolve/main` the last parts say nothing.
    let path = path.split("/resolve/").next().filter(|_| !path.ends_with(".gguf")).unwrap_or(path);
    let name = file_name(path);
    let name = name.strip_suffix(".gguf").unwrap_or(&name);
    let name = if name.is_empty() { "model" } else { name };
    let free = |name: &String| !kept.iter().any(|recipe| recipe.name == *name);
    let numbered = (2..).map(|n| format!("{name}-{n}"));
    std::iter::once(name.to_owned()).chain(numbered).find(free).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::{Address, FileSpec, Recipe, file_name, folder_name, from_catalog};

    const HASH: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

    #[test]
    fn addresses_name_files_and_folders() {
        let folder = |url: &str| Address::Folder(url.to_owned());
        let file = |name: &str, url: &str, sha256: Option<&str>| {
            let sha256 = sha256.map(str::to_owned);
            Address::Gguf(FileSpec { name: name.to_owned(), url: url.to_owned(), sha256 })
        };
        let hashed = format!("http://a/b.gguf#sha256={}", HASH.to_uppercase());
        for (url, expected) in [
            ("http://a/b.gguf", file("b.gguf", "http://a/b.gguf", None)),
            ("https://a/b.gguf?download=true", file("b.gguf", "https://a/b.gguf?download=true", None)),
            (&hashed, file("b.gguf", "http://a/b.gguf", Some(HASH))),
            (" https://a/model/ ", folder("https://a/model")),
            ("https://a/model/config.json", folder("https://a/model")),
            ("https://huggingface.co/o/n", folder("https://huggingface.co/o/n/resolve/main")),
            ("https://huggingface.co/o/n/tree/main", folder("https://huggingface.co/o/n/resolve/main")),
            (
                "https://huggingface.co/o/n/blob/main/x.gguf",
                file("x.gguf", "https://huggingface.co/o/n/resolve/main/x.gguf", None),
            ),
        ] {
            assert_eq!(Address::parse(url).unwrap(), expected, "{url}");
        }
    }

    #[test]
    fn what_is_no_address_is_refused_by_name() {
        for (url, part) in [
            ("nano", "must begin with"),
            ("file:///etc/passwd", "must begin with"),
            ("http://a/b.gguf#sha256=12", "64 hexadecimal digits"),
            (&format!("http://a/b#sha256={HASH}"), "for a folder"),
            ("http://a/model.safetensors", "not a whole model"),
        ] {
            let error = Address::parse(url).unwrap_err();
            assert!(error.message.contains(part), "{url}: {error:?}");
        }
    }

    #[test]
    fn names_are_safe_and_free() {
        assert_eq!(file_name("https://a/b/../x y.gguf"), "x_y.gguf");
        assert_eq!(file_name("https://a/.."), "");
        assert_eq!(file_name("a/..hidden"), "hidden");
        let kept = |name: &str, url: &str| Recipe { name: name.into(), url: url.into(), files: vec![] };
        let others = [kept("m", "http://a/m.gguf"), kept("m-2", "http://b/m.gguf")];
        assert_eq!(folder_name("http://a/m.gguf", &others), "m");
        assert_eq!(folder_name("http://b/m.gguf", &others), "m-2");
        assert_eq!(folder_name("http://c/m.gguf", &others), "m-3");
        assert_eq!(folder_name("http://c/n.gguf?x=1", &others), "n");
        assert_eq!(folder_name("https://huggingface.co/o/n/resolve/main", &others), "n");
        assert_eq!(folder_name("http://c/..", &others), "model");
    }

    #[test]
    fn catalogues_are_relative_unless_they_say_otherwise() {
        let catalog = format!(
            r#"{{"models":[
                {{"name":"nano","about":"a","licence":"b","files":[{{"path":"nano/config.json","bytes":3,"sha256":"{HASH}"}}]}},
                {{"name":"far","base":"https://h/o","files":[{{"path":"x.gguf","bytes":9}}]}}]}}"#
        );
        let nano = from_catalog(&catalog, "http://p/models", "nano").unwrap();
        let file = FileSpec {
            name: "config.json".into(),
            url: "http://p/models/nano/config.json".into(),
            sha256: Some(HASH.into()),
        };
        assert_eq!(nano, Recipe { name: "nano".into(), url: file.url.clone(), files: vec![file] });
        let far = from_catalog(&catalog, "http://p/models", "far").unwrap();
        assert_eq!(far.files[0].url, "https://h/o/x.gguf");
        let error = from_catalog(&catalog, "", "other").unwrap_err();
        assert!(error.message.contains("nano, far"), "{error:?}");
        assert!(from_catalog("<html>", "", "nano").is_err());
    }
}
