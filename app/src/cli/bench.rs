//! Arguments of `tread bench`.

use std::path::PathBuf;
use std::str::FromStr;

use clap::{Args, ValueEnum};
use tread_shaders::Selector;

use super::{AfdArgs, BackendChoice, KvChoice, MODEL_HELP};

#[derive(Args, Debug)]
#[command(after_help = MODEL_HELP)]
pub(crate) struct BenchArgs {
    /// The model [default: nano].
    pub(crate) model: Option<String>,
    /// Tokens of the prompt; with --serve also a range from which each request draws, as 32..256.
    #[arg(long, default_value = "128")]
    pub(crate) prompt_tokens: Span,
    /// Tokens to write; likewise.
    #[arg(long, default_value = "32")]
    pub(crate) new_tokens: Span,
    /// Times each measurement is repeated; medians are printed.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub(crate) repeat: u32,
    /// Only this back end [default: all there are; with --serve, a real GPU if there is one, else the CPU].
    #[arg(long, value_enum, default_value_t)]
    pub(crate) backend: BackendChoice,
    /// Which adapter, by its number in `tread doctor` or part of its name.
    #[arg(long)]
    pub(crate) adapter: Option<Selector>,
    /// How the KV cache is stored.
    #[arg(long, value_enum, default_value_t)]
    pub(crate) kv: KvChoice,
    /// Print one line of JSON.
    #[arg(long)]
    pub(crate) json: bool,
    /// Take attention and FFN apart: occupancy of every stage, bytes that cross, and what pipelining gives. With one FFN
    /// worker, a process of its own, unless --ffn says where they are.
    #[arg(long, conflicts_with = "serve")]
    pub(crate) afd: bool,
    /// Write the last measured step as a trace for Chrome, Perfetto, or `tread simulate --trace`.
    #[arg(long, requires = "afd", value_name = "FILE")]
    pub(crate) trace: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) apart: AfdArgs,
    #[command(flatten)]
    pub(crate) load: LoadArgs,
}

/// What `tread bench --serve` adds.
#[derive(Args, Debug)]
#[command(next_help_heading = "Load on a server")]
pub(crate) struct LoadArgs {
    /// Send many requests to a server; print latencies and throughput.
    #[arg(long)]
    pub(crate) serve: bool,
    /// Any OpenAI endpoint, as http://host:port [default: a server of MODEL, started for this run].
    #[arg(long, requires = "serve", conflicts_with_all = ["backend", "adapter", "kv", "serve_args"])]
    pub(crate) url: Option<String>,
    /// The endpoint's key.
    #[arg(long, env = "OPENAI_API_KEY", hide_env_values = true)]
    pub(crate) api_key: Option<String>,
    /// What requests are sent to.
    #[arg(long, requires = "serve", value_enum, default_value_t)]
    pub(crate) endpoint: Endpoint,
    /// Leave out what the OpenAI API itself does not know (`ignore_eos`): answers may then end early.
    #[arg(long, requires = "serve")]
    pub(crate) strict: bool,
    /// Requests at a time, each replaced when it is answered; several numbers are measured one after the other.
    #[arg(long, requires = "serve", value_delimiter = ',', default_value = "1,4,16", value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub(crate) concurrency: Vec<u32>,
    /// Requests a second that arrive at random (Poisson), whatever was answered by then; inf: all at once.
    #[arg(long, requires = "serve", conflicts_with = "concurrency", value_parser = positive)]
    pub(crate) rate: Option<f64>,
    /// Requests in all [default: 64 with --rate, else 4 times --concurrency, at least 8; no limit with --duration].
    #[arg(long, requires = "serve", value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) requests: Option<u64>,
    /// Seconds after which no request is sent any more.
    #[arg(long, requires = "serve", value_parser = positive)]
    pub(crate) duration: Option<f64>,
    /// Makes lengths, prompts and arrivals repeatable.
    #[arg(long, requires = "serve", default_value_t = 0)]
    pub(crate) seed: u64,
    /// Passed on to `tread serve`.
    #[arg(last = true, requires = "serve")]
    pub(crate) serve_args: Vec<String>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum Endpoint {
    /// Prompts of token ids, of exactly the length that is asked for.
    #[default]
    Completions,
    /// Prompts of as many words: templates and tokenizers change the length a little.
    Chat,
}

/// A number of tokens, or a range of them.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Span {
    pub(crate) least: u32,
    pub(crate) most: u32,
}

impl Span {
    /// The number, where a range makes no sense.
    pub(crate) fn single(self) -> anyhow::Result<usize> {
        let Self { least, most } = self;
        anyhow::ensure!(
            least == most,
            "{least}..{most} is a range, which only --serve draws from: give one number"
        );
        Ok(least as usize)
    }
}

impl FromStr for Span {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (least, most) = text.split_once("..").unwrap_or((text, text));
        let number = |text: &str| match text.parse() {
            Ok(number @ 1..=0x10_0000) => Ok(number),
            _ => Err(format!("`{text}` is not a number of tokens from 1 to 1048576")),
        };
        let span = Self { least: number(least)?, most: number(most)? };
        if span.least > span.most {
            return Err(format!("{least} is more than {most}"));
        }
        Ok(span)
    }
}

fn positive(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(number) if number > 0.0 => Ok(number),
        _ => Err("not a number above 0".into()),
    }
}
