//! Calls of functions, and what the user says they returned.

use leptos::prelude::*;

use super::state::{Chats, Talk};
use crate::chat::ToolCall;

/// The calls of an answer.
#[component]
pub(super) fn Calls(
    /// As far as they are known.
    calls: Memo<Vec<ToolCall>>,
) -> impl IntoView {
    let count = Memo::new(move |_| calls.with(Vec::len));
    let call = move |index: usize| {
        let name = move || calls.with(|calls| calls.get(index).map(|call| call.function.name.clone()));
        let arguments =
            move || calls.with(|calls| calls.get(index).map(|call| pretty(&call.function.arguments)));
        view! {
            <figure class="code call" dir="ltr" data-testid="tool-call">
                <figcaption><span>"Calls "<code>{name}</code></span></figcaption>
                <pre tabindex="0" role="region" aria-label="Arguments"><code>{arguments}</code></pre>
            </figure>
        }
    };
    view! { <For each=move || 0..count.get() key=|index| *index children=call/> }
}

/// JSON with a line for each thing; what is not JSON yet, as it stands.
fn pretty(json: &str) -> String {
    let value = serde_json::from_str::<serde_json::Value>(json).ok();
    value.and_then(|value| serde_json::to_string_pretty(&value).ok()).unwrap_or_else(|| json.to_owned())
}

/// Asks for what the calls return.
#[component]
pub(super) fn Results(
    /// All conversations.
    chats: Chats,
    /// This one.
    talk: Talk,
    /// Its calls without results.
    calls: Vec<ToolCall>,
) -> impl IntoView {
    let calls: Vec<_> = calls.into_iter().map(|call| (call, RwSignal::new(String::new()))).collect();
    let fields = calls.iter().map(|(call, text)| {
        let text = *text;
        let name = call.function.name.clone();
        view! {
            <label>
                <span>"What "<code>{name}</code>" returns"</span>
                <textarea rows="2" dir="auto" data-testid="tool-result" bind:value=text></textarea>
            </label>
        }
    });
    let fields = fields.collect::<Vec<_>>();
    let send = move |event: leptos::ev::SubmitEvent| {
        event.prevent_default();
        let results = calls.iter().map(|(call, text)| (call.id.clone(), text.get_untracked())).collect();
        chats.give_results(&talk, results);
    };
    view! {
        <form class="results" on:submit=send>
            {fields}
            <button type="submit" class="primary" data-testid="tool-send">"Send and go on"</button>
        </form>
    }
}
