//! Arguments of `tread serve`.

use std::net::IpAddr;
use std::str::FromStr;
use std::time::Duration;

#[cfg(feature = "cluster")]
use anyhow::Context as _;
use anyhow::Result;
use clap::{Args, ValueEnum};

use super::{DeviceArgs, MODEL_HELP, PoolSizes};
use crate::afd::Members;

/// Where a server's engines are.
#[derive(Clone, Debug)]
pub(crate) enum AttentionPool {
    /// As the list says.
    Listed(Members),
    /// Wherever etcd says.
    #[cfg(feature = "cluster")]
    Registered,
}

impl FromStr for AttentionPool {
    type Err = String;

    /// `etcd`, else as [`Members`].
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            #[cfg(feature = "cluster")]
            "etcd" => Ok(Self::Registered),
            #[cfg(not(feature = "cluster"))]
            "etcd" => Err("this program was built without --features cluster".to_owned()),
            text => text.parse().map(Self::Listed),
        }
    }
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}

/// An engine that computes many requests together.
#[derive(Args, Clone, Debug)]
pub(crate) struct EngineArgs {
    #[command(flatten)]
    pub(crate) device: DeviceArgs,
    /// Most sequences computed together.
    #[arg(long, default_value_t = 32, value_parser = clap::value_parser!(u32).range(1..=4096))]
    pub(crate) max_sequences: u32,
    /// Most tokens computed in one step, prompts and answers together.
    #[arg(long, default_value_t = 256, value_parser = clap::value_parser!(u32).range(1..=1 << 16))]
    pub(crate) step_tokens: u32,
    /// Tokens in the KV cache, all sequences together [default: what 1 GiB holds, but no more than can be used and no
    /// less than one context].
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=1 << 28))]
    pub(crate) kv_tokens: Option<u32>,
    /// Compute every prompt anew, even where another began alike.
    #[arg(long)]
    pub(crate) no_prefix_cache: bool,
}

#[derive(Args, Clone, Debug)]
#[command(after_help = MODEL_HELP)]
pub(crate) struct ServeArgs {
    /// The model [default: nano].
    pub(crate) model: Option<String>,
    /// Address to listen on; 0.0.0.0 is every interface.
    #[arg(long, default_value = "127.0.0.1")]
    pub(crate) host: IpAddr,
    /// Port to listen on; 0 takes a free one [default: 8000; with --open a free one where that is taken].
    #[arg(long)]
    pub(crate) port: Option<u16>,
    /// Open the page in the browser.
    #[arg(long)]
    pub(crate) open: bool,
    /// Name under which clients ask for the model; repeatable, the first is reported [default: the model's own].
    #[arg(long, value_name = "NAME")]
    pub(crate) served_model_name: Vec<String>,
    /// Key that clients must send (`Authorization: Bearer KEY`); repeatable [default: none is asked for].
    #[arg(long, value_name = "KEY", env = "TREAD_API_KEY", value_delimiter = ',', hide_env_values = true)]
    pub(crate) api_key: Vec<String>,
    /// Web origin whose pages may call the server (https://example.org, or * for all); repeatable.
    #[arg(long, value_name = "ORIGIN")]
    pub(crate) cors_origin: Vec<String>,
    #[command(flatten)]
    pub(crate) engine: EngineArgs,
    /// What computes different requests at the same time, each with a KV cache of its own (data-parallel attention): devices
    /// of this process (cpu, wgpu, wgpu:ADAPTER) and addresses of `tread worker attention`, as wgpu:0,wgpu:1 or
    /// node-3:5000,node-4:5000; or @FILE with one address a line; or etcd, for the attention workers that are registered in
    /// --etcd [default: one device, as --backend says].
    #[arg(long, value_name = "PLACES", conflicts_with_all = ["backend", "adapter"], help_heading = "Attention and FFN apart")]
    pub(crate) attention: Option<AttentionPool>,
    /// Both pools on this machine, as 2A2F: so many attention workers and so many FFN workers as processes of their own,
    /// which are started again when they end.
    #[arg(long, value_name = "POOLS", conflicts_with_all = ["attention", "pool", "worker_ca", "worker_token_file"], help_heading = "Attention and FFN apart")]
    pub(crate) afd: Option<PoolSizes>,
    /// Most sequences that may wait beside those that run; more are refused with status 429.
    #[arg(long, default_value_t = 256, value_parser = clap::value_parser!(u32).range(0..=1 << 20))]
    pub(crate) max_queue: u32,
    /// Most bytes of a request.
    #[arg(long, default_value_t = 8 << 20, value_parser = clap::value_parser!(u64).range(1024..=1 << 32))]
    pub(crate) max_body_bytes: u64,
    /// Seconds for which a client may keep the server waiting: for a request's head or body, or to take its answer.
    #[arg(long, default_value = "60", value_name = "SECONDS", value_parser = seconds)]
    pub(crate) client_timeout: Duration,
    /// Seconds after which a request is given up.
    #[arg(long, default_value = "600", value_name = "SECONDS", value_parser = seconds)]
    pub(crate) request_timeout: Duration,
    /// Seconds that running and waiting requests have to finish after SIGTERM.
    #[arg(long, default_value = "60", value_name = "SECONDS", value_parser = seconds)]
    pub(crate) drain_timeout: Duration,
    /// How the log is written to standard error; RUST_LOG says what.
    #[arg(long, value_enum, default_value_t)]
    pub(crate) log_format: LogFormat,
    /// OpenTelemetry collector to which traces are sent over HTTP, such as http://localhost:4318 [default: none].
    #[arg(long, value_name = "URL", env = "OTEL_EXPORTER_OTLP_ENDPOINT")]
    pub(crate) otlp_endpoint: Option<String>,
}

impl ServeArgs {
    /// Where engines are that are not as --backend says.
    ///
    /// # Errors
    /// When what is said of etcd cannot be used.
    pub(crate) fn attention(&self) -> Result<Option<Members>> {
        match &self.attention {
            None => Ok(None),
            Some(AttentionPool::Listed(members)) => Ok(Some(members.clone())),
            #[cfg(feature = "cluster")]
            Some(AttentionPool::Registered) => {
                let etcd = self.engine.device.afd.etcd.etcd()?;
                Ok(Some(Members::Etcd(
                    etcd.context("--attention etcd needs --etcd, which says where that is")?,
                )))
            }
        }
    }
}

pub(super) fn seconds(text: &str) -> Result<Duration, String> {
    let seconds: f64 = text.parse().map_err(|_| "must be a number of seconds".to_owned())?;
    if (0.001..=1e7).contains(&seconds) {
        Ok(Duration::from_secs_f64(seconds))
    } else {
        Err("must be from 0.001 to 10000000 seconds".to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::seconds;

    #[test]
    fn seconds_are_positive_and_finite() {
        assert_eq!(seconds("1.5").map(|d| d.as_millis()), Ok(1500));
        for wrong in ["0", "-1", "inf", "NaN", "1e9", "", "1s"] {
            assert!(seconds(wrong).is_err(), "{wrong}");
        }
    }
}
