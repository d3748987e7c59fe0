//! The back ends under test, and how their results are compared.

use tread_core::backend::{BLOCK_SIZE, Backend, Batch, CompileOptions, Executable, Rows};
use tread_core::cpu::Cpu;
use tread_core::graph::Graph;
use tread_core::tensor::Tensor;
use tread_shaders::{DeviceOptions, Selector, Tuning, Wgpu};

/// Every back end as users get it, the CPU first.
///
/// # Panics
/// When there is no Vulkan, Metal or DX12 adapter: `cargo xtask test` installs a software one.
pub fn backends() -> Vec<Box<dyn Backend>> {
    vec![Box::new(Cpu::new()), Box::new(wgpu(DeviceOptions::default()))]
}

/// The back ends to hold against the CPU, each with its kernels shaped in every way, with a label.
///
/// # Panics
/// As [`backends`].
pub fn candidates() -> Vec<(&'static str, Box<dyn Backend>)> {
    // WebGPU's least device, with weights in several segments.
    let small =
        DeviceOptions { default_limits: true, max_segment: Some(128 << 10), ..DeviceOptions::default() };
    let shaped = |tuning| DeviceOptions { tuning: Some(tuning), ..small };
    vec![
        ("wgpu", Box::new(wgpu(DeviceOptions::default()))),
        ("wgpu, small segments, shaped for GPUs", Box::new(wgpu(shaped(Tuning::GPU)))),
    ]
}

fn wgpu(options: DeviceOptions) -> Wgpu {
    pollster::block_on(Wgpu::open_with(Selector::default(), options))
        .unwrap_or_else(|e| panic!("{e}\n`cargo xtask test` installs a software adapter"))
}

/// A graph compiled on a back end.
///
/// # Panics
/// When the back end refuses it.
pub fn compile(
    backend: &dyn Backend,
    graph: &Graph,
    weights: &[Tensor],
    options: CompileOptions,
) -> Box<dyn Executable> {
    pollster::block_on(backend.compile(graph, weights, options, &mut |_, _| {}))
        .unwrap_or_else(|e| panic!("{}: {e}", backend.name()))
}

/// What a step computes: the logits, then the hidden states if asked for.
///
/// # Panics
/// When the step fails.
pub fn step(executable: &mut dyn Executable, batch: &Batch) -> Vec<Vec<f32>> {
    let output =
        pollster::block_on(async { executable.step(batch)?.await }).expect("a step within its limits");
    [output.logits].into_iter().chain(output.hidden.iter().map(Vec::as_slice)).map(<[f32]>::to_vec).collect()
}

/// A sequence under construction: its cache blocks and how far it is.
#[derive(Clone, Debug)]
pub struct Sequence {
    block_table: Vec<u32>,
    start: usize,
}

impl Sequence {
    /// An empty sequence in the blocks of `block_table`.
    pub fn new(block_table: Vec<u32>) -> Self {
        Self { block_table, start: 0 }
    }

    /// The same sequence in other blocks.
    #[must_use]
    pub fn in_blocks(self, block_table: Vec<u32>) -> Self {
        Self { block_table, ..self }
    }

    /// The next rows: logits are wanted for all of them, and the block table has what they need and no more.
    pub fn extend(&mut self, tokens: &[u32]) -> Rows {
        let start = self.start;
        self.start += tokens.len();
        Rows {
            tokens: tokens.to_vec(),
            start,
            block_table: self.block_table[..self.start.div_ceil(BLOCK_SIZE)].to_vec(),
            outputs: (0..tokens.len()).collect(),
        }
    }
}

/// `|a - b| / |b|` in the Euclidean norm; infinite when the lengths differ or an element is not a number.
pub fn relative_l2(a: &[f32], b: &[f32]) -> f64 {
    let norm = |x: &mut dyn Iterator<Item = f64>| x.map(|x| x * x).sum::<f64>().sqrt();
    let difference = norm(&mut a.iter().zip(b).map(|(&a, &b)| f64::from(a) - f64::from(b)));
    let size = norm(&mut b.iter().map(|&b| f64::from(b)));
    match (a.len() == b.len(), difference == 0.0, difference / size) {
        (false, ..) => f64::INFINITY,
        (true, true, _) => 0.0,
        (true, false, ratio) if ratio.is_nan() => f64::INFINITY,
        (true, false, ratio) => ratio,
    }
}

/// The index of the largest element, the first if there are several.
pub fn argmax(x: &[f32]) -> usize {
    (0..x.len()).rev().max_by(|&a, &b| x[a].total_cmp(&x[b])).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn relative_l2_sees_what_is_wrong() {
        assert_eq!(relative_l2(&[3.0, 4.0], &[3.0, 4.0]), 0.0);
        assert_eq!(relative_l2(&[6.0, 8.0], &[3.0, 4.0]), 1.0);
        assert_eq!(relative_l2(&[1.0], &[1.0, 1.0]), f64::INFINITY);
        assert_eq!(relative_l2(&[f32::NAN], &[1.0]), f64::INFINITY);
        assert_eq!(relative_l2(&[1.0], &[0.0]), f64::INFINITY);
    }

    #[test]
    fn argmax_takes_the_first() {
        assert_eq!(argmax(&[1.0, 3.0, 3.0, 2.0]), 1);
    }
}
