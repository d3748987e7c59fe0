//! `tread perplexity`: how well a model foretells a text. Where activations are rounded between attention and FFN
//! (`--afd-dtype`), the same text is also computed without, and what that changes is told.

use std::sync::Arc;
use std::{fmt, fs};

use anyhow::{Context as _, Result, ensure};
use tread_core::backend::{CompileOptions, Executable};
use tread_core::graph::EdgeDType;
use tread_core::model::Model;

use crate::cli::{AfdArgs, PerplexityArgs};
use crate::{devices, engine, load, logits, progress};

/// Tokens of a window, unless told otherwise.
const WINDOW: usize = 512;

pub(crate) fn run(args: &PerplexityArgs) -> Result<()> {
    let file = args.file.display();
    let text = fs::read_to_string(&args.file).with_context(|| format!("reading {file}"))?;
    let model = Arc::new(load::model(args.model.as_deref())?);
    let window = match args.device.context {
        Some(_) => engine::context_length(&model, &args.device)?,
        None => WINDOW.min(model.config.context_length()),
    };
    ensure!(window > 1, "a window of one token has nothing to foretell: use a larger --context");
    let tokens = model.tokenizer()?.encode(&text, false)?;
    let most = args.windows.map_or(usize::MAX, |windows| windows as usize);
    let windows: Vec<_> = tokens.chunks_exact(window).take(most).collect();
    ensure!(
        !windows.is_empty(),
        "{file} has {} tokens, less than a window of {window}: use a longer text or a smaller --context",
        tokens.len()
    );

    let afd = &args.device.afd;
    let mut own = Subject::new(&model, args, window, afd)?;
    let rounds = EdgeDType::from(afd.afd_dtype) != EdgeDType::F32;
    let exact = AfdArgs { ffn: None, afd_dtype: Default::default(), ..afd.clone() };
    let mut exact = if rounds { Some(Subject::new(&model, args, window, &exact)?) } else { None };

    let (mut score, mut exact_score, mut change) = (Score::default(), Score::default(), Change::default());
    let bar = progress::count("scoring", windows.len() as u64);
    for tokens in &windows {
        let found = own.scored(tokens)?;
        score.add(&found, tokens);
        if let Some(exact) = &mut exact {
            let expected = exact.scored(tokens)?;
            exact_score.add(&expected, tokens);
            expected.iter().zip(&found).for_each(|(expected, found)| change.add(expected, found));
        }
        bar.inc(1);
    }
    bar.finish_and_clear();
    eprintln!("{} windows of {window} tokens on {}", windows.len(), own.device);
    println!("perplexity {score} over {} tokens", score.tokens);
    if rounds {
        println!("without rounding {exact_score}");
        println!("{change}");
    }
    Ok(())
}

/// What computes.
struct Subject {
    device: String,
    vocab: usize,
    executable: Box<dyn Executable>,
}

impl Subject {
    fn new(model: &Arc<Model>, args: &PerplexityArgs, window: usize, afd: &AfdArgs) -> Result<Self> {
        let device = &args.device;
        let backend = devices::apart(model, devices::open(device.backend, device.adapter.as_ref())?, afd)?;
        let rows = engine::PREFILL_ROWS.min(window);
        let options = CompileOptions::single(window, rows, device.kv.into());
        let executable = engine::compile(model, &*backend, options)?;
        Ok(Self { device: backend.device(), vocab: model.config.vocab_size(), executable })
    }

    /// The logits from which the second half of a window is foretold, `[vocabulary]` each.
    fn scored(&mut self, tokens: &[u32]) -> Result<Vec<Vec<f32>>> {
        let (mut rows, mut at) = (vec![], 0);
        let scored = first_scored(tokens) - 1..tokens.len() - 1;
        logits::in_chunks(&mut *self.executable, tokens, false, &mut |output| {
            for row in output.logits.chunks_exact(self.vocab) {
                if scored.contains(&at) {
                    rows.push(row.to_vec());
                }
                at += 1;
            }
        })?;
        Ok(rows)
    }
}

/// Where the second half of a window begins.
fn first_scored(tokens: &[u32]) -> usize {
    tokens.len().div_ceil(2)
}

/// How well tokens were foretold.
#[derive(Default)]
struct Score {
    tokens: usize,
    /// Of -ln p, and of its square.
    sums: [f64; 2],
}

impl Score {
    /// Adds the second half of a window.
    fn add(&mut self, logits: &[Vec<f32>], window: &[u32]) {
        for (logits, &token) in logits.iter().zip(&window[first_scored(window)..]) {
            let surprise = -log_probabilities(logits).nth(token as usize).unwrap_or(f64::NEG_INFINITY);
            self.tokens += 1;
            self.sums = [self.sums[0] + surprise, self.sums[1] + surprise * surprise];
        }
    }
}

impl fmt::Display for Score {
    /// The perplexity, and its standard error by that of the mean surprise.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [mean, square] = self.sums.map(|sum| sum / self.tokens as f64);
        let error = ((square - mean * mean).max(0.0) / self.tokens as f64).sqrt();
        write!(f, "{:.4} ± {:.4}", mean.exp(), mean.exp() * error)
    }
}

/// What rounding changes.
#[derive(Default)]
struct Change {
    positions: usize,
    same_top: usize,
    /// Of KL divergences, in nats.
    divergence: f64,
    /// Of squared differences of logits, and how many there are.
    squares: (f64, usize),
    largest: f64,
}

impl Change {
    fn add(&mut self, exact: &[f32], rounded: &[f32]) {
        let top =
            |logits: &[f32]| logits.iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1)).map(|(at, _)| at);
        self.positions += 1;
        self.same_top += usize::from(top(exact) == top(rounded));
        let pairs = log_probabilities(exact).zip(log_probabilities(rounded));
        self.divergence += pairs.map(|(p, q)| p.exp() * (p - q)).sum::<f64>();
        for (exact, rounded) in exact.iter().zip(rounded) {
            let difference = f64::from(rounded - exact).abs();
            self.squares = (self.squares.0 + difference * difference, self.squares.1 + 1);
            self.largest = self.largest.max(difference);
        }
    }
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let positions = self.positions as f64;
        write!(
            f,
            "rounding moves a logit by {:.4} (root mean square; {:.4} at most), distributions by {:.6} nats (mean KL \
             divergence), and leaves {:.2} % of the likeliest tokens",
            (self.squares.0 / self.squares.1 as f64).sqrt(),
            self.largest,
            self.divergence / positions,
            100.0 * self.same_top as f64 / positions
        )
    }
}

/// The log softmax, in float64.
fn log_probabilities(logits: &[f32]) -> impl Iterator<Item = f64> {
    let most = f64::from(logits.iter().copied().fold(f32::NEG_INFINITY, f32::max));
    let sum: f64 = logits.iter().map(|&logit| (f64::from(logit) - most).exp()).sum();
    logits.iter().map(move |&logit| f64::from(logit) - most - sum.ln())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_even_odds_the_perplexity_is_their_number() {
        let mut score = Score::default();
        score.add(&[vec![2.5; 10], vec![-1.0; 10]], &[0, 1, 2, 9]);
        assert_eq!(score.to_string(), "10.0000 ± 0.0000");
        // Half of the odds for one of them, twice as much for the other.
        let mut score = Score::default();
        score.add(&[vec![0.0, 0.0], vec![0.0; 8]], &[0, 0, 0, 7]);
        assert!(score.to_string().starts_with("4.0000 ± "), "{score}");
    }

    #[test]
    fn changes_are_measured() {
        let mut change = Change::default();
        change.add(&[1.0, 0.0], &[1.0, 0.0]);
        assert_eq!((change.same_top, change.divergence, change.largest), (1, 0.0, 0.0));
        change.add(&[0.0, f32::ln(3.0)], &[f32::ln(3.0), 0.0]);
        assert_eq!((change.positions, change.same_top), (2, 1));
        // 3/4 ln 3 - 1/4 ln 3.
        assert!((change.divergence - 0.5 * 3f64.ln()).abs() < 1e-6, "{}", change.divergence);
        assert!((change.largest - 3f64.ln()).abs() < 1e-6, "{}", change.largest);
    }
}
