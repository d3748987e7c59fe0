//! Icons: lines on a field of 24 by 24, drawn here so that nothing is fetched.

use leptos::prelude::*;

/// Shortest paths that say what is meant.
pub mod path {
    #![allow(missing_docs, reason = "each is named after what it shows")]
    pub const CHAT: &str = "M4 5h16v11H10l-4 4v-4H4z";
    pub const MONITOR: &str = "M3 12h4l3-8 4 16 3-8h4";
    pub const MODELS: &str = "M12 3l9 5-9 5-9-5zM3 12l9 5 9-5M3 16l9 5 9-5";
    pub const DEVICE: &str = "M7 7h10v10H7zM10 3v4M14 3v4M10 17v4M14 17v4M3 10h4M3 14h4M17 10h4M17 14h4";
    pub const BENCH: &str = "M4 18a9 9 0 1 1 16 0M12 14l4-5";
    pub const SUN: &str = "M12 8a4 4 0 1 0 0 8 4 4 0 0 0 0-8M12 2v2M12 20v2M4.9 4.9l1.4 1.4M17.7 17.7l1.4 1.4M2 12h2M20 12h2M4.9 19.1l1.4-1.4M17.7 6.3l1.4-1.4";
    pub const MOON: &str = "M20 14.5A8.5 8.5 0 0 1 9.5 4a8.5 8.5 0 1 0 10.500 10.500z";
    pub const SEND: &str = "M12 19V5M6 11l6-6 6 6";
    pub const STOP: &str = "M7 7h10v10H7z";
    pub const NEW: &str = "M12 5v14M5 12h14";
    pub const MENU: &str = "M4 6h16M4 12h16M4 18h16";
    pub const EDIT: &str = "M4 20h4L19 9l-4-4L4 16zM13 7l4 4";
    pub const DELETE: &str = "M5 7h14M10 7V4h4v3M7 7l1 13h8l1-13";
    pub const COPY: &str = "M9 9h11v11H9zM5 15H4V4h11v1";
    pub const AGAIN: &str = "M20 11a8 8 0 1 0-2 6M20 5v6h-6";
    pub const LEFT: &str = "M14 6l-6 6 6 6";
    pub const RIGHT: &str = "M10 6l6 6-6 6";
    pub const DOWN: &str = "M12 5v14M6 13l6 6 6-6";
    pub const SETTINGS: &str =
        "M4 7h9M17 7h3M13 7a2 2 0 1 0 4 0 2 2 0 0 0-4 0M4 17h3M11 17h9M7 17a2 2 0 1 0 4 0 2 2 0 0 0-4 0";
    pub const DOWNLOAD: &str = "M12 4v11M7 11l5 5 5-5M4 20h16";
    pub const UPLOAD: &str = "M12 16V5M7 9l5-5 5 5M4 20h16";
    pub const CLOSE: &str = "M6 6l12 12M18 6L6 18";
    pub const KEYS: &str = "M3 6h18v12H3zM7 10h.01M11 10h.01M15 10h.01M8 14h8";
    pub const SERVER: &str = "M4 4h16v7H4zM4 13h16v7H4zM8 7.500h.01M8 16.500h.01";
    pub const BROWSER: &str = "M3 5h18v14H3zM3 9h18M6 7h.01";
}

/// An icon. What it stands for is said by what it stands in.
#[component]
pub fn Icon(
    /// One of [`path`].
    path: &'static str,
) -> impl IntoView {
    view! { <svg class="icon" viewBox="0 0 24 24" aria-hidden="true"><path d=path></path></svg> }
}

/// A button that is only an icon.
#[component]
pub fn IconButton(
    /// One of [`path`].
    path: &'static str,
    /// What it does, for those who read and those who listen.
    label: &'static str,
    /// For tests.
    #[prop(optional)]
    testid: &'static str,
    /// What it does.
    press: impl Fn() + 'static,
) -> impl IntoView {
    view! {
        <button type="button" class="icon-button" aria-label=label title=label
            data-testid=(!testid.is_empty()).then_some(testid) on:click=move |_| press()>
            <Icon path/>
        </button>
    }
}
