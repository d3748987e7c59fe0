//! The server that the page came from.

use leptos::prelude::*;

/// What is known of it.
#[derive(Clone, Copy, Debug)]
pub struct Server {
    /// The name of its model; none while unknown, or where no server is.
    pub model: RwSignal<Option<String>>,
    /// Most tokens of prompt and answer together.
    pub context: RwSignal<Option<usize>>,
    /// The key that it asks for.
    pub key: RwSignal<Option<String>>,
}

impl Server {
    /// Nothing is known yet.
    pub fn new() -> Self {
        Self { model: RwSignal::new(None), context: RwSignal::new(None), key: RwSignal::new(None) }
    }
}

impl Default for Server {
    fn default() -> Self {
        Self::new()
    }
}
