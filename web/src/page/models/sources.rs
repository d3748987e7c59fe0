//! Where a model can come from: the catalogue, an address, files of this machine.

use leptos::ev::{DragEvent, Event, SubmitEvent};
use leptos::html::Input;
use leptos::prelude::*;
use web_sys::{File, FileList, HtmlInputElement};

use super::Chooser;
use super::catalog::Entry;
use crate::monitor::format;
use crate::protocol::ModelRef;

/// All of them.
#[component]
pub(super) fn Sources(chooser: Chooser) -> impl IntoView {
    view! {
        <section class="card">
            <h2>"Choose a model"</h2>
            <p class="note">"What it needs is shown before anything large is downloaded."</p>
            <Offered chooser/>
            <Address chooser/>
            <Files chooser/>
        </section>
    }
}

#[component]
fn Offered(chooser: Chooser) -> impl IntoView {
    let list = move || match chooser.catalog.get() {
        None => view! { <p class="note">"Reading the catalogue"</p> }.into_any(),
        Some(Err(error)) => view! { <p class="note">{format!("No catalogue: {error}.")}</p> }.into_any(),
        Some(Ok(entries)) => {
            let items = entries.into_iter().map(|entry| view! { <li>{offer(chooser, entry)}</li> });
            view! { <ul class="offers">{items.collect_view()}</ul> }.into_any()
        }
    };
    view! { {list} }
}

/// A button that chooses a model of the catalogue.
pub(super) fn offer(chooser: Chooser, entry: Entry) -> impl IntoView {
    let name = entry.name.clone();
    let model = ModelRef::Catalog { name: entry.name.clone() };
    let pressed = {
        let model = model.clone();
        move || (chooser.model.get().as_ref() == Some(&model)).to_string()
    };
    let licence = (!entry.licence.is_empty()).then(|| format!(" · {}", entry.licence));
    view! {
        <button type="button" class="offer" data-testid=format!("model-{name}") aria-pressed=pressed
            on:click=move |_| chooser.choose(model.clone(), Vec::new())>
            <span class="offer-name">{name.clone()}</span>
            <span class="offer-size">{format::bytes(entry.bytes() as f64)}</span>
            <span class="offer-about">{entry.about.clone()}{licence}</span>
        </button>
    }
}

#[component]
fn Address(chooser: Chooser) -> impl IntoView {
    let input = NodeRef::<Input>::new();
    let submit = move |event: SubmitEvent| {
        event.prevent_default();
        let url = input.get_untracked().map(|input| input.value().trim().to_owned()).unwrap_or_default();
        if !url.is_empty() {
            chooser.choose(ModelRef::Url { url }, Vec::new());
        }
    };
    view! {
        <form class="address" on:submit=submit>
            <label for="model-address">"From an address"</label>
            <div class="row">
                <input id="model-address" type="text" inputmode="url" node_ref=input data-testid="model-url"
                    autocomplete="off" spellcheck="false" placeholder="https://… .gguf"
                    aria-describedby="model-address-note"/>
                <button type="submit" data-testid="model-inspect">"Inspect"</button>
            </div>
            <p class="note" id="model-address-note">
                "A GGUF file, or a folder with config.json and safetensors. "
                <code>"#sha256=…"</code>" behind a file's address says what must be found there."
            </p>
        </form>
    }
}

#[component]
fn Files(chooser: Chooser) -> impl IntoView {
    let over = RwSignal::new(false);
    let folder = NodeRef::<Input>::new();
    // Not among the attributes that HTML's standard names.
    Effect::new(move |_| {
        if let Some(input) = folder.get() {
            _ = input.set_attribute("webkitdirectory", "");
        }
    });
    let picked = move |event: Event| {
        let input: HtmlInputElement = event_target(&event);
        take(chooser, input.files());
        // Else choosing the same file again would say nothing.
        input.set_value("");
    };
    let dropped = move |event: DragEvent| {
        event.prevent_default();
        over.set(false);
        take(chooser, event.data_transfer().and_then(|data| data.files()));
    };
    view! {
        <div class="drop" class:drop-over=over on:dragover=move |event| { event.prevent_default(); over.set(true); }
            on:dragleave=move |_| over.set(false) on:drop=dropped>
            <p>"From this machine: drop files here, or choose"</p>
            <div class="row">
                <label class="button">
                    "Files"
                    <input class="picker" type="file" multiple=true accept=".gguf,.safetensors,.json,.jinja,.model"
                        data-testid="model-file" on:change=picked/>
                </label>
                <label class="button">
                    "A folder"
                    <input class="picker" type="file" multiple=true node_ref=folder on:change=picked/>
                </label>
            </div>
            <p class="note">"They are read where they are; nothing is copied."</p>
        </div>
    }
}

fn take(chooser: Chooser, list: Option<FileList>) {
    let files: Vec<File> =
        list.map(|list| (0..list.length()).filter_map(|at| list.get(at)).collect()).unwrap_or_default();
    if !files.is_empty() {
        let names = files.iter().map(File::name).collect();
        chooser.choose(ModelRef::Files { names }, files);
    }
}
