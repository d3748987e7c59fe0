//! The view `monitor`: what the engine does, live.

#![allow(unreachable_pub, reason = "Leptos makes what it generates for a component public")]

mod cards;
mod figures;
mod pipeline;
mod pools;
mod source;
mod timeline;

use leptos::prelude::*;

use self::cards::Cards;
use self::pipeline::Pipeline;
use self::source::{Link, Source};
use self::timeline::{Steps, Timeline};
use crate::page::{App, Place};

/// Minutes that can be shown.
const WINDOWS: [u64; 3] = [1, 5, 10];

/// The view.
#[component]
pub fn Monitor() -> impl IntoView {
    let app = expect_context::<App>();
    let source = Source::start(app);
    let minutes = RwSignal::new(WINDOWS[0]);
    let window = Signal::derive(move || minutes.get() * 60_000);
    view! {
        <div class="view monitor">
            <header class="view-head">
                <div>
                    <h1>"Monitor"</h1>
                    <State source app/>
                </div>
                <fieldset class="choice">
                    <legend>"Window"</legend>
                    {WINDOWS.map(|choice| view! {
                        <label>
                            <input type="radio" name="window" prop:checked=move || minutes.get() == choice
                                on:change=move |_| minutes.set(choice)/>
                            <span>{format!("{choice} min")}</span>
                        </label>
                    }).collect_view()}
                </fieldset>
            </header>
            <Cards source window/>
            <Pipeline source/>
            <Steps source/>
            <Timeline source/>
        </div>
    }
}

/// What is watched, and whether numbers come.
#[component]
fn State(source: Source, app: App) -> impl IntoView {
    let link = Memo::new(move |_| match (source.link.get(), source.events.get()) {
        (Link::Connected, events) => events,
        (link, _) => link,
    });
    let word = move || match link.get() {
        Link::Connecting => "connecting",
        Link::Connected => "connected",
        Link::Failed { .. } => "reconnecting",
        Link::Idle => "idle",
    };
    let told = move || match link.get() {
        Link::Connecting => "Connecting".to_owned(),
        Link::Connected => {
            let hello = source.hello.get();
            let place = if app.place.get() == Place::Server { "the server" } else { "this browser" };
            let model =
                if hello.model.is_empty() { "Live".to_owned() } else { format!("Live: {}", hello.model) };
            format!("{model} on {place}")
        }
        Link::Failed { reason, retry_s } => {
            let numbers = if source.link.get() == Link::Connected {
                "Numbers come, but no events"
            } else {
                "No numbers"
            };
            format!("{numbers}: {reason}. Tried again every {retry_s} s")
        }
        Link::Idle => "No model is loaded in this browser.".to_owned(),
    };
    let choose =
        move || (link.get() == Link::Idle).then(|| view! { " " <a href="#/models">"Choose one"</a> });
    view! {
        <p class="state" class:state-ok=move || word() == "connected" class:state-bad=move || word() == "reconnecting"
            role="status" data-testid="monitor-state" data-value=word>
            <span class="state-dot" aria-hidden="true"></span>{told}{choose}
        </p>
    }
}
