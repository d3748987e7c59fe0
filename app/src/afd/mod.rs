//! Attention here, FFNs elsewhere (Step-3 paper, section 4): a pool of FFN workers, in this process or at addresses, whose
//! workers may die, stop and come back while tokens go on.
//!
//! [`load`] makes an executable of a model out of it. [`pool`] keeps calls until they are answered, [`transport`] carries
//! them, [`host`] is a worker. With the feature `cluster`, `etcd` knows who belongs to a pool.

mod backend;
#[cfg(feature = "cluster")]
pub mod etcd;
pub mod hello;
pub mod host;
mod life;
mod place;
pub mod pool;
pub(crate) mod spawn;
pub mod transport;

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use tokio::sync::watch;
use tread_core::afd::{Layout, Pipeline, Sharding};
use tread_core::backend::{Backend, CompileOptions, Executable};
use tread_core::graph::{EdgeDType, Graph, Part};
use tread_core::model::Model;

use crate::devices;
pub use backend::{Disaggregated, Rounding};
use hello::{Hello, PROTOCOL, Terms};
use host::{Host, Setup};
pub use place::Place;
use pool::{Listed, Membership, Pool, Static};
use transport::{Grpc, GrpcOptions, Inproc, Ways};

/// How long a call is held without a worker that could answer it, unless told otherwise.
pub const HOLD: Duration = Duration::from_secs(30);
/// Micro-batches in flight, unless told otherwise: one for attention, one for the way, one for the FFN.
pub const MICRO_BATCHES: usize = 3;

/// Where the FFNs are, and how they are reached.
#[derive(Clone, Debug)]
pub struct AfdOptions {
    /// The workers.
    pub ffn: Members,
    /// How FFNs are spread over them.
    pub sharding: Sharding,
    /// Over how many shards; none: as many as there are devices, or as workers elsewhere say.
    pub shards: Option<usize>,
    /// In which type activations cross.
    pub dtype: EdgeDType,
    /// Micro-batches in flight.
    pub micro_batches: usize,
    /// How long a call is held without a worker that could answer it.
    pub hold: Duration,
    /// How workers at addresses are known.
    pub grpc: GrpcOptions,
}

impl AfdOptions {
    /// These workers, and all else as usual.
    pub fn new(ffn: Members) -> Self {
        Self {
            ffn,
            sharding: Sharding::default(),
            shards: None,
            dtype: EdgeDType::default(),
            micro_batches: MICRO_BATCHES,
            hold: HOLD,
            grpc: GrpcOptions::default(),
        }
    }
}

/// Who belongs to a pool.
#[derive(Clone, Debug)]
pub enum Members {
    /// Devices of this process, and addresses.
    Places(Vec<Place>),
    /// Addresses in a file, one a line, which may change.
    File(PathBuf),
    /// Those that this process has started, which may change.
    Started(watch::Receiver<Vec<Place>>),
    /// Those that are registered in etcd, which may change.
    #[cfg(feature = "cluster")]
    Etcd(etcd::Etcd),
}

impl Members {
    /// The devices of this process among them.
    pub(crate) fn devices(&self) -> Vec<Place> {
        let Self::Places(places) = self else { return vec![] };
        places.iter().filter(|place| matches!(place, Place::Device { .. })).cloned().collect()
    }

    /// Whether standard input lists them (`@-`).
    pub(crate) fn is_input(&self) -> bool {
        matches!(self, Self::File(path) if path.as_os_str() == "-")
    }

    /// Whether some are elsewhere.
    pub(crate) fn has_addresses(&self) -> bool {
        match self {
            Self::Places(places) => places.iter().any(|place| matches!(place, Place::Address(_))),
            Self::File(_) | Self::Started(_) => true,
            #[cfg(feature = "cluster")]
            Self::Etcd(_) => true,
        }
    }

    /// `wanted`: what FFN workers must agree to, where a number of shards of 0 leaves that to them; none: attention workers.
    #[cfg_attr(
        not(feature = "cluster"),
        expect(unused_variables, reason = "only etcd's members are chosen by it")
    )]
    pub(crate) fn membership(&self, wanted: Option<&Terms>) -> Arc<dyn Membership> {
        match self {
            Self::Places(places) => Arc::new(Static(places.clone())),
            Self::File(path) => Arc::new(Listed(path.clone())),
            Self::Started(places) => Arc::new(places.clone()),
            #[cfg(feature = "cluster")]
            Self::Etcd(etcd) => Arc::new(match wanted {
                Some(terms) => etcd::Registered::ffn(etcd.clone(), terms.clone()),
                None => etcd::Registered::attention(etcd.clone()),
            }),
        }
    }
}

impl fmt::Display for Members {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Places(places) => {
                f.write_str(&places.iter().map(ToString::to_string).collect::<Vec<_>>().join(", "))
            }
            Self::File(path) => write!(f, "workers listed in {}", path.display()),
            Self::Started(_) => f.write_str("workers on this machine"),
            #[cfg(feature = "cluster")]
            Self::Etcd(etcd) => write!(f, "workers registered under {}", etcd.prefix),
        }
    }
}

impl FromStr for Members {
    type Err = String;

    /// `cpu,wgpu:0,node-7:4000`, or `@FILE`.
    fn from_str(text: &str) -> Result<Self, String> {
        if let Some(path) = text.strip_prefix('@') {
            return Ok(Self::File(path.into()));
        }
        let list: Vec<_> = text.split(',').map(str::to_owned).collect();
        Place::list(&list).map(Self::Places).map_err(|error| error.to_string())
    }
}

/// A model's graph as it is when its FFNs are spread in this way and activations cross in this type.
pub fn shape(graph: &Graph, sharding: Sharding, dtype: EdgeDType) -> Graph {
    let graph = match sharding {
        Sharding::Layers => graph.clone(),
        Sharding::Experts => graph.clone().combined_on_attention(),
    };
    graph.rounded(dtype)
}

/// What attention and FFN workers of a model must agree on.
///
/// # Errors
/// When the model cannot be read.
pub fn terms(model: &Model, sharding: Sharding, shards: usize, dtype: EdgeDType) -> Result<Terms> {
    let hidden = model.graph.features.map_or(0, |features| model.graph.value(features).width);
    Ok(Terms { protocol: PROTOCOL, model: hello::fingerprint(model)?, hidden, dtype, sharding, shards })
}

/// Compiles the attention of a model for a back end, starts or connects the workers that have its FFNs, and returns the
/// whole. `options` are those of the whole model; `progress` hears of attention's weights.
///
/// # Errors
/// When a worker does not fit, a shard has none in the time that calls are held, a device does not take its part, or
/// activations must go by NIXL, which is not there.
pub async fn load(
    model: &Model,
    attention: &dyn Backend,
    options: CompileOptions,
    afd: &AfdOptions,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<Box<dyn Executable>> {
    ensure!(afd.micro_batches > 0, "at least one micro-batch must be in flight");
    if afd.ffn.has_addresses() {
        afd.grpc.carrier.nixl().map_err(anyhow::Error::msg)?;
    }
    let wanted = terms(model, afd.sharding, afd.shards.unwrap_or(0), afd.dtype)?;
    let membership = afd.ffn.membership(Some(&wanted));
    let ways = Ways { devices: Arc::default(), addresses: Arc::new(Grpc::new(afd.grpc.clone())) };
    let shards = match afd.shards {
        Some(shards) => shards,
        None if afd.ffn.has_addresses() => {
            let answered = pool::ask(&*membership, &ways, afd.hold)?;
            answered.terms.shards
        }
        None => afd.ffn.devices().len(),
    };
    let graph = shape(&model.graph, afd.sharding, afd.dtype);
    let layout = Arc::new(Layout::new(&graph, afd.sharding, shards)?);
    let terms = Terms { shards, ..wanted };
    let hello = Hello { terms, max_rows: options.max_rows, slots: 2 * afd.micro_batches };
    start_devices(model, &afd.ffn.devices(), &ways.devices, &layout, &hello)?;
    let pool = Pool::start(layout, hello, membership, Arc::new(ways), afd.hold)?;

    let part = graph.part(&Part::Attention)?;
    let weights = part.bind(&model.weights)?;
    let options = CompileOptions { lanes: afd.micro_batches, ..options };
    let attention = attention.compile(&part.graph, &weights, options, progress).await?;
    Ok(Box::new(Pipeline::new(part.graph, attention, Box::new(pool))))
}

/// A worker on each device: the shards in their order, then once more from the first.
fn start_devices(
    model: &Model,
    devices: &[Place],
    workers: &Inproc,
    layout: &Arc<Layout>,
    hello: &Hello,
) -> Result<()> {
    for (at, place) in devices.iter().enumerate() {
        let Place::Device { name, .. } = place else { bail!("{place} is not a device") };
        let open = name.clone();
        let setup = Setup {
            terms: hello.terms.clone(),
            layout: Arc::clone(layout),
            shard: at % layout.shards.len(),
            weights: model.weights.clone(),
            max_rows: hello.max_rows,
            slots: hello.slots,
            open: Box::new(move || devices::open_named(&open)),
            progress: Box::new(|_, _| {}),
        };
        let host = Host::start(setup).with_context(|| format!("the FFN worker on {name}"))?;
        workers.put(place.clone(), host);
    }
    Ok(())
}
