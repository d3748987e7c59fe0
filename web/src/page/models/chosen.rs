//! The chosen model: what it needs, how its loading goes, and what went wrong.

use leptos::prelude::*;

use super::Chooser;
use super::catalog::smaller;
use super::sources::offer;
use crate::monitor::format;
use crate::monitor::rate::Meter;
use crate::page::Place;
use crate::page::tab::Progress;
use crate::protocol::{Compute, Failure, FailureKind, ModelInfo, ModelRef, Stage, ToEngine};

/// Step of the context's slider.
const STEP: usize = 256;

/// The panel.
#[component]
pub(super) fn Chosen(chooser: Chooser) -> impl IntoView {
    let tab = chooser.tab();
    let name = move || chooser.model.get().map(|model| title(&model));
    let info = Memo::new(move |_| chooser.info());
    let known = move || info.get().and_then(Result::ok);
    let told = move || match (chooser.model.get(), info.get()) {
        (None, _) => Some(view! { <p class="note">"Choose a model to see what it needs."</p> }.into_any()),
        (Some(_), None) => Some(view! { <p class="note" role="status">"Reading its headers"</p> }.into_any()),
        (Some(_), Some(Err(error))) => Some(
            view! { <p class="trouble" role="alert" data-testid="model-unreadable">{error}</p> }.into_any(),
        ),
        (Some(_), Some(Ok(_))) => None,
    };
    let load = move || {
        let info = known().filter(|_| tab.progress.get().is_none())?;
        let fits = info.obstacle.is_none();
        let text = if info.download_bytes > 0 { "Download and load" } else { "Load" };
        Some(view! {
            <button type="button" class="primary" data-testid="model-load" disabled=!fits
                on:click=move |_| chooser.load()>{text}</button>
        })
    };
    view! {
        <div class="stack" aria-live="polite">
            <Ready chooser/>
            <section class="card">
                <h2>{move || name().unwrap_or_else(|| "No model chosen".to_owned())}</h2>
                {told}
                {move || tab.failure.get().map(|failure| view! { <Trouble chooser failure/> })}
                {move || known().map(|info| view! { <Needs chooser info/> })}
                {move || known().map(|_| view! { <Computes chooser/> })}
                {load}
                <Loading chooser/>
            </section>
        </div>
    }
}

/// What is to compute the model.
#[component]
fn Computes(chooser: Chooser) -> impl IntoView {
    let choose = move |event| {
        chooser.compute.set(match event_target_value(&event).as_str() {
            "gpu" => Compute::Gpu,
            "cpu" => Compute::Cpu,
            _ => Compute::Auto,
        });
    };
    let chosen = move |compute| move || chooser.compute.get() == compute;
    view! {
        <label class="field">
            "Computed by"
            <select data-testid="model-compute" on:change=choose>
                <option value="auto" selected=chosen(Compute::Auto)>"a real GPU, else the CPU"</option>
                <option value="gpu" selected=chosen(Compute::Gpu)>"WebGPU, be it software"</option>
                <option value="cpu" selected=chosen(Compute::Cpu)>"the CPU"</option>
            </select>
        </label>
    }
}

fn title(model: &ModelRef) -> String {
    match model {
        ModelRef::Catalog { name } | ModelRef::Stored { name } => name.clone(),
        ModelRef::Url { url } => {
            let path = url.split(['#', '?']).next().unwrap_or(url).trim_end_matches('/');
            path.rsplit('/').next().unwrap_or(path).to_owned()
        }
        ModelRef::Files { names } => match names.as_slice() {
            [name] => name.clone(),
            names => format!("{} files", names.len()),
        },
    }
}

/// The model that is on the GPU.
#[component]
fn Ready(chooser: Chooser) -> impl IntoView {
    let (tab, app) = (chooser.tab(), chooser.app);
    let ready = move |info: ModelInfo| {
        let device = info.device.clone().unwrap_or_else(|| "this GPU".to_owned());
        view! {
            <section class="card ready" data-testid="model-loaded">
                <h2>{info.name}</h2>
                <p class="note">{format!(
                    "Loaded on {device}, for {} tokens. {} on the GPU.", format::count(info.context as u64),
                    format::bytes((info.weight_bytes + info.kv_bytes) as f64),
                )}</p>
                {(!info.chats).then_some(view! {
                    <p class="note">"It has no chat template: it continues text, and its answers will not be those of an assistant."</p>
                })}
                <div class="row">
                    <a class="button primary" href="#/" data-testid="model-chat"
                        on:click=move |_| app.place.set(Place::Tab)>"Chat with it"</a>
                    <a class="button" href="#/bench">"Measure it"</a>
                    <button type="button" data-testid="model-unload" on:click=move |_| tab.send(&ToEngine::Unload)>
                        "Free the GPU"
                    </button>
                </div>
            </section>
        }
    };
    let lost = move || {
        tab.lost.get().map(|message| view! {
            <p class="trouble" role="alert">{format!("The GPU failed: {message}. It is being opened anew; conversations are kept.")}</p>
        })
    };
    view! {
        {lost}
        {move || tab.loaded.get().map(ready)}
    }
}

/// What a model is and needs.
#[component]
fn Needs(chooser: Chooser, info: ModelInfo) -> impl IntoView {
    let tab = chooser.tab();
    let binding = move || {
        let limits = tab.capabilities.get()?.adapter?.limits;
        limits.into_iter().find(|(name, _)| name == "max binding bytes").map(|(_, bytes)| bytes as f64)
    };
    let free = move || {
        let storage = tab.storage.get();
        Some(storage.quota?.saturating_sub(storage.used?) as f64)
    };
    let bytes = |value: u64| format::bytes(value as f64);
    let download =
        if info.download_bytes == 0 { "nothing, it is here".to_owned() } else { bytes(info.download_bytes) };
    let verdict = match info.obstacle.clone() {
        Some(obstacle) => view! { <p class="trouble" role="alert" data-testid="model-obstacle">{obstacle}</p> }.into_any(),
        // Not once it was tried in vain.
        None => (move || tab.failure.with(Option::is_none).then(|| view! {
            <p class="fine">"It fits, as far as a browser tells: browsers do not say how much memory a GPU has."</p>
        }))
        .into_any(),
    };
    let shown = RwSignal::new(info.context);
    let (least, most) = (STEP.min(info.max_context), info.max_context.max(1));
    let value = |event: &leptos::ev::Event| event_target_value(event).parse::<usize>().ok();
    view! {
        <div data-testid="model-info">
            <p class="note">{format!("{} · {} · {} parameters", info.name, info.architecture, short(info.parameters))}</p>
            <dl class="needs">
                <div><dt>"To download"</dt><dd data-testid="model-download" data-value=info.download_bytes>{download}</dd></div>
                <div><dt>"Weights on the GPU"</dt><dd data-testid="model-weights" data-value=info.weight_bytes>{bytes(info.weight_bytes)}</dd></div>
                <div><dt>"KV cache for the context"</dt><dd data-testid="model-kv" data-value=info.kv_bytes>{bytes(info.kv_bytes)}</dd></div>
                <div class="sum"><dt>"On the GPU together"</dt><dd>{bytes(info.weight_bytes + info.kv_bytes)}</dd></div>
                <div><dt>"Largest buffer of this GPU"</dt><dd>{move || format::or_unknown(binding(), format::bytes)}</dd></div>
                <div><dt>"Room in the browser's storage"</dt><dd>{move || format::or_unknown(free(), format::bytes)}</dd></div>
            </dl>
            <label class="context">
                <span>"Context: "<output>{move || format::count(shown.get() as u64)}</output>" tokens of prompt and answer together"</span>
                <input type="range" min=least max=most step=STEP.min(most) prop:value=info.context.to_string()
                    data-testid="model-context"
                    on:input=move |event| { value(&event).into_iter().for_each(|context| shown.set(context)); }
                    on:change=move |event| { value(&event).into_iter().for_each(|context| chooser.set_context(context)); }/>
            </label>
            {verdict}
        </div>
    }
}

/// `135 M`, `1.2 B`.
fn short(parameters: u64) -> String {
    let text = format::bytes(parameters as f64);
    let text = text.trim_end_matches('B').trim_end();
    text.replace('G', "B").replace('k', "K")
}

/// How loading goes.
#[component]
fn Loading(chooser: Chooser) -> impl IntoView {
    let tab = chooser.tab();
    let meter = RwSignal::new((Stage::Download, Meter::default()));
    Effect::new(move |_| {
        if let Some(Progress { stage, done, .. }) = tab.progress.get() {
            meter.update(|(of, meter)| {
                if *of != stage {
                    (*of, *meter) = (stage, Meter::default());
                }
                meter.push(js_sys::Date::now() as u64, done);
            });
        }
    });
    let bar = move |now: Progress| {
        let stage = match now.stage {
            Stage::Download => "Downloading; kernels compile meanwhile",
            Stage::Check => "Checking what is there already",
            Stage::Upload => "Putting the weights on the GPU",
        };
        let percent = if now.total > 0 { now.done as f64 / now.total as f64 * 100.0 } else { 0.0 };
        let (rate, left) = meter.with(|(_, meter)| (meter.rate(), meter.left_s(now.total)));
        let mut told = format!("{} of {}", format::bytes(now.done as f64), format::bytes(now.total as f64));
        told.extend(rate.map(|rate| format!(" · {}/s", format::bytes(rate))));
        told.extend(left.map(|left| format!(" · {} left", format::duration(left))));
        let told = if now.total > 0 { told } else { "Starting".to_owned() };
        view! {
            <div class="load-state" data-testid="model-progress" data-value=now.done data-total=now.total>
                <p>{stage}</p>
                <progress max="100" value=format!("{percent:.2}") aria-label=stage></progress>
                <p class="note">{told}</p>
                <button type="button" data-testid="model-cancel" on:click=move |_| tab.send(&ToEngine::CancelLoad)>
                    "Stop"
                </button>
            </div>
        }
    };
    move || tab.progress.get().map(bar)
}

/// What went wrong, and what to do.
#[component]
fn Trouble(chooser: Chooser, failure: Failure) -> impl IntoView {
    let again = move |text: &'static str| {
        view! {
            <button type="button" data-testid="model-again" on:click=move |_| chooser.load()>{text}</button>
        }
        .into_any()
    };
    let kind = match failure.kind {
        FailureKind::Cancelled => "cancelled",
        FailureKind::Network => "network",
        FailureKind::Corrupt => "corrupt",
        FailureKind::Memory => "memory",
        FailureKind::Device => "device",
        FailureKind::Other => "other",
    };
    let (advice, remedy) = match failure.kind {
        FailureKind::Cancelled => ("You stopped it. What is downloaded stays.", again("Go on")),
        FailureKind::Network => ("The connection broke. What is downloaded stays.", again("Go on")),
        FailureKind::Corrupt => (
            "What came is not what was announced, and has been deleted. Download it again, or from elsewhere.",
            again("Download again"),
        ),
        FailureKind::Memory => {
            ("It does not fit this GPU. Choose a smaller model, or a shorter context:", smaller_ones(chooser))
        }
        FailureKind::Device => (
            "The GPU failed. Close other tabs that use it, then try again, or choose a smaller model:",
            view! { {again("Try again")}{smaller_ones(chooser)} }.into_any(),
        ),
        FailureKind::Other => ("It cannot be loaded.", again("Try again")),
    };
    view! {
        <div class="trouble" role="alert" data-testid="model-failure" data-value=kind>
            <p>{advice}</p>
            <p class="note">{failure.message}</p>
            <div class="row">{remedy}</div>
        </div>
    }
}

/// Models of the catalogue that need less than the chosen one.
fn smaller_ones(chooser: Chooser) -> AnyView {
    let size = chooser.info().and_then(Result::ok).map_or(u64::MAX, |info| info.weight_bytes);
    let models = smaller(&chooser.entries(), size);
    if models.is_empty() {
        return view! { <p class="note">"The catalogue has none that is smaller."</p> }.into_any();
    }
    let items = models.into_iter().map(|entry| view! { <li>{offer(chooser, &entry)}</li> });
    view! { <ul class="offers" data-testid="model-smaller">{items.collect_view()}</ul> }.into_any()
}

#[cfg(test)]
mod tests {
    use super::{short, title};
    use crate::protocol::ModelRef;

    #[test]
    fn models_have_short_names() {
        let url = |url: &str| title(&ModelRef::Url { url: url.to_owned() });
        assert_eq!(url("https://a/b/c.gguf#sha256=00"), "c.gguf");
        assert_eq!(url("https://a/folder/"), "folder");
        assert_eq!(title(&ModelRef::Files { names: vec!["a".into(), "b".into()] }), "2 files");
        assert_eq!([135_000_000, 1_236_000_000, 900].map(short), ["135 M", "1.2 B", "900"]);
    }
}
