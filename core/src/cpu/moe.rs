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

/// Who computes which row.
#[derive(Clone, Copy)]
pub(super) struct Routing<'a> {
    /// The router's choices, `[rows, 2 * top_k]`.
    pub(super) choices: &'a [f32],
    pub(super) top_k: usize,
    /// Id of the first expert that is here.
    pub(super) first: usize,
}

/// Slot c of a row: `down_e(silu(gate_e x) * up_e x)` for its choice c; weights are `[gate, up, down]`. Rows that chose
/// the same expert go through it together. Slots of experts that are elsewhere stay zero.
///
/// # Errors
/// When a weight cannot be read.
pub(super) fn experts(
    x: &[f32],
    routing: Routing<'_>,
    [gate, up, down]: [&Tensor; 3],
    out: &mut [f32],
    scratch: &mut Scratch,
) -> Result<()> {
    let Routing { choices, top_k, first } = routing;
    let (hidden, width) = (gate.cols(), down.cols());
    let mut routes: Vec<(usize, usize)> = vec![];
    for (row, choices) in choices.chunks_exact(2 * top_k).enumerate() {
        for (choice, id) in choices[..top_k].iter().enumerate() {
            match (id.to_bits() as usize).checked_sub(first) {
                Some(expert) if expert < gate.matrices() => routes.push((expert, row * top_k + choice)),
                _ => {}
            }
        }
    }
    routes.sort_unstable();
    let [mut input, mut gates, mut ups, mut acts] = std::mem::take(&mut scratch.expert);
    for routes in routes.chunk_by(|a, b| a.0 == b.0) {
        let expert = routes[0].0;
        input.clear();
        input.extend(routes.iter().flat_map(|&(_, slot)| &x[slot / top_k * hidden..][..hidden]));
        for buffer in [&mut gates, &mut ups, &mut acts] {
            buffer.resize(routes.len() * width, 0.0);
        }
        linear(&input, gate, expert * width..(expert + 1) * width, &mut gates, scratch)?;
        linear(&input, up, expert * width..(expert + 1) * width, &mut ups, scratch)?;
        swiglu(&gates, &ups, &mut acts);
        linear(&acts, down, expert * hidden..(expert + 1) * hidden, &mut input, scratch)?;
        for (&(_, slot), y) in routes.iter().zip(input.chunks_exact(hidden)) {
            out[slot * hidden..][..hidden].copy_from_slice(y);
        }
    }
    scratch.expert = [input, gates, ups, acts];
    Ok(())
}

/// `sum over the choices c of p_c * slot_c`, in their order.
pub(super) fn combine(slots: &[f32], choices: &[f32], top_k: usize, out: &mut [f32]) {
    let Some(width) = (out.len() * 2 * top_k).checked_div(choices.len()) else { return };
    let rows = slots.chunks_exact(top_k * width).zip(choices.chunks_exact(2 * top_k));
    for ((slots, choices), out) in rows.zip(out.chunks_exact_mut(width)) {
        for (slot, weight) in slots.chunks_exact(width).zip(&choices[top_k..]) {
            out.iter_mut().zip(slot).for_each(|(out, y)| *out += weight * y);
        }
    }
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
