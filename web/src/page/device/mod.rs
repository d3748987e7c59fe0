//! The view `device`: what this browser and its GPU can do, and what that means here.

mod meaning;

use leptos::prelude::*;

use crate::monitor::format;
use crate::page::App;
use crate::page::clipboard::CopyButton;
use crate::protocol::{Adapter, Capabilities, SelfTest, ToEngine};

/// The view.
#[component]
pub fn Device() -> impl IntoView {
    let app = expect_context::<App>();
    let tab = app.tab;
    if tab.capabilities.with_untracked(Option::is_none) {
        tab.send(&ToEngine::Probe);
    }
    let body = move || match tab.capabilities.get() {
        Some(capabilities) => view! { <Report capabilities/> }.into_any(),
        None => view! { <p class="note" role="status">"Asking the GPU and computing a layer on it"</p> }
            .into_any(),
    };
    view! {
        <div class="view device">
            <header class="view-head">
                <div>
                    <h1>"This browser and its GPU"</h1>
                    <p class="lead">"Whether a model can run here, and how well."</p>
                </div>
                <button type="button" data-testid="device-again" on:click=move |_| {
                    tab.capabilities.set(None);
                    tab.send(&ToEngine::Probe);
                }>"Test again"</button>
            </header>
            {body}
            <Try app/>
        </div>
    }
}

#[component]
fn Report(capabilities: Capabilities) -> impl IntoView {
    let text =
        meaning::report(&capabilities, &window().navigator().user_agent().unwrap_or_default(), secure());
    let Capabilities { adapter, reason, self_test, storage } = capabilities;
    view! {
        <div class="facts">
            {adapter_fact(adapter.as_ref(), reason)}
            {test_fact(self_test)}
            {fact(storage, "Storage", if storage {
                "Models can be kept in this browser."
            } else {
                "This browser keeps no models: each is downloaded again. Private windows often allow no storage."
            }.to_owned(), None)}
            {fact(secure(), "Connection", if secure() {
                "The page came securely; browsers give the GPU to it."
            } else {
                "The page did not come by https or from this machine: browsers hide the GPU from it."
            }.to_owned(), None)}
        </div>
        {adapter.map(|adapter| view! { <Limits adapter/> })}
        <Copy text/>
    }
}

/// One fact, good or bad.
fn fact(good: bool, title: &'static str, text: String, testid: Option<&'static str>) -> impl IntoView {
    mark(if good { "good" } else { "bad" }, title, text, testid)
}

/// One fact, `good`, `warn` or `bad`.
fn mark(
    kind: &'static str,
    title: &'static str,
    text: String,
    testid: Option<&'static str>,
) -> impl IntoView {
    view! {
        <section class=format!("card fact fact-{kind}") data-testid=testid data-value=kind>
            <h2>{title}</h2>
            <p>{text}</p>
        </section>
    }
}

fn adapter_fact(adapter: Option<&Adapter>, reason: Option<String>) -> impl IntoView + use<> {
    let text = match adapter {
        Some(adapter) if adapter.software => {
            format!(
                "{}. It is computed by the processor: right, but slow. A browser uses it when it finds no GPU it trusts.",
                adapter.name
            )
        }
        Some(adapter) => format!("{}. Models run on it.", adapter.name),
        None => format!(
            "No WebGPU: {}. It is in Chrome and Edge 113 and later, Safari 26 and later, and Firefox 141 and later on Windows (145 on macOS).",
            reason.unwrap_or_else(|| "the browser gives no reason".to_owned()).trim_end_matches('.')
        ),
    };
    let kind = match adapter {
        Some(adapter) if adapter.software => "warn",
        Some(_) => "good",
        None => "bad",
    };
    mark(kind, "GPU", text, Some("device-adapter"))
}

fn test_fact(test: Option<SelfTest>) -> impl IntoView {
    let text = match &test {
        Some(SelfTest { passed: true, error, .. }) => {
            format!(
                "This GPU computes correctly: a layer differs from the stored result by {error:.1e} of its largest value."
            )
        }
        Some(test) => {
            let why = test
                .message
                .clone()
                .unwrap_or_else(|| format!("it differs by {:.1e} of its largest value", test.error));
            format!(
                "This GPU does not compute correctly ({why}). Models are not run on it; use the server, or another browser or driver."
            )
        }
        None => "Not made, as there is no GPU.".to_owned(),
    };
    fact(test.is_some_and(|test| test.passed), "Self-test", text, Some("device-selftest"))
}

#[component]
fn Limits(adapter: Adapter) -> impl IntoView {
    let limits = adapter.limits.iter().map(|(name, value)| {
        let shown = meaning::value(name, *value);
        view! { <tr><th scope="row">{name.clone()}</th><td>{shown}</td><td class="prose">{meaning::limit(name)}</td></tr> }
    });
    let features = adapter.features.iter().map(|(name, there)| {
        let shown = if *there { "yes" } else { "no" };
        view! { <tr><th scope="row">{name.clone()}</th><td>{shown}</td><td class="prose">{meaning::feature(name, *there)}</td></tr> }
    });
    view! {
        <section class="card">
            <h2>"Limits and features"</h2>
            <div class="scroll" tabindex="0" role="region" aria-label="Limits and features">
                <table class="figures meanings" data-testid="device-limits">
                    <thead><tr>
                        <th scope="col">"What"</th><th scope="col">"Here"</th><th scope="col" class="prose">"What it means"</th>
                    </tr></thead>
                    <tbody>{limits.collect_view()}{features.collect_view()}</tbody>
                </table>
            </div>
        </section>
    }
}

/// The report as text.
#[component]
fn Copy(text: String) -> impl IntoView {
    view! {
        <section class="card">
            <h2>"For a bug report"</h2>
            <div class="row"><CopyButton label="Copy the report" text=text.clone() testid="device-copy"/></div>
            <details><summary>"The report"</summary><pre tabindex="0" data-testid="device-report">{text}</pre></details>
        </section>
    }
}

#[component]
fn Try(app: App) -> impl IntoView {
    let tab = app.tab;
    let told = move || match (tab.lost.get(), tab.loaded.get()) {
        (Some(message), _) => format!("Lost: {message}. It is being opened anew."),
        (None, Some(model)) => format!("{} is loaded and can be asked.", model.name),
        (None, None) => "No model is loaded; there is nothing to lose.".to_owned(),
    };
    view! {
        <section class="card">
            <h2>"Try it"</h2>
            <p class="note">
                "A driver can take the GPU away at any time. This does so on purpose: the page should say it, open the GPU anew, and go on where it was."
            </p>
            <div class="row">
                <button type="button" data-testid="device-lose" on:click=move |_| tab.send(&ToEngine::LoseDevice)>
                    "Lose the device on purpose"
                </button>
            </div>
            <p class="note" role="status" data-testid="device-lost">{told}</p>
        </section>
    }
}

fn secure() -> bool {
    window().is_secure_context()
}

/// Bytes of a limit, for [`meaning::value`].
fn bytes(value: u64) -> String {
    format::bytes(value as f64)
}
