use proptest::prelude::*;
use serde_json::{Value, json};

use super::{ToolCallParser, ToolChoice, ToolFormat, ToolSplit, explain_tools};
use crate::grammar::tests::{bytes, nano};
use crate::text::{ChatTemplate, Message};

/// The content of an answer, and its calls with the text of their arguments.
type Outcome = (String, Vec<(String, String)>);

fn tools() -> Value {
    let weather = json!({
        "type": "object",
        "properties": {
            "zone": { "type": "string" },
            "days": { "type": "integer", "minimum": 1, "maximum": 9 },
            "exact": { "type": "boolean" },
            "sky": { "enum": ["blue", "a < b", "grey"] },
            "at": { "$ref": "#/$defs/point" },
            "note": { "type": ["string", "null"] }
        },
        "required": ["zone", "at"],
        "additionalProperties": false,
        "$defs": { "point": { "type": "array", "items": { "type": "integer", "minimum": 0, "maximum": 9 }, "maxItems": 2 } }
    });
    json!([
        { "type": "function", "function": { "name": "weather", "parameters": weather } },
        { "type": "function", "function": { "name": "time" } }
    ])
}

fn parse(format: ToolFormat, pieces: impl IntoIterator<Item = String>) -> Outcome {
    let mut parser = ToolCallParser::new(format, &tools());
    let mut splits: Vec<ToolSplit> = pieces.into_iter().map(|piece| parser.push(&piece)).collect();
    splits.push(parser.finish());
    let content = splits.iter().map(|split| split.content.as_str()).collect();
    let mut calls: Vec<(String, String)> = vec![];
    for delta in splits.into_iter().flat_map(|split| split.calls) {
        if let Some(name) = delta.name {
            assert_eq!(delta.index, calls.len());
            calls.push((name, String::new()));
        }
        assert_eq!(delta.index + 1, calls.len());
        calls.last_mut().unwrap().1.push_str(&delta.arguments);
    }
    (content, calls)
}

/// Every way of cutting the text in two and cutting it into characters; all must give the same.
fn parse_all_ways(format: ToolFormat, text: &str) -> Outcome {
    let whole = parse(format, [text.to_owned()]);
    assert_eq!(parse(format, text.chars().map(String::from)), whole, "{text:?} by character");
    for at in (0..text.len()).filter(|&at| text.is_char_boundary(at)) {
        let pieces = [text[..at].to_owned(), text[at..].to_owned()];
        assert_eq!(parse(format, pieces), whole, "{text:?} cut at {at}");
    }
    whole
}

fn check(format: ToolFormat, cases: &[(&str, &str, &[(&str, &str)])]) {
    for (text, content, calls) in cases {
        let calls = calls.iter().map(|&(name, arguments)| (name.to_owned(), arguments.to_owned())).collect();
        assert_eq!(parse_all_ways(format, text), ((*content).to_owned(), calls), "{text}");
    }
}

#[test]
fn hermes() {
    check(
        ToolFormat::Hermes,
        &[
            ("Hello <tool> \n", "Hello <tool> \n", &[]),
            ("", "", &[]),
            (
                "<tool_call>\n{\"name\": \"weather\", \"arguments\": {\"zone\": \"Zü\\\"}<\"}}\n</tool_call>",
                "",
                &[("weather", r#"{"zone": "Zü\"}<"}"#)],
            ),
            (
                "Let me see.\n\n<tool_call>{\"name\":\"time\",\"arguments\":{}}</tool_call>\n<tool_call>\n\
                 {\"name\": \"other\", \"parameters\": {\"a\": [1, {}]}}\n</tool_call> Done.\n",
                "Let me see.Done.\n",
                &[("time", "{}"), ("other", r#"{"a": [1, {}]}"#)],
            ),
            // Another order, arguments as a string, none at all.
            (
                "<tool_call>{\"arguments\": {\"a\": 1}, \"name\": \"t\"}</tool_call>\
                 <tool_call>{\"name\": \"u\", \"arguments\": \"{\\\"b\\\": 2}\"}</tool_call>\
                 <tool_call>{\"name\": \"v\"}</tool_call>",
                "",
                &[("t", r#"{"a":1}"#), ("u", r#"{"b":2}"#), ("v", "{}")],
            ),
            // No calls.
            ("<tool_call>\nweather(1)</tool_call>", "<tool_call>\nweather(1)</tool_call>", &[]),
            ("a <tool_call>{\"name\": 1}</tool_call>", "a <tool_call>{\"name\": 1}</tool_call>", &[]),
            ("<tool_call><tool_call>{\"name\": \"t\"}</tool_call>", "<tool_call>", &[("t", "{}")]),
            ("x \n<tool_call>\n{\"na", "x \n<tool_call>\n{\"na", &[]),
            ("x \n<tool_ca", "x \n<tool_ca", &[]),
            // Broken off, or the end forgotten.
            ("<tool_call>{\"name\": \"t\", \"arguments\": {\"a\": \"b", "", &[("t", r#"{"a": "b"#)]),
            ("<tool_call>{\"name\": \"t\", \"arguments\": {\"a\": 1}}\n</tool", "", &[("t", r#"{"a": 1}"#)]),
            ("<tool_call>{\"name\": \"t\", \"arguments\": {}</tool_call>!", "!", &[("t", "{}")]),
            ("<tool_call>{\"name\": \"t\", \"arguments\": {}} or so", " or so", &[("t", "{}")]),
            ("<tool_call>{\"name\": \"t\", \"arguments\": {\"a\": <b>", "<b>", &[("t", "{\"a\": ")]),
        ],
    );
}

#[test]
fn llama3() {
    check(
        ToolFormat::Llama3,
        &[
            (r#"{"name": "time", "parameters": {"a": "}"}}"#, "", &[("time", r#"{"a": "}"}"#)]),
            (
                "\n<|python_tag|>{\"type\": \"function\", \"name\": \"time\", \"parameters\": {}}; \
                 {\"name\": \"weather\", \"arguments\": {\"zone\": \"x\"}}",
                "",
                &[("time", "{}"), ("weather", r#"{"zone": "x"}"#)],
            ),
            ("The time is {\"name\": \"time\"}.", "The time is {\"name\": \"time\"}.", &[]),
            (r#"{"name": "Bob", "parameters": {}}"#, r#"{"name": "Bob", "parameters": {}}"#, &[]),
            (r#" {"answer": {"name": "time"}} "#, r#" {"answer": {"name": "time"}} "#, &[]),
            (r#"{"name": "ti"#, r#"{"name": "ti"#, &[]),
            ("{\"name\": \"time\", \"parameters\": {}}\nok", "ok", &[("time", "{}")]),
        ],
    );
}

#[test]
fn step3() {
    let weather = "function<｜tool_sep｜><steptml:invoke name=\"weather\">";
    let one = |parameters: &str| {
        format!(
            "<｜tool_calls_begin｜><｜tool_call_begin｜>{weather}{parameters}</steptml:invoke><｜tool_call_end｜>\
             <｜tool_calls_end｜>"
        )
    };
    let parameter =
        |name: &str, value: &str| format!("<steptml:parameter name=\"{name}\">{value}</steptml:parameter>");
    for (value, name, expected) in [
        ("Zürich", "zone", r#""Zürich""#),
        (" 7\n", "zone", r#""7""#),
        ("a < b && <i>\"c\"</i>", "zone", r#""a < b && <i>\"c\"</i>""#),
        ("2", "days", "2"),
        ("two", "days", r#""two""#),
        ("2.5", "days", r#""2.5""#),
        ("True", "exact", "true"),
        ("null", "note", "null"),
        ("nothing", "note", r#""nothing""#),
        ("a < b", "sky", r#""a < b""#),
        ("[1,  2]", "at", "[1,2]"),
        ("{\"a\": [null]}", "unknown", r#"{"a":[null]}"#),
        ("plain", "unknown", r#""plain""#),
        ("", "zone", r#""""#),
    ] {
        let text = one(&parameter(name, value));
        let expected = format!("{{\"{name}\": {expected}}}");
        check(ToolFormat::Step3, &[(&text, "", &[("weather", &expected)])]);
    }
    let two = parameter("zone", "x") + "\n" + &parameter("days", "1");
    check(
        ToolFormat::Step3,
        &[
            (&one(&two), "", &[("weather", r#"{"zone": "x", "days": 1}"#)]),
            (&format!("So. \n{}\n\nDone.", one("")), "So.Done.", &[("weather", "{}")]),
            // In the words of the template, and with the markers of DeepSeek's vocabulary.
            (
                "<tool_calls_begin>\n<tool_call_begin>\nfunction<tool_sep><steptml:invoke name=\"a\"></steptml:invoke>\
                 <tool_call_end>\n<tool_call_begin>\nfunction<tool_sep><steptml:invoke name=\"b\"></steptml:invoke>\
                 <tool_call_end>\n<tool_calls_end>\n",
                "",
                &[("a", "{}"), ("b", "{}")],
            ),
            (
                "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜><steptml:invoke name=\"a\">\
                 </steptml:invoke><｜tool▁call▁end｜><｜tool▁calls▁end｜>",
                "",
                &[("a", "{}")],
            ),
            // No calls.
            ("x\n<｜tool_calls_begin｜> none", "x\n<｜tool_calls_begin｜> none", &[]),
            (&one("").replace("function", "method"), &one("").replace("function", "method"), &[]),
            // Broken off.
            (&one(&two)[..one(&two).find("\n").unwrap()], "", &[("weather", r#"{"zone": "x""#)]),
            ("<｜tool_calls_begin｜><｜tool_call_b", "<｜tool_calls_begin｜><｜tool_call_b", &[]),
            (&one("").replace("<｜tool_calls_end｜>", "<｜tool_ca"), "", &[("weather", "{}")]),
            (&one("").replace("<｜tool_calls_end｜>", " and"), " and", &[("weather", "{}")]),
        ],
    );
}

#[test]
fn content_and_arguments_are_given_out_as_soon_as_they_are_certain() {
    let mut parser = ToolCallParser::new(ToolFormat::Hermes, &tools());
    assert_eq!(parser.push("Let me").content, "Let me");
    assert_eq!(parser.push(" see <").content, " see");
    assert_eq!(parser.push("3").content, " <3");
    assert_eq!(parser.push("<tool_call>{\"name\": \"time\", ").calls, []);
    let begun = parser.push("\"arguments\": {\"a").calls;
    assert_eq!((begun[0].name.as_deref(), begun[0].arguments.as_str()), (Some("time"), "{\"a"));
    let more = parser.push("\": \"b").calls;
    assert_eq!((more[0].name.as_deref(), more[0].arguments.as_str()), (None, "\": \"b"));
}

fn formats() -> impl Strategy<Value = ToolFormat> {
    prop::sample::select(vec![ToolFormat::Step3, ToolFormat::Hermes, ToolFormat::Llama3])
}

proptest! {
    /// Markup in any disorder.
    #[test]
    fn pieces_do_not_matter(format in formats(), parts in prop::collection::vec(prop::sample::select(vec![
        "<tool_call>", "</tool_call>", "{\"name\": \"time\"", ", \"arguments\": ", "{\"a\": [1]", "\"{\\\"b\\\": 2}\"", "}", "}}",
        "<｜tool_calls_begin｜>", "<｜tool_call_begin｜>", "function", "<｜tool_sep｜>", "<steptml:invoke name=\"time\">",
        "<steptml:parameter name=\"a\">", "</steptml:parameter>", "</steptml:invoke>", "<｜tool_call_end｜>",
        "<｜tool_calls_end｜>", " ", "\n", "é", "<", "\"", ";", "<|python_tag|>", "{", "1",
    ]), 0..14)) {
        parse_all_ways(format, &parts.concat());
    }

    /// What is no markup is content, to the letter.
    #[test]
    fn nothing_is_lost(format in formats(), text in "[a-z <>{}\"\\n]{0,40}") {
        prop_assert_eq!(parse_all_ways(format, &text), (text, vec![]));
    }
}

#[test]
fn formats_are_those_the_templates_mention() {
    let template = |name: &str| {
        let path = format!("{}/tests/templates/{name}.jinja", env!("CARGO_MANIFEST_DIR"));
        std::fs::read_to_string(path).unwrap()
    };
    for (name, format, knows) in [
        ("step3", ToolFormat::Step3, true),
        ("qwen25", ToolFormat::Hermes, true),
        ("qwen3", ToolFormat::Hermes, false),
        ("llama3", ToolFormat::Llama3, true),
        ("smollm2", ToolFormat::Hermes, false),
        ("nano", ToolFormat::Hermes, false),
    ] {
        assert_eq!(ToolFormat::of(&template(name)), format, "{name}");
        let template = ChatTemplate::new(template(name), Some("<s>"), Some("</s>")).unwrap();
        assert_eq!(template.knows_tools(), knows, "{name}");
    }
    // What a template writes of calls is read again.
    for (name, format) in
        [("step3", ToolFormat::Step3), ("qwen3", ToolFormat::Hermes), ("llama3", ToolFormat::Llama3)]
    {
        let template = ChatTemplate::new(template(name), Some("<s>"), Some("</s>")).unwrap();
        let arguments = json!({ "zone": "Zürich <b>", "days": 2, "at": [1, 2] });
        let call = json!([{ "type": "function", "function": { "name": "weather", "arguments": arguments } }]);
        let mut message = Message::new("assistant", "");
        message.extra.insert("tool_calls".into(), call);
        let messages = [Message::new("user", "Weather?"), message];
        let text = template.render(&messages, Some(&tools()), false).unwrap();
        let start = text.rfind("assistant").unwrap() + "assistant".len();
        let turn = text[start..].trim_start_matches("<|end_header_id|>");
        let end = ["<|EOT|>", "<|im_end|>", "<|eot_id|>"].iter().find_map(|end| turn.rfind(end)).unwrap();
        let answer = turn[..end].trim_start_matches("\n<think>\n\n</think>\n\n");
        let (content, calls) = parse_all_ways(format, answer);
        assert_eq!((content.trim(), calls.len(), calls[0].0.as_str()), ("", 1, "weather"), "{answer}");
        assert_eq!(serde_json::from_str::<Value>(&calls[0].1).unwrap(), arguments, "{name}");
    }
}

/// The template is abridged, but its tools and its example of a call are Qwen's.
#[test]
fn tools_are_explained_as_qwen_does() {
    let conversations = include_str!("../../../tests/templates/conversations.json");
    let conversations: Value = serde_json::from_str(conversations).unwrap();
    let explained = explain_tools(&conversations["tools"]["tools"]);
    let rendered = include_str!("../../../tests/templates/qwen25.tools.txt");
    for (start, end) in [("<tools>\n{", "</tools>"), ("<tool_call>\n{\"name\": <", "</tool_call>")] {
        let part = &rendered[rendered.find(start).unwrap()..];
        let part = &part[..part.find(end).unwrap() + end.len()];
        assert!(explained.contains(part), "{part}\n{explained}");
    }
}

/// Whether the arguments obey the schema of `weather`; strings are not looked into.
fn obeys(arguments: &Value) -> bool {
    let digits = |value: &Value| {
        value.as_array().is_some_and(|l| l.len() <= 2 && l.iter().all(|n| n.as_u64() < Some(10)))
    };
    let sky = |value: &Value| ["blue", "a < b", "grey"].iter().any(|sky| value == sky);
    let object = arguments.as_object().unwrap();
    object.contains_key("zone")
        && object.contains_key("at")
        && object.iter().all(|(name, value)| match name.as_str() {
            "zone" => value.is_string(),
            "note" => value.is_string() || value.is_null(),
            "days" => value.as_u64().is_some_and(|days| (1..=9).contains(&days)),
            "exact" => value.is_boolean(),
            "sky" => sky(value),
            "at" => digits(value),
            _ => false,
        })
}

#[test]
fn forced_calls_are_well_formed() {
    let mut seen = [0; 2];
    for format in [ToolFormat::Step3, ToolFormat::Hermes, ToolFormat::Llama3] {
        for toy in [nano(), bytes()] {
            for (choice, most) in [(ToolChoice::Required, 100), (ToolChoice::Named("weather".into()), 1)] {
                let grammar = toy.compile(&format.grammar(&tools(), &choice, &toy.tokenizer).unwrap());
                let specials: Vec<u32> = (258..263).filter(|&id| toy.tokenizer.is_special(id)).collect();
                for seed in 0..12 {
                    let Some(text) = toy.try_walk(grammar.clone(), seed, &specials) else { continue };
                    let (content, calls) = parse(format, [text.clone()]);
                    assert_eq!(content, "", "{text}");
                    assert!((1..=most).contains(&calls.len()), "{text}");
                    for (name, arguments) in calls {
                        let arguments: Value = match serde_json::from_str(&arguments) {
                            Ok(arguments) => arguments,
                            // JSON has numbers of any size.
                            Err(error) if error.to_string().contains("number out of range") => continue,
                            Err(error) => panic!("{error}: {text}"),
                        };
                        match name.as_str() {
                            "weather" => assert!(obeys(&arguments), "{text}"),
                            "time" if choice == ToolChoice::Required => {
                                assert!(arguments.is_object(), "{text}")
                            }
                            _ => panic!("{text}"),
                        }
                        seen[usize::from(most == 1)] += 1;
                    }
                }
            }
        }
    }
    assert!(seen[0] > 20 && seen[1] > 20, "{seen:?}");
}

#[test]
fn choices_that_cannot_be_say_why() {
    let tokenizer = &nano().tokenizer;
    for (tools, choice, says) in [
        (tools(), ToolChoice::Named("nothing".into()), "`nothing`, which is not among the tools"),
        (json!([]), ToolChoice::Required, "there are no tools"),
        (json!([{ "type": "function" }]), ToolChoice::Required, "tools must be a list"),
        (json!({}), ToolChoice::Required, "tools must be a list"),
        (json!([{ "function": { "name": "a\"b" } }]), ToolChoice::Required, "rename it"),
        (
            json!([{ "function": { "name": "f", "parameters": { "pattern": "a?".repeat(20_000) } } }]),
            ToolChoice::Required,
            "patterns in bytes",
        ),
    ] {
        let error = ToolFormat::Step3.grammar(&tools, &choice, tokenizer).unwrap_err().to_string();
        assert!(error.contains(says), "{error}");
    }
}
