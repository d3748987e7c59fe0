//! `tread plan` and `tread simulate` as their users meet them.

use std::fs;

use serde_json::{Value, json};

use super::{fails, path, succeeds, tiny_step3, tread};

fn output(args: &[&str]) -> String {
    succeeds(&mut tread(tempfile::tempdir().unwrap().path(), args))
}

fn json(args: &[&str]) -> Value {
    serde_json::from_str(&output(&[args, &["--format", "json"]].concat())).unwrap()
}

#[track_caller]
fn refused(args: &[&str], parts: &[&str]) {
    fails(&mut tread(tempfile::tempdir().unwrap().path(), args), parts);
}

#[test]
fn plan_prints_the_paper_s_tables() {
    let text = output(&["plan", "--model", "all"]);
    for line in [
        "DSv3                        MLA  2.88e8         1.47e11      2.28e10   4.84e10        512",
        "Step-3     0.048/0.040/0.040/0.043  0.015/0.040/0.036/0.035     0.055   H20 + H800",
        "DSv3       0.054/0.128/0.114/0.113  0.014/0.036/0.032/0.032     0.068  H800 + H800",
        "Step-3     0.058/0.007/0.031/0.034        0.082",
        "local x36 + GQA x12",
    ] {
        assert!(text.contains(line), "`{line}` is not in\n{text}");
    }
}

#[test]
fn plan_answers_for_cards_with_little_bandwidth() {
    let plan = json(&["plan", "--hardware", "L20,l4"]);
    let on = |n: usize, key: &str| plan["plans"][0]["on"][n]["streaming"][key].clone();
    assert_eq!((on(0, "batch"), on(0, "ffn_gpus")), (json!(40), json!(48)));
    assert_eq!((on(1, "batch"), on(1, "ffn_gpus")), (json!(3), json!(128)));
}

#[test]
fn plan_keeps_the_goal_and_says_where_none_can() {
    let plan = json(&["plan", "--hardware", "h800", "--context", "4k", "--tpot", "40ms"]);
    let best = &plan["plans"][0]["deployments"][0];
    let tpot = best["tpot_ms"].as_f64().unwrap();
    assert!(tpot > 30.0 && tpot <= 40.0, "{best}");
    let held = best["batch_per_gpu"].as_u64().unwrap() * 3 * 4096 * 31_232;
    assert!(held < 80_000_000_000, "{best}");
    let none = output(&["plan", "--hardware", "h800", "--tpot", "1ms"]);
    assert!(none.contains("Step-3: none keeps the goal") && none.contains("--tpot"), "{none}");
    refused(
        &["simulate", "--hardware", "h800", "--tpot", "1ms"],
        &["no deployment of Step-3 keeps 1 ms", "--tpot"],
    );
}

#[test]
fn plan_reads_models_and_hardware_from_files() {
    let folder = tempfile::tempdir().unwrap();
    let config = json!({
        "model_type": "mixtral", "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
        "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 32000, "num_local_experts": 8,
        "num_experts_per_tok": 2, "sliding_window": null
    });
    let file = folder.path().join("config.json");
    fs::write(&file, config.to_string()).unwrap();
    let hardware = folder.path().join("hardware.toml");
    let row = "[h800]\nname = \"Half\"\nprice_per_hour = 1.0\nbf16_flops = 9.89e14\nfp8_flops = 1.98e15\n\
               memory_bytes = 80e9\nmemory_bandwidth = 3.35e12\nnetwork_bandwidth = 4e11\ngpus_per_server = 8\n";
    fs::write(&hardware, row).unwrap();
    let args = ["plan", "--hardware", "h800", "--model", path(folder.path())];
    let full = json(&args);
    assert_eq!(full["plans"][0]["sparsity"], json!(0.25));
    assert_eq!(full["plans"][0]["work"]["ffn_flops"], json!(2.0 * 32.0 * 2.0 * 3.0 * 4096.0 * 14336.0));
    let half = json(&[&args[..], &["--hardware-file", path(&hardware)]].concat());
    let ffn = |plan: &Value| plan["plans"][0]["on"][0]["dollars_per_million"]["ffn"].as_f64().unwrap();
    assert!((ffn(&half) / ffn(&full) - 0.5).abs() < 1e-9);
    // What Tread itself runs is read by its own reader, and is the same.
    let tiny = json(&["plan", "--model", path(&tiny_step3())]);
    assert_eq!(tiny["plans"][0]["attention"], json!("MFA"));
    assert!(output(&["plan", "--model", "nano"]).contains("nano"));
}

#[test]
fn plots_are_svg() {
    for args in [
        &["plan", "--model", "step3,qwen3-32b"][..],
        &["simulate", "--steps", "5"],
        &["simulate", "--steps", "5", "--sweep", "jitter=0..0.4:3"],
    ] {
        let svg = output(&[args, &["--format", "svg"]].concat());
        assert!(svg.starts_with("<svg ") && svg.trim_end().ends_with("</svg>"), "{svg}");
        assert!(svg.matches("<text").count() > 5 && !svg.contains("NaN"), "{svg}");
    }
}

#[test]
fn simulate_says_where_the_budget_breaks() {
    let times = ["--attention-us", "272", "--a2f-us", "91", "--ffn-us", "272", "--f2a-us", "181"];
    let args =
        [&["simulate", "--deployment", "2A2F", "--batch", "128", "--steps", "20"], &times[..]].concat();
    let calm = json(&[&args[..], &["--jitter", "0"]].concat());
    let run = &calm["runs"][0];
    // 61 layers of three micro-batches at 272 us.
    assert!((run["tpot_ms"]["p99"].as_f64().unwrap() - 49.776).abs() < 1e-6, "{run}");
    let rate = run["tokens_per_gpu_s"].as_f64().unwrap();
    assert!((rate - 3.0 * 2048.0 / 0.049_776 / 32.0).abs() < 0.01, "{run}");
    assert_eq!(run["stages"][0]["busy"], json!(1.0));
    // Nothing is left for jitter: the smallest breaks it.
    let swept = json(&[&args[..], &["--sweep", "jitter=0..0.1:11"]].concat());
    let breaks = swept["sweep"]["breaks"][0][1].as_f64().unwrap();
    assert!(breaks > 0.0 && breaks < 0.01, "{}", swept["sweep"]);
    assert_eq!(swept, json(&[&args[..], &["--sweep", "jitter=0..0.1:11"]].concat()));
    let text = output(&[&args[..], &["--sweep", "size=32..128:3", "--jitter", "0.05"]].concat());
    assert!(
        text.contains("8A8F") && text.contains("crosses 50 ms") | text.contains("does not cross"),
        "{text}"
    );
}

#[test]
fn simulate_draws_from_a_trace() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("trace.json");
    let mut events = vec![];
    for (pid, stage, time) in [
        (1, "attention", 100),
        (2, "attention", 100),
        (1, "a2f", 10),
        (2, "a2f", 10),
        (3, "ffn", 60),
        (3, "f2a", 20),
    ] {
        for (layer, micro_batch) in [(0, 0), (1, 0), (0, 1), (1, 1)] {
            events.push(json!({"name": stage, "ph": "X", "ts": 0, "dur": time, "pid": pid, "tid": 0,
                "args": {"layer": layer, "micro_batch": micro_batch}}));
        }
    }
    fs::write(&file, json!({ "traceEvents": events }).to_string()).unwrap();
    let found = json(&["simulate", "--trace", path(&file)]);
    let run = &found["runs"][0];
    assert_eq!(
        (&run["deployment"], &run["layers"], &run["micro_batches"]),
        (&json!("2A1F"), &json!(2), &json!(2))
    );
    // Each of the two instances' two micro-batches needs 60 us of the FFN, so a layer takes 240 us.
    assert!((run["tpot_ms"]["mean"].as_f64().unwrap() - 0.48).abs() < 0.01, "{run}");
    fs::write(&file, "[]").unwrap();
    refused(&["simulate", "--trace", path(&file)], &["trace.json", "`attention`"]);
}

#[test]
fn errors_name_the_thing_and_the_remedy() {
    refused(&["plan", "--hardware", "h900"], &["`h900`", "h800", "--hardware-file"]);
    refused(&["plan", "--hardware-file", "no.toml"], &["no.toml"]);
    refused(&["plan", "--model", "gpt-9"], &["`gpt-9`", "deepseek-v3", "config.json"]);
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("config.json"), r#"{"num_hidden_layers": 2, "hidden_size": 8}"#).unwrap();
    refused(&["plan", "--model", path(folder.path())], &["`vocab_size`"]);
    refused(&["simulate", "--ffn-us", "3"], &["--attention-us", "or none"]);
    for (args, part) in [
        (["plan", "--context", "lots"], "8k"),
        (["plan", "--tpot", "50"], "50ms"),
        (["plan", "--efficiency", "speed=2"], "compute, memory"),
        (["simulate", "--deployment", "2F"], "2A2F"),
        (["simulate", "--sweep", "luck=0..1"], "stragglers"),
    ] {
        let output = tread(folder.path(), &args).output().unwrap();
        let message = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.code() == Some(2) && message.contains(part), "{args:?}: {message}");
    }
}
