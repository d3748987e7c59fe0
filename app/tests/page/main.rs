//! The page in a real browser, with WebGPU on its software adapter. `cargo xtask test` installs the browser and builds the
//! page.

mod chat;
mod engine;
mod kept;
mod looks;
mod memory;
mod monitor;
mod tab;

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::rc::Rc;

use serde_json::{Value, json};
use tread_tests::browser::Browser;
use tread_tests::server::Server;

/// The weights of nano.
const WEIGHTS: &str = "/models/nano/model-00001-of-00001.safetensors";

/// `tread serve`, whose page it is.
fn server() -> Server {
    Server::start(env!("CARGO_BIN_EXE_tread"), &["nano", "--backend", "cpu"])
}

fn dist() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../web/dist")
}

/// Shows a view of the page.
#[track_caller]
fn show(browser: &Browser, view: &str) {
    browser.run("location.hash = '#/' + args;", &view.into());
    browser.until(&format!("document.querySelector('nav a[aria-current=page]')?.hash === '#/{view}'"));
    browser.until("document.querySelector('main').childElementCount > 0");
}

/// Imports conversations and shows the newest.
#[track_caller]
fn import(browser: &Browser) {
    show(browser, "");
    let talks = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/page/talks.json");
    browser.until("document.querySelector('[data-testid=import]')");
    browser.keys("[data-testid=import]", talks.to_str().expect("UTF-8"));
    browser.until("document.querySelectorAll('[data-testid=conversation]').length === 3");
    browser.run("document.querySelector('[data-testid=conversation]').click();", &Value::Null);
    browser.until("document.querySelector('[data-testid=answer] table')");
}

/// Tells the tests' worker how much memory GPUs have from now on (`limit`, bytes) and whether it runs out (`exhaust`), at
/// once or when the GPU was given so much to do (`submits`). Returns what is held now: `bytes` of WebAssembly's memory, `devices`, and `gpu`, the bytes of their buffers.
#[track_caller]
fn gpu(browser: &Browser, order: &Value) -> Value {
    let ask = "
        if (!globalThis.channel) {
            globalThis.channel = new BroadcastChannel('gpu');
            globalThis.workers = new Set();
            channel.addEventListener('message', ({ data }) => workers.add(data.held.id));
        }
        const held = new Promise((resolve) => { channel.onmessage = ({ data }) => resolve(data.held) });
        channel.postMessage(args);
        return await held;";
    let held = browser.run(ask, order);
    assert_eq!(browser.value("workers.size"), 1, "one worker is enough");
    held
}

/// What nano answers natively.
fn native(prompt: &str, tokens: usize) -> String {
    native_of("nano", prompt, tokens)
}

/// What a model answers natively.
fn native_of(model: &str, prompt: &str, tokens: usize) -> String {
    let mut run = Command::new(env!("CARGO_BIN_EXE_tread"));
    run.args(["run", model, prompt, "--greedy", "--backend", "cpu", "--max-tokens", &tokens.to_string()]);
    let output = run.output().expect("tread starts");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("UTF-8").trim_end().to_owned()
}

/// The worker of a page, spoken to as the page does.
struct Worker {
    browser: Rc<Browser>,
    /// The variable that holds it; what it said is its `heard`.
    name: &'static str,
}

impl Worker {
    /// Starts one of an origin that serves the page's files.
    fn start(origin: &str) -> Self {
        // A document that has no engine of its own.
        let browser = Rc::new(Browser::open(&format!("{origin}/icon.svg")));
        let worker = Self::begin(browser, "engine");
        worker.browser.run("globalThis.heard = engine.heard;", &Value::Null);
        worker
    }

    /// Starts one more, as another tab has.
    fn another(&self) -> Self {
        Self::begin(Rc::clone(&self.browser), "another")
    }

    fn begin(browser: Rc<Browser>, name: &'static str) -> Self {
        let start = "
            const worker = new Worker('worker.js', { type: 'module' });
            worker.heard = [];
            worker.onmessage = (event) => worker.heard.push(JSON.parse(event.data));
            worker.onerror = (event) => worker.heard.push({ type: 'crashed', message: event.message });
            globalThis[args] = worker;";
        browser.run(start, &name.into());
        Self { browser, name }
    }

    fn tell(&self, message: &Value) {
        let Self { name, .. } = self;
        self.browser.run(&format!("{name}.postMessage({{ json: JSON.stringify(args) }});"), message);
    }

    /// The first message of this type since the last that was waited for.
    #[track_caller]
    fn hear(&self, kind: &str) -> Value {
        let heard = format!("{}.heard", self.name);
        let found = format!("{heard}.some((message) => ['{kind}', 'crashed'].includes(message.type))");
        self.browser.until(&found);
        let first = format!("{heard}.findIndex((message) => message.type === '{kind}')");
        let message = self.browser.value(&format!("{heard}.splice(0, {first} + 1).at(-1)"));
        assert!(message.is_object(), "the worker crashed: {}", self.browser.value(&heard));
        message
    }

    /// Loads a model and says how that went.
    #[track_caller]
    fn load(&self, model: &Value) -> Value {
        self.tell(&json!({ "type": "load", "model": model, "context": 64 }));
        self.hear("loaded")["result"].take()
    }

    /// Loads nano from the catalogue of the worker's origin, to be computed by `gpu`, `cpu` or what is better (`auto`);
    /// returns the device.
    #[track_caller]
    fn load_nano(&self, compute: &str) -> String {
        let model = json!({ "from": "catalog", "name": "nano" });
        self.tell(&json!({ "type": "load", "model": model, "context": 64, "compute": compute }));
        let loaded = self.hear("loaded")["result"].take();
        let device = loaded["Ok"]["device"].as_str();
        device.unwrap_or_else(|| panic!("{loaded}")).to_owned()
    }

    /// The greedy answer.
    #[track_caller]
    fn ask(&self, id: u64, prompt: &str, tokens: usize) -> String {
        let request = json!({
            "messages": [{ "role": "user", "content": prompt }],
            "sampling": { "temperature": 0, "max_tokens": tokens },
        });
        self.tell(&json!({ "type": "chat", "id": id, "request": request }));
        self.answer(id)
    }

    /// The answer to a request, once it is complete.
    #[track_caller]
    fn answer(&self, id: u64) -> String {
        let Self { name, .. } = self;
        let of =
            format!("{name}.heard.filter((m) => m.type === 'chat' && m.id === {id}).map((m) => m.event)");
        self.browser
            .until(&format!("{of}.some((event) => event.type === 'finished' || event.type === 'failed')"));
        let events = self.browser.value(&of);
        let events = events.as_array().expect("a list");
        assert_eq!(events.last().expect("the end")["type"], "finished", "{events:?}");
        let pieces = events.iter().filter(|event| event["type"] == "content");
        pieces.filter_map(|event| event["text"].as_str()).collect::<String>().trim_end().to_owned()
    }
}
