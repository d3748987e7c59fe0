//! Grammars of well-formed tool calls, for requests that want one.

use std::fmt::Write as _;

use serde_json::{Value, json};

use super::step3::{
    CALL_BEGIN, CALL_END, CALLS_BEGIN, CALLS_END, INVOKE, INVOKE_END, PARAMETER, PARAMETER_END, SEPARATOR,
};
use super::{Tool, ToolFormat, tools};
use crate::grammar::{GrammarSpec, check_schema, lark_string, with_bounded_space};
use crate::text::Tokenizer;
use crate::{Error, Result};

/// Which calls an answer must consist of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ToolChoice {
    /// At least one call, of any tool (one call at most where the format knows no more).
    Required,
    /// One call, of any tool.
    One,
    /// One call of this tool.
    Named(String),
}

impl ToolFormat {
    /// The grammar of an answer that consists of calls of `available`, a list as in the OpenAI API, with arguments
    /// that obey the tools' schemas. In Step-3's markup, strings are free text without `<` whatever their pattern or
    /// format.
    ///
    /// # Errors
    /// [`Error::Config`] when the tools are not such a list, do not include the chosen one, or have schemas with more
    /// than a grammar should have.
    pub fn grammar(
        self,
        available: &Value,
        choice: &ToolChoice,
        tokenizer: &Tokenizer,
    ) -> Result<GrammarSpec> {
        let mut tools = tools(available)?;
        if let ToolChoice::Named(name) = choice {
            tools.retain(|tool| tool.name == name);
            if tools.is_empty() {
                return Err(Error::Config(format!(
                    "tool_choice names `{name}`, which is not among the tools"
                )));
            }
        }
        if tools.is_empty() {
            return Err(Error::Config("tool_choice demands a tool call, but there are no tools".into()));
        }
        // The grammar's compiler sees only text.
        check_schema(available)?;
        let several = *choice == ToolChoice::Required;
        let marker = |spellings: &[&str]| marker(tokenizer, spellings);
        let mut rules = match self {
            Self::Hermes => {
                let (open, close) = (marker(&["<tool_call>"]), marker(&["</tool_call>"]));
                let more = if several { r#" ("\n" call)*"# } else { "" };
                format!("start: call{more}\ncall: {open} \"\\n\" tool \"\\n\" {close}\n")
            }
            Self::Llama3 => "start: tool\n".to_owned(),
            Self::Step3 => {
                let more = if several { "+" } else { "" };
                let [begin, end, open, close, separator] =
                    [CALLS_BEGIN, CALLS_END, CALL_BEGIN, CALL_END, SEPARATOR]
                        .map(|spellings| marker(&spellings));
                format!(
                    "start: {begin} call{more} {end}\ncall: {open} \"function\" {separator} tool {close}\n\
                     TEXT: /[^<]+/\n"
                )
            }
        };
        let names: Vec<String> = (0..tools.len()).map(|i| format!("tool_{i}")).collect();
        rules += &format!("tool: {}\n", names.join(" | "));
        for (i, tool) in tools.iter().enumerate() {
            match self {
                Self::Hermes => json_tool(&mut rules, i, tool, "arguments"),
                Self::Llama3 => json_tool(&mut rules, i, tool, "parameters"),
                Self::Step3 => step3_tool(&mut rules, i, tool)?,
            }
        }
        Ok(GrammarSpec::Lark(rules))
    }
}

/// How Lark names a marker: a special token by its id, for it is no text; else text, in the spelling that is a token.
fn marker(tokenizer: &Tokenizer, spellings: &[&str]) -> String {
    let token = spellings.iter().find_map(|&spelling| Some((spelling, tokenizer.token_id(spelling)?)));
    match token {
        Some((_, id)) if tokenizer.is_special(id) => format!("<[{id}]>"),
        Some((spelling, _)) => lark_string(spelling),
        None => lark_string(spellings.first().unwrap_or(&"")),
    }
}

/// Each tool's schema is a document of its own, so that references within it hold.
fn json_tool(rules: &mut String, i: usize, tool: &Tool<'_>, arguments: &str) {
    let start = lark_string(&format!("{{\"name\": {}, \"{arguments}\": ", Value::from(tool.name)));
    let any = json!({ "type": "object" });
    let schema = with_bounded_space(tool.parameters.unwrap_or(&any));
    // Writing to a string cannot fail.
    let _ = writeln!(rules, "tool_{i}: {start} arguments_{i} \"}}\"\narguments_{i}: %json {schema}");
}

fn step3_tool(rules: &mut String, i: usize, tool: &Tool<'_>) -> Result<()> {
    let empty = json!({});
    let schema = tool.parameters.unwrap_or(&empty);
    let required = |name: &str| {
        let names = schema.get("required").and_then(Value::as_array);
        names.is_some_and(|names| names.iter().any(|required| required == name))
    };
    let properties = schema.get("properties").and_then(Value::as_object);
    let mut parameters = String::new();
    let mut values = String::new();
    for (j, (name, property)) in properties.into_iter().flatten().enumerate() {
        let open = lark_string(&format!("{PARAMETER}{}\">", attribute(name)?));
        let mark = if required(name) { "" } else { "?" };
        let _ = write!(parameters, " parameter_{i}_{j}{mark}");
        let _ = writeln!(
            values,
            "parameter_{i}_{j}: {open} value_{i}_{j} {}\nvalue_{i}_{j}: {}",
            lark_string(PARAMETER_END),
            value(property, schema)
        );
    }
    let open = lark_string(&format!("{INVOKE}{}\">", attribute(tool.name)?));
    let _ = write!(rules, "tool_{i}: {open}{parameters} {}\n{values}", lark_string(INVOKE_END));
    Ok(())
}

/// The name of a tool or parameter as it stands between quotes.
fn attribute(name: &str) -> Result<&str> {
    if name.is_empty() || name.contains('"') {
        return Err(Error::Config(format!("`{name}` is no name for a tool or parameter; rename it")));
    }
    Ok(name)
}

/// A parameter's value: strings as they are, everything else as JSON.
fn value(property: &Value, root: &Value) -> String {
    let strings = |list: &Value| -> Option<Vec<String>> {
        list.as_array()?.iter().map(|value| value.as_str().map(lark_string)).collect()
    };
    if let Some(values) = property.get("enum").and_then(strings).filter(|values| !values.is_empty()) {
        return values.join(" | ");
    }
    let json = match property.get("type") {
        Some(Value::String(name)) => name != "string",
        Some(Value::Array(names)) => !names.iter().any(|name| name == "string"),
        _ => {
            property.get("$ref").is_some()
                || property.get("enum").is_some()
                || property.get("const").is_some()
        }
    };
    if !json {
        return "TEXT?".to_owned();
    }
    let mut schema = with_bounded_space(property);
    if let Some(object) = schema.as_object_mut() {
        for key in ["$defs", "definitions"] {
            if let Some(definitions) = root.get(key) {
                object.entry(key).or_insert_with(|| definitions.clone());
            }
        }
    }
    format!("%json {schema}")
}
