//! The view `monitor`.

use leptos::prelude::*;

/// The view.
#[component]
pub fn Monitor() -> impl IntoView {
    view! { <h1>"Monitor"</h1> }
}
