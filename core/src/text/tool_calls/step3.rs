//! Step-3's calls: special tokens around XML, a parameter at a time.

use serde_json::Value;

use super::cast::cast;
use super::cursor::{Cursor, content};
use super::{Out, Read, Stop};

// In vLLM's and SGLang's parsers with bars (U+FF5C) and low lines; in the vocabulary Step-3's derives from with U+2581
// for these; and in the instructions of its chat template with neither.
pub(super) const CALLS_BEGIN: [&str; 3] =
    ["<｜tool_calls_begin｜>", "<｜tool▁calls▁begin｜>", "<tool_calls_begin>"];
pub(super) const CALLS_END: [&str; 3] = ["<｜tool_calls_end｜>", "<｜tool▁calls▁end｜>", "<tool_calls_end>"];
pub(super) const CALL_BEGIN: [&str; 3] =
    ["<｜tool_call_begin｜>", "<｜tool▁call▁begin｜>", "<tool_call_begin>"];
pub(super) const CALL_END: [&str; 3] = ["<｜tool_call_end｜>", "<｜tool▁call▁end｜>", "<tool_call_end>"];
pub(super) const SEPARATOR: [&str; 3] = ["<｜tool_sep｜>", "<｜tool▁sep｜>", "<tool_sep>"];
pub(super) const INVOKE: &str = "<steptml:invoke name=\"";
pub(super) const INVOKE_END: &str = "</steptml:invoke>";
pub(super) const PARAMETER: &str = "<steptml:parameter name=\"";
pub(super) const PARAMETER_END: &str = "</steptml:parameter>";

#[derive(Clone, Debug)]
pub(super) struct Step3 {
    tools: Value,
    state: State,
}

#[derive(Clone, Debug)]
enum State {
    Content,
    /// The first call of a section is next, or what looks like one.
    Section,
    /// Within a call to this tool, after a parameter.
    Parameters(String),
    /// After what was called.
    Close,
    /// Another call is next, or the end of the section.
    Next,
    /// After the last call, before anything but white space.
    After,
}

impl Step3 {
    pub(super) fn new(tools: &Value) -> Self {
        Self { tools: tools.clone(), state: State::Content }
    }

    /// Whether the text `held` back at the end belongs to calls that were told.
    pub(super) fn belongs_to_call(&self, held: &str) -> bool {
        match self.state {
            State::Close | State::After => true,
            State::Next => CALLS_END.iter().any(|end| end.starts_with(held.trim_start())),
            State::Content | State::Section | State::Parameters(_) => false,
        }
    }

    /// Reads on; the bytes read.
    pub(super) fn step(&mut self, held: &str, out: &mut Out<'_>) -> Read<usize> {
        if held.is_empty() {
            return Err(Stop::More);
        }
        let mut cursor = Cursor::new(held);
        match &self.state {
            State::Content => {
                let (certain, opening) = content(held, &CALLS_BEGIN);
                out.content(&held[..certain]);
                if opening {
                    self.state = State::Section;
                } else if certain == 0 {
                    return Err(Stop::More);
                }
                cursor.skip(certain);
            }
            State::Section => {
                cursor.space();
                cursor.expect(&CALLS_BEGIN)?;
                self.call(&mut cursor, out)?;
            }
            State::Parameters(tool) => {
                cursor.space();
                if cursor.accept(&[INVOKE_END])? {
                    out.arguments("}");
                    self.state = State::Close;
                } else {
                    let parameter = self.parameter(tool, &mut cursor)?;
                    out.arguments(&format!(", {parameter}"));
                }
            }
            State::Close => {
                cursor.space();
                cursor.expect(&CALL_END)?;
                self.state = State::Next;
            }
            State::Next => {
                cursor.space();
                if cursor.accept(&CALLS_END)? {
                    self.state = State::After;
                } else {
                    self.call(&mut cursor, out)?;
                }
            }
            State::After => {
                cursor.space();
                if !cursor.rest().is_empty() {
                    self.state = State::Content;
                }
            }
        }
        Ok(cursor.at())
    }

    /// What was held is no markup; the bytes of it that are content for certain.
    pub(super) fn give_up(&mut self, held: &str) -> usize {
        let opening = matches!(self.state, State::Section);
        self.state = State::Content;
        let end = |marker: &&str| held.find(marker).map(|at| at + marker.len());
        if opening { CALLS_BEGIN.iter().filter_map(end).min().unwrap_or(0) } else { 0 }
    }

    /// A call up to its first parameter or, if it has none, its end: before that it may yet be none.
    fn call(&mut self, cursor: &mut Cursor<'_>, out: &mut Out<'_>) -> Read<()> {
        cursor.space();
        cursor.expect(&CALL_BEGIN)?;
        cursor.space();
        cursor.expect(&["function"])?;
        cursor.space();
        cursor.expect(&SEPARATOR)?;
        cursor.space();
        cursor.expect(&[INVOKE])?;
        let tool = attribute(cursor)?.to_owned();
        cursor.space();
        if cursor.accept(&[INVOKE_END])? {
            out.call(tool, "{}".into());
            self.state = State::Close;
        } else {
            let parameter = self.parameter(&tool, cursor)?;
            out.call(tool.clone(), format!("{{{parameter}"));
            self.state = State::Parameters(tool);
        }
        Ok(())
    }

    /// A parameter as a member of a JSON object.
    fn parameter(&self, tool: &str, cursor: &mut Cursor<'_>) -> Read<String> {
        cursor.space();
        cursor.expect(&[PARAMETER])?;
        let name = attribute(cursor)?;
        let value = cursor.until(PARAMETER_END)?;
        let tools = super::tools(&self.tools).unwrap_or_default();
        let schema = tools.iter().find(|known| known.name == tool).and_then(|tool| tool.parameters);
        Ok(format!("{}: {}", Value::from(name), cast(value.trim(), name, schema)))
    }
}

/// The rest of a tag that is open up to the quote of its attribute.
fn attribute<'a>(cursor: &mut Cursor<'a>) -> Read<&'a str> {
    let value = cursor.until("\"")?;
    cursor.expect(&[">"])?;
    if value.is_empty() { Err(Stop::Wrong) } else { Ok(value) }
}
