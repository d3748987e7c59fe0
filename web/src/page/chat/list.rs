//! The list of conversations.

use leptos::prelude::*;
use wasm_bindgen::JsCast;
use web_sys::HtmlInputElement;

use super::super::icons::{Icon, IconButton, path};
use super::files;
use super::state::{Chats, Talk, id};

/// The conversations: found, opened, renamed, deleted, exported and imported.
#[component]
pub(super) fn List(
    /// All of them.
    chats: Chats,
    /// Whether the list is shown where there is no room for it beside the conversation.
    open: RwSignal<bool>,
) -> impl IntoView {
    let search = RwSignal::new(String::new());
    let found = Memo::new(move |_| {
        let needle = search.get().trim().to_lowercase();
        let mut found: Vec<Talk> = chats.kept.get();
        found.retain(|talk| talk.with(|talk| needle.is_empty() || talk.contains(&needle)));
        found.sort_by_key(|talk| std::cmp::Reverse(talk.with(|talk| talk.updated)));
        found
    });
    let empty = move || {
        let text = if search.get().is_empty() {
            "Conversations are kept in this browser."
        } else {
            "Nothing found."
        };
        found.with(Vec::is_empty).then(|| view! { <p class="hint">{text}</p> })
    };
    view! {
        <aside id="conversations" class="list" class:open=move || open.get() aria-label="Conversations">
            <div class="list-head">
                <button type="button" class="primary" data-testid="new-chat" title="New chat (Ctrl+Shift+O)"
                    on:click=move |_| { open.set(false); chats.start() }>
                    <Icon path=path::NEW/>"New chat"
                </button>
                <span class="only-narrow">
                    <IconButton path=path::CLOSE label="Close the list" press=move || open.set(false)/>
                </span>
            </div>
            <input type="search" data-testid="search" placeholder="Search" aria-label="Search conversations"
                bind:value=search/>
            <ul class="conversations" data-testid="conversations">
                <For each=move || found.get() key=id children=move |talk| view! { <Item chats talk open/> }/>
            </ul>
            {empty}
            <Files chats/>
        </aside>
    }
}

#[component]
fn Files(chats: Chats) -> impl IntoView {
    let chooser = NodeRef::<leptos::html::Input>::new();
    let chosen = move |event: leptos::ev::Event| {
        let input: HtmlInputElement = event_target(&event);
        if let Some(file) = input.files().and_then(|files| files.get(0)) {
            files::import(chats, file);
        }
        // So that the same file can be chosen again.
        input.set_value("");
    };
    let choose = move |_| {
        if let Some(chooser) = chooser.get() {
            chooser.click();
        }
    };
    view! {
        <div class="list-foot">
            <input node_ref=chooser type="file" accept=".json,application/json" hidden data-testid="import"
                aria-label="File with conversations" on:change=chosen/>
            <button type="button" class="quiet" on:click=choose><Icon path=path::UPLOAD/>"Import"</button>
            <button type="button" class="quiet" data-testid="export-all"
                on:click=move |_| files::export(chats, &chats.kept.get_untracked())>
                <Icon path=path::DOWNLOAD/>"Export all"
            </button>
        </div>
    }
}

#[component]
fn Item(chats: Chats, talk: Talk, open: RwSignal<bool>) -> impl IntoView {
    let renaming = RwSignal::new(false);
    let talk = StoredValue::new(talk);
    let title = move || talk.get_value().with(|talk| talk.title.clone());
    let current = move || chats.is_current(&talk.get_value()).then_some("true");
    let pick = move |_| {
        open.set(false);
        chats.open(talk.get_value());
    };
    let rename = move |name: String| {
        // Taking a field out of the document may also tell that it lost the focus.
        if renaming.try_get_untracked() == Some(true) {
            renaming.set(false);
            chats.write();
            if !name.trim().is_empty() {
                chats.change(&talk.get_value(), |talk| name.trim().clone_into(&mut talk.title));
            }
        }
    };
    let shown = move || {
        view! {
            <button type="button" class="pick" dir="auto" data-testid="conversation" aria-current=current on:click=pick>
                {title}
            </button>
            <span class="item-tools">
                <IconButton path=path::EDIT label="Rename" testid="rename" press=move || renaming.set(true)/>
                <IconButton path=path::DELETE label="Delete" testid="delete" press=move || chats.delete(&talk.get_value())/>
            </span>
        }
    };
    view! {
        <li class:current=move || current().is_some()>
            {move || if renaming.get() {
                view! { <Rename title=title() done=Callback::new(rename)/> }.into_any()
            } else {
                shown().into_any()
            }}
        </li>
    }
}

#[component]
fn Rename(title: String, done: Callback<String>) -> impl IntoView {
    let input = NodeRef::<leptos::html::Input>::new();
    input.on_load(|input| {
        _ = input.focus();
        input.select();
    });
    let old = title.clone();
    let key = move |event: leptos::ev::KeyboardEvent| match event.key().as_str() {
        "Enter" if !event.is_composing() => done.run(event_target_value(&event)),
        "Escape" => {
            event.stop_propagation();
            done.run(old.clone());
        }
        _ => {}
    };
    let blur = move |event: leptos::ev::FocusEvent| {
        if let Some(input) = event.target().and_then(|target| target.dyn_into::<HtmlInputElement>().ok()) {
            done.run(input.value());
        }
    };
    view! { <input node_ref=input type="text" aria-label="Title" dir="auto" prop:value=title on:keydown=key on:blur=blur/> }
}
