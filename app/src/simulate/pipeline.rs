//! The pipeline as queues: attention instances, their links, FFN instances and their links, each serving one
//! micro-batch at a time in the order of arrival.
//!
//! Attention goes on to the next layer when all FFN instances have answered. An FFN instance begins a micro-batch when
//! all attention instances have sent their part, as in the paper's system; or it serves each part as it comes, and
//! then a part is a micro-batch of its own, which knows only one attention instance.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};
use std::ops::Range;

use rand::SeedableRng as _;
use rand::rngs::ChaCha8Rng;
use rand_distr::{Distribution as _, Exp1};

use super::outcome::{Outcome, Use};
use super::service::{Service, Stage};
use crate::cli::FfnBatch;
use crate::plan::Instances;

/// Nanoseconds since the start. Whole numbers, so that the order of events is the same everywhere.
pub(super) type Time = u64;

#[derive(Clone, Debug)]
pub(super) struct Setup {
    pub(super) instances: Instances,
    /// In flight on each attention instance.
    pub(super) micro_batches: usize,
    pub(super) ffn_batch: FfnBatch,
    pub(super) layers: usize,
    pub(super) service: Service,
    pub(super) failures: Option<Failures>,
    /// Steps of each micro-batch that are measured, after those that fill the pipeline.
    pub(super) steps: usize,
    pub(super) seed: u64,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Failures {
    /// Of one instance.
    pub(super) mean_between_s: f64,
    pub(super) recovery_s: f64,
}

/// Steps before measuring.
const WARM_UP: usize = 2;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    /// A station is done; not if it has failed since, which is then another era.
    Served {
        station: usize,
        era: usize,
    },
    Failed {
        instance: usize,
    },
    Recovered {
        instance: usize,
    },
}

#[derive(Clone, Debug, Default)]
struct Station {
    waiting: VecDeque<usize>,
    /// The micro-batch that is served, and since when.
    serving: Option<(usize, Time)>,
    era: usize,
    down: bool,
    busy: Time,
}

#[derive(Clone, Debug, Default)]
struct MicroBatch {
    layer: usize,
    /// Instances whose part of the present stage is done.
    arrived: usize,
    ended: usize,
    last_end: Time,
}

pub(super) fn run(setup: &Setup, budget: Time) -> Outcome {
    let mut simulation = Simulation::new(setup, budget);
    simulation.start();
    while simulation.measured() < setup.steps {
        // The heap is never empty: some micro-batch is always served, or an instance is about to recover.
        let Some(Reverse((time, _, event))) = simulation.events.pop() else { break };
        simulation.now = time;
        simulation.handled += 1;
        simulation.handle(event);
    }
    simulation.outcome()
}

struct Simulation<'a> {
    setup: &'a Setup,
    budget: Time,
    rng: ChaCha8Rng,
    now: Time,
    events: BinaryHeap<Reverse<(Time, usize, Event)>>,
    /// Numbers events, so that those of the same time come in the order they were made.
    made: usize,
    handled: usize,
    /// For each attention instance its attention and its link, then for each FFN instance likewise.
    stations: Vec<Station>,
    micro_batches: Vec<MicroBatch>,
    /// When measuring began.
    begin: Option<Time>,
    tpot: Vec<Time>,
    ended: usize,
    failed: usize,
    use_of: [Use; 4],
}

impl<'a> Simulation<'a> {
    fn new(setup: &'a Setup, budget: Time) -> Self {
        let instances = setup.instances.attention + setup.instances.ffn;
        let parts = if setup.ffn_batch == FfnBatch::Each { setup.instances.attention } else { 1 };
        Self {
            setup,
            budget,
            rng: ChaCha8Rng::seed_from_u64(setup.seed),
            now: 0,
            events: BinaryHeap::new(),
            made: 0,
            handled: 0,
            stations: vec![Station::default(); 2 * instances],
            micro_batches: vec![MicroBatch::default(); parts * setup.micro_batches],
            begin: None,
            tpot: vec![],
            ended: 0,
            failed: 0,
            use_of: [Use::default(); 4],
        }
    }

    fn start(&mut self) {
        for instance in 0..self.stations.len() / 2 {
            self.plan_failure(instance);
        }
        for micro_batch in 0..self.micro_batches.len() {
            self.enter(Stage::Attention, micro_batch);
        }
    }

    /// Steps that every micro-batch has ended since measuring began.
    fn measured(&self) -> usize {
        let least = self.micro_batches.iter().map(|m| m.ended).min().unwrap_or(0);
        least.saturating_sub(WARM_UP)
    }

    fn at(&mut self, time: Time, event: Event) {
        self.made += 1;
        self.events.push(Reverse((time, self.made, event)));
    }

    fn handle(&mut self, event: Event) {
        match event {
            Event::Served { station, era } if self.stations[station].era == era => self.served(station),
            // It failed while it served: what it did is lost.
            Event::Served { .. } => {}
            Event::Failed { instance } => self.fail(instance),
            Event::Recovered { instance } => {
                for station in [2 * instance, 2 * instance + 1] {
                    self.stations[station].down = false;
                    self.serve(station);
                }
                self.plan_failure(instance);
            }
        }
    }

    fn stage(&self, station: usize) -> Stage {
        let attention = station / 2 < self.setup.instances.attention;
        match (attention, station.is_multiple_of(2)) {
            (true, true) => Stage::Attention,
            (true, false) => Stage::A2f,
            (false, true) => Stage::Ffn,
            (false, false) => Stage::F2a,
        }
    }

    /// The attention instances that have a part of a micro-batch.
    fn members(&self, micro_batch: usize) -> Range<usize> {
        match self.setup.ffn_batch {
            FfnBatch::All => 0..self.setup.instances.attention,
            FfnBatch::Each => {
                let instance = micro_batch / self.setup.micro_batches;
                instance..instance + 1
            }
        }
    }

    /// A micro-batch comes to all its instances of a side.
    fn enter(&mut self, stage: Stage, micro_batch: usize) {
        let Instances { attention, ffn } = self.setup.instances;
        let instances =
            if stage == Stage::Attention { self.members(micro_batch) } else { attention..attention + ffn };
        for instance in instances {
            self.stations[2 * instance].waiting.push_back(micro_batch);
            self.serve(2 * instance);
        }
    }

    /// Begins the next micro-batch, if there is one and nothing hinders.
    fn serve(&mut self, index: usize) {
        let station = &mut self.stations[index];
        if station.down || station.serving.is_some() {
            return;
        }
        let Some(micro_batch) = station.waiting.pop_front() else { return };
        station.serving = Some((micro_batch, self.now));
        let era = station.era;
        let layer = self.micro_batches[micro_batch].layer;
        let stage = self.stage(index);
        let time = self.setup.service.draw(stage, index / 2, layer, &mut self.rng);
        if self.begin.is_some() {
            self.use_of[stage as usize].served(time, self.budget);
        }
        self.at(self.now + time, Event::Served { station: index, era });
    }

    fn served(&mut self, index: usize) {
        let Some((micro_batch, _)) = self.stop(index) else { return };
        match self.stage(index) {
            Stage::Attention | Stage::Ffn => {
                self.stations[index + 1].waiting.push_back(micro_batch);
                self.serve(index + 1);
            }
            Stage::A2f => {
                if self.all_arrived(micro_batch, self.members(micro_batch).len()) {
                    self.enter(Stage::Ffn, micro_batch);
                }
            }
            Stage::F2a => {
                if self.all_arrived(micro_batch, self.setup.instances.ffn) {
                    self.next_layer(micro_batch);
                }
            }
        }
        self.serve(index);
    }

    /// Ends what a station does; its time since measuring began counts as busy.
    fn stop(&mut self, index: usize) -> Option<(usize, Time)> {
        let station = &mut self.stations[index];
        let serving = station.serving.take();
        if let (Some((_, since)), Some(begin)) = (serving, self.begin) {
            station.busy += self.now - since.max(begin);
        }
        serving
    }

    fn all_arrived(&mut self, micro_batch: usize, of: usize) -> bool {
        let micro_batch = &mut self.micro_batches[micro_batch];
        micro_batch.arrived += 1;
        if micro_batch.arrived < of {
            return false;
        }
        micro_batch.arrived = 0;
        true
    }

    fn next_layer(&mut self, index: usize) {
        let micro_batch = &mut self.micro_batches[index];
        micro_batch.layer += 1;
        if micro_batch.layer == self.setup.layers {
            micro_batch.layer = 0;
            micro_batch.ended += 1;
            let tpot = self.now - micro_batch.last_end;
            micro_batch.last_end = self.now;
            let measured = (WARM_UP + 1..=WARM_UP + self.setup.steps).contains(&micro_batch.ended);
            if measured {
                self.tpot.push(tpot);
            }
            match self.begin {
                Some(_) => self.ended += 1,
                None if self.micro_batches.iter().all(|m| m.ended >= WARM_UP) => self.begin = Some(self.now),
                None => {}
            }
        }
        self.enter(Stage::Attention, index);
    }

    fn plan_failure(&mut self, instance: usize) {
        if let Some(failures) = self.setup.failures {
            let exponential: f64 = Exp1.sample(&mut self.rng);
            let time = self.now.saturating_add(nanoseconds(exponential * failures.mean_between_s * 1e6));
            self.at(time, Event::Failed { instance });
        }
    }

    /// What the instance was doing is done again when it, or another in its place, works.
    fn fail(&mut self, instance: usize) {
        let Some(failures) = self.setup.failures else { return };
        self.failed += usize::from(self.begin.is_some());
        for index in [2 * instance, 2 * instance + 1] {
            if let Some((micro_batch, _)) = self.stop(index) {
                self.stations[index].waiting.push_front(micro_batch);
            }
            self.stations[index].era += 1;
            self.stations[index].down = true;
        }
        self.at(self.now + nanoseconds(failures.recovery_s * 1e6), Event::Recovered { instance });
    }

    fn outcome(mut self) -> Outcome {
        for index in 0..self.stations.len() {
            self.stop(index);
        }
        let elapsed = self.now - self.begin.unwrap_or(self.now);
        for stage in Stage::ALL {
            let of_stage = (0..self.stations.len()).filter(|&index| self.stage(index) == stage);
            let busy = of_stage.map(|index| self.stations[index].busy as f64 / elapsed.max(1) as f64);
            let busy: Vec<f64> = busy.collect();
            self.use_of[stage as usize].stations(&busy);
        }
        self.tpot.sort_unstable();
        Outcome {
            tpot: self.tpot,
            elapsed,
            ended: self.ended,
            use_of: self.use_of,
            failures: self.failed,
            events: self.handled,
        }
    }
}

/// A time far beyond any run stays one.
pub(super) fn nanoseconds(microseconds: f64) -> Time {
    (microseconds * 1e3).round() as Time
}
