//! The view `models`: which model this tab runs.

#![allow(unreachable_pub, reason = "Leptos makes what it generates for a component public")]

mod catalog;
mod chosen;
mod kept;
mod sources;

use leptos::prelude::*;
use leptos::task::spawn_local;
use web_sys::File;

use self::catalog::Entry;
use self::chosen::Chosen;
use self::kept::Kept;
use self::sources::Sources;
use super::http::{self, Call};
use crate::page::App;
use crate::page::tab::{Progress, Tab};
use crate::protocol::{Compute, ModelInfo, ModelRef, Stage, ToEngine};

/// The view.
#[component]
pub fn Models() -> impl IntoView {
    let app = expect_context::<App>();
    let chooser = Chooser::new(app);
    // Loading, whole or broken off, changes what is kept.
    Effect::new(move |_| {
        app.tab.loaded.track();
        app.tab.failure.track();
        app.tab.send(&ToEngine::List);
    });
    if app.tab.capabilities.with_untracked(Option::is_none) {
        app.tab.send(&ToEngine::Probe);
    }
    view! {
        <div class="view models">
            <header class="view-head">
                <div>
                    <h1>"Models in this browser"</h1>
                    <p class="lead">"A model runs here, on this machine's GPU. Nothing you write leaves the browser."</p>
                </div>
            </header>
            <div class="columns">
                <div class="stack">
                    <Sources chooser/>
                    <Kept chooser/>
                </div>
                <Chosen chooser/>
            </div>
        </div>
    }
}

/// The choice of a model.
#[derive(Clone, Copy, Debug)]
struct Chooser {
    app: App,
    /// What the origin offers, or why that is not known.
    catalog: RwSignal<Option<Result<Vec<Entry>, String>>>,
    /// The choice.
    model: RwSignal<Option<ModelRef>>,
    /// Tokens of prompt and answer together; none: as the worker thinks best.
    context: RwSignal<Option<usize>>,
    /// What is to compute it.
    compute: RwSignal<Compute>,
    files: StoredValue<Vec<File>, LocalStorage>,
}

impl Chooser {
    fn new(app: App) -> Self {
        let catalog = RwSignal::new(None);
        spawn_local(async move {
            let entries =
                async { http::text(&http::fetch("models/catalog.json", &Call::default()).await?).await }
                    .await;
            catalog.try_set(Some(entries.and_then(|text| catalog::parse(&text))));
        });
        Self {
            app,
            catalog,
            model: RwSignal::new(None),
            context: RwSignal::new(None),
            compute: RwSignal::new(Compute::Auto),
            files: StoredValue::new_local(Vec::new()),
        }
    }

    fn tab(&self) -> Tab {
        self.app.tab
    }

    /// Asks what a model needs.
    fn choose(&self, model: ModelRef, files: Vec<File>) {
        self.files.set_value(files);
        self.context.set(None);
        self.tab().failure.set(None);
        self.tab().inspected.set(None);
        self.model.set(Some(model));
        self.inspect();
    }

    /// Asks again, with another context.
    fn set_context(&self, context: usize) {
        self.context.set(Some(context));
        self.inspect();
    }

    fn inspect(&self) {
        let Some(model) = self.model.get_untracked() else { return };
        let message = ToEngine::Inspect { model, context: self.context.get_untracked() };
        self.files.with_value(|files| self.tab().send_files(&message, files));
    }

    /// What the chosen model is, once that is known.
    fn info(&self) -> Option<Result<ModelInfo, String>> {
        let model = self.model.get()?;
        let (of, result) = self.tab().inspected.get()?;
        (of == model).then_some(result)
    }

    /// Loads it.
    fn load(&self) {
        let Some(model) = self.model.get_untracked() else { return };
        let tab = self.tab();
        tab.failure.set(None);
        tab.progress.set(Some(Progress { stage: Stage::Download, done: 0, total: 0 }));
        let message = ToEngine::Load {
            model,
            context: self.context.get_untracked(),
            compute: self.compute.get_untracked(),
        };
        self.files.with_value(|files| tab.send_files(&message, files));
    }

    fn entries(&self) -> Vec<Entry> {
        self.catalog.get().and_then(Result::ok).unwrap_or_default()
    }
}
