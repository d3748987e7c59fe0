//! Every kernel in every variant (tunings with and without subgroups, cache in f16 and f32, whole and cut weights,
//! all weight formats, fused and not, whole graphs and parts) passes naga's validator.

mod common;

use std::collections::BTreeMap;

use naga::valid::{Capabilities, ValidationFlags, Validator};
use tread_core::graph::{EdgeDType, Graph, Part, Rows};
use tread_core::tensor::DType;

use common::{llama, step3, weights};

#[test]
fn every_variant_is_valid_wgsl() {
    let mut sources = BTreeMap::new();
    for mut graph in parts(step3()).into_iter().chain([step3(), llama()]) {
        for captured in [false, true] {
            if captured {
                // Nothing can be fused away: the unfused kernels.
                let made = graph.nodes.iter().filter_map(|n| n.output);
                graph.hidden = made.filter(|&v| graph.value(v).rows == Rows::All).collect();
            }
            for dtype in DType::ALL {
                for (name, source) in tread_shaders::every_variant(&graph, &weights(&graph, dtype)).unwrap() {
                    sources.insert(source, name);
                }
            }
        }
    }
    assert!(sources.len() > 100, "only {} kernels", sources.len());
    for (source, name) in sources {
        let module = naga::front::wgsl::parse_str(&source)
            .unwrap_or_else(|e| panic!("{name}: {}\n{source}", e.emit_to_string(&source)));
        // f16 packed in u32 is in every WebGPU; subgroups are asked for where they are used.
        let capabilities = Capabilities::SUBGROUP | Capabilities::SHADER_FLOAT16_IN_FLOAT32;
        Validator::new(ValidationFlags::all(), capabilities)
            .validate(&module)
            .unwrap_or_else(|e| panic!("{name}: {}\n{source}", e.emit_to_string(&source)));
    }
}

/// Attention's part, and FFN's with some of the experts, with edges of every type.
fn parts(graph: Graph) -> Vec<Graph> {
    let graph = graph.combined_on_attention();
    let part = |dtype, part| graph.clone().rounded(dtype).part(&part).unwrap().graph;
    [EdgeDType::BF16, EdgeDType::F8]
        .into_iter()
        .flat_map(|dtype| {
            let ffn = Part::Ffn { layers: 0..2, experts: Some(1..3) };
            [part(dtype, Part::Attention), part(dtype, ffn)]
        })
        .collect()
}
