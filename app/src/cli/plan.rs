//! Arguments of `tread plan` and `tread simulate`.

use std::path::PathBuf;

use clap::{Args, ValueEnum};

use crate::plan::{Efficiency, Instances};
use crate::simulate::Sweep;

const PLAN_HELP: &str = "\
Numbers may end in k (1024 tokens) or m; times in ms or s. docs/planning.md has the formulas.

Examples
  tread plan                                       Step-3 on the paper's hardware
  tread plan --model all --context 32k             the paper's tables
  tread plan --hardware l20,l4                     cards with little bandwidth
  tread plan --hardware h800 --context 4k --deployment 2A2F --batch 128";

const SIMULATE_HELP: &str = "\
Examples
  tread simulate                                   Step-3, as `tread plan` places it
  tread simulate --deployment 2A2F --batch 128 --context 4k --jitter 0.2
  tread simulate --sweep jitter=0..1:11 --format svg > jitter.svg
  tread simulate --trace trace.json                stage times as they were measured";

/// The model, its hardware and the goal.
#[derive(Args, Clone, Debug)]
pub(crate) struct GoalArgs {
    /// GPUs to choose from: h800, h20, a800, 910b, h100, h200, b200, a100, l40s, l20, l4.
    #[arg(long, value_delimiter = ',', default_value = "h800,h20,a800,910b")]
    pub(crate) hardware: Vec<String>,
    /// More hardware, or other prices: a TOML file like app/data/plan/hardware.toml.
    #[arg(long, value_name = "FILE")]
    pub(crate) hardware_file: Option<PathBuf>,
    /// Tokens in the cache of each sequence.
    #[arg(long, default_value = "8k", value_parser = tokens)]
    pub(crate) context: usize,
    /// Most time between two tokens of a sequence.
    #[arg(long, default_value = "50ms", value_parser = seconds)]
    pub(crate) tpot: f64,
    /// Micro-batches in flight [default: a trace's, else 3].
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..=64))]
    pub(crate) micro_batches: Option<u16>,
    /// How KV is cached and attention computed.
    #[arg(long, value_enum, default_value_t)]
    pub(crate) kv: KvPrecision,
    /// The same for the layers of hybrid models that look at all tokens.
    #[arg(long, value_enum, default_value = "bf16")]
    pub(crate) hybrid_kv: KvPrecision,
    /// What is reached of the peaks: `ideal`, or compute=, memory=, network=, pipeline=, overhead= (us), with commas.
    #[arg(long, default_value = "compute=0.7,memory=0.9,network=0.8,overhead=70,pipeline=0.73")]
    pub(crate) efficiency: Efficiency,
    /// Servers of attention and of FFN, as 2A2F [default: the cheapest].
    #[arg(long)]
    pub(crate) deployment: Option<Instances>,
    /// Sequences of a micro-batch on each attention GPU [default: the most that keep --tpot].
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=1 << 20))]
    pub(crate) batch: Option<u32>,
}

impl GoalArgs {
    /// How many are in flight where nothing says otherwise: one for each of attention, network and FFN.
    pub(crate) fn micro_batches(&self) -> usize {
        self.micro_batches.unwrap_or(3).into()
    }
}

#[derive(Args, Debug)]
#[command(after_help = PLAN_HELP)]
pub(crate) struct PlanArgs {
    /// step3, deepseek-v3, kimi-k2, qwen3-235b-a22b, qwen3-32b, llama4-maverick, minimax-m1, ernie-4.5, pangu-pro, all of
    /// them (`all`), or a config.json, a folder that has one, or a GGUF file.
    #[arg(long, value_delimiter = ',', default_value = "step3")]
    pub(crate) model: Vec<String>,
    #[command(flatten)]
    pub(crate) goal: GoalArgs,
    /// What is printed.
    #[arg(long, value_enum, default_value_t)]
    pub(crate) format: Format,
}

#[derive(Args, Debug)]
#[command(after_help = SIMULATE_HELP)]
pub(crate) struct SimulateArgs {
    /// The model whose stage times are predicted, as in `tread plan`.
    #[arg(long, default_value = "step3")]
    pub(crate) model: String,
    #[command(flatten)]
    pub(crate) goal: GoalArgs,
    #[command(flatten)]
    pub(crate) stages: StageArgs,
    #[command(flatten)]
    pub(crate) trouble: TroubleArgs,
    /// Steps (tokens of each sequence) that are measured.
    #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub(crate) steps: u32,
    /// Makes the draws repeatable.
    #[arg(long, default_value_t = 0)]
    pub(crate) seed: u64,
    /// Run once for each of several values, KEY=FROM..TO[:VALUES], and say where the budget breaks; KEY is jitter,
    /// stragglers, slowdown, imbalance, mtbf (seconds) or size (GPUs).
    #[arg(long)]
    pub(crate) sweep: Option<Sweep>,
    /// What is printed.
    #[arg(long, value_enum, default_value_t)]
    pub(crate) format: Format,
}

/// How long stages take, where it is not predicted.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Stage times")]
pub(crate) struct StageArgs {
    /// Microseconds of attention in a layer [default: predicted].
    #[arg(long, value_parser = microseconds)]
    pub(crate) attention_us: Option<f64>,
    /// Microseconds from attention to FFN.
    #[arg(long, value_parser = microseconds)]
    pub(crate) a2f_us: Option<f64>,
    /// Microseconds of the FFN.
    #[arg(long, value_parser = microseconds)]
    pub(crate) ffn_us: Option<f64>,
    /// Microseconds from FFN to attention.
    #[arg(long, value_parser = microseconds)]
    pub(crate) f2a_us: Option<f64>,
    /// Layers [default: the model's].
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=4096))]
    pub(crate) layers: Option<u32>,
    /// GPUs in an instance, which all must be done before its stage is [default: the hardware's].
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=4096))]
    pub(crate) gpus_per_instance: Option<u32>,
    /// What an FFN instance computes at a time [default: each with --trace, else all].
    #[arg(long, value_enum)]
    pub(crate) ffn_batch: Option<FfnBatch>,
    /// Draw stage times from a trace: Chrome's format, with events named attention, a2f, ffn and f2a.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["attention_us", "a2f_us", "ffn_us", "f2a_us"])]
    pub(crate) trace: Option<PathBuf>,
}

/// What makes stages uneven.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Trouble")]
pub(crate) struct TroubleArgs {
    /// Coefficient of variation of every stage time of every GPU (lognormal).
    #[arg(long, default_value_t = 0.05, value_parser = not_negative)]
    pub(crate) jitter: f64,
    /// Share of the GPUs that are always slow.
    #[arg(long, default_value_t = 0.0, value_parser = share)]
    pub(crate) stragglers: f64,
    /// How many times longer these take.
    #[arg(long, default_value_t = 1.5, value_parser = at_least_one)]
    pub(crate) slowdown: f64,
    /// Coefficient of variation of the load of FFN instances in a layer: hot experts.
    #[arg(long, default_value_t = 0.0, value_parser = not_negative)]
    pub(crate) imbalance: f64,
    /// Mean seconds between failures of an instance [default: none fails].
    #[arg(long, value_parser = positive)]
    pub(crate) mtbf: Option<f64>,
    /// Time after which a failed instance, or the one that replaces it, works again.
    #[arg(long, default_value = "500ms", value_parser = seconds)]
    pub(crate) recovery: f64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum FfnBatch {
    /// The parts of all attention instances together, as in the paper's system.
    All,
    /// The part of each attention instance as it comes, as Tread's workers do.
    Each,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum KvPrecision {
    /// One byte an element; INT8 where there is no FP8.
    #[default]
    Fp8,
    /// Two bytes an element.
    Bf16,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// Tables to read.
    #[default]
    Table,
    /// All numbers.
    Json,
    /// A plot.
    Svg,
}

fn tokens(text: &str) -> Result<usize, String> {
    let lower = text.to_lowercase();
    let (digits, unit) = match lower.as_bytes().last() {
        Some(b'k') => (&lower[..lower.len() - 1], 1 << 10),
        Some(b'm') => (&lower[..lower.len() - 1], 1 << 20),
        _ => (lower.as_str(), 1),
    };
    let number = digits.parse().ok().and_then(|number: usize| number.checked_mul(unit));
    number
        .filter(|tokens| (1..=1 << 28).contains(tokens))
        .ok_or_else(|| "not a number of tokens, as 8192 or 8k, of at most 256m".into())
}

fn seconds(text: &str) -> Result<f64, String> {
    let (number, unit) = match (text.strip_suffix("ms"), text.strip_suffix('s')) {
        (Some(number), _) => (number, 1e-3),
        (None, Some(number)) => (number, 1.0),
        (None, None) => return Err("a time needs a unit, as 50ms or 2s".into()),
    };
    positive(number.trim()).map(|number| number * unit)
}

fn number(text: &str, what: &str, good: impl Fn(f64) -> bool) -> Result<f64, String> {
    text.parse()
        .ok()
        .filter(|&number: &f64| number.is_finite() && good(number))
        .ok_or_else(|| what.to_owned())
}

fn positive(text: &str) -> Result<f64, String> {
    number(text, "not a number above 0", |number| number > 0.0)
}

fn not_negative(text: &str) -> Result<f64, String> {
    number(text, "not a number from 0 to 10", |number| (0.0..=10.0).contains(&number))
}

fn share(text: &str) -> Result<f64, String> {
    number(text, "not a share from 0 to 1", |number| (0.0..=1.0).contains(&number))
}

fn at_least_one(text: &str) -> Result<f64, String> {
    number(text, "not a number of at least 1", |number| number >= 1.0)
}

fn microseconds(text: &str) -> Result<f64, String> {
    number(text, "not a number of microseconds", |number| (0.0..1e9).contains(&number))
}
