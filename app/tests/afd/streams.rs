//! Sixteen streams at a time, and what they say over pools of every kind.

use std::collections::HashMap;
use std::sync::Arc;

use tread::afd::{AfdOptions, load};
use tread_core::afd::Sharding;
use tread_core::backend::Executable;
use tread_core::cpu::Cpu;
use tread_core::engine::{Engine, EngineOptions, Event, Generate, Request, RequestId, Task};
use tread_core::graph::EdgeDType;
use tread_core::model::Model;
use tread_core::sampling::SamplingParams;

use crate::models::{CONTEXT, STREAMS, model, options, whole};

/// Tokens of an answer: few where they take long.
fn tokens(model: &Model) -> usize {
    if model.weight_bytes() < 50 << 20 { 24 } else { 8 }
}

/// Attention on the CPU, FFNs wherever `afd` says.
pub(crate) fn executable(model: &Model, afd: &AfdOptions) -> anyhow::Result<Box<dyn Executable>> {
    pollster::block_on(load(model, &Cpu::new(), options(), afd, &mut |_, _| {}))
}

pub(crate) fn engine(model: &Arc<Model>, executable: Box<dyn Executable>) -> Engine {
    let options = EngineOptions { context_length: CONTEXT, max_sequences: STREAMS, prefix_cache: true };
    Engine::new(Arc::clone(model), executable, options)
}

/// Some streams greedily, some at random.
fn request(model: &Model, id: u64) -> Request {
    let vocab = model.config.vocab_size() as u64;
    let prompt =
        (0..3 + 5 * id).map(|at| ((at * at + 31 * id + 7 * at) % (vocab - 20) + 20) as u32).collect();
    let sampling = match id % 2 {
        0 => SamplingParams::greedy(),
        _ => SamplingParams { temperature: 1.0, seed: Some(id), ..SamplingParams::default() },
    };
    let generate = Generate { sampling, max_tokens: tokens(model), ignore_eos: true, ..Generate::default() };
    Request { prompt, task: Task::Generate(Box::new(generate)) }
}

/// What all streams say; `at_step` may interfere before each step.
pub(crate) fn run(
    model: &Model,
    engine: &mut Engine,
    mut at_step: impl FnMut(usize),
) -> tread_core::Result<Vec<Vec<u32>>> {
    for id in 0..STREAMS as u64 {
        engine.submit(RequestId(id), request(model, id))?;
    }
    let mut said: HashMap<u64, Vec<u32>> = HashMap::new();
    let mut steps = 0;
    while engine.has_work() {
        at_step(steps);
        steps += 1;
        let events = match pollster::block_on(engine.step()) {
            Ok(events) => events,
            Err(error) => {
                (0..STREAMS as u64).for_each(|id| engine.abort(RequestId(id)));
                return Err(error);
            }
        };
        for (RequestId(id), event) in events {
            match event {
                Event::Delta(delta) => said.entry(id).or_default().extend(delta.token),
                Event::Failed(error) => return Err(error),
                _ => {}
            }
        }
    }
    let all: Vec<_> = (0..STREAMS as u64).map(|id| said.remove(&id).unwrap_or_default()).collect();
    assert!(all.iter().all(|said| said.len() == tokens(model)), "tokens are lost or doubled");
    Ok(all)
}

/// What they say on one device.
pub(crate) fn expected(model: &Arc<Model>, sharding: Sharding, dtype: EdgeDType) -> Vec<Vec<u32>> {
    run(model, &mut engine(model, whole(model, sharding, dtype)), |_| ()).unwrap()
}

#[test]
fn devices_of_this_process_say_what_one_device_says() {
    for name in ["nano", "step3-tiny", "step3-tiny-fp8"] {
        let model = model(name);
        for (ffn, sharding, dtype) in [
            ("cpu", Sharding::Layers, EdgeDType::F32),
            ("cpu,cpu", Sharding::Layers, EdgeDType::F8),
            ("cpu,cpu,cpu", Sharding::Experts, EdgeDType::BF16),
        ] {
            let afd = AfdOptions { sharding, dtype, ..AfdOptions::new(ffn.parse().unwrap()) };
            let found = run(&model, &mut engine(&model, executable(&model, &afd).unwrap()), |_| ()).unwrap();
            assert_eq!(found, expected(&model, sharding, dtype), "{name} over {ffn}");
        }
    }
}

#[test]
fn devices_of_this_process_compute_a_shard_together() {
    // Nano's experts have two blocks of FP8 scales.
    for (name, ffn) in [("nano", "cpu+cpu,cpu"), ("step3-tiny", "cpu+cpu,cpu+cpu+cpu")] {
        let model = model(name);
        let dtype = EdgeDType::BF16;
        let afd = AfdOptions { dtype, ..AfdOptions::new(ffn.parse().unwrap()) };
        let found = run(&model, &mut engine(&model, executable(&model, &afd).unwrap()), |_| ()).unwrap();
        assert_eq!(found, expected(&model, Sharding::Layers, dtype), "{name}");
    }
}

/// Two back ends do not agree to the last bit, but they work together.
#[test]
fn different_devices_share_a_model() {
    let model = model("step3-tiny");
    let afd = AfdOptions { sharding: Sharding::Experts, ..AfdOptions::new("cpu,wgpu".parse().unwrap()) };
    let found = executable(&model, &afd).unwrap();
    assert!(found.stats().weight_bytes > 0);
    run(&model, &mut engine(&model, found), |_| ()).unwrap();
}
