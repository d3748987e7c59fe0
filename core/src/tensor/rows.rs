//! Some rows of a matrix, or the same rows of every matrix of a stack, as a tensor of its own.

use std::borrow::Cow;
use std::ops::Range;
use std::sync::Arc;

use super::{Source, Tensor};
use crate::{Error, Result};

impl Tensor {
    /// These rows of every matrix; nothing is read.
    ///
    /// # Errors
    /// When it has no matrices of so many rows, or FP8 tiles would be cut.
    pub fn rows_in(&self, range: Range<usize>) -> Result<Self> {
        let &[.., rows, _] = self.shape.as_slice() else {
            return Err(Error::tensor(&self.name, format!("shape {:?} is no matrix", self.shape)));
        };
        if range.start > range.end || range.end > rows {
            return Err(Error::tensor(&self.name, format!("rows {range:?} of {rows} asked for")));
        }
        let mut part = self.clone();
        let from_end = self.shape.len() - 2;
        part.shape[from_end] = range.len();
        if let Some(scales) = &mut part.scales {
            let tile = scales.block[0];
            if !range.start.is_multiple_of(tile) || !(range.end.is_multiple_of(tile) || range.end == rows) {
                let message = format!("rows {range:?} of {rows} asked for, but scales are for {tile} each");
                return Err(Error::tensor(&self.name, message));
            }
            let across = self.cols().div_ceil(scales.block[1]);
            let wanted = range.start / tile * across..range.end.div_ceil(tile) * across;
            let matrices = scales.values.chunks_exact((rows.div_ceil(tile) * across).max(1));
            scales.values = matrices.flat_map(|tiles| &tiles[wanted.clone()]).copied().collect();
        }
        let row_bytes = self.row_bytes() as u64;
        part.offset += range.start as u64 * row_bytes;
        if self.matrices() > 1 {
            part.source = Arc::new(Strided {
                source: Arc::clone(&self.source),
                start: part.offset,
                piece: range.len() as u64 * row_bytes,
                stride: rows as u64 * row_bytes,
                count: self.matrices() as u64,
            });
            part.offset = 0;
        }
        Ok(part)
    }
}

/// Pieces of a source at equal distances, as if they lay one behind the other.
#[derive(Debug)]
struct Strided {
    source: Arc<dyn Source>,
    /// Where the first begins.
    start: u64,
    /// Bytes of one.
    piece: u64,
    /// Bytes from the beginning of one to that of the next.
    stride: u64,
    count: u64,
}

impl Source for Strided {
    fn name(&self) -> &str {
        self.source.name()
    }

    fn len(&self) -> u64 {
        self.piece * self.count
    }

    fn read(&self, range: Range<u64>) -> Result<Cow<'_, [u8]>> {
        if range.start > range.end || range.end > self.len() {
            let message = format!("bytes {range:?} of {} asked for", self.len());
            return Err(Error::format(self.name(), message));
        }
        let mut pieces = vec![];
        let mut at = range.start;
        while at < range.end {
            let (nth, within) = (at / self.piece, at % self.piece);
            let bytes = (self.piece - within).min(range.end - at);
            let from = self.start + nth * self.stride + within;
            pieces.push(self.source.read(from..from + bytes)?);
            at += bytes;
        }
        Ok(match pieces.len() {
            1 => pieces.swap_remove(0),
            _ => pieces.concat().into(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::super::{BlockScales, Bytes, DType};
    use super::*;

    /// `[3, 10, 4]` with the numbers from 0 on, behind two bytes of something else, in tiles of 4 rows and 3 columns.
    fn stack() -> Tensor {
        let bytes: Vec<u8> = [9, 9].into_iter().chain((0..120).map(|i| i % 0x70)).collect();
        let source = Arc::new(Bytes::new("test", bytes));
        let tensor = Tensor::new("w", DType::F8E4M3, vec![3, 10, 4], source, 2).unwrap();
        let values = (0..3 * 3 * 2).map(|i| 1.0 + i as f32).collect();
        tensor.with_scales(BlockScales { block: [4, 3], values }).unwrap()
    }

    #[test]
    fn rows_of_every_matrix_are_those_of_the_whole() {
        let whole = stack();
        let expected = whole.to_f32().unwrap();
        for range in [0..4, 4..10, 8..10, 0..10, 4..8] {
            let part = whole.rows_in(range.clone()).unwrap();
            assert_eq!(part.shape(), [3, range.len(), 4]);
            let wanted: Vec<f32> = expected
                .chunks(40)
                .flat_map(|matrix| matrix[range.start * 4..range.end * 4].to_vec())
                .collect();
            assert_eq!(part.to_f32().unwrap(), wanted, "{range:?}");
            // Row by row, across the borders of matrices, and as matrices of the stack.
            let mut row = [0.0; 8];
            let at = range.len() - 1;
            part.dequantize_rows(at..at + 2, &mut row).unwrap();
            assert_eq!(row, wanted[at * 4..at * 4 + 8]);
            let last = part.matrices_in(2..3).unwrap();
            assert_eq!(last.to_f32().unwrap(), wanted[2 * range.len() * 4..]);
            let same = whole.matrices_in(2..3).unwrap().rows_in(range).unwrap();
            assert_eq!(same.to_f32().unwrap(), last.to_f32().unwrap());
        }
    }

    #[test]
    fn what_cannot_be_cut_is_refused() {
        for (range, expected) in [(3..8, "scales are for 4"), (0..6, "scales are for 4"), (4..11, "of 10")] {
            let error = stack().rows_in(range).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        }
        let source = Arc::new(Bytes::new("test", vec![0; 12]));
        let vector = Tensor::new("v", DType::F32, vec![3], source, 0).unwrap();
        assert!(vector.rows_in(0..1).unwrap_err().to_string().contains("no matrix"));
        let part = stack().rows_in(4..8).unwrap();
        assert!(part.read_rows(11..13).is_err());
        assert!(part.source.read(40..60).is_err());
        assert!(part.source.read(3..3).unwrap().is_empty());
    }
}
