//! The messages of a conversation that are shown.

use leptos::prelude::*;

use super::super::icons::{IconButton, path};
use super::message::MessageView;
use super::place::PlaceCards;
use super::state::{Chats, Talk};

/// So close to the end counts as there, in pixels.
const NEAR: i32 = 60;

/// The messages, first to last. What is new is scrolled to while the reader is at the end.
#[component]
pub(super) fn Thread(
    /// All conversations.
    chats: Chats,
    /// This one.
    talk: Talk,
) -> impl IntoView {
    let log = NodeRef::<leptos::html::Div>::new();
    let follows = RwSignal::new(true);
    // It may run in a frame that comes after another conversation took this one's place.
    let to_end = move || {
        if let Some(log) = log.try_get_untracked().flatten() {
            log.set_scroll_top(log.scroll_height());
        }
    };
    let scrolled = move |_| {
        if let Some(log) = log.try_get_untracked().flatten() {
            follows.set(log.scroll_height() - log.scroll_top() - log.client_height() < NEAR);
        }
    };
    let talk = StoredValue::new(talk);
    let shown = Memo::new(move |_| talk.get_value().with(|talk| talk.path()));
    Effect::new(move |_| {
        let last = shown.get().pop();
        if let Some(draft) = last.and_then(|last| chats.draft(&talk.get_value(), last)) {
            draft.track();
        }
        if follows.get_untracked() {
            request_animation_frame(to_end);
        }
    });
    let empty = move || shown.with(Vec::is_empty).then(|| view! { <Empty chats/> });
    view! {
        <div class="log-frame">
            <div node_ref=log class="log" role="log" aria-live="off" aria-label="Messages" tabindex="0" on:scroll=scrolled>
                <div class="column">
                    {empty}
                    <For each=move || shown.get() key=|node| *node
                        children=move |node| view! { <MessageView chats talk=talk.get_value() node/> }/>
                    <PlaceCards chats/>
                </div>
            </div>
            <span class="to-end" class:hidden=move || follows.get()>
                <IconButton path=path::DOWN label="To the end" testid="to-end"
                    press=move || { follows.set(true); to_end() }/>
            </span>
        </div>
    }
}

#[component]
fn Empty(chats: Chats) -> impl IntoView {
    let model = move || chats.model().unwrap_or_else(|| "a model".to_owned());
    view! {
        <div class="empty">
            <img src="icon.svg" alt="" width="48" height="48"/>
            <h2>"Talk to "<bdi>{model}</bdi></h2>
            <p class="only-wide">"Enter sends, Shift+Enter begins a new line, ? shows all keys."</p>
        </div>
    }
}
