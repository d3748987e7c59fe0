//! The time of each op on each back end: `cargo bench --package tread-tests`.
//!
//! A case is a step of a small graph: an embedding, the op, and a head for the last row. The group `step` is one
//! without an op, whose time is in all others. The CPU is the peer in the same run; bytes per second are the weights
//! that the op reads at least once.

use std::time::Duration;

use criterion::measurement::WallTime;
use criterion::{BenchmarkGroup, Criterion, Throughput, criterion_group, criterion_main};
use tread_core::backend::{BLOCK_SIZE, Backend, Batch, CompileOptions, KvDType};
use tread_core::graph::{Builder, EdgeDType, Graph, Heads, RopeStyle, ValueId};
use tread_core::tensor::DType;
use tread_tests::backends::{Sequence, backends, compile, step};
use tread_tests::ops::{case, tokens};
use tread_tests::random::{random_weights, rng};

const WIDTH: usize = 1024;
/// Positions in the cache before the step that is timed.
const CONTEXT: usize = 512;
const HEADS: Heads = Heads { heads: 16, kv_heads: 4, head_dim: 64 };

/// Rows of the steps that are timed: one decoded token, and a piece of a prompt.
const ROWS: [usize; 2] = [1, 64];

fn ops(c: &mut Criterion) {
    let on = backends();
    let mut bench = |name: &str, dtype: DType, ops: &dyn Fn(&mut Builder, ValueId) -> ValueId| {
        let graph = case(WIDTH, HEADS.head_dim, ops);
        for rows in ROWS {
            let mut group = c.benchmark_group(format!("{name}, {rows} rows"));
            group.sample_size(10).warm_up_time(Duration::from_millis(300));
            group.measurement_time(Duration::from_secs(1));
            on.iter().for_each(|backend| time(&mut group, &**backend, &graph, rows, dtype));
            group.finish();
        }
    };
    bench("step", DType::F32, &|_, x| x);
    for dtype in DType::ALL {
        bench(&format!("linear {dtype}"), dtype, &|b, x| {
            let weight = b.weight("w", &[2 * WIDTH, WIDTH]);
            b.linear(x, weight, "y")
        });
    }
    bench("rms_norm", DType::F32, &|b, x| {
        let norm = b.weight("norm", &[WIDTH]);
        b.rms_norm(x, norm, 1e-5, "y")
    });
    bench("add", DType::F32, &|b, x| b.add(x, x, "y"));
    bench("swiglu", DType::F32, &|b, x| b.swiglu(x, x, "y"));
    bench("rope", DType::F32, &|b, x| b.rope(x, HEADS.head_dim, RopeStyle::Half, "y"));
    bench("rope, kv_append and attention", DType::Q8_0, &|b, x| {
        let kv_width = HEADS.kv_heads * HEADS.head_dim;
        let [k, v] = ["k", "v"].map(|name| b.weight(name, &[kv_width, WIDTH]));
        let (k, v) = (b.linear(x, k, "k"), b.linear(x, v, "v"));
        let q = b.rope(x, HEADS.head_dim, RopeStyle::Half, "q_rope");
        let k = b.rope(k, HEADS.head_dim, RopeStyle::Half, "k_rope");
        b.attention(q, k, v, HEADS, 0.125)
    });
    bench("ffn", DType::Q4K, &|b, x| {
        let [gate, up] = ["gate", "up"].map(|name| b.weight(name, &[2 * WIDTH, WIDTH]));
        let down = b.weight("down", &[WIDTH, 2 * WIDTH]);
        let (gate, up) = (b.linear(x, gate, "gate"), b.linear(x, up, "up"));
        let act = b.swiglu(gate, up, "act");
        b.linear(act, down, "down")
    });
    bench("router_top_k and experts", DType::F8E4M3, &|b, x| {
        let (experts, width) = (16, 256);
        let router = b.weight("router", &[experts, WIDTH]);
        let [gate, up] = ["gate", "up"].map(|name| b.weight(name, &[experts, width, WIDTH]));
        let down = b.weight("down", &[experts, WIDTH, width]);
        let logits = b.linear(x, router, "router");
        let routing = b.router_top_k(logits, 3, true);
        b.experts(x, routing, [gate, up, down])
    });
    bench("router_top_k and combine", DType::F32, &|b, x| {
        let router = b.weight("router", &[16, WIDTH]);
        let logits = b.linear(x, router, "router");
        let routing = b.router_top_k(logits, 4, true);
        // Its slots are a quarter as wide.
        b.combine(x, routing)
    });
    for to in [EdgeDType::BF16, EdgeDType::F8] {
        bench(&format!("round to {}", to.name()), DType::F32, &|b, x| b.round(x, to));
    }
}

/// One row of the table: `rows` tokens after [`CONTEXT`] others, again and again.
fn time(
    group: &mut BenchmarkGroup<'_, WallTime>,
    backend: &dyn Backend,
    graph: &Graph,
    rows: usize,
    dtype: DType,
) {
    let ends = ["embed", "head", "router"];
    let weights =
        random_weights(&mut rng(1), graph, |name| if ends.contains(&name) { DType::F32 } else { dtype });
    let bytes =
        weights.iter().filter(|t| t.shape().len() > 1 && !ends.contains(&t.name())).map(|t| t.bytes()).sum();
    if bytes > 0 {
        group.throughput(Throughput::Bytes(bytes));
    }
    let options = CompileOptions::single(CONTEXT + rows, CONTEXT, KvDType::F32);
    let mut executable = compile(backend, graph, &weights, options);
    let blocks = (CONTEXT + rows).div_ceil(BLOCK_SIZE) as u32;
    let mut sequence = Sequence::new((0..blocks).collect());
    let mut batch = |rows: usize| {
        let mut rows = sequence.extend(&tokens(&mut rng(2), rows));
        rows.outputs = vec![rows.tokens.len() - 1];
        Batch { sequences: vec![rows], ..Batch::default() }
    };
    step(&mut *executable, &batch(CONTEXT));
    let batch = batch(rows);
    group.bench_function(backend.name(), |b| b.iter(|| step(&mut *executable, &batch)));
}

criterion_group!(benches, ops);
criterion_main!(benches);
