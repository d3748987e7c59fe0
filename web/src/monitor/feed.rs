//! A server's event stream, and when to try again once it broke.

use serde::Deserialize;
use tread_core::monitor::{Hello, Standing, StepEvent};

/// The data of an event of `GET /events`. Its shape tells which it is.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(untagged)]
pub enum Feed {
    /// What is watched.
    Hello(Hello),
    /// Steps since the last event.
    Steps(Vec<Stepped>),
    /// Where the engine stands, without a step.
    Standing(Standing),
}

/// A step, and where the engine stood after it.
#[derive(Clone, Debug, PartialEq, Deserialize)]
pub struct Stepped {
    /// The step.
    pub step: StepEvent,
    /// Where the engine stood.
    pub standing: Standing,
}

/// Seconds until the next try after so many failed ones: 1, 2, 4, ... at most 32.
pub fn retry_s(failed: u32) -> u32 {
    1 << failed.saturating_sub(1).min(5)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_are_told_apart() {
        let read = |text: &str| serde_json::from_str::<Feed>(text).unwrap();
        let json = |value: serde_json::Value| value.to_string();
        let hello = Hello::single("nano", "cpu", 64);
        assert_eq!(read(&json(serde_json::to_value(&hello).unwrap())), Feed::Hello(hello));
        let standing = Standing { running: 2, ..Standing::default() };
        assert_eq!(read(&json(serde_json::to_value(standing).unwrap())), Feed::Standing(standing));
        let step = StepEvent { step: 7, ..StepEvent::default() };
        let text = json(serde_json::json!([{"step": step, "standing": standing}]));
        assert_eq!(read(&text), Feed::Steps(vec![Stepped { step, standing }]));
    }

    #[test]
    fn tries_become_rarer() {
        assert_eq!([1, 2, 3, 4, 5, 6, 99].map(retry_s), [1, 2, 4, 8, 16, 32, 32]);
    }
}
