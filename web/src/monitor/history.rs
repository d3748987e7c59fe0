//! Numbers of the last minutes, a point a second, in a form that survives a reload.

use std::collections::VecDeque;

use serde::{Deserialize, Serialize};

use super::snapshot::Snapshot;

/// How long a point is kept.
pub const KEPT_MS: u64 = 600_000;

/// Points farther apart than this have a gap between them.
const GAP_MS: u64 = 3_000;

/// What a point has a number of. The order is that of the saved form.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Quantity {
    /// Tokens written a second.
    Generation,
    /// Prompt tokens a second.
    Prefill,
    /// Median time to a first token, in seconds.
    FirstToken,
    /// Median time to a further token, in seconds.
    PerToken,
    /// Sequences that are computed.
    Running,
    /// Requests that wait.
    Waiting,
    /// Part of the KV cache in use.
    Cache,
    /// Part of the prompt tokens of this second that the prefix cache held.
    Prefix,
    /// Bytes of the device.
    Memory,
}

const QUANTITIES: usize = Quantity::Memory as usize + 1;

/// The numbers of one moment.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Point {
    /// Milliseconds since 1970.
    at_ms: u64,
    values: [Option<f32>; QUANTITIES],
}

impl Point {
    /// No number yet.
    pub fn new(at_ms: u64) -> Self {
        Self { at_ms, values: [None; QUANTITIES] }
    }

    /// Sets a number.
    pub fn set(&mut self, quantity: Quantity, value: Option<f64>) {
        self.values[quantity as usize] = value.filter(|value| value.is_finite()).map(|value| value as f32);
    }

    /// A number.
    pub fn get(&self, quantity: Quantity) -> Option<f64> {
        self.values[quantity as usize].map(f64::from)
    }
}

/// The last minutes.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct History {
    points: VecDeque<Point>,
    /// What rates are counted from; not saved, as nothing was seen meanwhile.
    #[serde(skip)]
    last: Option<(u64, Snapshot)>,
}

impl History {
    /// Reads what [`History::save`] wrote; empty when it is damaged or of another version of the page.
    pub fn restore(text: &str, now_ms: u64) -> Self {
        let mut history: Self = serde_json::from_str(text).unwrap_or_default();
        history.points.retain(|point| point.at_ms <= now_ms);
        history.forget_before(now_ms.saturating_sub(KEPT_MS));
        history
    }

    /// For the browser's storage.
    pub fn save(&self) -> String {
        serde_json::to_string(self).unwrap_or_default()
    }

    /// Adds a moment's numbers; latencies are told by who measured them.
    pub fn push(
        &mut self,
        at_ms: u64,
        snapshot: &Snapshot,
        first_token: Option<f64>,
        per_token: Option<f64>,
    ) {
        let mut point = Point::new(at_ms);
        point.set(Quantity::FirstToken, first_token);
        point.set(Quantity::PerToken, per_token);
        point.set(Quantity::Running, snapshot.running);
        point.set(Quantity::Waiting, snapshot.waiting);
        point.set(Quantity::Cache, snapshot.cache_usage);
        point.set(Quantity::Memory, snapshot.device_bytes());
        if let Some((then, before)) = self.last.filter(|(then, _)| at_ms.saturating_sub(*then) <= GAP_MS) {
            let seconds = (at_ms - then) as f64 / 1000.0;
            let grown = |of: fn(&Snapshot) -> Option<f64>| growth(of(&before), of(snapshot));
            let rate = |of| grown(of).filter(|_| seconds > 0.0).map(|tokens| tokens / seconds);
            point.set(Quantity::Generation, rate(|s| s.generation_tokens));
            point.set(Quantity::Prefill, rate(|s| s.prompt_tokens));
            let looked_up = grown(|s| s.prefix_queries).filter(|queries| *queries > 0.0);
            let held = grown(|s| s.prefix_hits).zip(looked_up).map(|(hits, queries)| hits / queries);
            point.set(Quantity::Prefix, held);
        }
        self.last = Some((at_ms, *snapshot));
        self.points.push_back(point);
        self.forget_before(at_ms.saturating_sub(KEPT_MS));
    }

    /// The last number.
    pub fn latest(&self, quantity: Quantity) -> Option<f64> {
        self.points.back()?.get(quantity)
    }

    /// The mean since then over the moments that have a number.
    pub fn mean(&self, quantity: Quantity, since_ms: u64) -> Option<f64> {
        let values = self.since(since_ms).filter_map(|point| point.get(quantity));
        let (sum, count) = values.fold((0.0, 0), |(sum, count), value| (sum + value, count + 1));
        (count > 0).then(|| sum / f64::from(count))
    }

    /// Lines of `(milliseconds since 1970, number)`: where moments or numbers are missing, one ends and the next begins.
    pub fn lines(&self, quantity: Quantity, since_ms: u64) -> Vec<Vec<(u64, f64)>> {
        let mut lines: Vec<Vec<(u64, f64)>> = Vec::new();
        let mut before = None;
        for point in self.since(since_ms) {
            if let Some(value) = point.get(quantity) {
                match (before, lines.last_mut()) {
                    (Some(then), Some(line)) if point.at_ms - then <= GAP_MS => {
                        line.push((point.at_ms, value))
                    }
                    _ => lines.push(vec![(point.at_ms, value)]),
                }
                before = Some(point.at_ms);
            } else {
                before = None;
            }
        }
        lines
    }

    fn since(&self, since_ms: u64) -> impl Iterator<Item = &Point> {
        self.points.iter().filter(move |point| point.at_ms >= since_ms)
    }

    fn forget_before(&mut self, at_ms: u64) {
        while self.points.front().is_some_and(|point| point.at_ms < at_ms) {
            self.points.pop_front();
        }
    }
}

/// What a counter counted between two looks. One that is smaller than before began anew with its engine.
fn growth(before: Option<f64>, now: Option<f64>) -> Option<f64> {
    let (before, now) = (before?, now?);
    Some(if now >= before { now - before } else { now })
}

#[cfg(test)]
mod tests {
    use super::{History, KEPT_MS, Quantity, Snapshot};

    fn tokens(generation_tokens: f64) -> Snapshot {
        Snapshot { generation_tokens: Some(generation_tokens), running: Some(1.0), ..Snapshot::default() }
    }

    fn filled(points: &[(u64, f64)]) -> History {
        let mut history = History::default();
        for (at, count) in points {
            history.push(*at, &tokens(*count), None, None);
        }
        history
    }

    #[test]
    fn rates_come_from_counters() {
        let history = filled(&[(1_000, 10.0), (2_000, 30.0), (4_000, 70.0)]);
        assert_eq!(history.lines(Quantity::Generation, 0), [[(2_000, 20.0), (4_000, 20.0)]]);
        assert_eq!(history.latest(Quantity::Generation), Some(20.0));
        assert_eq!(history.mean(Quantity::Generation, 0), Some(20.0));
        assert_eq!(history.mean(Quantity::Generation, 5_000), None);
    }

    #[test]
    fn a_counter_that_began_anew_is_no_negative_rate() {
        let history = filled(&[(1_000, 500.0), (2_000, 7.0)]);
        assert_eq!(history.latest(Quantity::Generation), Some(7.0));
    }

    #[test]
    fn gaps_stay_gaps() {
        let history = filled(&[(1_000, 0.0), (2_000, 1.0), (60_000, 2.0), (61_000, 3.0)]);
        assert_eq!(history.lines(Quantity::Generation, 0), [[(2_000, 1.0)], [(61_000, 1.0)]]);
        assert_eq!(
            history.lines(Quantity::Running, 0),
            [[(1_000, 1.0), (2_000, 1.0)], [(60_000, 1.0), (61_000, 1.0)]]
        );
    }

    #[test]
    fn a_missing_number_ends_the_line() {
        let mut history = History::default();
        for (at, first) in [(1_000, Some(0.5)), (2_000, None), (3_000, Some(0.25))] {
            history.push(at, &tokens(0.0), first, None);
        }
        assert_eq!(history.lines(Quantity::FirstToken, 0), [[(1_000, 0.5)], [(3_000, 0.25)]]);
    }

    #[test]
    fn it_survives_a_reload_with_a_gap() {
        let before = filled(&[(1_000, 0.0), (2_000, 10.0)]);
        let mut history = History::restore(&before.save(), 9_000);
        history.push(10_000, &tokens(500.0), None, None);
        history.push(11_000, &tokens(505.0), None, None);
        assert_eq!(history.lines(Quantity::Generation, 0), [[(2_000, 10.0)], [(11_000, 5.0)]]);
    }

    #[test]
    fn what_is_old_damaged_or_of_the_future_is_dropped() {
        let before = filled(&[(1_000, 0.0), (2_000, 10.0)]);
        assert!(History::restore(&before.save(), KEPT_MS + 5_000).points.is_empty());
        assert!(History::restore(&before.save(), 500).points.is_empty());
        assert!(History::restore("{\"points\":[{\"at_ms\":1,\"values\":[1]}]}", 5).points.is_empty());
        assert!(History::restore("nonsense", 5).points.is_empty());
        let many: Vec<(u64, f64)> = (0..1_000).map(|second| (second * 1_000, 0.0)).collect();
        assert_eq!(filled(&many).points.len() as u64, KEPT_MS / 1_000 + 1);
    }
}
