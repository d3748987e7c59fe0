//! What keeps a grammar from a stranger from costing more than it should.
//!
//! llguidance bounds most of its work itself. But reading an expression takes the square of its length, and reading
//! definitions that refer to one another takes a level of the stack for each.

use serde_json::Value;

use crate::{Error, Result};

/// Bytes of a regular expression; 0.2 s.
const MAX_EXPRESSION: usize = 4096;
/// Bytes of all patterns of a schema.
const MAX_PATTERNS: usize = 32_768;
/// Definitions of a Lark grammar, schemas of a JSON schema.
const MAX_DEFINITIONS: usize = 20_000;
/// Bytes of a Lark grammar.
const MAX_LARK: usize = 1 << 20;
/// Bytes of stack for each definition (measured: up to 8 KiB), reserved but not touched unless needed.
const STACK: usize = MAX_DEFINITIONS * 12 * 1024;

pub(super) fn check_expression(regex: &str) -> Result<()> {
    check("the regular expression's length in bytes", regex.len(), MAX_EXPRESSION)
}

pub(super) fn check_lark(lark: &str) -> Result<()> {
    check("the grammar's length in bytes", lark.len(), MAX_LARK)?;
    // A definition begins on a line of its own, a schema with a brace.
    let definitions = lark.bytes().filter(|byte| matches!(byte, b'\n' | b'{')).count();
    check("the number of the grammar's lines and schemas", definitions, MAX_DEFINITIONS)
}

/// # Errors
/// [`Error::Config`] saying what of the schema is too much.
pub(crate) fn check_schema(schema: &Value) -> Result<()> {
    let mut sizes = Sizes::default();
    sizes.add(schema);
    check("the number of schemas in the JSON schema", sizes.objects, MAX_DEFINITIONS)?;
    check("the length of the JSON schema's patterns in bytes", sizes.patterns, MAX_PATTERNS)
}

fn check(what: &str, size: usize, most: usize) -> Result<()> {
    if size > most {
        return Err(Error::Config(format!("{what} is {size}, but may be at most {most}")));
    }
    Ok(())
}

#[derive(Default)]
struct Sizes {
    objects: usize,
    patterns: usize,
}

impl Sizes {
    fn add(&mut self, schema: &Value) {
        match schema {
            Value::Array(list) => list.iter().for_each(|schema| self.add(schema)),
            Value::Object(object) => {
                self.objects += 1;
                for (key, value) in object {
                    match (key.as_str(), value) {
                        // Those of `x-guidance` are expressions, too.
                        (
                            "pattern" | "whitespace_pattern" | "item_separator" | "key_separator",
                            Value::String(pattern),
                        ) => self.patterns += pattern.len(),
                        ("patternProperties", Value::Object(patterns)) => {
                            self.patterns += patterns.keys().map(String::len).sum::<usize>();
                        }
                        _ => {}
                    }
                    self.add(value);
                }
            }
            _ => {}
        }
    }
}

/// Runs `work` with a stack that is deep enough.
pub(super) fn with_deep_stack<T: Send>(work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    let failed = |why: String| Error::Capacity(format!("no thread to compile the grammar on: {why}"));
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().name("grammar".into()).stack_size(STACK);
        let thread = thread.spawn_scoped(scope, work).map_err(|e| failed(e.to_string()))?;
        thread.join().map_err(|_| failed("it panicked".into()))?
    })
}
