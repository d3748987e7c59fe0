//! The DRY penalty: which tokens would prolong a repetition, and how long it is.

use super::params::Dry;

/// Each token that would prolong a repetition of at least `allowed_length` tokens, with the longest repetition it
/// would prolong; in no particular order. `breakers` of `dry` are sorted.
pub(super) fn repetitions(dry: &Dry, history: &[u32]) -> Vec<(u32, usize)> {
    let window = &history[history.len().saturating_sub(dry.window)..];
    let breaks = |token: &u32| dry.breakers.binary_search(token).is_ok();
    let since_break = window.iter().rev().position(breaks).unwrap_or(window.len());
    // A repetition of no tokens is none, so 0 and 1 are the same.
    let allowed = dry.allowed_length.max(1);
    if since_break < allowed {
        return vec![];
    }
    let backwards: Vec<u32> = window.iter().rev().copied().collect();
    let matches = prefix_matches(&backwards);
    let mut found: Vec<(u32, usize)> = (1..backwards.len())
        .map(|i| (backwards[i - 1], matches[i].min(since_break)))
        .filter(|(next, length)| *length >= allowed && !breaks(next))
        .collect();
    found.sort_unstable_by(|a, b| a.0.cmp(&b.0).then(b.1.cmp(&a.1)));
    found.dedup_by_key(|(token, _)| *token);
    found
}

/// For each position, how many tokens from there on agree with those at the start (the Z algorithm: linear in time,
/// where comparing at each position is quadratic in just the texts that repeat themselves).
fn prefix_matches(tokens: &[u32]) -> Vec<usize> {
    let mut z = vec![0; tokens.len()];
    let (mut start, mut end) = (0, 0);
    for i in 1..tokens.len() {
        let mut length = if i < end { z[i - start].min(end - i) } else { 0 };
        while tokens.get(i + length).is_some_and(|t| *t == tokens[length]) {
            length += 1;
        }
        if i + length > end {
            (start, end) = (i, i + length);
        }
        z[i] = length;
    }
    z
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{Dry, prefix_matches, repetitions};

    fn dry(breakers: &[u32]) -> Dry {
        Dry { multiplier: 1.0, breakers: breakers.to_vec(), ..Dry::default() }
    }

    #[test]
    fn repetitions_by_hand() {
        // "1 2 3 4 ... 1 2 3": 4 would make it a repetition of four.
        assert_eq!(repetitions(&dry(&[]), &[1, 2, 3, 4, 9, 1, 2, 3]), [(4, 3)]);
        // "2 3" was followed by 4 and by 5, the longer match counts for each.
        assert_eq!(repetitions(&dry(&[]), &[1, 2, 3, 4, 2, 3, 5, 1, 2, 3]), [(4, 3), (5, 2)]);
        // One token in common is allowed.
        assert_eq!(repetitions(&dry(&[]), &[3, 4, 7, 3]), []);
        assert_eq!(repetitions(&Dry { allowed_length: 1, ..dry(&[]) }, &[3, 4, 7, 3]), [(4, 1)]);
        // A breaker cuts the match, ends it altogether, and is not penalised itself.
        assert_eq!(repetitions(&dry(&[1]), &[0, 1, 2, 3, 4, 0, 1, 2, 3]), [(4, 2)]);
        assert_eq!(repetitions(&dry(&[2]), &[1, 2, 3, 4, 9, 1, 2, 3]), []);
        assert_eq!(repetitions(&dry(&[4]), &[1, 2, 3, 4, 9, 1, 2, 3]), []);
        // The window leaves the first occurrence out, or a part of it.
        assert_eq!(repetitions(&Dry { window: 6, ..dry(&[]) }, &[1, 2, 3, 4, 9, 1, 2, 3]), []);
        assert_eq!(repetitions(&Dry { window: 7, ..dry(&[]) }, &[1, 2, 3, 4, 9, 1, 2, 3]), [(4, 2)]);
        assert_eq!(repetitions(&dry(&[]), &[7, 7, 7, 7]), [(7, 3)]);
        assert_eq!(repetitions(&dry(&[]), &[]), []);
    }

    proptest! {
        #[test]
        fn matches_are_those_of_comparing(tokens in prop::collection::vec(0u32..3, 0..60)) {
            for (i, &length) in prefix_matches(&tokens).iter().enumerate().skip(1) {
                let expected = tokens.iter().zip(&tokens[i..]).take_while(|(a, b)| a == b).count();
                prop_assert_eq!(length, expected);
            }
        }
    }
}
