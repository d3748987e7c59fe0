//! Accelerators: a table inside the binary, which users extend with their own file.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context as _, Result, bail};
use serde::{Deserialize, Serialize};

/// One kind of GPU, as it stands in its server.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Hardware {
    pub(crate) name: String,
    /// US dollars a GPU.
    pub(crate) price_per_hour: f64,
    pub(crate) bf16_flops: f64,
    /// None: weights and KV are INT8 and computing is BF16.
    pub(crate) fp8_flops: Option<f64>,
    pub(crate) memory_bytes: f64,
    /// Bytes a second.
    pub(crate) memory_bandwidth: f64,
    /// Bytes a second of a server, in one direction.
    pub(crate) network_bandwidth: f64,
    pub(crate) gpus_per_server: usize,
}

impl Hardware {
    /// Operations a second with eight-bit weights.
    pub(crate) fn flops(&self) -> f64 {
        self.fp8_flops.unwrap_or(self.bf16_flops)
    }

    /// Operations a byte at which computing takes as long as reading.
    pub(crate) fn roofline(&self) -> f64 {
        self.flops() / self.memory_bandwidth
    }

    /// US dollars an operation.
    pub(crate) fn price_per_flop(&self) -> f64 {
        self.price_per_hour / 3600.0 / self.flops()
    }

    /// US dollars a byte read.
    pub(crate) fn price_per_byte(&self) -> f64 {
        self.price_per_hour / 3600.0 / self.memory_bandwidth
    }

    /// Bytes a second that a GPU has of its server's network.
    pub(crate) fn link(&self) -> f64 {
        self.network_bandwidth / self.gpus_per_server as f64
    }

    fn check(&self, key: &str) -> Result<()> {
        let rates = [self.price_per_hour, self.bf16_flops, self.flops(), self.memory_bytes];
        let rates = rates.into_iter().chain([self.memory_bandwidth, self.network_bandwidth]);
        if rates.into_iter().any(|rate| !(rate.is_finite() && rate > 0.0)) || self.gpus_per_server == 0 {
            bail!("hardware `{key}`: every number must be above 0");
        }
        Ok(())
    }
}

/// All that is known, by key.
#[derive(Debug)]
pub(crate) struct Table(BTreeMap<String, Hardware>);

impl Table {
    /// What the binary knows, and what `file` adds or replaces.
    pub(crate) fn load(file: Option<&Path>) -> Result<Self> {
        let mut table = parse(include_str!("../../data/plan/hardware.toml"))?;
        if let Some(file) = file {
            let text = std::fs::read_to_string(file)
                .with_context(|| format!("cannot read the hardware file {}", file.display()))?;
            table.extend(parse(&text).with_context(|| format!("hardware file {}", file.display()))?);
        }
        Ok(Self(table))
    }

    pub(crate) fn find(&self, key: &str) -> Result<&Hardware> {
        self.0.get(&key.to_lowercase()).with_context(|| {
            let known = self.0.keys().map(String::as_str).collect::<Vec<_>>().join(", ");
            format!("there is no hardware `{key}`; known are {known}, and --hardware-file FILE adds more")
        })
    }
}

fn parse(text: &str) -> Result<BTreeMap<String, Hardware>> {
    let table: BTreeMap<String, Hardware> = toml::from_str(text)?;
    for (key, hardware) in &table {
        hardware.check(key)?;
    }
    Ok(table.into_iter().map(|(key, hardware)| (key.to_lowercase(), hardware)).collect())
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::Table;

    #[test]
    fn a_file_adds_and_replaces() {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        let row = "price_per_hour = 1.0\nbf16_flops = 1e15\nmemory_bytes = 1e11\nmemory_bandwidth = 1e12\n\
                   network_bandwidth = 1e11\ngpus_per_server = 4\n";
        write!(file, "[mine]\nname = \"Mine\"\n{row}\n[H800]\nname = \"cheap H800\"\n{row}").unwrap();
        let table = Table::load(Some(file.path())).unwrap();
        assert_eq!(table.find("mine").unwrap().flops(), 1e15);
        assert_eq!(table.find("h800").unwrap().name, "cheap H800");
        assert_eq!(table.find("H20").unwrap().name, "H20");
    }

    #[test]
    fn errors_name_the_thing() {
        let unknown = Table::load(None).unwrap().find("h900").unwrap_err().to_string();
        assert!(unknown.contains("`h900`") && unknown.contains("910b, a100"), "{unknown}");
        let mut file = tempfile::NamedTempFile::new().unwrap();
        writeln!(file, "[mine]\nname = \"Mine\"\nprice = 1").unwrap();
        let wrong = format!("{:#}", Table::load(Some(file.path())).unwrap_err());
        assert!(wrong.contains("`price`") && wrong.contains("price_per_hour"), "{wrong}");
        let missing = format!("{:#}", Table::load(Some("no/such.toml".as_ref())).unwrap_err());
        assert!(missing.contains("no/such.toml"), "{missing}");
    }
}
