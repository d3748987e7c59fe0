//! A GPU that runs out of memory: while a model is loaded, and while one answers.

use std::fs;
use std::path::Path;

use serde_json::{Value, json};
use tempfile::TempDir;
use tread_core::checkpoint::Checkpoint;
use tread_core::model::Model;
use tread_tests::browser::Browser;
use tread_tests::files::Files;
use tread_tests::write::{Stored, safetensors};

use super::chat::{ANSWERS, say};
use super::{dist, gpu, show, tab};

/// nano in F32 instead of FP8: the same model, four times as large.
fn large() -> TempDir {
    let nano = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/nano");
    let folder = tempfile::tempdir().unwrap();
    let model = Model::new("nano", Checkpoint::open(&nano).unwrap()).unwrap();
    let inflate = |tensor: &tread_core::tensor::Tensor| {
        Stored::f32(tensor.name(), tensor.shape(), &tensor.to_f32().unwrap())
    };
    let tensors: Vec<Stored> = model.weights.iter().map(inflate).collect();
    fs::write(folder.path().join("model.safetensors"), safetensors(&tensors)).unwrap();
    let mut config: Value = serde_json::from_slice(&fs::read(nano.join("config.json")).unwrap()).unwrap();
    config.as_object_mut().unwrap().remove("quantization_config");
    fs::write(folder.path().join("config.json"), config.to_string()).unwrap();
    for name in ["generation_config.json", "tokenizer.json", "tokenizer_config.json"] {
        fs::copy(nano.join(name), folder.path().join(name)).unwrap();
    }
    folder
}

/// The page with a catalogue of that model and nano, on a GPU whose memory can be made scarce.
fn scarce(large: &TempDir) -> Files {
    let files = Files::start(&[("/models/large", large.path()), ("", &dist())]);
    files.answer("/worker.js", "text/javascript", &[include_str!("worker.js").to_owned()], false);
    let mut catalog: Value =
        serde_json::from_slice(&fs::read(dist().join("models/catalog.json")).unwrap()).unwrap();
    let models = catalog["models"].as_array_mut().unwrap();
    models.retain(|model| model["name"] == "nano");
    let file = |file: fs::DirEntry| {
        let path = format!("large/{}", file.file_name().to_str().unwrap());
        json!({ "path": path, "bytes": file.metadata().unwrap().len() })
    };
    let listed = fs::read_dir(large.path()).unwrap().map(|entry| file(entry.unwrap())).collect::<Vec<_>>();
    models.push(json!({ "name": "large", "files": listed }));
    files.answer("/models/catalog.json", "application/json", &[catalog.to_string()], false);
    files
}

/// Goes from a conversation that a failure stopped to the one smaller model that is offered, and on with it.
#[track_caller]
fn go_on_with_the_smaller(browser: &Browser, compute: &str) {
    let before = browser.value(ANSWERS);
    let said = before.as_array().unwrap().len();
    browser.click("[data-testid=tab-failure] a");
    let offered = "[...document.querySelectorAll('[data-testid=model-smaller] button')].map((offer) => offer.dataset.testid)";
    browser.until(&format!("{offered}.length > 0"));
    assert_eq!(browser.value(offered), json!(["model-nano"]), "what failed is not offered again");
    browser.click("[data-testid=model-smaller] [data-testid=model-nano]");
    browser.until("document.querySelector('[data-testid=model-info]')?.innerText.startsWith('nano')");
    tab::load(browser, "nano", compute);
    browser.click("[data-testid=model-chat]");
    say(browser, "And then?");
    browser.until(&format!("{ANSWERS}.length === {said} + 1 && {ANSWERS}.at(-1).length > 0"));
    assert_eq!(browser.value(&format!("{ANSWERS}.slice(0, {said})")), before, "the conversation is kept");
    let cards = "document.querySelectorAll('[data-testid=lost], [data-testid=tab-failure], [data-testid=tab-progress]').length";
    assert_eq!(browser.value(cards), 0, "nothing is wrong any more");
    let devices = u64::from(compute == "gpu");
    assert_eq!(gpu(browser, &json!({}))["devices"], devices, "the device of what failed is given back");
}

/// What the page says went wrong: the cause and the remedy, in words for who uses a browser.
#[track_caller]
fn told(browser: &Browser, testid: &str) {
    browser.until(&format!("document.querySelector('[data-testid={testid}]')"));
    let text = browser.value(&format!("document.querySelector('[data-testid={testid}]').innerText"));
    let text = text.as_str().unwrap();
    for part in ["out of memory", "the weights need", "smaller model", "shorter context"] {
        assert!(text.contains(part), "{part}: {text}");
    }
    assert!(!text.contains("--"), "options of the command line: {text}");
}

#[test]
fn a_model_that_does_not_fit_is_told_and_a_smaller_one_is_loaded() {
    let large = large();
    let files = scarce(&large);
    let browser = Browser::open(&files.url("/index.html"));
    tab::choose(&browser, "nano");
    tab::load(&browser, "nano", "cpu");
    browser.click("[data-testid=model-chat]");
    say(&browser, "Who goes there?");
    browser.until(&format!("{ANSWERS}.length === 1 && {ANSWERS}[0].length > 0"));

    tab::choose(&browser, "large");
    let weights =
        browser.value("Number(document.querySelector('[data-testid=model-weights]').dataset.value)");
    // Less than its weights alone, and enough for the other.
    gpu(&browser, &json!({ "limit": 0.75 * weights.as_f64().unwrap() }));
    tab::start(&browser, "gpu");
    told(&browser, "model-failure");
    let kind = browser.value("document.querySelector('[data-testid=model-failure]').dataset.value");
    assert_eq!(kind, "memory");
    assert_eq!(browser.value("document.querySelector('[data-testid=model-loaded]')"), Value::Null);
    let held = gpu(&browser, &json!({}));
    assert_eq!((&held["devices"], &held["gpu"]), (&json!(0), &json!(0)), "{held}");
    show(&browser, "");
    told(&browser, "tab-failure");
    go_on_with_the_smaller(&browser, "gpu");
}

#[test]
fn a_device_lost_for_lack_of_memory_ends_an_answer_but_no_conversation() {
    let large = large();
    let files = scarce(&large);
    let browser = Browser::open(&files.url("/index.html"));
    tab::choose(&browser, "large");
    tab::load(&browser, "large", "gpu");
    browser.click("[data-testid=model-chat]");
    say(&browser, "Who goes there?");
    browser.until(&format!("{ANSWERS}.length === 1 && {ANSWERS}[0].length > 0"));
    let first = browser.value(&format!("{ANSWERS}[0]"));

    let watch = "
        globalThis.told = [];
        const look = () => told.push(document.querySelector('[data-testid=lost]')?.innerText);
        new MutationObserver(look).observe(document.body, { childList: true, characterData: true, subtree: true });";
    browser.run(watch, &Value::Null);
    let held = gpu(&browser, &json!({}))["gpu"].as_u64().unwrap();
    // Another program takes most of it when the answer has begun: behind its prompt and its first token.
    gpu(&browser, &json!({ "limit": held / 2, "exhaust": true, "submits": 2 }));
    say(&browser, "Tell me a long story of a king.");
    browser.until("told.some((text) => text?.includes('out of memory'))");
    told(&browser, "tab-failure");
    let failed = browser.until("document.querySelector('[data-testid=failed]')?.innerText");
    assert!(failed.as_str().unwrap().contains("out of memory"), "{failed}");
    assert_eq!(browser.value(&format!("{ANSWERS}[0]")), first);
    assert_eq!(gpu(&browser, &json!({}))["devices"], 0);
    go_on_with_the_smaller(&browser, "cpu");
}
