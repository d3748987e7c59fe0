//! Adapters: which there are, which one is taken, and what is asked of it.

use std::sync::{Arc, Mutex};

use tread_core::backend::{BLOCK_SIZE, Backend, CompileOptions, Executable, LocalFuture};
use tread_core::graph::Graph;
use tread_core::tensor::Tensor;
use tread_core::{Error, Result};

use crate::program::Program;

/// Which adapter to open.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Selector {
    /// The best one: discrete, then integrated, then virtual GPUs, software last.
    #[default]
    Best,
    /// By its place in [`adapters`].
    Index(usize),
    /// The first whose name contains this, whatever the case.
    Name(String),
}

impl std::str::FromStr for Selector {
    type Err = std::convert::Infallible;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Ok(text.parse().map_or_else(|_| Self::Name(text.to_owned()), Self::Index))
    }
}

/// What an adapter is, for people.
#[derive(Clone, Debug)]
pub struct AdapterReport {
    /// The product.
    pub name: String,
    /// Vulkan, Metal, DX12, BrowserWebGpu.
    pub backend: String,
    /// DiscreteGpu, IntegratedGpu, VirtualGpu, Cpu, Other.
    pub device_type: String,
    /// Driver and its version.
    pub driver: String,
    /// Runs on the CPU: right, but slow.
    pub software: bool,
    /// Limits that matter here, with their values.
    pub limits: Vec<(&'static str, u64)>,
    /// Optional features that Tread uses and the adapter has.
    pub features: Vec<&'static str>,
}

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
    name: String,
    software: bool,
}

/// The first failure the device reported outside an error scope.
#[derive(Debug, Default)]
pub(crate) struct Health(Mutex<Option<String>>);

impl Health {
    fn report(&self, message: String) {
        tracing::error!(message, "device failure");
        let mut first = self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        first.get_or_insert(message);
    }

    /// An error once the device has failed.
    pub(crate) fn check(&self) -> Result<()> {
        let first = self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        first.as_ref().map_or(Ok(()), |m| Err(Error::Device(m.clone())))
    }
}

fn instance() -> wgpu::Instance {
    wgpu::Instance::new(wgpu::InstanceDescriptor {
        // Validation layers are for debugging Tread itself, with WGPU_VALIDATION=1.
        flags: wgpu::InstanceFlags::empty().with_env(),
        ..wgpu::InstanceDescriptor::new_without_display_handle()
    })
}

/// All adapters, best first.
async fn enumerate() -> Vec<wgpu::Adapter> {
    #[cfg(target_family = "wasm")]
    let mut found: Vec<wgpu::Adapter> = {
        let options = wgpu::RequestAdapterOptions {
            power_preference: wgpu::PowerPreference::HighPerformance,
            ..Default::default()
        };
        instance().request_adapter(&options).await.into_iter().collect()
    };
    #[cfg(not(target_family = "wasm"))]
    let mut found = instance().enumerate_adapters(wgpu::Backends::all()).await;
    found.sort_by_key(|a| match a.get_info().device_type {
        wgpu::DeviceType::DiscreteGpu => 0,
        wgpu::DeviceType::IntegratedGpu => 1,
        wgpu::DeviceType::VirtualGpu => 2,
        wgpu::DeviceType::Other => 3,
        wgpu::DeviceType::Cpu => 4,
    });
    found
}

/// What adapters there are, best first.
pub async fn adapters() -> Vec<AdapterReport> {
    enumerate().await.iter().map(report).collect()
}

fn report(adapter: &wgpu::Adapter) -> AdapterReport {
    let (info, limits, features) = (adapter.get_info(), adapter.limits(), adapter.features());
    let known = [
        (wgpu::Features::SUBGROUP, "subgroups"),
        (wgpu::Features::SHADER_F16, "shader f16"),
        (wgpu::Features::TIMESTAMP_QUERY, "timestamp queries"),
    ];
    AdapterReport {
        name: info.name,
        backend: format!("{:?}", info.backend),
        device_type: format!("{:?}", info.device_type),
        driver: format!("{} {}", info.driver, info.driver_info).trim().to_owned(),
        software: info.device_type == wgpu::DeviceType::Cpu,
        limits: vec![
            ("max buffer bytes", limits.max_buffer_size),
            ("max binding bytes", limits.max_storage_buffer_binding_size),
            ("storage buffers a kernel", u64::from(limits.max_storage_buffers_per_shader_stage)),
            ("threads a workgroup", u64::from(limits.max_compute_invocations_per_workgroup)),
            ("shared bytes a workgroup", u64::from(limits.max_compute_workgroup_storage_size)),
            ("smallest subgroup", u64::from(info.subgroup_min_size)),
            ("largest subgroup", u64::from(info.subgroup_max_size)),
        ],
        features: known.iter().filter(|(f, _)| features.contains(*f)).map(|(_, name)| *name).collect(),
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
        let mut found = enumerate().await;
        if found.is_empty() {
            let message = "no GPU adapter found: install a Vulkan driver (Debian and Ubuntu: mesa-vulkan-drivers for \
                           integrated GPUs and a software fallback), or use --backend cpu";
            return Err(Error::Device(message.to_owned()));
        }
        let names: Vec<_> = found.iter().map(|a| a.get_info().name).collect();
        let at = match &selector {
            Selector::Best => Some(0),
            Selector::Index(i) => (*i < found.len()).then_some(*i),
            Selector::Name(part) => {
                names.iter().position(|n| n.to_lowercase().contains(&part.to_lowercase()))
            }
        };
        let Some(at) = at else {
            let message = format!("no adapter matches {selector:?}; there are: {}", names.join(", "));
            return Err(Error::Device(message));
        };
        Self::from_adapter(&found.swap_remove(at), options).await
    }

    async fn from_adapter(adapter: &wgpu::Adapter, options: DeviceOptions) -> Result<Self> {
        let (info, offered) = (adapter.get_info(), adapter.limits());
        let mut limits = wgpu::Limits::default();
        if !options.default_limits {
            limits.max_buffer_size = offered.max_buffer_size;
            limits.max_storage_buffer_binding_size = offered.max_storage_buffer_binding_size;
        }
        let software = info.device_type == wgpu::DeviceType::Cpu;
        let tuning = options.tuning.unwrap_or_else(|| default_tuning(&info, adapter.features()));
        let mut features = wgpu::Features::empty();
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
            .map_err(|e| Error::Device(format!("{} cannot be opened: {e}", info.name)))?;
        let health = Arc::new(Health::default());
        let (lost, failed) = (Arc::clone(&health), Arc::clone(&health));
        device.set_device_lost_callback(move |reason, message| {
            lost.report(format!(
                "the GPU was lost ({reason:?}): {message}; start again, or use --backend cpu"
            ));
        });
        device.on_uncaptured_error(Arc::new(move |error: wgpu::Error| failed.report(error.to_string())));
        let max_binding = limits.max_storage_buffer_binding_size.min(limits.max_buffer_size);
        Ok(Self {
            device,
            queue,
            tuning,
            max_segment: options.max_segment.unwrap_or(u64::MAX).min(max_binding),
            max_binding,
            health,
            name: format!("{} ({:?})", info.name, info.backend),
            software,
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
}

fn default_tuning(info: &wgpu::AdapterInfo, features: wgpu::Features) -> Tuning {
    if info.device_type == wgpu::DeviceType::Cpu {
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

    fn compile<'a>(
        &'a self,
        graph: &'a Graph,
        weights: &'a [Tensor],
        options: CompileOptions,
        progress: &'a mut dyn FnMut(u64, u64),
    ) -> LocalFuture<'a, Result<Box<dyn Executable>>> {
        Box::pin(async move {
            self.health.check()?;
            let memory = self.device.push_error_scope(wgpu::ErrorFilter::OutOfMemory);
            let validation = self.device.push_error_scope(wgpu::ErrorFilter::Validation);
            let program = Program::new(self, graph, weights, options, progress);
            let (invalid, full) = (validation.pop().await, memory.pop().await);
            if full.is_some() {
                let gib = |bytes: u64| format!("{:.2} GiB", bytes as f64 / f64::from(1 << 30));
                let cache =
                    graph.kv_bytes_per_token(options.kv_dtype.bytes()) * options.kv_blocks * BLOCK_SIZE;
                let message = format!(
                    "{} is out of memory: the weights need {} and the KV cache {}; use a smaller model, a shorter \
                     --context or --kv f16",
                    self.name,
                    gib(weights.iter().map(Tensor::bytes).sum()),
                    gib(cache as u64)
                );
                return Err(Error::Capacity(message));
            }
            if let Some(error) = invalid {
                return Err(Error::Device(format!("{} refused a kernel or buffer: {error}", self.name)));
            }
            Ok(Box::new(program?) as Box<dyn Executable>)
        })
    }
}
