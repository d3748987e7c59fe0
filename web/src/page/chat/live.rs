//! Answers in the making.

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use leptos::prelude::*;
use web_sys::AbortController;

use super::super::Place;
use super::state::{Chats, Talk, now};
use crate::chat::conversation::{Node, Outcome, clip};
use crate::chat::{ChatEvent, Function, ToolCall, Usage};
use crate::protocol::ToEngine;

/// How often an unfinished answer is kept, in milliseconds.
const SAVE_EVERY: u64 = 3000;

/// An answer in the making.
#[derive(Clone, Debug)]
pub(super) struct Live {
    /// Its conversation.
    pub(super) talk: Talk,
    /// Its place there.
    pub(super) node: usize,
    /// As far as it is shown: once a frame at most.
    pub(super) draft: ArcRwSignal<Node>,
    run: Rc<Run>,
}

#[derive(Debug)]
struct Run {
    place: Place,
    model: String,
    began: u64,
    first: Cell<Option<u64>>,
    saved: Cell<u64>,
    ended: Cell<bool>,
    scheduled: Cell<bool>,
    /// As far as it has come.
    node: RefCell<Node>,
    abort: RefCell<Option<Abort>>,
}

#[derive(Debug)]
enum Abort {
    Server(Option<AbortController>),
    Tab(u64),
}

impl Live {
    /// Shows what has come, with the next frame.
    fn show(&self) {
        if self.run.scheduled.replace(true) {
            return;
        }
        let live = self.clone();
        request_animation_frame(move || {
            live.run.scheduled.set(false);
            live.draft.set(live.run.node.borrow().clone());
        });
    }

    /// Puts what has come into the conversation.
    fn commit(&self) {
        let node = self.run.node.borrow().clone();
        self.talk.update(|talk| {
            if let Some(place) = talk.nodes.get_mut(self.node) {
                // The user may have chosen another branch meanwhile.
                *place = Node { selected: place.selected, ..node };
            }
        });
    }
}

impl Chats {
    /// The draft of an answer in the making.
    pub(super) fn draft(self, talk: &Talk, node: usize) -> Option<ArcRwSignal<Node>> {
        self.live.with(|live| {
            let mine = live.iter().find(|live| live.node == node && live.talk == *talk);
            mine.map(|live| live.draft.clone())
        })
    }

    /// Whether an answer of the shown conversation is in the making.
    pub(super) fn busy(self) -> bool {
        let current = self.current.get();
        self.live.with(|live| live.iter().any(|live| live.talk == current))
    }

    /// Has the answer at `node` made, or continued where it has begun.
    pub(super) fn answer(self, talk: &Talk, node: usize) {
        let Some(begun) = talk.with_untracked(|talk| talk.nodes.get(node).cloned()) else { return };
        let place = self.app.place.get_untracked();
        let run = Run {
            place,
            model: untrack(|| self.model()).unwrap_or_default(),
            began: now(),
            first: Cell::new(None),
            saved: Cell::new(now()),
            ended: Cell::new(false),
            scheduled: Cell::new(false),
            node: RefCell::new(begun.clone()),
            abort: RefCell::new(None),
        };
        let live = Live { talk: talk.clone(), node, draft: ArcRwSignal::new(begun), run: Rc::new(run) };
        self.live.update(|all| all.push(live.clone()));
        let request = match talk.with_untracked(|talk| talk.request(node)) {
            Ok(request) => request,
            Err(message) => return self.hear(&live, ChatEvent::Failed { message }),
        };
        let heard = live.clone();
        let listen = move |event| self.hear(&heard, event);
        let abort = match place {
            Place::Server => Abort::Server(self.app.server.chat(&request, listen)),
            Place::Tab => Abort::Tab(self.app.tab.chat(request, listen)),
        };
        *live.run.abort.borrow_mut() = Some(abort);
    }

    /// Ends the answers of a conversation; what they said stays.
    pub(super) fn stop(self, talk: &Talk) {
        let mine: Vec<_> = self.live.get_untracked().into_iter().filter(|live| live.talk == *talk).collect();
        for live in mine {
            match &*live.run.abort.borrow() {
                Some(Abort::Server(Some(controller))) => controller.abort(),
                Some(Abort::Tab(id)) => self.app.tab.send(&ToEngine::Abort { id: *id }),
                Some(Abort::Server(None)) | None => {}
            }
            self.end(&live, "stopped", None, Usage::default());
        }
    }

    fn hear(self, live: &Live, event: ChatEvent) {
        let run = &live.run;
        if run.ended.get() {
            return;
        }
        match event {
            ChatEvent::Finished { reason, usage } => return self.end(live, &reason, None, usage),
            ChatEvent::Failed { message } => {
                return self.end(live, "failed", Some(message), Usage::default());
            }
            ChatEvent::Reasoning { text } => run.node.borrow_mut().reasoning.push_str(&text),
            ChatEvent::Content { text } => run.node.borrow_mut().message.content.push_str(&text),
            ChatEvent::ToolCall { index, id, name, arguments } => {
                add_call(&mut run.node.borrow_mut().message.tool_calls, index, id, name, &arguments);
            }
        }
        run.first.set(run.first.get().or_else(|| Some(now())));
        live.show();
        if now() - run.saved.get() > SAVE_EVERY {
            run.saved.set(now());
            live.commit();
            self.save(&live.talk);
        }
    }

    fn end(self, live: &Live, reason: &str, error: Option<String>, usage: Usage) {
        let run = &live.run;
        if run.ended.replace(true) {
            return;
        }
        let outcome = Outcome {
            reason: reason.to_owned(),
            error,
            usage,
            model: run.model.clone(),
            place: if run.place == Place::Server { "server" } else { "this browser" }.to_owned(),
            first_ms: run.first.get().unwrap_or_else(now) - run.began,
            total_ms: now() - run.began,
        };
        let spoken = {
            let mut node = run.node.borrow_mut();
            let before = node.outcome.take();
            node.outcome = Some(match before {
                Some(before) => outcome.after(&before),
                None => outcome,
            });
            match &node.outcome {
                Some(Outcome { error: Some(error), .. }) => format!("The answer failed: {error}"),
                _ => format!("The answer is complete: {}", clip(&node.message.content, 2000)),
            }
        };
        live.commit();
        self.live.update(|all| all.retain(|other| !Rc::ptr_eq(&other.run, run)));
        self.touch(&live.talk);
        self.announced.set(spoken);
    }
}

/// Most calls of one answer that are listened to.
const MOST_CALLS: usize = 128;

fn add_call(
    calls: &mut Vec<ToolCall>,
    index: usize,
    id: Option<String>,
    name: Option<String>,
    arguments: &str,
) {
    if index >= MOST_CALLS {
        return;
    }
    while calls.len() <= index {
        calls.push(ToolCall { kind: "function".to_owned(), ..ToolCall::default() });
    }
    let call = &mut calls[index];
    call.id = id.unwrap_or_else(|| std::mem::take(&mut call.id));
    let Function { name: known, arguments: so_far } = &mut call.function;
    *known = name.unwrap_or_else(|| std::mem::take(known));
    so_far.push_str(arguments);
}

#[cfg(test)]
mod tests {
    use super::add_call;

    #[test]
    fn calls_are_put_together() {
        let mut calls = vec![];
        add_call(&mut calls, 0, Some("a".to_owned()), Some("f".to_owned()), "{");
        add_call(&mut calls, 1, Some("b".to_owned()), Some("g".to_owned()), "");
        add_call(&mut calls, 0, None, None, "}");
        add_call(&mut calls, usize::MAX, None, None, "x");
        let said: Vec<_> =
            calls.iter().map(|call| (&*call.id, &*call.function.name, &*call.function.arguments)).collect();
        assert_eq!(said, [("a", "f", "{}"), ("b", "g", "")]);
        assert_eq!(calls[0].kind, "function");
    }
}
