//! The view `chat`.

use leptos::prelude::*;

/// The view.
#[component]
pub fn Chat() -> impl IntoView {
    view! { <h1>"Chat"</h1> }
}
