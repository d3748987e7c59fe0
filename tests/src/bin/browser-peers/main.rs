//! One turn of one engine in a browser, for `cargo xtask peers --browser`: prints what it measured as a line of JSON.
//!
//! usage: browser-peers ENGINE ADAPTER DIST PEER MODEL `PROMPT_TOKENS` `NEW_TOKENS`, where ENGINE is tread-gpu, tread-cpu,
//! llama-webgpu or llama-cpu; ADAPTER is software or machine; DIST the folder of our page and PEER that of llama.cpp's.

use std::env;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tread_tests::browser::{Adapter, Browser};
use tread_tests::files::Files;

/// Bodies of async functions of `args`, which return what was measured.
const TREAD: &str = include_str!("tread.js");
const LLAMA: &str = include_str!("llama.js");

/// How long a turn may take.
const PATIENCE: Duration = Duration::from_mins(20);

fn main() {
    let args: Vec<String> = env::args().skip(1).collect();
    let [engine, adapter, dist, peer, model, prompt_tokens, new_tokens] = &*args else {
        panic!("seven arguments, not {args:?}");
    };
    let adapter = match &**adapter {
        "software" => Adapter::Software,
        "machine" => Adapter::Machine,
        other => panic!("no adapter is called {other}"),
    };
    let (script, choice) = match &**engine {
        "tread-gpu" => (TREAD, json!({ "compute": "gpu" })),
        "tread-cpu" => (TREAD, json!({ "compute": "cpu" })),
        "llama-webgpu" => (LLAMA, json!({ "gpu_layers": 99 })),
        "llama-cpu" => (LLAMA, json!({ "gpu_layers": 0 })),
        other => panic!("no engine is called {other}"),
    };
    let [dist, peer, model] = [dist, peer, model].map(PathBuf::from);
    let name = model.file_name().expect("a file").to_str().expect("UTF-8");
    let folder = model.parent().expect("a folder");

    let files = Files::start(&[("/model", folder), ("/peer", &peer), ("", &dist)]);
    // Only then may a page share memory between threads, which llama.cpp's CPU build does.
    files.isolate();
    let [prompt_tokens, new_tokens] =
        [prompt_tokens, new_tokens].map(|n| n.parse::<u64>().expect("a number"));
    let mut args = json!({
        "model": files.url(&format!("/model/{name}")),
        "context": (prompt_tokens + new_tokens).max(512),
        "prompt_tokens": prompt_tokens,
        "new_tokens": new_tokens,
    });
    args.as_object_mut().expect("one").extend(choice.as_object().expect("one").clone());
    // A document that starts nothing of its own.
    let browser = Browser::open_on(adapter, &files.url("/icon.svg"));
    println!("{}", outcome(&browser, script, &args));
}

/// What a script returns, however long the browser's driver would wait for it.
fn outcome(browser: &Browser, script: &str, args: &Value) -> Value {
    let start = format!(
        "globalThis.outcome = null;
         (async () => {{ {script} }})().then(
             (value) => {{ outcome = {{ value }}; }},
             (error) => {{ outcome = {{ error: String(error?.stack ?? error) }}; }});"
    );
    browser.run(&start, args);
    let begin = Instant::now();
    while begin.elapsed() < PATIENCE {
        let mut outcome = browser.value("outcome");
        if outcome.is_object() {
            assert!(outcome["error"].is_null(), "{}\nconsole: {:?}", outcome["error"], browser.complaints());
            return outcome["value"].take();
        }
        // Asking takes some of the processor too.
        std::thread::sleep(Duration::from_secs(1));
    }
    panic!("nothing was measured in {PATIENCE:?}; console: {:?}", browser.complaints());
}
