//! Every op, every format and every fused pattern against the CPU, on random data in awkward shapes.
//!
//! A case is a small graph: the embedding of random tokens, the ops under test, and a head. It runs twice: with every
//! value captured, so that each op stands alone, and with none, so that back ends may fuse. Whole layers run fused.

use std::ops::Range;

use rand::seq::SliceRandom as _;
use tread_core::backend::{BLOCK_SIZE, Backend, Batch, CompileOptions, KvDType};
use tread_core::config::{LlamaConfig, ModelConfig, Step3Config};
use tread_core::cpu::Cpu;
use tread_core::graph::{EdgeDType, Graph, Heads, Op, RopeStyle, Rows, ValueId};
use tread_core::models;
use tread_core::tensor::DType;
use tread_tests::backends::{Sequence, candidates, compile, relative_l2, step};
use tread_tests::ops::{VOCAB, case, inv_freq, tokens};
use tread_tests::random::{Rng, random_weights, rng};

/// The order of sums is all that may differ.
const LIMIT: f64 = 2e-5;
/// Half precision in the cache rounds some last bits the other way.
const LIMIT_F16: f64 = 2e-3;

/// Steps of one sequence each, with these numbers of rows.
fn steps(rng: &mut Rng, rows: &[usize]) -> Vec<Batch> {
    let step = |&rows| {
        let mut sequence = Sequence::new((0..BLOCKS as u32).collect());
        Batch { sequences: vec![sequence.extend(&tokens(rng, rows))], hidden: true, ..Batch::default() }
    };
    rows.iter().map(step).collect()
}

const BLOCKS: usize = 160;

fn options(kv_dtype: KvDType) -> CompileOptions {
    CompileOptions {
        kv_dtype,
        kv_blocks: BLOCKS,
        max_rows: 257,
        max_outputs: 257,
        max_table: 2 * BLOCKS,
        lanes: 1,
    }
}

/// Holds the other back ends against the CPU on a graph, first with every value captured and then with those that
/// the graph itself captures. `dtype` gives the formats of weights by name.
fn check(
    on: &Candidates,
    label: &str,
    graph: &Graph,
    kv: KvDType,
    batches: &[Batch],
    dtype: impl Fn(&str) -> DType,
) {
    check_every_value(on, label, graph, kv, batches, &dtype);
    check_fused(on, label, graph, kv, batches, &dtype);
}

/// The first half of [`check`].
fn check_every_value(
    on: &Candidates,
    label: &str,
    graph: &Graph,
    kv: KvDType,
    batches: &[Batch],
    dtype: impl Fn(&str) -> DType,
) {
    let mut graph = graph.clone();
    graph.hidden =
        (0..graph.values.len()).map(ValueId).filter(|&v| graph.value(v).rows == Rows::All).collect();
    check_fused(on, label, &graph, kv, batches, dtype);
}

type Candidates = Vec<(&'static str, Box<dyn Backend>)>;

/// The second half of [`check`].
fn check_fused(
    on: &Candidates,
    label: &str,
    graph: &Graph,
    kv: KvDType,
    batches: &[Batch],
    dtype: impl Fn(&str) -> DType,
) {
    let weights = random_weights(&mut rng(7), graph, dtype);
    let run = |backend: &dyn Backend| {
        let mut executable = compile(backend, graph, &weights, options(kv));
        batches.iter().map(|batch| step(&mut *executable, batch)).collect::<Vec<_>>()
    };
    let expected = run(&Cpu::new());
    for (name, backend) in on {
        let found = run(&**backend);
        for (at, (found, expected)) in found.iter().zip(&expected).enumerate() {
            assert_eq!(found.len(), 1 + graph.hidden.len());
            for (i, (found, expected)) in found.iter().zip(expected).enumerate() {
                let value = if i == 0 { graph.logits.expect("a whole graph") } else { graph.hidden[i - 1] };
                let label = format!("{name}: {label}, step {at}, {}", graph.value(value).name);
                assert_near(graph, value, kv, found, expected, &label);
            }
        }
    }
}

fn assert_near(graph: &Graph, value: ValueId, kv: KvDType, found: &[f32], expected: &[f32], label: &str) {
    let limit = match kv {
        KvDType::F32 => LIMIT,
        KvDType::F16 => LIMIT_F16,
    };
    let width = graph.value(value).width;
    let made_by = graph.nodes.iter().find(|n| n.output == Some(value)).map(|n| &n.op);
    if let Some(Op::RouterTopK { top_k, .. }) = made_by {
        assert_eq!(found.len(), expected.len(), "{label}");
        for (row, (found, expected)) in found.chunks(width).zip(expected.chunks(width)).enumerate() {
            let bits = |x: &[f32]| x.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
            assert_eq!(bits(&found[..*top_k]), bits(&expected[..*top_k]), "{label}: experts of row {row}");
            let error = relative_l2(&found[*top_k..], &expected[*top_k..]);
            assert!(error <= limit, "{label}: weights of row {row}: {error:e}");
        }
        return;
    }
    let error = relative_l2(found, expected);
    assert!(error <= limit, "{label}: relative L2 {error:e}");
    // One wrong row among many must not drown in the others.
    let size = expected.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>().sqrt();
    let row_size = size / ((expected.len() / width) as f64).sqrt();
    for (row, (found, expected)) in found.chunks(width).zip(expected.chunks(width)).enumerate() {
        let difference = found.iter().zip(expected).map(|(&a, &b)| (f64::from(a) - f64::from(b)).powi(2));
        let error = difference.sum::<f64>().sqrt();
        assert!(
            error <= 10.0 * limit * row_size,
            "{label}: row {row} is off by {error:e}, a row's size is {row_size:e}"
        );
    }
}

/// Widths that leave ragged ends in every way a format allows.
fn widths(dtype: DType) -> [usize; 2] {
    match dtype {
        DType::F32 => [1, 97],
        DType::F16 | DType::BF16 => [33, 200],
        DType::F8E4M3 => [1, 277],
        DType::Q8_0 | DType::Q4_0 | DType::Q4_1 => [96, 288],
        DType::Q4K | DType::Q6K => [256, 768],
    }
}

#[test]
fn linear_in_every_format_and_shape() {
    let on = candidates();
    for dtype in DType::ALL {
        for (width, outputs) in widths(dtype).into_iter().zip([&[1, 515][..], &[129]]) {
            let graph = case(width, 2, |b, x| {
                let mut linear = |&out| {
                    let weight = b.weight(format!("w{out}"), &[out, width]);
                    b.linear(x, weight, &format!("out{out}"))
                };
                outputs.iter().map(&mut linear).last().expect("an output")
            });
            let batches = steps(&mut rng(1), &[1, 2, 3, 5, 17, 65, 257, 1]);
            let label = format!("linear {dtype} of {width}");
            check_every_value(&on, &label, &graph, KvDType::F32, &batches, |name| {
                if name.starts_with('w') { dtype } else { DType::F32 }
            });
        }
    }
}

#[test]
fn embedding_in_every_format() {
    let on = candidates();
    for dtype in DType::ALL {
        for width in widths(dtype) {
            let graph = case(width, 2, |_, x| x);
            let batches = steps(&mut rng(2), &[1, 5, 257]);
            check_fused(
                &on,
                &format!("embedding {dtype} of {width}"),
                &graph,
                KvDType::F32,
                &batches,
                |name| {
                    if name == "embed" { dtype } else { DType::F32 }
                },
            );
        }
    }
}

#[test]
fn norms_of_every_width() {
    let on = candidates();
    let graph = case(8, 2, |b, x| {
        let mut last = x;
        for width in [1, 31, 257, 1030, 4100] {
            let (weight, norm) = (b.weight(format!("w{width}"), &[width, 8]), b.weight("norm", &[width]));
            let y = b.linear(x, weight, &format!("x{width}"));
            last = b.rms_norm(y, norm, 1e-5, &format!("norm{width}"));
        }
        last
    });
    check_every_value(&on, "norm", &graph, KvDType::F32, &steps(&mut rng(3), &[1, 2, 17, 257]), |_| {
        DType::F32
    });
}

#[test]
fn dense_ffn_in_mixed_formats() {
    let on = candidates();
    let mixes = [
        [DType::Q4K, DType::Q4K, DType::Q6K],
        [DType::Q4K, DType::Q6K, DType::Q4K],
        [DType::BF16, DType::F8E4M3, DType::Q8_0],
    ];
    for mix in mixes {
        let graph = case(256, 2, |b, x| {
            let norm = b.weight("norm", &[256]);
            let [gate, up] = ["gate", "up"].map(|name| b.weight(name, &[512, 256]));
            let down = b.weight("down", &[256, 512]);
            let h = b.rms_norm(x, norm, 1e-6, "h");
            let (gate, up) = (b.linear(h, gate, "gate"), b.linear(h, up, "up"));
            let act = b.swiglu(gate, up, "act");
            let y = b.linear(act, down, "down");
            b.add(x, y, "sum")
        });
        let batches = steps(&mut rng(4), &[1, 2, 3, 17, 65]);
        check(&on, &format!("ffn {mix:?}"), &graph, KvDType::F32, &batches, |name| match name {
            "gate" => mix[0],
            "up" => mix[1],
            "down" => mix[2],
            _ => DType::F32,
        });
    }
}

/// Two sequences in shuffled blocks: a long one in `chunks`, then rows of both together.
fn long_and_short(rng: &mut Rng, chunks: &[usize]) -> Vec<Batch> {
    let mut blocks: Vec<u32> = (0..BLOCKS as u32).collect();
    blocks.shuffle(rng);
    let (short, long) = blocks.split_at(BLOCKS / 4);
    let (mut short, mut long) = (Sequence::new(short.to_vec()), Sequence::new(long.to_vec()));
    let mut alone =
        |rows| Batch { sequences: vec![long.extend(&tokens(rng, rows))], hidden: true, ..Batch::default() };
    let mut batches: Vec<_> = chunks.iter().map(|&rows| alone(rows)).collect();
    for rows in [[1, 33], [17, 1], [1, 1], [5, 3]] {
        let [a, b] = rows.map(|rows| tokens(rng, rows));
        batches.push(Batch {
            sequences: vec![long.extend(&a), short.extend(&b)],
            hidden: true,
            ..Batch::default()
        });
    }
    batches.push(Batch { sequences: vec![long.extend(&tokens(rng, 1))], hidden: true, ..Batch::default() });
    batches
}

#[test]
fn attention_of_every_geometry() {
    let on = candidates();
    let geometries =
        [(1, 1, 32), (3, 1, 64), (6, 3, 80), (6, 1, 112), (3, 3, 128), (6, 3, 256), (9, 3, 64), (32, 1, 64)];
    for (at, (heads, kv_heads, head_dim)) in geometries.into_iter().enumerate() {
        for kv in [KvDType::F32, KvDType::F16].into_iter().take(1 + at % 2) {
            let style = [RopeStyle::Half, RopeStyle::Interleaved][(at / 2 + kv.bytes() / 4) % 2];
            let heads = Heads { heads, kv_heads, head_dim };
            let graph = case(48, head_dim, |b, x| {
                let q = b.weight("q", &[heads.heads * head_dim, 48]);
                let [k, v] = ["k", "v"].map(|name| b.weight(name, &[kv_heads * head_dim, 48]));
                let (q, k, v) = (b.linear(x, q, "q"), b.linear(x, k, "k"), b.linear(x, v, "v"));
                let q = b.rope(q, head_dim, style, "q_rope");
                let k = b.rope(k, head_dim, style, "k_rope");
                // Sharper than a model's, so that a few positions count and not the mean of all.
                b.attention(q, k, v, heads, 3.0 * (head_dim as f32).powf(-0.5))
            });
            let label = format!("attention {heads:?} {style:?} KV {kv:?}");
            // One geometry with positions beyond 1,100.
            let chunks: &[usize] =
                if at == 0 { &[257, 257, 257, 257, 65] } else { &[1, 2, BLOCK_SIZE - 3, 1, 65, 257] };
            check(&on, &label, &graph, kv, &long_and_short(&mut rng(5), chunks), |_| DType::F32);
        }
    }
}

#[test]
fn router_and_experts() {
    let on = candidates();
    // Experts, chosen, width, renormalised, format of gate and up, format of down.
    let cases = [
        (1, 1, 33, false, DType::F32, DType::F32),
        (4, 4, 72, true, DType::BF16, DType::BF16),
        (7, 3, 144, false, DType::F8E4M3, DType::F8E4M3),
        (48, 3, 64, true, DType::F16, DType::F16),
        (5, 2, 256, true, DType::Q4K, DType::Q6K),
        (6, 1, 96, false, DType::Q8_0, DType::Q4_0),
        (9, 9, 32, true, DType::Q4_1, DType::Q4_1),
        (130, 8, 40, false, DType::BF16, DType::F8E4M3),
    ];
    for (experts, top_k, width, renormalize, gate_up, down) in cases {
        let hidden = 256;
        let graph = case(hidden, 2, |b, x| {
            let router = b.weight("router", &[experts, hidden]);
            let [gate, up] = ["gate", "up"].map(|name| b.weight(name, &[experts, width, hidden]));
            let down = b.weight("down", &[experts, hidden, width]);
            let logits = b.linear(x, router, "router");
            let routing = b.router_top_k(logits, top_k, renormalize);
            let slots = b.experts(x, routing, [gate, up, down]);
            let y = b.combine(slots, routing);
            b.add(x, y, "sum")
        });
        let label = format!("{top_k} of {experts} experts of {width} in {gate_up} and {down}");
        let batches = steps(&mut rng(6), &[1, 2, 5, 17, 65, 257]);
        let format = |name: &str| match name {
            "gate" | "up" => gate_up,
            "down" => down,
            _ => DType::F32,
        };
        check(&on, &label, &graph, KvDType::F32, &batches, format);
        if experts > 2 {
            let held = 1 + experts / 3..experts - 1;
            let label = format!("{label}, of which {held:?} are here");
            check(&on, &label, &holding(graph, held), KvDType::F32, &batches, format);
        }
    }
}

/// The graph where only some of the experts are here.
fn holding(mut graph: Graph, held: Range<usize>) -> Graph {
    for node in &mut graph.nodes {
        if let Op::ExpertsGateUp { first, .. } | Op::ExpertsDown { first, .. } = &mut node.op {
            *first = held.start;
            node.op.weights().iter().for_each(|w| graph.weights[w.0].shape[0] = held.len());
        }
    }
    graph
}

/// Rounded values are read as others are, and written where others were.
#[test]
fn rounding_between_other_ops() {
    let on = candidates();
    for to in [EdgeDType::BF16, EdgeDType::F8] {
        let graph = case(200, 2, |b, x| {
            let norm = b.weight("norm", &[200]);
            let [first, second] = ["first", "second"].map(|name| b.weight(name, &[200, 200]));
            let h = b.rms_norm(x, norm, 1e-5, "h");
            let h = b.round(h, to);
            let y = b.linear(h, first, "y");
            let y = b.linear(y, second, "z");
            let y = b.add(x, y, "sum");
            b.round(y, EdgeDType::F32)
        });
        let batches = steps(&mut rng(11), &[1, 2, 65, 257]);
        check_fused(&on, &format!("rounding to {to:?}"), &graph, KvDType::F32, &batches, |_| DType::F32);
    }
}

fn step3(moe_layers: Vec<bool>, size: usize) -> Graph {
    models::graph(&ModelConfig::Step3(Step3Config {
        hidden_size: size,
        intermediate_size: size,
        num_layers: moe_layers.len(),
        num_heads: 8,
        num_kv_heads: 1,
        head_dim: 32,
        query_rank: size,
        vocab_size: VOCAB,
        context_length: 4096,
        rms_norm_eps: 1e-5,
        inv_freq: inv_freq(32),
        moe_layers,
        num_experts: 5,
        top_k: 2,
        moe_intermediate_size: size,
        shared_expert_size: size,
        norm_expert_weight: false,
        tie_word_embeddings: false,
    }))
}

fn llama(tie_word_embeddings: bool, rope_style: RopeStyle) -> Graph {
    models::graph(&ModelConfig::Llama(LlamaConfig {
        hidden_size: 256,
        intermediate_size: 768,
        num_layers: 2,
        num_heads: 4,
        num_kv_heads: 2,
        head_dim: 64,
        vocab_size: VOCAB,
        context_length: 4096,
        rms_norm_eps: 1e-5,
        inv_freq: inv_freq(64),
        rope_style,
        tie_word_embeddings,
    }))
}

/// Prefill, decode, and two sequences at once.
fn mixed_steps(rng: &mut Rng) -> Vec<Batch> {
    let mut a = Sequence::new((0..20).rev().collect());
    let mut b = Sequence::new((20..40).collect());
    let mut one =
        |rows| Batch { sequences: vec![a.extend(&tokens(rng, rows))], hidden: true, ..Batch::default() };
    let mut batches = vec![one(37), one(1), one(2)];
    batches.push(Batch {
        sequences: vec![b.extend(&tokens(rng, 18)), a.extend(&tokens(rng, 1))],
        hidden: true,
        ..Batch::default()
    });
    batches.push(Batch {
        sequences: vec![a.extend(&tokens(rng, 1)), b.extend(&tokens(rng, 1))],
        hidden: true,
        ..Batch::default()
    });
    batches
}

#[test]
fn step3_layers() {
    let on = candidates();
    let batches = mixed_steps(&mut rng(8));
    for dtype in [DType::BF16, DType::F8E4M3, DType::Q4K] {
        let graph = step3(vec![false, true], 256);
        check_fused(&on, &format!("step3 {dtype}"), &graph, KvDType::F32, &batches, |name| {
            // As checkpoints have it: embedding, head and router stay floats.
            let float = ["embed", "head", "moe.gate."].iter().any(|part| name.contains(part));
            if float { DType::BF16 } else { dtype }
        });
    }
    // Ragged everywhere, as only float formats can be.
    for dtype in [DType::F16, DType::F8E4M3] {
        let label = format!("ragged step3 {dtype}");
        check_fused(&on, &label, &step3(vec![true], 171), KvDType::F16, &batches, |_| dtype);
    }
}

#[test]
fn llama_layers_in_every_format_and_mix() {
    let on = candidates();
    let batches = mixed_steps(&mut rng(9));
    for dtype in DType::ALL {
        let graph = llama(dtype.block_len() > 1, RopeStyle::Interleaved);
        check_fused(&on, &format!("llama {dtype}"), &graph, KvDType::F32, &batches, |_| dtype);
    }
    // As Q4_K_M files mix them: v, down and embedding with more bits than the rest.
    let graph = llama(true, RopeStyle::Half);
    check_fused(&on, "llama Q4_K_M", &graph, KvDType::F16, &batches, |name| {
        let more = ["v_proj", "down_proj", "embed"].iter().any(|part| name.contains(part));
        if more { DType::Q6K } else { DType::Q4K }
    });
    // No two neighbours alike.
    check_fused(&on, "llama, all mixed", &llama(false, RopeStyle::Half), KvDType::F32, &batches, |name| {
        DType::ALL[name.bytes().map(usize::from).sum::<usize>() % DType::ALL.len()]
    });
}
