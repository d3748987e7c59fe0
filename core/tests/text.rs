//! Tokenizer, detokenizer and chat templates on real vocabularies and templates.

use std::path::Path;
use std::sync::LazyLock;

use proptest::prelude::*;
use serde_json::Value;
use tread_core::checkpoint::{GgufVocab, TokenizerFile};
use tread_core::text::{ChatTemplate, Detokenizer, Message, Tokenizer};

fn read(path: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(path);
    std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

fn json(path: &str) -> Value {
    serde_json::from_str(&read(path)).unwrap()
}

fn nano() -> &'static Tokenizer {
    static NANO: LazyLock<Tokenizer> = LazyLock::new(|| {
        let file = TokenizerFile::Json(read("../app/models/nano/tokenizer.json").into_bytes());
        Tokenizer::from_file(&file).unwrap()
    });
    &NANO
}

/// The 256 byte tokens in the order of GPT-2's vocabulary: printable ASCII and Latin-1 first, then the others.
fn bytes() -> Vec<String> {
    let printable = |b: &u32| matches!(b, 33..=126 | 161..=172 | 174..=255);
    let others = (0..256).filter(|b| !printable(b)).zip(256..).map(|(_, c)| c);
    (0..256).filter(printable).chain(others).filter_map(char::from_u32).map(String::from).collect()
}

fn gguf(pre: &str) -> GgufVocab {
    let mut tokens = bytes();
    let words = ["12", "123", "1234", "lC", "qzq", "'S", ".a", "<|end|>", "<tag>"];
    tokens.extend(words.map(String::from));
    let mut token_types = vec![1; tokens.len()];
    token_types[263] = 3;
    token_types[264] = 4;
    let merges = ["1 2", "12 3", "123 4", "l C", "' S", ". a"].map(String::from).to_vec();
    let (model, pre) = ("gpt2".to_owned(), pre.to_owned());
    GgufVocab { model, pre, tokens, token_types, merges, ..Default::default() }
}

fn from_gguf(vocab: GgufVocab) -> Tokenizer {
    Tokenizer::from_file(&TokenizerFile::Gguf(vocab)).unwrap()
}

/// Rendering and encoding nano's prompts gives the ids its golden data was made with.
#[test]
fn nano_encodes_and_decodes_as_its_golden_data() {
    let (tokenizer, golden) = (nano(), json("../app/models/nano/golden.json"));
    let config = json("../app/models/nano/tokenizer_config.json");
    let string = |key: &str| config[key].as_str().unwrap();
    let template =
        ChatTemplate::new(string("chat_template"), Some(string("bos_token")), Some(string("eos_token")))
            .unwrap();
    for (i, line) in golden["chat"].as_array().unwrap().iter().enumerate() {
        let prompt = template.render(&[Message::new("user", line.as_str().unwrap())], None, true).unwrap();
        let ids = tokenizer.encode(&prompt, false).unwrap();
        assert_eq!(Value::from(ids.clone()), golden["prompts"][i]);
        assert_eq!(tokenizer.decode(&ids, false).unwrap(), prompt);
        let answer: Vec<u32> = serde_json::from_value(golden["greedy"][i]["tokens"].clone()).unwrap();
        assert_eq!(tokenizer.decode(&answer, false).unwrap(), golden["greedy"][i]["text"]);
    }
    assert_eq!(tokenizer.vocab_size(), 4096);
    assert_eq!(tokenizer.token_id("<|EOT|>"), Some(3));
    assert!(tokenizer.is_special(3) && !tokenizer.is_special(389));
    assert_eq!(tokenizer.decode(&[4, 389, 3], true).unwrap(), tokenizer.decode(&[389], false).unwrap());
}

/// Which of the longer tokens each pre-tokenizer allows to form; the same on llama.cpp, with these tokens patched
/// into SmolLM2's vocabulary.
#[test]
fn gguf_pre_tokenizers_cut_where_llama_cpp_does() {
    let text = "1234 12345 123456 camelCase fulLC qzq  qzq xqzq IT'S it's x.a (.a) 12.a34";
    let cases = [
        ("default", "123 123 123 lC 12"),
        ("gpt-2", "1234 1234 1234 lC 12"),
        ("smollm", "lC"),
        ("falcon", "123 123 123 lC 12"),
        ("llama-bpe", "123 123 123 lC 'S .a 12 .a"),
        ("dbrx", "123 123 123 lC 'S .a 12 .a"),
        ("qwen2", "lC 'S .a .a"),
        ("deepseek-v3", "123 123 123 lC 'S .a 12 .a"),
        ("deepseek-coder", "lC"),
        ("tekken", "'S .a .a"),
    ];
    for (pre, expected) in cases {
        let tokenizer = from_gguf(gguf(pre));
        let ids = tokenizer.encode(text, true).unwrap();
        assert_eq!(tokenizer.decode(&ids, false).unwrap(), text, "{pre}");
        let long = ids.iter().filter(|&&id| id >= 256).map(|&id| tokenizer.decode(&[id], false).unwrap());
        assert_eq!(long.collect::<Vec<_>>().join(" "), expected, "{pre}");
        // A piece that is a token needs no merges where the model's tokenizer says so.
        let whole = matches!(pre, "llama-bpe" | "tekken");
        assert_eq!(tokenizer.encode("qzq", true).unwrap().len(), if whole { 1 } else { 3 }, "{pre}");
    }
}

#[test]
fn gguf_special_tokens() {
    let tokenizer = from_gguf(GgufVocab { bos: Some(7), add_bos: true, ..gguf("gpt-2") });
    let ids = tokenizer.encode("a<|end|><tag>", true).unwrap();
    assert_eq!(ids, [7, 64, 263, 264]);
    assert_eq!(tokenizer.encode("a<|end|><tag>", false).unwrap(), ids[1..]);
    assert!(tokenizer.is_special(263) && !tokenizer.is_special(264) && !tokenizer.is_special(7));
    assert_eq!(tokenizer.decode(&ids[1..], true).unwrap(), "a<tag>");
    assert_eq!(tokenizer.vocab_size(), 265);
    assert_eq!(tokenizer.decode(&[64, 4_000_000_000], false).unwrap(), "a", "ids without a token");
    let without = from_gguf(GgufVocab { bos: Some(7), add_bos: false, ..gguf("gpt-2") });
    assert_eq!(without.encode("a", true).unwrap(), [64]);
}

#[test]
fn tokenizers_that_cannot_be_used_say_why() {
    let with = |change: fn(&mut GgufVocab)| {
        let mut vocab = gguf("gpt-2");
        change(&mut vocab);
        TokenizerFile::Gguf(vocab)
    };
    let cases = [
        (TokenizerFile::Json(b"{}".to_vec()), "tokenizer.json"),
        (TokenizerFile::Json(vec![0xff; 9]), "tokenizer.json"),
        (with(|v| v.pre = "martian".into()), "`martian`"),
        (with(|v| v.model = "llama".into()), "`llama`"),
        (with(|v| v.tokens.clear()), "no tokens"),
        (with(|v| v.merges.push("nospace".into())), "`nospace`"),
        (with(|v| v.merges.push(" a".into())), "` a`"),
        (with(|v| v.merges.push("not there".into())), "not"),
    ];
    for (file, says) in cases {
        let error = Tokenizer::from_file(&file).unwrap_err().to_string();
        assert!(error.contains(says), "{error}");
    }
}

/// What a listener sees in the end.
fn stream(tokenizer: &Tokenizer, ids: &[u32], skip_special: bool) -> String {
    let mut detokenizer = Detokenizer::new(skip_special);
    let mut text = String::new();
    for &id in ids {
        text += &detokenizer.push(tokenizer, id).unwrap();
    }
    text + &detokenizer.finish(tokenizer).unwrap()
}

/// A decoder as SentencePiece models have it: words begin with a mark, bytes are tokens, the first space goes.
fn byte_fallback() -> Tokenizer {
    let words = ["<unk>", "\u{2581}", "\u{2581}a", "b", "日", "<s>"];
    let mut vocab = serde_json::Map::new();
    for token in words.iter().map(|w| (*w).to_owned()).chain((0..256).map(|b| format!("<0x{b:02X}>"))) {
        let id = vocab.len();
        vocab.entry(token).or_insert(id.into());
    }
    let file = serde_json::json!({
        "version": "1.0",
        "added_tokens": [{ "id": 5, "content": "<s>", "special": true, "single_word": false, "lstrip": false,
            "rstrip": false, "normalized": false }],
        "decoder": { "type": "Sequence", "decoders": [
            { "type": "Replace", "pattern": { "String": "\u{2581}" }, "content": " " },
            { "type": "ByteFallback" },
            { "type": "Fuse" },
            { "type": "Strip", "content": " ", "start": 1, "stop": 0 },
        ] },
        "model": { "type": "BPE", "vocab": vocab, "merges": [], "byte_fallback": true },
    });
    Tokenizer::from_file(&TokenizerFile::Json(file.to_string().into_bytes())).unwrap()
}

#[test]
fn tokens_have_bytes() {
    let tokenizer = nano();
    for text in ["naïve — 日本語 👩‍👩‍👧 \u{FFFD}\n", "<|EOT|><think>x"] {
        let ids = tokenizer.encode(text, false).unwrap();
        let bytes: Vec<u8> = ids.iter().flat_map(|&id| tokenizer.token_bytes(id).unwrap()).collect();
        assert_eq!(String::from_utf8(bytes).unwrap(), text);
    }
    let every: Vec<_> = (0..256).map(|id| from_gguf(gguf("gpt-2")).token_bytes(id).unwrap()).collect();
    let sorted: std::collections::BTreeSet<_> = every.iter().cloned().collect();
    assert_eq!(sorted, (0..=255).map(|byte| vec![byte]).collect());
    assert_eq!(every[256 - 68], vec![0], "U+0100 is byte 0");
    // SentencePiece's: words begin with a mark, bytes are tokens.
    let tokenizer = byte_fallback();
    for (id, bytes) in [(2, &b" a"[..]), (3, b"b"), (4, "日".as_bytes()), (5, b"<s>"), (6 + 0xE6, &[0xE6])] {
        assert_eq!(tokenizer.token_bytes(id).as_deref(), Some(bytes), "{id}");
    }
    assert_eq!(tokenizer.token_bytes(4_000_000), None);
    let word_piece = serde_json::json!({ "type": "WordPiece", "prefix": "##", "cleanup": false });
    let metaspace = serde_json::json!({
        "type": "Metaspace", "replacement": "_", "prepend_scheme": "always", "split": true
    });
    for (decoder, token, text) in [
        (metaspace, "_a", " a"),
        (word_piece.clone(), "##a", "a"),
        (word_piece, "a", " a"),
        (serde_json::json!({ "type": "BPEDecoder", "suffix": "</w>" }), "a</w>", "a "),
        (Value::Null, "a", "a"),
    ] {
        let file = serde_json::json!({
            "version": "1.0",
            "added_tokens": [],
            "decoder": decoder,
            "model": { "type": "WordLevel", "vocab": { token: 0 }, "unk_token": "a" },
        });
        let tokenizer = Tokenizer::from_file(&TokenizerFile::Json(file.to_string().into_bytes())).unwrap();
        assert_eq!(tokenizer.token_bytes(0).unwrap(), text.as_bytes(), "{decoder}");
    }
}

#[test]
fn tokens_that_contain_a_text() {
    let tokenizer = from_gguf(gguf("gpt-2"));
    let spelt =
        |ids: Vec<u32>| ids.iter().map(|&id| tokenizer.decode(&[id], false).unwrap()).collect::<Vec<_>>();
    assert_eq!(spelt(tokenizer.tokens_containing(&["S", "g>"])), ["S", "'S", "<tag>"]);
    assert_eq!(spelt(tokenizer.tokens_containing(&["\n"])), ["\n"]);
    assert_eq!(spelt(tokenizer.tokens_containing(&["end", ""])), Vec::<String>::new());
}

#[test]
fn no_half_character_is_shown() {
    let tokenizer = nano();
    for text in ["naïve — 日本語 👩‍👩‍👧 \u{FFFD} 🇩🇪!", "\u{FFFD}\u{FFFD}\u{FFFD}\u{FFFD}\u{FFFD}x"]
    {
        let ids = tokenizer.encode(text, false).unwrap();
        let mut detokenizer = Detokenizer::new(false);
        let mut shown = String::new();
        for &id in &ids {
            shown += &detokenizer.push(tokenizer, id).unwrap();
            assert!(text.starts_with(&shown), "{shown:?}");
        }
        assert_eq!(shown + &detokenizer.finish(tokenizer).unwrap(), text);
    }
    // A broken character does not hold back what follows it.
    let (bytes, b) = (byte_fallback(), 3);
    let mut detokenizer = Detokenizer::new(false);
    for (id, shown) in [(6 + 0x41, "A"), (6 + 0xE6, ""), (b, "\u{FFFD}b"), (b, "b")] {
        assert_eq!(detokenizer.push(&bytes, id).unwrap(), shown);
    }
    // Ordinary text is not held back.
    let mut detokenizer = Detokenizer::new(false);
    assert_eq!(detokenizer.push(tokenizer, 389).unwrap(), tokenizer.decode(&[389], false).unwrap());
}

proptest! {
    /// Any tokens at all, with broken characters: the pieces are the whole.
    #[test]
    fn streaming_equals_decoding(ids in prop::collection::vec(0u32..4100, 0..200), skip: bool) {
        let tokenizer = nano();
        prop_assert_eq!(stream(tokenizer, &ids, skip), tokenizer.decode(&ids, skip).unwrap());
    }

    /// Single bytes, so that most characters are broken.
    #[test]
    fn streaming_equals_decoding_of_bytes(ids in prop::collection::vec(0u32..265, 0..200), skip: bool) {
        let tokenizer = from_gguf(gguf("gpt-2"));
        prop_assert_eq!(stream(&tokenizer, &ids, skip), tokenizer.decode(&ids, skip).unwrap());
    }

    #[test]
    fn text_survives_encoding_and_streaming(text in "\\PC{0,40}[\\s\u{FFFD}]{0,3}\\PC{0,9}") {
        let tokenizer = nano();
        let ids = tokenizer.encode(&text, false).unwrap();
        prop_assert_eq!(tokenizer.decode(&ids, false).unwrap(), text.as_str());
        prop_assert_eq!(stream(tokenizer, &ids, false), text);
    }

    /// Byte-fallback vocabularies: words and characters spelt as bytes. (U+FFFD is left out: their decoder writes it
    /// for every byte of a run that is broken anywhere, so that it cannot be told from a run yet to be completed.)
    #[test]
    fn streaming_equals_decoding_with_byte_fallback(parts in prop::collection::vec(prop_oneof![
        prop::sample::select(vec![1u32, 2, 3, 4, 5]).prop_map(|id| vec![id]),
        any::<char>().prop_filter("U+FFFD", |&c| c != '\u{FFFD}').prop_map(|c| c.to_string().bytes().map(|b| 6 + u32::from(b)).collect()),
    ], 0..40), skip: bool) {
        let tokenizer = byte_fallback();
        let ids = parts.concat();
        prop_assert_eq!(stream(&tokenizer, &ids, skip), tokenizer.decode(&ids, skip).unwrap());
    }
}

/// Templates of many families against what Jinja2 3.1.6 makes of them with the settings of Hugging Face
/// transformers (trim_blocks, lstrip_blocks, `tojson` as `json.dumps(ensure_ascii=False)`).
#[test]
fn templates_render_as_in_jinja2() {
    let conversations = json("tests/templates/conversations.json");
    let both = ["deepseek", "llama3", "mistral", "qwen25", "qwen3", "step3"];
    let cases = both.iter().flat_map(|name| [(*name, "plain"), (*name, "tools")]);
    for (name, kind) in cases.chain([("nano", "plain"), ("smollm2", "plain")]) {
        let template = read(&format!("tests/templates/{name}.jinja"));
        let template = ChatTemplate::new(template, Some("<s>"), Some("</s>")).unwrap();
        let conversation = &conversations[kind];
        let messages: Vec<Message> = serde_json::from_value(conversation["messages"].clone()).unwrap();
        let text = template.render(&messages, conversation.get("tools"), true);
        assert_eq!(text.unwrap(), read(&format!("tests/templates/{name}.{kind}.txt")), "{name}, {kind}");
    }
}

fn render(source: &str) -> Result<String, String> {
    let template = ChatTemplate::new(source, None, None).map_err(|e| e.to_string())?;
    template.render(&[Message::new("user", "hi")], None, false).map_err(|e| e.to_string())
}

/// Expected values from Jinja2 3.1.6, as above.
#[test]
fn template_language_details() {
    for (source, expected) in [
        ("{{ missing }}|{{ messages[0].name }}|{{ messages[0].get('name', 'x') }}", "||x"),
        ("{{ none }} {{ true }} {{ 1.0 }} {{ tools is none }}", "None True 1.0 True"),
        ("{{ {'b': 1, 'a': ['<é>', none]} | tojson }}", r#"{"b": 1, "a": ["<é>", null]}"#),
        ("{{ {'b': {}, 'a': [1]} | tojson(indent=1) }}", "{\n \"b\": {},\n \"a\": [\n  1\n ]\n}"),
        (
            "{{ {'b': 1, 'a': '😀'} | tojson(sort_keys=true, ensure_ascii=true) }}",
            r#"{"a": "\ud83d\ude00", "b": 1}"#,
        ),
        ("{% for i in [1, 2, 3, 4] %}{% if i == 3 %}{% break %}{% endif %}{{ i }}{% endfor %}", "12"),
        ("{{ 'a.b.c'.split('.', 1) | join('|') }} {{ ' x '.strip() }}{{ 'xay'.rstrip('ay') }}", "a|b.c xx"),
        ("{{ messages | map(attribute='role') | join }}{{ 'ab'[::-1] }}{{ 'abc'[-2:] }}", "userbabc"),
        ("  {% if true %}\n  x\n  {% endif %}\ny\n", "  x\ny"),
        (
            "{% set ns = namespace(n=1) %}{% for i in range(3) %}{% set ns.n = ns.n * 2 %}{% endfor %}{{ ns.n }}",
            "8",
        ),
        ("{{ 'yes' if 'user' in messages[0].values() else 'no' }}{{ '<&>' }}", "yes<&>"),
        ("{%- for k, v in messages[0].items() %}{{ k }}={{ v }};{% endfor %}", "role=user;content=hi;"),
    ] {
        assert_eq!(render(source).as_deref(), Ok(expected), "{source}");
    }
    let year: u32 = render("{{ strftime_now('%Y') }}").unwrap().parse().unwrap();
    assert!(year >= 2025);
}

#[test]
fn template_errors_are_clear() {
    for (source, says) in [
        (
            "{{ raise_exception('roles must alternate') }}",
            "text: the chat template refuses these messages: roles must alternate",
        ),
        ("{% if %}", "does not compile"),
        ("{{ missing.field }}", "the chat template failed"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "the chat template failed"),
    ] {
        let error = render(source).unwrap_err();
        assert!(error.contains(says), "{error}");
    }
}
