//! The monitor: the numbers of the server that it stands in front of, with one pool and with two.

use serde_json::{Value, json};
use tread_core::monitor::STAGES;
use tread_tests::browser::Browser;
use tread_tests::server::Server;

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
             model: 'nano', max_tokens: 200, n: 3, stream: true, ignore_eos: true,
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

/// `tread serve` with two FFN workers.
pub(super) fn two_pools() -> Server {
    Server::start(env!("CARGO_BIN_EXE_tread"), &["nano", "--backend", "cpu", "--afd", "1A2F"])
}

/// Hears the server's events beside the page, and what the page shows of them.
const LISTEN: &str = "
    globalThis.steps = new Map();
    const read = async (begun) => {
        const { body } = await fetch('events?ops=1');
        let text = '';
        for await (const piece of body.pipeThrough(new TextDecoderStream())) {
            begun();
            const events = (text + piece).split('\\n\\n');
            text = events.pop();
            for (const event of events) {
                const data = event.split('\\n').find((line) => line.startsWith('data:'));
                const told = data && JSON.parse(data.slice(5));
                for (const { step } of Array.isArray(told) ? told : []) if (step.ops.length) steps.set(step.step, step);
            }
        }
    };
    await new Promise(read);
    // The stages that each micro-batch of a step was seen in.
    globalThis.shown = {};
    const look = () => {
        const step = document.querySelector('[data-testid=monitor-replay]')?.dataset.step;
        if (!step) return;
        const markers = [...document.querySelectorAll('[data-testid=micro-batch]')];
        const trips = (shown[step] ??= markers.map(() => []));
        markers.forEach(({ dataset: { stage } }, at) => trips[at]?.at(-1) === stage || trips[at]?.push(stage));
    };
    new MutationObserver(look).observe(document.body, { attributes: true, childList: true, subtree: true });";

#[test]
fn two_pools_are_shown_as_their_events_say() {
    let server = two_pools();
    let browser = Browser::open(&server.url("/"));
    show(&browser, "monitor");
    connect(&browser);
    browser.until("document.querySelectorAll('[data-testid=monitor-pool]').length === 2");
    let pools = browser.value(
        "[...document.querySelectorAll('[data-testid=monitor-pool]')].map((pool) => pool.textContent)",
    );
    let pools: Vec<&str> = pools.as_array().unwrap().iter().filter_map(Value::as_str).collect();
    assert!(pools[0].contains("attention") && pools[1].contains("ffn"), "{pools:?}");
    browser.run(LISTEN, &Value::Null);
    // Until a step was played to its end, and the next one is there.
    keep_asking(&browser, "Object.keys(shown).length > 1");

    let step = browser.value("Object.keys(shown)[0]");
    let recorded = browser.run("return steps.get(Number(args))?.ops;", &step);
    let ops = recorded.as_array().unwrap_or_else(|| panic!("step {step} is not among the events"));
    let shown = browser.run("return shown[args];", &step);
    // Three sequences decode, a micro-batch each.
    assert_eq!(shown.as_array().map(Vec::len), Some(3), "{shown}");
    for (at, trip) in shown.as_array().unwrap().iter().enumerate() {
        let mut mine: Vec<&Value> = ops.iter().filter(|op| op["micro_batch"] == at).collect();
        mine.sort_by(|a, b| a["start_us"].as_f64().unwrap().total_cmp(&b["start_us"].as_f64().unwrap()));
        // A busy machine may draw too few pictures to show all of them, but shows none in another order.
        let mut recorded = mine.iter().map(|op| &op["name"]);
        let trip = trip.as_array().unwrap();
        assert!(
            trip.iter().all(|stage| recorded.any(|name| name == stage)),
            "micro-batch {at}: {trip:?}, {mine:?}"
        );
        assert!(STAGES.iter().all(|stage| trip.contains(&json!(stage))), "micro-batch {at}: {trip:?}");
    }

    // Times are those of the step that is shown now.
    let now = "
        const value = (stage) => Number(document.querySelector(`[data-testid=stage-${stage}]`).dataset.value);
        const { step } = document.querySelector('[data-testid=monitor-replay]').dataset;
        return [args.map(value), steps.get(Number(step)).ops];";
    let now = browser.run(now, &json!(STAGES));
    for (at, stage) in STAGES.iter().enumerate() {
        let of = |op: &&Value| op["name"] == *stage && !op["layer"].is_null();
        let times: Vec<f64> =
            now[1].as_array().unwrap().iter().filter(of).filter_map(|op| op["us"].as_f64()).collect();
        let (mean, value) = (times.iter().sum::<f64>() / times.len() as f64, now[0][at].as_f64().unwrap());
        assert!((value - mean).abs() < 1e-6 * mean.max(1.0), "{stage}: {value} shown, {mean} recorded");
    }
    // A strip of the timeline for each.
    let heights =
        "[...new Set([...document.querySelectorAll('rect.op')].map((op) => op.getAttribute('height')))]";
    assert_eq!(browser.value(heights), json!([format!("{:.2}", 26.0 / 3.0)]));

    // Who asks for less motion sees the same without it.
    let calm = json!({ "features": [{ "name": "prefers-reduced-motion", "value": "reduce" }] });
    browser.devtools("Emulation.setEmulatedMedia", &calm);
    browser.reload();
    connect(&browser);
    keep_asking(&browser, "document.querySelector('[data-testid=monitor-replay]')?.dataset.step");
    let note = browser.value("document.querySelector('[data-testid=monitor-replay]').innerText");
    assert!(note.as_str().unwrap().contains("nothing moves"), "{note}");
    let markers = "document.querySelectorAll('[data-testid=micro-batch][data-stage]').length";
    assert!(browser.value(markers).as_u64() > Some(0));
    assert_eq!(browser.complaints(), Vec::<String>::new());
}
