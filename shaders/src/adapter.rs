//! Adapters: which there are, and what they are.

use std::convert::Infallible;
use std::fmt;
use std::str::FromStr;

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

impl FromStr for Selector {
    type Err = Infallible;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Ok(text.parse().map_or_else(|_| Self::Name(text.to_owned()), Self::Index))
    }
}

impl fmt::Display for Selector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Best => Ok(()),
            Self::Index(index) => write!(f, "{index}"),
            Self::Name(name) => f.write_str(name),
        }
    }
}

/// What an adapter is, for people.
#[derive(Clone, Debug)]
pub struct AdapterReport {
    /// The product, or what a browser says of it: vendor, architecture, description.
    pub name: String,
    /// Vulkan, Metal, DX12, BrowserWebGpu.
    pub backend: String,
    /// DiscreteGpu, IntegratedGpu, VirtualGpu, Cpu, Other.
    pub device_type: String,
    /// Driver and its version; empty in browsers.
    pub driver: String,
    /// Runs on the CPU: right, but slow.
    pub software: bool,
    /// Limits that matter here, with their values.
    pub limits: Vec<(&'static str, u64)>,
    /// Optional features that make a difference here, and whether the adapter has them.
    pub features: Vec<(&'static str, bool)>,
}

/// An adapter, with what is known of it beyond [`wgpu::AdapterInfo`].
#[derive(Debug)]
pub(crate) struct Found {
    pub(crate) adapter: wgpu::Adapter,
    pub(crate) name: String,
    pub(crate) software: bool,
    subgroups: bool,
}

/// What adapters there are, best first.
pub async fn adapters() -> Vec<AdapterReport> {
    enumerate().await.iter().map(Found::report).collect()
}

/// All adapters, best first.
pub(crate) async fn enumerate() -> Vec<Found> {
    let instance = wgpu::Instance::new(wgpu::InstanceDescriptor {
        // Validation layers are for debugging Tread itself, with WGPU_VALIDATION=1.
        flags: wgpu::InstanceFlags::empty().with_env(),
        ..wgpu::InstanceDescriptor::new_without_display_handle()
    });
    #[cfg(target_family = "wasm")]
    let found = {
        let options = wgpu::RequestAdapterOptions {
            power_preference: wgpu::PowerPreference::HighPerformance,
            ..Default::default()
        };
        let adapter = instance.request_adapter(&options).await.ok();
        let identity = crate::browser::identity().await;
        adapter.into_iter().map(|adapter| Found::in_browser(adapter, &identity)).collect()
    };
    #[cfg(not(target_family = "wasm"))]
    let found = {
        let found = instance.enumerate_adapters(wgpu::Backends::all()).await;
        let mut found: Vec<_> = found.into_iter().map(Found::native).collect();
        found.sort_by_key(|found| match found.adapter.get_info().device_type {
            wgpu::DeviceType::DiscreteGpu => 0,
            wgpu::DeviceType::IntegratedGpu => 1,
            wgpu::DeviceType::VirtualGpu => 2,
            wgpu::DeviceType::Other => 3,
            wgpu::DeviceType::Cpu => 4,
        });
        found
    };
    found
}

impl Found {
    #[cfg(not(target_family = "wasm"))]
    fn native(adapter: wgpu::Adapter) -> Self {
        let info = adapter.get_info();
        Self {
            software: info.device_type == wgpu::DeviceType::Cpu,
            subgroups: adapter.features().contains(wgpu::Features::SUBGROUP),
            name: info.name,
            adapter,
        }
    }

    /// wgpu says of a browser's adapter only its description, which is mostly empty, and whether it is a fallback.
    #[cfg(target_family = "wasm")]
    fn in_browser(adapter: wgpu::Adapter, identity: &crate::browser::Identity) -> Self {
        let fallback = adapter.get_info().device_type == wgpu::DeviceType::Cpu;
        Self {
            software: fallback || identity.is_software(),
            subgroups: identity.subgroups,
            name: identity.name(),
            adapter,
        }
    }

    fn report(&self) -> AdapterReport {
        let (info, limits) = (self.adapter.get_info(), self.adapter.limits());
        let has = |feature| self.adapter.features().contains(feature);
        AdapterReport {
            name: self.name.clone(),
            backend: format!("{:?}", info.backend),
            device_type: format!("{:?}", info.device_type),
            driver: format!("{} {}", info.driver, info.driver_info).trim().to_owned(),
            software: self.software,
            limits: vec![
                ("max buffer bytes", limits.max_buffer_size),
                ("max binding bytes", limits.max_storage_buffer_binding_size),
                ("storage buffers a kernel", u64::from(limits.max_storage_buffers_per_shader_stage)),
                ("threads a workgroup", u64::from(limits.max_compute_invocations_per_workgroup)),
                ("workgroups a dimension", u64::from(limits.max_compute_workgroups_per_dimension)),
                ("shared bytes a workgroup", u64::from(limits.max_compute_workgroup_storage_size)),
                ("smallest subgroup", u64::from(info.subgroup_min_size)),
                ("largest subgroup", u64::from(info.subgroup_max_size)),
            ],
            features: vec![
                ("subgroups", self.subgroups),
                ("shader f16", has(wgpu::Features::SHADER_F16)),
                ("timestamp queries", has(wgpu::Features::TIMESTAMP_QUERY)),
            ],
        }
    }
}
