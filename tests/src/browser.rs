//! A real browser, headless, driven over WebDriver.

use std::env;
use std::fmt::Debug;
use std::fs;
use std::future::Future;
use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::LazyLock;
use std::time::{Duration, Instant};

use axum::http::Method;
use base64::Engine as _;
use fantoccini::wd::{Capabilities, WebDriverCompatibleCommand};
use fantoccini::{Client, ClientBuilder};
use hyper_util::client::legacy::connect::HttpConnector;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::runtime::Runtime;

/// How long anything may take on a machine that does much else.
const PATIENCE: Duration = Duration::from_secs(300);

/// Chromium with WebGPU, and nothing that it would do of its own accord.
const FLAGS: [&str; 11] = [
    "--headless=new",
    "--no-sandbox",
    "--enable-unsafe-webgpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
    "--force-device-scale-factor=1",
    "--window-size=1280,800",
];

pub(crate) static RUNTIME: LazyLock<Runtime> = LazyLock::new(|| Runtime::new().expect("threads"));

/// Waits for a future, so that tests read from top to bottom.
pub(crate) fn wait<T>(future: impl Future<Output = T>) -> T {
    RUNTIME.block_on(future)
}

/// What WebGPU runs on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Adapter {
    /// Chromium's own adapter on the CPU, the same on every machine.
    Software,
    /// What the machine has.
    Machine,
}

impl Adapter {
    fn flags(self) -> &'static [&'static str] {
        match self {
            Self::Software => &["--use-webgpu-adapter=swiftshader"],
            // Without a screen, Chromium on Linux leaves Vulkan alone unless told.
            Self::Machine if cfg!(target_os = "linux") => {
                &["--enable-features=Vulkan", "--use-angle=vulkan", "--disable-vulkan-surface"]
            }
            Self::Machine => &[],
        }
    }
}

/// Starts a driver, and says where it listens if it does.
fn start_driver() -> Option<(Child, String)> {
    let program = env::var("TREAD_CHROMEDRIVER").unwrap_or_else(|_| "chromedriver".into());
    let mut command = Command::new(&program);
    command.arg("--port=0").stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut driver = command.spawn().unwrap_or_else(|error| {
        panic!("cannot start {program} ({error}); `cargo xtask test` installs it, or set TREAD_CHROMEDRIVER")
    });
    let mut lines = BufReader::new(driver.stdout.take().expect("a pipe")).lines().map_while(Result::ok);
    let port = lines
        .find_map(|line| Some(line.split_once("successfully on port ")?.1.trim_end_matches('.').to_owned()));
    // Read on, lest the driver wait for a reader.
    std::thread::spawn(move || lines.for_each(drop));
    let Some(port) = port else {
        let _ = driver.kill();
        let _ = driver.wait();
        return None;
    };
    Some((driver, port))
}

/// A browser with a profile of its own, until it is dropped.
#[derive(Debug)]
pub struct Browser {
    client: Option<Client>,
    driver: Child,
    _profile: TempDir,
}

impl Browser {
    /// Starts one with the software adapter that shows `url`.
    ///
    /// # Panics
    /// When there is no Chromium with its driver.
    pub fn open(url: &str) -> Self {
        Self::open_on(Adapter::Software, url)
    }

    /// Starts one that shows `url`.
    ///
    /// # Panics
    /// As [`Self::open`].
    pub fn open_on(adapter: Adapter, url: &str) -> Self {
        let profile = tempfile::tempdir().expect("a temporary folder");
        // It picks its port before it listens there, and another driver may be quicker.
        let (driver, port) = (0..5).find_map(|_| start_driver()).expect("a driver that listens");
        let server = format!("http://127.0.0.1:{port}");
        let data = format!("--user-data-dir={}", profile.path().display());
        let flags: Vec<_> = FLAGS.iter().chain(adapter.flags()).copied().chain([&*data]).collect();
        let mut options = json!({ "args": flags });
        if let Ok(binary) = env::var("TREAD_CHROMIUM") {
            options["binary"] = binary.into();
        }
        let capabilities = json!({
            "goog:chromeOptions": options,
            "goog:loggingPrefs": { "browser": "ALL", "performance": "ALL" },
            "timeouts": { "script": 2 * PATIENCE.as_millis() as u64, "pageLoad": PATIENCE.as_millis() as u64 },
        });
        let capabilities: Capabilities = serde_json::from_value(capabilities).expect("an object");
        let mut builder = ClientBuilder::new(HttpConnector::new());
        let client = wait(builder.capabilities(capabilities).connect(&server)).expect("the browser starts");
        let browser = Self { client: Some(client), driver, _profile: profile };
        browser.goto(url);
        browser
    }

    fn client(&self) -> &Client {
        self.client.as_ref().expect("there until it is dropped")
    }

    /// Shows another address.
    pub fn goto(&self, url: &str) {
        good("goto", wait(self.client().goto(url)));
    }

    /// Loads the page again.
    pub fn reload(&self) {
        good("reload", wait(self.client().refresh()));
    }

    /// What the body of an async function in the page returns; `args` are its `args`.
    ///
    /// # Panics
    /// When it throws.
    #[track_caller]
    pub fn run(&self, body: &str, args: &Value) -> Value {
        let script = format!(
            "const done = arguments[arguments.length - 1];
             (async (args) => {{ {body} }})(arguments[0])
                 .then((value) => done({{ value: value ?? null }}), (error) => done({{ error: String(error?.stack ?? error) }}));"
        );
        let result = good(body, wait(self.client().execute_async(&script, vec![args.clone()])));
        assert!(result["error"].is_null(), "{body}: {}", result["error"]);
        result["value"].clone()
    }

    /// The value of an expression.
    #[track_caller]
    pub fn value(&self, expression: &str) -> Value {
        self.run(&format!("return {expression};"), &Value::Null)
    }

    /// The value of an expression, as soon as it is true.
    ///
    /// # Panics
    /// When it stays false.
    #[track_caller]
    pub fn until(&self, expression: &str) -> Value {
        let start = Instant::now();
        loop {
            let value = self.value(expression);
            if !matches!(value, Value::Null | Value::Bool(false)) {
                return value;
            }
            if start.elapsed() > PATIENCE {
                let text = self.value("document.body?.innerText");
                panic!("never came true: {expression}\nconsole: {:?}\npage: {text}", self.complaints());
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Clicks the first element that a selector names, once it is there.
    #[track_caller]
    pub fn click(&self, css: &str) {
        let element = good(
            css,
            wait(self.client().wait().at_most(PATIENCE).for_element(fantoccini::Locator::Css(css))),
        );
        good(css, wait(element.click()));
    }

    /// Types into the first element that a selector names, once it is there.
    #[track_caller]
    pub fn keys(&self, css: &str, text: &str) {
        let element = good(
            css,
            wait(self.client().wait().at_most(PATIENCE).for_element(fantoccini::Locator::Css(css))),
        );
        good(css, wait(element.send_keys(text)));
    }

    /// Presses keys wherever the focus is.
    #[track_caller]
    pub fn press(&self, text: &str) {
        let element = good("focus", wait(self.client().active_element()));
        good(text, wait(element.send_keys(text)));
    }

    /// A command of the browser's own protocol.
    #[track_caller]
    pub fn devtools(&self, command: &str, parameters: &Value) -> Value {
        self.vendor("goog/cdp/execute", json!({ "cmd": command, "params": parameters }))
    }

    #[track_caller]
    fn vendor(&self, path: &'static str, body: Value) -> Value {
        good(path, wait(self.client().issue_cmd(Vendor { path, body })))
    }

    /// Gives the page a width and height, and a colour scheme.
    pub fn emulate(&self, (width, height): (u32, u32), dark: bool) {
        let size = json!({ "width": width, "height": height, "deviceScaleFactor": 1, "mobile": false });
        self.devtools("Emulation.setDeviceMetricsOverride", &size);
        let scheme = json!({ "name": "prefers-color-scheme", "value": if dark { "dark" } else { "light" } });
        self.devtools("Emulation.setEmulatedMedia", &json!({ "features": [scheme] }));
    }

    /// Warnings and errors in the console since this was asked last: errors of scripts, files that are missing, what the
    /// Content-Security-Policy forbade.
    pub fn complaints(&self) -> Vec<String> {
        let log = self.vendor("se/log", json!({ "type": "browser" }));
        let lines = log.as_array().into_iter().flatten();
        let bad = lines.filter(|line| matches!(line["level"].as_str(), Some("SEVERE" | "WARNING")));
        bad.filter_map(|line| line["message"].as_str().map(str::to_owned)).collect()
    }

    /// Addresses that documents of the web asked for since this was asked last. The browser's own first page is none.
    pub fn requests(&self) -> Vec<String> {
        let log = self.vendor("se/log", json!({ "type": "performance" }));
        let lines = log.as_array().into_iter().flatten().filter_map(|line| line["message"].as_str());
        let messages = lines.filter_map(|line| serde_json::from_str::<Value>(line).ok());
        let sent = messages.filter(|event| event["message"]["method"] == "Network.requestWillBeSent");
        let asked = sent.map(|mut event| event["message"]["params"].take());
        let asked =
            asked.filter(|event| event["documentURL"].as_str().is_some_and(|url| url.starts_with("http")));
        asked.filter_map(|event| event["request"]["url"].as_str().map(str::to_owned)).collect()
    }

    /// Keeps a picture where TREAD_SCREENSHOTS says, if it does.
    ///
    /// # Panics
    /// When it cannot be written.
    pub fn picture(&self, name: &str) {
        let Some(folder) = env::var_os("TREAD_SCREENSHOTS") else { return };
        let picture = self.devtools("Page.captureScreenshot", &json!({ "format": "png" }));
        let png = base64::prelude::BASE64_STANDARD.decode(picture["data"].as_str().expect("base64"));
        fs::create_dir_all(&folder).expect("a folder for pictures");
        fs::write(Path::new(&folder).join(name).with_extension("png"), png.expect("base64")).expect("a file");
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        if let Some(client) = self.client.take() {
            // The browser ends with its session.
            let _ = wait(client.close());
        }
        let _ = self.driver.kill();
        let _ = self.driver.wait();
    }
}

#[track_caller]
fn good<T>(what: &str, result: Result<T, impl Debug>) -> T {
    result.unwrap_or_else(|error| panic!("{what}: {error:?}"))
}

/// A command that WebDriver's standard does not have.
#[derive(Debug)]
struct Vendor {
    path: &'static str,
    body: Value,
}

impl WebDriverCompatibleCommand for Vendor {
    fn endpoint(&self, base: &url::Url, session: Option<&str>) -> Result<url::Url, url::ParseError> {
        base.join(&format!("session/{}/{}", session.unwrap_or_default(), self.path))
    }

    fn method_and_body(&self, _: &url::Url) -> (Method, Option<String>) {
        (Method::POST, Some(self.body.to_string()))
    }
}
