//! Mixture of experts: the router's choice, and the chosen experts.

use crate::Result;
use crate::tensor::Tensor;

use super::elementwise::swiglu;
use super::linear::{Scratch, linear};

/// Softmax over each row of `logits [rows, experts]` and its `top_k` largest, ties to the lowest id. A row of `out`
/// is `top_k` ids (u32 bit patterns), then `top_k` weights.
pub(super) fn router_top_k(logits: &[f32], experts: usize, top_k: usize, renormalize: bool, out: &mut [f32]) {
    let mut order = vec![];
    let mut probabilities = vec![];
    for (logits, out) in logits.chunks_exact(experts).zip(out.chunks_exact_mut(2 * top_k)) {
        let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        probabilities.clear();
        probabilities.extend(logits.iter().map(|logit| (logit - max).exp()));
        let total: f32 = probabilities.iter().sum();
        probabilities.iter_mut().for_each(|p| *p /= total);

        order.clear();
        order.extend(0..experts);
        // Stable, so that equals stay in the order of their ids.
        order.sort_by(|&a: &usize, &b| probabilities[b].total_cmp(&probabilities[a]));
        let chosen = &order[..top_k];
        let divisor = if renormalize { chosen.iter().map(|&e| probabilities[e]).sum() } else { 1.0 };
        let (ids, weights) = out.split_at_mut(top_k);
        for ((id, weight), &expert) in ids.iter_mut().zip(weights).zip(chosen) {
            *id = f32::from_bits(expert as u32);
            *weight = probabilities[expert] / divisor;
        }
    }
}

/// `sum over the chosen e of p_e * down_e(silu(gate_e x) * up_e x)`; weights are `[gate, up, down]`. Rows that chose
/// the same expert go through it together; each row adds up its experts in the order of their ids.
///
/// # Errors
/// When a weight cannot be read.
pub(super) fn experts(
    x: &[f32],
    routing: &[f32],
    [gate, up, down]: [&Tensor; 3],
    top_k: usize,
    out: &mut [f32],
    scratch: &mut Scratch,
) -> Result<()> {
    let (hidden, width) = (gate.cols(), down.cols());
    let mut routes: Vec<(u32, usize, f32)> = vec![];
    for (row, routing) in routing.chunks_exact(2 * top_k).enumerate() {
        let (ids, weights) = routing.split_at(top_k);
        routes.extend(ids.iter().zip(weights).map(|(id, &weight)| (id.to_bits(), row, weight)));
    }
    routes.sort_by_key(|&(expert, row, _)| (expert, row));
    let [mut input, mut gates, mut ups, mut acts] = std::mem::take(&mut scratch.expert);
    for routes in routes.chunk_by(|a, b| a.0 == b.0) {
        let expert = routes[0].0 as usize;
        input.clear();
        input.extend(routes.iter().flat_map(|&(_, row, _)| &x[row * hidden..][..hidden]));
        for buffer in [&mut gates, &mut ups, &mut acts] {
            buffer.resize(routes.len() * width, 0.0);
        }
        linear(&input, gate, expert * width..(expert + 1) * width, &mut gates, scratch)?;
        linear(&input, up, expert * width..(expert + 1) * width, &mut ups, scratch)?;
        swiglu(&gates, &ups, &mut acts);
        linear(&acts, down, expert * hidden..(expert + 1) * hidden, &mut input, scratch)?;
        for (&(_, row, weight), y) in routes.iter().zip(input.chunks_exact(hidden)) {
            out[row * hidden..][..hidden].iter_mut().zip(y).for_each(|(out, y)| *out += weight * y);
        }
    }
    scratch.expert = [input, gates, ups, acts];
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::router_top_k;

    #[test]
    fn ties_go_to_the_lowest_id() {
        let mut out = [0.0; 4];
        router_top_k(&[1.0, 3.0, 0.0, 3.0, 3.0], 5, 2, true, &mut out);
        assert_eq!(out.map(f32::to_bits)[..2], [1, 3]);
        assert_eq!(out[2..], [0.5, 0.5]);
    }

    #[test]
    fn without_renormalization_weights_are_probabilities() {
        let mut out = [0.0; 4];
        router_top_k(&[0.0, 2f32.ln(), 0.0], 3, 2, false, &mut out);
        assert_eq!(out.map(f32::to_bits)[..2], [1, 0]);
        assert!((out[2] - 0.5).abs() < 1e-6 && (out[3] - 0.25).abs() < 1e-6, "{out:?}");
    }
}
