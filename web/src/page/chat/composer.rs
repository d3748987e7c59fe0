//! Where the user writes.

use leptos::prelude::*;
use wasm_bindgen::JsCast;
use web_sys::HtmlElement;

use super::super::icons::{Icon, path};
use super::super::local;
use super::place::obstacle;
use super::state::{Chats, id};

/// The field and its buttons. What is not sent is kept for each conversation.
#[component]
pub(super) fn Composer(
    /// All conversations.
    chats: Chats,
) -> impl IntoView {
    let text = RwSignal::new(String::new());
    let field = NodeRef::<leptos::html::Textarea>::new();
    let key = move || {
        let talk = chats.current.get();
        // One that is not kept has no name that lasts.
        let said = talk.with(|talk| !talk.nodes.is_empty());
        format!("tread.draft.{}", if said { id(&talk) } else { "new".to_owned() })
    };
    let key = Memo::new(move |_| key());
    Effect::new(move |_| text.set(local::get(local::lasting().as_ref(), &key.get()).unwrap_or_default()));
    Effect::new(move |_| {
        chats.focus.track();
        let Some(field) = field.get() else { return };
        // On a touch screen the focus would bring up the keyboard.
        let touch =
            window().match_media("(pointer: coarse)").ok().flatten().is_some_and(|query| query.matches());
        let log = document().query_selector(".log").ok().flatten().filter(|_| touch);
        let target = log.and_then(|log| log.dyn_into::<HtmlElement>().ok());
        _ = target.unwrap_or_else(|| field.into()).focus();
    });
    let keep = move |value: String| {
        local::set(
            local::lasting().as_ref(),
            &key.get_untracked(),
            Some(&*value).filter(|value| !value.is_empty()),
        );
        text.set(value);
    };
    let busy = Memo::new(move |_| chats.busy());
    let why_not = Memo::new(move |_| obstacle(chats.app));
    let cannot = move || busy.get() || why_not.get().is_some() || text.with(|text| text.trim().is_empty());
    let send = move || {
        if !untrack(cannot) {
            let content = text.get_untracked();
            keep(String::new());
            chats.say(content);
            chats.write();
        }
    };
    let press = move |event: leptos::ev::KeyboardEvent| {
        if event.key() == "Enter" && !event.shift_key() && !event.is_composing() {
            event.prevent_default();
            send();
        }
    };
    view! {
        <form class="composer" on:submit=move |event| { event.prevent_default(); send() }>
            <div class="composer-frame">
                <textarea node_ref=field dir="auto" rows="1" aria-label="Message" placeholder="Write a message"
                    data-testid="composer" enterkeyhint="send" prop:value=move || text.get()
                    on:input=move |event| keep(event_target_value(&event)) on:keydown=press></textarea>
                {move || if busy.get() {
                    view! {
                        <button type="button" class="round" aria-label="Stop" title="Stop (Esc)" data-testid="stop"
                            on:click=move |_| { chats.stop(&chats.current.get_untracked()); chats.write() }>
                            <Icon path=path::STOP/>
                        </button>
                    }.into_any()
                } else {
                    view! {
                        <button type="submit" class="round primary" aria-label="Send" data-testid="send"
                            title=move || why_not.get().unwrap_or("Send (Enter)") disabled=cannot>
                            <Icon path=path::SEND/>
                        </button>
                    }.into_any()
                }}
            </div>
        </form>
    }
}
