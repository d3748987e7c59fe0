//! All conversations, and which is shown.

use leptos::prelude::*;
use wasm_bindgen::JsValue;
use wasm_bindgen_futures::spawn_local;

use super::super::notice::Notices;
use super::super::{App, Place, local};
use super::live::Live;
use super::store::Store;
use crate::chat::conversation::{Conversation, clip};
use crate::chat::settings::Settings;
use crate::chat::{Message, transfer};

/// Where it is kept which conversation is shown.
const CURRENT: &str = "tread.current";

/// A conversation that is watched.
pub(super) type Talk = ArcRwSignal<Conversation>;

/// All conversations: `use_context::<Chats>()`.
#[derive(Clone, Copy, Debug)]
pub struct Chats {
    /// Those that are kept.
    pub(super) kept: RwSignal<Vec<Talk>>,
    /// The one that is shown. It is kept once something is said.
    pub(super) current: RwSignal<Talk>,
    /// Answers in the making.
    pub(super) live: RwSignal<Vec<Live>, LocalStorage>,
    /// What those hear who do not see.
    pub(super) announced: RwSignal<String>,
    /// Moves the focus to where the user writes.
    pub(super) focus: RwSignal<u32>,
    pub(super) app: App,
    pub(super) notices: Notices,
    store: StoredValue<Option<Store>, LocalStorage>,
}

impl Chats {
    /// Those that the browser keeps.
    pub fn new(app: App, notices: Notices) -> Self {
        let chats = Self {
            kept: RwSignal::new(vec![]),
            current: RwSignal::new(fresh()),
            live: RwSignal::new_local(vec![]),
            announced: RwSignal::new(String::new()),
            focus: RwSignal::new(0),
            app,
            notices,
            store: StoredValue::new_local(None),
        };
        spawn_local(async move {
            if let Err(error) = chats.load().await {
                chats.cannot_keep(&error);
            }
        });
        chats
    }

    async fn load(self) -> Result<(), JsValue> {
        let store = Store::open().await?;
        self.store.set_value(Some(store.clone()));
        let (mut found, mut damaged) = (vec![], 0);
        for json in store.all().await? {
            match transfer::from_json(&json) {
                Ok(conversations) => found.extend(conversations.into_iter().map(ArcRwSignal::new)),
                Err(_) => damaged += 1,
            }
        }
        if damaged > 0 {
            self.notices.wrong(format!(
                "{damaged} kept conversations cannot be read by this page. They are left where they are."
            ));
        }
        self.kept.update(|kept| kept.extend(found));
        // What was said before the browser had answered.
        for talk in self.kept.get_untracked() {
            if self.current.get_untracked() == talk && talk.with_untracked(|talk| !talk.nodes.is_empty()) {
                self.save(&talk);
            }
        }
        let last = local::get(local::lasting().as_ref(), CURRENT);
        let last = self.kept.get_untracked().into_iter().find(|talk| Some(id(talk)) == last);
        if let Some(talk) =
            last.filter(|_| self.current.get_untracked().with_untracked(|c| c.nodes.is_empty()))
        {
            self.current.set(talk);
        }
        Ok(())
    }

    fn cannot_keep(self, error: &JsValue) {
        self.notices.wrong(format!(
            "The browser cannot keep conversations ({}). Export what you want to keep, or free space and reload.",
            reason(error)
        ));
    }

    /// Whether this is the one that is shown.
    pub(super) fn is_current(self, talk: &Talk) -> bool {
        self.current.get() == *talk
    }

    /// Keeps a conversation as it is now.
    pub(super) fn save(self, talk: &Talk) {
        let Some(store) = self.store.get_value() else { return };
        let conversation = talk.get_untracked();
        spawn_local(async move {
            let id = conversation.id.clone();
            if let Err(error) = store.put(&id, &transfer::to_json(vec![conversation])).await {
                self.cannot_keep(&error);
            }
        });
    }

    /// Something was said: the conversation is kept from now on.
    pub(super) fn touch(self, talk: &Talk) {
        talk.update(|talk| talk.updated = now());
        if !self.kept.with_untracked(|kept| kept.contains(talk)) {
            self.kept.update(|kept| kept.push(talk.clone()));
            local::set(local::lasting().as_ref(), CURRENT, Some(&id(talk)));
        }
        self.save(talk);
    }

    /// Changes something that is not said, and keeps it if anything is.
    pub(super) fn change(self, talk: &Talk, change: impl FnOnce(&mut Conversation)) {
        talk.update(change);
        if self.kept.with_untracked(|kept| kept.contains(talk)) {
            self.save(talk);
        }
    }

    /// Changes how the shown conversation is answered.
    pub(super) fn change_settings(self, change: impl FnOnce(&mut Settings)) {
        self.change(&self.current.get_untracked(), |talk| change(&mut talk.settings));
    }

    /// Shows a conversation.
    pub(super) fn open(self, talk: Talk) {
        local::set(local::lasting().as_ref(), CURRENT, Some(&id(&talk)));
        self.current.set(talk);
        self.write();
    }

    /// Shows a new one.
    pub(super) fn start(self) {
        self.open(fresh());
    }

    /// Moves the focus to where the user writes.
    pub(super) fn write(self) {
        self.focus.update(|focus| *focus += 1);
    }

    /// Deletes a conversation, which can be undone for a while.
    pub(super) fn delete(self, talk: &Talk) {
        self.stop(talk);
        self.kept.update(|kept| kept.retain(|other| other != talk));
        if self.current.get_untracked() == *talk {
            self.start()
        } else {
            self.write()
        }
        let (store, key) = (self.store.get_value(), id(talk));
        spawn_local(async move {
            if let Some(Err(error)) = async { Some(store?.delete(&key).await) }.await {
                self.cannot_keep(&error);
            }
        });
        let title = talk.with_untracked(|talk| clip(&talk.title, 30));
        let deleted = talk.clone();
        self.notices.undo(format!("\u{201c}{title}\u{201d} is deleted."), move || {
            self.kept.update(|kept| kept.push(deleted.clone()));
            self.save(&deleted);
        });
    }

    /// Takes conversations of a file.
    pub(super) fn import(self, json: &str) {
        let conversations = match transfer::from_json(json) {
            Ok(conversations) => conversations,
            Err(why) => return self.notices.wrong(format!("The file cannot be imported: {why}.")),
        };
        let count = conversations.len();
        for mut conversation in conversations {
            // The same file may come twice; nothing that is here is replaced.
            conversation.id = new_id();
            let talk = ArcRwSignal::new(conversation);
            self.kept.update(|kept| kept.push(talk.clone()));
            self.save(&talk);
        }
        self.notices.done(format!("{count} conversations imported."));
    }

    /// The user says something, and is answered.
    pub(super) fn say(self, content: String) {
        let talk = self.current.get_untracked();
        let message = Message { role: "user".to_owned(), content, ..Message::default() };
        talk.update(|talk| {
            let last = talk.path().pop();
            talk.add(last, message);
        });
        self.answer_last(&talk);
    }

    /// The message is said otherwise: a new branch, which is answered if the user said it.
    pub(super) fn edit(self, talk: &Talk, node: usize, content: String) {
        let mut user = false;
        talk.update(|talk| {
            let Some(old) = talk.nodes.get(node) else { return };
            let (parent, message) = (old.parent, Message { content, ..old.message.clone() });
            user = message.role == "user";
            talk.add(parent, message);
        });
        if user { self.answer_last(talk) } else { self.touch(talk) }
    }

    /// Another answer in place of this one.
    pub(super) fn regenerate(self, talk: &Talk, node: usize) {
        let parent = talk.with_untracked(|talk| talk.nodes.get(node).and_then(|node| node.parent));
        self.begin(talk, parent);
    }

    /// Results of the calls at the end, each with its call's id; the model goes on with them.
    pub(super) fn give_results(self, talk: &Talk, results: Vec<(String, String)>) {
        for (call, content) in results {
            let message =
                Message { role: "tool".to_owned(), content, tool_call_id: Some(call), ..Message::default() };
            talk.update(|talk| {
                let last = talk.path().pop();
                talk.add(last, message);
            });
        }
        self.answer_last(talk);
        self.write();
    }

    fn answer_last(self, talk: &Talk) {
        let last = talk.with_untracked(|talk| talk.path().pop());
        self.begin(talk, last);
    }

    fn begin(self, talk: &Talk, parent: Option<usize>) {
        let message = Message { role: "assistant".to_owned(), ..Message::default() };
        let mut node = 0;
        talk.update(|talk| node = talk.add(parent, message));
        self.touch(talk);
        self.answer(talk, node);
    }

    /// The model that would answer now; none: none can.
    pub(super) fn model(self) -> Option<String> {
        match self.app.place.get() {
            Place::Server => self.app.server.model.get(),
            Place::Tab => self.app.tab.loaded.get().map(|model| model.name),
        }
    }
}

/// Nothing is said yet.
fn fresh() -> Talk {
    ArcRwSignal::new(Conversation::new(new_id()))
}

/// The name of a conversation.
pub(super) fn id(talk: &Talk) -> String {
    talk.with_untracked(|talk| talk.id.clone())
}

/// Milliseconds since 1970.
pub(super) fn now() -> u64 {
    js_sys::Date::now() as u64
}

/// By time and chance: unlike `crypto.randomUUID`, also where the page did not come over HTTPS.
fn new_id() -> String {
    format!("{:x}-{:x}", now(), (js_sys::Math::random() * f64::from(u32::MAX)) as u32)
}

/// What an exception says.
pub(super) fn reason(error: &JsValue) -> String {
    let message = js_sys::Reflect::get(error, &"message".into()).ok().and_then(|message| message.as_string());
    message.or_else(|| error.as_string()).unwrap_or_else(|| "no reason given".to_owned())
}
