//! From a [`Kernel`] to a pipeline.

use std::collections::BTreeMap;

use crate::plan::{Kernel, Launch};
use crate::source::assemble;

/// A pipeline and the layout its bind groups need.
#[derive(Debug)]
pub(crate) struct Pipeline {
    pub(crate) pipeline: wgpu::ComputePipeline,
    pub(crate) layout: wgpu::BindGroupLayout,
}

/// The WGSL of a kernel.
pub(crate) fn wgsl(kernel: &Kernel) -> String {
    assemble(kernel.file, kernel.format.map(crate::format::wgsl), &kernel.params)
}

/// A pipeline for each distinct kernel of the launches, compiled in parallel where there are threads.
///
/// Browsers compile in their GPU process while this returns at once.
pub(crate) fn compile(device: &wgpu::Device, launches: &[Launch]) -> BTreeMap<Kernel, Pipeline> {
    let distinct: BTreeMap<&Kernel, &Launch> = launches.iter().map(|l| (&l.kernel, l)).collect();
    let jobs: Vec<(&Kernel, &Launch)> = distinct.into_iter().collect();
    #[cfg(target_family = "wasm")]
    return jobs.iter().map(|(k, l)| ((*k).clone(), pipeline(device, l))).collect();
    #[cfg(not(target_family = "wasm"))]
    {
        let threads = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        let next = std::sync::atomic::AtomicUsize::new(0);
        let made = std::sync::Mutex::new(BTreeMap::new());
        std::thread::scope(|scope| {
            for _ in 0..threads.min(jobs.len()) {
                scope.spawn(|| {
                    while let Some((kernel, launch)) =
                        jobs.get(next.fetch_add(1, std::sync::atomic::Ordering::Relaxed))
                    {
                        let pipeline = pipeline(device, launch);
                        let mut made = made.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
                        made.insert((*kernel).clone(), pipeline);
                    }
                });
            }
        });
        made.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
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
