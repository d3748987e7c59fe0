//! The page's engine and llama.cpp's build for browsers take turns in Chromium.

use std::path::Path;

use anyhow::Result;
use serde::Deserialize;

use super::{Args, measure, median};
use crate::process::{cargo, root, run as start};
use crate::{machine, web};

/// An engine as `browser-peers` knows it, and as it is printed.
///
/// llama.cpp's WebGPU build has one thread and its CPU build several, so both take part, as do both of our devices.
const ENGINES: [(&str, &str); 4] = [
    ("tread-gpu", "tread, WebGPU"),
    ("tread-cpu", "tread, CPU"),
    ("llama-webgpu", "llama.cpp, WebGPU build"),
    ("llama-cpu", "llama.cpp, CPU build"),
];

/// How many of them are ours.
const OURS: usize = 2;

/// What one engine measured in one turn.
#[derive(Debug, Deserialize)]
struct Measure {
    device: String,
    prefill_tokens_per_s: f64,
    decode_tokens_per_s: f64,
    time_to_first_token_s: f64,
}

/// Lets all take turns and prints the medians, and the ratios of the best.
pub(super) fn run(args: &Args) -> Result<()> {
    machine::chromium()?;
    let peer = machine::llama_cpp_web()?;
    let model = args.model()?;
    web::build()?;
    start(&mut cargo(&["build", "--package", "tread-tests", "--bin", "browser-peers"])?)?;

    let turns = args.turns.max(1);
    let mut measures = ENGINES.map(|_| vec![]);
    for turn in 1..=turns {
        for ((engine, name), measures) in ENGINES.iter().zip(&mut measures) {
            eprintln!("turn {turn} of {turns}: {name}");
            measures.push(take_turn(engine, args, &peer, &model)?);
        }
    }

    println!(
        "{} | {} prompt tokens, {} generated, median of {turns}",
        model.display(),
        args.prompt_tokens,
        args.new_tokens
    );
    for ((_, name), measures) in ENGINES.iter().zip(&measures) {
        println!("{:<26}{}", format!("{name}:"), measures[0].device);
    }
    print(&measures);
    Ok(())
}

/// One turn, in a browser of its own.
fn take_turn(engine: &str, args: &Args, peer: &Path, model: &Path) -> Result<Measure> {
    let mut turn = cargo(&["run", "--quiet", "--package", "tread-tests", "--bin", "browser-peers", "--"])?;
    turn.args([engine, if args.gpu { "machine" } else { "software" }]);
    turn.arg(root()?.join("web/dist")).arg(peer).arg(model);
    turn.args([args.prompt_tokens, args.new_tokens].map(|n| n.to_string()));
    measure(&mut turn, None)
}

fn print(measures: &[Vec<Measure>]) {
    println!("{:<26}{:>15}{:>15}{:>15}", "", "prefill tok/s", "decode tok/s", "first token ms");
    // A rate for each column: the more, the better.
    let rates = measures.iter().map(|measures| {
        [
            median(measures, |m| m.prefill_tokens_per_s),
            median(measures, |m| m.decode_tokens_per_s),
            1.0 / median(measures, |m| m.time_to_first_token_s),
        ]
    });
    let rates: Vec<[f64; 3]> = rates.collect();
    for ((_, name), [prefill, decode, first]) in ENGINES.iter().zip(&rates) {
        println!("{name:<26}{prefill:>15.2}{decode:>15.2}{:>15.0}", 1000.0 / first);
    }
    let best = |rates: &[[f64; 3]], column: usize| rates.iter().map(|r| r[column]).fold(0.0, f64::max);
    let (ours, theirs) = rates.split_at(OURS);
    let [prefill, decode, first] = [0, 1, 2].map(|column| best(ours, column) / best(theirs, column));
    println!("{:<26}{prefill:>14.2}x{decode:>14.2}x{first:>14.2}x", "best to best");
}
