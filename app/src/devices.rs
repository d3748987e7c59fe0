//! Which back end computes.

use std::fs;
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context as _, Result, bail};
use tread_core::afd::TensorParallel;
use tread_core::backend::Backend;
use tread_core::cpu::Cpu;
use tread_core::graph::EdgeDType;
use tread_core::model::Model;
use tread_shaders::{AdapterReport, Selector, Wgpu, adapters};

use crate::afd::transport::GrpcOptions;
use crate::afd::{AfdOptions, Disaggregated, Rounding};
use crate::cli::{AfdArgs, BackendChoice, DeviceArgs};

/// What was chosen without a wish of the user's, and why.
pub(crate) struct Choice {
    /// The adapter's number; none: the CPU.
    pub(crate) adapter: Option<usize>,
    pub(crate) reason: String,
}

/// The first real GPU, else the CPU: a software driver is slower than the CPU back end.
pub(crate) fn choose(found: &[AdapterReport]) -> Choice {
    match found.iter().position(|a| !a.software) {
        Some(i) => Choice { adapter: Some(i), reason: format!("{} is a real GPU", found[i].name) },
        None if found.is_empty() => Choice { adapter: None, reason: "no GPU driver answered".to_owned() },
        None => Choice {
            adapter: None,
            reason: "only software drivers were found, and the CPU back end is faster than they are"
                .to_owned(),
        },
    }
}

/// Opens what the user wants for a model: a device, or one for attention with a pool for FFNs.
pub(crate) fn open_for(model: &Arc<Model>, args: &DeviceArgs) -> Result<Box<dyn Backend>> {
    let device = open(args.backend, args.adapter.as_ref())?;
    apart(model, device, &args.afd)
}

/// Takes FFNs to a pool if the user wants that.
pub(crate) fn apart(
    model: &Arc<Model>,
    device: Box<dyn Backend>,
    args: &AfdArgs,
) -> Result<Box<dyn Backend>> {
    let (sharding, dtype) = (args.sharding.into(), args.afd_dtype.into());
    let Some(ffn) = args.pool()? else {
        return Ok(if dtype == EdgeDType::F32 {
            device
        } else {
            Box::new(Rounding::new(device, sharding, dtype))
        });
    };
    let options = AfdOptions {
        sharding,
        shards: args.shards.map(|shards| shards as usize),
        dtype,
        micro_batches: args.micro_batches as usize,
        hold: args.worker_hold,
        grpc: grpc(args)?,
        ..AfdOptions::new(ffn)
    };
    Ok(Box::new(Disaggregated::new(Arc::clone(model), device, options)))
}

/// How workers at addresses are known, and how we are known to them.
pub(crate) fn grpc(args: &AfdArgs) -> Result<GrpcOptions> {
    let read =
        |path: &PathBuf| fs::read_to_string(path).with_context(|| format!("reading {}", path.display()));
    let token = args.worker_token_file.as_ref().map(read).transpose()?.map(|token| token.trim().to_owned());
    let ca = args.worker_ca.as_ref().map(read).transpose()?;
    Ok(GrpcOptions { ca, token, carrier: args.afd_transport })
}

/// Opens what the user wants, or the best there is.
pub(crate) fn open(choice: BackendChoice, adapter: Option<&Selector>) -> Result<Box<dyn Backend>> {
    let wgpu = |selector: Selector| -> Result<Box<dyn Backend>> {
        Ok(Box::new(pollster::block_on(Wgpu::open(selector))?))
    };
    match (choice, adapter) {
        (BackendChoice::Cpu, _) => Ok(Box::new(Cpu::new())),
        (BackendChoice::Wgpu, selector) => wgpu(selector.cloned().unwrap_or_default()),
        (BackendChoice::Auto, Some(selector)) => wgpu(selector.clone()),
        (BackendChoice::Auto, None) => match choose(&pollster::block_on(adapters())).adapter {
            Some(index) => wgpu(Selector::Index(index)),
            None => Ok(Box::new(Cpu::new())),
        },
    }
}

/// Opens a device by its name in lists: `cpu`, `wgpu`, `wgpu:ADAPTER`, or several that compute a shard together, as
/// `wgpu:0+wgpu:1`.
pub(crate) fn open_named(name: &str) -> Result<Box<dyn Backend>> {
    if name.contains('+') {
        let devices = name.split('+').map(open_named).collect::<Result<_>>()?;
        return Ok(Box::new(TensorParallel::new(devices)?));
    }
    match name.split_once(':').unwrap_or((name, "")) {
        ("cpu", "") => open(BackendChoice::Cpu, None),
        ("wgpu", "") => open(BackendChoice::Wgpu, None),
        ("wgpu", adapter) => {
            let Ok(selector) = adapter.parse();
            open(BackendChoice::Wgpu, Some(&selector))
        }
        _ => bail!("there is no device `{name}`: only cpu, wgpu and wgpu:ADAPTER, and several joined by +"),
    }
}

/// All back ends there are, for benchmarks: the CPU, and the best adapter if there is one.
pub(crate) fn all(adapter: Option<&Selector>) -> Vec<Box<dyn Backend>> {
    let cpu: Box<dyn Backend> = Box::new(Cpu::new());
    let wgpu = open(BackendChoice::Wgpu, adapter);
    [Some(cpu), wgpu.ok()].into_iter().flatten().collect()
}
