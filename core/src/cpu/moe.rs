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

impl Routing<'_> {
    /// The experts that are here of `held`, each with the slots in which it was chosen, in order.
    fn routes(self, held: usize) -> Vec<(usize, usize)> {
        let mut routes = vec![];
        for (row, choices) in self.choices.chunks_exact(2 * self.top_k).enumerate() {
            for (choice, id) in choices[..self.top_k].iter().enumerate() {
                match (id.to_bits() as usize).checked_sub(self.first) {
                    Some(expert) if expert < held => routes.push((expert, row * self.top_k + choice)),
                    _ => {}
                }
            }
        }
        routes.sort_unstable();
        routes
    }
}

/// `silu(gate_e x) * up_e x` for the e that is a row's choice c, in its place c. Rows that chose the same expert go through
/// it together. Places of experts that are elsewhere stay zero.
///
/// # Errors
/// When a weight cannot be read.
pub(super) fn gate_up(
    x: &[f32],
    routing: Routing<'_>,
    [gate, up]: [&Tensor; 2],
    out: &mut [f32],
    scratch: &mut Scratch,
) -> Result<()> {
    let (hidden, width) = (gate.cols(), gate.rows() / gate.matrices());
    let [mut input, mut gates, mut ups, mut acts] = std::mem::take(&mut scratch.expert);
    for routes in routing.routes(gate.matrices()).chunk_by(|a, b| a.0 == b.0) {
        let rows = routes[0].0 * width..(routes[0].0 + 1) * width;
        input.clear();
        input.extend(routes.iter().flat_map(|&(_, slot)| &x[slot / routing.top_k * hidden..][..hidden]));
        for buffer in [&mut gates, &mut ups, &mut acts] {
            buffer.resize(routes.len() * width, 0.0);
        }
        linear(&input, gate, rows.clone(), &mut gates, scratch)?;
        linear(&input, up, rows, &mut ups, scratch)?;
        swiglu(&gates, &ups, &mut acts);
        spread(routes, &acts, width, out);
    }
    scratch.expert = [input, gates, ups, acts];
    Ok(())
}

/// Slot c of a row: `down_e` of its place c in `acts`, for the e that is its choice c. Slots of experts that are elsewhere
/// stay zero.
///
/// # Errors
/// When the weight cannot be read.
pub(super) fn down(
    acts: &[f32],
    routing: Routing<'_>,
    down: &Tensor,
    out: &mut [f32],
    scratch: &mut Scratch,
) -> Result<()> {
    let (width, hidden) = (down.cols(), down.rows() / down.matrices());
    let [mut input, mut slots, gates, ups] = std::mem::take(&mut scratch.expert);
    for routes in routing.routes(down.matrices()).chunk_by(|a, b| a.0 == b.0) {
        let expert = routes[0].0;
        input.clear();
        input.extend(routes.iter().flat_map(|&(_, slot)| &acts[slot * width..][..width]));
        slots.resize(routes.len() * hidden, 0.0);
        linear(&input, down, expert * hidden..(expert + 1) * hidden, &mut slots, scratch)?;
        spread(routes, &slots, hidden, out);
    }
    scratch.expert = [input, slots, gates, ups];
    Ok(())
}

/// Puts the rows that an expert made where they belong.
fn spread(routes: &[(usize, usize)], rows: &[f32], width: usize, out: &mut [f32]) {
    for (&(_, slot), row) in routes.iter().zip(rows.chunks_exact(width)) {
        out[slot * width..][..width].copy_from_slice(row);
    }
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
