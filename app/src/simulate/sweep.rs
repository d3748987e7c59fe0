//! One parameter through a range of values, and where the goal is missed.

use std::str::FromStr;

/// What is changed, through which values.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Sweep {
    pub(super) key: Key,
    pub(super) values: Vec<f64>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Key {
    Jitter,
    Stragglers,
    Slowdown,
    Imbalance,
    Mtbf,
    Size,
}

impl Key {
    const ALL: [Self; 6] =
        [Self::Jitter, Self::Stragglers, Self::Slowdown, Self::Imbalance, Self::Mtbf, Self::Size];

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Jitter => "jitter",
            Self::Stragglers => "stragglers",
            Self::Slowdown => "slowdown",
            Self::Imbalance => "imbalance",
            Self::Mtbf => "mtbf",
            Self::Size => "size",
        }
    }

    /// What the values are.
    pub(super) fn about(self) -> &'static str {
        match self {
            Self::Jitter => "jitter: coefficient of variation of a GPU's stage",
            Self::Stragglers => "stragglers: share of slow GPUs",
            Self::Slowdown => "slowdown: times longer that stragglers take",
            Self::Imbalance => "imbalance: coefficient of variation of FFN loads",
            Self::Mtbf => "mtbf: seconds between an instance's failures",
            Self::Size => "size: GPUs",
        }
    }

    fn allows(self, value: f64) -> bool {
        match self {
            Self::Jitter | Self::Imbalance => (0.0..=10.0).contains(&value),
            Self::Stragglers => (0.0..=1.0).contains(&value),
            Self::Slowdown => value >= 1.0,
            Self::Mtbf => value > 0.0,
            Self::Size => (2.0..=65536.0).contains(&value),
        }
    }

    /// These matter by their ratio.
    fn is_geometric(self) -> bool {
        matches!(self, Self::Mtbf | Self::Size)
    }
}

impl FromStr for Sweep {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let names = Key::ALL.map(Key::name).join(", ");
        let wrong =
            || format!("`{text}` is not KEY=FROM..TO[:VALUES], as jitter=0..1:11, with KEY one of {names}");
        let (key, range) = text.split_once('=').ok_or_else(wrong)?;
        let key = Key::ALL.into_iter().find(|k| k.name() == key).ok_or_else(wrong)?;
        let (range, number) = range.split_once(':').unwrap_or((range, "11"));
        let (from, to) = range.split_once("..").ok_or_else(wrong)?;
        let number: usize = number.parse().map_err(|_| wrong())?;
        let end = |text: &str| text.parse().ok().filter(|v: &f64| v.is_finite()).ok_or_else(wrong);
        let (from, to) = (end(from)?, end(to)?);
        if !(2..=1000).contains(&number) || from >= to || !key.allows(from) || !key.allows(to) {
            return Err(format!(
                "`{text}`: from 2 to 1000 values, FROM below TO, both values that {} can have",
                key.name()
            ));
        }
        let step = |n: usize| n as f64 / (number - 1) as f64;
        let value = |n: usize| {
            if key.is_geometric() { from * (to / from).powf(step(n)) } else { from + (to - from) * step(n) }
        };
        Ok(Self { key, values: (0..number).map(value).collect() })
    }
}

/// Where a line through points first crosses `limit`, from either side.
pub(super) fn crossing(points: &[(f64, f64)], limit: f64) -> Option<f64> {
    points.windows(2).find_map(|pair| {
        let [(x0, y0), (x1, y1)] = *pair else { return None };
        ((y0 <= limit) != (y1 <= limit)).then(|| x0 + (x1 - x0) * (limit - y0) / (y1 - y0))
    })
}

#[cfg(test)]
mod tests {
    use super::{Key, Sweep, crossing};

    #[test]
    fn values_are_spaced_by_difference_or_by_ratio() {
        let sweep: Sweep = "jitter=0..1:5".parse().unwrap();
        assert_eq!((sweep.key, sweep.values), (Key::Jitter, vec![0.0, 0.25, 0.5, 0.75, 1.0]));
        let sizes = "size=32..512:3".parse::<Sweep>().unwrap().values;
        assert!((sizes[1] - 128.0).abs() < 1e-9, "{sizes:?}");
        for wrong in ["speed=0..1", "jitter", "jitter=1..0", "jitter=0..1:1", "stragglers=0..2", "mtbf=0..5"]
        {
            let error = wrong.parse::<Sweep>().unwrap_err();
            assert!(error.contains(wrong), "{error}");
        }
    }

    #[test]
    fn a_crossing_lies_between_its_points() {
        let points = [(0.0, 40.0), (1.0, 45.0), (2.0, 55.0)];
        assert_eq!(crossing(&points, 50.0), Some(1.5));
        assert_eq!(crossing(&points, 60.0), None);
        assert_eq!(crossing(&[(1.0, 60.0), (2.0, 40.0)], 50.0), Some(1.5));
    }
}
