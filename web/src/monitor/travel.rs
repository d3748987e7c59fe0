//! How a micro-batch moves through the picture of the pipeline.

use tread_core::graph::Side;
use tread_core::monitor::StepEvent;

use super::steps::{Lane, lane_us};

/// A place where a micro-batch stays for a while.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// Choosing what runs.
    Schedule,
    /// The side of a pool.
    Side(Side),
    /// Choosing tokens.
    Sample,
}

impl Stage {
    /// For people.
    pub fn title(self) -> &'static str {
        match self {
            Self::Schedule => "Schedule",
            Self::Side(Side::Attention) => "Attention",
            Self::Side(Side::Ffn) => "FFN",
            Self::Sample => "Sample",
        }
    }
}

/// All stages in the order in which a batch visits them.
pub const STAGES: [Stage; 4] =
    [Stage::Schedule, Stage::Side(Side::Attention), Stage::Side(Side::Ffn), Stage::Sample];

/// Microseconds that a step spent in each stage. `profiled` is the last step whose ops were measured: it says how computing
/// divides between the sides; without one they are taken to be equal.
pub fn stage_us(step: &StepEvent, profiled: Option<&StepEvent>) -> [f64; 4] {
    let ops = profiled.map_or(&[][..], |step| &step.ops);
    let ffn = lane_us(ops, Lane::Ffn);
    // Embedding and head run on the attention side.
    let attention = lane_us(ops, Lane::Attention) + lane_us(ops, Lane::Ends);
    let share = if attention + ffn > 0.0 { ffn / (attention + ffn) } else { 0.5 };
    let compute = step.compute_us as f64;
    [step.schedule_us as f64, compute * (1.0 - share), compute * share, step.sample_us as f64]
}

/// The least part of its way that a batch is shown in a stage, so that the eye can follow.
const LEAST: f64 = 0.1;

/// Where a batch is after a part (0 to 1) of its time: the stage, and how far it is through it.
pub fn place(stage_us: [f64; 4], part: f64) -> (usize, f64) {
    let all: f64 = stage_us.iter().sum();
    let shown = stage_us.map(|us| if all > 0.0 { (us / all).max(LEAST) } else { 1.0 });
    let mut left = part.clamp(0.0, 1.0) * shown.iter().sum::<f64>();
    for (stage, time) in shown.into_iter().enumerate() {
        if left < time {
            return (stage, left / time);
        }
        left -= time;
    }
    (stage_us.len() - 1, 1.0)
}

#[cfg(test)]
mod tests {
    use tread_core::monitor::OpTime;

    use super::*;

    #[test]
    fn computing_divides_as_the_ops_did() {
        let step = StepEvent { schedule_us: 10, compute_us: 800, sample_us: 20, ..StepEvent::default() };
        assert_eq!(stage_us(&step, None), [10.0, 400.0, 400.0, 20.0]);
        let op =
            |side, us| OpTime { name: "x".into(), layer: Some(0), side, micro_batch: 0, start_us: 0.0, us };
        let head = OpTime { layer: None, ..op(Side::Attention, 1.0) };
        let profiled = StepEvent {
            ops: vec![op(Side::Attention, 2.0), op(Side::Ffn, 1.0), head],
            ..StepEvent::default()
        };
        assert_eq!(stage_us(&step, Some(&profiled)), [10.0, 600.0, 200.0, 20.0]);
    }

    #[test]
    fn a_batch_visits_every_stage_in_order() {
        let times = [0.0, 900.0, 100.0, 0.0];
        assert_eq!(place(times, 0.0), (0, 0.0));
        assert_eq!(place(times, 1.0), (3, 1.0));
        let visited: Vec<usize> = (0..=100).map(|part| place(times, f64::from(part) / 100.0).0).collect();
        assert!(visited.is_sorted());
        let stays = |stage| visited.iter().filter(|at| **at == stage).count();
        assert!((0..4).all(|stage| stays(stage) >= 8));
        assert!(stays(1) > 5 * stays(2));
    }

    #[test]
    fn a_step_without_times_still_moves() {
        assert_eq!(place([0.0; 4], 0.5), (2, 0.0));
    }
}
