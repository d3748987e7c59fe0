//! The view `device`.

use leptos::prelude::*;

/// The view.
#[component]
pub fn Device() -> impl IntoView {
    view! { <h1>"Device"</h1> }
}
