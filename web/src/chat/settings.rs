//! How a conversation is answered.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::Sampling;

/// How a conversation is answered.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// Stands before all that is said.
    pub system: String,
    /// How tokens are chosen.
    pub sampling: Sampling,
    /// Functions the model may call, as the user wrote them: a JSON list in OpenAI's form, or nothing.
    pub tools: String,
}

/// A choice of sampling settings with a name.
#[derive(Clone, Copy, Debug)]
pub struct Preset {
    /// For people.
    pub name: &'static str,
    /// What it is good for.
    pub about: &'static str,
    temperature: Option<f32>,
    top_p: Option<f32>,
    min_p: Option<f32>,
}

/// All presets; the first leaves everything to the model.
pub const PRESETS: [Preset; 4] = [
    Preset {
        name: "Model\u{2019}s own",
        about: "As the model\u{2019}s makers suggest",
        temperature: None,
        top_p: None,
        min_p: None,
    },
    Preset {
        name: "Precise",
        about: "Always the likeliest: facts, code, extraction",
        temperature: Some(0.0),
        top_p: None,
        min_p: None,
    },
    Preset {
        name: "Balanced",
        about: "Varied, and to the point",
        temperature: Some(0.7),
        top_p: Some(0.95),
        min_p: None,
    },
    Preset {
        name: "Creative",
        about: "Surprising: stories, ideas",
        temperature: Some(1.1),
        top_p: None,
        min_p: Some(0.05),
    },
];

impl Preset {
    /// The same settings otherwise, but with this choice of tokens.
    pub fn apply(&self, sampling: &Sampling) -> Sampling {
        Sampling {
            temperature: self.temperature,
            top_p: self.top_p,
            min_p: self.min_p,
            top_k: None,
            repetition_penalty: None,
            ..sampling.clone()
        }
    }

    /// Whether these settings are this preset's.
    pub fn is(&self, sampling: &Sampling) -> bool {
        self.apply(sampling) == *sampling
    }
}

impl Settings {
    /// The functions, read.
    pub fn tools(&self) -> Result<Vec<Value>, String> {
        if self.tools.trim().is_empty() {
            return Ok(vec![]);
        }
        let tools: Vec<Value> = serde_json::from_str(&self.tools).map_err(|error| {
            format!("The tools are not a JSON list ({error}): correct them in the settings")
        })?;
        for (index, tool) in tools.iter().enumerate() {
            if !tool["function"]["name"].is_string() {
                return Err(format!(
                    "Tool {} has no function.name: give it one in the settings, as OpenAI\u{2019}s `tools` have",
                    index + 1
                ));
            }
        }
        Ok(tools)
    }
}

/// A number as a person wrote it, between two others. Nothing written is none.
pub fn number<T>(text: &str, least: T, most: T) -> Result<Option<T>, String>
where
    T: Copy + std::str::FromStr + PartialOrd + std::fmt::Display,
{
    match text.trim() {
        "" => Ok(None),
        text => match text.parse() {
            Ok(value) if value >= least && value <= most => Ok(Some(value)),
            _ => Err(format!("a number from {least} to {most}, or nothing")),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::{PRESETS, Settings, number};
    use crate::chat::Sampling;

    #[test]
    fn a_preset_keeps_what_it_is_not_about() {
        let own = Sampling { seed: Some(7), stop: vec!["x".to_owned()], ..Sampling::default() };
        for (index, preset) in PRESETS.iter().enumerate() {
            let sampling = preset.apply(&own);
            assert_eq!((sampling.seed, sampling.stop.len()), (Some(7), 1));
            let matching: Vec<_> = (0..PRESETS.len()).filter(|&n| PRESETS[n].is(&sampling)).collect();
            assert_eq!(matching, [index]);
        }
    }

    #[test]
    fn tools_are_read_or_refused_with_a_reason() {
        let tools = |text: &str| Settings { tools: text.to_owned(), ..Settings::default() }.tools();
        assert_eq!(tools("  \n"), Ok(vec![]));
        assert_eq!(tools(r#"[{"type": "function", "function": {"name": "f"}}]"#).map(|t| t.len()), Ok(1));
        assert!(tools("{").unwrap_err().contains("not a JSON list"));
        assert!(tools(r#"[{"name": "f"}]"#).unwrap_err().contains("Tool 1"));
    }

    #[test]
    fn numbers_stay_between_their_bounds() {
        assert_eq!(number::<f32>(" 0.5 ", 0.0, 2.0), Ok(Some(0.5)));
        assert_eq!(number::<f32>("", 0.0, 2.0), Ok(None));
        for text in ["x", "NaN", "3", "-1", "inf"] {
            assert!(number::<f32>(text, 0.0, 2.0).is_err(), "{text}");
        }
        assert!(number::<u64>("1.5", 0, 9).is_err());
    }
}
