//! From where the monitor hears: the server, or the worker of this tab.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::Duration;

use js_sys::{Date, Promise};
use leptos::leptos_dom::helpers::IntervalHandle;
use leptos::prelude::*;
use leptos::task::spawn_local;
use tread_core::monitor::{Hello, Standing, StepEvent};
use wasm_bindgen_futures::JsFuture;
use web_sys::{AbortController, Storage};

use crate::chat::sse::Events;
use crate::monitor::board::Board;
use crate::monitor::feed::{Feed, Stepped, retry_s};
use crate::monitor::history::History;
use crate::monitor::prometheus::Scrape;
use crate::page::http::{self, Call};
use crate::page::{App, Place};
use crate::protocol::ToEngine;

/// Whether numbers come.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) enum Link {
    /// Nothing came yet.
    #[default]
    Connecting,
    /// They come.
    Connected,
    /// They do not, and are asked for again.
    Failed {
        /// Why.
        reason: String,
        /// Seconds until the next try.
        retry_s: u32,
    },
    /// There is nothing to watch.
    Idle,
}

/// What the monitor hears, as signals.
#[derive(Clone, Copy, Debug)]
pub(super) struct Source {
    /// Everything that is shown.
    pub(super) board: RwSignal<Board>,
    /// The server's metrics, or the worker.
    pub(super) link: RwSignal<Link>,
    /// The server's events.
    pub(super) events: RwSignal<Link>,
    /// What is watched.
    pub(super) hello: RwSignal<Hello>,
}

/// How often numbers are taken.
const TICK: Duration = Duration::from_secs(1);
/// How often steps that came are shown.
const FLUSH: Duration = Duration::from_millis(200);

impl Source {
    /// Hears from where the app answers from, for as long as the caller's owner lives.
    pub(super) fn start(app: App) -> Self {
        let source = Self {
            board: RwSignal::default(),
            link: RwSignal::default(),
            events: RwSignal::default(),
            hello: RwSignal::default(),
        };
        let loaded = Memo::new(move |_| app.tab.loaded.get());
        Effect::new(move |_| {
            let place = app.place.get();
            let name = match place {
                Place::Server => "server",
                Place::Tab => "tab",
            };
            source.begin(name);
            match place {
                Place::Server => source.hear_server(app),
                Place::Tab => match loaded.get() {
                    Some(model) => {
                        let device = model.device.unwrap_or_default();
                        source.hello.set(Hello::single(model.name, device, model.context));
                        source.hear_tab(app);
                    }
                    None => source.link.set(Link::Idle),
                },
            }
        });
        source
    }

    /// Takes up the history that an earlier page left, and keeps it for the next.
    fn begin(self, name: &'static str) {
        let key = format!("tread.monitor.{name}");
        let saved = storage().and_then(|storage| storage.get_item(&key).ok().flatten()).unwrap_or_default();
        let now = now_ms();
        let mut board = Board::default();
        (board.history, board.now_ms) = (History::restore(&saved, now), now);
        self.board.set(board);
        self.link.set(Link::Connecting);
        self.events.set(Link::Connecting);
        self.hello.set(Hello::default());
        let save = move || {
            // A full or forbidden storage costs no more than the history after a reload.
            let text = self.board.try_with_untracked(|board| board.history.save());
            _ = storage().zip(text).map(|(storage, text)| storage.set_item(&key, &text));
        };
        let leaves = window_event_listener(leptos::ev::pagehide, {
            let save = save.clone();
            move |_| save()
        });
        on_cleanup(move || {
            leaves.remove();
            save();
        });
    }

    fn hear_tab(self, app: App) {
        let steps = Steps::gather(self);
        let handle = {
            let steps = steps.clone();
            app.tab.on_step(move |step, standing| steps.push(step.clone(), *standing))
        };
        app.tab.send(&ToEngine::Watch { on: true, ops: true });
        self.link.set(Link::Connected);
        self.events.set(Link::Connected);
        let tick = every(TICK, move || self.board.update(|board| board.watched(now_ms())));
        on_cleanup(move || {
            tick.iter().for_each(IntervalHandle::clear);
            app.tab.off_step(handle);
            app.tab.send(&ToEngine::Watch { on: false, ops: false });
        });
    }

    fn hear_server(self, app: App) {
        let steps = Steps::gather(self);
        let Ok(abort) = AbortController::new() else { return };
        let key = app.server.key.get();
        let call = Call { key, signal: Some(abort.signal()), body: None };
        let alive = Rc::new(Cell::new(true));
        spawn_local(repeat(alive.clone(), self.link, {
            let call = call.clone();
            move || poll(self, call.clone())
        }));
        spawn_local(repeat(alive.clone(), self.events, move || listen(self, steps.clone(), call.clone())));
        let alive = StoredValue::new_local((alive, abort));
        on_cleanup(move || {
            alive.with_value(|(alive, abort)| {
                alive.set(false);
                abort.abort();
            });
        });
    }
}

/// Does something again and again, each time sooner or later as it works or fails. It says itself when it is connected.
async fn repeat<F: Future<Output = Result<(), String>>>(
    alive: Rc<Cell<bool>>,
    link: RwSignal<Link>,
    mut act: impl FnMut() -> F,
) {
    let mut failed = 0;
    while alive.get() {
        let result = act().await;
        if !alive.get() {
            return;
        }
        let wait = match result {
            Ok(()) => {
                failed = 0;
                1
            }
            Err(reason) => {
                failed += 1;
                link.set(Link::Failed { reason, retry_s: retry_s(failed) });
                retry_s(failed)
            }
        };
        sleep(wait).await;
    }
}

/// Reads the metrics once.
async fn poll(source: Source, call: Call) -> Result<(), String> {
    let text = http::text(&http::fetch("metrics", &call).await?).await?;
    let scrape = Scrape::parse(&text);
    if scrape.sum("vllm:num_requests_running").is_none() {
        return Err("what answers at `metrics` is no server of Tread".to_owned());
    }
    source.link.try_set(Link::Connected);
    source.board.try_update(|board| board.scraped(now_ms(), &scrape));
    Ok(())
}

/// Listens until the stream ends.
async fn listen(source: Source, steps: Steps, call: Call) -> Result<(), String> {
    let response = http::fetch("events?ops=1", &call).await?;
    source.events.try_set(Link::Connected);
    let mut events = Events::default();
    http::stream(&response, |bytes| {
        for data in events.push(bytes) {
            match serde_json::from_str(&data) {
                Ok(Feed::Hello(hello)) => _ = source.hello.try_set(hello),
                Ok(Feed::Steps(new)) => {
                    new.into_iter().for_each(|Stepped { step, standing }| steps.push(step, standing))
                }
                Ok(Feed::Standing(standing)) => {
                    source.board.try_update(|board| board.standing = Some(standing));
                }
                // Of a newer server than the page.
                Err(_) => {}
            }
        }
    })
    .await?;
    Err("the server ended its event stream".to_owned())
}

/// Steps that came and are not shown yet: a fast model makes more than a screen can show.
#[derive(Clone, Default)]
struct Steps(Rc<RefCell<Vec<(StepEvent, Standing)>>>);

impl Steps {
    fn gather(source: Source) -> Self {
        let steps = Self::default();
        let queue = steps.0.clone();
        let flush = every(FLUSH, move || {
            let new = queue.take();
            if !new.is_empty() {
                source.board.update(|board| {
                    let now = now_ms();
                    new.into_iter().for_each(|(step, standing)| board.step(now, step, standing));
                });
            }
        });
        on_cleanup(move || flush.iter().for_each(IntervalHandle::clear));
        steps
    }

    fn push(&self, step: StepEvent, standing: Standing) {
        self.0.borrow_mut().push((step, standing));
    }
}

fn every(time: Duration, act: impl Fn() + 'static) -> Option<IntervalHandle> {
    set_interval_with_handle(act, time).ok()
}

async fn sleep(seconds: u32) {
    let promise = Promise::new(&mut |resolve, _| {
        let millis = i32::try_from(seconds * 1000).unwrap_or(i32::MAX);
        // Without a timer there is no waiting, and none in a page whose window is gone.
        _ = window().set_timeout_with_callback_and_timeout_and_arguments_0(&resolve, millis);
    });
    _ = JsFuture::from(promise).await;
}

fn storage() -> Option<Storage> {
    window().session_storage().ok().flatten()
}

/// Milliseconds since 1970.
pub(super) fn now_ms() -> u64 {
    Date::now() as u64
}
