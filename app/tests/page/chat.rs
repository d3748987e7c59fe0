//! Chat: with the real server, and with one that says what no model should.

use serde_json::{Value, json};
use tread_tests::browser::Browser;
use tread_tests::files::Files;

use super::{dist, import, server};

const ENTER: &str = "\u{e007}";
const COMPOSER: &str = "[data-testid=composer]";
/// The texts of the answers that are complete.
pub(super) const ANSWERS: &str = "[...document.querySelectorAll('[data-role=assistant]:not([data-live]) [data-testid=answer]')].map((a) => a.innerText.trim())";

#[track_caller]
pub(super) fn say(browser: &Browser, text: &str) {
    browser.until("document.querySelector('[data-testid=send]')");
    browser.keys(COMPOSER, text);
    // It can be sent once the server is found.
    browser.until("document.querySelector('[data-testid=send]')?.disabled === false");
    browser.keys(COMPOSER, ENTER);
}

/// The page in front of a server that always says `pieces`, and never ends if that is asked for.
fn speaking(pieces: &[&str], endless: bool) -> (Files, Browser) {
    let files = Files::start(&[("", &dist())]);
    let models =
        json!({ "object": "list", "data": [{ "id": "fake", "object": "model", "max_model_len": 4096 }] });
    files.answer("/v1/models", "application/json", &[models.to_string()], false);
    let event = |delta: Value, reason: Value| {
        let choice = json!({ "index": 0, "delta": delta, "finish_reason": reason });
        format!("data: {}\n\n", json!({ "id": "1", "object": "chat.completion.chunk", "choices": [choice] }))
    };
    let mut events: Vec<_> =
        pieces.iter().map(|piece| event(json!({ "content": piece }), Value::Null)).collect();
    if !endless {
        events.push(event(json!({}), "stop".into()));
        events.push("data: [DONE]\n\n".to_owned());
    }
    files.answer("/v1/chat/completions", "text/event-stream", &events, endless);
    let browser = Browser::open(&files.url("/index.html"));
    (files, browser)
}

#[test]
fn answers_stream_and_can_be_had_again() {
    let server = server();
    let browser = Browser::open(&server.url("/"));
    browser.until("document.querySelector('main')");
    // Every length that the answer has on its way.
    let watch = "
        globalThis.lengths = new Set();
        new MutationObserver(() => {
            const live = document.querySelector('[data-live] [data-testid=answer]');
            if (live) lengths.add(live.innerText.length);
        }).observe(document.body, { childList: true, characterData: true, subtree: true });";
    browser.run(watch, &Value::Null);
    say(&browser, "Tell me a long story of a king.");
    browser.until(&format!("{ANSWERS}.length === 1 && {ANSWERS}[0].length > 0"));
    assert!(browser.value("lengths.size").as_u64() > Some(1), "it came in pieces");
    browser.click("[data-testid=regenerate]");
    browser.until("document.querySelector('[data-testid=branches]')");
    browser.until(&format!("{ANSWERS}.length === 1 && {ANSWERS}[0].length > 0"));
    let before = browser.value(ANSWERS);
    // A reload keeps what was said.
    browser.reload();
    browser.click("[data-testid=conversation]");
    browser.until(&format!("{ANSWERS}.length === 1"));
    assert_eq!(browser.value(ANSWERS), before);
    assert_eq!(browser.complaints(), Vec::<String>::new());
}

#[test]
fn an_answer_is_stopped_and_kept() {
    let (_files, browser) = speaking(&["Once upon ", "a time"], true);
    say(&browser, "Speak on!");
    browser.until("document.querySelector('[data-live] [data-testid=answer]')?.innerText.includes('a time')");
    browser.click("[data-testid=stop]");
    browser.until("document.querySelector('[data-testid=send]') && !document.querySelector('[data-live]')");
    assert_eq!(browser.value(ANSWERS), json!(["Once upon a time"]));
    browser.until("document.querySelector('[data-testid=continue]')");
}

#[test]
fn conversations_are_imported_and_found() {
    let server = server();
    let browser = Browser::open(&server.url("/"));
    import(&browser);
    browser.keys("[data-testid=search]", "prefix cache");
    browser.until("document.querySelectorAll('[data-testid=conversation]').length === 1");
    // Right to left where the text is, and code stays left to right.
    browser.run("document.querySelector('[data-testid=search]').value = '';", &Value::Null);
    browser.keys("[data-testid=search]", "argmax");
    browser.until("document.querySelector('[data-testid=conversation]')?.innerText.includes('מודל')");
    browser.click("[data-testid=conversation]");
    browser.until("document.querySelector('[data-testid=answer] code')?.innerText === 'argmax'");
    let directions = "['p', 'code'].map((of) => getComputedStyle(document.querySelector(`[data-testid=answer] ${of}`)).direction)";
    assert_eq!(browser.value(directions), json!(["rtl", "ltr"]));
    assert_eq!(browser.complaints(), Vec::<String>::new());
}

#[test]
fn hostile_answers_do_nothing() {
    let hostile = [
        "<script>globalThis.hacked = 1</script>\n\n<img src=x onerror=\"globalThis.hacked = 2\">\n\n",
        "[a](javascript:globalThis.hacked=3) [b](JaVaScRiPt:globalThis.hacked=4) <javascript:globalThis.hacked=5>\n\n",
        "[c](data:text/html,<script>alert(1)</script>) ![d](https://tracker.example/pixel.png)\n\n",
        "<svg onload=\"globalThis.hacked = 6\"><script>globalThis.hacked = 7</script></svg>\n\n",
        "<iframe srcdoc=\"<script>parent.hacked = 8</script>\"></iframe><form action=//evil.example>\n\n",
        "```html\n</code></pre><script>globalThis.hacked = 9</script>\n```\n\n",
        "| <b onclick=globalThis.hacked=10>x</b> | `<i>` |\n| - | - |\n| <style>*{display:none}</style> | y |\n\nThe end.",
    ];
    let (_files, browser) = speaking(&hostile, false);
    say(&browser, "<img src=x onerror=\"globalThis.hacked = 11\">");
    browser.until(&format!("{ANSWERS}[0]?.endsWith('The end.')"));
    let check = "
        const all = [...document.querySelector('[data-testid=thread], main').querySelectorAll('*')];
        for (const link of document.querySelectorAll('[data-testid=answer] a')) {
            if (!/^https?:|^mailto:/.test(link.href)) return ['link', link.outerHTML];
        }
        const forbidden = 'script, iframe, object, embed, form:not(.composer), style, [srcdoc]';
        const answer = document.querySelector('[data-testid=answer]');
        if (answer.querySelector(forbidden)) return ['element', answer.querySelector(forbidden).outerHTML];
        const image = [...answer.querySelectorAll('img')].find((image) => image.src);
        if (image) return ['image', image.outerHTML];
        const handlers = all.flatMap((e) => [...e.attributes]).filter(({ name }) => name.startsWith('on'));
        if (handlers.length > 0) return ['handler', handlers[0].name];
        return globalThis.hacked === undefined ? [] : ['ran', globalThis.hacked];";
    assert_eq!(browser.run(check, &Value::Null), json!([]));
    let text = browser.value(&format!("{ANSWERS}[0]"));
    assert!(text.as_str().unwrap().contains("<img src=x"), "it is shown as what it is: {text}");
    assert_eq!(browser.complaints(), Vec::<String>::new());
    let requests = browser.requests();
    assert!(requests.iter().all(|url| !url.contains(".example")), "{requests:?}");
}
