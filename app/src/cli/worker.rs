//! Arguments of `tread worker`.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use clap::{Args, Subcommand, ValueEnum};
use tread_core::afd::Sharding;
use tread_core::graph::EdgeDType;
use tread_shaders::Selector;

#[cfg(feature = "cluster")]
use super::etcd::EtcdArgs;
use super::serve::seconds;
use super::{BackendChoice, EngineArgs, MODEL_HELP};
#[cfg(feature = "cluster")]
use crate::afd::Place;
use crate::afd::transport::Carrier;

#[derive(Debug, Subcommand)]
#[allow(clippy::large_enum_variant, reason = "a process has one")]
pub(crate) enum WorkerCommand {
    /// Hold a shard of a model's FFNs and compute them for attention workers.
    Ffn(FfnWorkerArgs),
    /// Be an engine (attention, KV cache, sampling) for servers, which are told of it by --attention.
    Attention(AttentionWorkerArgs),
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum ShardingChoice {
    /// Each worker has some layers, whole.
    #[default]
    Layers,
    /// Each worker has some experts of all layers.
    Experts,
}

impl From<ShardingChoice> for Sharding {
    fn from(choice: ShardingChoice) -> Self {
        match choice {
            ShardingChoice::Layers => Self::Layers,
            ShardingChoice::Experts => Self::Experts,
        }
    }
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum EdgeChoice {
    /// As they are computed: results equal to one device.
    #[default]
    F32,
    /// Half the bytes.
    Bf16,
    /// A quarter of the bytes to the FFN, half of them back.
    Fp8,
}

impl From<EdgeChoice> for EdgeDType {
    fn from(choice: EdgeChoice) -> Self {
        match choice {
            EdgeChoice::F32 => Self::F32,
            EdgeChoice::Bf16 => Self::BF16,
            EdgeChoice::Fp8 => Self::F8,
        }
    }
}

#[derive(Args, Debug)]
#[command(after_help = MODEL_HELP)]
pub(crate) struct FfnWorkerArgs {
    /// The model [default: nano].
    pub(crate) model: Option<String>,
    /// Which shard it holds, of how many; several workers may hold the same one.
    #[arg(long, value_name = "N/OF", default_value = "0/1")]
    pub(crate) shard: ShardOf,
    /// How FFNs are spread over the shards.
    #[arg(long, value_enum, default_value_t)]
    pub(crate) sharding: ShardingChoice,
    /// The type in which activations cross between attention and FFN.
    #[arg(long, value_enum, default_value_t)]
    pub(crate) afd_dtype: EdgeChoice,
    /// What carries activations.
    #[arg(long, value_enum, default_value_t)]
    pub(crate) transport: Carrier,
    /// Most rows of a call, and of calls computed together.
    #[arg(long, default_value_t = 512, value_parser = clap::value_parser!(u32).range(1..=1 << 16))]
    pub(crate) max_rows: u32,
    /// Most calls at a time of each attention worker.
    #[arg(long, default_value_t = 16, value_parser = clap::value_parser!(u32).range(1..=1024))]
    pub(crate) slots: u32,
    /// What computes, as lists of devices have it: cpu, wgpu, wgpu:ADAPTER. Several that are joined, as wgpu:0+wgpu:1, compute
    /// the shard together: each has some rows of every matrix.
    #[arg(long, conflicts_with_all = ["backend", "adapter"])]
    pub(crate) device: Option<String>,
    /// What computes.
    #[arg(long, value_enum, default_value_t)]
    pub(crate) backend: BackendChoice,
    /// Which adapter, by its number in `tread doctor` or part of its name.
    #[arg(long)]
    pub(crate) adapter: Option<Selector>,
    #[command(flatten)]
    pub(crate) worker: WorkerArgs,
    #[cfg(feature = "cluster")]
    #[command(flatten)]
    pub(crate) etcd: EtcdArgs,
}

#[derive(Args, Debug)]
#[command(after_help = MODEL_HELP)]
pub(crate) struct AttentionWorkerArgs {
    /// The model [default: nano].
    pub(crate) model: Option<String>,
    #[command(flatten)]
    pub(crate) engine: EngineArgs,
    #[command(flatten)]
    pub(crate) worker: WorkerArgs,
}

/// Where a worker is reached, by whom, and how it ends.
#[derive(Args, Debug)]
pub(crate) struct WorkerArgs {
    /// Address to listen on; port 0 takes a free one. Beyond this machine only with --tls-cert, --tls-key, --token-file.
    #[arg(long, default_value = "127.0.0.1:0")]
    pub(crate) listen: SocketAddr,
    /// Certificate (PEM) with which connections are encrypted.
    #[arg(long, value_name = "FILE", requires = "tls_key")]
    pub(crate) tls_cert: Option<PathBuf>,
    /// The certificate's key (PEM).
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    pub(crate) tls_key: Option<PathBuf>,
    /// File with the token that those who use the worker must know.
    #[arg(long, value_name = "FILE")]
    pub(crate) token_file: Option<PathBuf>,
    /// Address at which others reach this worker, registered in etcd [default: where it listens].
    #[cfg(feature = "cluster")]
    #[arg(long, value_name = "HOST:PORT", requires = "etcd", value_parser = address)]
    pub(crate) advertise: Option<String>,
    /// End when standard input does: so that a worker does not outlive who started it.
    #[arg(long, hide = true)]
    pub(crate) while_stdin: bool,
    /// Seconds that those who use the worker have to finish or to go elsewhere after SIGTERM.
    #[arg(long, default_value = "60", value_name = "SECONDS", value_parser = seconds)]
    pub(crate) drain_timeout: Duration,
}

#[cfg(feature = "cluster")]
fn address(text: &str) -> Result<String, String> {
    match text.parse()? {
        Place::Address(address) => Ok(address),
        Place::Device { name, .. } => {
            Err(format!("{name} is a device, but others need an address (host:port)"))
        }
    }
}

/// A shard and the number of all.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ShardOf {
    pub(crate) shard: usize,
    pub(crate) of: usize,
}

impl FromStr for ShardOf {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parsed =
            text.split_once('/').and_then(|(shard, of)| Some((shard.parse().ok()?, of.parse().ok()?)));
        match parsed {
            Some((shard, of)) if shard < of => Ok(Self { shard, of }),
            _ => Err("must be the number of a shard, counted from 0, and of all shards: 0/2".to_owned()),
        }
    }
}
