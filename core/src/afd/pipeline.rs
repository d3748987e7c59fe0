//! The pipeline: attention here, FFNs elsewhere, several micro-batches on their way between them.

use web_time::Instant;

use super::micro_batch::split;
use super::{Answer, Call, Ffn};
use crate::backend::{Batch, CompileOptions, Executable, LocalFuture, Output, Stats, Work};
use crate::graph::{Graph, Side};
use crate::monitor::{OpTime, STAGES};
use crate::{Error, Result};

/// An executable of a whole graph whose FFNs are elsewhere.
#[derive(Debug)]
pub struct Pipeline {
    /// Attention's part.
    graph: Graph,
    attention: Box<dyn Executable>,
    ffn: Box<dyn Ffn>,
    /// Those of the whole, which has one lane.
    options: CompileOptions,
    step: u64,
    /// Answers that came before their turn.
    early: Vec<(Answer, f64)>,
    results: Results,
    measures: bool,
    profile_next: bool,
    /// The stages of the last step, in the order of their ends.
    profile: Vec<OpTime>,
}

/// What the micro-batches of a step gave.
#[derive(Debug, Default)]
struct Results {
    logits: Vec<f32>,
    hidden: Vec<Vec<f32>>,
    features: Vec<f32>,
    dispatches: usize,
}

impl Pipeline {
    /// `attention` is compiled from attention's part `graph`, with as many lanes as micro-batches may be in flight.
    pub fn new(graph: Graph, attention: Box<dyn Executable>, ffn: Box<dyn Ffn>) -> Self {
        let options = *attention.options();
        Self {
            options: CompileOptions { lanes: 1, ..options },
            graph,
            attention,
            ffn,
            step: 0,
            early: vec![],
            results: Results::default(),
            measures: false,
            profile_next: false,
            profile: vec![],
        }
    }

    /// Runs the micro-batches through all layers, each layer of one after that of the one before it.
    async fn run_step(&mut self, batch: Batch) -> Result<Output<'_>> {
        let parts = split(&batch, self.micro_batches());
        self.begin();
        let start = Instant::now();
        let now = || start.elapsed().as_secs_f64() * 1e6;
        let mut posted = vec![0.0; parts.len()];
        for segment in 0..self.graph.segments.len() {
            for (lane, part) in parts.iter().enumerate() {
                let inputs = match segment.checked_sub(1) {
                    None => vec![],
                    Some(layer) => {
                        let (answer, arrived) = self.answer(lane, layer, &now).await?;
                        self.record_ffn(&answer, posted[lane], arrived);
                        answer.outputs
                    }
                };
                let began = now();
                let edges = self.attend(Work { batch: part, segment, lane, inputs: &inputs }).await?;
                let ended = now();
                self.record(STAGES[0], segment, lane, (began, ended));
                if segment + 1 < self.graph.segments.len() {
                    posted[lane] = ended;
                    let (step, rows) = (self.step, part.rows());
                    self.ffn.post(Call { step, micro_batch: lane, layer: segment, rows, inputs: edges })?;
                }
            }
        }
        let Results { logits, hidden, features, .. } = &self.results;
        Ok(Output { logits, hidden, features, edges: &[] })
    }

    fn begin(&mut self) {
        self.step += 1;
        self.early.clear();
        self.profile.clear();
        self.measures = std::mem::take(&mut self.profile_next);
        let results = &mut self.results;
        results.logits.clear();
        results.features.clear();
        results.dispatches = 0;
        results.hidden.resize(self.graph.hidden.len(), vec![]);
        results.hidden.iter_mut().for_each(Vec::clear);
    }

    /// Runs a segment of attention and takes its results; returns what the FFN is to have.
    async fn attend(&mut self, work: Work<'_>) -> Result<Vec<Vec<f32>>> {
        let Self { attention, results, .. } = self;
        let output = attention.run(work)?.await?;
        results.logits.extend_from_slice(output.logits);
        results.features.extend_from_slice(output.features);
        for (all, some) in results.hidden.iter_mut().zip(output.hidden) {
            all.extend_from_slice(some);
        }
        let edges = output.edges.to_vec();
        results.dispatches += attention.stats().dispatches;
        Ok(edges)
    }

    /// The answer that a micro-batch waits for, and when it came.
    async fn answer(
        &mut self,
        micro_batch: usize,
        layer: usize,
        now: &impl Fn() -> f64,
    ) -> Result<(Answer, f64)> {
        let wanted = |(answer, _): &(Answer, f64)| (answer.micro_batch, answer.layer) == (micro_batch, layer);
        loop {
            if let Some(at) = self.early.iter().position(wanted) {
                return Ok(self.early.swap_remove(at));
            }
            let answer = self.ffn.answer().await?;
            if answer.step == self.step {
                self.check(&answer)?;
                self.early.push((answer, now()));
            }
        }
    }

    /// An answer that nobody asked for would be waited for or taken for another: the pool is broken.
    fn check(&self, answer: &Answer) -> Result<()> {
        let wanted = self.graph.segments.get(answer.layer + 1).map_or(0, |s| s.inputs.len());
        if answer.micro_batch >= self.micro_batches() || answer.outputs.len() != wanted {
            return Err(Error::Device(format!(
                "the FFN pool answered layer {} of micro-batch {} with {} values where {wanted} belong",
                answer.layer,
                answer.micro_batch,
                answer.outputs.len()
            )));
        }
        Ok(())
    }

    fn micro_batches(&self) -> usize {
        self.attention.options().lanes
    }

    /// A stage of a layer; attention's last segment, which is followed by no FFN, is of none.
    fn record(&mut self, name: &str, layer: usize, micro_batch: usize, (start_us, end): (f64, f64)) {
        if self.measures {
            self.profile.push(OpTime {
                name: name.to_owned(),
                layer: (layer + 1 < self.graph.segments.len()).then_some(layer),
                side: if name == STAGES[0] { Side::Attention } else { Side::Ffn },
                micro_batch,
                start_us,
                us: (end - start_us).max(0.0),
            });
        }
    }

    /// The FFN's clock is not ours: of the time between post and arrival, what it did not compute is taken for two ways of
    /// the same length.
    fn record_ffn(&mut self, answer: &Answer, posted: f64, arrived: f64) {
        let way = (arrived - posted - answer.ffn_us).max(0.0) / 2.0;
        let [_, a2f, ffn, f2a] = STAGES;
        self.record(a2f, answer.layer, answer.micro_batch, (posted, posted + way));
        self.record(ffn, answer.layer, answer.micro_batch, (posted + way, arrived - way));
        self.record(f2a, answer.layer, answer.micro_batch, (arrived - way, arrived));
    }
}

impl Executable for Pipeline {
    fn run<'a>(&'a mut self, work: Work<'_>) -> Result<LocalFuture<'a, Result<Output<'a>>>> {
        work.batch.check(&self.graph, &self.options)?;
        Ok(Box::pin(self.run_step(work.batch.clone())))
    }

    fn profile_next(&mut self) {
        self.profile_next = true;
    }

    fn take_profile(&mut self) -> Vec<OpTime> {
        std::mem::take(&mut self.profile)
    }

    fn stats(&self) -> Stats {
        let own = self.attention.stats();
        Stats {
            dispatches: self.results.dispatches,
            weight_bytes: own.weight_bytes + self.ffn.describe().1,
            pool: self.ffn.stats(),
            ..own
        }
    }

    fn options(&self) -> &CompileOptions {
        &self.options
    }
}
