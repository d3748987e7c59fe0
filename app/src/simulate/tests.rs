//! The simulation against closed forms.

use super::outcome::Outcome;
use super::pipeline::{self, Failures, Setup};
use super::service::{Service, Stage, Times, Trouble};
use crate::cli::FfnBatch;
use crate::plan::{Instances, Stages};

const CALM: Trouble = Trouble { jitter: 0.0, stragglers: 0.0, slowdown: 1.0, imbalance: 0.0 };

struct Case {
    times: [f64; 4],
    instances: [usize; 2],
    micro_batches: usize,
    ffn_batch: FfnBatch,
    layers: usize,
    trouble: Trouble,
    failures: Option<Failures>,
    steps: usize,
    seed: u64,
}

impl Default for Case {
    fn default() -> Self {
        Self {
            times: [100.0, 50.0, 100.0, 50.0],
            instances: [2, 2],
            micro_batches: 3,
            ffn_batch: FfnBatch::All,
            layers: 5,
            trouble: CALM,
            failures: None,
            steps: 20,
            seed: 1,
        }
    }
}

impl Case {
    fn run(&self) -> Outcome {
        let instances = Instances { attention: self.instances[0], ffn: self.instances[1] };
        let times = self.times.map(Times::Mean);
        let setup = Setup {
            instances,
            micro_batches: self.micro_batches,
            ffn_batch: self.ffn_batch,
            layers: self.layers,
            service: Service::new(times, instances, 8, self.layers, self.trouble, self.seed),
            failures: self.failures,
            steps: self.steps,
            seed: self.seed,
        };
        pipeline::run(&setup, 1_000_000)
    }

    /// Microseconds of a step, on average.
    fn tpot_us(&self) -> f64 {
        let outcome = self.run();
        outcome.tpot.iter().sum::<u64>() as f64 / 1e3 / outcome.tpot.len() as f64
    }
}

fn near(found: f64, expected: f64, tolerance: f64) {
    assert!((found / expected - 1.0).abs() <= tolerance, "{found} is not about {expected}");
}

#[test]
fn three_micro_batches_keep_equal_stages_fully_busy() {
    let case = Case::default();
    let outcome = case.run();
    assert_eq!(outcome.tpot.len(), 60);
    assert!(outcome.tpot.iter().all(|&time| time == 5 * 300_000), "{:?}", outcome.tpot);
    for (stage, busy) in Stage::ALL.into_iter().zip([1.0, 0.5, 1.0, 0.5]) {
        let found = outcome.use_of[stage as usize];
        near(found.busy, busy, 1e-9);
        near(found.least, busy, 1e-9);
        near(found.most, busy, 1e-9);
    }
    // Three steps end in the time of one.
    near(outcome.ended as f64 / outcome.elapsed as f64, 3.0 / 1_500_000.0, 1e-9);
}

#[test]
fn one_micro_batch_gives_a_third() {
    let three = Case::default().run();
    let one = Case { micro_batches: 1, ..Case::default() }.run();
    let rate = |outcome: &Outcome| outcome.ended as f64 / outcome.elapsed as f64;
    near(rate(&one) / rate(&three), 1.0 / 3.0, 1e-9);
    near(one.use_of[Stage::Attention as usize].busy, 1.0 / 3.0, 1e-9);
}

#[test]
fn without_jitter_the_planner_s_formula_holds() {
    for times in [
        [100.0, 50.0, 100.0, 50.0],
        [30.0, 10.0, 200.0, 20.0],
        [90.0, 80.0, 70.0, 85.0],
        [5.0, 0.0, 5.0, 0.0],
    ] {
        for micro_batches in 1..=5 {
            for instances in [[1, 1], [3, 2], [1, 4]] {
                let case = Case { times, micro_batches, instances, ..Case::default() };
                let [attention, a2f, ffn, f2a] = times;
                let period = Stages { attention, a2f, ffn, f2a }.period(micro_batches);
                near(case.tpot_us(), 5.0 * period, 1e-9);
            }
        }
    }
}

#[test]
fn an_ffn_that_serves_each_part_works_as_often_as_there_are_parts() {
    let each = |attention: usize, ffn_us: f64| Case {
        times: [100.0, 0.0, ffn_us, 0.0],
        instances: [attention, 1],
        ffn_batch: FfnBatch::Each,
        ..Case::default()
    };
    // Two instances of three micro-batches each: 6 x 50 us of FFN in the 3 x 100 us of attention.
    near(each(2, 50.0).tpot_us(), 5.0 * 300.0, 1e-9);
    near(each(2, 50.0).run().use_of[Stage::Ffn as usize].busy, 1.0, 0.01);
    // The FFN is the bottleneck.
    near(each(2, 100.0).tpot_us(), 5.0 * 600.0, 1e-2);
    near(each(5, 50.0).tpot_us(), 5.0 * 750.0, 1e-2);
    // One instance: all and each are the same.
    let all = Case { ffn_batch: FfnBatch::All, ..each(1, 80.0) };
    assert_eq!(each(1, 80.0).run().tpot, all.run().tpot);
}

#[test]
fn jitter_costs_what_the_last_of_several_costs() {
    // One instance, one micro-batch, no links: a step is the sum of layers of the longest of eight draws.
    let trouble = Trouble { jitter: 0.2, ..CALM };
    let case = Case {
        times: [100.0, 0.0, 0.0, 0.0],
        instances: [1, 1],
        micro_batches: 1,
        layers: 20,
        steps: 400,
        trouble,
        ..Case::default()
    };
    near(case.tpot_us(), 20.0 * 100.0 * EXPECTED_LONGEST, 0.01);
}

/// Mean of the largest of 8 lognormals of mean 1 and coefficient of variation 0.2, by numerical integration.
const EXPECTED_LONGEST: f64 = 1.30964;

#[test]
fn more_trouble_is_slower_and_seeds_repeat() {
    let with =
        |trouble: Trouble, seed: u64| Case { trouble, seed, instances: [4, 4], ..Case::default() }.tpot_us();
    let calm = with(CALM, 1);
    let jitter = with(Trouble { jitter: 0.1, ..CALM }, 1);
    assert!(calm < jitter && jitter < with(Trouble { jitter: 0.3, ..CALM }, 1));
    assert_eq!(jitter.to_bits(), with(Trouble { jitter: 0.1, ..CALM }, 1).to_bits());
    assert_ne!(jitter.to_bits(), with(Trouble { jitter: 0.1, ..CALM }, 2).to_bits());
    // All wait for the slow GPU, wherever it is: its stage is the bottleneck.
    let stragglers = Trouble { stragglers: 1.0 / 64.0, slowdown: 1.5, ..CALM };
    near(with(stragglers, 1), 1.5 * calm, 1e-9);
    // Uneven loads sum to the same work, but the fullest instance sets the pace.
    assert!(with(Trouble { imbalance: 0.3, ..CALM }, 1) > 1.1 * calm);
}

#[test]
fn failures_cost_their_recovery() {
    let failures = Failures { mean_between_s: 2.0, recovery_s: 0.05 };
    let case = Case { failures: Some(failures), instances: [1, 1], steps: 20_000, ..Case::default() };
    let outcome = case.run();
    let calm = 20_000.0 * 1.5e6;
    // About one failure for each instance and two seconds, and nothing lost but the time.
    let expected = 2.0 * outcome.elapsed as f64 / 1e9 / 2.05;
    assert!((outcome.failures as f64 - expected).abs() < 5.0 * expected.sqrt(), "{}", outcome.failures);
    let lost = outcome.elapsed as f64 - calm;
    near(lost, outcome.failures as f64 * 50e6, 0.1);
    assert_eq!(outcome.tpot.len(), 60_000);
}

#[test]
fn measured_times_are_drawn_as_they_are() {
    let instances = Instances { attention: 1, ffn: 1 };
    let times = [vec![10.0, 30.0], vec![0.0], vec![0.0], vec![0.0]].map(Times::Measured);
    let setup = Setup {
        instances,
        micro_batches: 1,
        ffn_batch: FfnBatch::All,
        layers: 10,
        service: Service::new(times, instances, 1, 10, CALM, 0),
        failures: None,
        steps: 500,
        seed: 3,
    };
    let outcome = pipeline::run(&setup, 20_000);
    near(outcome.use_of[Stage::Attention as usize].mean, 20_000.0, 0.02);
    let late = outcome.use_of[Stage::Attention as usize];
    near(late.late as f64 / late.served as f64, 0.5, 0.05);
}
