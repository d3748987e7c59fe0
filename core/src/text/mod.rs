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
#[cfg(feature = "grammar")]
pub use tool_calls::ToolChoice;
pub use tool_calls::{CallDelta, ToolCallParser, ToolFormat, ToolSplit, explain_tools};
