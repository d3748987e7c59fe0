//! Conversations as files: JSON to be read again, Markdown for people.

use std::fmt::Write as _;

use serde::{Deserialize, Serialize};

use super::conversation::Conversation;

/// What the files say they are.
const FORMAT: &str = "tread-conversations";
/// The newest form that is understood.
const VERSION: u32 = 1;
/// Most bytes of a file that is read.
pub const MOST_BYTES: usize = 64 << 20;

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Document {
    format: String,
    version: u32,
    conversations: Vec<Conversation>,
}

/// Only what tells whether the rest can be read.
#[derive(Deserialize)]
struct Header {
    format: String,
    version: u32,
}

/// Conversations as JSON.
pub fn to_json(conversations: Vec<Conversation>) -> String {
    let document = Document { format: FORMAT.to_owned(), version: VERSION, conversations };
    // Plain data always has a JSON form.
    serde_json::to_string_pretty(&document).unwrap_or_default()
}

/// Conversations of JSON that may come from anywhere.
pub fn from_json(json: &str) -> Result<Vec<Conversation>, String> {
    if json.len() > MOST_BYTES {
        return Err(format!("it is larger than {} MiB", MOST_BYTES >> 20));
    }
    let header: Header = serde_json::from_str(json)
        .map_err(|error| format!("it is not a file of Tread\u{2019}s conversations ({error})"))?;
    if header.format != FORMAT {
        return Err("it is not a file of Tread\u{2019}s conversations".to_owned());
    }
    if header.version != VERSION {
        return Err(format!(
            "it has the form {}, and this page reads {VERSION}: a newer Tread wrote it",
            header.version
        ));
    }
    let document: Document =
        serde_json::from_str(json).map_err(|error| format!("it is damaged ({error})"))?;
    for conversation in &document.conversations {
        conversation.check().map_err(|why| format!("it is damaged: in one conversation, {why}"))?;
    }
    Ok(document.conversations)
}

/// What is shown of a conversation, as Markdown.
pub fn to_markdown(conversation: &Conversation) -> String {
    let mut text = format!("# {}\n", conversation.title);
    if !conversation.settings.system.trim().is_empty() {
        section(&mut text, "System", &conversation.settings.system);
    }
    for node in conversation.path().into_iter().filter_map(|node| conversation.nodes.get(node)) {
        let message = &node.message;
        let name = match (message.role.as_str(), &node.outcome) {
            ("user", _) => "You".to_owned(),
            ("tool", _) => "Result of a tool".to_owned(),
            (_, Some(outcome)) if !outcome.model.is_empty() => outcome.model.clone(),
            _ => "Assistant".to_owned(),
        };
        section(&mut text, &name, &message.content);
        for call in &message.tool_calls {
            // Writing to a string cannot fail.
            _ = write!(text, "\nCalls `{}`:\n\n", call.function.name);
            fenced(&mut text, "json", &call.function.arguments);
        }
    }
    text
}

fn section(text: &mut String, name: &str, content: &str) {
    _ = write!(text, "\n## {name}\n\n{}\n", content.trim());
}

/// Code between fences that it does not have itself.
fn fenced(text: &mut String, language: &str, code: &str) {
    let mut fence = "```".to_owned();
    while code.contains(&fence) {
        fence.push('`');
    }
    _ = write!(text, "{fence}{language}\n{code}\n{fence}\n");
}

/// A name for a file.
pub fn file_name(title: &str, extension: &str) -> String {
    let plain = |c: char| if c.is_alphanumeric() { c.to_lowercase().next().unwrap_or(c) } else { '-' };
    let words: Vec<String> = title
        .chars()
        .map(plain)
        .collect::<String>()
        .split('-')
        .filter(|w| !w.is_empty())
        .map(str::to_owned)
        .collect();
    let name: String = words.join("-").chars().take(50).collect();
    format!("{}.{extension}", if name.is_empty() { "conversation" } else { &name })
}

#[cfg(test)]
mod tests {
    use super::{file_name, from_json, to_json, to_markdown};
    use crate::chat::conversation::{Conversation, Outcome};
    use crate::chat::{Function, Message, ToolCall};

    fn talk() -> Conversation {
        let mut talk = Conversation::new("a".to_owned());
        talk.settings.system = "Be brief.".to_owned();
        let user = Message { role: "user".to_owned(), content: "Hi?".to_owned(), ..Message::default() };
        let question = talk.add(None, user);
        let function = Function { name: "f".to_owned(), arguments: "{\"a\": \"```\"}".to_owned() };
        let call = ToolCall { id: "1".to_owned(), kind: "function".to_owned(), function };
        let answer = talk.add(
            Some(question),
            Message { role: "assistant".to_owned(), tool_calls: vec![call], ..Message::default() },
        );
        talk.nodes[answer].outcome = Some(Outcome { model: "nano".to_owned(), ..Outcome::default() });
        talk
    }

    #[test]
    fn what_is_written_is_read() {
        assert_eq!(from_json(&to_json(vec![talk()])), Ok(vec![talk()]));
    }

    #[test]
    fn hostile_files_are_refused() {
        let good = to_json(vec![talk()]);
        let deep = "[".repeat(100_000);
        for (json, part) in [
            (String::new(), "not a file of"),
            (deep, "not a file of"),
            ("{\"format\":\"other\",\"version\":1}".to_owned(), "not a file of"),
            (good.replace("\"version\": 1", "\"version\": 2"), "a newer Tread"),
            (good.replace("\"user\"", "\"__proto__\""), "is by"),
            (good.replace("\"parent\": 0", "\"parent\": 9"), "comes later"),
            (good.replace("\"parent\": 0", "\"parent\": -1"), "damaged"),
            (good.replace("\"updated\"", "\"more\": 1, \"updated\""), "damaged"),
        ] {
            let error = from_json(&json).unwrap_err();
            assert!(error.contains(part), "{error}");
        }
    }

    #[test]
    fn markdown_is_for_people() {
        let text = to_markdown(&talk());
        assert!(text.starts_with("# Hi?\n\n## System\n\nBe brief.\n\n## You\n\nHi?\n\n## nano\n"), "{text}");
        assert!(text.ends_with("Calls `f`:\n\n````json\n{\"a\": \"```\"}\n````\n"), "{text}");
    }

    #[test]
    fn names_of_files_are_plain() {
        assert_eq!(file_name("../a/ B\u{dc}?", "json"), "a-b\u{fc}.json");
        assert_eq!(file_name("?", "md"), "conversation.md");
    }
}
