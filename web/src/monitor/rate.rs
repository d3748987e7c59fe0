//! How fast something goes on, and how long it still takes.

use std::collections::VecDeque;

/// Over how long the rate is taken: short enough to follow a connection, long enough to stand still.
const WINDOW_MS: u64 = 8_000;

/// What was done when, lately.
#[derive(Clone, Debug, Default)]
pub struct Meter {
    points: VecDeque<(u64, u64)>,
}

impl Meter {
    /// So much is done now. Less than before begins anew.
    pub fn push(&mut self, at_ms: u64, done: u64) {
        if self.points.back().is_some_and(|(_, before)| done < *before) {
            self.points.clear();
        }
        self.points.push_back((at_ms, done));
        while self.points.len() > 2 && self.points[1].0 + WINDOW_MS < at_ms {
            self.points.pop_front();
        }
    }

    /// A second.
    pub fn rate(&self) -> Option<f64> {
        let (first, last) = (self.points.front()?, self.points.back()?);
        (last.0 > first.0).then(|| (last.1 - first.1) as f64 * 1000.0 / (last.0 - first.0) as f64)
    }

    /// Seconds until all is done.
    pub fn left_s(&self, total: u64) -> Option<f64> {
        let rate = self.rate().filter(|rate| *rate > 0.0)?;
        Some(total.saturating_sub(self.points.back()?.1) as f64 / rate)
    }
}

#[cfg(test)]
mod tests {
    use super::Meter;

    #[test]
    fn the_rate_is_that_of_the_last_seconds() {
        let mut meter = Meter::default();
        assert_eq!(meter.rate(), None);
        meter.push(0, 0);
        assert_eq!((meter.rate(), meter.left_s(10)), (None, None));
        for second in 1..=100 {
            meter.push(second * 1000, second * if second > 50 { 200 } else { 100 });
        }
        assert_eq!(meter.rate(), Some(200.0));
        assert_eq!(meter.left_s(30_000), Some(50.0));
        assert!(meter.points.len() < 12);
    }

    #[test]
    fn another_stage_begins_anew() {
        let mut meter = Meter::default();
        meter.push(0, 0);
        meter.push(1000, 500);
        meter.push(2000, 10);
        assert_eq!(meter.rate(), None);
        meter.push(3000, 10);
        assert_eq!((meter.rate(), meter.left_s(100)), (Some(0.0), None));
    }
}
