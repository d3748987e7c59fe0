//! Typed views of tensors that stay where they are: in a mapped file, in the binary, or behind ranged reads.

mod rows;

use std::borrow::Cow;
use std::ops::Range;
use std::sync::Arc;

use crate::{Error, Result, quant};

/// How the elements of a tensor are stored.
///
/// The GGUF types are defined by the GGUF/ggml specification; `F8E4M3` is the OCP 8-bit float ("e4m3fn"), which
/// always comes with block scales here.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum DType {
    /// IEEE 754 binary32.
    F32,
    /// IEEE 754 binary16.
    F16,
    /// bfloat16.
    BF16,
    /// OCP E4M3 (no infinities), scaled by [`BlockScales`].
    F8E4M3,
    /// GGUF: 32 signed bytes with one f16 scale.
    Q8_0,
    /// GGUF: 32 nibbles minus 8 with one f16 scale.
    Q4_0,
    /// GGUF: 32 nibbles with an f16 scale and an f16 minimum.
    Q4_1,
    /// GGUF: 256 nibbles in 8 sub-blocks with 6-bit scales and minima under two f16.
    Q4K,
    /// GGUF: 256 six-bit values in 16 sub-blocks with 8-bit scales under one f16.
    Q6K,
}

impl DType {
    /// Every type, for tests and tables.
    pub const ALL: [Self; 9] = [
        Self::F32,
        Self::F16,
        Self::BF16,
        Self::F8E4M3,
        Self::Q8_0,
        Self::Q4_0,
        Self::Q4_1,
        Self::Q4K,
        Self::Q6K,
    ];

    /// Elements in one indivisible block.
    pub const fn block_len(self) -> usize {
        match self {
            Self::F32 | Self::F16 | Self::BF16 | Self::F8E4M3 => 1,
            Self::Q8_0 | Self::Q4_0 | Self::Q4_1 => 32,
            Self::Q4K | Self::Q6K => 256,
        }
    }

    /// Bytes of one block on disk.
    pub const fn block_bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::BF16 => 2,
            Self::F8E4M3 => 1,
            Self::Q8_0 => 34,
            Self::Q4_0 => 18,
            Self::Q4_1 => 20,
            Self::Q4K => 144,
            Self::Q6K => 210,
        }
    }

    /// The name users know it by.
    pub const fn name(self) -> &'static str {
        match self {
            Self::F32 => "F32",
            Self::F16 => "F16",
            Self::BF16 => "BF16",
            Self::F8E4M3 => "F8_E4M3",
            Self::Q8_0 => "Q8_0",
            Self::Q4_0 => "Q4_0",
            Self::Q4_1 => "Q4_1",
            Self::Q4K => "Q4_K",
            Self::Q6K => "Q6_K",
        }
    }
}

impl std::fmt::Display for DType {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

/// Where bytes come from: a mapped file, a static slice, or storage with synchronous ranged reads (OPFS).
pub trait Source: Send + Sync + std::fmt::Debug {
    /// The name to use in errors.
    fn name(&self) -> &str;
    /// Length in bytes.
    fn len(&self) -> u64;
    /// Whether there are no bytes at all.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }
    /// The bytes in `range`; an [`Error::Format`] when the range leaves the source.
    fn read(&self, range: Range<u64>) -> Result<Cow<'_, [u8]>>;
}

/// Bytes that live as long as the program (the embedded model) or that a test made.
#[derive(Debug)]
pub struct Bytes {
    name: String,
    bytes: Cow<'static, [u8]>,
}

impl Bytes {
    /// Names `bytes` as a source.
    pub fn new(name: impl Into<String>, bytes: impl Into<Cow<'static, [u8]>>) -> Self {
        Self { name: name.into(), bytes: bytes.into() }
    }
}

impl Source for Bytes {
    fn name(&self) -> &str {
        &self.name
    }
    fn len(&self) -> u64 {
        self.bytes.len() as u64
    }
    fn read(&self, range: Range<u64>) -> Result<Cow<'_, [u8]>> {
        slice(&self.name, &self.bytes, range).map(Cow::Borrowed)
    }
}

/// `bytes[range]`, or an error that names `source`.
pub fn slice<'a>(source: &str, bytes: &'a [u8], range: Range<u64>) -> Result<&'a [u8]> {
    let (Ok(start), Ok(end)) = (usize::try_from(range.start), usize::try_from(range.end)) else {
        return Err(Error::format(source, format!("bytes {range:?} are beyond the address space")));
    };
    bytes.get(start..end).ok_or_else(|| {
        Error::format(
            source,
            format!("bytes {range:?} lie outside its {} bytes; is it truncated?", bytes.len()),
        )
    })
}

/// One f32 scale for each `block[0] x block[1]` tile of the matrices of an FP8 tensor, edges ragged.
///
/// The layout of the step3-fp8 checkpoint: `weight = fp8 * scale`, scales of shape
/// `[.., ceil(rows / block[0]), ceil(cols / block[1])]` with the same leading dimensions as the tensor.
#[derive(Clone, Debug)]
pub struct BlockScales {
    /// Rows and columns of a tile.
    pub block: [usize; 2],
    /// The scales, decoded, row-major.
    pub values: Arc<[f32]>,
}

/// A named, typed, row-major view of bytes in a [`Source`]. Cloning is cheap; nothing is read until asked for.
///
/// The constructor proves that the bytes lie inside the source and that rows are whole blocks, so that readers
/// need not check again.
#[derive(Clone, Debug)]
pub struct Tensor {
    name: String,
    dtype: DType,
    shape: Vec<usize>,
    source: Arc<dyn Source>,
    offset: u64,
    scales: Option<BlockScales>,
}

impl Tensor {
    /// A view of `source` from byte `offset` on.
    ///
    /// # Errors
    /// When the shape overflows, a row is not a whole number of blocks, or the bytes leave the source.
    pub fn new(
        name: impl Into<String>,
        dtype: DType,
        shape: Vec<usize>,
        source: Arc<dyn Source>,
        offset: u64,
    ) -> Result<Self> {
        let name = name.into();
        let cols = shape.last().copied().unwrap_or(1);
        let elements = shape.iter().try_fold(1usize, |a, &d| a.checked_mul(d));
        // A row is measured apart: without rows, the product of the shape says nothing about its length.
        let row = (cols / dtype.block_len()).checked_mul(dtype.block_bytes());
        let bytes = elements.zip(row).and_then(|(n, row)| n.checked_div(cols).unwrap_or(0).checked_mul(row));
        let Some(bytes) = bytes else {
            return Err(Error::tensor(
                &name,
                format!("shape {shape:?} has more elements than can be addressed"),
            ));
        };
        if cols % dtype.block_len() != 0 {
            let message = format!("rows of {cols} are not whole {dtype} blocks of {}", dtype.block_len());
            return Err(Error::tensor(&name, message));
        }
        match offset.checked_add(bytes as u64) {
            Some(end) if end <= source.len() => Ok(Self { name, dtype, shape, source, offset, scales: None }),
            _ => {
                let message = format!(
                    "needs {bytes} bytes at offset {offset}, but {} has only {}; is it truncated?",
                    source.name(),
                    source.len()
                );
                Err(Error::tensor(&name, message))
            }
        }
    }

    /// Pairs the tensor with its block scales.
    ///
    /// # Errors
    /// When the number of scales does not fit the shape, or one is NaN or infinite.
    pub fn with_scales(mut self, scales: BlockScales) -> Result<Self> {
        let matrix_rows = self.shape.iter().rev().nth(1).copied().unwrap_or(1);
        let tiles = self.matrices()
            * matrix_rows.div_ceil(scales.block[0].max(1))
            * self.cols().div_ceil(scales.block[1].max(1));
        if scales.block.contains(&0) || tiles != scales.values.len() {
            let message = format!(
                "shape {:?} in blocks of {:?} needs {tiles} scales, but there are {}",
                self.shape,
                scales.block,
                scales.values.len()
            );
            return Err(Error::tensor(self.name, message));
        }
        if let Some(i) = scales.values.iter().position(|s| !s.is_finite()) {
            return Err(Error::tensor(self.name, format!("block scale {i} is {}", scales.values[i])));
        }
        self.scales = Some(scales);
        Ok(self)
    }

    /// Renames the view (checkpoint formats differ in names, the graph does not).
    #[must_use]
    pub fn renamed(mut self, name: impl Into<String>) -> Self {
        self.name = name.into();
        self
    }

    /// Some matrices of a stack `[matrices, rows, cols]`; nothing is read.
    ///
    /// # Errors
    /// When it is not a stack of so many.
    pub fn matrices_in(&self, range: Range<usize>) -> Result<Self> {
        let &[matrices, rows, _] = self.shape.as_slice() else {
            return Err(Error::tensor(&self.name, format!("shape {:?} is no stack of matrices", self.shape)));
        };
        if range.start > range.end || range.end > matrices {
            return Err(Error::tensor(&self.name, format!("matrices {range:?} of {matrices} asked for")));
        }
        let mut part = self.clone();
        part.shape[0] = range.len();
        part.offset += (range.start * rows * self.row_bytes()) as u64;
        if let Some(scales) = &mut part.scales {
            let tiles = rows.div_ceil(scales.block[0]) * self.cols().div_ceil(scales.block[1]);
            scales.values = scales.values[range.start * tiles..range.end * tiles].into();
        }
        Ok(part)
    }

    /// The name in the checkpoint.
    pub fn name(&self) -> &str {
        &self.name
    }
    /// The storage type.
    pub fn dtype(&self) -> DType {
        self.dtype
    }
    /// Outermost dimension first.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }
    /// The scales of an FP8 tensor.
    pub fn scales(&self) -> Option<&BlockScales> {
        self.scales.as_ref()
    }
    /// Length of the innermost dimension.
    pub fn cols(&self) -> usize {
        self.shape.last().copied().unwrap_or(1)
    }
    /// Number of rows when all outer dimensions are flattened.
    pub fn rows(&self) -> usize {
        self.shape.split_last().map_or(1, |(_, outer)| outer.iter().product())
    }
    /// Number of matrices in a stack (1 for a matrix or vector).
    pub fn matrices(&self) -> usize {
        self.shape.len().checked_sub(2).map_or(1, |n| self.shape[..n].iter().product())
    }
    /// Number of elements.
    pub fn elements(&self) -> usize {
        self.rows() * self.cols()
    }
    /// Bytes of one row.
    pub fn row_bytes(&self) -> usize {
        self.cols() / self.dtype.block_len() * self.dtype.block_bytes()
    }
    /// Bytes on disk, without scales.
    pub fn bytes(&self) -> u64 {
        self.rows() as u64 * self.row_bytes() as u64
    }

    /// The raw bytes of flattened rows `rows`.
    ///
    /// # Errors
    /// When the rows leave the tensor or the source cannot be read.
    pub fn read_rows(&self, rows: Range<usize>) -> Result<Cow<'_, [u8]>> {
        if rows.start > rows.end || rows.end > self.rows() {
            return Err(Error::tensor(&self.name, format!("rows {rows:?} of {} asked for", self.rows())));
        }
        let row = self.row_bytes() as u64;
        self.source.read(self.offset + rows.start as u64 * row..self.offset + rows.end as u64 * row)
    }

    /// Decodes flattened rows `rows` into `out` (`[rows, cols]` f32).
    ///
    /// # Errors
    /// As [`Tensor::read_rows`].
    pub fn dequantize_rows(&self, rows: Range<usize>, out: &mut [f32]) -> Result<()> {
        let cols = self.cols();
        let bytes = self.read_rows(rows.clone())?;
        quant::dequantize(self.dtype, &bytes, out);
        if let Some(scales) = &self.scales {
            for (row, out) in rows.zip(out.chunks_exact_mut(cols)) {
                for (tile, out) in self.row_scales(scales, row).iter().zip(out.chunks_mut(scales.block[1])) {
                    out.iter_mut().for_each(|x| *x *= tile);
                }
            }
        }
        Ok(())
    }

    /// The whole tensor decoded to f32 (meant for small ones: norms, biases).
    ///
    /// # Errors
    /// As [`Tensor::read_rows`].
    pub fn to_f32(&self) -> Result<Vec<f32>> {
        let mut out = vec![0.0; self.elements()];
        self.dequantize_rows(0..self.rows(), &mut out)?;
        Ok(out)
    }

    /// The scales of one flattened row, one for each `block[1]` columns.
    fn row_scales<'a>(&self, scales: &'a BlockScales, row: usize) -> &'a [f32] {
        let matrix_rows = self.shape.iter().rev().nth(1).copied().unwrap_or(1);
        let tile_cols = self.cols().div_ceil(scales.block[1]);
        let tile_rows = matrix_rows.div_ceil(scales.block[0]);
        let tile_row = row / matrix_rows * tile_rows + row % matrix_rows / scales.block[0];
        &scales.values[tile_row * tile_cols..][..tile_cols]
    }
}
