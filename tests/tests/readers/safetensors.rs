//! Headers, weights and scales of safetensors.

use serde_json::{Value, json};
use tread_core::tensor::DType;
use tread_tests::write::{
    Gguf, Stored, TINY_TILE, fp8_weights, safetensors, safetensors_raw, tiny_llama, tiny_step3, weights,
};

use super::{changed, find, open, open_gguf, refused};

#[test]
fn headers_of_safetensors_that_lie() {
    let config = tiny_llama();
    let raw = |header: &str, data: &[u8]| open(&config, safetensors_raw(header, data));
    let one = |entry: Value| raw(&json!({ "w": entry }).to_string(), &[0; 64]);
    let entry = |dtype: &str, shape: Value, start: u64, end: u64| {
        one(json!({"dtype": dtype, "shape": shape, "data_offsets": [start, end]}))
    };
    for length in [1 << 20, 1 << 40, 1 << 63, u64::MAX] {
        let bytes = [&u64::to_le_bytes(length)[..], b"{}"].concat();
        refused("header length", open(&config, bytes), &["the-file", &length.to_string(), "truncated"]);
    }
    refused("not JSON", raw("{\"w\": ", &[]), &["the-file", "header cannot be read"]);
    refused("not an object", raw("[1, 2]", &[]), &["the-file", "header cannot be read"]);
    refused(
        "not UTF-8",
        open(&config, [&[2, 0, 0, 0, 0, 0, 0, 0][..], &[0xff, 0xfe]].concat()),
        &["the-file"],
    );
    refused("deep", raw(&"{\"w\":".repeat(1 << 16), &[]), &["the-file", "w"]);
    refused("no type", one(json!({"shape": [1], "data_offsets": [0, 4]})), &["`w`", "dtype"]);
    refused("shape of text", entry("F32", json!("4"), 0, 4), &["`w`"]);
    refused("negative size", entry("F32", json!([-1]), 0, 4), &["`w`"]);
    refused("end before start", entry("F32", json!([1]), 8, 4), &["`w`", "8..4"]);
    refused("beyond the end", entry("F32", json!([32]), 0, 128), &["`w`", "0..128", "64 data bytes"]);
    refused("offset 2^63", entry("F32", json!([1]), 1 << 63, (1 << 63) + 4), &["`w`", "9223372036854775808"]);
    refused(
        "too few bytes",
        entry("F32", json!([4]), 0, 12),
        &["`w`", "[4]", "needs 16 bytes", "gives it 12"],
    );
    refused("size 2^63", entry("F32", json!([1u64 << 63]), 0, 4), &["`w`", "more elements"]);
    let huge = json!([1u64 << 32, 1u64 << 32, 16]);
    refused("product over 2^64", entry("F32", huge, 0, 64), &["`w`", "more elements"]);
    refused("bytes over 2^64", entry("F32", json!([0, 1u64 << 63]), 0, 0), &["`w`", "more elements"]);
    let overlap = json!({
        "first": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]},
        "second": {"dtype": "F32", "shape": [4], "data_offsets": [12, 28]},
    });
    refused("overlap", raw(&overlap.to_string(), &[0; 28]), &["the-file", "`first`", "`second`", "overlap"]);
    let entry = r#"{"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}"#;
    let twice = format!(r#"{{"w": {entry}, "w": {entry}}}"#);
    refused("a name twice", raw(&twice, &[0; 4]), &["`w`", "twice"]);
    let again = changed(&config, |tensors| {
        tensors.push(Stored::new("language_model.lm_head.weight", DType::F32, &[1]))
    });
    refused("a name with and without prefix", again, &["lm_head.weight", "twice"]);
    // Holes between tensors waste space, and harm nobody.
    let hole = changed(&config, |tensors| {
        tensors.push(Stored { dtype: "I64".to_owned(), ..Stored::new("unused", DType::F32, &[2]) })
    });
    hole.unwrap();
}

#[test]
fn tensors_that_are_missing_or_of_another_kind() {
    for config in [tiny_llama(), tiny_step3()] {
        for tensor in weights(&config) {
            let missing = changed(&config, |tensors| tensors.retain(|t| t.name != tensor.name));
            refused("missing", missing, &[&tensor.name, "missing from the checkpoint"]);
            let wide = changed(&config, |tensors| {
                let mut shape: Vec<usize> = tensor.shape.iter().map(|&d| d as usize).collect();
                shape[0] += 1;
                *find(tensors, &tensor.name) = Stored::new(&tensor.name, DType::BF16, &shape);
            });
            refused("a row more", wide, &[&tensor.name, "expected shape", "found"]);
            let text = changed(&config, |tensors| find(tensors, &tensor.name).dtype = "I16".to_owned());
            refused("integers", text, &[&tensor.name, "I16 is not supported"]);
        }
    }
    for name in Gguf::tiny().tensors.iter().map(|t| t.name.clone()) {
        // Without an output matrix, the embedding takes its place.
        if name != "output.weight" {
            let reason = "missing from the checkpoint";
            refused("missing", open_gguf(Gguf::tiny().without(&name).bytes()), &[reason]);
        }
        let mut file = Gguf::tiny();
        file.tensor(&name).kind = 13;
        refused("Q5_K", open_gguf(file.bytes()), &["Q5_K is not supported"]);
        let mut file = Gguf::tiny();
        file.tensor(&name).shape.push(1);
        assert!(open_gguf(file.bytes()).is_err(), "{name} of another shape");
    }
    open_gguf(Gguf::tiny().without("output.weight").bytes()).unwrap();
}

#[test]
fn fp8_scales_that_do_not_fit() {
    let config = tiny_step3();
    let name = "model.layers.0.mlp.gate_proj.weight";
    let fp8 = |change: &dyn Fn(&mut Vec<Stored>)| {
        let mut tensors = fp8_weights(&config, TINY_TILE);
        change(&mut tensors);
        open(&config, safetensors(&tensors))
    };
    let scales = format!("{name}_scale_inv");
    let values = |n: usize| -> Vec<f32> { vec![1.0; n] };
    fp8(&|_| {}).unwrap();
    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        let result = fp8(&|t| find(t, &scales).bytes[8..12].copy_from_slice(&bad.to_le_bytes()));
        refused("a scale", result, &[name, "scale 2", &bad.to_string()]);
    }
    let result = fp8(&|t| *find(t, &scales) = Stored::f32(&scales, &[7], &values(7)));
    refused("too few scales", result, &[name, "needs 15 scales", "7"]);
    let result = fp8(&|t| *find(t, &scales) = Stored::f32(&scales, &[0], &[]));
    refused("no scales", result, &[name, "needs 15 scales"]);
    let result = fp8(&|t| t.retain(|t| t.name != scales));
    refused("scales missing", result, &[name, "without its scales", &scales]);
    let result = fp8(&|t| t.retain(|t| t.name != name));
    refused("weight missing", result, &[&scales, name, "missing"]);
    let result = fp8(&|t| *find(t, &scales) = Stored::new(&scales, DType::F8E4M3, &[5, 3]));
    refused("scales in FP8", result, &[&scales, "F8_E4M3"]);
    let result = fp8(&|t| *find(t, name) = Stored::new(name, DType::BF16, &[18, 20]));
    refused("scales of a plain weight", result, &[&scales, "BF16"]);
    let result = fp8(&|t| find(t, name).bytes[25] = 0x7f);
    refused("NaN weight", result, &[name, "row 1", "NaN"]);
    for tile in [json!([0, 8]), json!([4]), json!("4x8"), json!([1u64 << 63, 1])] {
        let mut config = config.clone();
        config["quantization_config"]["weight_block_size"] = tile;
        refused(
            "tile",
            open(&config, safetensors(&fp8_weights(&tiny_step3(), TINY_TILE))),
            &["weight_block_size"],
        );
    }
}
