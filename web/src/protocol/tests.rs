//! Every message survives the way between page and worker.

use std::fmt::Debug;

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::json;
use tread_core::graph::Side;
use tread_core::monitor::{OpTime, SequenceRows, Standing, StepEvent};

use super::{
    Adapter, Capabilities, Compute, Failure, FailureKind, FromEngine, Measurement, ModelInfo, ModelRef,
    SelfTest, Stage, StoredModel, ToEngine,
};
use crate::chat::{ChatEvent, ChatRequest, Function, Message, Sampling, ToolCall, Usage};

fn survives<T: Serialize + DeserializeOwned + PartialEq + Debug>(messages: &[T]) {
    for message in messages {
        let json = serde_json::to_string(message).unwrap();
        assert_eq!(serde_json::from_str::<T>(&json).unwrap(), *message, "{json}");
    }
}

fn references() -> [ModelRef; 4] {
    [
        ModelRef::Catalog { name: "nano".into() },
        ModelRef::Url { url: "http://a/b.gguf#sha256=00".into() },
        ModelRef::Files { names: vec!["a.gguf".into(), "b".into()] },
        ModelRef::Stored { name: "ü".into() },
    ]
}

#[test]
fn what_the_page_says_arrives() {
    let function = Function { name: "f".into(), arguments: "{}".into() };
    let call = ToolCall { id: "1".into(), kind: "function".into(), function };
    let messages = vec![
        Message { role: "assistant".into(), tool_calls: vec![call], ..Message::default() },
        Message {
            role: "tool".into(),
            content: "\"\n<b>".into(),
            tool_call_id: Some("1".into()),
            ..Message::default()
        },
    ];
    let sampling = Sampling {
        temperature: Some(0.5),
        top_p: Some(0.25),
        top_k: Some(0),
        min_p: Some(0.125),
        repetition_penalty: Some(1.5),
        seed: Some(1 << 50),
        max_tokens: Some(3),
        stop: vec!["a".into()],
    };
    let request =
        ChatRequest { messages, sampling, tools: vec![json!({"type": "function"})], continues: true };
    let mut all = vec![
        ToEngine::Probe,
        ToEngine::List,
        ToEngine::CancelLoad,
        ToEngine::Unload,
        ToEngine::Verify { name: "a".into() },
        ToEngine::Delete { name: "a".into() },
        ToEngine::Chat { id: 3, request },
        ToEngine::Chat { id: 4, request: ChatRequest::default() },
        ToEngine::Abort { id: 3 },
        ToEngine::Watch { on: true, ops: false },
        ToEngine::Bench { prompt_tokens: 1, new_tokens: 2 },
        ToEngine::LoseDevice,
    ];
    for model in references() {
        all.push(ToEngine::Inspect { model: model.clone(), context: None });
        all.push(ToEngine::Load { model, context: Some(64), compute: Compute::Gpu });
    }
    survives(&all);
}

#[test]
fn what_the_worker_says_arrives() {
    let adapter = Adapter {
        name: "a".into(),
        software: true,
        limits: vec![("max".into(), u64::from(u32::MAX) + 1)],
        features: vec![("f".into(), false)],
    };
    let self_test = SelfTest { passed: false, error: 0.5, message: Some("m".into()) };
    let capabilities = Capabilities {
        adapter: Some(adapter),
        reason: Some("r".into()),
        self_test: Some(self_test),
        storage: true,
    };
    let info = ModelInfo {
        name: "n".into(),
        weight_bytes: 1 << 40,
        obstacle: Some("o".into()),
        ..ModelInfo::default()
    };
    let stored = StoredModel { name: "n".into(), bytes: 1, total: 2, url: "u".into() };
    let model = references()[1].clone();
    let mut all = vec![
        FromEngine::Probed { capabilities },
        FromEngine::Probed { capabilities: Capabilities::default() },
        FromEngine::Stored { models: vec![stored], used: Some(1), quota: None },
        FromEngine::Inspected { model: model.clone(), result: Ok(info.clone()) },
        FromEngine::Inspected { model, result: Err("e".into()) },
        FromEngine::Loaded { result: Ok(info) },
        FromEngine::Unloaded,
        FromEngine::Verified { name: "n".into(), result: Ok(()) },
        FromEngine::Verified { name: "n".into(), result: Err("e".into()) },
        FromEngine::Measured {
            result: Ok(Measurement { decode_tokens_per_s: 1.5, ..Measurement::default() }),
        },
        FromEngine::Measured { result: Err("e".into()) },
        FromEngine::DeviceLost { message: "m".into() },
        FromEngine::Recovered,
        step(),
    ];
    for kind in [
        FailureKind::Cancelled,
        FailureKind::Network,
        FailureKind::Corrupt,
        FailureKind::Memory,
        FailureKind::Device,
        FailureKind::Other,
    ] {
        all.push(FromEngine::Loaded { result: Err(Failure { message: "m".into(), kind }) });
    }
    for stage in [Stage::Download, Stage::Check, Stage::Upload] {
        all.push(FromEngine::Progress { stage, done: 1, total: 1 << 40 });
    }
    let usage = Usage { prompt_tokens: 1, cached_tokens: 2, completion_tokens: 3 };
    for event in [
        ChatEvent::Reasoning { text: "r".into() },
        ChatEvent::Content { text: "\u{1F600}\0\"".into() },
        ChatEvent::ToolCall { index: 1, id: None, name: None, arguments: "{".into() },
        ChatEvent::Finished { reason: "stop".into(), usage },
        ChatEvent::Failed { message: "m".into() },
    ] {
        all.push(FromEngine::Chat { id: 7, event });
    }
    survives(&all);
}

fn step() -> FromEngine {
    let op = OpTime {
        name: "linear".into(),
        layer: Some(1),
        side: Side::Ffn,
        micro_batch: 0,
        start_us: 0.5,
        us: 2.0,
    };
    let rows = SequenceRows { request: 1, rows: 2, decodes: true };
    let step = StepEvent {
        step: 9,
        rows: vec![rows],
        token_gaps_s: vec![0.25],
        ops: vec![op],
        ..StepEvent::default()
    };
    FromEngine::Step { step, standing: Standing { running: 1, kv_bytes: 1 << 40, ..Standing::default() } }
}

#[test]
fn a_page_of_today_understands_what_it_says_itself() {
    // The form is used by other parts of the page and by tests: it does not change by accident.
    let load = ToEngine::Load { model: references()[0].clone(), context: None, compute: Compute::Auto };
    let expected =
        r#"{"type":"load","model":{"from":"catalog","name":"nano"},"context":null,"compute":"auto"}"#;
    assert_eq!(serde_json::to_string(&load).unwrap(), expected);
    let event = FromEngine::Chat { id: 1, event: ChatEvent::Content { text: "a".into() } };
    let expected = r#"{"type":"chat","id":1,"event":{"type":"content","text":"a"}}"#;
    assert_eq!(serde_json::to_string(&event).unwrap(), expected);
    assert!(serde_json::from_str::<ToEngine>(r#"{"type":"format_disk"}"#).is_err());
}
