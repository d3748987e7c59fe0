//! From a description to a grammar that can be followed.

use std::sync::Arc;

use llguidance::api::TopLevelGrammar;
use llguidance::{Matcher, ParserFactory};
use serde_json::{Value, json};

use super::vocabulary::Vocabulary;
use super::{Grammar, GrammarSource, GrammarSpec, brief, limits};
use crate::model::Model;
use crate::text::Tokenizer;
use crate::{Error, Result};

/// Compiles grammars for one tokenizer; costly to make (it walks the vocabulary), cheap to use and to clone.
#[derive(Clone)]
pub struct GrammarCompiler {
    factory: Arc<ParserFactory>,
    vocabulary: Arc<Vocabulary>,
}

/// White space between the parts of JSON, where small models get caught: a space, or line ends with an indentation that is
/// bounded, as in llama.cpp.
const JSON_SPACE: &str = r"\x20|\x0A{1,2}[\x20\x09]{0,20}";
/// A hundred MiB or so; llguidance's own limit is several times that.
const MAX_LEXER_STATES: usize = 50_000;

impl GrammarCompiler {
    /// For the tokenizer of `model`.
    ///
    /// # Errors
    /// [`Error::Text`] when the model has no tokenizer or its tokens have no bytes.
    pub fn new(model: &Model) -> Result<Self> {
        Self::for_tokenizer(model.tokenizer()?, &model.stop_ids)
    }

    pub(super) fn for_tokenizer(tokenizer: &Tokenizer, stop_ids: &[u32]) -> Result<Self> {
        let vocabulary = Vocabulary::new(tokenizer, stop_ids)?;
        let mut factory = ParserFactory::new_simple(&vocabulary.env).map_err(|e| {
            Error::Text(format!("structured output does not work with this tokenizer: {e:#}"))
        })?;
        factory.quiet();
        let limits = factory.limits_mut();
        limits.max_lexer_states = MAX_LEXER_STATES;
        limits.verbose_errors = false;
        Ok(Self { factory: Arc::new(factory), vocabulary: Arc::new(vocabulary) })
    }

    /// The grammar of `spec`, at its start.
    ///
    /// # Errors
    /// [`Error::Config`] saying what is wrong with the schema, expression or grammar.
    pub fn compile(&self, spec: &GrammarSpec) -> Result<Grammar> {
        let (what, grammar) = match spec {
            GrammarSpec::JsonObject => ("JSON schema", json_schema(&json!({ "type": "object" }))),
            GrammarSpec::JsonSchema(schema) => {
                limits::check_schema(schema)?;
                ("JSON schema", json_schema(schema))
            }
            GrammarSpec::Regex(regex) => {
                limits::check_expression(regex)?;
                ("regular expression", TopLevelGrammar::from_regex(without_anchors(regex)))
            }
            GrammarSpec::Choice(texts) => {
                let lark = choice(texts)?;
                limits::check_lark(&lark)?;
                ("choice", TopLevelGrammar::from_lark(lark))
            }
            GrammarSpec::Lark(lark) => {
                limits::check_lark(lark)?;
                ("grammar", TopLevelGrammar::from_lark(lark.clone()))
            }
        };
        let matcher = limits::with_deep_stack(|| {
            let matcher = Matcher::new(self.factory.create_parser(grammar));
            match matcher.get_error() {
                None => Ok(matcher),
                Some(error) => Err(Error::Config(format!("the {what} cannot be used: {}", brief(&error)))),
            }
        })?;
        let source = Arc::new(GrammarSource { spec: spec.clone(), after: None });
        Ok(Grammar { matcher, vocabulary: self.vocabulary.clone(), wait: None, source })
    }

    /// The grammar that [`Grammar::source`] says, at its start.
    ///
    /// # Errors
    /// As [`GrammarCompiler::compile`].
    pub fn compile_source(&self, source: &GrammarSource) -> Result<Grammar> {
        let grammar = self.compile(&source.spec)?;
        Ok(match &source.after {
            Some(marker) => grammar.after(marker),
            None => grammar,
        })
    }
}

impl std::fmt::Debug for GrammarCompiler {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("GrammarCompiler").field("tokens", &self.vocabulary.size()).finish_non_exhaustive()
    }
}

/// The schema's grammar; options for llguidance that it brings along (`x-guidance`) stand.
fn json_schema(schema: &Value) -> TopLevelGrammar {
    TopLevelGrammar::from_json_schema(with_bounded_space(schema))
}

/// A schema whose JSON has bounded runs of white space.
pub(crate) fn with_bounded_space(schema: &Value) -> Value {
    let mut schema = schema.clone();
    if let Some(object) = schema.as_object_mut() {
        object.entry("x-guidance").or_insert_with(|| json!({ "whitespace_pattern": JSON_SPACE }));
    }
    schema
}

fn choice(texts: &[String]) -> Result<String> {
    if texts.is_empty() {
        return Err(Error::Config("the choice has no texts; give it at least one".into()));
    }
    let texts: Vec<String> = texts.iter().map(|text| lark_string(text)).collect();
    Ok(format!("start: {}", texts.join(" | ")))
}

/// A text as Lark spells it: a JSON string, but without raw control characters.
pub(crate) fn lark_string(text: &str) -> String {
    Value::from(text).to_string().replace('\u{7F}', "\\u007f")
}

/// The expression matches the whole text in any case, and llguidance knows no anchors.
fn without_anchors(regex: &str) -> &str {
    let regex = regex.strip_prefix('^').unwrap_or(regex);
    match regex.strip_suffix('$') {
        Some(start) if start.bytes().rev().take_while(|&b| b == b'\\').count() % 2 == 0 => start,
        _ => regex,
    }
}
