//! The `tread` binary as its users meet it: what it prints, what it writes, and how it fails.

mod hub;
mod plan;

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use safetensors::SafeTensors;
use serde_json::Value;
use tread_core::checkpoint::Checkpoint;
use tread_core::model::Model;
use tread_tests::backends::relative_l2;
use tread_tests::write::{Gguf, Meta};

/// `tread` with these arguments, in an environment of its own.
fn tread(home: &Path, args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tread"));
    command.args(args).stdin(Stdio::null());
    for name in ["HF_ENDPOINT", "HF_TOKEN", "HF_HUB_OFFLINE", "TREAD_MODELS", "RUST_LOG"] {
        command.env_remove(name);
    }
    command.env("HF_HOME", home.join("hf")).env("XDG_DATA_HOME", home.join("data"));
    command
}

/// What it prints to standard output; it must succeed.
#[track_caller]
fn succeeds(command: &mut Command) -> String {
    let output = command.output().expect("tread starts");
    assert!(output.status.success(), "{command:?}: {}", errors(&output));
    String::from_utf8(output.stdout).expect("UTF-8")
}

/// It fails with one error message, which has all of `parts`.
#[track_caller]
fn fails(command: &mut Command, parts: &[&str]) {
    let output = command.output().expect("tread starts");
    let message = errors(&output);
    assert_eq!(output.status.code(), Some(1), "{command:?}: {message}");
    assert!(message.starts_with("error: ") && !message.contains("panicked"), "{command:?}: {message}");
    for part in parts {
        assert!(message.contains(part), "{command:?}: `{part}` is not in: {message}");
    }
}

fn errors(output: &Output) -> String {
    // Mesa's loader complains here on machines without a desktop.
    let text = String::from_utf8_lossy(&output.stderr);
    text.lines().filter(|line| !line.contains("XDG_RUNTIME_DIR")).collect::<Vec<_>>().join("\n")
}

/// What it answers to `input` on standard input.
fn piped(command: &mut Command, input: &str) -> (String, String) {
    let pipes = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = pipes.spawn().expect("tread starts");
    child.stdin.take().expect("a pipe").write_all(input.as_bytes()).expect("tread reads its input");
    let output = child.wait_with_output().expect("tread ends");
    assert!(output.status.success(), "{}", errors(&output));
    let log = errors(&output);
    (String::from_utf8(output.stdout).expect("UTF-8"), log)
}

fn tiny_step3() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/data/step3-tiny")
}

fn path(path: &Path) -> &str {
    path.to_str().expect("a path in UTF-8")
}

#[test]
fn run_answers_and_prints_nothing_else() {
    let home = tempfile::tempdir().unwrap();
    let args = ["run", "nano", "Who goes there?", "--greedy"];
    for backend in ["cpu", "wgpu"] {
        let answer = succeeds(tread(home.path(), &args).args(["--backend", backend]));
        assert_eq!(answer, "I am a man, sir.\n", "{backend}");
    }
    let (answer, rest) = piped(
        tread(home.path(), &["run", "--greedy", "--backend", "cpu", "--stats"]).env("RUST_LOG", "off"),
        "Who goes there?\n",
    );
    assert_eq!(answer, "I am a man, sir.\n");
    for part in ["prompt tokens", "tok/s", "first after", "stop", "CPU"] {
        assert!(rest.contains(part), "{part}: {rest}");
    }
}

#[test]
fn run_continues_token_ids_as_the_oracle_does() {
    let home = tempfile::tempdir().unwrap();
    let folder = tiny_step3();
    let golden: Value = serde_json::from_slice(&fs::read(folder.join("golden.json")).unwrap()).unwrap();
    let list =
        |value: &Value| value.as_array().unwrap().iter().map(Value::to_string).collect::<Vec<_>>().join(",");
    for (prompt, greedy) in
        golden["prompts"].as_array().unwrap().iter().zip(golden["greedy"].as_array().unwrap())
    {
        let expected = &greedy["tokens"];
        let count = expected.as_array().unwrap().len().to_string();
        let args = ["--tokens-in", &list(prompt), "--tokens-out", "--greedy", "--max-tokens", &count];
        let found = succeeds(tread(home.path(), &["run", path(&folder), "--backend", "cpu"]).args(args));
        assert_eq!(found.trim_end(), list(expected));
    }
}

#[test]
fn chat_remembers_and_forgets() {
    let home = tempfile::tempdir().unwrap();
    let chat = || tread(home.path(), &["chat", "--greedy", "--backend", "cpu"]);
    // Prompt tokens of each turn, and how many of them were there from the turn before.
    let turns = |log: &str| -> Vec<(usize, usize)> {
        let line = |line: &str| {
            let (prompt, rest) = line.strip_prefix('[')?.split_once(" prompt tokens (")?;
            Some((prompt.parse().ok()?, rest.split_once(" cached)")?.0.parse().ok()?))
        };
        log.lines().filter_map(line).collect()
    };
    let (out, log) = piped(&mut chat(), "Who goes there?\nTell me of love.\n");
    assert_eq!(out, "I am a man, sir.\nI am not so.\n");
    let [first, second] = turns(&log)[..] else { panic!("a line of statistics after each answer: {log}") };
    // Whole blocks of 16 tokens are kept.
    assert!(first.1 == 0 && second.1 >= 16 && second.1 % 16 == 0 && second.0 > second.1, "{log}");
    let alone = turns(&piped(&mut chat(), "Tell me of love.\n").1);
    let (out, log) = piped(&mut chat(), "Who goes there?\n/reset\nTell me of love.\n");
    assert_eq!(out, "I am a man, sir.\nI am not so.\n");
    assert_eq!((turns(&log)[0].0, turns(&log)[1].0), (first.0, alone[0].0), "{log}");
    let (out, log) = piped(&mut chat(), "/help\n/nothing\n/quit\nWho goes there?\n");
    assert_eq!(out, "", "nothing is answered after /quit");
    assert!(log.contains("/system TEXT") && log.contains("there is no /nothing"), "{log}");
    let (_, log) = piped(&mut chat(), "/system Speak as a ghost.\nWho goes there?\n");
    assert!(log.contains("nano knows no system prompt"), "{log}");
    // A model whose template writes the first message, whoever speaks.
    let model = home.path().join("model.gguf");
    fs::write(&model, Gguf::tiny().bytes()).unwrap();
    let chat =
        || tread(home.path(), &["chat", path(&model), "--greedy", "--backend", "cpu", "--max-tokens", "1"]);
    let (_, plain) = piped(&mut chat(), "c\n");
    let (_, typed) = piped(&mut chat(), "/system cde\nc\n");
    let (_, given) = piped(chat().args(["--system", "cde"]), "c\n");
    assert_eq!([turns(&plain), turns(&typed), turns(&given)], [vec![(2, 0)], vec![(4, 0)], vec![(4, 0)]]);
    assert!(!given.contains("system"), "{given}");
}

#[test]
fn a_turn_that_does_not_fit_leaves_the_chat_usable() {
    let home = tempfile::tempdir().unwrap();
    let long = "to be or not to be ".repeat(40);
    let args = ["chat", "--greedy", "--backend", "cpu", "--context", "64"];
    let (out, log) = piped(&mut tread(home.path(), &args), &format!("{long}\nWho goes there?\n"));
    assert_eq!(out, "I am a man, sir.\n");
    assert!(log.contains("error: ") && log.contains("64") && log.contains("/reset"), "{log}");
}

#[test]
fn logits_are_the_oracles() {
    let home = tempfile::tempdir().unwrap();
    let folder = tiny_step3();
    let golden = fs::read(folder.join("golden.safetensors")).unwrap();
    let golden = SafeTensors::deserialize(&golden).unwrap();
    let prompts: Value = serde_json::from_slice(&fs::read(folder.join("golden.json")).unwrap()).unwrap();
    let tokens: Vec<String> =
        prompts["prompts"][3].as_array().unwrap().iter().map(Value::to_string).collect();
    let floats = |tensors: &SafeTensors<'_>, name: &str| -> (Vec<usize>, Vec<f32>) {
        let tensor = tensors.tensor(name).expect(name);
        let (bytes, _) = tensor.data().as_chunks::<4>();
        (tensor.shape().to_vec(), bytes.iter().map(|b| f32::from_le_bytes(*b)).collect())
    };
    for backend in ["cpu", "wgpu"] {
        let out = home.path().join("out.safetensors");
        let args = ["--tokens", &tokens.join(","), "--hidden", "--out", path(&out), "--backend", backend];
        succeeds(tread(home.path(), &["logits", path(&folder)]).args(args));
        let bytes = fs::read(&out).unwrap();
        let written = SafeTensors::deserialize(&bytes).unwrap();
        let mut compared = 0;
        let hidden = (0..).map(|n| (format!("hidden.{n}"), format!("hidden.3.{n}")));
        let hidden = hidden.take_while(|(name, _)| written.tensor(name).is_ok());
        for (name, golden_name) in [("logits".to_owned(), "logits.3".to_owned())].into_iter().chain(hidden) {
            let (shape, values) = floats(&written, &name);
            assert_eq!(shape[0], tokens.len(), "{name}");
            if golden.tensor(&golden_name).is_ok() {
                let (_, expected) = floats(&golden, &golden_name);
                let error = relative_l2(&values, &expected);
                assert!(error < 1e-4, "{backend}, {name}: {error:e}");
                compared += 1;
            }
        }
        assert_eq!(compared, 1 + golden.names().iter().filter(|n| n.starts_with("hidden.3.")).count());
    }
}

/// What `tread perplexity` says follows from what `tread logits` writes.
#[test]
fn perplexity_is_that_of_the_logits() {
    let home = tempfile::tempdir().unwrap();
    let (text, out) = (home.path().join("text"), home.path().join("out.safetensors"));
    fs::write(&text, "Enter the king.\nWhat news, my lord? The queen is dead, and all her women weep.\n")
        .unwrap();
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/nano");
    let model = Model::new("nano", Checkpoint::open(&folder).unwrap()).unwrap();
    let tokens = model.tokenizer().unwrap().encode(&fs::read_to_string(&text).unwrap(), false).unwrap();
    let window: Vec<_> = tokens[..16].iter().map(u32::to_string).collect();
    succeeds(&mut tread(home.path(), &["logits", "--tokens", &window.join(","), "--out", path(&out)]));
    let bytes = fs::read(&out).unwrap();
    let written = SafeTensors::deserialize(&bytes).unwrap();
    let (logits, vocab) = (written.tensor("logits").unwrap(), model.config.vocab_size());
    let (values, _) = logits.data().as_chunks::<4>();
    let values: Vec<f64> = values.iter().map(|b| f64::from(f32::from_le_bytes(*b))).collect();
    let surprises = (8..16).map(|at| {
        let row = &values[(at - 1) * vocab..at * vocab];
        row.iter().map(|logit| logit.exp()).sum::<f64>().ln() - row[tokens[at] as usize]
    });
    let expected = (surprises.sum::<f64>() / 8.0).exp();

    let args = ["perplexity", "--file", path(&text), "--context", "16", "--windows", "1"];
    let found = |printed: &str| printed.split(' ').nth(1).unwrap().parse::<f64>().unwrap();
    let printed = succeeds(&mut tread(home.path(), &args));
    assert!((found(&printed) / expected - 1.0).abs() < 1e-4, "{printed} {expected}");
    assert!(printed.ends_with("over 8 tokens\n") && !printed.contains("round"), "{printed}");
    for dtype in ["bf16", "fp8"] {
        let printed = succeeds(tread(home.path(), &args).args(["--afd-dtype", dtype]));
        let exact = printed.lines().find_map(|line| line.strip_prefix("without rounding ")).unwrap();
        assert!((exact.split(' ').next().unwrap().parse::<f64>().unwrap() / expected - 1.0).abs() < 1e-4);
        let change = (found(&printed) / expected - 1.0).abs();
        assert!(change > 0.0 && change < 0.2, "{printed} {expected}");
        // The same text over two pools.
        let pools = ["--afd-dtype", dtype, "--ffn", "cpu,cpu", "--backend", "cpu"];
        assert_eq!(succeeds(tread(home.path(), &args).args(pools)), printed);
    }
    let long = ["perplexity", "--file", path(&text), "--context", "512"];
    fails(&mut tread(home.path(), &long), &["tokens, less than a window of 512", "--context"]);
    fails(&mut tread(home.path(), &["perplexity", "--file", "no/such/text"]), &["no/such/text"]);
}

#[test]
fn inspect_and_doctor_describe() {
    let home = tempfile::tempdir().unwrap();
    let nano = succeeds(&mut tread(home.path(), &["inspect", "--tensors", "--context", "100"]));
    for part in [
        "step3_text",
        "active per token",
        "KV cache f16",
        "for 100 tokens",
        "moe.gate_proj.weight",
        "[8, 192, 256]",
    ] {
        assert!(nano.contains(part), "{part}: {nano}");
    }
    let graph = succeeds(&mut tread(home.path(), &["inspect", path(&tiny_step3()), "--graph"]));
    for part in ["ffn.router", "attn.q_norm", "layer 1", "logits"] {
        assert!(graph.contains(part), "{part}: {graph}");
    }
    let dot = succeeds(&mut tread(home.path(), &["inspect", path(&tiny_step3()), "--graph", "--dot"]));
    assert!(dot.starts_with("digraph") && dot.trim_end().ends_with('}') && dot.contains("->"), "{dot}");
    let catalog = succeeds(&mut tread(home.path(), &["inspect", "--catalog"]));
    assert!(["nano", "smollm2", "step3", "step3-fp8"].iter().all(|name| catalog.contains(name)), "{catalog}");
    let doctor = succeeds(&mut tread(home.path(), &["doctor"]));
    assert!(
        doctor.contains("adapter 0") && doctor.contains("back end: ") && doctor.contains("because"),
        "{doctor}"
    );
    fails(&mut tread(home.path(), &["inspect", "--graph", "--layer", "99"]), &["no layer 99"]);
}

#[test]
fn models_are_found_by_name_and_path() {
    let home = tempfile::tempdir().unwrap();
    let models = home.path().join("models");
    fs::create_dir(&models).unwrap();
    fs::write(models.join("mine.gguf"), Gguf::tiny().bytes()).unwrap();
    let found = succeeds(tread(home.path(), &["inspect", "mine"]).env("TREAD_MODELS", &models));
    assert!(found.contains("llama"), "{found}");
    let found = succeeds(&mut tread(home.path(), &["inspect", path(&models.join("mine.gguf"))]));
    assert!(found.contains("llama"), "{found}");
    fails(&mut tread(home.path(), &["inspect", "yours"]), &["no model `yours`", "nano", "org/name"]);
    fails(&mut tread(home.path(), &["inspect", "./yours.gguf"]), &["no model `./yours.gguf`"]);
    fails(&mut tread(home.path(), &["inspect", path(home.path())]), &["config.json"]);
}

#[test]
fn damaged_models_are_named() {
    let home = tempfile::tempdir().unwrap();
    let file = home.path().join("model.gguf");
    let whole = Gguf::tiny().bytes();
    for length in [0, 3, 100, whole.len() - 200] {
        fs::write(&file, &whole[..length]).unwrap();
        fails(&mut tread(home.path(), &["run", path(&file), "hello"]), &["model.gguf", "truncated"]);
    }
    fs::write(&file, Gguf::tiny().without("output_norm.weight").bytes()).unwrap();
    fails(&mut tread(home.path(), &["run", path(&file), "hello"]), &["model.norm.weight", "missing"]);
    fs::write(&file, Gguf::tiny().with("general.architecture", Meta::from("mamba")).bytes()).unwrap();
    fails(&mut tread(home.path(), &["run", path(&file), "hello"]), &["mamba", "not supported"]);
    let mut nan = Gguf::tiny();
    nan.tensor("blk.0.ffn_up.weight").bytes[..2].copy_from_slice(&[0, 0x7e]);
    fs::write(&file, nan.bytes()).unwrap();
    for backend in ["cpu", "wgpu"] {
        let mut command = tread(home.path(), &["run", path(&file), "hello", "--backend", backend]);
        fails(&mut command, &["up_proj.weight", "row 0", "NaN"]);
    }
}

#[test]
fn requests_that_cannot_be_met() {
    let home = tempfile::tempdir().unwrap();
    let run = |args: &[&str], parts: &[&str]| fails(tread(home.path(), &["run", "nano"]).args(args), parts);
    run(&["--tokens-in", "1,4294967295", "--tokens-out", "--backend", "cpu"], &["4294967295", "vocabulary"]);
    run(
        &["--tokens-in", "1,2,3,4", "--tokens-out", "--backend", "cpu", "--context", "3"],
        &["4", "3", "context"],
    );
    run(&["hello", "--context", "100000000"], &["context"]);
    run(&["hello", "--temperature", "NaN"], &["temperature"]);
    run(&["hello", "--top-p", "7"], &["top_p"]);
    run(&["hello", "--backend", "wgpu", "--adapter", "no such adapter"], &["no such adapter"]);
    let mut empty = tread(home.path(), &["run"]);
    fails(&mut empty, &["empty"]);
    let out = home.path().join("no/such/folder/out.safetensors");
    let mut logits = tread(home.path(), &["logits", "--tokens", "1", "--out", path(&out)]);
    fails(&mut logits, &["no/such/folder"]);
    let bare = tiny_step3();
    fails(&mut tread(home.path(), &["chat", path(&bare)]), &["chat template"]);
    fails(&mut tread(home.path(), &["run", path(&bare), "hello"]), &["tokenizer"]);
}
