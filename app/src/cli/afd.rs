//! Arguments that take attention and FFN apart.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;

use super::serve::seconds;
use super::worker::{EdgeChoice, ShardingChoice};
use crate::afd::Members;

#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Attention and FFN apart")]
pub(crate) struct AfdArgs {
    /// The FFN pool: devices of this process (cpu, wgpu, wgpu:ADAPTER) and addresses of `tread worker ffn`, as
    /// cpu,wgpu:0 or node-7:4000,node-8:4000; or @FILE with one address a line [default: FFNs run where attention does].
    #[arg(long, value_name = "PLACES")]
    pub(crate) ffn: Option<Members>,
    /// How FFNs are spread over the pool.
    #[arg(long, value_enum, default_value_t)]
    pub(crate) sharding: ShardingChoice,
    /// Over how many shards [default: as many as there are devices, or as the workers say]; further devices are standbys.
    #[arg(long, requires = "ffn", value_parser = clap::value_parser!(u32).range(1..=4096))]
    pub(crate) shards: Option<u32>,
    /// The type in which activations cross between attention and FFN; without a pool they are rounded all the same.
    #[arg(long, value_enum, default_value_t)]
    pub(crate) afd_dtype: EdgeChoice,
    /// Micro-batches in flight between attention and FFN.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=64))]
    pub(crate) micro_batches: u32,
    /// Seconds for which a call waits for an FFN worker to come back.
    #[arg(long, default_value = "30", value_name = "SECONDS", value_parser = seconds)]
    pub(crate) ffn_hold: Duration,
    /// Who signs the FFN workers' certificates (PEM) [default: connections are not encrypted].
    #[arg(long, requires = "ffn", value_name = "FILE")]
    pub(crate) ffn_ca: Option<PathBuf>,
    /// File with the token that FFN workers ask for.
    #[arg(long, requires = "ffn", value_name = "FILE")]
    pub(crate) ffn_token_file: Option<PathBuf>,
}
