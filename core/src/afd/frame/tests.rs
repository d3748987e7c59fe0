//! What is packed comes out as it was, and nothing that arrives can do harm.

use std::sync::OnceLock;

use proptest::prelude::*;

use super::*;
use crate::afd::{Sharding, activations};
use crate::config::{ModelConfig, Step3Config};
use crate::graph::EdgeDType;
use crate::models;

const ROWS: usize = 5;
const EXPERTS: u32 = 5;
const TOP_K: usize = 3;

/// Layouts by type and sharding, over two workers each.
fn layouts() -> &'static [Layout] {
    static LAYOUTS: OnceLock<Vec<Layout>> = OnceLock::new();
    LAYOUTS.get_or_init(|| {
        let config = Step3Config {
            hidden_size: 136,
            intermediate_size: 16,
            num_layers: 3,
            num_heads: 2,
            num_kv_heads: 1,
            head_dim: 8,
            query_rank: 16,
            vocab_size: 11,
            context_length: 64,
            rms_norm_eps: 1e-5,
            inv_freq: vec![1.0; 4],
            moe_layers: vec![false, true, true],
            num_experts: EXPERTS as usize,
            top_k: TOP_K,
            moe_intermediate_size: 8,
            shared_expert_size: 8,
            norm_expert_weight: true,
            tie_word_embeddings: false,
        };
        let graph = models::graph(&ModelConfig::Step3(config));
        let dtypes = [EdgeDType::F32, EdgeDType::BF16, EdgeDType::F8];
        let all = dtypes.iter().flat_map(|&dtype| {
            let rounded = graph.clone().rounded(dtype);
            let spread = graph.clone().combined_on_attention().rounded(dtype);
            [(rounded, Sharding::Layers), (spread, Sharding::Experts)]
        });
        all.map(|(graph, sharding)| Layout::new(&graph, sharding, 2).unwrap()).collect()
    })
}

/// Numbers that cross an edge unchanged, made of `seed`.
fn value(layout: &Layout, edge: Edge, rows: usize, seed: u64) -> Vec<f32> {
    let width = layout.graph().value(edge.value).width;
    let x: Vec<f32> = (0..rows * width)
        .map(|at| {
            ((at as u64).wrapping_mul(2_654_435_761).wrapping_add(seed * 97) % 2001) as f32 / 500.0 - 2.0
        })
        .collect();
    let mut out = vec![0.0; x.len()];
    activations::round(edge.dtype, &x, width, &mut out);
    out
}

fn a_call(layout: &Layout, layer: usize, rows: usize, seed: u64) -> Call {
    let input = |edge: &Edge| {
        let width = layout.graph().value(edge.value).width;
        if width != 2 * TOP_K {
            return value(layout, *edge, rows, seed);
        }
        let ids = |row: usize| {
            (0..TOP_K).map(move |c| f32::from_bits((seed as u32 + (row + 2 * c) as u32) % EXPERTS))
        };
        (0..rows).flat_map(|row| ids(row).chain([0.5; TOP_K])).collect()
    };
    let inputs = layout.edges(layer).0.iter().map(input).collect();
    Call { step: 1 << 40 | seed, micro_batch: 2, layer, rows, inputs }
}

fn header(call: &Call) -> Header {
    Header { epoch: u64::MAX, incarnation: 1 << 63, slot: 7, ffn_us: 0.25, ..Header::of_call(call) }
}

proptest! {
    #[test]
    fn calls_and_answers_come_out_as_they_went_in(
        at in 0usize..6, layer in 0usize..3, rows in 0usize..=ROWS, seed in 0u64..1000,
    ) {
        let layout = &layouts()[at];
        let sent = a_call(layout, layer, rows, seed);
        let mut whole = layout.begin(&sent);
        let wanted = layout.wanted(&sent);
        for &shard in &wanted {
            let bytes = call(layout, shard, header(&sent), &sent).unwrap();
            prop_assert!(bytes.len() <= most_bytes(layout, shard, ROWS));
            let (read, payload) = Header::read(&bytes).unwrap();
            prop_assert_eq!(read, header(&sent));
            let found = read_call(layout, shard, &read, payload, ROWS).unwrap();
            for ((edge, found), sent) in layout.edges(layer).0.iter().zip(&found.inputs).zip(&sent.inputs) {
                let given = layout.shards[shard].inputs(layer).contains(edge);
                prop_assert_eq!(found, if given { sent } else { &[][..] });
            }
            // The worker knows its slots by what it was sent.
            let edges = layout.shards[shard].outputs(layer);
            let outputs: Vec<_> = edges.iter().map(|e| value(layout, *e, rows, seed + 1)).collect();
            let reply = Header { kind: Kind::Answer, ..read };
            let bytes = answer(layout, shard, reply, &found, &outputs).unwrap();
            prop_assert!(bytes.len() <= most_bytes(layout, shard, ROWS));
            let (read, payload) = Header::read(&bytes).unwrap();
            prop_assert_eq!(read, reply);
            let outputs = read_answer(layout, shard, &sent, payload).unwrap();
            layout.add(&mut whole, &sent, shard, &outputs, read.ffn_us);
        }
        for (edge, found) in layout.edges(layer).1.iter().zip(&whole.outputs) {
            prop_assert_eq!(found, &value(layout, *edge, rows, seed + 1));
        }
    }

    #[test]
    fn what_is_cut_off_or_longer_is_refused(at in 0usize..6, rows in 1usize..=ROWS, cut in 0usize..5000) {
        let layout = &layouts()[at];
        let sent = a_call(layout, 1, rows, 3);
        let shard = layout.wanted(&sent)[0];
        let bytes = call(layout, shard, header(&sent), &sent).unwrap();
        let cut = cut % bytes.len();
        prop_assert!(Header::read(&bytes[..cut]).is_err());
        let payload = &bytes[HEADER_BYTES..];
        let short = &payload[..cut.min(payload.len() - 1)];
        prop_assert!(read_call(layout, shard, &header(&sent), short, ROWS).is_err());
        let long = [payload, &[0; 3]].concat();
        prop_assert!(read_call(layout, shard, &header(&sent), &long, ROWS).is_err());
    }

    /// Whatever comes, nothing panics, and what a header lets through fits what it says.
    #[test]
    fn nothing_that_arrives_does_harm(
        at in 0usize..6, rows in 0usize..=ROWS,
        changes in prop::collection::vec((0usize..200, any::<u8>()), 0..8), noise in prop::collection::vec(any::<u8>(), 0..200),
    ) {
        let layout = &layouts()[at];
        let sent = a_call(layout, 1, rows, 9);
        let mut bytes = call(layout, 0, header(&sent), &sent).unwrap_or_default();
        for (place, byte) in changes {
            if let Some(found) = bytes.get_mut(place) {
                *found = byte;
            }
        }
        for bytes in [bytes, noise] {
            let Ok((header, payload)) = Header::read(&bytes) else { continue };
            for shard in 0..layout.shards.len() {
                if let Ok(found) = read_call(layout, shard, &header, payload, ROWS) {
                    prop_assert!(found.rows <= ROWS);
                    for edge in layout.shards[shard].outputs(found.layer) {
                        layout.slots(&layout.shards[shard], &found, *edge);
                    }
                }
                let _ = read_answer(layout, shard, &sent, payload);
            }
            read_refusal(payload);
        }
    }
}

#[test]
fn errors_say_what_is_wrong() {
    let layout = &layouts()[0];
    let sent = a_call(layout, 0, 2, 0);
    let good = call(layout, 0, header(&sent), &sent).unwrap();
    let changed = |at: usize, byte: u8| {
        let mut bytes = good.clone();
        bytes[at] = byte;
        Header::read(&bytes).unwrap_err().to_string()
    };
    assert!(changed(0, b'X').contains("does not begin"));
    assert!(changed(4, 9).contains("version 9"));
    assert!(changed(6, 77).contains("no kind 77"));
    assert!(changed(56, 1).contains("announced"));
    let payload = &good[HEADER_BYTES..];
    let read = |header: Header| read_call(layout, 0, &header, payload, ROWS).unwrap_err().to_string();
    assert!(read(Header { rows: 3, ..header(&sent) }).contains("bytes are left where"));
    assert!(read(Header { rows: u32::MAX, ..header(&sent) }).contains("takes 5"));
    assert!(read(Header { layer: 2, ..header(&sent) }).contains("layer 2"));
    assert!(read(Header { layer: u32::MAX, ..header(&sent) }).contains("without it"));
    // A refusal is cut between characters.
    let long = "€".repeat(2000);
    let bytes = refusal(header(&sent), &long).unwrap();
    let (read, payload) = Header::read(&bytes).unwrap();
    assert_eq!(read.kind, Kind::Refusal);
    assert_eq!(read_refusal(payload), "€".repeat(341));
}
