use std::sync::Arc;

use proptest::prelude::*;

use super::super::{Builder, Part, Side};
use super::*;
use crate::tensor::{BlockScales, Bytes, DType};

proptest! {
    #[test]
    fn shares_are_whole_units_and_about_even(
        rows in 1usize..5000,
        unit in prop_oneof![Just(1usize), Just(32), Just(128), 1usize..300],
        of in 1usize..9,
    ) {
        let shares: Vec<_> = (0..of).map(|at| share(rows, unit, of, at)).collect();
        prop_assert_eq!((shares[0].start, shares[of - 1].end), (0, rows));
        prop_assert!(shares.windows(2).all(|pair| pair[0].end == pair[1].start));
        prop_assert!(shares.iter().all(|s| s.start.is_multiple_of(unit)));
        let units: Vec<_> = shares.iter().map(|s| s.len().div_ceil(unit)).collect();
        prop_assert!(units.iter().max().unwrap() - units.iter().min().unwrap() <= 1);
        // Nobody goes without where there are enough.
        prop_assert_eq!(units.contains(&0), of > rows.div_ceil(unit));
    }
}

/// A layer with experts and a shared expert, hidden 20, width 12, three experts of which two are chosen.
fn graph() -> Graph {
    let mut b = Builder::new(vec![], 5);
    let table = b.weight("embed", &[5, 20]);
    let x = b.embed(table);
    b.layer(Some(0));
    let router = b.weight("router", &[3, 20]);
    let logits = b.linear(x, router, "router");
    let routing = b.router_top_k(logits, 2, true);
    b.side(Side::Ffn);
    let [gate, up] = ["gate", "up"].map(|name| b.weight(name, &[3, 12, 20]));
    let down = b.weight("down", &[3, 20, 12]);
    let slots = b.experts(x, routing, [gate, up, down]);
    let experts = b.combine(slots, routing);
    let [gate, up] = ["shared.gate", "shared.up"].map(|name| b.weight(name, &[12, 20]));
    let down = b.weight("shared.down", &[20, 12]);
    let (gate, up) = (b.linear(x, gate, "gate"), b.linear(x, up, "up"));
    let act = b.swiglu(gate, up, "act");
    let shared = b.linear(act, down, "down");
    let sum = b.add(experts, shared, "sum");
    b.layer(None);
    b.side(Side::Attention);
    let last = b.gather_rows(sum);
    let head = b.weight("head", &[5, 20]);
    let logits = b.linear(last, head, "head");
    b.finish(logits)
}

fn part() -> Graph {
    graph().part(&Part::Ffn { layers: 0..1, experts: None }).unwrap().graph
}

/// FP8 with tiles of so many rows for `down`, F32 for the others.
fn weights(graph: &Graph, tile: usize) -> Vec<Tensor> {
    let tensor = |decl: &crate::graph::WeightDecl| {
        let elements: usize = decl.shape.iter().product();
        let source = Arc::new(Bytes::new("zeros", vec![0; 4 * elements]));
        let tensor = |dtype| Tensor::new(&decl.name, dtype, decl.shape.clone(), source, 0).unwrap();
        if decl.name != "down" {
            return tensor(DType::F32);
        }
        let values = vec![1.0; 3 * 20usize.div_ceil(tile)].into();
        tensor(DType::F8E4M3).with_scales(BlockScales { block: [tile, 16], values }).unwrap()
    };
    graph.weights.iter().map(tensor).collect()
}

#[test]
fn products_are_cut_and_what_follows_stays_with_them() {
    let part = part();
    let slices = part.slices(&weights(&part, 8), 2).unwrap();
    assert_eq!(slices.stages, vec![0..2]);
    let names = |segment: &Segment| -> Vec<_> {
        slices.graphs[0].nodes[segment.nodes.clone()].iter().map(|n| n.op.name()).collect()
    };
    let [first, second] = slices.graphs[0].segments.as_slice() else { panic!("two stages") };
    assert_eq!(names(first), ["experts_gate_up", "linear", "linear", "swiglu"]);
    assert_eq!(names(second), ["experts_down", "combine", "linear", "add"]);
    // Rows of 20 come in three blocks of eight, the last of four.
    let of = |device: usize, segment: &Segment| -> Vec<_> {
        segment.outputs.iter().map(|e| slices.graphs[device].value(e.value).width).collect()
    };
    assert_eq!([of(0, first), of(1, first)], [[2 * 6, 6], [2 * 6, 6]]);
    assert_eq!([of(0, second), of(1, second)], [[8], [12]]);
    let inputs: Vec<_> = second.inputs.iter().map(|e| slices.graphs[0].value(e.value).width).collect();
    assert_eq!(inputs, [4, 2 * 12, 12]);
    for device in 0..2 {
        let bound = slices.bind(device, &weights(&part, 8)).unwrap();
        let shapes = slices.graphs[device].weights.iter().map(|w| w.shape.as_slice());
        assert!(bound.iter().map(Tensor::shape).eq(shapes));
    }
}

#[test]
fn pieces_are_put_together_group_by_group() {
    let part = part();
    let slices = part.slices(&weights(&part, 8), 2).unwrap();
    let acts = slices.graphs[0].segments[0].outputs[0].value;
    // Two rows of two groups, of which each device has six columns.
    let pieces: [Vec<f32>; 2] = [0.0, 100.0].map(|base| (0..24).map(|i| base + i as f32).collect());
    let (value, whole) = slices.join(acts, &[&pieces[0], &pieces[1]]);
    assert_eq!(part.value(value).width, 24);
    let expected: Vec<f32> = (0..4)
        .flat_map(|group| [0.0, 100.0].map(|base| (0..6).map(move |i| base + (group * 6 + i) as f32)))
        .flatten()
        .collect();
    assert_eq!(whole, expected);
}

#[test]
fn what_cannot_be_cut_is_refused() {
    let part = part();
    let error = part.slices(&weights(&part, 8), 4).unwrap_err().to_string();
    assert!(error.contains("4 devices") && error.contains("20 rows in 3 blocks of 8"), "{error}");
    let error = part.slices(&weights(&part, 1), 13).unwrap_err().to_string();
    assert!(error.contains("12 rows in 12 blocks of 1"), "{error}");
    assert!(part.slices(&weights(&part, 1), 0).is_err());
    let whole = graph();
    let error = whole.slices(&weights(&whole, 8), 2).unwrap_err().to_string();
    assert!(error.contains("`embed` cannot be cut") && error.contains("FFN workers"), "{error}");
    let attention = whole.part(&Part::Attention).unwrap().graph;
    assert!(attention.slices(&weights(&attention, 8), 2).is_err());
}

#[test]
fn rounding_is_cut_where_columns_do_not_know_of_each_other() {
    let rounded = |to: EdgeDType| {
        let mut part = graph().rounded(EdgeDType::BF16).part(&Part::Ffn { layers: 0..1, experts: None });
        let part = &mut part.as_mut().unwrap().graph;
        for node in &mut part.nodes {
            if matches!(node.op, Op::Round { .. }) {
                node.op = Op::Round { to };
            }
        }
        part.slices(&weights(part, 8), 2).map(|slices| slices.graphs[0].segments.len())
    };
    assert_eq!(rounded(EdgeDType::BF16).unwrap(), 2);
    assert!(rounded(EdgeDType::F8).unwrap_err().to_string().contains("`round` to fp8"));
}
