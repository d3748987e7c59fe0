//! The monitor: the numbers of the server that it stands in front of.

use serde_json::Value;
use tread_tests::browser::Browser;

use super::{server, show};

/// What a card shows, as a number.
fn number(testid: &str) -> String {
    format!("Number(document.querySelector('[data-testid={testid}]')?.dataset.value ?? NaN)")
}

/// Waits for the monitor to hear numbers and events.
pub(super) fn connect(browser: &Browser) {
    browser.until("document.querySelector('[data-testid=monitor-state]')?.dataset.value === 'connected'");
}

/// Asks the server until the page has seen `condition`, an expression; `seen` has all counts of tokens so far.
pub(super) fn keep_asking(browser: &Browser, condition: &str) {
    let ask = format!(
        "globalThis.seen = new Set();
         const look = () => {{
             seen.add({});
             globalThis.ran ||= {} > 0;
         }};
         new MutationObserver(look).observe(document.body, {{ attributes: true, subtree: true }});
         const request = {{
             model: 'nano', max_tokens: 200, stream: true, ignore_eos: true,
             messages: [{{ role: 'user', content: 'Tell me a long story of a king.' }}],
         }};
         for (let turn = 0; turn < 100 && !({condition}); turn += 1) {{
             const asked = {{ method: 'POST', headers: {{ 'Content-Type': 'application/json' }}, body: JSON.stringify(request) }};
             const response = await fetch('v1/chat/completions', asked);
             if (!response.ok) throw new Error(await response.text());
             await response.text();
         }}
         return Boolean({condition});",
        number("monitor-generation-tokens"),
        number("monitor-running"),
    );
    assert_eq!(browser.run(&ask, &Value::Null), true, "{condition} never came");
}

#[test]
fn its_numbers_move_and_are_those_of_the_server() {
    let server = server();
    let browser = Browser::open(&server.url("/"));
    show(&browser, "monitor");
    connect(&browser);
    browser.until(&format!("{} === 0", number("monitor-generation-tokens")));
    keep_asking(
        &browser,
        "seen.size > 3 && globalThis.ran && document.querySelector('[data-testid=monitor-timeline] rect.op')",
    );
    // Nothing runs any more, so what the server says stands still.
    for (testid, metric) in [
        ("monitor-generation-tokens", "vllm:generation_tokens_total"),
        ("monitor-prompt-tokens", "vllm:prompt_tokens_total"),
    ] {
        let sum = format!(
            "(await (await fetch('metrics')).text()).split('\\n').filter((line) => line.startsWith('{metric}'))
                .reduce((sum, line) => sum + Number(line.split(' ').at(-1)), 0)"
        );
        let counted = browser.value(&sum);
        assert!(counted.as_f64() > Some(0.0), "{metric}: {counted}");
        browser.until(&format!("{} === {counted}", number(testid)));
    }
    browser.until(&format!("{} === 0", number("monitor-running")));
    let batch = browser.value("document.querySelector('[data-testid=monitor-batch]').innerText");
    assert!(batch.as_str().unwrap().contains(" row"), "{batch}");

    // What was fast before the reload still counts in the mean of the window.
    let mean = "Number(document.querySelector('[data-testid=monitor-tokens-per-second]')?.nextElementSibling.innerText
        .match(/mean ([\\d.]+)/)?.[1] ?? 0)";
    assert!(browser.value(mean).as_f64() > Some(0.0));
    browser.reload();
    connect(&browser);
    browser.until(&format!("{mean} > 0"));
    assert_eq!(browser.complaints(), Vec::<String>::new());
}
