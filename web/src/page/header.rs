//! What stands above every view.

use leptos::prelude::*;
use wasm_bindgen::JsCast as _;
use wasm_bindgen::prelude::Closure;
use web_sys::{MediaQueryList, MediaQueryListEvent};

use super::icons::{Icon, path};
use super::notice::Notices;
use super::route::Route;
use super::server::Reach;
use super::{App, Place, local};

/// Where the chosen colours are kept; `boot.js` reads it too.
const THEME: &str = "tread.theme";
/// Where the chosen place is kept.
pub(super) const PLACE: &str = "tread.place";

/// Navigation, the place where answers come from, and the colours.
#[component]
pub fn Header(
    /// The page.
    app: App,
) -> impl IntoView {
    view! {
        <header class="header">
            <a class="brand" href="#/" aria-label="Tread, to the chat"><img src="icon.svg" alt="" width="28" height="28"/></a>
            <nav aria-label="Views">
                {Route::ALL.map(|route| {
                    let current = move || (app.route.get() == route).then_some("page");
                    view! {
                        <a href=route.href() aria-current=current title=route.title()>
                            <Icon path=icon(route)/><span>{route.title()}</span>
                        </a>
                    }
                })}
            </nav>
            <PlaceSwitch app/>
            <ThemeToggle/>
        </header>
    }
}

fn icon(route: Route) -> &'static str {
    match route {
        Route::Chat => path::CHAT,
        Route::Monitor => path::MONITOR,
        Route::Models => path::MODELS,
        Route::Device => path::DEVICE,
        Route::Bench => path::BENCH,
    }
}

#[component]
fn PlaceSwitch(app: App) -> impl IntoView {
    let notices = expect_context::<Notices>();
    let pressed = move |place| move || if app.place.get() == place { "true" } else { "false" };
    let choose = move |place: Place| {
        app.place.set(place);
        let name = (place == Place::Tab).then_some("tab");
        local::set(local::lasting().as_ref(), PLACE, name);
    };
    let server = move |_| {
        if app.server.reach.get_untracked() != Reach::Absent {
            return choose(Place::Server);
        }
        app.server.connect(move || match app.server.reach.get_untracked() {
            Reach::Absent => {
                notices.wrong("No server answers behind this page. Start it with `tread serve`.")
            }
            _ => choose(Place::Server),
        });
    };
    let server_model = move || match (app.server.model.get(), app.server.reach.get()) {
        (Some(model), _) => model,
        (None, Reach::Locked) => "needs a key".to_owned(),
        (None, Reach::Absent) => "none here".to_owned(),
        (None, _) => "looking for it".to_owned(),
    };
    let tab_model = move || match (app.tab.loaded.get(), app.tab.progress.get()) {
        (Some(model), _) => model.name,
        (None, Some(_)) => "loading".to_owned(),
        (None, None) => "no model yet".to_owned(),
    };
    view! {
        <div class="places" role="group" aria-label="Where answers come from">
            <button type="button" data-testid="place-server" aria-pressed=pressed(Place::Server) on:click=server>
                <Icon path=path::SERVER/><span class="place-name">"Server"</span>
                <span class="place-model" dir="auto">{server_model}</span>
            </button>
            <button type="button" data-testid="place-tab" aria-pressed=pressed(Place::Tab)
                on:click=move |_| choose(Place::Tab)>
                <Icon path=path::BROWSER/><span class="place-name">"This browser"</span>
                <span class="place-model" dir="auto">{tab_model}</span>
            </button>
        </div>
    }
}

#[component]
fn ThemeToggle() -> impl IntoView {
    let kept = || local::get(local::lasting().as_ref(), THEME);
    let system = window().match_media("(prefers-color-scheme: dark)").ok().flatten();
    let system_is_dark = system.as_ref().is_some_and(MediaQueryList::matches);
    let dark = RwSignal::new(kept().map_or(system_is_dark, |theme| theme == "dark"));
    if let Some(system) = system {
        // Until the user chooses, the colours are the system's.
        let follow = Closure::<dyn Fn(MediaQueryListEvent)>::new(move |change: MediaQueryListEvent| {
            if kept().is_none() {
                dark.set(change.matches());
            }
        });
        system.set_onchange(Some(follow.as_ref().unchecked_ref()));
        // As long-lived as the page; what has a listener is not collected.
        follow.forget();
    }
    let toggle = move |_| {
        dark.update(|dark| *dark = !*dark);
        let theme = if dark.get_untracked() { "dark" } else { "light" };
        local::set(local::lasting().as_ref(), THEME, Some(theme));
        if let Some(root) = document().document_element() {
            // Only fails for names that are not names.
            _ = root.set_attribute("data-theme", theme);
        }
    };
    let label = move || if dark.get() { "Use light colours" } else { "Use dark colours" };
    view! {
        <button type="button" class="icon-button" data-testid="theme" aria-label=label title=label on:click=toggle>
            {move || if dark.get() { view! { <Icon path=path::SUN/> } } else { view! { <Icon path=path::MOON/> } }}
        </button>
    }
}
