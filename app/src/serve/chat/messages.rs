//! From OpenAI's messages to the model's own way of writing a conversation.

use serde_json::{Map, Value, json};
use tread_core::text::Message;

use super::super::App;
use super::super::error::ApiError;
use super::ChatFields;
use super::tools::Tools;

/// The prompt for a conversation.
pub(super) fn render(app: &App, fields: ChatFields, tools: Option<&Tools>) -> Result<String, ApiError> {
    let template = app.model.template()?;
    let continues = fields.continue_final_message.unwrap_or(false);
    let opens = fields.add_generation_prompt.unwrap_or(!continues);
    if continues && opens {
        return Err(ApiError::param(
            "continue_final_message",
            "continue_final_message and add_generation_prompt exclude each other",
        ));
    }
    let mut messages = read(fields.messages)?;
    if let Some(tools) = tools.filter(|_| !template.knows_tools()) {
        explain(&mut messages, tools.explanation());
    }
    let schemas = tools.filter(|_| template.knows_tools()).map(|tools| &tools.schemas);
    let variables = fields.chat_template_kwargs.unwrap_or_default();
    if continues {
        let text = template.render_unfinished(&messages, schemas, &variables);
        return text.map_err(|error| ApiError::from(error).about("continue_final_message"));
    }
    Ok(template.render_with(&messages, schemas, opens, &variables)?)
}

/// Messages as templates expect them.
pub(super) fn read(messages: Vec<Map<String, Value>>) -> Result<Vec<Message>, ApiError> {
    if messages.is_empty() {
        return Err(ApiError::param("messages", "`messages` is empty: send at least one"));
    }
    messages.into_iter().enumerate().map(|(index, fields)| message(index, fields)).collect()
}

fn message(index: usize, mut fields: Map<String, Value>) -> Result<Message, ApiError> {
    let param = |field: &str| format!("messages[{index}].{field}");
    let wrong = |field: &str, what: &str| {
        let param = param(field);
        ApiError::param(param.clone(), format!("`{param}` must be {what}"))
    };
    let role = match fields.shift_remove("role") {
        // OpenAI's newer name; templates know the older.
        Some(Value::String(role)) if role == "developer" => "system".to_owned(),
        Some(Value::String(role)) if !role.is_empty() => role,
        _ => return Err(wrong("role", "a string: system, user, assistant or tool")),
    };
    // Templates take a field that is null for one that is there.
    fields.retain(|_, value| !value.is_null());
    if let Some(calls) = fields.get_mut("tool_calls") {
        let calls = calls.as_array_mut().ok_or_else(|| wrong("tool_calls", "a list"))?;
        for (n, call) in calls.iter_mut().enumerate() {
            parse_arguments(call).map_err(|what| wrong(&format!("tool_calls[{n}].function"), &what))?;
        }
        if calls.is_empty() {
            fields.shift_remove("tool_calls");
        }
    }
    let content = match fields.shift_remove("content") {
        Some(Value::String(text)) => text,
        Some(Value::Array(parts)) => texts(&param("content"), &parts)?,
        None if role == "assistant" => String::new(),
        _ => return Err(wrong("content", "a string or a list of text parts")),
    };
    Ok(Message { role, content, extra: fields })
}

/// Templates iterate over arguments, but clients send them as the text of a JSON object.
fn parse_arguments(call: &mut Value) -> Result<(), String> {
    let function = call.get_mut("function").and_then(Value::as_object_mut);
    let function = function.ok_or("an object with name and arguments")?;
    if !function.get("name").is_some_and(Value::is_string) {
        return Err("an object with a name".to_owned());
    }
    let arguments = match function.get("arguments") {
        None | Some(Value::Null) => json!({}),
        Some(Value::String(text)) if text.trim().is_empty() => json!({}),
        Some(Value::String(text)) => {
            serde_json::from_str(text).map_err(|error| format!("called with arguments in JSON ({error})"))?
        }
        Some(value) => value.clone(),
    };
    if !arguments.is_object() {
        return Err("called with arguments that are a JSON object".to_owned());
    }
    function.insert("arguments".to_owned(), arguments);
    Ok(())
}

/// The text of content that comes in parts, a line each as in vLLM.
fn texts(param: &str, parts: &[Value]) -> Result<String, ApiError> {
    let text = |(n, part): (usize, &Value)| -> Result<String, ApiError> {
        let param = format!("{param}[{n}]");
        match part.get("type").and_then(Value::as_str) {
            Some("text" | "input_text" | "output_text" | "refusal") => {
                let text = part.get("text").or_else(|| part.get("refusal")).and_then(Value::as_str);
                text.map(str::to_owned)
                    .ok_or_else(|| ApiError::param(param.clone(), format!("`{param}` has no text")))
            }
            Some(other) => Err(ApiError::param(
                param,
                format!("content of the type `{other}` is not supported: this server reads text only"),
            )),
            None => {
                Err(ApiError::param(param.clone(), format!("`{param}` has no type; text parts have `text`")))
            }
        }
    };
    Ok(parts.iter().enumerate().map(text).collect::<Result<Vec<_>, _>>()?.join("\n"))
}

/// Tells a model about tools whose template cannot.
fn explain(messages: &mut Vec<Message>, explanation: String) {
    match messages.first_mut().filter(|first| first.role == "system") {
        Some(system) => {
            system.content.push_str("\n\n");
            system.content.push_str(&explanation);
        }
        None => messages.insert(0, Message::new("system", explanation)),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::read;

    fn messages(json: Value) -> Result<Vec<tread_core::text::Message>, super::ApiError> {
        read(serde_json::from_value(json).unwrap())
    }

    #[test]
    fn messages_become_what_templates_read() {
        let read = messages(json!([
            {"role": "developer", "content": [{"type": "text", "text": "Be"}, {"type": "text", "text": "brief."}]},
            {"role": "user", "content": "Hi", "name": "Ann"},
            {"role": "assistant", "content": null, "refusal": null, "reasoning_content": "hm",
             "tool_calls": [{"id": "1", "type": "function", "function": {"name": "f", "arguments": "{\"a\": [1]}"}}]},
            {"role": "tool", "content": "4", "tool_call_id": "1"},
        ]))
        .unwrap();
        assert_eq!((read[0].role.as_str(), read[0].content.as_str()), ("system", "Be\nbrief."));
        assert_eq!(read[1].extra["name"], "Ann");
        assert_eq!(read[2].content, "");
        assert_eq!(read[2].extra["tool_calls"][0]["function"]["arguments"], json!({"a": [1]}));
        assert_eq!(read[2].extra["reasoning_content"], "hm");
        assert!(!read[2].extra.contains_key("refusal"));
        assert_eq!(read[3].extra["tool_call_id"], "1");
    }

    #[test]
    fn what_is_wrong_with_a_message_is_named() {
        let call = |function: Value| json!([{"role": "assistant", "tool_calls": [{"function": function}]}]);
        for (json, part) in [
            (json!([]), "`messages` is empty"),
            (json!([{"content": "a"}]), "`messages[0].role`"),
            (json!([{"role": "user", "content": "a"}, {"role": "user"}]), "`messages[1].content`"),
            (json!([{"role": "user", "content": 3}]), "`messages[0].content`"),
            (json!([{"role": "user", "content": [{"type": "image_url"}]}]), "`image_url` is not supported"),
            (json!([{"role": "user", "content": [{"text": "a"}]}]), "has no type"),
            (
                json!([{"role": "user", "content": [{"type": "text"}]}]),
                "`messages[0].content[0]` has no text",
            ),
            (json!([{"role": "assistant", "tool_calls": 1}]), "`messages[0].tool_calls`"),
            (call(json!({})), "`messages[0].tool_calls[0].function`"),
            (call(json!({"name": "f", "arguments": "{"})), "arguments in JSON"),
            (call(json!({"name": "f", "arguments": "[]"})), "a JSON object"),
        ] {
            let error = messages(json).unwrap_err();
            assert!(error.message().contains(part), "{error:?}");
        }
    }
}
