//! Dialogs.

use leptos::prelude::*;

use super::super::icons::{IconButton, path};

/// A dialog. The browser keeps the focus in it, and gives it back.
#[component]
pub(super) fn Dialog(
    /// Whether it is shown.
    open: RwSignal<bool>,
    /// What it is.
    title: &'static str,
    /// What it shows; made when it opens.
    children: ChildrenFn,
) -> impl IntoView {
    let dialog = NodeRef::<leptos::html::Dialog>::new();
    let children = StoredValue::new(children);
    Effect::new(move |_| {
        let Some(dialog) = dialog.get() else { return };
        if open.get() {
            // Only fails for one that is open.
            _ = dialog.show_modal();
        } else {
            dialog.close();
        }
    });
    view! {
        <dialog node_ref=dialog aria-label=title closedby="any" on:close=move |_| open.set(false)>
            <div class="dialog-head">
                <h2>{title}</h2>
                <IconButton path=path::CLOSE label="Close" testid="close-dialog" press=move || open.set(false)/>
            </div>
            {move || open.get().then(|| children.get_value()())}
        </dialog>
    }
}

const KEYS: [(&str, &str); 6] = [
    ("Enter", "Send"),
    ("Shift + Enter", "New line"),
    ("Esc", "Stop the answer"),
    ("Ctrl or \u{2318} + Shift + O", "New chat"),
    ("/", "Go to the message field"),
    ("?", "Show these keys"),
];

/// All keys.
#[component]
pub(super) fn Shortcuts() -> impl IntoView {
    let row = |(keys, what)| view! { <div><dt><kbd>{keys}</kbd></dt><dd>{what}</dd></div> };
    view! { <dl class="shortcuts">{KEYS.map(row)}</dl> }
}
