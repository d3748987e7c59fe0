use std::path::Path;
use std::sync::LazyLock;

use rand::rngs::ChaCha12Rng;
use rand::{RngExt as _, SeedableRng as _};
use serde_json::{Value, json};

use super::{Grammar, GrammarCompiler, GrammarSpec, TokenMask};
use crate::Result;
use crate::checkpoint::{GgufVocab, TokenizerFile};
use crate::text::Tokenizer;

/// A tokenizer, its compiler, and its stop tokens.
pub(crate) struct Toy {
    pub(crate) tokenizer: Tokenizer,
    pub(crate) compiler: GrammarCompiler,
    stops: Vec<u32>,
}

impl Toy {
    fn new(tokenizer: Tokenizer, stops: &[u32]) -> Self {
        let compiler = GrammarCompiler::for_tokenizer(&tokenizer, stops).unwrap();
        Self { tokenizer, compiler, stops: stops.to_vec() }
    }

    pub(crate) fn compile(&self, spec: &GrammarSpec) -> Grammar {
        self.compiler.compile(spec).unwrap_or_else(|e| panic!("{spec:?}: {e}"))
    }

    fn bytes(&self, tokens: &[u32]) -> Vec<u8> {
        tokens.iter().flat_map(|&id| self.tokenizer.token_bytes(id).unwrap()).collect()
    }

    fn allowed(&self, mask: &TokenMask) -> Vec<u32> {
        (0..self.tokenizer.vocab_size() as u32).filter(|&id| mask.allows(id)).collect()
    }

    /// The text of random choices among the allowed tokens until there is nothing more to choose.
    fn walk(&self, grammar: Grammar, seed: u64) -> String {
        self.try_walk(grammar, seed, &[]).expect("no end")
    }

    /// Likewise, but none if the text finds no end. Of special tokens only `specials` are expected.
    pub(crate) fn try_walk(&self, mut grammar: Grammar, seed: u64, specials: &[u32]) -> Option<String> {
        let mut rng = ChaCha12Rng::seed_from_u64(seed);
        let mut tokens = vec![];
        while !grammar.is_complete() {
            if tokens.len() == 2000 {
                return None;
            }
            let mask = grammar.mask().unwrap();
            let allowed = self.allowed(&mask);
            let token = allowed[rng.random_range(0..allowed.len())];
            grammar.accept(token).unwrap();
            if self.stops.contains(&token) {
                break;
            }
            assert!(!self.tokenizer.is_special(token) || specials.contains(&token), "{token}");
            tokens.push(token);
        }
        // After the end only stop tokens may come.
        assert_eq!(self.allowed(&grammar.mask().unwrap()), self.stops, "{}", self.text(&tokens));
        Some(self.text(&tokens))
    }

    fn text(&self, tokens: &[u32]) -> String {
        String::from_utf8(self.bytes(tokens)).unwrap()
    }

    /// Feeds `text` in tokens as long as possible.
    fn follow(&self, grammar: &mut Grammar, text: &str) -> Result<()> {
        for token in self.tokenizer.encode(text, false)? {
            assert!(grammar.mask()?.allows(token), "{token} of {text:?}");
            grammar.accept(token)?;
        }
        Ok(())
    }
}

pub(crate) fn nano() -> &'static Toy {
    static NANO: LazyLock<Toy> = LazyLock::new(|| {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../app/models/nano/tokenizer.json");
        let file = TokenizerFile::Json(std::fs::read(path).unwrap());
        Toy::new(Tokenizer::from_file(&file).unwrap(), &[1, 3])
    });
    &NANO
}

/// Every byte a token, ids 0 to 255 in GPT-2's order, and some more; all of those but the last two are special.
pub(crate) fn bytes() -> &'static Toy {
    static BYTES: LazyLock<Toy> = LazyLock::new(|| {
        let printable = |b: &u32| matches!(b, 33..=126 | 161..=172 | 174..=255);
        let others = (0..256).filter(|b| !printable(b)).zip(256..).map(|(_, c)| c);
        let all = (0..256).filter(printable).chain(others).filter_map(char::from_u32).map(String::from);
        let special = ["<|end|>", "<a>", "<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>"];
        let more = ["<｜tool▁call▁begin｜>", "<｜tool▁call▁end｜>", "<｜tool▁sep｜>", ">x", "<tag>"];
        let tokens: Vec<String> = all.chain(special.into_iter().chain(more).map(String::from)).collect();
        let mut token_types = vec![1; tokens.len()];
        token_types[256..263].fill(3);
        token_types[264] = 4;
        let (model, pre) = ("gpt2".to_owned(), "gpt-2".to_owned());
        let vocab = GgufVocab { model, pre, tokens, token_types, ..Default::default() };
        Toy::new(Tokenizer::from_file(&TokenizerFile::Gguf(vocab)).unwrap(), &[256])
    });
    &BYTES
}

fn toys() -> [&'static Toy; 2] {
    [nano(), bytes()]
}

fn schema() -> Value {
    json!({
        "type": "object",
        "properties": {
            "name": { "type": "string", "maxLength": 5 },
            "age": { "type": "integer", "minimum": 0, "maximum": 150 },
            "tags": { "type": "array", "items": { "$ref": "#/$defs/tag" }, "maxItems": 3 },
            "ok": { "type": ["boolean", "null"] }
        },
        "required": ["name", "tags"],
        "additionalProperties": false,
        "$defs": { "tag": { "enum": ["a", "<|end|>", "日本", 7] } }
    })
}

#[test]
fn json_obeys_its_schema() {
    let spec = GrammarSpec::JsonSchema(schema());
    for toy in toys() {
        let grammar = toy.compile(&spec);
        for seed in 0..30 {
            let text = toy.walk(grammar.clone(), seed);
            let value: Value = serde_json::from_str(&text).unwrap_or_else(|e| panic!("{e}: {text}"));
            let object = value.as_object().unwrap();
            assert!(object["name"].as_str().unwrap().chars().count() <= 5, "{text}");
            let tags = object["tags"].as_array().unwrap();
            let known = [json!("a"), json!("<|end|>"), json!("日本"), json!(7)];
            assert!(tags.len() <= 3 && tags.iter().all(|tag| known.contains(tag)), "{text}");
            assert!(object.get("age").is_none_or(|age| age.as_u64().unwrap() <= 150), "{text}");
            assert!(object.get("ok").is_none_or(|ok| ok.is_null() || ok.is_boolean()), "{text}");
            assert!(object.keys().all(|key| schema()["properties"].get(key).is_some()), "{text}");
        }
    }
}

#[test]
fn any_json_object() {
    for toy in toys() {
        let mut grammar = toy.compile(&GrammarSpec::JsonObject);
        let text = r#"{"a": [1.5e3, {"b": null}], "é": "\"\n<|no|>"}"#;
        toy.follow(&mut grammar, &text[..text.len() - 1]).unwrap();
        assert!(!grammar.is_complete() && !grammar.mask().unwrap().allows(toy.stops[0]));
        toy.follow(&mut grammar, "}").unwrap();
        assert!(grammar.is_complete());
        assert!(grammar.accept(toy.stops[0]).is_ok() && grammar.accept(64).is_err());
        let mut array = toy.compile(&GrammarSpec::JsonObject);
        let bracket = toy.tokenizer.encode("[", false).unwrap()[0];
        assert!(!array.mask().unwrap().allows(bracket));
        let error = array.accept(bracket).unwrap_err().to_string();
        assert!(error.contains(&format!("does not allow token {bracket} here")), "{error}");
    }
}

#[test]
fn expressions_choices_and_lark() {
    let choices = ["yes", "no", "not \"quite\"\n", "日本", "<|end|>"];
    for toy in toys() {
        for seed in 0..20 {
            for regex in ["([0-9]{3}-){1,3}[a-f]x?", "^([0-9]{3}-){1,3}[a-f]x?$"] {
                let text = toy.walk(toy.compile(&GrammarSpec::Regex(regex.into())), seed);
                let parts: Vec<&str> = text.split('-').collect();
                let (last, numbers) = parts.split_last().unwrap();
                assert!((1..=3).contains(&numbers.len()), "{text}");
                assert!(
                    numbers.iter().all(|n| n.len() == 3 && n.bytes().all(|b| b.is_ascii_digit())),
                    "{text}"
                );
                let letter = last.strip_suffix('x').unwrap_or(last);
                assert!(letter.len() == 1 && ("a"..="f").contains(&letter), "{text}");
            }
            let choice = GrammarSpec::Choice(choices.map(String::from).to_vec());
            let text = toy.walk(toy.compile(&choice), seed);
            assert!(choices.contains(&text.as_str()), "{text}");
            let lark = "start: \"(\" (start | DIGIT) \")\" | DIGIT\nDIGIT: /[0-9]/".to_owned();
            let text = toy.walk(toy.compile(&GrammarSpec::Lark(lark)), seed);
            let inner = text.trim_matches(['(', ')']);
            assert!(inner.len() == 1 && inner.parse::<u8>().is_ok(), "{text}");
            assert_eq!(text.matches('(').count(), text.matches(')').count(), "{text}");
        }
    }
}

#[test]
fn a_text_that_may_go_on_may_also_end() {
    for toy in toys() {
        let mut grammar = toy.compile(&GrammarSpec::Regex("ab?".into()));
        toy.follow(&mut grammar, "a").unwrap();
        let mask = grammar.mask().unwrap();
        assert!(toy.stops.iter().all(|&stop| mask.allows(stop)) && !grammar.is_complete());
        grammar.accept(toy.stops[0]).unwrap();
        assert!(grammar.is_complete());
    }
}

#[test]
fn clones_go_their_own_ways() {
    let toy = bytes();
    let mut one = toy.compile(&GrammarSpec::Choice(vec!["ab".into(), "cd".into()]));
    let mut two = one.clone();
    toy.follow(&mut one, "ab").unwrap();
    toy.follow(&mut two, "cd").unwrap();
    assert!(one.is_complete() && two.is_complete());
}

#[test]
fn a_grammar_may_start_after_a_marker() {
    let spec = GrammarSpec::Choice(vec!["{1}".into(), "{2}".into()]);
    // `</think>` is a special token of nano's; `<a>` is one of the bytes', and `<b>` is three tokens.
    for (toy, marker) in [(nano(), "</think>"), (bytes(), "<a>"), (bytes(), "<b>")] {
        for space in ["", "\n", " \n\n"] {
            let mut grammar = toy.compile(&spec).after(marker);
            toy.follow(&mut grammar, &format!("Hm <{{3}} {{1}} <\n{marker}{space}")).unwrap();
            assert!(!grammar.is_complete());
            let mask = grammar.mask().unwrap();
            assert!(!toy.stops.iter().any(|&stop| mask.allows(stop)));
            toy.follow(&mut grammar, "{2}").unwrap();
            assert!(grammar.is_complete(), "{marker}");
        }
        let mut grammar = toy.compile(&spec).after(marker);
        let mask = grammar.mask().unwrap();
        assert!(!toy.stops.iter().any(|&stop| mask.allows(stop)));
        let stop = toy.stops[0];
        assert_eq!(toy.allowed(&mask).len(), toy.tokenizer.vocab_size() - toy.stops.len());
        toy.follow(&mut grammar, &format!("{marker}\n")).unwrap();
        // White space may not go on for ever.
        let newline = toy.tokenizer.encode("\n", false).unwrap()[0];
        let skipped = (0..1000)
            .take_while(|_| grammar.mask().unwrap().allows(newline) && grammar.accept(newline).is_ok());
        assert!(skipped.count() < 100);
        assert!(grammar.accept(stop).is_err());
    }
    // A token that completes the marker and goes on would hide text from the grammar: `>x`.
    let toy = bytes();
    let (end, over) = (toy.tokenizer.encode(">", false).unwrap()[0], 263);
    let mut grammar = toy.compile(&spec).after("<b>");
    assert!(grammar.mask().unwrap().allows(over));
    toy.follow(&mut grammar, "<b").unwrap();
    let mask = grammar.mask().unwrap();
    assert!(mask.allows(end) && !mask.allows(over));
    assert!(grammar.accept(over).is_err());
}

#[test]
fn what_cannot_be_used_says_why() {
    for (spec, says) in [
        (GrammarSpec::JsonSchema(json!({ "type": "nonsense" })), "nonsense"),
        (GrammarSpec::JsonSchema(json!({ "$ref": "#/$defs/missing" })), "missing"),
        (GrammarSpec::JsonSchema(json!({ "not": { "type": "string" } })), "not"),
        (GrammarSpec::Regex("a(".into()), "the regular expression cannot be used"),
        (GrammarSpec::Regex("(".repeat(2000) + &")".repeat(2000)), "invalid regex"),
        (GrammarSpec::Regex("a?".repeat(4000)), "is 8000, but may be at most 4096"),
        (GrammarSpec::Lark(format!("start: {}", "(".repeat(100_000))), "too deeply nested"),
        (GrammarSpec::Lark("\n".repeat(30_000)), "the number of the grammar's lines"),
        (GrammarSpec::Lark(" ".repeat(2_000_000)), "the grammar's length"),
        (GrammarSpec::JsonSchema(json!({ "enum": vec![json!({}); 30_000] })), "the number of schemas"),
        (
            GrammarSpec::JsonSchema(json!({ "items": { "pattern": "a?".repeat(20_000) } })),
            "patterns in bytes",
        ),
        (
            GrammarSpec::JsonSchema(json!({ "x-guidance": { "whitespace_pattern": "a?".repeat(20_000) } })),
            "patterns in bytes",
        ),
        (GrammarSpec::Lark("start: missing".into()), "missing"),
        (GrammarSpec::Lark(String::new()), "the grammar cannot be used"),
        (GrammarSpec::Choice(vec![]), "at least one"),
        (GrammarSpec::JsonSchema(json!({ "enum": (0..200_000).collect::<Vec<_>>() })), "too big"),
    ] {
        let error = nano().compiler.compile(&spec).unwrap_err().to_string();
        assert!(error.contains(says) && !error.contains("non-verbose") && error.len() < 2000, "{error}");
    }
}

/// A level of the stack for each, on a small stack.
#[test]
fn long_chains_of_definitions() {
    let rules = (0..15_000).map(|i| format!("r{i}: \"(\" r{} \")\"\n", i + 1)).collect::<String>();
    let schemas = (0..9_000).map(|i| {
        let next = format!("#/$defs/{}", i + 1);
        (i.to_string(), json!({ "type": "array", "items": { "$ref": next } }))
    });
    let schemas: Value =
        schemas.chain([("9000".to_owned(), json!({}))]).collect::<serde_json::Map<_, _>>().into();
    for spec in [
        GrammarSpec::Lark(format!("start: r0\n{rules}r15000: \"x\"\n")),
        GrammarSpec::JsonSchema(json!({ "$ref": "#/$defs/0", "$defs": schemas })),
    ] {
        assert!(!nano().compile(&spec).is_complete());
    }
}

/// Deep or wide, but harmless.
#[test]
fn a_schema_of_many_levels_and_properties() {
    let deep = (0..60).fold(json!({ "type": "null" }), |inner, _| {
        json!({ "type": "object", "properties": { "a": inner }, "required": ["a"], "additionalProperties": false })
    });
    let properties: serde_json::Map<_, _> = (0..300)
        .map(|i| (format!("p{i}"), json!({ "type": "integer", "maximum": 9, "minimum": 0 })))
        .collect();
    let wide = json!({ "type": "object", "properties": properties, "additionalProperties": false });
    for schema in [deep, wide] {
        let text = nano().walk(nano().compile(&GrammarSpec::JsonSchema(schema)), 1);
        assert!(serde_json::from_str::<Value>(&text).unwrap().is_object());
    }
}

#[test]
fn the_engine_may_compute_masks_beside_the_device() {
    fn send<T: Send>() {}
    fn shared<T: Send + Sync>() {}
    send::<Grammar>();
    shared::<GrammarCompiler>();
    shared::<TokenMask>();
}
