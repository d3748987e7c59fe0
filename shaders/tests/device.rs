//! A device that fails, or is asked for too much, says so and harms nothing else. Needs a Vulkan, Metal or DX12 driver,
//! a software one will do.

mod common;

use std::borrow::Cow;
use std::ops::Range;
use std::sync::Arc;
use std::task::{Context, Waker};

use tread_core::Error;
use tread_core::backend::{Backend, Batch, CompileOptions, KvDType, Rows};
use tread_core::tensor::{DType, Source, Tensor};
use tread_shaders::{DeviceOptions, Selector, Wgpu, adapters};

use common::{llama, step3, weights};

fn open(options: DeviceOptions) -> Wgpu {
    pollster::block_on(Wgpu::open_with(Selector::Best, options)).unwrap()
}

fn batch() -> Batch {
    let rows = Rows { tokens: vec![1, 2, 3], start: 0, block_table: vec![0], outputs: vec![2] };
    Batch { sequences: vec![rows], ..Batch::default() }
}

/// A software driver's memory is the host's: what does not fit can be refused before it is taken.
#[test]
fn only_software_adapters_take_host_memory() {
    let gpu = open(DeviceOptions::default());
    assert_eq!(gpu.host_bytes(5, 7), if gpu.is_software() { 12 } else { 0 });
    assert_eq!(tread_core::cpu::Cpu::new().host_bytes(5, 7), 7, "weights stay in their file");
}

#[test]
fn a_lost_device_is_reported_and_another_one_works() {
    let (lost, other) = (open(DeviceOptions::default()), open(DeviceOptions::default()));
    let graph = step3();
    let weights = weights(&graph, DType::F8E4M3);
    let options = CompileOptions::single(64, 16, KvDType::F16);
    let compile = |gpu: &Wgpu| pollster::block_on(gpu.compile(&graph, &weights, options, &mut |_, _| {}));
    let mut program = compile(&lost).unwrap();
    pollster::block_on(program.step(&batch()).unwrap()).unwrap();
    lost.destroy();
    let error = match program.step(&batch()) {
        Ok(step) => pollster::block_on(step).map(|_| ()).unwrap_err(),
        Err(error) => error,
    };
    assert!(matches!(error, Error::Device(_)), "{error}");
    assert!(matches!(compile(&lost), Err(Error::Device(_))));
    let mut program = compile(&other).unwrap();
    let output = pollster::block_on(program.step(&batch()).unwrap()).unwrap();
    assert_eq!(output.logits.len(), graph.vocab_size);
}

#[test]
fn a_dropped_step_does_not_harm_the_next() {
    let gpu = open(DeviceOptions::default());
    let graph = llama();
    let weights = weights(&graph, DType::Q4_0);
    let options = CompileOptions::single(64, 16, KvDType::F32);
    let mut program = pollster::block_on(gpu.compile(&graph, &weights, options, &mut |_, _| {})).unwrap();
    drop(program.step(&batch()).unwrap());
    assert_eq!(pollster::block_on(program.step(&batch()).unwrap()).unwrap().logits.len(), graph.vocab_size);
}

#[test]
fn a_cache_beyond_the_limits_is_refused_with_figures() {
    let gpu = open(DeviceOptions { default_limits: true, ..DeviceOptions::default() });
    let graph = llama();
    let weights = weights(&graph, DType::F16);
    // 128 values a token and layer in f32: 512 MiB a layer.
    let options = CompileOptions::single(1 << 20, 16, KvDType::F32);
    let error = pollster::block_on(gpu.compile(&graph, &weights, options, &mut |_, _| {})).unwrap_err();
    assert!(matches!(error, Error::Capacity(_)), "{error}");
    assert!(error.to_string().contains("536870912") && error.to_string().contains("134217728"), "{error}");
}

/// Nothing is read, and nothing said, before the weights are asked for.
#[test]
fn pipelines_compile_before_the_weights_are_there() {
    #[derive(Debug)]
    struct Absent;
    impl Source for Absent {
        fn name(&self) -> &str {
            "absent"
        }
        fn len(&self) -> u64 {
            u64::MAX
        }
        fn read(&self, _: Range<u64>) -> tread_core::Result<Cow<'_, [u8]>> {
            Err(Error::format("absent", "it is still on its way"))
        }
    }
    let gpu = open(DeviceOptions::default());
    let graph = llama();
    let there = weights(&graph, DType::Q8_0);
    let absent = |t: &Tensor| Tensor::new(t.name(), t.dtype(), t.shape().to_vec(), Arc::new(Absent), 0);
    let absent: Vec<_> = there.iter().map(|t| absent(t).unwrap()).collect();
    let options = CompileOptions::single(64, 16, KvDType::F32);
    gpu.prepare(&graph, &absent, &options).unwrap();
    let compile = |weights| pollster::block_on(gpu.compile(&graph, weights, options, &mut |_, _| {}));
    let error = compile(&absent).unwrap_err();
    assert!(error.to_string().contains("on its way"), "{error}");
    let mut program = compile(&there).unwrap();
    let output = pollster::block_on(program.step(&batch()).unwrap()).unwrap();
    assert_eq!(output.logits.len(), graph.vocab_size);
}

#[test]
fn a_load_that_is_given_up_leaves_the_device_as_it_was() {
    let gpu = open(DeviceOptions::default());
    let graph = llama();
    let weights = weights(&graph, DType::Q8_0);
    let options = CompileOptions::single(64, 16, KvDType::F32);
    // Allocated, and the first waiting is done, when it is dropped.
    let mut progress = |_, _| {};
    let mut loading = gpu.compile(&graph, &weights, options, &mut progress);
    let _ = loading.as_mut().poll(&mut Context::from_waker(Waker::noop()));
    drop(loading);
    gpu.check().unwrap();
    let mut program = pollster::block_on(gpu.compile(&graph, &weights, options, &mut |_, _| {})).unwrap();
    pollster::block_on(program.step(&batch()).unwrap()).unwrap();
    drop(program);
    gpu.check().unwrap();
}

#[test]
fn weights_that_are_not_numbers_are_refused_by_name() {
    let gpu = open(DeviceOptions::default());
    let graph = llama();
    let mut weights = weights(&graph, DType::F8E4M3);
    let bad = weights.iter().position(|t| t.name().ends_with("o_proj.weight")).unwrap();
    let (shape, scales) = (weights[bad].shape().to_vec(), weights[bad].scales().unwrap().clone());
    let mut bytes = vec![0; shape[0] * shape[1]];
    bytes[3 * shape[1]] = 0x7f;
    let source = std::sync::Arc::new(tread_core::tensor::Bytes::new("nan", bytes));
    let tensor =
        tread_core::tensor::Tensor::new(weights[bad].name(), DType::F8E4M3, shape, source, 0).unwrap();
    weights[bad] = tensor.with_scales(scales).unwrap();
    let options = CompileOptions::single(64, 16, KvDType::F32);
    let error = pollster::block_on(gpu.compile(&graph, &weights, options, &mut |_, _| {})).unwrap_err();
    assert!(error.to_string().contains("o_proj.weight") && error.to_string().contains("row 3"), "{error}");
}

#[test]
fn an_adapter_that_is_not_there_is_named() {
    let error = pollster::block_on(Wgpu::open(Selector::Name("no such card".to_owned()))).unwrap_err();
    let known = pollster::block_on(adapters());
    assert!(
        error.to_string().contains("no such card") && error.to_string().contains(&known[0].name),
        "{error}"
    );
}
