//! config.json.

use std::collections::BTreeMap;

use serde_json::{Value, json};
use tread_core::checkpoint::Checkpoint;
use tread_tests::write::{safetensors, tiny_llama, tiny_step3, weights};

use super::{EXPERTS, open, refused};

#[test]
fn configurations_that_make_no_model() {
    type Cases<'a> = &'a [(&'a str, Value, &'a str)];
    let llama: Cases<'_> = &[
        ("model_type", json!("gpt2"), "gpt2"),
        ("model_type", json!(null), "model_type"),
        ("hidden_size", json!(0), "hidden_size"),
        ("hidden_size", json!(1u64 << 63), "hidden_size"),
        ("hidden_size", json!(-32), "hidden_size"),
        ("hidden_size", json!("32"), "hidden_size"),
        ("hidden_size", json!(null), "hidden_size"),
        ("num_hidden_layers", json!(1u64 << 40), "num_hidden_layers"),
        ("num_hidden_layers", json!(2), "model.layers.1.input_layernorm.weight"),
        ("num_attention_heads", json!(0), "num_attention_heads"),
        ("num_key_value_heads", json!(3), "3 key/value heads"),
        ("head_dim", json!(15), "head_dim"),
        ("vocab_size", json!(1u64 << 63), "vocab_size"),
        ("vocab_size", json!(9), "expected shape [9, 32]"),
        ("max_position_embeddings", json!(0), "max_position_embeddings"),
        ("rms_norm_eps", json!("small"), "rms_norm_eps"),
        ("rms_norm_eps", json!(-1), "rms_norm_eps"),
        ("rope_theta", json!(0), "rope_theta"),
        ("rope_scaling", json!({"rope_type": "yarn", "factor": 2}), "yarn"),
        ("rope_scaling", json!({"rope_type": "linear"}), "factor"),
        ("rope_scaling", json!("linear"), "rope_scaling"),
        ("attention_bias", json!(true), "attention_bias"),
        ("hidden_act", json!("gelu"), "gelu"),
        ("tie_word_embeddings", json!("yes"), "tie_word_embeddings"),
    ];
    for (key, value, part) in llama {
        let mut config = tiny_llama();
        config[key] = value.clone();
        refused(key, open(&config, safetensors(&weights(&tiny_llama()))), &[part]);
    }
    let step3: Cases<'_> = &[
        ("moe_top_k", json!(4), "moe_top_k"),
        ("moe_num_experts", json!(0), "moe_num_experts"),
        ("moe_layers_enum", json!("1,x"), "`x`"),
        ("moe_layers_enum", json!([2]), "layer 2"),
        ("moe_layers_enum", json!({"1": true}), "moe_layers_enum"),
        ("share_q_dim", json!(null), "share_q_dim"),
        ("moe_num_experts", json!(4096), EXPERTS.trim_end_matches("up_proj.weight")),
    ];
    for (key, value, part) in step3 {
        let mut config = tiny_step3();
        config["text_config"][key] = value.clone();
        refused(key, open(&config, safetensors(&weights(&tiny_step3()))), &[part]);
    }
    let mut config = tiny_step3();
    config["text_config"] = json!(7);
    refused(
        "text_config",
        open(&config, safetensors(&weights(&tiny_step3()))),
        &["missing from config.json"],
    );
    let files = |config: &[u8]| BTreeMap::from([("config.json".to_owned(), config.to_vec())]);
    let deep = "[".repeat(1 << 16);
    for text in [&b""[..], b"{", b"\xff", b"GGUF", deep.as_bytes()] {
        let error = Checkpoint::from_safetensors(&files(text), vec![]).unwrap_err().to_string();
        assert!(error.contains("config.json"), "{error}");
    }
    let error = Checkpoint::from_safetensors(&BTreeMap::new(), vec![]).unwrap_err().to_string();
    assert!(error.contains("config.json"), "{error}");
}

/// Published configurations leave out what their class has a default for, and what none of their layers has.
#[test]
fn keys_that_may_be_left_out() {
    let open_without = |keys: &[&str], layers: Value| {
        let mut config = tiny_step3();
        config["text_config"]["moe_layers_enum"] = layers;
        let tensors = weights(&config);
        let text = config["text_config"].as_object_mut().expect("an object");
        keys.iter().for_each(|key| assert!(text.shift_remove(*key).is_some(), "{key}"));
        open(&config, safetensors(&tensors)).expect("a model")
    };
    let experts = ["moe_num_experts", "moe_top_k", "moe_intermediate_size", "share_expert_dim"];
    open_without(&experts, json!([]));
    open_without(&["intermediate_size"], json!([0, 1]));
    let model = open_without(&["max_position_embedding", "num_attention_groups"], json!("1"));
    assert_eq!(model.config.context_length(), 65_536);
}

#[test]
fn end_tokens_of_every_file_count() {
    let stop_ids = |at_top: Value, of_text: Value| {
        let mut config = tiny_step3();
        config["eos_token_id"] = at_top;
        config["text_config"]["eos_token_id"] = of_text;
        open(&config, safetensors(&weights(&config))).expect("a model").stop_ids
    };
    assert_eq!(stop_ids(json!(2), json!(null)), [2]);
    assert_eq!(stop_ids(json!(null), json!(3)), [3]);
    assert_eq!(stop_ids(json!([7, 1]), json!([1, 3])), [1, 3, 7]);
}
