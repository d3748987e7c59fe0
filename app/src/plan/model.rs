//! From what the user calls a model to its sizes.

use std::path::Path;

use anyhow::{Context as _, Result, bail};

use super::shape::Shape;
use crate::{embedded, load};

/// Models whose sizes are in the binary: name, and the keys of its config.json that matter.
const KNOWN: [(&str, &str, &str); 9] = [
    ("step3", "Step-3", include_str!("../../data/plan/models/step3.json")),
    ("deepseek-v3", "DSv3", include_str!("../../data/plan/models/deepseek-v3.json")),
    ("kimi-k2", "Kimi K2", include_str!("../../data/plan/models/kimi-k2.json")),
    ("qwen3-235b-a22b", "Qwen3 MoE", include_str!("../../data/plan/models/qwen3-235b-a22b.json")),
    ("qwen3-32b", "Qwen3 32B", include_str!("../../data/plan/models/qwen3-32b.json")),
    ("llama4-maverick", "Llama 4 M", include_str!("../../data/plan/models/llama4-maverick.json")),
    ("minimax-m1", "MM M1", include_str!("../../data/plan/models/minimax-m1.json")),
    ("ernie-4.5", "ERNIE 4.5", include_str!("../../data/plan/models/ernie-4.5.json")),
    ("pangu-pro", "Pangu Pro", include_str!("../../data/plan/models/pangu-pro.json")),
];

/// What the user listed, `all` replaced.
pub(super) fn names(asked: &[String]) -> Vec<String> {
    let all = || KNOWN.iter().map(|(name, ..)| (*name).to_owned()).collect();
    asked.iter().flat_map(|name| if name == "all" { all() } else { vec![name.clone()] }).collect()
}

pub(super) fn shape(name: &str) -> Result<Shape> {
    if let Some((_, title, json)) = KNOWN.iter().find(|(known, ..)| *known == name) {
        return Shape::from_json(title, &serde_json::from_str(json)?);
    }
    let path = Path::new(name);
    let file = if path.is_dir() { path.join("config.json") } else { path.to_owned() };
    if file.extension().is_some_and(|extension| extension == "json") && file.exists() {
        let text =
            std::fs::read_to_string(&file).with_context(|| format!("cannot read {}", file.display()))?;
        let json = serde_json::from_str(&text).with_context(|| format!("{} is not JSON", file.display()))?;
        return Shape::from_json(name, &json).with_context(|| format!("model {name}"));
    }
    // Whatever else is here already; nothing is downloaded for a plan.
    if name == embedded::NAME || path.exists() {
        return Ok(Shape::of_config(name, &load::model(Some(name))?.config));
    }
    let known = KNOWN.iter().map(|(known, ..)| *known).collect::<Vec<_>>().join(", ");
    bail!(
        "there is no model `{name}` to plan for; known are {known}, all, {}, and a config.json, a folder with one, or a GGUF file",
        embedded::NAME
    )
}
