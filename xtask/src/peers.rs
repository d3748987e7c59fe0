//! `cargo xtask peers`: Tread and llama.cpp take turns on the same adapter and the same file, natively or in a browser.

mod browser;

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};
use serde::Deserialize;

use crate::machine;
use crate::process::{cargo, command, root, run as start};
use crate::test::use_vulkan_driver;

/// Arguments of `cargo xtask peers`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// GGUF file to run; SmolLM2-135M-Instruct when left out
    #[arg(long)]
    model: Option<PathBuf>,
    /// Compare in a headless Chromium, with llama.cpp's build for browsers
    #[arg(long)]
    browser: bool,
    /// Use the machine's GPU in place of the software adapter
    #[arg(long)]
    gpu: bool,
    /// Turns of each engine, each in a process of its own
    #[arg(long, default_value_t = 3)]
    turns: usize,
    /// Prompt tokens in a turn
    #[arg(long, default_value_t = 32)]
    prompt_tokens: usize,
    /// Generated tokens in a turn
    #[arg(long, default_value_t = 8)]
    new_tokens: usize,
}

impl Args {
    fn model(&self) -> Result<PathBuf> {
        match &self.model {
            Some(model) => Ok(std::path::absolute(model)?),
            None => machine::smollm2(),
        }
    }
}

/// What one engine measured in one turn.
#[derive(Debug, Deserialize)]
struct Measure {
    device: String,
    prefill_tokens_per_s: f64,
    decode_tokens_per_s: f64,
}

/// What `tread bench --json` prints, as far as it is needed here.
#[derive(Debug, Deserialize)]
struct Bench {
    results: Vec<Measure>,
}

/// Alternates the two and prints the medians and their ratios.
pub(crate) fn run(args: &Args) -> Result<()> {
    if args.browser {
        return browser::run(args);
    }
    let peer = machine::llama_cpp()?;
    let driver = if args.gpu { None } else { machine::software_vulkan()? };
    let model = args.model()?;
    start(&mut cargo(&["build", "--release", "--package", "tread"])?)?;
    let counts = [args.prompt_tokens.to_string(), args.new_tokens.to_string()];

    let (mut ours, mut theirs) = (vec![], vec![]);
    for turn in 1..=args.turns.max(1) {
        eprintln!("turn {turn} of {}", args.turns.max(1));
        ours.push(tread(&model, &counts, driver.as_deref())?);
        theirs.push(llama_cpp(&peer, &model, &counts, driver.as_deref())?);
    }

    println!(
        "{} | {} prompt tokens, {} generated, median of {}",
        model.display(),
        counts[0],
        counts[1],
        ours.len()
    );
    println!("tread:     {}", ours[0].device);
    println!("llama.cpp: {}", theirs[0].device);
    println!("{:<10}{:>14}{:>14}{:>9}", "tokens/s", "tread", "llama.cpp", "ratio");
    for (name, measure) in [
        ("prefill", (|m: &Measure| m.prefill_tokens_per_s) as fn(&Measure) -> f64),
        ("decode", |m| m.decode_tokens_per_s),
    ] {
        let (ours, theirs) = (median(&ours, measure), median(&theirs, measure));
        println!("{name:<10}{ours:>14.2}{theirs:>14.2}{:>8.2}x", ours / theirs);
    }
    Ok(())
}

/// One turn of Tread.
fn tread(model: &Path, counts: &[String; 2], driver: Option<&Path>) -> Result<Measure> {
    let mut bench = cargo(&["run", "--quiet", "--release", "--package", "tread", "--", "bench"])?;
    bench.arg(model).args(["--backend", "wgpu", "--json"]);
    bench.args(["--prompt-tokens", &counts[0], "--new-tokens", &counts[1]]);
    let bench: Bench = measure(&mut bench, driver)?;
    let [measure] = <[Measure; 1]>::try_from(bench.results).map_err(|results| {
        anyhow::anyhow!("`tread bench` gave {} results for one back end", results.len())
    })?;
    Ok(measure)
}

/// One turn of llama.cpp.
fn llama_cpp(peer: &Path, model: &Path, counts: &[String; 2], driver: Option<&Path>) -> Result<Measure> {
    let mut node = command("node", [root()?.join("xtask/peers.mjs")]);
    node.arg(peer).arg(model).args(counts);
    // llama.cpp passes over software adapters unless told to take this one.
    node.env("GGML_VK_VISIBLE_DEVICES", "0");
    measure(&mut node, driver)
}

/// Runs `command` on `driver` and reads the JSON that it prints last.
fn measure<T: serde::de::DeserializeOwned>(command: &mut Command, driver: Option<&Path>) -> Result<T> {
    if let Some(driver) = driver {
        use_vulkan_driver(command, driver);
    }
    // llama.cpp logs a thousand lines, which only help when it fails.
    let output = command.output().with_context(|| format!("cannot start {command:?}"))?;
    if !output.status.success() {
        bail!("{command:?} failed ({}):\n{}", output.status, String::from_utf8_lossy(&output.stderr));
    }
    let printed = String::from_utf8(output.stdout)?;
    let json = printed.lines().last().unwrap_or_default();
    serde_json::from_str(json).with_context(|| format!("{command:?} printed {printed:?}"))
}

fn median<T>(measures: &[T], of: impl Fn(&T) -> f64) -> f64 {
    let mut values: Vec<f64> = measures.iter().map(of).collect();
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    if values.len() % 2 == 1 { values[middle] } else { f64::midpoint(values[middle - 1], values[middle]) }
}
