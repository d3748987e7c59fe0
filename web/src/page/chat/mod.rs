//! The view `chat`.

#![allow(unreachable_pub, reason = "what Leptos makes of a component's parameters is public")]

mod composer;
mod dialog;
mod files;
mod list;
mod live;
mod markdown;
mod message;
mod place;
mod settings;
mod state;
mod store;
mod thread;
mod tools;

use leptos::prelude::*;
use wasm_bindgen::JsCast;
use web_sys::{Element, HtmlElement};

pub use self::state::Chats;

use self::composer::Composer;
use self::dialog::{Dialog, Shortcuts};
use self::list::List;
use self::settings::SettingsForm;
use self::thread::Thread;
use super::icons::{IconButton, path};

/// The view.
#[component]
pub fn Chat() -> impl IntoView {
    let chats = expect_context::<Chats>();
    let list = RwSignal::new(false);
    let settings = RwSignal::new(false);
    let shortcuts = RwSignal::new(false);
    let keys = window_event_listener(leptos::ev::keydown, move |event| press(chats, shortcuts, &event));
    on_cleanup(move || keys.remove());
    view! {
        <div class="chat">
            <List chats open=list/>
            <div class="shade" class:open=move || list.get() on:click=move |_| list.set(false)></div>
            <section class="talk" aria-label="Conversation">
                <Bar chats list settings shortcuts/>
                // A conversation of its own begins at its end, with its own editors.
                {move || { let talk = chats.current.get(); view! { <Thread chats talk/> } }}
                <Composer chats/>
            </section>
            <Dialog open=settings title="Settings of this conversation">
                <SettingsForm chats/>
            </Dialog>
            <Dialog open=shortcuts title="Keyboard"><Shortcuts/></Dialog>
            <p class="unseen" aria-live="polite">{move || chats.announced.get()}</p>
        </div>
    }
}

#[component]
fn Bar(
    chats: Chats,
    list: RwSignal<bool>,
    settings: RwSignal<bool>,
    shortcuts: RwSignal<bool>,
) -> impl IntoView {
    let title = move || {
        let title = chats.current.get().with(|talk| talk.title.clone());
        if title.is_empty() { "New chat".to_owned() } else { title }
    };
    let said = move || chats.current.get().with(|talk| !talk.nodes.is_empty());
    view! {
        <div class="bar">
            <span class="only-narrow">
                <IconButton path=path::MENU label="Conversations" testid="open-list" press=move || list.set(true)/>
            </span>
            <h1 dir="auto">{title}</h1>
            <place::Meter chats/>
            {move || said().then(|| view! {
                <span class="exports">
                    <IconButton path=path::DOWNLOAD label="Export as JSON" testid="export-json"
                        press=move || files::export(chats, &[chats.current.get_untracked()])/>
                    <button type="button" class="icon-button letters" aria-label="Export as MD"
                        title="Export as Markdown" data-testid="export-markdown"
                        on:click=move |_| files::export_markdown(chats, &chats.current.get_untracked())>"MD"</button>
                </span>
            })}
            <span class="only-wide">
                <IconButton path=path::KEYS label="Keyboard shortcuts" testid="shortcuts"
                    press=move || shortcuts.set(true)/>
            </span>
            <IconButton path=path::SETTINGS label="Settings of this conversation" testid="settings"
                press=move || settings.set(true)/>
        </div>
    }
}

/// What the keys do wherever the focus is.
fn press(chats: Chats, shortcuts: RwSignal<bool>, event: &leptos::ev::KeyboardEvent) {
    // A dialog has its own.
    if document().query_selector("dialog[open]").is_ok_and(|dialog| dialog.is_some()) {
        return;
    }
    let command = event.ctrl_key() || event.meta_key();
    match event.key().as_str() {
        "Escape" if untrack(|| chats.busy()) => chats.stop(&chats.current.get_untracked()),
        "o" | "O" if command && event.shift_key() => chats.start(),
        "/" if !command && !writes(event) => chats.write(),
        "?" if !command && !writes(event) => shortcuts.set(true),
        _ => return,
    }
    event.prevent_default();
}

/// Whether the key goes to something that is written in.
fn writes(event: &leptos::ev::KeyboardEvent) -> bool {
    let Some(target) = event.target().and_then(|target| target.dyn_into::<Element>().ok()) else {
        return false;
    };
    matches!(target.tag_name().as_str(), "INPUT" | "TEXTAREA" | "SELECT")
        || target.dyn_into::<HtmlElement>().is_ok_and(|element| element.is_content_editable())
}
