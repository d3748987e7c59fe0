//! The view `models`.

use leptos::prelude::*;

/// The view.
#[component]
pub fn Models() -> impl IntoView {
    view! { <h1>"Models"</h1> }
}
