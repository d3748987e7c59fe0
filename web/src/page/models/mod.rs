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
    let chooser = expect_context::<Chooser>();
    chooser.read_catalog();
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

/// The choice of a model: `use_context::<Chooser>()`. It outlives the view, so that a model that fails while it answers is still
/// the chosen one.
#[derive(Clone, Copy, Debug)]
pub struct Chooser {
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
    /// Nothing is chosen yet.
    pub fn new(app: App) -> Self {
        Self {
            app,
            catalog: RwSignal::new(None),
            model: RwSignal::new(None),
            context: RwSignal::new(None),
            compute: RwSignal::new(Compute::Auto),
            files: StoredValue::new_local(Vec::new()),
        }
    }

    fn tab(&self) -> Tab {
        self.app.tab
    }

    /// Asks the origin what it offers, unless that is known.
    fn read_catalog(&self) {
        let catalog = self.catalog;
        if catalog.with_untracked(|known| matches!(known, Some(Ok(_)))) {
            return;
        }
        spawn_local(async move {
            let entries =
                async { http::text(&http::fetch("models/catalog.json", &Call::default()).await?).await }
                    .await;
            catalog.set(Some(entries.and_then(|text| catalog::parse(&text))));
        });
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

    /// The chosen model, if that is what it is called, is no longer what was said of it.
    fn forget(&self, name: &str) {
        if self.info().is_some_and(|info| info.is_ok_and(|info| info.name == name)) {
            self.model.set(None);
        }
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
