//! What goes from pool to pool: a header of fixed size, then activations packed by the types of their edges.
//!
//! One form for calls, answers and what else workers say, whatever carries it. Nothing in a frame is trusted: a length
//! that does not follow from the layout and the rows is refused before anything is unpacked.

use super::activations::{pack, packed_bytes, unpack};
use super::{Call, Layout};
use crate::graph::Edge;
use crate::{Error, Result};

/// Bytes of a [`Header`].
pub const HEADER_BYTES: usize = 64;
/// The form of frames; another one is not read.
pub const VERSION: u16 = 1;
const MAGIC: [u8; 4] = *b"TAFD";
/// Bytes of the longest [`Kind::Refusal`] text.
const MOST_TEXT: usize = 1024;

/// What a frame is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    /// Activations for a layer's FFN.
    Call = 1,
    /// What the FFN made of them.
    Answer = 2,
    /// A text that says why there is no answer.
    Refusal = 3,
    /// The worker takes no new calls and answers those it has.
    Draining = 4,
}

/// What a frame says of itself.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Header {
    /// What it is.
    pub kind: Kind,
    /// How often those who are asked had changed when the call was sent; an answer repeats it.
    pub epoch: u64,
    /// The life of the worker that is asked, or that answers.
    pub incarnation: u64,
    /// As in [`Call`].
    pub step: u64,
    /// As in [`Call`].
    pub micro_batch: u32,
    /// As in [`Call`].
    pub layer: u32,
    /// As in [`Call`].
    pub rows: u32,
    /// Where the answer is awaited: no other call has this place until then.
    pub slot: u32,
    /// How long the FFN took, in microseconds.
    pub ffn_us: f64,
}

impl Header {
    /// A header for a call.
    pub fn of_call(call: &Call) -> Self {
        Self {
            kind: Kind::Call,
            epoch: 0,
            incarnation: 0,
            step: call.step,
            micro_batch: call.micro_batch as u32,
            layer: call.layer as u32,
            rows: call.rows as u32,
            slot: 0,
            ffn_us: 0.0,
        }
    }

    /// A header that says nothing of any call.
    pub fn bare(kind: Kind, incarnation: u64) -> Self {
        Self { kind, incarnation, ..Self::of_call(&Call::default()) }
    }

    fn write(&self, payload: usize) -> Result<Vec<u8>> {
        let length = u32::try_from(payload).map_err(|_| {
            Error::Capacity(format!("{payload} bytes of activations are too many for a frame"))
        })?;
        let mut out = Vec::with_capacity(HEADER_BYTES + payload);
        out.extend(MAGIC);
        out.extend(VERSION.to_le_bytes());
        out.extend([self.kind as u8, 0]);
        [self.epoch, self.incarnation, self.step].iter().for_each(|x| out.extend(x.to_le_bytes()));
        [self.micro_batch, self.layer, self.rows, self.slot].iter().for_each(|x| out.extend(x.to_le_bytes()));
        out.extend(self.ffn_us.to_le_bytes());
        out.extend(length.to_le_bytes());
        out.resize(HEADER_BYTES, 0);
        Ok(out)
    }

    /// A frame's header and payload.
    ///
    /// # Errors
    /// [`Error::Format`] when it is not a whole frame of this version.
    pub fn read(frame: &[u8]) -> Result<(Self, &[u8])> {
        let wrong = |message: String| Err(Error::format("an activation frame", message));
        let Some((header, payload)) = frame.split_at_checked(HEADER_BYTES) else {
            return wrong(format!("{} bytes, but its header alone has {HEADER_BYTES}", frame.len()));
        };
        if header[..4] != MAGIC {
            return wrong("it does not begin as one".to_owned());
        }
        let version = u16::from_le_bytes(array(header, 4));
        if version != VERSION {
            return wrong(format!("version {version}, but only {VERSION} is known"));
        }
        let kind = match header[6] {
            1 => Kind::Call,
            2 => Kind::Answer,
            3 => Kind::Refusal,
            4 => Kind::Draining,
            other => return wrong(format!("there is no kind {other}")),
        };
        let long = |at| u64::from_le_bytes(array(header, at));
        let short = |at| u32::from_le_bytes(array(header, at));
        let (length, ffn_us) = (short(56) as usize, f64::from_bits(long(48)));
        if payload.len() != length {
            return wrong(format!("{} bytes of payload where {length} are announced", payload.len()));
        }
        let read = Self {
            kind,
            epoch: long(8),
            incarnation: long(16),
            step: long(24),
            micro_batch: short(32),
            layer: short(36),
            rows: short(40),
            slot: short(44),
            // A clock that is wrong does no harm.
            ffn_us: if ffn_us.is_finite() { ffn_us.max(0.0) } else { 0.0 },
        };
        Ok((read, payload))
    }
}

/// `N` bytes of a header.
fn array<const N: usize>(header: &[u8], at: usize) -> [u8; N] {
    let mut bytes = [0; N];
    bytes.copy_from_slice(&header[at..at + N]);
    bytes
}

/// A frame with the inputs of a call that a shard wants.
///
/// # Errors
/// [`Error::Capacity`] when it would be larger than a frame can be.
pub fn call(layout: &Layout, shard: usize, header: Header, call: &Call) -> Result<Vec<u8>> {
    let given = layout.edges(call.layer).0;
    let wanted = layout.shards[shard].inputs(call.layer);
    let mut out = header.write(wanted.iter().map(|e| bytes(layout, *e, call.rows)).sum())?;
    for (edge, input) in given.iter().zip(&call.inputs).filter(|(edge, _)| wanted.contains(edge)) {
        pack(edge.dtype, input, layout.graph().value(edge.value).width, &mut out);
    }
    Ok(out)
}

/// The call of a frame to a shard. Inputs that the shard does not want are empty.
///
/// # Errors
/// [`Error::Format`] when the payload is not of that layer and so many rows, [`Error::Capacity`] when there are more than
/// `max_rows`, [`Error::Device`] when the shard does not hold the layer.
pub fn read_call(
    layout: &Layout,
    shard: usize,
    header: &Header,
    payload: &[u8],
    max_rows: usize,
) -> Result<Call> {
    let (layer, rows) = (header.layer as usize, header.rows as usize);
    if rows > max_rows {
        return Err(Error::Capacity(format!("a call of {rows} rows to a worker that takes {max_rows}")));
    }
    let shard = &layout.shards[shard];
    if shard.segment(layer).is_none() {
        return Err(Error::Device(format!("layer {layer} was asked of a worker without it")));
    }
    let mut parts = Parts { layout, payload, from: "a call" };
    let given = layout.edges(layer).0;
    let mut inputs = vec![vec![]; given.len()];
    for (edge, input) in given.iter().zip(&mut inputs).filter(|(edge, _)| shard.inputs(layer).contains(edge))
    {
        *input = parts.take(*edge, rows, layout.graph().value(edge.value).width)?;
    }
    parts.end()?;
    Ok(Call { step: header.step, micro_batch: header.micro_batch as usize, layer, rows, inputs })
}

/// A frame with what a shard has to say to a call; of a value that several shards make together, only its own slots.
///
/// # Errors
/// As [`call`].
pub fn answer(
    layout: &Layout,
    shard: usize,
    header: Header,
    call: &Call,
    outputs: &[Vec<f32>],
) -> Result<Vec<u8>> {
    let shard = &layout.shards[shard];
    let mut payload = vec![];
    for (edge, output) in shard.outputs(call.layer).iter().zip(outputs) {
        match layout.slots(shard, call, *edge) {
            None => pack(edge.dtype, output, layout.graph().value(edge.value).width, &mut payload),
            Some(slots) => slots.into_iter().for_each(|slot| {
                pack(edge.dtype, &output[slot.clone()], slot.len(), &mut payload);
            }),
        }
    }
    let mut out = header.write(payload.len())?;
    out.extend(payload);
    Ok(out)
}

/// The outputs of a shard in an answer to `call`, in the order of its segment's; slots of others are zero.
///
/// # Errors
/// [`Error::Format`] when the payload is not an answer to that call.
pub fn read_answer(layout: &Layout, shard: usize, call: &Call, payload: &[u8]) -> Result<Vec<Vec<f32>>> {
    let shard = &layout.shards[shard];
    let mut parts = Parts { layout, payload, from: "an answer" };
    let mut outputs = vec![];
    for edge in shard.outputs(call.layer) {
        let width = layout.graph().value(edge.value).width;
        let Some(slots) = layout.slots(shard, call, *edge) else {
            outputs.push(parts.take(*edge, call.rows, width)?);
            continue;
        };
        let mut output = vec![0.0; call.rows * width];
        for slot in slots {
            output[slot.clone()].copy_from_slice(&parts.take(*edge, 1, slot.len())?);
        }
        outputs.push(output);
    }
    parts.end()?;
    Ok(outputs)
}

/// A frame that says why there is no answer.
///
/// # Errors
/// None in practice: the text is cut to a length that fits.
pub fn refusal(header: Header, text: &str) -> Result<Vec<u8>> {
    let text = &text[..text.floor_char_boundary(MOST_TEXT)];
    let mut out = Header { kind: Kind::Refusal, ..header }.write(text.len())?;
    out.extend(text.as_bytes());
    Ok(out)
}

/// The text of a refusal; what is not UTF-8 in it is replaced.
pub fn read_refusal(payload: &[u8]) -> String {
    String::from_utf8_lossy(&payload[..payload.len().min(MOST_TEXT)]).into_owned()
}

/// A frame without payload.
///
/// # Errors
/// None in practice.
pub fn bare(header: Header) -> Result<Vec<u8>> {
    header.write(0)
}

/// Bytes of the largest frame that goes to a shard or comes from it.
pub fn most_bytes(layout: &Layout, shard: usize, max_rows: usize) -> usize {
    let shard = &layout.shards[shard];
    let sum = |edges: &[Edge]| edges.iter().map(|e| bytes(layout, *e, max_rows)).sum::<usize>();
    let layers = shard.graph.graph.segments.iter().map(|s| sum(&s.inputs).max(sum(&s.outputs)));
    HEADER_BYTES + layers.max().unwrap_or(0).max(MOST_TEXT)
}

fn bytes(layout: &Layout, edge: Edge, rows: usize) -> usize {
    packed_bytes(edge.dtype, rows, layout.graph().value(edge.value).width)
}

/// What is left of a payload.
struct Parts<'a> {
    layout: &'a Layout,
    payload: &'a [u8],
    from: &'static str,
}

impl Parts<'_> {
    fn take(&mut self, edge: Edge, rows: usize, width: usize) -> Result<Vec<f32>> {
        let wanted = packed_bytes(edge.dtype, rows, width);
        let Some((first, rest)) = self.payload.split_at_checked(wanted) else {
            let name = &self.layout.graph().value(edge.value).name;
            let message = format!("{} bytes are left where {name} takes {wanted}", self.payload.len());
            return Err(Error::format(self.from, message));
        };
        self.payload = rest;
        unpack(edge.dtype, first, rows, width, self.from)
    }

    fn end(&self) -> Result<()> {
        match self.payload.len() {
            0 => Ok(()),
            left => Err(Error::format(self.from, format!("{left} bytes are left over"))),
        }
    }
}

#[cfg(test)]
mod tests;
