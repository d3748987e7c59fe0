//! Stage times from a trace that the runtime wrote, in Chrome's trace format.

use std::collections::BTreeSet;
use std::path::Path;

use anyhow::{Context as _, Result, bail};
use serde::Deserialize;

use super::service::{Stage, Times};
use crate::plan::Instances;

/// What a trace tells.
#[derive(Debug)]
pub(super) struct Trace {
    pub(super) times: [Times; 4],
    pub(super) layers: usize,
    pub(super) micro_batches: usize,
    /// Threads that computed attention and FFN.
    pub(super) instances: Instances,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum File {
    Object {
        #[serde(rename = "traceEvents")]
        events: Vec<Event>,
    },
    List(Vec<Event>),
}

#[derive(Deserialize)]
struct Event {
    #[serde(default)]
    name: String,
    /// `X`: from `ts` for `dur`.
    #[serde(default)]
    ph: String,
    dur: Option<f64>,
    pid: Option<serde_json::Value>,
    tid: Option<serde_json::Value>,
    #[serde(default)]
    args: Args,
}

#[derive(Default, Deserialize)]
struct Args {
    layer: Option<usize>,
    micro_batch: Option<usize>,
}

impl Trace {
    pub(super) fn read(path: &Path) -> Result<Self> {
        let text =
            std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
        Self::parse(&text).with_context(|| format!("trace {}", path.display()))
    }

    fn parse(text: &str) -> Result<Self> {
        let file =
            serde_json::from_str(text).context("not a Chrome trace (a list of events, or `traceEvents`)")?;
        let (File::Object { events } | File::List(events)) = file;
        let events: Vec<Event> = events.into_iter().filter(|event| event.ph == "X").collect();
        let of = |stage: Stage| events.iter().filter(move |event| event.name == stage.name());
        let mut times = vec![];
        for stage in Stage::ALL {
            let all: Vec<f64> = of(stage).filter_map(|event| event.dur).collect();
            if all.is_empty() {
                bail!("there is no event `{}` with a duration (`ph` is X)", stage.name());
            }
            if all.iter().any(|&time| !(0.0..1e12).contains(&time)) {
                bail!("an event `{}` has a duration that is none", stage.name());
            }
            times.push(Times::Measured(all));
        }
        let threads = |stage| {
            let threads = of(stage).map(|event| (text_of(event.pid.as_ref()), text_of(event.tid.as_ref())));
            threads.collect::<BTreeSet<_>>().len()
        };
        let most = |number: fn(&Args) -> Option<usize>| events.iter().filter_map(|e| number(&e.args)).max();
        Ok(Self {
            layers: most(|args| args.layer).context("no event has `args.layer`")? + 1,
            micro_batches: most(|args| args.micro_batch).context("no event has `args.micro_batch`")? + 1,
            instances: Instances { attention: threads(Stage::Attention), ffn: threads(Stage::Ffn) },
            // There are as many as stages.
            times: times.try_into().unwrap_or_else(|_| Stage::ALL.map(|_| Times::Mean(0.0))),
        })
    }
}

fn text_of(id: Option<&serde_json::Value>) -> String {
    id.map(ToString::to_string).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::{Times, Trace};
    use crate::plan::Instances;

    #[test]
    fn durations_are_read_by_stage() {
        let text = r#"{"traceEvents": [
            {"name": "process_name", "ph": "M", "pid": 1, "args": {"name": "attention 0"}},
            {"name": "attention", "ph": "X", "ts": 0, "dur": 10.5, "pid": 1, "tid": 1, "args": {"layer": 0, "micro_batch": 0}},
            {"name": "attention", "ph": "X", "ts": 0, "dur": 12, "pid": 2, "tid": 1, "args": {"layer": 3, "micro_batch": 1}},
            {"name": "a2f", "ph": "X", "ts": 10, "dur": 1, "pid": 1, "tid": 2, "args": {"layer": 0, "micro_batch": 0}},
            {"name": "ffn", "ph": "X", "ts": 11, "dur": 7, "pid": 3, "tid": 1, "args": {"layer": 0, "micro_batch": 0}},
            {"name": "f2a", "ph": "X", "ts": 18, "dur": 2, "pid": 3, "tid": 2, "args": {"layer": 0, "micro_batch": 0}}]}"#;
        let trace = Trace::parse(text).unwrap();
        assert_eq!(trace.times[0], Times::Measured(vec![10.5, 12.0]));
        assert_eq!(trace.times[3], Times::Measured(vec![2.0]));
        assert_eq!((trace.layers, trace.micro_batches), (4, 2));
        assert_eq!(trace.instances, Instances { attention: 2, ffn: 1 });
    }

    #[test]
    fn a_trace_that_lacks_a_stage_is_refused() {
        let text = r#"[{"name": "attention", "ph": "X", "dur": 1, "args": {"layer": 0}}]"#;
        assert!(Trace::parse(text).unwrap_err().to_string().contains("`a2f`"));
        assert!(Trace::parse("{}").unwrap_err().to_string().contains("Chrome trace"));
    }
}
