//! The filters: which candidates stay, and the draw among them.

use std::cmp::Ordering;

/// A token that may yet be chosen.
#[derive(Clone, Copy, Debug)]
struct Candidate {
    id: u32,
    logit: f32,
    /// Relative to the most likely token's.
    weight: f32,
}

/// Downwards by logit, equal ones in order of their ids: no outcome depends on anything else.
fn downwards(a: &Candidate, b: &Candidate) -> Ordering {
    b.logit.total_cmp(&a.logit).then(a.id.cmp(&b.id))
}

/// The tokens that may yet be chosen; the memory is reused for every token.
#[derive(Debug, Default)]
pub(super) struct Candidates(Vec<Candidate>);

impl Candidates {
    /// Every token of `logits` that is not ruled out (minus infinity).
    pub(super) fn start(&mut self, logits: &[f32]) {
        let possible = (0..).zip(logits).filter(|(_, logit)| **logit > f32::NEG_INFINITY);
        self.0.clear();
        self.0.extend(possible.map(|(id, &logit)| Candidate { id, logit, weight: 0.0 }));
    }

    /// Keeps the `k` largest logits; 0 keeps all.
    pub(super) fn top_k(&mut self, k: usize) {
        if k > 0 && k < self.0.len() {
            self.0.select_nth_unstable_by(k - 1, downwards);
            self.0.truncate(k);
            self.0.sort_unstable_by(downwards);
        }
    }

    /// Sets the weights from the logits, the largest to 1.
    pub(super) fn weigh(&mut self, temperature: f32) {
        let max = self.largest();
        for c in &mut self.0 {
            c.weight = ((c.logit - max) / temperature).exp();
        }
    }

    /// Keeps the candidates whose information, `-ln p`, is closest to its expected value, until they together have
    /// `share` of the weight.
    pub(super) fn typical_p(&mut self, share: f32) {
        if share >= 1.0 {
            return;
        }
        let (total, max) = (self.total(), self.largest());
        // The information of a candidate is `ln total + below`, and the first term is the same for all.
        let below = |c: &Candidate| f64::from(max - c.logit);
        let weighted = |c: &Candidate| match c.weight {
            0.0 => 0.0,
            weight => f64::from(weight) * below(c),
        };
        let expected = self.0.iter().map(weighted).sum::<f64>() / total;
        let distance = |c: &Candidate| (below(c) - expected).abs();
        self.keep_share(share, |a, b| distance(a).total_cmp(&distance(b)).then_with(|| downwards(a, b)));
    }

    /// Keeps the most likely candidates that together have `share` of the weight.
    pub(super) fn top_p(&mut self, share: f32) {
        if share < 1.0 {
            self.keep_share(share, downwards);
        }
    }

    /// Keeps what has at least `share` of the largest weight.
    pub(super) fn min_p(&mut self, share: f32) {
        let largest = self.0.iter().map(|c| c.weight).fold(0.0, f32::max);
        self.0.retain(|c| c.weight >= share * largest);
    }

    /// The candidate at `point` of the total weight, 0 to 1.
    pub(super) fn draw(&self, point: f64) -> Option<u32> {
        let mut rest = point * self.total();
        let chosen = self.0.iter().find(|c| {
            rest -= f64::from(c.weight);
            rest < 0.0
        });
        // Rounding may leave a sliver.
        chosen.or_else(|| self.0.iter().rfind(|c| c.weight > 0.0)).map(|c| c.id)
    }

    /// Keeps the fewest candidates, in this order, that have `share` of the weight. They are mostly few of very many,
    /// so they are sorted in portions, as many as it takes.
    fn keep_share(&mut self, share: f32, order: impl Fn(&Candidate, &Candidate) -> Ordering) {
        let enough = self.total() * f64::from(share);
        let (mut sum, mut done, mut portion) = (0.0, 0, 64);
        while done < self.0.len() {
            let rest = &mut self.0[done..];
            let count = rest.len().min(portion);
            if count < rest.len() {
                rest.select_nth_unstable_by(count, &order);
            }
            rest[..count].sort_unstable_by(&order);
            let reaches = |c: &Candidate| {
                sum += f64::from(c.weight);
                sum >= enough
            };
            if let Some(last) = rest[..count].iter().position(reaches) {
                self.0.truncate(done + last + 1);
                return;
            }
            done += count;
            portion *= 4;
        }
    }

    fn largest(&self) -> f32 {
        self.0.iter().map(|c| c.logit).fold(f32::NEG_INFINITY, f32::max)
    }

    fn total(&self) -> f64 {
        self.0.iter().map(|c| f64::from(c.weight)).sum()
    }
}
