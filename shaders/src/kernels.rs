//! From a [`Kernel`] to a pipeline.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tread_core::{Error, Result};

use crate::plan::{Kernel, Launch};
use crate::source::assemble;

/// A pipeline and the layout its bind groups need.
#[derive(Clone, Debug)]
pub(crate) struct Pipeline {
    pub(crate) pipeline: wgpu::ComputePipeline,
    pub(crate) layout: wgpu::BindGroupLayout,
}

/// The pipelines of a device, each made once.
#[derive(Clone, Debug, Default)]
pub(crate) struct Pipelines(Arc<Mutex<BTreeMap<Kernel, Pipeline>>>);

impl Pipelines {
    pub(crate) fn get(&self, kernel: &Kernel) -> Result<Pipeline> {
        let missing = || Error::Device(format!("no pipeline for {}", kernel.file));
        lock(&self.0).get(kernel).cloned().ok_or_else(missing)
    }

    /// Begins to compile what the launches need and is not there: on other threads, or, in browsers, in the GPU process.
    pub(crate) fn begin(&self, device: &wgpu::Device, launches: &[Launch]) -> Compiling {
        let missing: BTreeMap<&Kernel, &Launch> = {
            let made = lock(&self.0);
            launches.iter().map(|l| (&l.kernel, l)).filter(|(k, _)| !made.contains_key(k)).collect()
        };
        let jobs: Vec<Launch> = missing.into_values().cloned().collect();
        #[cfg(target_family = "wasm")]
        {
            lock(&self.0).extend(jobs.into_iter().map(|l| (l.kernel.clone(), pipeline(device, &l))));
            Compiling {}
        }
        #[cfg(not(target_family = "wasm"))]
        {
            let threads = std::thread::available_parallelism().map_or(1, usize::from).min(jobs.len());
            let jobs = Arc::new(Mutex::new(jobs));
            let work = || {
                let (jobs, made, device) = (Arc::clone(&jobs), Arc::clone(&self.0), device.clone());
                move || {
                    // Taken in a statement of its own: nobody waits for the lock while this thread compiles.
                    while let Some(launch) = { lock(&jobs).pop() } {
                        let pipeline = pipeline(&device, &launch);
                        lock(&made).insert(launch.kernel, pipeline);
                    }
                }
            };
            Compiling { threads: (0..threads).map(|_| std::thread::spawn(work())).collect() }
        }
    }
}

/// What panics with the lock held leaves the map as it was.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Pipelines on their way.
#[derive(Debug)]
pub(crate) struct Compiling {
    #[cfg(not(target_family = "wasm"))]
    threads: Vec<std::thread::JoinHandle<()>>,
}

impl Compiling {
    /// Waits until they can be used.
    pub(crate) fn wait(self) -> Result<()> {
        #[cfg(not(target_family = "wasm"))]
        for thread in self.threads {
            thread.join().map_err(|_| Error::Device("a kernel could not be compiled".to_owned()))?;
        }
        Ok(())
    }
}

/// The WGSL of a kernel.
pub(crate) fn wgsl(kernel: &Kernel) -> String {
    assemble(kernel.file, kernel.format.map(crate::format::wgsl), &kernel.params)
}

#[allow(unsafe_code)]
fn pipeline(device: &wgpu::Device, launch: &Launch) -> Pipeline {
    let kernel = &launch.kernel;
    let label = Some(kernel.file);
    let descriptor =
        wgpu::ShaderModuleDescriptor { label, source: wgpu::ShaderSource::Wgsl(wgsl(kernel).into()) };
    let checks = wgpu::ShaderRuntimeChecks::unchecked();
    // SAFETY: the source is one of ours with constants filled in; all loops are bounded by those and by step sizes
    // that `Batch::check` has checked, and all indices stay inside buffers sized by the same plan. Every kernel also
    // runs with a driver's own bounds checks on the software adapter of the tests.
    let module = unsafe { device.create_shader_module_trusted(descriptor, checks) };
    let entries: Vec<_> = launch
        .bindings
        .iter()
        .map(|(binding, _, written)| wgpu::BindGroupLayoutEntry {
            binding: *binding,
            visibility: wgpu::ShaderStages::COMPUTE,
            ty: wgpu::BindingType::Buffer {
                ty: wgpu::BufferBindingType::Storage { read_only: !written },
                has_dynamic_offset: false,
                min_binding_size: None,
            },
            count: None,
        })
        .collect();
    let layout =
        device.create_bind_group_layout(&wgpu::BindGroupLayoutDescriptor { label, entries: &entries });
    let pipeline_layout = device.create_pipeline_layout(&wgpu::PipelineLayoutDescriptor {
        label,
        bind_group_layouts: &[Some(&layout)],
        immediate_size: 0,
    });
    let pipeline = device.create_compute_pipeline(&wgpu::ComputePipelineDescriptor {
        label,
        layout: Some(&pipeline_layout),
        module: &module,
        entry_point: Some("main"),
        compilation_options: wgpu::PipelineCompilationOptions {
            zero_initialize_workgroup_memory: false,
            ..Default::default()
        },
        cache: None,
    });
    Pipeline { pipeline, layout }
}

/// The name and WGSL of every kernel that the plans of `graph` under all tunings, cache types and small segments
/// launch: what a validator should see.
///
/// # Errors
/// When the graph cannot be lowered.
pub fn every_variant(
    graph: &tread_core::graph::Graph,
    weights: &[tread_core::tensor::Tensor],
) -> tread_core::Result<Vec<(String, String)>> {
    use tread_core::backend::{CompileOptions, KvDType};
    let gpu = crate::Tuning::GPU;
    let tunings = [gpu, crate::Tuning { subgroups: true, ..gpu }, crate::Tuning::SOFTWARE];
    let mut sources = BTreeMap::new();
    for tuning in tunings {
        for kv_dtype in [KvDType::F32, KvDType::F16] {
            for max_segment in [u64::MAX, 1 << 16] {
                let options = CompileOptions::single(1024, 64, kv_dtype);
                let context =
                    crate::lower::Context { graph, weights, options: &options, tuning, max_segment };
                for launch in crate::lower::lower(context)?.launches {
                    let source = wgsl(&launch.kernel);
                    sources.insert(source, format!("{} {:?}", launch.kernel.file, launch.kernel.params));
                }
            }
        }
    }
    Ok(sources.into_iter().map(|(source, name)| (name, source)).collect())
}
