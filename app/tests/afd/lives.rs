//! A worker that others take for dead says nothing as who it was.

use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use tokio::sync::mpsc::UnboundedReceiver;
use tread::afd::host::{Host, Peer, Setup};
use tread_core::afd::frame::{self, Header, Kind};
use tread_core::afd::{Call, Layout, Sharding};
use tread_core::cpu::Cpu;
use tread_core::graph::EdgeDType;

use crate::models::model;

fn host() -> Host {
    let model = model("nano");
    let (sharding, dtype) = (Sharding::Layers, EdgeDType::F32);
    let graph = tread::afd::shape(&model.graph, sharding, dtype);
    let setup = Setup {
        terms: tread::afd::terms(&model, sharding, 1, dtype).unwrap(),
        layout: Arc::new(Layout::new(&graph, sharding, 1).unwrap()),
        shard: 0,
        weights: model.weights.clone(),
        max_rows: 4,
        slots: 4,
        open: Box::new(|| Ok(Box::new(Cpu::new()))),
        progress: Box::new(|_, _| {}),
    };
    Host::start(setup).unwrap()
}

/// Asks something of the first layer.
fn ask(host: &Host, peer: &Peer, incarnation: u64) {
    let layout = host.layout();
    let edges = layout.edges(0).0.iter();
    let inputs = edges.map(|edge| vec![0.5; layout.graph().value(edge.value).width]).collect();
    let call = Call { step: 1, micro_batch: 0, layer: 0, rows: 1, inputs };
    let frame = frame::call(layout, 0, Header { incarnation, ..Header::of_call(&call) }, &call).unwrap();
    pollster::block_on(peer.post(frame.into()));
}

fn heard(replies: &mut UnboundedReceiver<Bytes>) -> Option<Header> {
    let frame = pollster::block_on(replies.recv())?;
    Some(Header::read(&frame).unwrap().0)
}

#[test]
fn answers_are_held_until_they_may_be_given() {
    let host = host();
    let incarnation = host.welcome().incarnation;
    let (peer, mut replies) = host.attach(4);
    host.answer_until(Some(Instant::now()));
    ask(&host, &peer, incarnation);
    ask(&host, &peer, incarnation);
    host.answer_until(None);
    for _ in 0..2 {
        let header = heard(&mut replies).unwrap();
        assert_eq!((header.kind, header.incarnation), (Kind::Answer, incarnation));
    }
}

#[test]
fn what_was_asked_in_an_earlier_life_is_not_answered() {
    let host = host();
    let first = host.welcome().incarnation;
    let (peer, mut replies) = host.attach(4);
    host.answer_until(Some(Instant::now()));
    ask(&host, &peer, first);
    host.begin_anew();
    let second = host.welcome().incarnation;
    assert_ne!(first, second);
    host.answer_until(None);
    // If it had not begun with that, it says so; then the connection ends.
    while let Some(header) = heard(&mut replies) {
        assert_eq!(header.kind, Kind::Refusal, "an answer to what was asked in another life");
    }
    // Who meets it now is answered.
    let (peer, mut replies) = host.attach(4);
    ask(&host, &peer, second);
    assert_eq!(heard(&mut replies).map(|header| header.incarnation), Some(second));
}

/// It met the worker in one life and attached in the next.
#[test]
fn who_means_an_earlier_life_is_let_go() {
    let host = host();
    let first = host.welcome().incarnation;
    host.begin_anew();
    host.answer_until(None);
    let (peer, mut replies) = host.attach(4);
    ask(&host, &peer, first);
    assert_eq!(heard(&mut replies).map(|header| header.kind), Some(Kind::Refusal));
    assert_eq!(heard(&mut replies), None);
}
