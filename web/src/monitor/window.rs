//! Measured values of the last minutes, for exact quantiles.

use std::collections::VecDeque;

/// Most values kept: so many that their order is quickly found, and more than a quantile needs.
const MOST: usize = 50_000;

/// Values and when they were measured, oldest first. Beyond its room the oldest go.
#[derive(Clone, Debug, Default)]
pub struct Window {
    values: VecDeque<(u64, f64)>,
}

impl Window {
    /// Adds a value; times do not go back.
    pub fn push(&mut self, at_ms: u64, value: f64) {
        if self.values.len() == MOST {
            self.values.pop_front();
        }
        self.values.push_back((at_ms, value));
    }

    /// Forgets what is older.
    pub fn forget_before(&mut self, at_ms: u64) {
        while self.values.front().is_some_and(|(at, _)| *at < at_ms) {
            self.values.pop_front();
        }
    }

    /// Of the values since then, the smallest that a part `q` does not exceed (nearest rank).
    pub fn quantile(&self, since_ms: u64, q: f64) -> Option<f64> {
        let mut values: Vec<f64> =
            self.values.iter().rev().take_while(|(at, _)| *at >= since_ms).map(|(_, value)| *value).collect();
        quantile(&mut values, q)
    }
}

/// The smallest value that a part `q` of all does not exceed; reorders them.
pub fn quantile(values: &mut [f64], q: f64) -> Option<f64> {
    let last = values.len().checked_sub(1)?;
    let rank = (q.clamp(0.0, 1.0) * values.len() as f64).ceil() as usize;
    let at = rank.saturating_sub(1).min(last);
    Some(*values.select_nth_unstable_by(at, f64::total_cmp).1)
}

#[cfg(test)]
mod tests {
    use super::{MOST, Window, quantile};

    #[test]
    fn quantiles_are_values_that_occurred() {
        let mut values = [5.0, 1.0, 4.0, 2.0, 3.0];
        assert_eq!(quantile(&mut values, 0.5), Some(3.0));
        assert_eq!(quantile(&mut values, 0.95), Some(5.0));
        assert_eq!(quantile(&mut values, 0.0), Some(1.0));
        assert_eq!(quantile(&mut [1.0, 2.0], 0.5), Some(1.0));
        assert_eq!(quantile(&mut [], 0.5), None);
    }

    #[test]
    fn only_the_window_counts() {
        let mut window = Window::default();
        for at in 0..100 {
            window.push(at, at as f64);
        }
        assert_eq!(window.quantile(90, 0.0), Some(90.0));
        assert_eq!(window.quantile(100, 0.5), None);
        window.forget_before(50);
        assert_eq!(window.quantile(0, 0.0), Some(50.0));
    }

    #[test]
    fn memory_is_bounded() {
        let mut window = Window::default();
        for at in 0..MOST as u64 + 10 {
            window.push(at, 0.0);
        }
        assert_eq!(window.values.len(), MOST);
        assert_eq!(window.values.front().map(|(at, _)| *at), Some(10));
    }
}
