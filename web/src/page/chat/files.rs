//! What leaves the page and what comes in: the clipboard and files.

use std::time::Duration;

use js_sys::Array;
use leptos::prelude::*;
use wasm_bindgen::{JsCast, JsValue};
use wasm_bindgen_futures::{JsFuture, spawn_local};
use web_sys::{Blob, BlobPropertyBag, File, HtmlAnchorElement, Url};

use super::super::clipboard;
use super::super::notice::Notices;
use super::state::{Chats, Talk, reason};
use crate::chat::transfer;

/// Copies a text; `copied` is true for a moment.
pub(super) fn copy(text: String, copied: RwSignal<bool>) {
    let notices = use_context::<Notices>();
    spawn_local(async move {
        if clipboard::write(&text).await {
            copied.set(true);
            set_timeout(move || _ = copied.try_set(false), Duration::from_secs(2));
        } else if let Some(notices) = notices {
            notices.wrong(
                "The browser does not let the page copy. Select the text, and copy it with the keyboard.",
            );
        }
    });
}

/// Saves conversations as JSON.
pub(super) fn export(chats: Chats, talks: &[Talk]) {
    let conversations: Vec<_> = talks.iter().map(|talk| talk.get_untracked()).collect();
    let name = match conversations.as_slice() {
        [one] => transfer::file_name(&one.title, "json"),
        _ => "conversations.json".to_owned(),
    };
    save(chats, &name, "application/json", &transfer::to_json(conversations));
}

/// Saves what is shown of a conversation as Markdown.
pub(super) fn export_markdown(chats: Chats, talk: &Talk) {
    let (name, text) =
        talk.with_untracked(|talk| (transfer::file_name(&talk.title, "md"), transfer::to_markdown(talk)));
    save(chats, &name, "text/markdown", &text);
}

fn save(chats: Chats, name: &str, kind: &str, text: &str) {
    if let Err(error) = offer(name, kind, text) {
        chats.notices.wrong(format!("The file cannot be saved ({}).", reason(&error)));
    }
}

fn offer(name: &str, kind: &str, text: &str) -> Result<(), JsValue> {
    let options = BlobPropertyBag::new();
    options.set_type(kind);
    let blob = Blob::new_with_str_sequence_and_options(&Array::of1(&text.into()), &options)?;
    let url = Url::create_object_url_with_blob(&blob)?;
    let link: HtmlAnchorElement = document().create_element("a")?.unchecked_into();
    link.set_href(&url);
    link.set_download(name);
    link.click();
    // The browser has taken it by then.
    set_timeout(move || _ = Url::revoke_object_url(&url), Duration::from_secs(60));
    Ok(())
}

/// Reads conversations of a file.
pub(super) fn import(chats: Chats, file: File) {
    if file.size() > transfer::MOST_BYTES as f64 {
        let most = transfer::MOST_BYTES >> 20;
        return chats.notices.wrong(format!("The file cannot be imported: it is larger than {most} MiB."));
    }
    spawn_local(async move {
        match JsFuture::from(file.text()).await {
            Ok(text) => chats.import(&text.as_string().unwrap_or_default()),
            Err(error) => chats.notices.wrong(format!("The file cannot be read ({}).", reason(&error))),
        }
    });
}
