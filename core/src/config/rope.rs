//! Rotation speeds of rotary position embedding, with the scalings that Hugging Face configs name.

use serde_json::Value;

use crate::{Error, Result};

/// `base^(-2i / head_dim)` radians a position for each pair `i`, in f64.
pub(super) fn speeds(head_dim: usize, base: f64) -> Result<Vec<f64>> {
    if !(base.is_finite() && base > 0.0) {
        return Err(Error::Config(format!("`rope_theta` is {base}, but must be positive")));
    }
    Ok((0..head_dim / 2).map(|i| base.powf(-2.0 * i as f64 / head_dim as f64)).collect())
}

/// Applies a `rope_scaling` object: none, `default`, `linear` or `llama3` (transformers' modeling_rope_utils).
pub(super) fn scale(speeds: Vec<f64>, scaling: Option<&Value>) -> Result<Vec<f32>> {
    let kind = match scaling.and_then(|s| s.get("rope_type").or_else(|| s.get("type"))) {
        None | Some(Value::Null) => "default",
        Some(kind) => kind.as_str().unwrap_or_default(),
    };
    let number = |key: &str| -> Result<f64> {
        let found =
            scaling.and_then(|s| s.get(key)).and_then(Value::as_f64).filter(|f| f.is_finite() && *f > 0.0);
        found
            .ok_or_else(|| Error::Config(format!("`rope_scaling.{key}` is missing or not a positive number")))
    };
    let scaled: Vec<f64> = match kind {
        "default" => speeds,
        "linear" => {
            let factor = number("factor")?;
            speeds.into_iter().map(|f| f / factor).collect()
        }
        "llama3" => {
            let (factor, original) = (number("factor")?, number("original_max_position_embeddings")?);
            let (low, high) = (number("low_freq_factor")?, number("high_freq_factor")?);
            let stretch = |f: f64| {
                // Turns a pair makes over the original context: many stay, few are slowed, between is blended.
                let turns = original * f / std::f64::consts::TAU;
                let keep = ((turns - low) / (high - low)).clamp(0.0, 1.0);
                keep * f + (1.0 - keep) * f / factor
            };
            if high <= low {
                return Err(Error::Config(format!(
                    "`rope_scaling`: high_freq_factor {high} is not above {low}"
                )));
            }
            speeds.into_iter().map(stretch).collect()
        }
        other => {
            return Err(Error::Unsupported(format!(
                "rope_scaling of type `{other}`; Tread knows default, linear and llama3"
            )));
        }
    };
    let scaled: Vec<f32> = scaled.into_iter().map(|f| f as f32).collect();
    match scaled.iter().find(|f| !(f.is_finite() && **f >= 0.0)) {
        Some(speed) => Err(Error::Config(format!(
            "`rope_theta` and the rope scaling give a rotation speed of {speed}; it must be a finite number"
        ))),
        None => Ok(scaled),
    }
}
