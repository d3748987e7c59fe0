//! Calls that are JSON objects: Hermes, with a tag around each, and Llama 3, where the answer is nothing else.

use serde_json::Value;

use super::cursor::{Cursor, Extent, JsonNesting, content};
use super::{Out, Read, Stop};

const OPEN: &str = "<tool_call>";
const CLOSE: &str = "</tool_call>";
/// Llama 3 may begin a call with it.
const PYTHON_TAG: &str = "<|python_tag|>";

#[derive(Clone, Debug)]
pub(super) struct JsonCalls {
    /// Llama 3: the only names that make an object a call, for there is no other sign. Hermes: none.
    names: Option<Vec<String>>,
    state: State,
}

#[derive(Clone, Debug)]
enum State {
    /// Hermes: outside of calls. Llama 3: not a call, to the end.
    Content,
    /// A call is next, or what looks like one.
    Call,
    /// Within the arguments of a call.
    Arguments(JsonNesting),
    /// After the arguments.
    Brace,
    /// After the whole object; only Hermes.
    Close,
    /// After a call, before anything but white space.
    After,
}

impl JsonCalls {
    pub(super) fn hermes() -> Self {
        Self { names: None, state: State::Content }
    }

    pub(super) fn llama3(tools: &Value) -> Self {
        let names = super::tools(tools).unwrap_or_default().iter().map(|tool| tool.name.to_owned()).collect();
        Self { names: Some(names), state: State::Call }
    }

    /// Whether the text held back at the end belongs to a call that was told.
    pub(super) fn belongs_to_call(&self) -> bool {
        matches!(self.state, State::Brace | State::Close | State::After)
    }

    /// Reads on; the bytes read.
    pub(super) fn step(&mut self, held: &str, out: &mut Out<'_>) -> Read<usize> {
        if held.is_empty() {
            return Err(Stop::More);
        }
        match &mut self.state {
            State::Content if self.names.is_some() => {
                out.content(held);
                Ok(held.len())
            }
            State::Content => {
                let (certain, opening) = content(held, &[OPEN]);
                out.content(&held[..certain]);
                if opening {
                    self.state = State::Call;
                } else if certain == 0 {
                    return Err(Stop::More);
                }
                Ok(certain)
            }
            State::Call => self.call(held, out),
            State::Arguments(nesting) => {
                let end = match nesting.follow(held) {
                    Extent::Open => held.len(),
                    Extent::Ends(end) | Extent::Breaks(end) => {
                        self.state = State::Brace;
                        end
                    }
                };
                out.arguments(&held[..end]);
                Ok(end)
            }
            State::Brace => {
                let mut cursor = Cursor::new(held);
                cursor.space();
                if self.names.is_some() {
                    cursor.expect(&["}"])?;
                    self.state = State::After;
                    return Ok(cursor.at());
                }
                // Small models forget it, or the tag after it.
                let found = cursor.accept(&["}"])?;
                self.state = State::Close;
                Ok(if found { cursor.at() } else { 0 })
            }
            State::Close => {
                let mut cursor = Cursor::new(held);
                cursor.space();
                cursor.expect(&[CLOSE])?;
                self.state = State::After;
                Ok(cursor.at())
            }
            State::After => {
                let separators = |c: char| c.is_whitespace() || (c == ';' && self.names.is_some());
                let rest = held.trim_start_matches(separators);
                if rest.is_empty() {
                    return Ok(held.len());
                }
                self.state = if self.names.is_some() { State::Call } else { State::Content };
                Ok(held.len() - rest.len())
            }
        }
    }

    /// What was held is no call (or, after one, no end of it); the bytes of it that are content for certain.
    pub(super) fn give_up(&mut self, held: &str) -> usize {
        let opening = matches!(self.state, State::Call) && self.names.is_none();
        self.state = State::Content;
        if opening { held.find(OPEN).map_or(0, |at| at + OPEN.len()) } else { 0 }
    }

    /// A call, at least up to its arguments.
    fn call(&mut self, held: &str, out: &mut Out<'_>) -> Read<usize> {
        let mut cursor = Cursor::new(held);
        cursor.space();
        if self.names.is_none() {
            cursor.expect(&[OPEN])?;
        } else {
            cursor.accept(&[PYTHON_TAG])?;
        }
        cursor.space();
        let mut start = cursor;
        match start_of_call(&mut start) {
            Ok(name) if self.is_name(&name) => {
                out.call(name, String::new());
                self.state = State::Arguments(JsonNesting::default());
                Ok(start.at())
            }
            Ok(_) => Err(Stop::Wrong),
            Err(Stop::More) => Err(Stop::More),
            // Anything else is understood, or not, when all of it is there.
            Err(Stop::Wrong) => {
                cursor.expect(&["{"])?;
                let object = &held[cursor.at() - 1..];
                let Extent::Ends(length) = JsonNesting::default().follow(object) else {
                    let breaks = JsonNesting::default().follow(object) != Extent::Open;
                    return Err(if breaks { Stop::Wrong } else { Stop::More });
                };
                let call = serde_json::from_str(&object[..length]).ok().and_then(|call| whole_call(&call));
                let (name, arguments) = call.filter(|(name, _)| self.is_name(name)).ok_or(Stop::Wrong)?;
                out.call(name, arguments);
                self.state = State::Brace;
                // The last brace is read there.
                Ok(cursor.at() - 1 + length - 1)
            }
        }
    }

    fn is_name(&self, name: &str) -> bool {
        self.names.as_ref().is_none_or(|names| names.iter().any(|known| known == name))
    }
}

/// `{"name": "...", "arguments": ` before a `{`: the usual order, in which the arguments can be told as they come.
fn start_of_call(cursor: &mut Cursor<'_>) -> Read<String> {
    let colon = |cursor: &mut Cursor<'_>| {
        cursor.space();
        cursor.expect(&[":"])?;
        cursor.space();
        Ok(())
    };
    cursor.expect(&["{"])?;
    cursor.space();
    cursor.expect(&["\"name\""])?;
    colon(cursor)?;
    let name = cursor.json_string()?;
    cursor.space();
    cursor.expect(&[","])?;
    cursor.space();
    cursor.expect(&["\"arguments\"", "\"parameters\""])?;
    colon(cursor)?;
    let mut object = *cursor;
    object.expect(&["{"])?;
    Ok(name)
}

/// The name and the arguments of a call in whatever order. Some models write the arguments as a string of JSON.
fn whole_call(call: &Value) -> Option<(String, String)> {
    let name = call.get("name")?.as_str()?.to_owned();
    let arguments = match call.get("arguments").or_else(|| call.get("parameters")).unwrap_or(&Value::Null) {
        Value::String(text) => serde_json::from_str(text).ok()?,
        Value::Null => Value::Object(serde_json::Map::new()),
        arguments => arguments.clone(),
    };
    arguments.is_object().then(|| (name, arguments.to_string()))
}
