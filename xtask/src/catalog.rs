//! The page's catalogue: the models of `app/models/catalog.json` that a browser can hold, and those it has beside it.

use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result, bail};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

/// No browser holds more.
const MOST_BYTES: u64 = 8_000_000_000;

/// The files that make up a model that lies beside the catalogue.
const FILES: [&str; 6] = [
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "model.safetensors.index.json",
    "model-00001-of-00001.safetensors",
];

/// Writes `catalog.json` into the folder `to`, and the models beside it.
pub(crate) fn write(from: &Path, to: &Path) -> Result<()> {
    let path = from.join("catalog.json");
    let text = fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
    let entries: Vec<Value> = serde_json::from_slice(&text).context("the catalogue")?;
    let mut models = vec![];
    for entry in entries {
        let bytes = entry["bytes"].as_u64().context("an entry without bytes")?;
        if bytes > MOST_BYTES {
            continue;
        }
        let mut model =
            json!({ "name": entry["name"], "about": entry["about"], "licence": entry["licence"] });
        match entry["hub"].as_str() {
            Some(hub) => {
                let Some((repository, file)) = hub.split_once(':') else {
                    bail!("{hub}: a browser is told which file to load");
                };
                model["base"] = json!(format!("https://huggingface.co/{repository}/resolve/main"));
                model["files"] = json!([{ "path": file, "bytes": bytes }]);
            }
            None => {
                model["files"] = copy(from, to, entry["name"].as_str().context("an entry without a name")?)?
            }
        }
        models.push(model);
    }
    fs::write(to.join("catalog.json"), serde_json::to_string_pretty(&json!({ "models": models }))?)?;
    Ok(())
}

/// Copies the files of a model; returns what the catalogue says of them.
fn copy(from: &Path, to: &Path, name: &str) -> Result<Value> {
    fs::create_dir_all(to.join(name))?;
    let mut files = vec![];
    for file in FILES {
        let path = from.join(name).join(file);
        let content = fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
        fs::write(to.join(name).join(file), &content)?;
        let sha256: String = Sha256::digest(&content).iter().map(|byte| format!("{byte:02x}")).collect();
        files.push(json!({ "path": format!("{name}/{file}"), "bytes": content.len(), "sha256": sha256 }));
    }
    Ok(Value::Array(files))
}
