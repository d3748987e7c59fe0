//! A measured step of two pools, played again so slowly that the eye can follow.

use tread_core::monitor::{STAGES, StepEvent};

/// Milliseconds that a layer is shown.
const LAYER_MS: f64 = 3_000.0;
/// Moments closer than this are one, microseconds.
const APART_US: f64 = 1.0;

/// A step whose stages were measured.
#[derive(Clone, Debug, PartialEq)]
pub struct Replay {
    /// Whose step it was.
    pub engine: usize,
    /// Its number.
    pub step: u64,
    /// Layers with an FFN.
    pub layers: usize,
    /// What each micro-batch went through, in order.
    pub trips: Vec<Vec<Visit>>,
    /// When a stage began or ended, microseconds, ascending.
    moments: Vec<f64>,
}

/// A stay of a micro-batch in a stage.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Visit {
    /// Which of the [`STAGES`].
    pub stage: usize,
    /// Of which layer; none: attention's last, with the head.
    pub layer: Option<usize>,
    start_us: f64,
    end_us: f64,
}

/// Where a micro-batch is.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Spot {
    /// The stage it is in, or came from.
    pub visit: Visit,
    /// How much of the stage is done, 0 to 1.
    pub through: f64,
    /// It is done, and waits for its turn in the next stage, or for the end of the step.
    pub waits: bool,
}

impl Replay {
    /// None: the step was not measured, or not run by two pools.
    pub fn of(step: &StepEvent) -> Option<Self> {
        let mut trips: Vec<Vec<Visit>> = vec![];
        for op in &step.ops {
            let stage = STAGES.iter().position(|name| *name == op.name)?;
            trips.resize(trips.len().max(op.micro_batch + 1), vec![]);
            let visit = Visit { stage, layer: op.layer, start_us: op.start_us, end_us: op.start_us + op.us };
            trips[op.micro_batch].push(visit);
        }
        trips.iter_mut().for_each(|trip| trip.sort_by(|a, b| a.start_us.total_cmp(&b.start_us)));
        let visits = || trips.iter().flatten();
        let mut moments: Vec<f64> = visits().flat_map(|visit| [visit.start_us, visit.end_us]).collect();
        moments.sort_by(f64::total_cmp);
        moments.dedup_by(|later, earlier| *later - *earlier < APART_US);
        let layers = visits().filter_map(|visit| visit.layer).max().map_or(0, |last| last + 1);
        // One op that is called as a stage is no pipeline: `attention` is also the name of an op.
        (layers > 0 && visits().any(|visit| visit.stage == 2)).then_some(Self {
            engine: step.engine,
            step: step.step,
            layers,
            trips,
            moments,
        })
    }

    /// Milliseconds that it is shown.
    pub fn shown_ms(&self) -> f64 {
        self.layers as f64 * LAYER_MS
    }

    /// How many times slower than it was it is shown.
    pub fn slower(&self) -> f64 {
        self.shown_ms() * 1e3 / self.span_us().max(1.0)
    }

    /// Microseconds from the first stage's begin to the last one's end.
    pub fn span_us(&self) -> f64 {
        self.moments.last().zip(self.moments.first()).map_or(0.0, |(last, first)| last - first)
    }

    /// Mean microseconds of each of the [`STAGES`] for a layer of a micro-batch.
    pub fn mean_us(&self) -> [f64; 4] {
        std::array::from_fn(|stage| {
            let visits = self.trips.iter().flatten().filter(|v| v.stage == stage && v.layer.is_some());
            let times: Vec<f64> = visits.map(|visit| visit.end_us - visit.start_us).collect();
            times.iter().sum::<f64>() / times.len().max(1) as f64
        })
    }

    /// Where a micro-batch is after a part (0 to 1) of the time; none: there is no such one.
    pub fn at(&self, micro_batch: usize, part: f64) -> Option<Spot> {
        let trip = self.trips.get(micro_batch)?;
        let now = self.moment_us(part);
        let begun = trip.iter().rev().find(|visit| visit.start_us <= now);
        Some(match begun {
            Some(&visit) => {
                let us = visit.end_us - visit.start_us;
                let through = if us > 0.0 { ((now - visit.start_us) / us).min(1.0) } else { 1.0 };
                Spot { visit, through, waits: now > visit.end_us }
            }
            None => Spot { visit: *trip.first()?, through: 0.0, waits: true },
        })
    }

    /// The time of the step that is shown after a part of the time. Half of it is divided evenly among all that happened, so
    /// that also the shortest stage is seen; the other half as it really was.
    fn moment_us(&self, part: f64) -> f64 {
        let gaps = self.moments.windows(2).map(|pair| (pair[0], pair[1] - pair[0]));
        let even = 0.5 / gaps.len().max(1) as f64;
        let mut left = part.clamp(0.0, 1.0);
        for (begin, us) in gaps {
            let shown = even + 0.5 * us / self.span_us();
            if left < shown {
                return begin + us * left / shown;
            }
            left -= shown;
        }
        self.moments.last().copied().unwrap_or(0.0)
    }
}

#[cfg(test)]
mod tests {
    use tread_core::graph::Side;
    use tread_core::monitor::OpTime;

    use super::*;

    /// Two micro-batches through one layer and the head: the second begins while the first is on its way.
    fn step() -> StepEvent {
        let op = |stage: usize, layer, micro_batch, start_us, us| OpTime {
            name: STAGES[stage].to_owned(),
            layer,
            side: if stage == 0 { Side::Attention } else { Side::Ffn },
            micro_batch,
            start_us,
            us,
        };
        let ops = vec![
            op(0, Some(0), 0, 0.0, 100.0),
            op(0, Some(0), 1, 100.0, 140.0),
            // As they come in: whole round trips, one after the other.
            op(1, Some(0), 0, 100.0, 5.0),
            op(2, Some(0), 0, 105.0, 890.0),
            op(3, Some(0), 0, 995.0, 5.0),
            op(0, None, 0, 1000.0, 50.0),
            op(1, Some(0), 1, 240.0, 405.0),
            op(2, Some(0), 1, 645.0, 900.0),
            op(3, Some(0), 1, 1545.0, 405.0),
            op(0, None, 1, 1950.0, 50.0),
        ];
        StepEvent { step: 7, ops, ..StepEvent::default() }
    }

    #[test]
    fn micro_batches_go_their_ways_at_the_same_time() {
        let replay = Replay::of(&step()).unwrap();
        assert_eq!((replay.step, replay.layers, replay.trips.len()), (7, 1, 2));
        assert_eq!(replay.span_us(), 2000.0);
        let parts = || (0..=1000).map(|part| f64::from(part) / 1000.0);
        for micro_batch in 0..2 {
            let mut stages: Vec<usize> =
                parts().map(|part| replay.at(micro_batch, part).unwrap().visit.stage).collect();
            stages.dedup();
            assert_eq!(stages, [0, 1, 2, 3, 0], "{micro_batch}");
        }
        let both = |part| [0, 1].map(|micro_batch| replay.at(micro_batch, part).unwrap().visit.stage);
        assert!(parts().any(|part| both(part) == [2, 0]), "the FFN and attention work at the same time");
        assert!(parts().any(|part| both(part) == [2, 1]), "the way is used meanwhile");
        // The first waits for the second at the end, the second for the first at the beginning.
        assert!(replay.at(1, 0.0).unwrap().waits && replay.at(0, 1.0).unwrap().waits);
        assert!(!replay.at(0, 0.0).unwrap().waits && !replay.at(1, 1.0).unwrap().waits);
        assert_eq!(replay.at(2, 0.5), None);
    }

    #[test]
    fn the_shortest_stage_is_seen() {
        let replay = Replay::of(&step()).unwrap();
        let parts = (0..=1000).map(|part| replay.at(0, f64::from(part) / 1000.0).unwrap().visit.stage);
        let on_its_way = parts.filter(|stage| *stage == 1).count();
        assert!(on_its_way > 30, "{on_its_way} of 1000, where it really is 3");
    }

    #[test]
    fn times_are_means_of_a_layer() {
        assert_eq!(Replay::of(&step()).unwrap().mean_us(), [120.0, 205.0, 895.0, 205.0]);
    }

    #[test]
    fn one_pool_has_no_replay() {
        assert_eq!(Replay::of(&StepEvent::default()), None);
        let mut step = step();
        step.ops.retain(|op| op.name == STAGES[0]);
        assert_eq!(Replay::of(&step), None);
        step.ops[0].name = "linear".to_owned();
        assert_eq!(Replay::of(&step), None);
    }
}
