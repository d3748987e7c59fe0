//! The functions a conversation offers to the model.

use serde_json::Value;
use tread_core::grammar::GrammarSpec;
use tread_core::text::{Tokenizer, ToolChoice, ToolFormat, explain_tools};

use super::super::App;
use super::super::error::ApiError;
use super::ChatFields;

/// Tools that the model may or must call.
#[derive(Clone, Debug)]
pub(super) struct Tools {
    /// As the client sent them.
    pub(super) schemas: Value,
    pub(super) choice: Chosen,
    /// Whether an answer may hold several calls.
    pub(super) parallel: bool,
    /// How the model writes calls.
    pub(super) format: ToolFormat,
}

/// What `tool_choice` says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Chosen {
    Auto,
    Required,
    Named(String),
}

impl Tools {
    /// The tools of a request; none, if it has none or wants none called.
    pub(super) fn new(app: &App, fields: &ChatFields) -> Result<Option<Self>, ApiError> {
        let schemas = fields.tools.as_deref().unwrap_or_default();
        let names =
            schemas.iter().enumerate().map(|(n, tool)| name(n, tool)).collect::<Result<Vec<_>, _>>()?;
        let Some(choice) = choice(fields.tool_choice.as_ref(), &names)? else { return Ok(None) };
        Ok(Some(Self {
            schemas: Value::Array(schemas.to_vec()),
            choice,
            parallel: fields.parallel_tool_calls.unwrap_or(true),
            format: ToolFormat::of(app.model.template()?.source()),
        }))
    }

    /// What the answer has to look like, if a call is required.
    pub(super) fn structure(&self, tokenizer: &Tokenizer) -> Result<Option<GrammarSpec>, ApiError> {
        let choice = match &self.choice {
            Chosen::Auto => return Ok(None),
            Chosen::Required if self.parallel => ToolChoice::Required,
            Chosen::Required => ToolChoice::One,
            Chosen::Named(name) => ToolChoice::Named(name.clone()),
        };
        let spec = self.format.grammar(&self.schemas, &choice, tokenizer);
        spec.map(Some).map_err(|e| ApiError::from(e).about("tools"))
    }

    /// For models whose template says nothing about tools.
    pub(super) fn explanation(&self) -> String {
        explain_tools(&self.schemas)
    }
}

fn name(n: usize, tool: &Value) -> Result<&str, ApiError> {
    let wrong = |field: &str, what: &str| {
        let param = format!("tools[{n}].{field}");
        Err(ApiError::param(param.clone(), format!("`{param}` must be {what}")))
    };
    if tool.get("type").and_then(Value::as_str) != Some("function") {
        return wrong("type", "`function`: no other tools are known");
    }
    let function = tool.get("function");
    if function.and_then(|f| f.get("parameters")).is_some_and(|p| !p.is_object() && !p.is_null()) {
        return wrong("function.parameters", "a JSON Schema of an object");
    }
    match function.and_then(|f| f.get("name")).and_then(Value::as_str) {
        Some(name) if !name.is_empty() => Ok(name),
        _ => wrong("function.name", "a name"),
    }
}

fn choice(value: Option<&Value>, names: &[&str]) -> Result<Option<Chosen>, ApiError> {
    let wrong = |message: String| Err(ApiError::param("tool_choice", message));
    let chosen = match value {
        None | Some(Value::Null) => Chosen::Auto,
        Some(Value::String(text)) => match text.as_str() {
            "none" => return Ok(None),
            "auto" => Chosen::Auto,
            "required" => Chosen::Required,
            other => {
                return wrong(format!(
                    "tool_choice is `{other}`, but must be none, auto, required or a function"
                ));
            }
        },
        Some(value) => match value.pointer("/function/name").and_then(Value::as_str) {
            Some(name) if names.contains(&name) => Chosen::Named(name.to_owned()),
            Some(name) => return wrong(format!("tool_choice names `{name}`, which is not among the tools")),
            None => {
                return wrong(
                    "tool_choice must be none, auto, required, or {\"type\": \"function\", \"function\": {\"name\": ...}}"
                        .to_owned(),
                );
            }
        },
    };
    if names.is_empty() && chosen == Chosen::Required {
        return wrong("tool_choice is `required`, but there are no tools".to_owned());
    }
    Ok((!names.is_empty()).then_some(chosen))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::{Chosen, choice, name};

    #[test]
    fn choices_are_read_and_checked() {
        let named = json!({"type": "function", "function": {"name": "a"}});
        for (value, names, expected) in [
            (None, &["a"][..], Some(Chosen::Auto)),
            (Some(json!(null)), &["a"], Some(Chosen::Auto)),
            (Some(json!("auto")), &[], None),
            (Some(json!("none")), &["a"], None),
            (Some(json!("required")), &["a"], Some(Chosen::Required)),
            (Some(named.clone()), &["b", "a"], Some(Chosen::Named("a".to_owned()))),
        ] {
            assert_eq!(choice(value.as_ref(), names).unwrap(), expected, "{value:?}");
        }
        for (value, names, part) in [
            (json!("always"), &["a"][..], "`always`"),
            (json!("required"), &[], "no tools"),
            (named, &["b"], "`a`"),
            (json!({"name": "a"}), &["a"], "must be"),
            (json!(1), &["a"], "must be"),
        ] {
            let error = choice(Some(&value), names).unwrap_err();
            assert!(error.message().contains(part), "{error:?}");
        }
    }

    #[test]
    fn tools_are_functions_with_names() {
        let check = |tool: Value| name(2, &tool).map(str::to_owned);
        assert_eq!(check(json!({"type": "function", "function": {"name": "f"}})).unwrap(), "f");
        for (tool, part) in [
            (json!({}), "`tools[2].type`"),
            (json!({"type": "web_search"}), "`tools[2].type`"),
            (json!({"type": "function"}), "`tools[2].function.name`"),
            (json!({"type": "function", "function": {"name": ""}}), "`tools[2].function.name`"),
            (json!({"type": "function", "function": {"name": "f", "parameters": []}}), "JSON Schema"),
        ] {
            let error = check(tool).unwrap_err();
            assert!(error.message().contains(part), "{error:?}");
        }
    }
}
