//! Small things kept by the browser. Where it keeps nothing, they are only forgotten.

use leptos::prelude::window;
use web_sys::Storage;

/// Kept until the user clears it.
pub fn lasting() -> Option<Storage> {
    window().local_storage().ok().flatten()
}

/// Kept as long as the tab is open.
pub fn passing() -> Option<Storage> {
    window().session_storage().ok().flatten()
}

/// What is kept under a key.
pub fn get(storage: Option<&Storage>, key: &str) -> Option<String> {
    storage?.get_item(key).ok().flatten()
}

/// Keeps something; nothing: forgets it.
pub fn set(storage: Option<&Storage>, key: &str, value: Option<&str>) {
    let Some(storage) = storage else { return };
    // A full or forbidden storage is no reason to stop.
    _ = match value {
        Some(value) => storage.set_item(key, value),
        None => storage.remove_item(key),
    };
}
