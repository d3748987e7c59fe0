//! Tokenizer, chat template, and streaming detokenizer.

pub mod detokenizer;
pub mod reasoning;
pub mod template;
pub mod tokenizer;

mod strftime;
mod tojson;

pub use detokenizer::Detokenizer;
pub use reasoning::{ReasoningSplitter, Split};
pub use template::{ChatTemplate, Message};
pub use tokenizer::Tokenizer;
