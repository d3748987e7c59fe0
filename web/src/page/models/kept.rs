//! Models that the browser keeps.

use leptos::prelude::*;

use super::Chooser;
use crate::monitor::format;
use crate::protocol::{ModelRef, StoredModel, ToEngine};

/// Them and what they take.
#[component]
pub(super) fn Kept(chooser: Chooser) -> impl IntoView {
    let tab = chooser.tab();
    let usage = move || {
        let storage = tab.storage.get();
        let used = format::or_unknown(storage.used.map(|used| used as f64), format::bytes);
        let quota = format::or_unknown(storage.quota.map(|quota| quota as f64), format::bytes);
        format!("{used} used of {quota} that the browser allows")
    };
    // What is told again is not drawn again: somebody may be about to delete.
    let models = Memo::new(move |_| tab.storage.with(|storage| storage.models.clone()));
    let list = move || {
        let models = models.get();
        if models.is_empty() {
            return view! { <p class="note">"None yet. What is downloaded is kept here for the next time."</p> }.into_any();
        }
        let items = models.into_iter().map(|model| view! { <Item chooser model/> });
        view! { <ul class="kept">{items.collect_view()}</ul> }.into_any()
    };
    view! {
        <section class="card">
            <h2>"Kept in this browser"</h2>
            <p class="note" data-testid="stored-usage">{usage}</p>
            {list}
        </section>
    }
}

#[component]
fn Item(chooser: Chooser, model: StoredModel) -> impl IntoView {
    let tab = chooser.tab();
    let sure = RwSignal::new(false);
    let name = StoredValue::new(model.name.clone());
    let complete = model.bytes >= model.total;
    let size = if complete {
        format::bytes(model.bytes as f64)
    } else {
        format!("{} of {}", format::bytes(model.bytes as f64), format::bytes(model.total as f64))
    };
    let choose = move |_| chooser.choose(ModelRef::Stored { name: name.get_value() }, Vec::new());
    let delete = move |_| {
        sure.set(false);
        untrack(|| chooser.forget(&name.get_value()));
        tab.send(&ToEngine::Delete { name: name.get_value() });
    };
    let loaded =
        move || tab.loaded.with(|loaded| loaded.as_ref().is_some_and(|model| model.name == name.get_value()));
    let checking = RwSignal::new(false);
    let verify = move |_| {
        checking.set(true);
        tab.verified.set(None);
        tab.send(&ToEngine::Verify { name: name.get_value() });
    };
    let verified = move || match tab.verified.get() {
        Some((of, result)) if of == name.get_value() => Some(match result {
            Ok(()) => "Every byte is as it was announced.".to_owned(),
            Err(error) => error,
        }),
        None if checking.get() => Some("Comparing with the hashes of the download".to_owned()),
        _ => None,
    };
    view! {
        <li class="kept-item" data-testid=format!("stored-{}", model.name)>
            <div class="kept-head">
                <span class="offer-name">{model.name.clone()}</span>
                <span class="offer-size">{size}{(!complete).then_some(" · not complete")}</span>
            </div>
            <p class="note kept-url" dir="ltr">{model.url}</p>
            <div class="row">
                <button type="button" on:click=choose data-testid="stored-use">
                    {if complete { "Use" } else { "Go on" }}
                </button>
                <button type="button" on:click=verify data-testid="stored-verify" disabled=!complete>"Verify"</button>
                {move || if sure.get() {
                    view! {
                        <button type="button" class="danger" on:click=delete data-testid="stored-delete-sure">
                            {move || if loaded() { "Unload and delete" } else { "Really delete" }}
                        </button>
                        <button type="button" on:click=move |_| sure.set(false)>"Keep"</button>
                    }.into_any()
                } else {
                    view! {
                        <button type="button" on:click=move |_| sure.set(true) data-testid="stored-delete">"Delete"</button>
                    }.into_any()
                }}
            </div>
            <p class="note" role="status" data-testid="stored-verified">{verified}</p>
        </li>
    }
}
