//! What crosses from pool to pool is the same bits on every back end.

use rand::RngExt as _;
use tread_core::afd::activations;
use tread_core::backend::{Backend, Batch, CompileOptions, KvDType, Work};
use tread_core::cpu::Cpu;
use tread_core::graph::{Edge, EdgeDType, Graph, Node, Op, Rows, Segment, Side, Value, ValueId};
use tread_tests::backends::{candidates, compile};
use tread_tests::random::{Rng, rng};

/// An FFN's part that rounds what it is given.
fn rounding(to: EdgeDType, width: usize) -> Graph {
    let value = |name: &str| Value { name: name.to_owned(), width, rows: Rows::All };
    let edge = |id, dtype| vec![Edge { value: ValueId(id), dtype }];
    Graph {
        values: vec![value("x"), value("rounded")],
        weights: vec![],
        nodes: vec![Node {
            op: Op::Round { to },
            inputs: vec![ValueId(0)],
            output: Some(ValueId(1)),
            layer: None,
            side: Side::Ffn,
        }],
        inv_freq: vec![],
        kv_widths: vec![],
        hidden: vec![],
        features: None,
        logits: None,
        vocab_size: 1,
        segments: vec![Segment {
            nodes: 0..1,
            inputs: edge(0, EdgeDType::F32),
            outputs: edge(1, to),
            ..Segment::default()
        }],
    }
}

/// Rows whose groups are of every size, down to what has no exponent of its own, with ties and zeros of both signs.
fn of_every_size(rng: &mut Rng, elements: usize) -> Vec<f32> {
    let mut exponent = 0;
    let mut element = |at: usize| {
        if at.is_multiple_of(40) {
            exponent = rng.random_range(-149..=127);
        }
        let bits = rng.random::<u32>();
        match bits % 16 {
            0 => [0.0, -0.0, f32::MAX, -f32::MAX, f32::MIN_POSITIVE, 1e-42][(bits >> 8) as usize % 6],
            // Anything at all, if it is a number.
            1 => Some(f32::from_bits(rng.random())).filter(|x| x.is_finite()).unwrap_or(-1.0),
            // Halfway between two numbers of few bits.
            2..6 => rng.random_range(-64..=64) as f32 * 2f32.powi(exponent.max(-126) - 6),
            _ => rng.random_range(-1f32..1.0) * 2f32.powi(exponent),
        }
    };
    (0..elements).map(&mut element).collect()
}

/// Both pools must make the same of an activation, whatever they run on.
#[test]
fn rounding_agrees_in_every_bit() {
    let cpu: (_, Box<dyn Backend>) = ("cpu", Box::new(Cpu::new()));
    let on: Vec<_> = [cpu].into_iter().chain(candidates()).collect();
    let rng = &mut rng(10);
    for to in [EdgeDType::F32, EdgeDType::BF16, EdgeDType::F8] {
        for width in [1, 97, 128, 129, 300] {
            let graph = rounding(to, width);
            let options = CompileOptions::single(0, 257, KvDType::F32);
            let mut parts: Vec<_> = on.iter().map(|(_, b)| compile(&**b, &graph, &[], options)).collect();
            for rows in [1, 2, 3, 64, 257] {
                let inputs = [of_every_size(rng, rows * width)];
                let mut expected = vec![0.0; rows * width];
                activations::round(to, &inputs[0], width, &mut expected);
                let batch = Batch::of_rows(rows);
                for ((name, _), part) in on.iter().zip(&mut parts) {
                    let work = Work { batch: &batch, segment: 0, lane: 0, inputs: &inputs };
                    let output = pollster::block_on(async { part.run(work)?.await }).expect("rows");
                    let found = &output.edges[0];
                    assert_eq!(found.len(), expected.len());
                    for (at, (x, (found, expected))) in
                        inputs[0].iter().zip(found.iter().zip(&expected)).enumerate()
                    {
                        let label = format!("{name}, {to:?}, {rows} rows of {width}, element {at}");
                        assert_eq!(found.to_bits(), expected.to_bits(), "{label}: {x:e} becomes {found:e}");
                    }
                }
            }
        }
    }
}
