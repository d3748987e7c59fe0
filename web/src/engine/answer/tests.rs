//! Answers to conversations with nano, and to made-up events.

use std::path::Path;

use serde_json::json;
use tread_core::Error;
use tread_core::checkpoint::Checkpoint;
use tread_core::engine::{Delta, Event, Finish};
use tread_core::model::Model;
use tread_core::text::{ToolCallParser, ToolFormat};

use super::{Answer, Question, call_id};
use crate::chat::{ChatEvent, ChatRequest, Function, Message, Sampling, ToolCall, Usage};

fn nano() -> Model {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../app/models/nano");
    Model::new("nano", Checkpoint::open(&folder).unwrap()).unwrap()
}

fn said(role: &str, content: &str) -> Message {
    Message { role: role.into(), content: content.into(), ..Message::default() }
}

fn asked(messages: Vec<Message>) -> ChatRequest {
    ChatRequest { messages, ..ChatRequest::default() }
}

fn tool() -> serde_json::Value {
    json!({"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}})
}

fn text(text: &str) -> Event {
    Event::Delta(Delta { token: Some(1), text: text.into(), ..Delta::default() })
}

fn end(finish: Finish) -> Event {
    Event::Delta(Delta { token: Some(2), finish: Some(finish), ..Delta::default() })
}

fn hear(answer: &mut Answer, events: Vec<Event>) -> Vec<ChatEvent> {
    events.into_iter().flat_map(|event| answer.take(event)).collect()
}

#[test]
fn the_prompt_is_the_templates() {
    let model = nano();
    let request = asked(vec![said("user", "Who art thou?")]);
    let question = Question::new(&model, &request, 0).unwrap();
    let messages = [tread_core::text::Message::new("user", "Who art thou?")];
    let expected = model.template().unwrap().render(&messages, None, true).unwrap();
    assert_eq!(question.prompt, model.tokenizer().unwrap().encode(&expected, false).unwrap());
}

#[test]
fn what_the_page_leaves_out_is_the_models() {
    let model = nano();
    let mut request = asked(vec![said("user", "Hi")]);
    let question = Question::new(&model, &request, 0).unwrap();
    assert_eq!(question.generate.sampling, model.sampling);
    assert_eq!(question.generate.max_tokens, usize::MAX);
    request.sampling = Sampling {
        temperature: Some(0.0),
        top_k: Some(3),
        seed: Some(7),
        max_tokens: Some(9),
        stop: vec!["\n".into()],
        ..Sampling::default()
    };
    let generate = Question::new(&model, &request, 0).unwrap().generate;
    assert_eq!((generate.sampling.temperature, generate.sampling.top_k), (0.0, 3));
    assert_eq!(
        (generate.sampling.seed, generate.max_tokens, generate.stop),
        (Some(7), 9, vec!["\n".to_owned()])
    );
    assert_eq!(generate.sampling.top_p, model.sampling.top_p);
}

#[test]
fn calls_and_their_answers_reach_the_template() {
    let function = Function { name: "add".into(), arguments: r#"{"a": 1}"#.into() };
    let call = ToolCall { id: "1".into(), kind: "function".into(), function };
    let assistant = Message { tool_calls: vec![call.clone()], ..said("assistant", "") };
    let message = super::message(&assistant).unwrap();
    assert_eq!(message.extra["tool_calls"][0]["function"]["arguments"], json!({"a": 1}));
    let answer = Message { tool_call_id: Some("1".into()), ..said("tool", "3") };
    assert_eq!(super::message(&answer).unwrap().extra["tool_call_id"], "1");
    let function = Function { name: "add".into(), arguments: "[1]".into() };
    let wrong = Message { tool_calls: vec![ToolCall { function, ..call }], ..said("assistant", "") };
    assert!(super::message(&wrong).unwrap_err().to_string().contains("arguments of the call of `add`"));
}

#[test]
fn tools_are_explained_to_a_model_whose_template_is_silent() {
    let user = tread_core::text::Message::new("user", "Hi");
    let mut messages = vec![user.clone()];
    super::explain(&mut messages, "tools");
    assert_eq!(messages, [tread_core::text::Message::new("system", "tools"), user]);
    super::explain(&mut messages, "more");
    assert_eq!(messages[0].content, "tools\n\nmore");
}

#[test]
fn an_answer_with_reasoning_and_a_call() {
    let parser = ToolCallParser::new(ToolFormat::Hermes, &json!([tool()]));
    let mut answer = Answer::new("1 + 2?", Some(parser), 5);
    let prompt =
        Event::Prompt { tokens: 30, cached: 16, waited: std::time::Duration::ZERO, logprobs: vec![] };
    let pieces = [
        "<think>",
        "I add.",
        "</think>",
        "Sum: ",
        "<tool_call>{\"name\": \"add\", \"arguments\": {\"a\": 1}}",
    ];
    let mut events = vec![prompt];
    events.extend(pieces.map(text));
    events.extend([text("</tool_call>"), end(Finish::StopToken(2)), Event::Done]);
    let heard = hear(&mut answer, events);
    let all = |pick: fn(&ChatEvent) -> Option<&str>| heard.iter().filter_map(pick).collect::<String>();
    let reasoning = all(|event| match event {
        ChatEvent::Reasoning { text } => Some(text),
        _ => None,
    });
    let content = all(|event| match event {
        ChatEvent::Content { text } => Some(text),
        _ => None,
    });
    let arguments = all(|event| match event {
        ChatEvent::ToolCall { arguments, .. } => Some(arguments),
        _ => None,
    });
    assert_eq!((reasoning.as_str(), content.trim()), ("I add.", "Sum:"));
    assert_eq!(serde_json::from_str::<serde_json::Value>(&arguments).unwrap(), json!({"a": 1}));
    let named = |event: &ChatEvent| {
        let id = Some(call_id(5, 0));
        matches!(event, ChatEvent::ToolCall { index: 0, id: i, name: Some(n), .. } if n == "add" && *i == id)
    };
    assert_eq!(heard.iter().filter(|event| named(event)).count(), 1, "{heard:?}");
    let usage = Usage { prompt_tokens: 30, cached_tokens: 16, completion_tokens: 7 };
    assert_eq!(heard.last(), Some(&ChatEvent::Finished { reason: "tool_calls".into(), usage }));
}

#[test]
fn ends_have_reasons() {
    for (finish, expected) in [
        (Finish::StopToken(2), "stop"),
        (Finish::StopString("\n".into()), "stop"),
        (Finish::Length, "length"),
        (Finish::ContextFull, "length"),
    ] {
        let mut answer = Answer::new("Hi", None, 0);
        let heard = hear(&mut answer, vec![text("a"), end(finish), Event::Done]);
        assert_eq!(heard[0], ChatEvent::Content { text: "a".into() });
        assert!(
            matches!(&heard[1..], [ChatEvent::Finished { reason, .. }] if reason == expected),
            "{heard:?}"
        );
    }
    let mut answer = Answer::new("Hi", None, 0);
    let failed = Event::Failed(Error::Capacity("use a shorter --context".into()));
    assert_eq!(answer.take(failed), [ChatEvent::Failed { message: "use a shorter context".into() }]);
}

#[test]
fn calls_have_names_of_their_own() {
    let ids = [call_id(1, 0), call_id(1, 1), call_id(2, 0)];
    assert!(ids.iter().all(|id| id.len() == 9 && id.bytes().all(|b| b.is_ascii_digit())), "{ids:?}");
    assert!(ids[0] != ids[1] && ids[0] != ids[2] && ids[1] != ids[2]);
}
