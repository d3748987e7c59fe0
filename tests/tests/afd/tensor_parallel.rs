//! Devices that compute a shard together say bit for bit what one of them says alone.

use tread_core::afd::{Layout, Sharding, TensorParallel};
use tread_core::backend::Backend;
use tread_core::cpu::Cpu;
use tread_core::graph::{EdgeDType, Graph};
use tread_core::tensor::{DType, Tensor};
use tread_tests::backends::{candidates, compile, step};
use tread_tests::models;

use super::{assert_same, batches, options, pipeline, spread};

fn step3(ffn: DType) -> (Graph, Vec<Tensor>) {
    models::step3_of_tiles(&[false, true, true, false], ffn)
}

/// Rows of which neither two nor three devices have equal parts.
fn llama() -> (Graph, Vec<Tensor>) {
    models::llama_of(2, 352, [DType::Q4_1, DType::Q8_0])
}

/// Devices that are opened `count` times.
fn together(open: &dyn Fn() -> Box<dyn Backend>, count: usize) -> TensorParallel {
    TensorParallel::new((0..count).map(|_| open()).collect()).expect("devices of one kind")
}

/// `pools` are numbers of devices, and of micro-batches: all rows of a step at once, and some of them.
fn check(label: &str, open: &dyn Fn() -> Box<dyn Backend>, pools: &[(usize, usize)]) {
    let (layers, experts) = (Sharding::Layers, Sharding::Experts);
    let one = open();
    let pools: Vec<_> = pools.iter().map(|&(count, lanes)| (together(open, count), lanes)).collect();
    for (name, model, shapes) in [
        (
            "step3 in FP8",
            step3(DType::F8E4M3),
            &[(layers, 1, EdgeDType::F32), (layers, 3, EdgeDType::F8), (experts, 3, EdgeDType::BF16)][..],
        ),
        ("step3 in BF16", step3(DType::BF16), &[(layers, 2, EdgeDType::BF16), (experts, 2, EdgeDType::F32)]),
        ("llama", llama(), &[(layers, 1, EdgeDType::F32), (layers, 2, EdgeDType::F8)]),
    ] {
        for &(sharding, workers, dtype) in shapes {
            let model = spread(&model, sharding, dtype);
            let mut whole = compile(&*one, &model.0, &model.1, options(1));
            let expected: Vec<_> = batches().iter().map(|batch| step(&mut *whole, batch)).collect();
            for (ffn, lanes) in &pools {
                let label = format!(
                    "{label}, {name} by {sharding:?} on {workers} times {}, {lanes} micro-batches, {} edges",
                    ffn.device(),
                    dtype.name()
                );
                let mut cut = pipeline((&*one, ffn), &model, sharding, workers, *lanes);
                for (at, (batch, expected)) in batches().iter().zip(&expected).enumerate() {
                    assert_same(&step(&mut cut, batch), expected, &format!("{label}, step {at}"));
                }
            }
        }
    }
}

#[test]
fn devices_together_equal_one_on_the_cpu() {
    check("cpu", &|| Box::new(Cpu::new()), &[(2, 1), (3, 3)]);
}

#[test]
fn devices_together_equal_one_on_gpus() {
    // Each kind with one number of devices: their kernels take long to compile.
    for (at, ((name, _), pool)) in candidates().iter().zip([(2, 1), (3, 3)]).enumerate() {
        check(name, &|| candidates().swap_remove(at).1, &[pool]);
    }
}

/// Together the devices have every weight of a shard, and each its own rows only.
#[test]
fn each_device_holds_its_own_rows_only() {
    let bytes = |weights: &[Tensor]| weights.iter().map(Tensor::bytes).sum::<u64>();
    let scales =
        |weights: &[Tensor]| weights.iter().filter_map(Tensor::scales).map(|s| s.values.len()).sum::<usize>();
    for (graph, weights) in [step3(DType::F8E4M3), step3(DType::BF16), llama()] {
        let layout = Layout::new(&graph, Sharding::Layers, 2).unwrap();
        for shard in &layout.shards {
            let own = shard.graph.bind(&weights).unwrap();
            for count in [1, 2, 3] {
                let slices = shard.graph.graph.slices(&own, count).unwrap();
                let bound: Vec<_> = (0..count).map(|device| slices.bind(device, &own).unwrap()).collect();
                assert_eq!(bound.iter().map(|b| bytes(b)).sum::<u64>(), bytes(&own));
                assert_eq!(bound.iter().map(|b| scales(b)).sum::<usize>(), scales(&own));
                // At most a tile's rows of a matrix more than a fair share.
                assert!(bound.iter().all(|b| bytes(b) <= bytes(&own) / count as u64 * 3 / 2));
            }
        }
    }
}

#[test]
fn statistics_are_those_of_all_devices() {
    let model = llama();
    let options = options(1);
    let part = Layout::new(&model.0, Sharding::Layers, 1).unwrap().shards.swap_remove(0).graph;
    let weights = part.bind(&model.1).unwrap();
    let alone = compile(&Cpu::new(), &part.graph, &weights, options).stats();
    let mut heard = vec![];
    let ffn = together(&|| Box::new(Cpu::new()), 3);
    let mut hear = |done, total| heard.push((done, total));
    let stats = pollster::block_on(ffn.compile(&part.graph, &weights, options, &mut hear)).unwrap().stats();
    assert_eq!((stats.weight_bytes, stats.kv_bytes), (alone.weight_bytes, 0));
    assert_eq!(heard.last(), Some(&(alone.weight_bytes, alone.weight_bytes)));
    assert!(heard.windows(2).all(|pair| pair[0].0 <= pair[1].0 && pair[0].1 == pair[1].1), "{heard:?}");
}

#[test]
fn what_cannot_compute_together_is_refused() {
    let mixed = vec![Box::new(Cpu::new()) as Box<dyn Backend>, candidates().swap_remove(0).1];
    let error = TensorParallel::new(mixed).unwrap_err().to_string();
    assert!(error.contains("cpu and wgpu cannot compute a shard together"), "{error}");
    assert!(TensorParallel::new(vec![]).is_err());
    // Whole models have more than FFNs.
    let (graph, weights) = llama();
    let ffn = together(&|| Box::new(Cpu::new()), 2);
    let error = pollster::block_on(ffn.compile(&graph, &weights, options(1), &mut |_, _| {})).unwrap_err();
    assert!(error.to_string().contains("only the shards of FFN workers"), "{error}");
}
