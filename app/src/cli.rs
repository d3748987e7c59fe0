//! The command line: one struct a subcommand, its help where users look.

mod afd;
mod bench;
#[cfg(all(test, feature = "cluster"))]
mod deploy;
#[cfg(feature = "cluster")]
mod etcd;
mod plan;
mod serve;
mod worker;

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};
use tread_shaders::Selector;

pub(crate) use afd::{AfdArgs, PoolSizes};
pub(crate) use bench::{BenchArgs, Endpoint, LoadArgs, Span};
#[cfg(feature = "cluster")]
pub(crate) use etcd::EtcdArgs;
pub(crate) use plan::{FfnBatch, Format, GoalArgs, KvPrecision, PlanArgs, SimulateArgs};
pub(crate) use serve::{EngineArgs, LogFormat, ServeArgs};
pub(crate) use worker::{AttentionWorkerArgs, FfnWorkerArgs, WorkerArgs, WorkerCommand};

const MODEL_HELP: &str = "\
MODEL is one of
  nothing               the built-in model `nano`
  a name                from the catalogue (nano, smollm2, llama-3.2-1b, step3, step3-fp8, ...; `tread inspect --help`)
  a path                a GGUF file, or a folder with config.json and safetensors
  a Hugging Face id     org/name, org/name:file.gguf, org/name@revision

Environment
  TREAD_MODELS          folder in which NAME.gguf or NAME/ is looked for first
  HF_ENDPOINT, HF_HOME, HF_TOKEN   the hub, its cache folder, and your token
  RUST_LOG              what is logged to stderr, for example RUST_LOG=info";

/// Chat with Step-3 and small everyday models on any GPU.
///
/// Without a subcommand: `serve --open`, the built-in model in your browser.
#[derive(Debug, Parser)]
#[command(version, after_help = MODEL_HELP)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Option<Command>,
}

#[derive(Debug, Subcommand)]
#[allow(clippy::large_enum_variant, reason = "a process has one")]
pub(crate) enum Command {
    /// Chat in the terminal.
    Chat(ChatArgs),
    /// Answer one prompt: for pipes and scripts.
    Run(RunArgs),
    /// Serve the page and the OpenAI API over HTTP.
    Serve(ServeArgs),
    /// Write a prompt's logits (and hidden states) to a safetensors file.
    Logits(LogitsArgs),
    /// Say how well a model foretells a text, and what rounding activations costs it.
    Perplexity(PerplexityArgs),
    /// Say what a model is and how much memory it needs.
    Inspect(InspectArgs),
    /// Say which GPUs were found and which back end is used, and why.
    Doctor,
    /// Measure load time, prefill and decode on every back end, or a server under load.
    Bench(BenchArgs),
    /// Be one of the workers of which a pool is made.
    #[command(subcommand)]
    Worker(WorkerCommand),
    /// Compute what decoding costs on which hardware, and how many attention and FFN servers keep a goal.
    Plan(PlanArgs),
    /// Simulate the pipeline of attention and FFN servers with jitter, stragglers and failures.
    Simulate(SimulateArgs),
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum BackendChoice {
    /// A real GPU if there is one, else the CPU.
    #[default]
    Auto,
    /// The plain CPU back end.
    Cpu,
    /// WGSL shaders through Vulkan, Metal or DX12; software drivers too.
    Wgpu,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum KvChoice {
    /// Four bytes an element: results equal to the reference.
    #[default]
    F32,
    /// Half the memory.
    F16,
}

#[derive(Args, Clone, Debug)]
pub(crate) struct DeviceArgs {
    /// What computes.
    #[arg(long, value_enum, default_value_t)]
    pub(crate) backend: BackendChoice,
    /// Which adapter, by its number in `tread doctor` or part of its name.
    #[arg(long)]
    pub(crate) adapter: Option<Selector>,
    /// How the KV cache is stored.
    #[arg(long, value_enum, default_value_t)]
    pub(crate) kv: KvChoice,
    /// Tokens of prompt and answer together [default: what the model can, at most 4096].
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=1 << 28))]
    pub(crate) context: Option<u32>,
    #[command(flatten)]
    pub(crate) afd: AfdArgs,
}

#[derive(Args, Clone, Debug)]
pub(crate) struct SamplingArgs {
    /// Most tokens to write [default: until the context is full].
    #[arg(long)]
    pub(crate) max_tokens: Option<usize>,
    /// 0 always takes the likeliest token [default: what the model suggests].
    #[arg(long)]
    pub(crate) temperature: Option<f32>,
    /// Choose among the K likeliest tokens; 0: among all.
    #[arg(long)]
    pub(crate) top_k: Option<usize>,
    /// Choose among the likeliest tokens that together have this probability.
    #[arg(long)]
    pub(crate) top_p: Option<f32>,
    /// Choose among tokens at least this probable relative to the likeliest.
    #[arg(long)]
    pub(crate) min_p: Option<f32>,
    /// Above 1 makes recent tokens less likely.
    #[arg(long)]
    pub(crate) repetition_penalty: Option<f32>,
    /// Makes the choice repeatable.
    #[arg(long)]
    pub(crate) seed: Option<u64>,
    /// Always take the likeliest token.
    #[arg(long, conflicts_with = "temperature")]
    pub(crate) greedy: bool,
}

#[derive(Args, Debug)]
#[command(after_help = MODEL_HELP)]
pub(crate) struct ChatArgs {
    /// The model [default: nano].
    pub(crate) model: Option<String>,
    /// System prompt.
    #[arg(long)]
    pub(crate) system: Option<String>,
    #[command(flatten)]
    pub(crate) sampling: SamplingArgs,
    #[command(flatten)]
    pub(crate) device: DeviceArgs,
}

#[derive(Args, Debug)]
#[command(after_help = MODEL_HELP)]
pub(crate) struct RunArgs {
    /// The model [default: nano].
    pub(crate) model: Option<String>,
    /// The prompt; read from standard input when it is not given.
    pub(crate) prompt: Option<String>,
    /// System prompt.
    #[arg(long, conflicts_with = "raw")]
    pub(crate) system: Option<String>,
    /// Continue the prompt as it stands, without the chat template.
    #[arg(long)]
    pub(crate) raw: bool,
    /// Prompt token ids instead of text: 1,2,3.
    #[arg(long, value_delimiter = ',', conflicts_with_all = ["prompt", "system", "raw"])]
    pub(crate) tokens_in: Option<Vec<u32>>,
    /// Print the ids of the answer, a stop token included, instead of its text.
    #[arg(long)]
    pub(crate) tokens_out: bool,
    /// Go on after stop tokens.
    #[arg(long)]
    pub(crate) ignore_eos: bool,
    /// Print the reasoning too when the output is not a terminal.
    #[arg(long)]
    pub(crate) reasoning: bool,
    /// Print a line of statistics to standard error.
    #[arg(long)]
    pub(crate) stats: bool,
    #[command(flatten)]
    pub(crate) sampling: SamplingArgs,
    #[command(flatten)]
    pub(crate) device: DeviceArgs,
}

#[derive(Args, Debug)]
#[command(after_help = MODEL_HELP)]
pub(crate) struct LogitsArgs {
    /// The model [default: nano].
    pub(crate) model: Option<String>,
    /// Token ids: 1,2,3.
    #[arg(long, value_delimiter = ',', required_unless_present = "text", conflicts_with = "text")]
    pub(crate) tokens: Option<Vec<u32>>,
    /// Text, tokenised as it stands.
    #[arg(long)]
    pub(crate) text: Option<String>,
    /// The file to write: f32 `logits` [tokens, vocabulary].
    #[arg(long)]
    pub(crate) out: PathBuf,
    /// Also write `hidden.N` [tokens, hidden]: after the embedding (N = 0) and after each layer.
    #[arg(long)]
    pub(crate) hidden: bool,
    #[command(flatten)]
    pub(crate) device: DeviceArgs,
}

#[derive(Args, Debug)]
#[command(after_help = MODEL_HELP)]
pub(crate) struct PerplexityArgs {
    /// The model [default: nano].
    pub(crate) model: Option<String>,
    /// The text. It is cut into windows of --context tokens (512 unless told otherwise); in each the second half is scored.
    #[arg(long)]
    pub(crate) file: PathBuf,
    /// Score at most so many windows [default: the whole text].
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) windows: Option<u32>,
    #[command(flatten)]
    pub(crate) device: DeviceArgs,
}

#[derive(Args, Debug)]
#[command(after_help = MODEL_HELP)]
pub(crate) struct InspectArgs {
    /// The model [default: nano].
    pub(crate) model: Option<String>,
    /// List all tensors with type and shape.
    #[arg(long)]
    pub(crate) tensors: bool,
    /// Print the graph of a layer.
    #[arg(long)]
    pub(crate) graph: bool,
    /// Which layer's graph [default: the first with experts, else 0].
    #[arg(long, requires = "graph")]
    pub(crate) layer: Option<usize>,
    /// Print that graph as Graphviz DOT, and nothing else.
    #[arg(long, requires = "graph")]
    pub(crate) dot: bool,
    /// Context length for which the KV cache is computed [default: what the model can].
    #[arg(long)]
    pub(crate) context: Option<usize>,
    /// List the catalogue of names and stop.
    #[arg(long)]
    pub(crate) catalog: bool,
}
