//! What steps are made of.

use std::cmp::Ordering;

use tread_core::graph::Side;
use tread_core::monitor::{OpTime, STAGES, StepEvent};

use super::format;

/// Where in the model an op runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lane {
    /// Attention of a layer.
    Attention,
    /// FFN of a layer.
    Ffn,
    /// On the way between two pools.
    Link,
    /// Before the first layer and behind the last: embedding and head.
    Ends,
}

impl Lane {
    /// In the order in which they are drawn.
    pub const ALL: [Self; 4] = [Self::Attention, Self::Ffn, Self::Link, Self::Ends];

    /// Those that these ops are in; one pool has no way to itself.
    pub fn of_ops(ops: &[OpTime]) -> Vec<Self> {
        let used = |lane: &Self| *lane != Self::Link || ops.iter().any(|op| Self::of(op) == Self::Link);
        Self::ALL.into_iter().filter(used).collect()
    }

    /// Where an op belongs.
    pub fn of(op: &OpTime) -> Self {
        match (op.layer, op.side) {
            _ if [STAGES[1], STAGES[3]].contains(&op.name.as_str()) => Self::Link,
            (None, _) => Self::Ends,
            (Some(_), Side::Attention) => Self::Attention,
            (Some(_), Side::Ffn) => Self::Ffn,
        }
    }

    /// For people.
    pub fn title(self) -> &'static str {
        match self {
            Self::Attention => "Attention",
            Self::Ffn => "FFN",
            Self::Link => "Between",
            Self::Ends => "Embed, head",
        }
    }
}

/// All ops of one name.
#[derive(Clone, Debug, PartialEq)]
pub struct OpTotal {
    /// The name.
    pub name: String,
    /// How many ran.
    pub count: usize,
    /// Their time together, microseconds.
    pub us: f64,
    /// Their part of the time of all ops.
    pub share: f64,
}

/// Time by op, the longest first.
pub fn by_op(ops: &[OpTime]) -> Vec<OpTotal> {
    let mut totals: Vec<OpTotal> = Vec::new();
    for op in ops {
        match totals.iter_mut().find(|total| total.name == op.name) {
            Some(total) => {
                total.count += 1;
                total.us += op.us;
            }
            None => totals.push(OpTotal { name: op.name.clone(), count: 1, us: op.us, share: 0.0 }),
        }
    }
    let all: f64 = totals.iter().map(|total| total.us).sum();
    for total in &mut totals {
        total.share = if all > 0.0 { total.us / all } else { 0.0 };
    }
    totals
        .sort_by(|a, b| b.us.partial_cmp(&a.us).unwrap_or(Ordering::Equal).then_with(|| a.name.cmp(&b.name)));
    totals
}

/// Microseconds in a lane.
pub fn lane_us(ops: &[OpTime], lane: Lane) -> f64 {
    ops.iter().filter(|op| Lane::of(op) == lane).map(|op| op.us).sum()
}

/// When the last op ended, microseconds since the first began.
pub fn span_us(ops: &[OpTime]) -> f64 {
    ops.iter().map(|op| op.start_us + op.us).fold(0.0, f64::max)
}

/// Token rows of a step: those of prompts, and those that decode.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Rows {
    /// Sequences whose prompt is computed.
    pub prefilling: usize,
    /// Their rows.
    pub prefill_rows: usize,
    /// Sequences that decode.
    pub decoding: usize,
    /// Their rows.
    pub decode_rows: usize,
}

impl Rows {
    /// Of a step.
    pub fn of(step: &StepEvent) -> Self {
        let mut rows = Self::default();
        for part in &step.rows {
            let (sequences, sum) = if part.decodes {
                (&mut rows.decoding, &mut rows.decode_rows)
            } else {
                (&mut rows.prefilling, &mut rows.prefill_rows)
            };
            *sequences += 1;
            *sum += part.rows;
        }
        rows
    }

    /// For people.
    pub fn describe(&self) -> String {
        let decode = format!("{} decoding", self.decoding);
        match self.prefilling {
            0 => decode,
            prefilling => {
                let rows = format::counted(self.prefill_rows as u64, "row");
                format!("{decode}, {prefilling} in prefill with {rows}")
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use tread_core::monitor::SequenceRows;

    use super::*;

    fn op(name: &str, layer: Option<usize>, side: Side, start_us: f64, us: f64) -> OpTime {
        OpTime { name: name.to_owned(), layer, side, micro_batch: 0, start_us, us }
    }

    #[test]
    fn time_is_summed_by_op_and_lane() {
        let ops = [
            op("embed", None, Side::Attention, 0.0, 1.0),
            op("linear", Some(0), Side::Attention, 1.0, 2.0),
            op("attention", Some(0), Side::Attention, 3.0, 6.0),
            op("linear", Some(0), Side::Ffn, 9.0, 5.0),
            op("linear", None, Side::Attention, 14.0, 2.0),
        ];
        let totals = by_op(&ops);
        let names: Vec<(&str, usize, f64)> =
            totals.iter().map(|t| (t.name.as_str(), t.count, t.us)).collect();
        assert_eq!(names, [("linear", 3, 9.0), ("attention", 1, 6.0), ("embed", 1, 1.0)]);
        assert_eq!(totals[0].share, 9.0 / 16.0);
        assert_eq!(Lane::ALL.map(|lane| lane_us(&ops, lane)), [8.0, 5.0, 0.0, 3.0]);
        assert_eq!(Lane::of_ops(&ops), [Lane::Attention, Lane::Ffn, Lane::Ends]);
        let way = op("a2f", Some(0), Side::Ffn, 3.0, 4.0);
        assert_eq!((Lane::of(&way), Lane::of_ops(&[way]).len()), (Lane::Link, 4));
        assert_eq!(span_us(&ops), 16.0);
        assert_eq!(span_us(&[]), 0.0);
        assert!(by_op(&[]).is_empty());
    }

    #[test]
    fn rows_are_told_apart() {
        let part = |rows, decodes| SequenceRows { request: 1, rows, decodes };
        let step =
            StepEvent { rows: vec![part(1, true), part(64, false), part(1, true)], ..Default::default() };
        let rows = Rows::of(&step);
        assert_eq!(rows, Rows { prefilling: 1, prefill_rows: 64, decoding: 2, decode_rows: 2 });
        assert_eq!(rows.describe(), "2 decoding, 1 in prefill with 64 rows");
        assert_eq!(Rows::default().describe(), "0 decoding");
    }
}
