//! What the small JSON files beside the weights say about text.

use std::collections::BTreeMap;

use serde_json::Value;

use super::{TextFiles, TokenizerFile, json};
use crate::Result;

/// Reads tokenizer.json, tokenizer_config.json, chat_template.jinja, generation_config.json and config.json.
pub(super) fn read(files: &BTreeMap<String, Vec<u8>>, config: &Value) -> Result<TextFiles> {
    let tokenizer_config = json(files, "tokenizer_config.json")?.unwrap_or_default();
    let generation = json(files, "generation_config.json")?.unwrap_or_default();
    let template_file = files.get("chat_template.jinja").map(|b| String::from_utf8_lossy(b).into_owned());
    let mut eos_token_ids = vec![];
    // A multimodal configuration may name it for its text model.
    let text_config = config.get("text_config").unwrap_or(&Value::Null);
    for value in [config, text_config, &generation].into_iter().filter_map(|file| file.get("eos_token_id")) {
        let ids = value.as_array().map_or_else(|| vec![value], |list| list.iter().collect());
        for id in ids.into_iter().filter_map(Value::as_u64).filter_map(|id| u32::try_from(id).ok()) {
            if !eos_token_ids.contains(&id) {
                eos_token_ids.push(id);
            }
        }
    }
    // Greedy by the model's own word: nothing to suggest.
    let sampled = generation.get("do_sample").and_then(Value::as_bool).unwrap_or(true);
    let suggestion = |key: &str| generation.get(key).filter(|_| sampled);
    Ok(TextFiles {
        tokenizer: files.get("tokenizer.json").cloned().map(TokenizerFile::Json),
        chat_template: template_file.or_else(|| chat_template(&tokenizer_config)),
        bos_token: token(&tokenizer_config, "bos_token"),
        eos_token: token(&tokenizer_config, "eos_token"),
        eos_token_ids,
        temperature: suggestion("temperature").and_then(Value::as_f64).map(|t| t as f32),
        top_p: suggestion("top_p").and_then(Value::as_f64).map(|p| p as f32),
        top_k: suggestion("top_k").and_then(Value::as_u64).and_then(|k| usize::try_from(k).ok()),
    })
}

/// A string, or the `default` of a list of named templates.
fn chat_template(config: &Value) -> Option<String> {
    let template = config.get("chat_template")?;
    let default = |t: &&Value| t.get("name").and_then(Value::as_str) == Some("default");
    let chosen = match template.as_array() {
        Some(list) => list.iter().find(default)?.get("template")?,
        None => template,
    };
    chosen.as_str().map(str::to_owned)
}

/// A token given as a string or as `{"content": ...}`.
fn token(config: &Value, key: &str) -> Option<String> {
    let value = config.get(key)?;
    value.as_str().or_else(|| value.get("content").and_then(Value::as_str)).map(str::to_owned)
}
