//! Weights on the GPU: stacked, repacked (see [`crate::format`]), and cut by rows into segments that can be bound.

use std::ops::Range;

use tread_core::tensor::{DType, Tensor};
use tread_core::{Error, Result, quant};

use crate::format::{self, aux_words, chunks, vecs};
use crate::plan::Operand;
use crate::source::Params;

/// Bytes handed to the queue at a time; it copies them to staging memory.
const UPLOAD_BYTES: usize = 8 << 20;
/// Bytes after which pending copies are waited for, so that staging memory stays bounded.
const FLUSH_BYTES: u64 = 32 << 20;

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

    /// Rows of one matrix of a stack.
    pub(crate) fn matrix_rows(&self) -> u32 {
        self.matrix_rows as u32
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
    rows: Range<usize>,
    pub(crate) values: wgpu::Buffer,
    /// Scales and high bits, or the matrix's tile scales.
    pub(crate) aux: Option<wgpu::Buffer>,
}

/// A stacked matrix on the device.
#[derive(Debug)]
pub(crate) struct Matrix {
    packed: Packed,
    tile_scales: Option<wgpu::Buffer>,
    pub(crate) segments: Vec<Segment>,
}

/// A buffer to be filled by [`Uploader::write`].
pub(crate) fn buffer(device: &wgpu::Device, label: &str, bytes: u64) -> wgpu::Buffer {
    device.create_buffer(&wgpu::BufferDescriptor {
        label: Some(label),
        size: bytes.next_multiple_of(16).max(16),
        usage: wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::COPY_DST,
        mapped_at_creation: false,
    })
}

impl Matrix {
    pub(crate) fn bytes(&self) -> u64 {
        let own_aux = |s: &Segment| {
            s.aux.as_ref().filter(|_| self.packed.aux_bytes() > 0).map_or(0, wgpu::Buffer::size)
        };
        let segments = self.segments.iter().map(|s| s.values.size() + own_aux(s));
        segments.sum::<u64>() + self.tile_scales.as_ref().map_or(0, wgpu::Buffer::size)
    }

    /// Room for stacked tensors.
    pub(crate) fn allocate(device: &wgpu::Device, tensors: &[&Tensor], max_segment: u64) -> Result<Self> {
        let packed = Packed::new(tensors)?;
        let label = tensors[0].name();
        let tiles: usize = tensors.iter().filter_map(|t| t.scales()).map(|s| s.values.len()).sum();
        let tile_scales = (tiles > 0).then(|| buffer(device, "tile scales", tiles as u64 * 4));
        let plane = |bytes: usize| buffer(device, label, bytes as u64);
        let segment = |rows: Range<usize>| {
            let values = plane(rows.len() * packed.value_bytes());
            let aux = (packed.aux_bytes() > 0).then(|| plane(rows.len() * packed.aux_bytes()));
            Segment { values, aux: aux.or_else(|| tile_scales.clone()), rows }
        };
        let segments = segments(&packed, max_segment).into_iter().map(segment).collect();
        Ok(Self { packed, tile_scales, segments })
    }
}

/// Copies to the device, in pieces.
pub(crate) struct Uploader<'a> {
    device: &'a wgpu::Device,
    queue: &'a wgpu::Queue,
    pending: u64,
    /// Repacked rows, reused from piece to piece.
    values: Vec<u8>,
    aux: Vec<u32>,
}

impl<'a> Uploader<'a> {
    pub(crate) fn new(device: &'a wgpu::Device, queue: &'a wgpu::Queue) -> Self {
        Self { device, queue, pending: 0, values: vec![], aux: vec![] }
    }

    pub(crate) fn write(&mut self, buffer: &wgpu::Buffer, offset: u64, bytes: &[u8]) {
        self.queue.write_buffer(buffer, offset, bytes);
        self.pending += bytes.len() as u64;
    }

    /// Waits for pending copies if there are many: in browsers, everybody else has a turn.
    async fn pace(&mut self) -> Result<()> {
        if self.pending >= FLUSH_BYTES { self.flush().await } else { Ok(()) }
    }

    /// Waits for pending copies.
    pub(crate) async fn flush(&mut self) -> Result<()> {
        self.queue.submit([]);
        self.pending = 0;
        let (sender, done) = futures_channel::oneshot::channel();
        self.queue.on_submitted_work_done(move || {
            // The receiver is gone only when loading was given up.
            let _ = sender.send(());
        });
        // Does nothing in browsers, which need no poll.
        self.device
            .poll(wgpu::PollType::wait_indefinitely())
            .map_err(|e| Error::Device(format!("upload: {e}")))?;
        done.await.map_err(|_| Error::Device("the device dropped an upload".to_owned()))
    }

    /// Checks, repacks and uploads stacked tensors; `done` is told the checkpoint bytes behind each piece.
    pub(crate) async fn fill(
        &mut self,
        matrix: &Matrix,
        tensors: &[&Tensor],
        done: &mut dyn FnMut(u64),
    ) -> Result<()> {
        if let Some(buffer) = &matrix.tile_scales {
            // Of all stacked tensors, one after the other: stacking starts at whole tiles.
            let scales = tensors.iter().filter_map(|t| t.scales());
            let all: Vec<f32> = scales.flat_map(|s| s.values.iter().copied()).collect();
            self.write(buffer, 0, bytemuck::cast_slice(&all));
        }
        let batch = (UPLOAD_BYTES / matrix.packed.value_bytes().max(1)).max(1);
        for segment in &matrix.segments {
            let mut at = segment.rows.start;
            while at < segment.rows.end {
                let (tensor, local) = locate(tensors, at);
                let count = batch.min(segment.rows.end - at).min(tensor.rows() - local);
                let bytes = tensor.read_rows(local..local + count)?;
                quant::check_rows(tensor, local, &bytes)?;
                self.write_rows(&matrix.packed, &bytes, at - segment.rows.start, segment);
                done(bytes.len() as u64);
                at += count;
                self.pace().await?;
            }
        }
        Ok(())
    }

    /// Repacks checkpoint rows and writes them from `row0` of a segment on.
    fn write_rows(&mut self, packed: &Packed, bytes: &[u8], row0: usize, segment: &Segment) {
        let (cols, dtype) = (packed.cols, packed.dtype);
        let value_offset = (row0 * packed.value_bytes()) as u64;
        let row_bytes = cols / dtype.block_len() * dtype.block_bytes();
        let aux = segment.aux.as_ref().filter(|_| packed.aux_bytes() > 0);
        if aux.is_none() && row_bytes == packed.value_bytes() {
            // Floats whose rows are whole chunks lie on the GPU as they do in the file.
            return self.write(&segment.values, value_offset, bytes);
        }
        let (mut values, mut words) = (std::mem::take(&mut self.values), std::mem::take(&mut self.aux));
        values.clear();
        words.clear();
        for row in bytes.chunks_exact(row_bytes.max(1)) {
            format::pack_row(dtype, row, cols, &mut values, &mut words);
        }
        self.write(&segment.values, value_offset, &values);
        if let Some(aux) = aux {
            self.write(aux, (row0 * packed.aux_bytes()) as u64, bytemuck::cast_slice(&words));
        }
        (self.values, self.aux) = (values, words);
    }
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
