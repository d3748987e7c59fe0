//! Does this device compute correctly? A small Step-3 with weights from a formula says what it makes of a prompt, and that
//! is compared with what the CPU made of it when Tread was tested.

use std::sync::Arc;

use tread_core::backend::{Backend, Batch, CompileOptions, Executable, KvDType, Rows};
use tread_core::config::{ModelConfig, Step3Config};
use tread_core::tensor::{Bytes, DType, Tensor};
use tread_core::{Error, Result, models};

use crate::protocol::SelfTest;

/// Largest difference that rounding explains, relative to the largest value.
const TOLERANCE: f32 = 2e-3;

/// The prompt: longer than a block of the cache. Its last token is computed apart, as when an answer is written.
const PROMPT: [u32; 20] = [5, 60, 2, 33, 33, 9, 0, 63, 41, 7, 18, 26, 50, 50, 50, 1, 12, 37, 44, 29];

/// Runs the test.
pub(super) async fn run(backend: &dyn Backend) -> SelfTest {
    match logits(backend).await {
        Ok(logits) => compare(&logits),
        Err(error) => SelfTest { passed: false, error: f32::MAX, message: Some(error.to_string()) },
    }
}

fn compare(logits: &[f32]) -> SelfTest {
    let largest = EXPECTED.iter().fold(0.0f32, |most, value| most.max(value.abs()));
    let differences = EXPECTED.iter().zip(logits).map(|(expected, found)| (expected - found).abs() / largest);
    // A NaN must not get lost in a maximum, nor in JSON, which has no infinity either.
    let worst = differences.map(|d| if d.is_finite() { d } else { f32::MAX }).fold(0.0f32, f32::max);
    let complete = logits.len() == EXPECTED.len();
    let passed = complete && worst <= TOLERANCE;
    let message = (!passed).then(|| {
        format!(
            "the device computes something else than the CPU: it is off by {worst}, more than {TOLERANCE}"
        )
    });
    SelfTest { passed, error: worst, message }
}

async fn logits(backend: &dyn Backend) -> Result<Vec<f32>> {
    let graph = models::graph(&ModelConfig::Step3(config()));
    let weights = graph.weights.iter().enumerate().map(|(n, decl)| weight(n as u32, &decl.name, &decl.shape));
    let weights = weights.collect::<Result<Vec<_>>>()?;
    let options = CompileOptions::single(32, 32, KvDType::F32);
    let mut executable = backend.compile(&graph, &weights, options, &mut |_, _| ()).await?;
    let (prompt, last) = PROMPT.split_at(PROMPT.len() - 1);
    step(&mut *executable, prompt, 0).await?;
    step(&mut *executable, last, prompt.len()).await
}

async fn step(executable: &mut dyn Executable, tokens: &[u32], start: usize) -> Result<Vec<f32>> {
    let outputs = vec![tokens.len() - 1];
    // Not in order, so that the table matters.
    let rows = Rows { tokens: tokens.to_vec(), start, block_table: vec![1, 0], outputs };
    let batch = Batch { sequences: vec![rows], ..Batch::default() };
    Ok(executable.step(&batch)?.await?.logits.to_vec())
}

/// A dense layer and one with experts.
fn config() -> Step3Config {
    Step3Config {
        hidden_size: 64,
        intermediate_size: 96,
        num_layers: 2,
        num_heads: 2,
        num_kv_heads: 1,
        head_dim: 32,
        query_rank: 32,
        vocab_size: 64,
        context_length: 64,
        rms_norm_eps: 1e-5,
        inv_freq: (0..16).map(|n| 10_000f32.powf(-(n as f32) / 16.0)).collect(),
        moe_layers: vec![false, true],
        num_experts: 4,
        top_k: 2,
        moe_intermediate_size: 32,
        shared_expert_size: 32,
        norm_expert_weight: true,
        tie_word_embeddings: false,
    }
}

/// Weight `n`: norms in f32, matrices in a format of blocks, experts in another one.
fn weight(n: u32, name: &str, shape: &[usize]) -> Result<Tensor> {
    let mut random = Random(n.wrapping_mul(2_654_435_761) ^ 0x9e37_79b9);
    let elements: usize = shape.iter().product();
    let dtype = match shape.len() {
        1 => DType::F32,
        2 => DType::Q8_0,
        _ => DType::Q4_0,
    };
    let mut bytes = vec![];
    if dtype == DType::F32 {
        (0..elements).for_each(|_| bytes.extend((0.75 + f32::from(random.byte()) / 512.0).to_le_bytes()));
    }
    while bytes.len() < elements / dtype.block_len() * dtype.block_bytes() {
        // A scale of 2^-9 for eight bits and of 2^-5 for four, as an f16.
        let exponent: u16 = if dtype == DType::Q8_0 { 15 - 9 } else { 15 - 5 };
        bytes.extend((exponent << 10).to_le_bytes());
        (2..dtype.block_bytes()).for_each(|_| bytes.push(random.byte()));
    }
    let source = Arc::new(Bytes::new("the self-test", bytes));
    Tensor::new(name, dtype, shape.to_vec(), source, 0).map_err(|error| Error::Device(error.to_string()))
}

/// The generator of Numerical Recipes: the same numbers everywhere.
struct Random(u32);

impl Random {
    fn byte(&mut self) -> u8 {
        self.0 = self.0.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (self.0 >> 24) as u8
    }
}

/// What the CPU back end computes: the test below compares.
const EXPECTED: [f32; 64] = [
    -0.68237853,
    0.788048,
    0.6273236,
    0.7382028,
    -0.83949864,
    -2.2788773,
    -2.6827984,
    0.32544926,
    1.3469445,
    0.4964933,
    2.3000295,
    -0.5158298,
    2.9466274,
    1.64263,
    1.1101168,
    0.2544031,
    0.87889063,
    1.0833393,
    0.40572995,
    1.5692561,
    0.14649679,
    0.071045995,
    -3.4463696,
    1.2326332,
    1.1652421,
    1.2893376,
    -0.73874915,
    3.08208,
    -0.8945657,
    0.36356628,
    1.249345,
    0.2799912,
    1.1896204,
    -1.9616396,
    -0.27863002,
    -0.15257347,
    1.6547776,
    -0.2195411,
    0.44554654,
    1.4016038,
    0.587392,
    1.8118274,
    -1.7761631,
    -0.2715187,
    -1.2787437,
    -2.9368038,
    1.1864077,
    -0.7970418,
    -1.2779676,
    -0.5110506,
    -1.742681,
    -1.1669432,
    -0.53404576,
    0.03556609,
    -1.9816493,
    1.7632927,
    -1.113222,
    -0.021783084,
    0.78840876,
    1.7946861,
    1.0075195,
    -0.6998123,
    1.8399572,
    0.15080452,
];

#[cfg(test)]
mod tests {
    use tread_core::cpu::Cpu;

    use super::{EXPECTED, compare, logits, run};

    #[test]
    fn the_stored_vector_is_what_the_cpu_computes() {
        let found = pollster::block_on(logits(&Cpu::new())).unwrap();
        let test = compare(&found);
        assert!(test.passed && test.error < 1e-5, "{test:?}: the vector should be {found:?}");
        assert!(pollster::block_on(run(&Cpu::new())).passed);
    }

    #[test]
    fn wrong_vectors_do_not_pass() {
        assert!(compare(&EXPECTED).passed);
        for change in [|x: &mut f32| *x += 1.0, |x: &mut f32| *x = f32::NAN, |x: &mut f32| *x = -*x] {
            for at in [0, 40, 63] {
                let mut wrong = EXPECTED;
                change(&mut wrong[at]);
                assert!(!compare(&wrong).passed, "{at}");
            }
        }
        assert!(!compare(&EXPECTED[1..]).passed && !compare(&[]).passed);
    }
}
