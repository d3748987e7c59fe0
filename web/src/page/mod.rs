//! The user interface: one document with a view for each thing a user does.

pub mod bench;
pub mod chat;
pub mod device;
pub mod models;
pub mod monitor;
pub mod route;
pub mod server;
pub mod tab;

use leptos::prelude::*;

use self::route::Route;
use self::server::Server;
use self::tab::Tab;

/// Where answers come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// The server that the page came from.
    Server,
    /// The engine in this browser.
    Tab,
}

/// What every view can reach: `use_context::<App>()`.
#[derive(Clone, Copy, Debug)]
pub struct App {
    /// The view that is shown.
    pub route: RwSignal<Route>,
    /// Where answers come from now.
    pub place: RwSignal<Place>,
    /// The server behind the page, if there is one.
    pub server: Server,
    /// The engine in this browser.
    pub tab: Tab,
}

/// Puts the page into the document's body.
pub fn start() {
    leptos::mount::mount_to_body(Page);
}

#[component]
fn Page() -> impl IntoView {
    let app = App {
        route: route::current(),
        place: RwSignal::new(Place::Server),
        server: Server::new(),
        tab: Tab::new(),
    };
    provide_context(app);
    view! {
        <nav aria-label="Views">
            {Route::ALL.map(|route| {
                let current = move || (app.route.get() == route).then_some("page");
                view! { <a href=route.href() aria-current=current>{route.title()}</a> }
            })}
        </nav>
        <main>
            {move || match app.route.get() {
                Route::Chat => view! { <chat::Chat/> }.into_any(),
                Route::Monitor => view! { <monitor::Monitor/> }.into_any(),
                Route::Models => view! { <models::Models/> }.into_any(),
                Route::Device => view! { <device::Device/> }.into_any(),
                Route::Bench => view! { <bench::Bench/> }.into_any(),
            }}
        </main>
    }
}
