//! What stands between the user and an answer, and how much room is left.

use leptos::prelude::*;

use super::super::server::Reach;
use super::super::{App, Place};
use super::state::Chats;
use crate::protocol::{FailureKind, Stage};

/// Cards that say what is missing, and what to do.
#[component]
pub(super) fn PlaceCards(
    /// All conversations.
    chats: Chats,
) -> impl IntoView {
    let app = chats.app;
    move || match app.place.get() {
        Place::Server => server(app).into_any(),
        Place::Tab => tab(app).into_any(),
    }
}

fn server(app: App) -> impl IntoView {
    move || {
        match app.server.reach.get() {
        Reach::Absent => Some(view! {
            <div class="card" data-testid="no-server">
                <h2>"No server answers"</h2>
                <p>"Start it with "<code>"tread serve"</code>", or run the model in this browser."</p>
                <button type="button" on:click=move |_| app.server.connect(|| ())>"Try again"</button>
                <button type="button" on:click=move |_| app.place.set(Place::Tab)>"Use this browser"</button>
            </div>
        }.into_any()),
        Reach::Locked => Some(view! { <Key app/> }.into_any()),
        Reach::Unknown | Reach::Ready => None,
    }
    }
}

#[component]
fn Key(app: App) -> impl IntoView {
    let key = RwSignal::new(String::new());
    let send = move |event: leptos::ev::SubmitEvent| {
        event.prevent_default();
        app.server.unlock(key.get_untracked().trim());
    };
    let wrong =
        move || app.server.key.get().is_some().then_some("The server does not take the key it was given.");
    view! {
        <form class="card" data-testid="key-form" on:submit=send>
            <h2>"The server asks for a key"</h2>
            <p>{wrong}" It is forgotten when this tab is closed."</p>
            <input type="password" autocomplete="off" aria-label="Key of the server" data-testid="key" bind:value=key/>
            <button type="submit" class="primary">"Use it"</button>
        </form>
    }
}

fn tab(app: App) -> impl IntoView {
    let lost = move || {
        app.tab.lost.get().map(|message| {
            view! {
                <div class="card warns" role="status" data-testid="lost">
                    <h2>"The GPU failed and is being opened anew"</h2>
                    <p>"Your conversation is kept, and answers go on by themselves."</p>
                    <p dir="auto">{message}</p>
                </div>
            }
        })
    };
    let failure = move || {
        app.tab.failure.get().filter(|failure| failure.kind != FailureKind::Cancelled).map(|failure| {
            let (title, way) = match failure.kind {
                FailureKind::Memory => ("The model does not fit", "Choose a smaller model"),
                FailureKind::Device => ("The GPU failed", "Try again, or choose a smaller model"),
                _ => ("The model could not be loaded", "To the models"),
            };
            view! {
                <div class="card warns" role="alert" data-testid="tab-failure">
                    <h2>{title}</h2>
                    <p dir="auto">{failure.message}</p>
                    <p>"Your conversation is kept."</p>
                    <a class="button" href="#/models">{way}</a>
                </div>
            }
        })
    };
    let loading = move || {
        app.tab.progress.get().map(|progress| {
            let what = match progress.stage {
                Stage::Download => "Downloading the model",
                Stage::Check => "Checking the model",
                Stage::Upload => "Putting the model on the GPU",
            };
            let percent = (progress.done.min(progress.total) * 100).checked_div(progress.total).unwrap_or(0);
            view! {
                <div class="card" data-testid="tab-progress">
                    <p>{what}" \u{b7} "{percent}" %"</p>
                    <progress aria-label=what max="100" value=percent.to_string()></progress>
                </div>
            }
        })
    };
    let idle = Memo::new(move |_| {
        app.tab.loaded.with(Option::is_none)
            && app.tab.progress.with(Option::is_none)
            && app.tab.failure.with(Option::is_none)
    });
    let choose = move || {
        idle.get().then(|| view! {
        <div class="card" data-testid="no-model">
            <h2>"No model is loaded in this browser"</h2>
            <p>"Choose one; it is downloaded once, runs on your GPU, and nothing you write leaves this computer."</p>
            <a class="button primary" href="#/models">"Choose a model"</a>
        </div>
    })
    };
    view! { {lost}{failure}{loading}{choose} }
}

/// How much of the context the conversation takes.
#[component]
pub(super) fn Meter(
    /// All conversations.
    chats: Chats,
) -> impl IntoView {
    let app = chats.app;
    let most = move || match app.place.get() {
        Place::Server => app.server.context.get(),
        Place::Tab => app.tab.loaded.get().map(|model| model.context),
    };
    move || {
        let (used, most) = (chats.current.get().with(|talk| talk.tokens())?, most()?);
        let left = most.saturating_sub(used);
        let text = format!("{used} tokens used, {left} of {most} left");
        Some(view! {
            <span class="meter" class:full={used * 10 > most * 9} role="img" aria-label=text.clone() title=text data-testid="meter">
                <svg viewBox="0 0 20 20" aria-hidden="true">
                    <circle cx="10" cy="10" r="8"></circle>
                    <circle class="used" cx="10" cy="10" r="8" pathLength="100"
                        stroke-dasharray=format!("{} 100", (used * 100 / most.max(1)).min(100))></circle>
                </svg>
                <span>{used}" / "{most}</span>
            </span>
        })
    }
}

/// Why nothing can be asked now; none: it can.
pub(super) fn obstacle(app: App) -> Option<&'static str> {
    match app.place.get() {
        Place::Server => match app.server.reach.get() {
            Reach::Unknown => Some("The server is being looked for"),
            Reach::Absent => Some("No server answers"),
            Reach::Locked => Some("The server asks for a key"),
            Reach::Ready => None,
        },
        Place::Tab if app.tab.loaded.with(Option::is_some) => None,
        Place::Tab => Some("No model is loaded in this browser"),
    }
}
