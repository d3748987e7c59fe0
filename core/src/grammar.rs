//! Structured output: a grammar says which tokens may come next (llguidance).

use crate::Result;
use crate::model::Model;

/// What an answer must look like.
#[derive(Clone, Debug, PartialEq)]
pub enum GrammarSpec {
    /// Any JSON object.
    JsonObject,
    /// JSON that a JSON Schema describes.
    JsonSchema(serde_json::Value),
    /// Text that a regular expression matches as a whole.
    Regex(String),
    /// One of these texts.
    Choice(Vec<String>),
    /// A grammar in llguidance's variant of Lark.
    Lark(String),
}

/// Compiles grammars for one tokenizer; costly to make (it walks the vocabulary), cheap to use.
#[derive(Clone, Debug)]
pub struct GrammarCompiler {}

impl GrammarCompiler {
    /// For the tokenizer of `model`.
    ///
    /// # Errors
    /// [`crate::Error::Text`] when the model has no tokenizer or its tokens have no bytes.
    pub fn new(model: &Model) -> Result<Self> {
        let _ = model;
        todo!()
    }
    /// The grammar of `spec`, at its start.
    ///
    /// # Errors
    /// [`crate::Error::Config`] saying what is wrong with the schema, expression or grammar.
    pub fn compile(&self, spec: &GrammarSpec) -> Result<Grammar> {
        let _ = spec;
        todo!()
    }
}

/// A grammar in the middle of a text. A clone goes on independently.
#[derive(Clone, Debug)]
pub struct Grammar {}

/// Which tokens may come next, a bit each.
#[derive(Clone, Debug)]
pub struct TokenMask {}

impl TokenMask {
    /// Whether token `id` may come next.
    pub fn allows(&self, id: u32) -> bool {
        let _ = id;
        todo!()
    }
}

impl Grammar {
    /// The tokens that may come next; where the text may end, the model's stop tokens are among them.
    ///
    /// # Errors
    /// [`crate::Error::Config`] when the grammar grows beyond what can be computed.
    pub fn mask(&mut self) -> Result<TokenMask> {
        todo!()
    }
    /// Goes on past `token`, which the mask allowed.
    ///
    /// # Errors
    /// As [`Grammar::mask`], and when the token was not allowed.
    pub fn accept(&mut self, token: u32) -> Result<()> {
        let _ = token;
        todo!()
    }
    /// Whether nothing more can come: the text is complete.
    pub fn is_complete(&self) -> bool {
        todo!()
    }
}
