//! Tool calls: how models of several families write them, read while they stream, and forced where wanted.

mod cast;
mod cursor;
mod explain;
#[cfg(feature = "grammar")]
mod force;
mod json;
mod step3;

use serde_json::Value;

pub use explain::explain_tools;
#[cfg(feature = "grammar")]
pub use force::ToolChoice;

use self::cursor::{Read, Stop};
use crate::{Error, Result};

/// How a model writes tool calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ToolFormat {
    /// Step-3: `<｜tool_calls_begin｜>` and XML within.
    Step3,
    /// Hermes and Qwen: `<tool_call>{"name": ..., "arguments": {...}}</tool_call>`.
    Hermes,
    /// Llama 3: an answer of nothing but `{"name": ..., "parameters": {...}}`.
    Llama3,
}

impl ToolFormat {
    /// The format that a chat template mentions; Hermes if none, for that is what [`explain_tools`] teaches.
    pub fn of(template_source: &str) -> Self {
        let mentions = |text: &str| template_source.contains(text);
        if mentions("tool_calls_begin") || mentions("steptml") {
            Self::Step3
        } else if mentions("<tool_call>") {
            Self::Hermes
        } else if mentions("\"parameters\":") || mentions("<|python_tag|>") {
            Self::Llama3
        } else {
            Self::Hermes
        }
    }
}

/// What a piece of an answer has brought.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ToolSplit {
    /// Text outside of tool calls.
    pub content: String,
    /// What is new of tool calls, in order.
    pub calls: Vec<CallDelta>,
}

/// Something new of one tool call.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CallDelta {
    /// Which of the answer's calls, from 0.
    pub index: usize,
    /// The tool's name, in the first delta of a call.
    pub name: Option<String>,
    /// A piece of the arguments; all of a call together are their JSON text.
    pub arguments: String,
}

/// Splits an answer into content and tool calls while it streams. Needs text with special tokens in it.
///
/// Markup that turns out not to be a call is given back as content. What was told of a call stands, even if it breaks
/// off. How the text is cut into pieces makes no difference.
#[derive(Clone, Debug)]
pub struct ToolCallParser {
    /// Text not yet understood.
    held: String,
    format: Format,
    /// Calls begun.
    calls: usize,
}

#[derive(Clone, Debug)]
enum Format {
    Step3(step3::Step3),
    Json(json::JsonCalls),
}

impl ToolCallParser {
    /// A parser at the start of an answer (after its reasoning). `tools` are the request's, as in the OpenAI API.
    pub fn new(format: ToolFormat, tools: &Value) -> Self {
        let format = match format {
            ToolFormat::Step3 => Format::Step3(step3::Step3::new(tools)),
            ToolFormat::Hermes => Format::Json(json::JsonCalls::hermes()),
            ToolFormat::Llama3 => Format::Json(json::JsonCalls::llama3(tools)),
        };
        Self { held: String::new(), format, calls: 0 }
    }

    /// Takes the next piece of text.
    pub fn push(&mut self, text: &str) -> ToolSplit {
        self.held.push_str(text);
        let mut out = Out { split: ToolSplit::default(), calls: &mut self.calls };
        loop {
            let step = match &mut self.format {
                Format::Step3(step3) => step3.step(&self.held, &mut out),
                Format::Json(json) => json.step(&self.held, &mut out),
            };
            match step {
                Ok(used) => drop(self.held.drain(..used)),
                Err(Stop::More) => return out.split,
                // Only the opening is certain to be no markup: the text after it is looked at again.
                Err(Stop::Wrong) => {
                    let used = match &mut self.format {
                        Format::Step3(step3) => step3.give_up(&self.held),
                        Format::Json(json) => json.give_up(&self.held),
                    };
                    out.split.content.extend(self.held.drain(..used));
                }
            }
        }
    }

    /// What is still held back, at the end of the answer.
    pub fn finish(&mut self) -> ToolSplit {
        let held = std::mem::take(&mut self.held);
        let markup = match &self.format {
            Format::Step3(step3) => step3.belongs_to_call(&held),
            Format::Json(json) => json.belongs_to_call(),
        };
        ToolSplit { content: if markup { String::new() } else { held }, calls: vec![] }
    }
}

/// Where a parser puts what it finds.
struct Out<'a> {
    split: ToolSplit,
    calls: &'a mut usize,
}

impl Out<'_> {
    fn content(&mut self, text: &str) {
        self.split.content.push_str(text);
    }

    /// A new call.
    fn call(&mut self, name: String, arguments: String) {
        self.split.calls.push(CallDelta { index: *self.calls, name: Some(name), arguments });
        *self.calls += 1;
    }

    /// More of the arguments of the last call.
    fn arguments(&mut self, text: &str) {
        if text.is_empty() {
            return;
        }
        let index = self.calls.saturating_sub(1);
        match self.split.calls.last_mut() {
            Some(last) if last.index == index => last.arguments.push_str(text),
            _ => self.split.calls.push(CallDelta { index, name: None, arguments: text.to_owned() }),
        }
    }
}

/// A tool of the request.
struct Tool<'a> {
    name: &'a str,
    /// The JSON Schema of its arguments; none takes anything.
    parameters: Option<&'a Value>,
}

/// The request's tools.
///
/// # Errors
/// [`Error::Config`] when they are not a list of functions with names.
fn tools(tools: &Value) -> Result<Vec<Tool<'_>>> {
    let function = |tool| {
        let function = Value::get(tool, "function").unwrap_or(tool);
        let name = function.get("name").and_then(Value::as_str).filter(|name| !name.is_empty());
        Some(Tool { name: name?, parameters: function.get("parameters").filter(|p| !p.is_null()) })
    };
    let list = tools.as_array().and_then(|list| list.iter().map(function).collect());
    list.ok_or_else(|| {
        Error::Config(r#"tools must be a list of {"type": "function", "function": {"name": ...}}"#.into())
    })
}

#[cfg(test)]
mod tests;
