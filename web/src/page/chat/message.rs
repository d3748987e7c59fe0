//! A message.

use leptos::prelude::*;
use wasm_bindgen::JsCast;
use web_sys::HtmlElement;

use super::super::icons::{Icon, IconButton, path};
use super::files::copy;
use super::markdown::Markdown;
use super::state::{Chats, Talk};
use super::tools::{Calls, Results};
use crate::chat::conversation::{Node, Outcome};

/// A message with all that can be done with it.
#[component]
pub(super) fn MessageView(
    /// All conversations.
    chats: Chats,
    /// The one it is part of.
    talk: Talk,
    /// Its place there.
    node: usize,
) -> impl IntoView {
    let role = talk.with_untracked(|talk| talk.nodes[node].message.role.clone());
    let (kept, drafted) = (talk.clone(), talk.clone());
    let draft = Memo::new(move |_| chats.draft(&drafted, node));
    let shown = Memo::new(move |_| match draft.get() {
        Some(draft) => draft.get(),
        None => kept.with(|talk| talk.nodes.get(node).cloned().unwrap_or_default()),
    });
    let live = Signal::derive(move || draft.with(Option::is_some));
    let editing = RwSignal::new(false);
    let name = match role.as_str() {
        "user" => "You said",
        "tool" => "Result of a tool",
        _ => "Answer",
    };
    let talk = StoredValue::new(talk);
    let body = {
        let role = role.clone();
        move || {
            match (editing.get(), role.as_str()) {
            (true, _) => view! { <Editor chats talk=talk.get_value() node editing/> }.into_any(),
            (false, "assistant") => view! { <AnswerView shown live/> }.into_any(),
            (false, _) => {
                view! { <div class="said" dir="auto" data-testid="text">{move || shown.with(|n| n.message.content.clone())}</div> }
                    .into_any()
            }
        }
        }
    };
    let end = (role == "assistant").then(|| view! { <End chats talk=talk.get_value() node shown live/> });
    let foot = {
        let role = role.clone();
        move || {
            (!editing.get() && !live.get()).then(|| {
                view! { <Foot chats talk=talk.get_value() node shown editing role=role.clone()/> }
            })
        }
    };
    view! {
        <article class="message" data-testid="message" data-role=role data-node=node.to_string() data-live=move || live.get().then_some("true")>
            <h2 class=if name == "Result of a tool" { "result-name" } else { "unseen" }>{name}</h2>
            {body}{end}{foot}
        </article>
    }
}

#[component]
fn AnswerView(shown: Memo<Node>, live: Signal<bool>) -> impl IntoView {
    let reasoning = Memo::new(move |_| shown.with(|node| node.reasoning.clone()));
    let text = Memo::new(move |_| shown.with(|node| node.message.content.clone()));
    let calls = Memo::new(move |_| shown.with(|node| node.message.tool_calls.clone()));
    let thinks = Memo::new(move |_| !reasoning.with(String::is_empty));
    let opened = Memo::new(move |_| live.get() && text.with(String::is_empty));
    let label = move || if opened.get() { "Reasoning\u{2026}" } else { "Reasoning" };
    let waits =
        move || live.get() && text.with(String::is_empty) && !thinks.get() && calls.with(Vec::is_empty);
    view! {
        {move || thinks.get().then(|| view! {
            <details class="reasoning" data-testid="reasoning" prop:open=move || opened.get()>
                <summary>{label}</summary><Markdown text=reasoning/>
            </details>
        })}
        {move || waits().then(|| view! { <p class="waits" role="status">"Waiting for the first word"</p> })}
        <div data-testid="answer" class:writes=move || live.get()><Markdown text/></div>
        <Calls calls/>
    }
}

/// How an answer ended, and what can be done about it.
#[component]
fn End(chats: Chats, talk: Talk, node: usize, shown: Memo<Node>, live: Signal<bool>) -> impl IntoView {
    let outcome = Memo::new(move |_| shown.with(|node| node.outcome.clone()).filter(|_| !live.get()));
    let talk = StoredValue::new(talk);
    let last = Memo::new(move |_| talk.get_value().with(|talk| talk.path().last() == Some(&node)));
    let failed = move || {
        outcome.get().and_then(|outcome| outcome.error).map(|error| {
            view! { <p class="failed" role="alert" dir="auto" data-testid="failed">{error}</p> }
        })
    };
    let cut = move || {
        let cut = outcome.with(|o| {
            o.as_ref().is_none_or(|o| matches!(o.reason.as_str(), "length" | "stopped" | "failed"))
        });
        let goes_on = cut
            && last.get()
            && !live.get()
            && shown.with(|node| !node.message.content.is_empty() && node.message.tool_calls.is_empty());
        goes_on.then(|| {
            view! {
                <button type="button" class="go-on" data-testid="continue"
                    on:click=move |_| { chats.answer(&talk.get_value(), node); chats.write() }>
                    "Continue the answer"
                </button>
            }
        })
    };
    let results = move || {
        (last.get() && !live.get()).then(|| {
            talk.get_value()
                .with(|talk| talk.open_calls())
                .map(|(_, calls)| view! { <Results chats talk=talk.get_value() calls/> })
        })
    };
    view! { {failed}{cut}{results} }
}

/// Branches, what can be done, and what it took.
#[component]
fn Foot(
    chats: Chats,
    talk: Talk,
    node: usize,
    shown: Memo<Node>,
    editing: RwSignal<bool>,
    role: String,
) -> impl IntoView {
    let copied = RwSignal::new(false);
    let talk = StoredValue::new(talk);
    let again = (role == "assistant").then(|| {
        view! {
            <IconButton path=path::AGAIN label="Answer again" testid="regenerate"
                press=move || {
                    chats.stop(&talk.get_value());
                    chats.regenerate(&talk.get_value(), node);
                    chats.write();
                }/>
        }
    });
    let stats = move || {
        shown.with(|node| node.outcome.as_ref().map(stats)).map(|stats| {
            view! { <p class="stats" data-testid="stats">{stats}</p> }
        })
    };
    view! {
        <div class="foot">
            <Branches chats talk=talk.get_value() node/>
            <button type="button" class="icon-button" aria-label="Copy" title="Copy" data-testid="copy"
                on:click=move |_| copy(shown.with_untracked(|node| node.message.content.clone()), copied)>
                <Icon path=path::COPY/>{move || copied.get().then_some("Copied")}
            </button>
            {(role != "tool").then(|| view! {
                <IconButton path=path::EDIT label="Edit" testid="edit" press=move || editing.set(true)/>
            })}
            {again}
            {stats}
        </div>
    }
}

#[component]
fn Branches(chats: Chats, talk: Talk, node: usize) -> impl IntoView {
    let watched = talk.clone();
    let siblings = Memo::new(move |_| watched.with(|talk| talk.siblings(node)));
    let talk = StoredValue::new(talk);
    let place = move || siblings.with(|all| all.iter().position(|other| *other == node).unwrap_or(0));
    let go = move |to: Option<usize>| {
        if let Some(to) = to.and_then(|to| siblings.with_untracked(|all| all.get(to).copied())) {
            chats.change(&talk.get_value(), |talk| talk.select(to));
            request_animation_frame(move || focus_branches(to));
        }
    };
    move || {
        (siblings.with(Vec::len) > 1).then(|| {
            view! {
                <span class="branches" role="group" aria-label="Versions" data-testid="branches">
                    <IconButton path=path::LEFT label="Version before" testid="branch-before"
                        press=move || go(untrack(place).checked_sub(1))/>
                    <span>{move || format!("{}/{}", place() + 1, siblings.with(Vec::len))}</span>
                    <IconButton path=path::RIGHT label="Version after" testid="branch-after"
                        press=move || go(Some(untrack(place) + 1))/>
                </span>
            }
        })
    }
}

/// Another message stands there now; the focus stays on its arrows.
fn focus_branches(node: usize) {
    let arrow = document().query_selector(&format!("[data-node='{node}'] .branches button")).ok().flatten();
    if let Some(arrow) = arrow.and_then(|arrow| arrow.dyn_into::<HtmlElement>().ok()) {
        _ = arrow.focus();
    }
}

/// What an answer took, in a line.
fn stats(outcome: &Outcome) -> String {
    let mut parts = vec![];
    let usage = outcome.usage;
    if usage.completion_tokens > 0 {
        parts.push(format!("{} tokens", usage.completion_tokens));
        parts.extend(outcome.tokens_per_s().map(|speed| format!("{speed:.1} tok/s")));
    }
    // Of an imported conversation, nothing may have been measured.
    if outcome.total_ms > 0 {
        parts.push(format!("first after {:.2} s", outcome.first_ms as f64 / 1000.0));
    }
    if usage.cached_tokens > 0 {
        parts.push(format!("{} of {} prompt tokens cached", usage.cached_tokens, usage.prompt_tokens));
    }
    if !outcome.model.is_empty() {
        parts.push(format!("{} on {}", outcome.model, outcome.place));
    }
    parts.push(match outcome.reason.as_str() {
        "stop" => "ended".to_owned(),
        "length" => "cut at the most tokens".to_owned(),
        "tool_calls" => "calls tools".to_owned(),
        other => other.to_owned(),
    });
    parts.join(" \u{b7} ")
}

#[component]
fn Editor(chats: Chats, talk: Talk, node: usize, editing: RwSignal<bool>) -> impl IntoView {
    let (old, user) = talk.with_untracked(|talk| {
        let message = &talk.nodes[node].message;
        (message.content.clone(), message.role == "user")
    });
    let text = RwSignal::new(old);
    let field = NodeRef::<leptos::html::Textarea>::new();
    field.on_load(|field| _ = field.focus());
    let close = move || {
        editing.set(false);
        chats.write();
    };
    let save = move || {
        if !text.with_untracked(|text| text.trim().is_empty()) {
            close();
            chats.stop(&talk);
            chats.edit(&talk, node, text.get_untracked());
        }
    };
    let saves = save.clone();
    let key = move |event: leptos::ev::KeyboardEvent| match event.key().as_str() {
        "Escape" => {
            event.stop_propagation();
            close();
        }
        "Enter" if user && !event.shift_key() && !event.is_composing() => {
            event.prevent_default();
            saves();
        }
        _ => {}
    };
    view! {
        <div class="editor">
            <textarea node_ref=field dir="auto" aria-label="Edit the message" data-testid="editor" rows="3"
                bind:value=text on:keydown=key></textarea>
            <p class="hint">{if user { "A new branch begins here; the old one stays." } else { "The old version stays as a branch." }}</p>
            <button type="button" class="primary" data-testid="edit-save" on:click=move |_| save()>
                {if user { "Send" } else { "Save" }}
            </button>
            <button type="button" on:click=move |_| close()>"Cancel"</button>
        </div>
    }
}
