//! The model in the tab: the same answers as natively, over bad connections, with bad files, on devices that fail.

use std::fs;

use serde_json::json;
use tread_tests::files::{Fault, Files};
use tread_tests::write::Gguf;

use super::{WEIGHTS, Worker, dist, gpu, native, server};

const PROMPT: &str = "Who goes there?";

#[test]
fn it_answers_as_the_native_engine_does() {
    let server = server();
    let worker = Worker::start(&server.url(""));
    worker.tell(&json!({ "type": "probe" }));
    let capabilities = worker.hear("probed")["capabilities"].take();
    assert_eq!(capabilities["self_test"]["passed"], true, "{capabilities}");
    assert_eq!(capabilities["adapter"]["software"], true, "{capabilities}");
    // On WebGPU, and on the CPU, which is taken where WebGPU is software.
    for (compute, device) in [("gpu", "WebGpu"), ("auto", "CPU")] {
        let found = worker.load_nano(compute);
        assert!(found.contains(device), "{found}");
        for (id, prompt) in [(1, PROMPT), (2, "Tell me of love.")] {
            assert_eq!(worker.ask(id, prompt, 24), native(prompt, 24), "{compute}: {prompt}");
        }
        worker.browser.run("heard.length = 0;", &json!(null));
    }
}

#[test]
fn a_download_that_breaks_goes_on_where_it_stopped() {
    let files = Files::start(&[("", &dist())]);
    let size = fs::metadata(dist().join(&WEIGHTS[1..])).unwrap().len();
    // What is kept is kept in pieces of 4 MiB.
    let at = size - 1_000_000;
    // The first to ask only looks at the file's head.
    files.fail(WEIGHTS, Fault::Break(at));
    files.fail(WEIGHTS, Fault::Break(at));
    let worker = Worker::start(&files.url(""));
    worker.tell(&json!({ "type": "load", "model": { "from": "catalog", "name": "nano" }, "context": 64 }));
    worker.browser.until("heard.some((message) => message.type === 'progress' && message.done > 9e6)");
    files.cut();
    let loaded = worker.hear("loaded");
    assert!(loaded["result"]["Ok"].is_object(), "{loaded}");
    let sent = files.sent(WEIGHTS);
    let broken = sent.iter().rposition(|sent| sent.bytes.end == at).expect("one answer broke off");
    assert!(sent[broken + 1..].iter().any(|sent| sent.bytes.start >= size / 2), "{sent:?}");
    let total: u64 = sent[1..].iter().map(|sent| sent.bytes.end - sent.bytes.start).sum();
    assert!(total < size + size / 2, "what was there is not fetched again: {total} of {size}, {sent:?}");
    assert_eq!(worker.ask(1, PROMPT, 16), native(PROMPT, 16));
    // What is kept is not fetched again.
    worker.tell(&json!({ "type": "unload" }));
    worker.hear("unloaded");
    let before = files.sent(WEIGHTS).len();
    worker.load_nano("auto");
    let again: u64 = files.sent(WEIGHTS)[before..].iter().map(|sent| sent.bytes.end - sent.bytes.start).sum();
    assert!(again <= 1 << 20, "{again} bytes were fetched again");
}

#[test]
fn a_file_that_is_not_what_was_announced_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let gguf = Gguf::tiny().bytes();
    fs::write(folder.path().join("tiny.gguf"), &gguf).unwrap();
    let files = Files::start(&[("/models", folder.path()), ("", &dist())]);
    let hash: String = sha256(&gguf).iter().map(|byte| format!("{byte:02x}")).collect();
    let model = json!({ "from": "url", "url": format!("{}#sha256={hash}", files.url("/models/tiny.gguf")) });
    files.fail("/models/tiny.gguf", Fault::Flip(gguf.len() as u64 - 5));
    let worker = Worker::start(&files.url(""));
    let refused = worker.load(&model);
    assert_eq!(refused["Err"]["kind"], "corrupt", "{refused}");
    worker.tell(&json!({ "type": "list" }));
    let stored = worker.hear("stored");
    let kept = stored["models"]
        .as_array()
        .unwrap()
        .iter()
        .map(|model| model["bytes"].as_u64().unwrap())
        .sum::<u64>();
    assert_eq!(kept, 0, "nothing of it is kept: {stored}");
    files.mend();
    let loaded = worker.load(&model);
    assert!(loaded["Ok"].is_object(), "the right file is taken: {loaded}");
}

#[test]
fn two_tabs_share_what_is_kept() {
    let server = server();
    let worker = Worker::start(&server.url(""));
    worker.load_nano("cpu");
    let other = worker.another();
    other.tell(&json!({ "type": "list" }));
    let kept = other.hear("stored")["models"].take();
    assert_eq!((&kept[0]["name"], &kept[0]["bytes"]), (&json!("nano"), &kept[0]["total"]), "{kept}");
    let loaded = other.load(&json!({ "from": "stored", "name": "nano" }));
    assert_eq!(loaded["Ok"]["download_bytes"], 0, "{loaded}");
    let request = |id| {
        json!({ "type": "chat", "id": id, "request": {
            "messages": [{ "role": "user", "content": PROMPT }],
            "sampling": { "temperature": 0, "max_tokens": 24 },
        } })
    };
    worker.tell(&request(1));
    other.tell(&request(1));
    let expected = native(PROMPT, 24);
    assert_eq!((worker.answer(1), other.answer(1)), (expected.clone(), expected));
    // One deletes what the other has loaded: that goes on, as its weights are elsewhere.
    other.tell(&json!({ "type": "delete", "name": "nano" }));
    other.hear("unloaded");
    assert_eq!(other.hear("stored")["models"], json!([]));
    assert_eq!(worker.ask(2, "Tell me of love.", 16), native("Tell me of love.", 16));
}

#[test]
fn a_lost_device_is_opened_again_and_requests_go_on() {
    let files = Files::start(&[("", &dist())]);
    let worker = Worker::start(&files.url(""));
    worker.load_nano("gpu");
    let tokens = 24;
    let request = json!({
        "messages": [{ "role": "user", "content": PROMPT }],
        "sampling": { "temperature": 0, "max_tokens": tokens },
    });
    worker.tell(&json!({ "type": "chat", "id": 7, "request": request }));
    worker.browser.until("heard.some((message) => message.type === 'chat')");
    worker.tell(&json!({ "type": "lose_device" }));
    worker.browser.until("heard.some((message) => message.type === 'device_lost')");
    worker.browser.until("heard.some((message) => message.type === 'recovered')");
    assert_eq!(worker.answer(7), native(PROMPT, tokens));
    assert_eq!(worker.ask(8, "Tell me of love.", 16), native("Tell me of love.", 16));
}

#[test]
fn a_device_without_memory_is_given_back_and_requests_go_on() {
    let files = Files::start(&[("", &dist())]);
    files.answer("/worker.js", "text/javascript", &[include_str!("worker.js").to_owned()], false);
    let worker = Worker::start(&files.url(""));
    worker.load_nano("gpu");
    let before = gpu(&worker.browser, &json!({}));
    let tokens = 24;
    let request = json!({
        "messages": [{ "role": "user", "content": PROMPT }],
        "sampling": { "temperature": 0, "max_tokens": tokens },
    });
    worker.tell(&json!({ "type": "chat", "id": 7, "request": request }));
    worker.browser.until("heard.some((message) => message.type === 'chat')");
    // There is room for one device with the model, not for two.
    let limit = before["gpu"].as_u64().unwrap() * 3 / 2;
    gpu(&worker.browser, &json!({ "limit": limit, "exhaust": true }));
    worker.browser.until("heard.some((message) => message.type === 'recovered')");
    let lost = worker.browser.value("heard.find((message) => message.type === 'device_lost').message");
    let lost = lost.as_str().unwrap();
    assert!(lost.contains("out of memory") && lost.contains("smaller model"), "{lost}");
    assert_eq!(worker.answer(7), native(PROMPT, tokens));
    let after = gpu(&worker.browser, &json!({}));
    assert_eq!((&after["devices"], &after["gpu"]), (&json!(1), &before["gpu"]), "{after}");
}

#[test]
fn a_model_that_is_unloaded_leaves_nothing() {
    let files = Files::start(&[("", &dist())]);
    files.answer("/worker.js", "text/javascript", &[include_str!("worker.js").to_owned()], false);
    let worker = Worker::start(&files.url(""));
    // A software adapter compiles for half a minute at each load.
    for (compute, rounds) in [("gpu", 3), ("cpu", 10)] {
        let held: Vec<_> = (0..rounds)
            .map(|round| {
                worker.load_nano(compute);
                assert!(!worker.ask(round, PROMPT, 4).is_empty());
                worker.tell(&json!({ "type": "unload" }));
                worker.hear("unloaded");
                worker.browser.run("heard.length = 0;", &json!(null));
                let held = gpu(&worker.browser, &json!({}));
                assert_eq!(held["devices"], 0, "{compute}, round {round}: {held}");
                held["bytes"].as_u64().expect("a number")
            })
            .collect();
        // A memory never shrinks. The first loads find what it takes; the later ones use that again.
        assert_eq!(held.last(), held.get(held.len() / 2), "{compute}: {held:?}");
    }
}

fn sha256(bytes: &[u8]) -> Vec<u8> {
    use sha2::Digest as _;
    sha2::Sha256::digest(bytes).to_vec()
}
