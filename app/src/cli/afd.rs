//! Arguments that take attention and FFN apart.

use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use anyhow::Result;
use clap::{ArgGroup, Args};

#[cfg(feature = "cluster")]
use super::etcd::EtcdArgs;
use super::serve::seconds;
use super::worker::{EdgeChoice, ShardingChoice};
use crate::afd::transport::Carrier;
use crate::afd::{MICRO_BATCHES, Members};

#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Attention and FFN apart", group = ArgGroup::new("pool").multiple(true))]
pub(crate) struct AfdArgs {
    /// The FFN pool: devices of this process (cpu, wgpu, wgpu:ADAPTER) and addresses of `tread worker ffn`, as
    /// cpu,wgpu:0 or node-7:4000,node-8:4000; or @FILE with one address a line [default: FFNs run where attention does].
    /// Devices that are joined, as wgpu:0+wgpu:1, compute one shard together.
    #[arg(long, value_name = "PLACES", group = "pool")]
    pub(crate) ffn: Option<Members>,
    /// How FFNs are spread over the pool.
    #[arg(long, value_enum, default_value_t)]
    pub(crate) sharding: ShardingChoice,
    /// Over how many shards [default: as many as there are devices, or as the workers say]; further devices are standbys.
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=4096))]
    pub(crate) shards: Option<u32>,
    /// The type in which activations cross between attention and FFN; without a pool they are rounded all the same.
    #[arg(long, value_enum, default_value_t)]
    pub(crate) afd_dtype: EdgeChoice,
    /// What carries activations between attention and FFN workers elsewhere.
    #[arg(long, value_enum, default_value_t)]
    pub(crate) afd_transport: Carrier,
    /// Micro-batches in flight between attention and FFN.
    #[arg(long, default_value_t = MICRO_BATCHES as u32, value_parser = clap::value_parser!(u32).range(1..=64))]
    pub(crate) micro_batches: u32,
    /// Seconds for which what needs a worker waits for one to come back.
    #[arg(long, default_value = "30", value_name = "SECONDS", value_parser = seconds)]
    pub(crate) worker_hold: Duration,
    /// Who signs the workers' certificates (PEM) [default: connections are not encrypted].
    #[arg(long, value_name = "FILE")]
    pub(crate) worker_ca: Option<PathBuf>,
    /// File with the token that workers ask for.
    #[arg(long, value_name = "FILE")]
    pub(crate) worker_token_file: Option<PathBuf>,
    /// Where FFN workers are found without --ffn.
    #[cfg(feature = "cluster")]
    #[command(flatten)]
    pub(crate) etcd: EtcdArgs,
}

impl AfdArgs {
    /// The FFN pool, if there is one: as --ffn says, else in etcd.
    ///
    /// # Errors
    /// When what is said of etcd cannot be used.
    pub(crate) fn pool(&self) -> Result<Option<Members>> {
        #[cfg(feature = "cluster")]
        if self.ffn.is_none() {
            return Ok(self.etcd.etcd()?.map(Members::Etcd));
        }
        Ok(self.ffn.clone())
    }
}

/// How many workers each pool has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct PoolSizes {
    pub(crate) attention: usize,
    pub(crate) ffn: usize,
}

impl FromStr for PoolSizes {
    type Err = String;

    /// `2A2F`, as the paper writes it.
    fn from_str(text: &str) -> Result<Self, String> {
        let text = text.to_ascii_uppercase();
        let counts = text.strip_suffix('F').and_then(|text| text.split_once('A'));
        let counts = counts.and_then(|(a, f)| Some((a.parse().ok()?, f.parse().ok()?)));
        match counts {
            Some((attention @ 1..=64, ffn @ 1..=64)) => Ok(Self { attention, ffn }),
            _ => Err("must be the sizes of both pools, from 1 to 64, as 2A2F".to_owned()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pools_are_written_as_in_the_paper() {
        assert_eq!("2A3F".parse(), Ok(PoolSizes { attention: 2, ffn: 3 }));
        assert_eq!("1a1f".parse(), Ok(PoolSizes { attention: 1, ffn: 1 }));
        for wrong in ["", "A", "2A", "2F", "0A1F", "1A0F", "65A1F", "2A2F2", "2X2F", "2F2A"] {
            assert!(wrong.parse::<PoolSizes>().is_err(), "{wrong}");
        }
    }
}
