//! A device: what is asked of an adapter, how kernels are shaped for it, and how it fails.

use std::sync::{Arc, Mutex, PoisonError};

use tread_core::backend::{BLOCK_SIZE, Backend, CompileOptions, Executable, LocalFuture};
use tread_core::graph::Graph;
use tread_core::tensor::Tensor;
use tread_core::{Error, Result};

use crate::adapter::{Found, Selector, enumerate};
use crate::kernels::Pipelines;
use crate::lower::{Context, lower};
use crate::plan::Plan;
use crate::program::Program;

/// How kernels are shaped for a device. Any shape gives the same results up to rounding.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tuning {
    /// Threads in a workgroup of a matrix product.
    pub workgroup: u32,
    /// Threads that share the rows of a matrix product; a power of two that divides `workgroup`.
    pub lanes: u32,
    /// Weight rows a thread works on when a step has one row.
    pub rows: u32,
    /// Weight rows a thread works on when a step has several.
    pub batch_rows: u32,
    /// Columns (batch rows) a thread works on when a step has several.
    pub batch_columns: u32,
    /// Threads in a workgroup of a norm; a power of two.
    pub norm_workgroup: u32,
    /// Sum over lanes by subgroup operations; needs subgroups of exactly `lanes` threads.
    pub subgroups: bool,
}

impl Tuning {
    /// For GPUs: consecutive threads read consecutive chunks of a row.
    pub const GPU: Self = Self {
        workgroup: 128,
        lanes: 32,
        rows: 2,
        batch_rows: 2,
        batch_columns: 4,
        norm_workgroup: 256,
        subgroups: false,
    };
    /// For adapters that run on the CPU: a thread is a SIMD lane, so each takes whole rows and nothing is shared.
    /// Every load is scalarised there, so each activation read serves many rows.
    pub const SOFTWARE: Self = Self {
        workgroup: 8,
        lanes: 1,
        rows: 8,
        batch_rows: 8,
        batch_columns: 4,
        norm_workgroup: 8,
        subgroups: false,
    };
}

/// Deviations from what an adapter offers, for tests and experiments.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DeviceOptions {
    /// Ask for nothing beyond WebGPU's default limits.
    pub default_limits: bool,
    /// Cut weights into segments of at most this many bytes.
    pub max_segment: Option<u64>,
    /// Kernel shapes instead of those for the adapter's kind.
    pub tuning: Option<Tuning>,
}

/// What helps where no adapter is found, where one is lost, and where its memory does not suffice.
#[cfg(not(target_family = "wasm"))]
const REMEDIES: [&str; 3] = [
    "install a Vulkan driver (Debian and Ubuntu: mesa-vulkan-drivers for integrated GPUs and a software fallback), or \
     use --backend cpu",
    "start again, or use --backend cpu",
    "use a smaller model, a shorter context (--context) or a smaller cache type (--kv f16)",
];
#[cfg(target_family = "wasm")]
const REMEDIES: [&str; 3] = [
    "this browser has no WebGPU, or it is switched off, or the page came by plain HTTP from another machine",
    "load the model again; if that fails, close other pages that use the GPU, or restart the browser",
    "use a smaller model or a shorter context, or close other pages that use the GPU",
];

/// An open adapter.
#[derive(Debug)]
pub struct Wgpu {
    pub(crate) device: wgpu::Device,
    pub(crate) queue: wgpu::Queue,
    pub(crate) tuning: Tuning,
    /// Largest segment of a weight, bytes.
    pub(crate) max_segment: u64,
    /// Largest buffer that can be bound, bytes.
    pub(crate) max_binding: u64,
    pub(crate) health: Arc<Health>,
    pub(crate) pipelines: Pipelines,
    name: String,
    software: bool,
}

/// The first failure the device reported outside an error scope, and whether it was lack of memory.
#[derive(Debug, Default)]
pub(crate) struct Health(Mutex<Option<(bool, String)>>);

impl Health {
    fn report(&self, full: bool, message: String) {
        tracing::error!(message, "device failure");
        self.0.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert((full, message));
    }

    /// An error once the device has failed.
    pub(crate) fn check(&self) -> Result<()> {
        match self.0.lock().unwrap_or_else(PoisonError::into_inner).clone() {
            None => Ok(()),
            Some((true, message)) => Err(Error::Capacity(message)),
            Some((false, message)) => Err(Error::Device(message)),
        }
    }
}

impl Wgpu {
    /// Opens an adapter with everything it offers.
    ///
    /// # Errors
    /// [`Error::Device`] when there is none, none matches, or it cannot be opened.
    pub async fn open(selector: Selector) -> Result<Self> {
        Self::open_with(selector, DeviceOptions::default()).await
    }

    /// Opens an adapter with less than it offers, or other kernel shapes.
    ///
    /// # Errors
    /// As [`Wgpu::open`].
    pub async fn open_with(selector: Selector, options: DeviceOptions) -> Result<Self> {
        let found = enumerate().await;
        if found.is_empty() {
            return Err(Error::Device(format!("no GPU adapter found: {}", REMEDIES[0])));
        }
        let at = match &selector {
            Selector::Best => Some(0),
            Selector::Index(i) => (*i < found.len()).then_some(*i),
            Selector::Name(part) => {
                found.iter().position(|f| f.name.to_lowercase().contains(&part.to_lowercase()))
            }
        };
        let Some(chosen) = at.map(|at| &found[at]) else {
            let names: Vec<_> = found.iter().map(|f| f.name.as_str()).collect();
            let message = format!("no adapter matches {selector:?}; there are: {}", names.join(", "));
            return Err(Error::Device(message));
        };
        Self::from_adapter(chosen, options).await
    }

    async fn from_adapter(found: &Found, options: DeviceOptions) -> Result<Self> {
        let Found { adapter, name, software, .. } = found;
        let (info, offered) = (adapter.get_info(), adapter.limits());
        let mut limits = wgpu::Limits::default();
        if !options.default_limits {
            limits.max_buffer_size = offered.max_buffer_size;
            limits.max_storage_buffer_binding_size = offered.max_storage_buffer_binding_size;
        }
        let tuning = options.tuning.unwrap_or_else(|| default_tuning(&info, adapter.features(), *software));
        let mut features = adapter.features() & wgpu::Features::TIMESTAMP_QUERY;
        if tuning.subgroups {
            features |= wgpu::Features::SUBGROUP;
        }
        let descriptor = wgpu::DeviceDescriptor {
            label: Some("tread"),
            required_features: features,
            required_limits: limits.clone(),
            memory_hints: wgpu::MemoryHints::Performance,
            ..Default::default()
        };
        let (device, queue) = adapter
            .request_device(&descriptor)
            .await
            .map_err(|e| Error::Device(format!("{name} cannot be opened: {e}")))?;
        let health = Arc::new(Health::default());
        let (lost, failed) = (Arc::clone(&health), Arc::clone(&health));
        device.set_device_lost_callback(move |reason, message| {
            lost.report(false, format!("the GPU was lost ({reason:?}): {message}; {}", REMEDIES[1]));
        });
        device.on_uncaptured_error(Arc::new(move |error: wgpu::Error| match error {
            wgpu::Error::OutOfMemory { .. } => {
                failed.report(true, format!("the GPU is out of memory; {}", REMEDIES[2]));
            }
            error => failed.report(false, error.to_string()),
        }));
        let max_binding = limits.max_storage_buffer_binding_size.min(limits.max_buffer_size);
        Ok(Self {
            device,
            queue,
            tuning,
            max_segment: options.max_segment.unwrap_or(u64::MAX).min(max_binding),
            max_binding,
            health,
            pipelines: Pipelines::default(),
            name: format!("{name} ({:?})", info.backend),
            software: *software,
        })
    }

    /// Whether the adapter runs on the CPU.
    pub fn is_software(&self) -> bool {
        self.software
    }

    /// Destroys the device, as a driver crash would: every later step fails with a clear error.
    pub fn destroy(&self) {
        self.device.destroy();
    }

    /// An error once the device has failed: it was lost, ran out of memory, or refused something.
    ///
    /// # Errors
    /// [`Error::Device`] or [`Error::Capacity`].
    pub fn check(&self) -> Result<()> {
        self.health.check()
    }

    pub(crate) fn plan(&self, graph: &Graph, weights: &[Tensor], options: &CompileOptions) -> Result<Plan> {
        lower(Context { graph, weights, options, tuning: self.tuning, max_segment: self.max_segment })
    }

    /// What was asked for when there was no room.
    fn full(&self, graph: &Graph, weights: &[Tensor], options: CompileOptions) -> Error {
        let size = |bytes: u64| match bytes {
            0..=0x3fff_ffff => format!("{} MiB", bytes.div_ceil(1 << 20)),
            _ => format!("{:.2} GiB", bytes as f64 / f64::from(1 << 30)),
        };
        let cache = graph.kv_bytes_per_token(options.kv_dtype.bytes()) * options.kv_blocks * BLOCK_SIZE;
        Error::Capacity(format!(
            "{} is out of memory: the weights need {} and the KV cache {}; {}",
            self.name,
            size(weights.iter().map(Tensor::bytes).sum()),
            size(cache as u64),
            REMEDIES[2]
        ))
    }
}

fn default_tuning(info: &wgpu::AdapterInfo, features: wgpu::Features, software: bool) -> Tuning {
    if software {
        return Tuning::SOFTWARE;
    }
    // Only where every subgroup has the same size can a kernel rely on it.
    let fixed = info.subgroup_min_size == Tuning::GPU.lanes && info.subgroup_max_size == Tuning::GPU.lanes;
    Tuning { subgroups: fixed && features.contains(wgpu::Features::SUBGROUP), ..Tuning::GPU }
}

impl Backend for Wgpu {
    fn name(&self) -> &'static str {
        "wgpu"
    }

    fn device(&self) -> String {
        self.name.clone()
    }

    fn host_bytes(&self, weights: u64, cache: u64) -> u64 {
        if self.software { weights.saturating_add(cache) } else { 0 }
    }

    /// In browsers it returns at once, and the GPU process compiles; else it returns when all is compiled.
    fn prepare(&self, graph: &Graph, weights: &[Tensor], options: &CompileOptions) -> Result<()> {
        self.health.check()?;
        self.pipelines.begin(&self.device, &self.plan(graph, weights, options)?.launches).wait()
    }

    fn compile<'a>(
        &'a self,
        graph: &'a Graph,
        weights: &'a [Tensor],
        options: CompileOptions,
        progress: &'a mut dyn FnMut(u64, u64),
    ) -> LocalFuture<'a, Result<Box<dyn Executable>>> {
        Box::pin(async move {
            self.health.check()?;
            match Program::new(self, graph, weights, options, progress).await {
                Ok(Some(program)) => Ok(Box::new(program) as Box<dyn Executable>),
                Ok(None) => Err(self.full(graph, weights, options)),
                Err(error) => Err(error),
            }
        })
    }
}
