//! The model in the tab, as a person comes to it: chosen, loaded, asked, measured, lost and back.

use serde_json::{Value, json};
use tread_tests::browser::Browser;
use tread_tests::files::{Fault, Files};

use super::chat::{ANSWERS, say};
use super::{WEIGHTS, dist, show};

/// Chooses a model of the catalogue, without loading it.
#[track_caller]
pub(super) fn choose(browser: &Browser, model: &str) {
    show(browser, "models");
    browser.click(&format!("[data-testid=model-{model}]"));
    browser.until(&format!(
        "document.querySelector('[data-testid=model-info]')?.innerText.startsWith('{model}')"
    ));
}

/// Loads what is chosen, to be computed by `gpu` or `cpu`: this adapter is software, which the page by itself leaves alone.
#[track_caller]
pub(super) fn load(browser: &Browser, model: &str, compute: &str) {
    start(browser, compute);
    browser
        .until(&format!("document.querySelector('[data-testid=model-loaded] h2')?.innerText === '{model}'"));
}

/// Begins to load what is chosen.
#[track_caller]
pub(super) fn start(browser: &Browser, compute: &str) {
    let choose = "
        const select = document.querySelector('[data-testid=model-compute]');
        select.value = args;
        select.dispatchEvent(new Event('change', { bubbles: true }));";
    browser.run(choose, &compute.into());
    browser.click("[data-testid=model-load]");
}

#[test]
fn a_model_is_loaded_asked_measured_and_survives_its_device() {
    // Nothing but files, as on a static host.
    let files = Files::start(&[("", &dist())]);
    let browser = Browser::open(&files.url("/index.html"));
    // Without a server the model runs here.
    browser.until("document.querySelector('[data-testid=no-model]')");

    // No more comes than a part of the weights until they are asked for again: what is needed is known before.
    let part = 4 << 20;
    files.fail(WEIGHTS, Fault::Break(part));
    choose(&browser, "nano");
    assert_eq!(files.sent(WEIGHTS).iter().map(|sent| sent.bytes.end).collect::<Vec<_>>(), [part]);
    let needed = browser.value(
        "['weights', 'kv', 'download'].map((of) => Number(document.querySelector(`[data-testid=model-${of}]`).dataset.value))",
    );
    assert!(needed.as_array().unwrap().iter().all(|bytes| bytes.as_f64() > Some(1e5)), "{needed}");
    load(&browser, "nano", "gpu");
    browser.click("[data-testid=model-chat]");
    say(&browser, "Who goes there?");
    browser.until(&format!("{ANSWERS}.length === 1 && {ANSWERS}[0].length > 0"));
    let stats =
        browser.value("document.querySelector('[data-role=assistant] [data-testid=stats]').innerText");
    assert!(stats.as_str().unwrap().contains("this browser"), "{stats}");

    device(&browser);
    lose(&browser);
    measure(&browser);
}

/// What the view says of the device.
fn device(browser: &Browser) {
    show(browser, "device");
    // The adapter of the tests is software, which is a warning.
    for (testid, value) in [("device-adapter", "warn"), ("device-selftest", "good")] {
        browser.until(&format!("document.querySelector('[data-testid={testid}]')?.dataset.value"));
        let found = browser.value(&format!("document.querySelector('[data-testid={testid}]').dataset.value"));
        let text = browser.value(&format!("document.querySelector('[data-testid={testid}]').innerText"));
        assert_eq!(found, value, "{text}");
    }
    let limits = browser.value("document.querySelectorAll('[data-testid=device-limits] tbody tr').length");
    assert!(limits.as_u64() > Some(8), "{limits}");
}

/// The device is lost while an answer is written.
fn lose(browser: &Browser) {
    show(browser, "");
    let before = browser.value(ANSWERS);
    say(browser, "Tell me a long story of a king.");
    browser.until("document.querySelector('[data-live]')");
    show(browser, "device");
    let watch = "
        globalThis.told = [];
        const look = () => told.push(document.querySelector('[data-testid=device-lost]')?.innerText);
        new MutationObserver(look).observe(document.body, { childList: true, characterData: true, subtree: true });";
    browser.run(watch, &Value::Null);
    browser.click("[data-testid=device-lose]");
    browser.until("told.some((text) => text?.startsWith('Lost'))");
    browser.until("document.querySelector('[data-testid=device-lost]').innerText.includes('is loaded')");
    show(browser, "");
    browser.until(&format!("{ANSWERS}.length === 2 && {ANSWERS}[1].length > 0"));
    assert_eq!(browser.value(&format!("{ANSWERS}.slice(0, 1)")), before, "what was said is kept");
    assert_eq!(browser.value("document.querySelectorAll('[data-testid=failed]').length"), 0);
    say(browser, "And then?");
    browser.until(&format!("{ANSWERS}.length === 3 && {ANSWERS}[2].length > 0"));
}

/// How fast it is.
fn measure(browser: &Browser) {
    show(browser, "bench");
    for (testid, value) in [("bench-prompt", "16"), ("bench-new", "8"), ("bench-turns", "2")] {
        let set = "
            const input = document.querySelector(`[data-testid=${args[0]}]`);
            input.value = args[1];
            input.dispatchEvent(new Event('input', { bubbles: true }));";
        browser.run(set, &json!([testid, value]));
    }
    browser.click("[data-testid=bench-run]");
    browser.until("document.querySelector('[data-testid=bench-result], .bench [role=alert]')");
    let text =
        browser.value("document.querySelector('[data-testid=bench-result], .bench [role=alert]').innerText");
    let result: Value = serde_json::from_str(text.as_str().unwrap()).unwrap_or_else(|_| panic!("{text}"));
    assert_eq!(result["turns"].as_array().map(Vec::len), Some(2), "{result}");
    assert_eq!((&result["median"]["model"], &result["median"]["new_tokens"]), (&json!("nano"), &json!(8)));
    for field in ["time_to_first_token_s", "prefill_tokens_per_s", "decode_tokens_per_s"] {
        assert!(result["median"][field].as_f64() > Some(0.0), "{field}: {result}");
    }
}
