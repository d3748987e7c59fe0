//! `tread simulate`: the pipeline of attention and FFN instances, event by event, with what real machines add.

mod outcome;
mod pipeline;
mod report;
mod service;
mod sweep;
#[cfg(test)]
mod tests;
mod trace;

use std::io::Write as _;

use anyhow::{Result, bail};

use crate::cli::{FfnBatch, Format, SimulateArgs};
use crate::plan::{self, Instances};

pub(crate) use sweep::Sweep;

use pipeline::{Failures, Setup, nanoseconds};
use report::{Report, Run};
use service::{Service, Times, Trouble};
use sweep::Key;
use trace::Trace;

/// What is simulated.
#[derive(Clone, Debug)]
struct Base {
    /// Where the stage times are from.
    source: String,
    instances: Instances,
    gpus_per_instance: usize,
    layers: usize,
    micro_batches: usize,
    ffn_batch: FfnBatch,
    /// Tokens of a micro-batch of all attention instances; none where nothing says.
    micro_batch: Option<usize>,
    times: [Times; 4],
    trouble: Trouble,
    mtbf_s: Option<f64>,
    recovery_s: f64,
    steps: usize,
    seed: u64,
    /// Seconds between tokens that are wanted.
    tpot_s: f64,
}

pub(crate) fn run(args: &SimulateArgs) -> Result<()> {
    let base = Base::new(args)?;
    let report = match &args.sweep {
        None => Report::single(&base, base.run()),
        Some(sweep) => {
            let values = base.values(sweep);
            let runs = values.iter().map(|&value| base.with(sweep.key, value).run()).collect();
            Report::sweep(&base, sweep.key, values, runs)
        }
    };
    let mut out = std::io::stdout().lock();
    match args.format {
        Format::Table => write!(out, "{}", report.text())?,
        Format::Json => writeln!(out, "{}", serde_json::to_string_pretty(&report)?)?,
        Format::Svg => writeln!(out, "{}", report.svg()?)?,
    }
    Ok(())
}

impl Base {
    fn new(args: &SimulateArgs) -> Result<Self> {
        let mut base = match (&args.stages.trace, given(args)?) {
            (Some(file), _) => Self::measured(args, file)?,
            (None, Some(times)) => Self::told(args, times)?,
            (None, None) => Self::predicted(args)?,
        };
        if let Some(layers) = args.stages.layers {
            base.layers = layers as usize;
        }
        if let Some(gpus) = args.stages.gpus_per_instance {
            base.gpus_per_instance = gpus as usize;
        }
        Ok(base)
    }

    /// What flags alone say.
    fn of_flags(args: &SimulateArgs, source: String, instances: Instances, times: [Times; 4]) -> Self {
        let trouble = &args.trouble;
        Self {
            source,
            instances,
            gpus_per_instance: 8,
            layers: 1,
            micro_batches: args.goal.micro_batches(),
            ffn_batch: args.stages.ffn_batch.unwrap_or(match args.stages.trace {
                Some(_) => FfnBatch::Each,
                None => FfnBatch::All,
            }),
            micro_batch: None,
            times,
            trouble: Trouble {
                jitter: trouble.jitter,
                stragglers: trouble.stragglers,
                slowdown: trouble.slowdown,
                imbalance: trouble.imbalance,
            },
            mtbf_s: trouble.mtbf,
            recovery_s: trouble.recovery,
            steps: args.steps as usize,
            seed: args.seed,
            tpot_s: args.goal.tpot,
        }
    }

    fn predicted(args: &SimulateArgs) -> Result<Self> {
        let ffn_batch = args.stages.ffn_batch.unwrap_or(FfnBatch::All);
        let plan::Placed { deployment, stages, layers, gpus_per_server } =
            plan::deployment(&args.model, &args.goal, ffn_batch)?;
        let source = format!(
            "{} on {} + {}, as planned",
            args.model, deployment.attention_hardware, deployment.ffn_hardware
        );
        let times = service::predicted(stages);
        let base = Self::of_flags(args, source, deployment.instances, times);
        Ok(Self {
            layers,
            gpus_per_instance: gpus_per_server,
            micro_batch: Some(deployment.micro_batch),
            ..base
        })
    }

    fn told(args: &SimulateArgs, times: [Times; 4]) -> Result<Self> {
        let instances = args.goal.deployment.unwrap_or(Instances { attention: 1, ffn: 1 });
        let base = Self::of_flags(args, "stage times as given".to_owned(), instances, times);
        let gpus_per_instance = args.stages.gpus_per_instance.map_or(8, |gpus| gpus as usize);
        let sequences = args.goal.batch.map(|batch| batch as usize * gpus_per_instance * instances.attention);
        Ok(Self { layers: plan::layers(&args.model)?, gpus_per_instance, micro_batch: sequences, ..base })
    }

    fn measured(args: &SimulateArgs, file: &std::path::Path) -> Result<Self> {
        let trace = Trace::read(file)?;
        let instances = args.goal.deployment.unwrap_or(trace.instances);
        let source = format!("stage times from {}", file.display());
        let base = Self::of_flags(args, source, instances, trace.times);
        // A measured time is that of an instance, its jitter included.
        let micro_batches = args.goal.micro_batches.map_or(trace.micro_batches, usize::from);
        Ok(Self { layers: trace.layers, micro_batches, gpus_per_instance: 1, ..base })
    }

    /// Sizes can only be multiples of the deployment.
    fn values(&self, sweep: &Sweep) -> Vec<f64> {
        let mut values = sweep.values.clone();
        if sweep.key == Key::Size {
            let gpus = self.gpus() as f64;
            values.iter_mut().for_each(|value| *value = (*value / gpus).round().max(1.0) * gpus);
            values.dedup();
        }
        values
    }

    /// The same with one thing changed.
    fn with(&self, key: Key, value: f64) -> Self {
        let mut base = self.clone();
        match key {
            Key::Jitter => base.trouble.jitter = value,
            Key::Stragglers => base.trouble.stragglers = value,
            Key::Slowdown => base.trouble.slowdown = value,
            Key::Imbalance => base.trouble.imbalance = value,
            Key::Mtbf => base.mtbf_s = Some(value),
            Key::Size => {
                let times = value as usize / self.gpus();
                base.instances.attention *= times;
                base.instances.ffn *= times;
                base.micro_batch = self.micro_batch.map(|tokens| tokens * times);
            }
        }
        base
    }

    fn gpus(&self) -> usize {
        (self.instances.attention + self.instances.ffn) * self.gpus_per_instance
    }

    /// Microseconds of a stage, when as many stages as micro-batches share the time of a layer.
    fn budget_us(&self) -> f64 {
        1e6 * self.tpot_s / self.layers as f64 / self.micro_batches as f64
    }

    fn run(&self) -> Run {
        let Self { instances, gpus_per_instance: gpus, layers, trouble, seed, .. } = self;
        let setup = Setup {
            instances: *instances,
            micro_batches: self.micro_batches,
            ffn_batch: self.ffn_batch,
            layers: *layers,
            service: Service::new(self.times.clone(), *instances, *gpus, *layers, *trouble, *seed),
            failures: self
                .mtbf_s
                .map(|mean_between_s| Failures { mean_between_s, recovery_s: self.recovery_s }),
            steps: self.steps,
            seed: *seed,
        };
        Run::new(self, &pipeline::run(&setup, nanoseconds(self.budget_us())))
    }
}

/// Stage times from flags: all four, or none.
fn given(args: &SimulateArgs) -> Result<Option<[Times; 4]>> {
    let stages = &args.stages;
    match [stages.attention_us, stages.a2f_us, stages.ffn_us, stages.f2a_us] {
        [None, None, None, None] => Ok(None),
        [Some(attention), Some(a2f), Some(ffn), Some(f2a)] => {
            if attention + a2f + ffn + f2a <= 0.0 {
                bail!("some stage must take time");
            }
            Ok(Some([attention, a2f, ffn, f2a].map(Times::Mean)))
        }
        _ => bail!("give all of --attention-us, --a2f-us, --ffn-us and --f2a-us, or none of them"),
    }
}
