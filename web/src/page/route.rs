//! Which view is shown: the part of the address behind `#`, so that the page works from any folder of any web server.

use leptos::prelude::*;

/// A view.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Route {
    /// Conversations.
    #[default]
    Chat,
    /// What the engine does.
    Monitor,
    /// Models of the tab.
    Models,
    /// What the browser and its GPU can do.
    Device,
    /// How fast it is.
    Bench,
}

impl Route {
    /// All, in the order of the navigation.
    pub const ALL: [Self; 5] = [Self::Chat, Self::Monitor, Self::Models, Self::Device, Self::Bench];

    /// For people.
    pub fn title(self) -> &'static str {
        match self {
            Self::Chat => "Chat",
            Self::Monitor => "Monitor",
            Self::Models => "Models",
            Self::Device => "Device",
            Self::Bench => "Bench",
        }
    }

    /// The address.
    pub fn href(self) -> &'static str {
        match self {
            Self::Chat => "#/",
            Self::Monitor => "#/monitor",
            Self::Models => "#/models",
            Self::Device => "#/device",
            Self::Bench => "#/bench",
        }
    }

    /// The view at an address; the first where there is none.
    pub fn parse(hash: &str) -> Self {
        Self::ALL.into_iter().find(|route| route.href() == hash).unwrap_or_default()
    }
}

/// The view of the document's address, now and as it changes.
pub fn current() -> RwSignal<Route> {
    let read = || Route::parse(&window().location().hash().unwrap_or_default());
    let route = RwSignal::new(read());
    let listener = window_event_listener(leptos::ev::hashchange, move |_| route.set(read()));
    on_cleanup(move || listener.remove());
    route
}

#[cfg(test)]
mod tests {
    use super::Route;

    #[test]
    fn every_route_is_found_by_its_address() {
        for route in Route::ALL {
            assert_eq!(Route::parse(route.href()), route);
        }
        assert_eq!(Route::parse("#/nowhere"), Route::Chat);
    }
}
