//! Weights on the GPU: stacked, repacked (see [`crate::format`]), and cut by rows into segments that can be bound.

use std::ops::Range;

use tread_core::tensor::{DType, Tensor};
use tread_core::{Error, Result};

use crate::format::{self, aux_words, chunks, vecs};
use crate::plan::Operand;
use crate::source::Params;

/// Bytes handed to the queue at a time; it copies them to staging memory.
const UPLOAD_BYTES: usize = 8 << 20;
/// Bytes after which pending copies are flushed, so that staging memory stays bounded.
const FLUSH_BYTES: u64 = 64 << 20;

/// The geometry of tensors of one format and inner size, stacked by rows.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Packed {
    pub(crate) dtype: DType,
    rows: usize,
    cols: usize,
    /// Rows of one matrix of a stack of experts; all rows otherwise.
    matrix_rows: usize,
    tile: [usize; 2],
}

impl Packed {
    /// # Errors
    /// [`Error::Unsupported`] for FP8 tiles that split a chunk.
    pub(crate) fn new(tensors: &[&Tensor]) -> Result<Self> {
        let first = tensors.first().ok_or_else(|| Error::Unsupported("a matrix of no weights".to_owned()))?;
        let rows = tensors.iter().map(|t| t.rows()).sum::<usize>();
        let tile = first.scales().map_or([1, 1], |s| s.block);
        if first.dtype() == DType::F8E4M3 {
            if first.scales().is_none() {
                return Err(Error::tensor(first.name(), "F8_E4M3 without block scales"));
            }
            if tile[1] % format::CHUNK != 0 && tile[1] < first.cols() {
                let message =
                    format!("{}: block scales of {tile:?}; columns must be a multiple of 32", first.name());
                return Err(Error::Unsupported(message));
            }
        }
        let matrix_rows = if tensors.len() == 1 { rows / first.matrices().max(1) } else { rows };
        Ok(Self { dtype: first.dtype(), rows, cols: first.cols(), matrix_rows, tile })
    }

    pub(crate) fn chunks(&self) -> u32 {
        chunks(self.cols) as u32
    }

    fn value_bytes(&self) -> usize {
        chunks(self.cols) * vecs(self.dtype) * 16
    }

    fn aux_bytes(&self) -> usize {
        aux_words(self.dtype, self.cols) * 4
    }

    fn has_aux(&self) -> bool {
        self.dtype == DType::F8E4M3 || self.aux_bytes() > 0
    }

    /// The parameters of weights.wgsl and the format files for a segment of rows.
    pub(crate) fn params(&self, rows: &Range<usize>) -> Params {
        Params::from([
            ("CHUNKS", self.chunks()),
            ("AUX", aux_words(self.dtype, self.cols) as u32),
            ("AUX_PLANE", u32::from(self.has_aux())),
            ("HAS_MIN", u32::from(format::has_min(self.dtype))),
            ("ROW0", rows.start as u32),
            ("SEGMENT_ROWS", rows.len() as u32),
            ("MATRIX_ROWS", self.matrix_rows as u32),
            ("TILE_ROWS", self.tile[0] as u32),
            ("TILE_COLS", self.tile[1].next_multiple_of(format::CHUNK) as u32),
            ("TILES_DOWN", self.matrix_rows.div_ceil(self.tile[0]) as u32),
            ("TILES_ACROSS", self.cols.div_ceil(self.tile[1]) as u32),
        ])
    }

    /// The bindings of the `nth` matrix of a kernel.
    pub(crate) fn operands(&self, nth: u32, matrix: usize, segment: usize) -> Vec<(u32, Operand, bool)> {
        let mut operands = vec![(4 + 2 * nth, Operand::Values(matrix, segment), false)];
        if self.has_aux() {
            operands.push((5 + 2 * nth, Operand::Aux(matrix, segment), false));
        }
        operands
    }
}

/// The row ranges of segments whose planes are at most `max` bytes each.
pub(crate) fn segments(packed: &Packed, max: u64) -> Vec<Range<usize>> {
    let row = packed.value_bytes().max(packed.aux_bytes()).max(1) as u64;
    let rows = usize::try_from(max / row).unwrap_or(usize::MAX).clamp(1, packed.rows.max(1));
    (0..packed.rows).step_by(rows).map(|start| start..(start + rows).min(packed.rows)).collect()
}

/// The planes of one segment.
#[derive(Debug)]
pub(crate) struct Segment {
    pub(crate) values: wgpu::Buffer,
    pub(crate) aux: Option<wgpu::Buffer>,
}

/// A stacked matrix on the device.
#[derive(Debug)]
pub(crate) struct Matrix {
    pub(crate) segments: Vec<Segment>,
    pub(crate) bytes: u64,
}

/// Copies to the device, flushing now and then.
pub(crate) struct Uploader<'a> {
    device: &'a wgpu::Device,
    queue: &'a wgpu::Queue,
    pending: u64,
}

impl<'a> Uploader<'a> {
    pub(crate) fn new(device: &'a wgpu::Device, queue: &'a wgpu::Queue) -> Self {
        Self { device, queue, pending: 0 }
    }

    pub(crate) fn buffer(&self, label: &str, bytes: u64) -> wgpu::Buffer {
        self.device.create_buffer(&wgpu::BufferDescriptor {
            label: Some(label),
            size: bytes.next_multiple_of(16).max(16),
            usage: wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::COPY_DST,
            mapped_at_creation: false,
        })
    }

    pub(crate) fn write(&mut self, buffer: &wgpu::Buffer, offset: u64, bytes: &[u8]) -> Result<()> {
        self.queue.write_buffer(buffer, offset, bytes);
        self.pending += bytes.len() as u64;
        if self.pending >= FLUSH_BYTES {
            self.flush()?;
        }
        Ok(())
    }

    /// Waits for pending copies (native; browsers bound them themselves).
    pub(crate) fn flush(&mut self) -> Result<()> {
        self.queue.submit([]);
        self.pending = 0;
        self.device
            .poll(wgpu::PollType::wait_indefinitely())
            .map_err(|e| Error::Device(format!("upload: {e}")))?;
        Ok(())
    }
}

/// Repacks and uploads stacked tensors; `done` is told the checkpoint bytes behind each piece.
pub(crate) fn upload(
    uploader: &mut Uploader<'_>,
    tensors: &[&Tensor],
    max_segment: u64,
    done: &mut dyn FnMut(u64),
) -> Result<Matrix> {
    let packed = Packed::new(tensors)?;
    let label = tensors[0].name();
    let scales = tile_scales(uploader, tensors)?;
    let mut matrix = Matrix { segments: vec![], bytes: scales.as_ref().map_or(0, wgpu::Buffer::size) };
    for rows in segments(&packed, max_segment) {
        let values = uploader.buffer(label, (rows.len() * packed.value_bytes()) as u64);
        let aux = (packed.aux_bytes() > 0)
            .then(|| uploader.buffer(label, (rows.len() * packed.aux_bytes()) as u64));
        matrix.bytes += values.size() + aux.as_ref().map_or(0, wgpu::Buffer::size);
        let batch = (UPLOAD_BYTES / packed.value_bytes().max(1)).max(1);
        let mut at = rows.start;
        while at < rows.end {
            let (tensor, local) = locate(tensors, at);
            let count = batch.min(rows.end - at).min(tensor.rows() - local);
            let bytes = tensor.read_rows(local..local + count)?;
            let row0 = at - rows.start;
            write_rows(uploader, &packed, &bytes, row0, &values, aux.as_ref())?;
            done(bytes.len() as u64);
            at += count;
        }
        let aux = aux.or_else(|| scales.clone());
        matrix.segments.push(Segment { values, aux });
    }
    Ok(matrix)
}

/// Repacks checkpoint rows and writes them from `row0` of a segment on.
fn write_rows(
    uploader: &mut Uploader<'_>,
    packed: &Packed,
    bytes: &[u8],
    row0: usize,
    values: &wgpu::Buffer,
    aux: Option<&wgpu::Buffer>,
) -> Result<()> {
    let (cols, dtype) = (packed.cols, packed.dtype);
    let value_offset = (row0 * packed.value_bytes()) as u64;
    let row_bytes = cols / dtype.block_len() * dtype.block_bytes();
    if aux.is_none() && row_bytes == packed.value_bytes() {
        // Floats whose rows are whole chunks lie on the GPU as they do in the file.
        return uploader.write(values, value_offset, bytes);
    }
    let (mut packed_values, mut packed_aux) = (vec![], vec![]);
    for row in bytes.chunks_exact(row_bytes.max(1)) {
        format::pack_row(dtype, row, cols, &mut packed_values, &mut packed_aux);
    }
    uploader.write(values, value_offset, &packed_values)?;
    if let Some(aux) = aux {
        uploader.write(aux, (row0 * packed.aux_bytes()) as u64, bytemuck::cast_slice(&packed_aux))?;
    }
    Ok(())
}

/// The tensor that holds row `row` of the stack, and the row in it.
fn locate<'t>(tensors: &[&'t Tensor], mut row: usize) -> (&'t Tensor, usize) {
    for tensor in tensors {
        if row < tensor.rows() {
            return (tensor, row);
        }
        row -= tensor.rows();
    }
    (tensors[tensors.len() - 1], 0)
}

/// FP8 tile scales of all stacked tensors, one after the other: stacking starts at whole tiles.
fn tile_scales(uploader: &mut Uploader<'_>, tensors: &[&Tensor]) -> Result<Option<wgpu::Buffer>> {
    let all: Vec<f32> =
        tensors.iter().filter_map(|t| t.scales()).flat_map(|s| s.values.iter().copied()).collect();
    if all.is_empty() {
        return Ok(None);
    }
    let buffer = uploader.buffer("tile scales", all.len() as u64 * 4);
    uploader.write(&buffer, 0, bytemuck::cast_slice(&all))?;
    Ok(Some(buffer))
}
