//! What the model itself thinks of a token, before any filter.

use serde::{Deserialize, Serialize};

/// A token's log probability under the model (before any filter), and the likeliest tokens with theirs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TokenLogprob {
    /// The token.
    pub token: u32,
    /// Natural logarithm of its probability; minus infinity where that is 0.
    pub logprob: f32,
    /// 1 for the likeliest token, and so on; equally likely ones count in order of their ids.
    pub rank: usize,
    /// The likeliest tokens, likeliest first.
    pub top: Vec<(u32, f32)>,
}

/// The score of `token` under the raw `logits` (`[vocab]`), with the `top` likeliest tokens.
pub fn score(logits: &[f32], token: u32, top: usize) -> TokenLogprob {
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = logits.iter().map(|l| f64::from((l - max).exp())).sum();
    let log_sum = f64::from(max) + sum.ln();
    let logit = |id: u32| logits.get(id as usize).copied().unwrap_or(f32::NEG_INFINITY);
    let logprob = |id: u32| (f64::from(logit(id)) - log_sum) as f32;

    let own = logit(token);
    let before = |(id, &l): (u32, &f32)| l > own || (l == own && id < token);
    let rank = 1 + (0..).zip(logits).filter(|&entry| before(entry)).count();
    TokenLogprob {
        token,
        logprob: logprob(token),
        rank,
        top: likeliest(logits, top).into_iter().map(|id| (id, logprob(id))).collect(),
    }
}

fn likeliest(logits: &[f32], top: usize) -> Vec<u32> {
    let top = top.min(logits.len());
    if top == 0 {
        return vec![];
    }
    let downwards =
        |a: &u32, b: &u32| logits[*b as usize].total_cmp(&logits[*a as usize]).then_with(|| a.cmp(b));
    let mut ids: Vec<u32> = (0..logits.len() as u32).collect();
    ids.select_nth_unstable_by(top - 1, downwards);
    ids.truncate(top);
    ids.sort_unstable_by(downwards);
    ids
}

#[cfg(test)]
mod tests {
    use super::score;

    #[test]
    fn scores_are_the_log_softmax() {
        // Probabilities 0.1, 0.4, 0.1, 0.4, whatever is added to every logit.
        for shift in [0.0, 300.0, -300.0] {
            let logits = [0.1f32, 0.4, 0.1, 0.4].map(|p| p.ln() + shift);
            let found = score(&logits, 2, 3);
            assert_eq!((found.token, found.rank), (2, 4), "equal ones in order of their ids");
            assert!((found.logprob - 0.1f32.ln()).abs() < 1e-4);
            assert_eq!(found.top.iter().map(|t| t.0).collect::<Vec<_>>(), [1, 3, 0]);
            assert!(found.top.iter().zip([0.4f32, 0.4, 0.1]).all(|(t, p)| (t.1 - p.ln()).abs() < 1e-4));
            assert_eq!(score(&logits, 1, 0).rank, 1);
            assert_eq!(score(&logits, 3, 99).top.len(), 4);
        }
    }

    #[test]
    fn tokens_without_probability_come_last() {
        let logits = [f32::NEG_INFINITY, 1.0];
        let found = score(&logits, 0, 2);
        assert_eq!((found.logprob, found.rank), (f32::NEG_INFINITY, 2));
        assert_eq!(found.top, [(1, 0.0), (0, f32::NEG_INFINITY)]);
        assert_eq!(score(&logits, 9, 0).logprob, f32::NEG_INFINITY, "not in the vocabulary");
    }

    /// A sum in f32 would lose most of these.
    #[test]
    fn a_large_vocabulary_adds_up() {
        let logits = vec![0.0; 1 << 20];
        assert!((score(&logits, 7, 0).logprob + 20.0 * std::f32::consts::LN_2).abs() < 1e-5);
        assert_eq!(score(&logits, 7, 0).rank, 8);
    }
}
