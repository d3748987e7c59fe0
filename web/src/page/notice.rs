//! News that do not belong to one place of the page.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use leptos::prelude::*;

use super::icons::{IconButton, path};

/// How long a notice with nothing wrong in it stays.
const STAYS: Duration = Duration::from_secs(10);

/// What every view can tell the user: `use_context::<Notices>()`.
#[derive(Clone, Copy, Debug)]
pub struct Notices {
    all: RwSignal<Vec<Notice>>,
    next: StoredValue<u64>,
}

#[derive(Clone, Debug)]
struct Notice {
    number: u64,
    wrong: bool,
    text: String,
    action: Option<(&'static str, Act)>,
}

/// Not a `Callback`, which ends with the view that made it: a notice outlives what it tells about.
#[derive(Clone)]
struct Act(Arc<dyn Fn() + Send + Sync>);

impl fmt::Debug for Act {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Act")
    }
}

impl Notices {
    /// No news.
    pub fn new() -> Self {
        Self { all: RwSignal::new(vec![]), next: StoredValue::new(0) }
    }

    /// Something is wrong; it stays until it is closed.
    pub fn wrong(self, text: impl Into<String>) {
        self.add(true, text.into(), None);
    }

    /// Something was done, and this undoes it.
    pub fn undo(self, text: impl Into<String>, undo: impl Fn() + Send + Sync + 'static) {
        self.add(false, text.into(), Some(("Undo", Act(Arc::new(undo)))));
    }

    /// Something was done.
    pub fn done(self, text: impl Into<String>) {
        self.add(false, text.into(), None);
    }

    fn add(self, wrong: bool, text: String, action: Option<(&'static str, Act)>) {
        let number = self.next.get_value();
        self.next.set_value(number + 1);
        self.all.update(|all| {
            all.retain(|notice| notice.text != text);
            all.push(Notice { number, wrong, text, action });
        });
        if !wrong {
            set_timeout(move || self.close(number), STAYS);
        }
    }

    fn close(self, number: u64) {
        self.all.update(|all| all.retain(|notice| notice.number != number));
    }
}

impl Default for Notices {
    fn default() -> Self {
        Self::new()
    }
}

/// Where they are shown.
#[component]
pub fn NoticeBoard(
    /// All of them.
    notices: Notices,
) -> impl IntoView {
    let show = move |notice: Notice| {
        let number = notice.number;
        let action = notice.action.map(|(label, act)| {
            let press = move |_| {
                (act.0)();
                notices.close(number);
            };
            view! { <button type="button" on:click=press>{label}</button> }
        });
        view! {
            <div class="notice" class:wrong=notice.wrong role=if notice.wrong { "alert" } else { "status" }
                data-testid="notice">
                <p dir="auto">{notice.text}</p>
                {action}
                <IconButton path=path::CLOSE label="Close" press=move || notices.close(number)/>
            </div>
        }
    };
    view! {
        <div class="notices" aria-label="Notices" role="region">
            <For each=move || notices.all.get() key=|notice| notice.number children=show/>
        </div>
    }
}
