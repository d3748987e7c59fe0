//! How a sequence is cut into steps, and what else is in the batch, must not show in the results.

use rand::RngExt as _;
use rand::seq::SliceRandom as _;
use tread_core::backend::{Backend, Batch, CompileOptions, Executable, KvDType};
use tread_core::cpu::Cpu;
use tread_core::graph::{Graph, Side};
use tread_core::monitor::OpTime;
use tread_core::tensor::Tensor;
use tread_tests::backends::{Sequence, candidates, compile, relative_l2, step};
use tread_tests::models::{self, VOCAB};
use tread_tests::random::rng;

const BLOCKS: usize = 64;

fn options(kv_dtype: KvDType) -> CompileOptions {
    CompileOptions { kv_dtype, kv_blocks: BLOCKS, max_rows: 128, max_outputs: 128, max_table: 128, lanes: 1 }
}

fn step3() -> (Graph, Vec<Tensor>) {
    models::step3(&[false, true, true])
}

fn llama() -> (Graph, Vec<Tensor>) {
    models::llama(2)
}

/// The CPU and all that is held against it.
fn back_ends() -> impl Iterator<Item = (&'static str, Box<dyn Backend>)> {
    let cpu: Box<dyn Backend> = Box::new(Cpu::new());
    [("cpu", cpu)].into_iter().chain(candidates())
}

/// Runs `test` for every model, back end and cache type with a label.
fn everywhere(test: impl Fn(&mut dyn Executable, &str)) {
    for (backend_name, backend) in back_ends() {
        for (name, (graph, weights)) in [("step3", step3()), ("llama", llama())] {
            for kv in [KvDType::F32, KvDType::F16] {
                let mut executable = compile(&*backend, &graph, &weights, options(kv));
                test(&mut *executable, &format!("{backend_name}, {name}, KV {kv:?}"));
            }
        }
    }
}

/// Every bit must agree.
fn assert_same(found: &[f32], expected: &[f32], label: &str) {
    assert!(found == expected, "{label}: relative L2 {:e}", relative_l2(found, expected));
}

/// The logits of `tokens`, fed in chunks of the given lengths (repeated) into shuffled blocks.
fn logits(executable: &mut dyn Executable, tokens: &[u32], chunks: &[usize]) -> Vec<f32> {
    let mut blocks: Vec<u32> = (0..BLOCKS as u32).collect();
    blocks.shuffle(&mut rng(chunks.len() as u64));
    let mut sequence = Sequence::new(blocks);
    let (mut logits, mut rest) = (vec![], tokens);
    for &chunk in chunks.iter().cycle() {
        let (now, later) = rest.split_at(chunk.min(rest.len()));
        rest = later;
        let batch = Batch { sequences: vec![sequence.extend(now)], ..Batch::default() };
        logits.extend(step(executable, &batch).swap_remove(0));
        if rest.is_empty() {
            break;
        }
    }
    logits
}

fn tokens(seed: u64, len: usize) -> Vec<u32> {
    let mut rng = rng(seed);
    (0..len).map(|_| rng.random_range(0..VOCAB as u32)).collect()
}

#[test]
fn decoding_equals_prefilling_however_it_is_cut() {
    everywhere(|executable, label| {
        let tokens = tokens(3, 75);
        let mut run = |chunks: &[usize]| logits(executable, &tokens, chunks);
        let at_once = run(&[75]);
        assert_same(&run(&[1]), &at_once, &format!("{label}, one at a time"));
        assert_same(&run(&[1, 16, 3, 31, 2, 15, 7]), &at_once, &format!("{label}, ragged"));
        assert_same(&run(&[64, 1, 10]), &at_once, &format!("{label}, ragged in other blocks"));
    });
}

#[test]
fn batched_sequences_equal_each_alone() {
    everywhere(|executable, label| {
        for count in [2, 5] {
            let prompts: Vec<_> = (0..count).map(|i| tokens(10 + i as u64, 20 + 7 * i)).collect();
            let alone: Vec<_> = prompts.iter().map(|p| logits(executable, p, &[usize::MAX])).collect();
            let together = batched(executable, &prompts);
            for (i, (together, alone)) in together.iter().zip(&alone).enumerate() {
                assert_same(together, alone, &format!("{label}, sequence {i} of {count}"));
            }
        }
    });
}

/// The logits of each prompt, all fed together: every step gives sequence i another number of rows, decode beside
/// prefill, and the blocks of the sequences lie interleaved.
fn batched(executable: &mut dyn Executable, prompts: &[Vec<u32>]) -> Vec<Vec<f32>> {
    let count = prompts.len();
    let mut sequences: Vec<_> = (0..count)
        .map(|i| {
            Sequence::new((0..BLOCKS as u32 / count as u32).map(|b| b * count as u32 + i as u32).collect())
        })
        .collect();
    let mut logits = vec![vec![]; count];
    let mut fed = vec![0; count];
    for turn in 0.. {
        let mut batch = Batch::default();
        let mut members = vec![];
        for i in 0..count {
            let rows = [1, 9, 17, 2][(turn + i) % 4].min(prompts[i].len() - fed[i]);
            if rows == 0 {
                continue;
            }
            batch.sequences.push(sequences[i].extend(&prompts[i][fed[i]..][..rows]));
            members.push((i, rows));
            fed[i] += rows;
        }
        if members.is_empty() {
            break;
        }
        let output = step(executable, &batch).swap_remove(0);
        let mut rest = output.as_slice();
        for (i, rows) in members {
            let (own, others) = rest.split_at(rows * VOCAB);
            logits[i].extend_from_slice(own);
            rest = others;
        }
        assert!(rest.is_empty());
    }
    logits
}

#[test]
fn a_fork_goes_on_in_a_copied_block() {
    everywhere(|executable, label| {
        let (shared, ends) = (tokens(5, 21), [tokens(6, 9), tokens(7, 9)]);
        let alone = ends.each_ref().map(|end| logits(executable, &[&shared[..], end].concat(), &[21, 9]));
        let mut trunk = Sequence::new(vec![3, 8]);
        step(executable, &Batch { sequences: vec![trunk.extend(&shared)], ..Batch::default() });
        // The fork gets a block of its own for what follows position 16, by way of another: copies come in order.
        let mut fork = trunk.clone().in_blocks(vec![3, 5]);
        let batch = Batch {
            sequences: vec![trunk.extend(&ends[0]), fork.extend(&ends[1])],
            copies: vec![(8, 40), (40, 5)],
            ..Batch::default()
        };
        let found = step(executable, &batch).swap_remove(0);
        let (first, second) = found.split_at(9 * VOCAB);
        assert_same(first, &alone[0][21 * VOCAB..], &format!("{label}, trunk"));
        assert_same(second, &alone[1][21 * VOCAB..], &format!("{label}, fork"));
    });
}

/// Measuring a step changes nothing in it, and says of every part of the model how long it took.
#[test]
fn a_measured_step_computes_the_same() {
    everywhere(|executable, label| {
        let batch = |count| {
            let tokens = tokens(21, count);
            let mut sequence = Sequence::new((0..BLOCKS as u32).collect());
            Batch { sequences: vec![sequence.extend(&tokens)], ..Batch::default() }
        };
        for count in [1, 20, 100] {
            let plain = step(executable, &batch(count)).swap_remove(0);
            assert!(executable.take_profile().is_empty(), "{label}: measured unasked");
            executable.profile_next();
            let start = std::time::Instant::now();
            let measured = step(executable, &batch(count)).swap_remove(0);
            let took = start.elapsed().as_secs_f64() * 1e6;
            assert_same(&measured, &plain, &format!("{label}, {count} rows"));
            let ops = executable.take_profile();
            check_profile(&ops, took, label);
            let dispatches = executable.stats().dispatches;
            assert!(dispatches == 0 || dispatches == ops.len(), "{label}: {dispatches} launches");
            step(executable, &batch(count));
            assert!(executable.take_profile().is_empty(), "{label}: measured once more");
        }
    });
}

fn check_profile(ops: &[OpTime], took: f64, label: &str) {
    let sum: f64 = ops.iter().map(|op| op.us).sum();
    assert!(!ops.is_empty() && sum > 0.0 && sum <= took, "{label}: {} ops, {sum} of {took} us", ops.len());
    assert!(ops.iter().all(|op| op.start_us >= 0.0 && op.us >= 0.0), "{label}: {ops:?}");
    let has = |name: &str, layer: Option<usize>, side: Side| {
        ops.iter().any(|op| op.name.starts_with(name) && op.layer == layer && op.side == side)
    };
    assert!(has("embed", None, Side::Attention), "{label}: {ops:?}");
    assert!(has("linear", None, Side::Attention), "{label}, the head: {ops:?}");
    for layer in [0, 1] {
        assert!(has("attention", Some(layer), Side::Attention), "{label}: {ops:?}");
        assert!(has("linear", Some(layer), Side::Attention), "{label}: {ops:?}");
        // The last product of an FFN is an FFN's, though the residual is added to it in one kernel.
        assert!(has("linear", Some(layer), Side::Ffn), "{label}: {ops:?}");
    }
    assert!(!has("attention", Some(0), Side::Ffn) && !has("embed", Some(0), Side::Attention), "{label}");
}

/// What the output head reads is the last hidden state after the final norm.
#[test]
fn features_are_the_normed_hidden_state() {
    for (backend_name, backend) in back_ends() {
        for (name, (graph, weights)) in [("step3", step3()), ("llama", llama())] {
            let mut executable = compile(&*backend, &graph, &weights, options(KvDType::F32));
            let mut rows = Sequence::new(vec![0, 1]).extend(&tokens(8, 20));
            rows.outputs = vec![4, 19];
            let batch = Batch { sequences: vec![rows], hidden: true, features: true, ..Batch::default() };
            let output = pollster::block_on(async { executable.step(&batch)?.await }).expect("a step");
            let last =
                graph.weights.iter().position(|w| w.name == "model.norm.weight").expect("a final norm");
            let norm = weights[last].to_f32().expect("a vector");
            let hidden = output.hidden.last().expect("hidden states");
            let expected: Vec<f32> = [4, 19]
                .iter()
                .flat_map(|row| {
                    let x = &hidden[row * norm.len()..][..norm.len()];
                    let mean = x.iter().map(|x| f64::from(x * x)).sum::<f64>() / norm.len() as f64;
                    let scale = 1.0 / (mean + 1e-5).sqrt();
                    x.iter().zip(&norm).map(move |(x, w)| (f64::from(x * w) * scale) as f32)
                })
                .collect();
            let error = relative_l2(output.features, &expected);
            assert!(error < 1e-6, "{backend_name}, {name}: relative L2 {error:e}");
            let output =
                pollster::block_on(async { executable.step(&Batch { features: false, ..batch })?.await });
            assert!(output.expect("a step").features.is_empty(), "only when asked for");
        }
    }
}

#[test]
fn steps_like_earlier_ones_take_no_more_memory() {
    everywhere(|executable, label| {
        let tokens = tokens(4, 20);
        let mut after = |turns: usize| {
            (0..turns).for_each(|_| drop(logits(executable, &tokens, &[17, 1])));
            executable.stats().scratch_bytes
        };
        // Buffers go from one value to another, so it takes some steps until each has had its largest.
        let settled = after(10);
        assert!(settled > 0, "{label}");
        assert_eq!(after(10), settled, "{label}");
    });
}
