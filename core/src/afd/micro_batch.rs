//! Splits a step into micro-batches, so that both pools have something to do.

use crate::backend::{Batch, Rows};

/// At most `most` batches of about as many rows each, in order. A sequence may go on in the next one: a micro-batch runs
/// each layer after the one before it.
pub(super) fn split(batch: &Batch, most: usize) -> Vec<Batch> {
    let count = batch.rows().clamp(1, most.max(1));
    let mut parts = vec![];
    let (mut sequences, mut left) = (batch.sequences.clone().into_iter(), batch.rows());
    let mut next = sequences.next();
    for at in 0..count {
        let mut part = Batch { hidden: batch.hidden, features: batch.features, ..Batch::default() };
        // Rows are spread over what is left, so that no two parts differ by more than one.
        let mut room = left.div_ceil(count - at);
        left -= room;
        while let Some(rows) = next.take() {
            if rows.tokens.len() <= room {
                room -= rows.tokens.len();
                part.sequences.push(rows);
                next = sequences.next();
                continue;
            }
            let (first, rest) = cut(rows, room);
            part.sequences.extend(first);
            next = Some(rest);
            break;
        }
        parts.push(part);
    }
    parts[0].copies.clone_from(&batch.copies);
    parts
}

/// The first `count` rows, if any, and the others.
fn cut(rows: Rows, count: usize) -> (Option<Rows>, Rows) {
    let (first, second) = rows.tokens.split_at(count);
    let at = rows.outputs.partition_point(|&row| row < count);
    let rest = Rows {
        tokens: second.to_vec(),
        start: rows.start + count,
        block_table: rows.block_table.clone(),
        outputs: rows.outputs[at..].iter().map(|row| row - count).collect(),
    };
    let first = Rows {
        tokens: first.to_vec(),
        start: rows.start,
        block_table: rows.block_table,
        outputs: rows.outputs[..at].to_vec(),
    };
    ((count > 0).then_some(first), rest)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_spread_evenly_and_in_order() {
        let sequence = |tokens: std::ops::Range<u32>, start: usize, outputs: &[usize]| Rows {
            tokens: tokens.collect(),
            start,
            block_table: vec![7],
            outputs: outputs.to_vec(),
        };
        let sequences = vec![sequence(0..1, 9, &[0]), sequence(1..7, 0, &[0, 4, 5]), sequence(7..8, 3, &[])];
        let batch = Batch { sequences, copies: vec![(1, 2)], hidden: true, features: false };
        for most in 1..12 {
            let parts = split(&batch, most);
            assert_eq!(parts.len(), most.min(8));
            let sizes: Vec<_> = parts.iter().map(Batch::rows).collect();
            assert!(sizes.iter().max().unwrap() - sizes.iter().min().unwrap() <= 1, "{sizes:?}");
            let all = |pick: fn(&Rows) -> Vec<usize>| {
                parts.iter().flat_map(|p| &p.sequences).flat_map(pick).collect::<Vec<_>>()
            };
            assert_eq!(all(|r| r.tokens.iter().map(|&t| t as usize).collect()), (0..8).collect::<Vec<_>>());
            let positions = all(|r| (r.start..r.start + r.tokens.len()).collect());
            assert_eq!(positions, [9, 0, 1, 2, 3, 4, 5, 3]);
            let wanted = all(|r| r.outputs.iter().map(|row| r.start + row).collect());
            assert_eq!(wanted, [9, 0, 4, 5]);
            assert_eq!(parts[0].copies, [(1, 2)]);
            assert!(parts[1..].iter().all(|p| p.copies.is_empty() && p.hidden));
        }
        assert_eq!(split(&Batch::default(), 3).len(), 1);
    }
}
