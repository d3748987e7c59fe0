//! The clipboard.

#![allow(unreachable_pub, reason = "Leptos makes what it generates for a component public")]

use leptos::prelude::*;
use leptos::task::spawn_local;
use wasm_bindgen_futures::JsFuture;

/// Copies a text; says whether the browser did it.
pub(super) async fn write(text: &str) -> bool {
    let navigator = window().navigator();
    // Browsers have no clipboard for pages that did not come over HTTPS.
    let there = js_sys::Reflect::get(&navigator, &"clipboard".into())
        .is_ok_and(|clipboard| !clipboard.is_undefined());
    there && JsFuture::from(navigator.clipboard().write_text(text)).await.is_ok()
}

/// A button that copies a text which stands below it.
#[component]
pub(super) fn CopyButton(
    /// What it is called.
    label: &'static str,
    /// What it copies.
    text: String,
    /// The name that tests know it by.
    testid: &'static str,
) -> impl IntoView {
    let told = RwSignal::new(label);
    let text = StoredValue::new(text);
    let copy = move |_| {
        spawn_local(async move {
            let copied = write(&text.get_value()).await;
            // The view may be gone meanwhile.
            _ = told.try_set(if copied { "Copied" } else { "Not allowed: select it below" });
        });
    };
    view! { <button type="button" data-testid=testid on:click=copy>{told}</button> }
}
