//! The user interface: one document with a view for each thing a user does.

pub mod bench;
pub mod chat;
mod clipboard;
pub mod device;
pub mod header;
mod http;
pub mod icons;
pub mod local;
pub mod models;
pub mod monitor;
pub mod notice;
pub mod route;
pub mod server;
pub mod tab;

use leptos::prelude::*;

use self::chat::Chats;
use self::header::Header;
use self::models::Chooser;
use self::notice::{NoticeBoard, Notices};
use self::route::Route;
use self::server::{Reach, Server};
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

/// Puts the page into the document's body, in place of what stands there until then.
pub fn start() {
    leptos::mount::mount_to_body(Page);
    if let Some(skeleton) = document().get_element_by_id("skeleton") {
        skeleton.remove();
    }
}

#[component]
fn Page() -> impl IntoView {
    let app = App {
        route: route::current(),
        place: RwSignal::new(Place::Server),
        server: Server::new(),
        tab: Tab::new(),
    };
    let notices = Notices::new();
    provide_context(app);
    provide_context(notices);
    // Answers and choices last while another view is shown.
    provide_context(Chats::new(app, notices));
    provide_context(Chooser::new(app));
    find_place(app);
    Effect::new(move |_| document().set_title(&format!("{} \u{b7} Tread", app.route.get().title())));
    view! {
        <Header app/>
        <main>
            {move || match app.route.get() {
                Route::Chat => view! { <chat::Chat/> }.into_any(),
                Route::Monitor => view! { <monitor::Monitor/> }.into_any(),
                Route::Models => view! { <models::Models/> }.into_any(),
                Route::Device => view! { <device::Device/> }.into_any(),
                Route::Bench => view! { <bench::Bench/> }.into_any(),
            }}
        </main>
        <NoticeBoard notices/>
    }
}

/// The place is the one chosen last; without a server it is this browser.
fn find_place(app: App) {
    if local::get(local::lasting().as_ref(), header::PLACE).is_some_and(|place| place == "tab") {
        app.place.set(Place::Tab);
    }
    app.server.connect(move || {
        if app.server.reach.get_untracked() == Reach::Absent {
            app.place.set(Place::Tab);
        }
    });
}
