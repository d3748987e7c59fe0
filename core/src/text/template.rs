//! Chat templates: the model's own Jinja source turns messages into a prompt, as `apply_chat_template` of
//! Hugging Face transformers does.

use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Kwargs, Serde};
use minijinja::{Environment, ErrorKind, Value, context};
use minijinja_contrib::pycompat::unknown_method_callback;
use serde::{Deserialize, Serialize};

use super::{strftime, tojson};
use crate::{Error, Result};

/// One message of a conversation.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Message {
    /// `system`, `user`, `assistant`, `tool`, or what else the template knows.
    pub role: String,
    /// The text.
    pub content: String,
    /// Further fields the template may read: `tool_calls`, `reasoning_content`, `name`, ...
    #[serde(flatten)]
    pub extra: serde_json::Map<String, serde_json::Value>,
}

impl Message {
    /// A message of a role and a text.
    pub fn new(role: impl Into<String>, content: impl Into<String>) -> Self {
        Self { role: role.into(), content: content.into(), extra: serde_json::Map::new() }
    }
}

/// A compiled chat template.
#[derive(Debug)]
pub struct ChatTemplate {
    environment: Environment<'static>,
    source: String,
    bos: String,
    eos: String,
}

const NAME: &str = "chat_template";

impl ChatTemplate {
    /// Compiles a template; `bos` and `eos` are the strings it sees as `bos_token` and `eos_token`.
    ///
    /// # Errors
    /// [`Error::Text`] with the line of a syntax error.
    pub fn new(source: impl Into<String>, bos: Option<&str>, eos: Option<&str>) -> Result<Self> {
        let source = source.into();
        let mut environment = Environment::new();
        // The settings transformers gives Jinja.
        let syntax = SyntaxConfig::builder()
            .trim_blocks(true)
            .lstrip_blocks(true)
            .build()
            .map_err(|e| Error::Text(e.to_string()))?;
        environment.set_syntax(syntax);
        environment.set_unknown_method_callback(unknown_method_callback);
        environment.add_filter("tojson", |value: &Value, indent: Option<usize>, kwargs: Kwargs| {
            tojson::tojson(value, indent, &kwargs)
        });
        environment.add_function("raise_exception", raise_exception);
        environment.add_function("strftime_now", strftime::now);
        environment.add_template_owned(NAME, without_generation_tags(&source)).map_err(|e| {
            Error::Text(format!("the chat template does not compile: {e}; `tread run` works without one"))
        })?;
        let text = |token: Option<&str>| token.unwrap_or_default().to_owned();
        Ok(Self { environment, source, bos: text(bos), eos: text(eos) })
    }

    /// The Jinja source.
    pub fn source(&self) -> &str {
        &self.source
    }

    /// The prompt for `messages`. `tools` is a list of function schemas as in the OpenAI API;
    /// `add_generation_prompt` opens the assistant's turn.
    ///
    /// # Errors
    /// [`Error::Text`] when the template refuses the messages or fails.
    pub fn render(
        &self,
        messages: &[Message],
        tools: Option<&serde_json::Value>,
        add_generation_prompt: bool,
    ) -> Result<String> {
        self.render_with(messages, tools, add_generation_prompt, &serde_json::Map::new())
    }

    /// [`ChatTemplate::render`] with further variables for the template, such as `enable_thinking`. They do not replace
    /// those it has in any case.
    ///
    /// # Errors
    /// As [`ChatTemplate::render`].
    pub fn render_with(
        &self,
        messages: &[Message],
        tools: Option<&serde_json::Value>,
        add_generation_prompt: bool,
        variables: &serde_json::Map<String, serde_json::Value>,
    ) -> Result<String> {
        let failed = |e: minijinja::Error| Error::Text(explain(&e));
        let context = context! {
            messages => Serde(messages),
            tools => Serde(tools),
            documents => Value::from(()),
            add_generation_prompt,
            bos_token => self.bos.as_str(),
            eos_token => self.eos.as_str(),
            ..Value::from(Serde(variables))
        };
        self.environment.get_template(NAME).and_then(|t| t.render(context)).map_err(failed)
    }

    /// [`ChatTemplate::render_with`], cut after the last message's own text whatever the template writes behind it, as
    /// transformers does: for the model to go on with that message.
    ///
    /// # Errors
    /// As [`ChatTemplate::render`], and when the template does not write the text as it stands.
    pub fn render_unfinished(
        &self,
        messages: &[Message],
        tools: Option<&serde_json::Value>,
        variables: &serde_json::Map<String, serde_json::Value>,
    ) -> Result<String> {
        let mut text = self.render_with(messages, tools, false, variables)?;
        let last = messages.last().map(|message| message.content.trim()).unwrap_or_default();
        match text.rfind(last) {
            Some(at) if !last.is_empty() => {
                text.truncate(at + last.len());
                Ok(text)
            }
            _ => Err(Error::Text(
                "the last message cannot be continued: the model's template does not write its text as it stands"
                    .to_owned(),
            )),
        }
    }

    /// Whether the template tells the model about tools. For one that does not,
    /// [`explain_tools`](super::explain_tools) writes a system message that does.
    pub fn knows_tools(&self) -> bool {
        let tools = serde_json::json!([{
            "type": "function",
            "function": {
                "name": "a_tool",
                "description": "A tool.",
                "parameters": { "type": "object", "properties": {} },
            },
        }]);
        let messages = [Message::new("user", "Hello")];
        let with = self.render(&messages, Some(&tools), true);
        with.is_ok_and(|with| self.render(&messages, None, true).is_ok_and(|without| with != without))
    }
}

/// A template's own refusal is for the user and stands alone; anything else says where it happened.
fn explain(error: &minijinja::Error) -> String {
    match (error.kind(), error.detail()) {
        (ErrorKind::InvalidOperation, Some(detail)) if detail.starts_with(REFUSAL) => detail.to_owned(),
        _ => format!("the chat template failed: {error}"),
    }
}

const REFUSAL: &str = "the chat template refuses these messages: ";

fn raise_exception(message: &str) -> Result<String, minijinja::Error> {
    Err(minijinja::Error::new(ErrorKind::InvalidOperation, format!("{REFUSAL}{message}")))
}

/// `{% generation %}` marks the assistant's tokens for training and does nothing else; Jinja does not know it.
fn without_generation_tags(source: &str) -> String {
    let mut source = source.to_owned();
    for open in ["{% ", "{%- "] {
        source = source.replace(&format!("{open}generation "), &format!("{open}if true "));
        source = source.replace(&format!("{open}endgeneration "), &format!("{open}endif "));
    }
    source
}
