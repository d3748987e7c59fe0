//! Tokenizer, chat template, and streaming detokenizer.

pub mod detokenizer;
pub mod reasoning;
pub mod stop;
pub mod template;
pub mod tokenizer;
pub mod tool_calls;

mod strftime;
mod tojson;
mod token_bytes;

pub use detokenizer::Detokenizer;
pub use reasoning::{ReasoningSplitter, Split};
pub use stop::{StopStrings, Stopped};
pub use template::{ChatTemplate, Message};
pub use tokenizer::Tokenizer;
pub use tool_calls::{CallDelta, ToolCallParser, ToolChoice, ToolFormat, ToolSplit, explain_tools};
