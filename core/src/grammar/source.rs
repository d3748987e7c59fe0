//! What a grammar is compiled from, here or elsewhere.

use serde::{Deserialize, Serialize};

/// What an answer must look like.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum GrammarSpec {
    /// Any JSON object.
    JsonObject,
    /// JSON that a JSON Schema describes.
    JsonSchema(#[serde(with = "json_text")] serde_json::Value),
    /// Text that a regular expression matches as a whole.
    Regex(String),
    /// One of these texts.
    Choice(Vec<String>),
    /// A grammar in llguidance's variant of Lark.
    Lark(String),
}

/// All that a [`super::Grammar`] is made of; see [`super::GrammarCompiler::compile_source`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct GrammarSource {
    /// What the answer must look like
    pub spec: GrammarSpec,
    /// after this text, if there is one.
    pub after: Option<String>,
}

/// JSON as its text: not every format of serde's has a form for values whose type is not known before.
mod json_text {
    use serde::{Deserialize as _, Deserializer, Serializer, de};
    use serde_json::Value;

    pub(super) fn serialize<S: Serializer>(value: &Value, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(value)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Value, D::Error> {
        serde_json::from_str(&String::deserialize(from)?).map_err(de::Error::custom)
    }
}
