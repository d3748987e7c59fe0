//! A graph that is cut gives bit for bit what it gives whole: over any number of workers, any number of micro-batches,
//! and with edges of every type.

mod tensor_parallel;

use std::sync::Arc;

use rand::RngExt as _;
use tread_core::afd::{Layout, LocalFfn, Pipeline, Sharding, Worker};
use tread_core::backend::{Backend, Batch, CompileOptions, Executable as _, KvDType};
use tread_core::cpu::Cpu;
use tread_core::graph::{EdgeDType, Graph, Part};
use tread_core::monitor::STAGES;
use tread_core::tensor::Tensor;
use tread_tests::backends::{Sequence, candidates, compile, relative_l2, step};
use tread_tests::models::{self, VOCAB};
use tread_tests::random::rng;

const BLOCKS: usize = 64;
const ROWS: usize = 64;

fn options(lanes: usize) -> CompileOptions {
    CompileOptions {
        kv_dtype: KvDType::F32,
        kv_blocks: BLOCKS,
        max_rows: ROWS,
        max_outputs: ROWS,
        max_table: 4 * BLOCKS,
        lanes,
    }
}

/// A Step-3 with dense layers at both ends, as the real one has.
fn step3() -> (Graph, Vec<Tensor>) {
    models::step3(&[false, true, true, true, false])
}

fn llama() -> (Graph, Vec<Tensor>) {
    models::llama(3)
}

/// The graph over a pool of `workers`, all on the same device as each other.
fn pipeline(
    (attention, ffn): (&dyn Backend, &dyn Backend),
    (graph, weights): &(Graph, Vec<Tensor>),
    sharding: Sharding,
    workers: usize,
    lanes: usize,
) -> Pipeline {
    let layout = Arc::new(Layout::new(graph, sharding, workers).expect("enough for every worker"));
    let worker = |shard| {
        pollster::block_on(Worker::new(Arc::clone(&layout), shard, weights, ffn, ROWS, &mut |_, _| {}))
            .expect("a shard")
    };
    let ffn = LocalFfn::new(Arc::clone(&layout), (0..workers).map(worker).collect());
    let part = graph.part(&Part::Attention).expect("a part");
    let weights = part.bind(weights).expect("weights");
    let attention = compile(attention, &part.graph, &weights, options(lanes));
    Pipeline::new(part.graph, attention, Box::new(ffn))
}

/// The model as it is when its FFNs are spread in this way and activations cross in this type.
fn spread(
    (graph, weights): &(Graph, Vec<Tensor>),
    sharding: Sharding,
    dtype: EdgeDType,
) -> (Graph, Vec<Tensor>) {
    let graph = match sharding {
        Sharding::Layers => graph.clone(),
        Sharding::Experts => graph.clone().combined_on_attention(),
    };
    (graph.rounded(dtype), weights.clone())
}

/// A prefill in two chunks, three sequences together, decoding with a copied block.
fn batches() -> Vec<Batch> {
    let mut rng = rng(3);
    let mut tokens = |rows| (0..rows).map(|_| rng.random_range(0..VOCAB as u32)).collect::<Vec<_>>();
    let mut a = Sequence::new((0..8).rev().collect());
    let (mut b, mut c) = (Sequence::new((8..16).collect()), Sequence::new((16..24).collect()));
    let batch = |sequences| Batch { sequences, hidden: true, features: true, ..Batch::default() };
    let mut batches = vec![batch(vec![a.extend(&tokens(29))]), batch(vec![a.extend(&tokens(1))])];
    batches.push(batch(vec![b.extend(&tokens(17)), a.extend(&tokens(3)), c.extend(&tokens(1))]));
    let mut fork = c.clone().in_blocks(vec![40]);
    let sequences =
        vec![a.extend(&tokens(1)), b.extend(&tokens(1)), c.extend(&tokens(1)), fork.extend(&tokens(2))];
    batches.push(Batch { copies: vec![(16, 40)], ..batch(sequences) });
    // Logits of few rows.
    let mut rows = a.extend(&tokens(9));
    rows.outputs = vec![3, 8];
    batches.push(batch(vec![rows, c.extend(&tokens(1))]));
    batches
}

fn assert_same(found: &[Vec<f32>], expected: &[Vec<f32>], label: &str) {
    assert_eq!(found.len(), expected.len(), "{label}");
    for (at, (found, expected)) in found.iter().zip(expected).enumerate() {
        assert!(found == expected, "{label}: value {at}, relative L2 {:e}", relative_l2(found, expected));
    }
}

fn check(backend_name: &str, backend: &dyn Backend, name: &str, model: &(Graph, Vec<Tensor>)) {
    let shapes: &[(Sharding, usize)] = match name {
        "step3" => &[
            (Sharding::Layers, 1),
            (Sharding::Layers, 2),
            (Sharding::Layers, 5),
            (Sharding::Experts, 1),
            (Sharding::Experts, 2),
            (Sharding::Experts, 7),
        ],
        _ => &[(Sharding::Layers, 1), (Sharding::Layers, 2)],
    };
    let batches = batches();
    let mut plain = vec![];
    for dtype in [EdgeDType::F32, EdgeDType::BF16, EdgeDType::F8] {
        for &(sharding, workers) in shapes {
            let model = spread(model, sharding, dtype);
            let mut whole = compile(backend, &model.0, &model.1, options(1));
            let expected: Vec<_> = batches.iter().map(|batch| step(&mut *whole, batch)).collect();
            if dtype == EdgeDType::F32 && plain.is_empty() {
                plain.clone_from(&expected);
            }
            // Rounding changes something, and not everything; who adds up the experts changes nothing else.
            let off = relative_l2(&expected[0][0], &plain[0][0]);
            let bounds = match dtype {
                EdgeDType::F32 => 0.0..=0.0,
                EdgeDType::BF16 => 1e-5..=3e-2,
                EdgeDType::F8 => 1e-4..=3e-1,
            };
            assert!(
                bounds.contains(&off),
                "{backend_name}, {name}: {} edges are off by {off:e}",
                dtype.name()
            );
            for lanes in [1, 2, 3] {
                let label = format!(
                    "{backend_name}, {name} by {sharding:?} on {workers} with {lanes} micro-batches, {} edges",
                    dtype.name()
                );
                let mut cut = pipeline((backend, backend), &model, sharding, workers, lanes);
                for (at, (batch, expected)) in batches.iter().zip(&expected).enumerate() {
                    assert_same(&step(&mut cut, batch), expected, &format!("{label}, step {at}"));
                }
            }
        }
    }
}

#[test]
fn a_cut_graph_equals_a_whole_one_on_the_cpu() {
    check("cpu", &Cpu::new(), "step3", &step3());
    check("cpu", &Cpu::new(), "llama", &llama());
}

#[test]
fn a_cut_graph_equals_a_whole_one_on_gpus() {
    for (backend_name, backend) in candidates() {
        check(backend_name, &*backend, "step3", &step3());
        check(backend_name, &*backend, "llama", &llama());
    }
}

/// While a micro-batch is with the FFNs, attention computes another one.
#[test]
fn micro_batches_overlap() {
    let [attention, a2f, ffn, f2a] = STAGES;
    let model = step3();
    let batch = &batches()[2];
    for lanes in [1, 3] {
        let mut pipeline = pipeline((&Cpu::new(), &Cpu::new()), &model, Sharding::Layers, 2, lanes);
        pipeline.profile_next();
        step(&mut pipeline, batch);
        let trace = pipeline.take_profile();
        assert_eq!(trace.len(), lanes * (6 + 5 * 3));
        let of = |name: &str, layer: usize, micro_batch: usize| {
            // Behind the last layer there is none.
            let layer = (layer < 5).then_some(layer);
            let stage = trace
                .iter()
                .find(|s| (s.name.as_str(), s.layer, s.micro_batch) == (name, layer, micro_batch));
            stage.unwrap_or_else(|| panic!("no {name} of layer {layer:?} for micro-batch {micro_batch}"))
        };
        for layer in 0..5 {
            for lane in 0..lanes {
                let chain = [
                    of(attention, layer, lane),
                    of(a2f, layer, lane),
                    of(ffn, layer, lane),
                    of(f2a, layer, lane),
                    of(attention, layer + 1, lane),
                ];
                for pair in chain.windows(2) {
                    assert!(pair[0].start_us + pair[0].us <= pair[1].start_us + 1e-3, "{pair:?}");
                }
                // All others are posted before this one's answer is taken.
                let back = chain[3].start_us + chain[3].us;
                for other in lane + 1..lanes {
                    assert!(of(a2f, layer, other).start_us <= back, "layer {layer}: {other} after {lane}");
                }
            }
        }
    }
}

#[test]
fn what_cannot_be_spread_is_refused() {
    let (graph, _) = llama();
    for (sharding, workers, expected) in [
        (Sharding::Layers, 4, "3 layers"),
        (Sharding::Layers, 0, "at least one"),
        (Sharding::Experts, 1, "0 experts"),
    ] {
        let error = Layout::new(&graph, sharding, workers).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    }
    let error = Layout::new(&step3().0, Sharding::Experts, 2).unwrap_err().to_string();
    assert!(error.contains("added up by attention"), "{error}");
}

/// Together the parts have every weight, and only their own.
#[test]
fn each_part_has_its_own_weights_only() {
    let (graph, weights) = step3();
    let graph = graph.combined_on_attention();
    let bytes = |weights: &[Tensor]| weights.iter().map(Tensor::bytes).sum::<u64>();
    let attention = graph.part(&Part::Attention).unwrap();
    let of_attention = attention.bind(&weights).unwrap();
    assert!(of_attention.iter().all(|t| !t.name().contains("mlp.") && !t.name().contains("_proj.weight")
        || t.name().contains("self_attn")));
    for (sharding, workers) in [(Sharding::Layers, 3), (Sharding::Experts, 3)] {
        let layout = Layout::new(&graph, sharding, workers).unwrap();
        let shards = layout.shards.iter().map(|s| bytes(&s.graph.bind(&weights).unwrap()));
        assert_eq!(bytes(&of_attention) + shards.sum::<u64>(), bytes(&weights), "{sharding:?}");
    }
}
