//! Where an engine stands at a moment, from either source.

use serde::{Deserialize, Serialize};
use tread_core::monitor::Standing;

use super::prometheus::Scrape;

/// Counters since the engine started and gauges of now. What a source does not tell is none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Snapshot {
    /// Sequences that are being computed.
    pub running: Option<f64>,
    /// Requests that wait.
    pub waiting: Option<f64>,
    /// Part of the KV cache that running sequences hold.
    pub cache_usage: Option<f64>,
    /// Tokens of prompts, counted.
    pub prompt_tokens: Option<f64>,
    /// Tokens written, counted.
    pub generation_tokens: Option<f64>,
    /// Answers that ended, counted.
    pub finished: Option<f64>,
    /// Prompt tokens looked up in the prefix cache, counted.
    pub prefix_queries: Option<f64>,
    /// Of these, how many it held, counted.
    pub prefix_hits: Option<f64>,
    /// Sequences that were computed again, counted.
    pub preemptions: Option<f64>,
    /// Device memory: weights.
    pub weight_bytes: Option<f64>,
    /// Device memory: KV cache.
    pub kv_bytes: Option<f64>,
    /// Device memory: activations and staging.
    pub scratch_bytes: Option<f64>,
}

impl Snapshot {
    /// Part of the looked up prompt tokens that were cached, since the engine started.
    pub fn prefix_rate(&self) -> Option<f64> {
        let queries = self.prefix_queries.filter(|queries| *queries > 0.0)?;
        Some(self.prefix_hits? / queries)
    }

    /// All device memory that is known of.
    pub fn device_bytes(&self) -> Option<f64> {
        Some(self.weight_bytes? + self.kv_bytes? + self.scratch_bytes.unwrap_or(0.0))
    }
}

impl From<&Scrape> for Snapshot {
    fn from(scrape: &Scrape) -> Self {
        let bytes = |kind| scrape.labelled("tread_device_bytes", "kind", kind);
        Self {
            running: scrape.sum("vllm:num_requests_running"),
            waiting: scrape.sum("vllm:num_requests_waiting"),
            cache_usage: scrape.sum("vllm:kv_cache_usage_perc"),
            prompt_tokens: scrape.sum("vllm:prompt_tokens_total"),
            generation_tokens: scrape.sum("vllm:generation_tokens_total"),
            // A counter with labels is not there until it has counted.
            finished: Some(scrape.sum("vllm:request_success_total").unwrap_or(0.0)),
            prefix_queries: scrape.sum("vllm:prefix_cache_queries_total"),
            prefix_hits: scrape.sum("vllm:prefix_cache_hits_total"),
            preemptions: scrape.sum("vllm:num_preemptions_total"),
            weight_bytes: bytes("weights"),
            kv_bytes: bytes("kv"),
            scratch_bytes: bytes("scratch"),
        }
    }
}

impl From<&Standing> for Snapshot {
    fn from(standing: &Standing) -> Self {
        Self {
            running: Some(standing.running as f64),
            waiting: Some(standing.waiting as f64),
            cache_usage: Some(standing.blocks_used as f64 / standing.blocks.max(1) as f64),
            prompt_tokens: Some(standing.prompt_tokens as f64),
            generation_tokens: Some(standing.generation_tokens as f64),
            finished: None,
            prefix_queries: Some(standing.prefix_queries as f64),
            prefix_hits: Some(standing.prefix_hits as f64),
            preemptions: Some(standing.preemptions as f64),
            weight_bytes: Some(standing.weight_bytes as f64),
            kv_bytes: Some(standing.kv_bytes as f64),
            scratch_bytes: Some(standing.scratch_bytes as f64),
        }
    }
}

#[cfg(test)]
mod tests {
    use tread_core::monitor::Standing;

    use super::{Scrape, Snapshot};

    #[test]
    fn metrics_are_taken_as_they_are() {
        let text = "vllm:num_requests_running 2\nvllm:generation_tokens_total 41\n\
            vllm:request_success_total{finished_reason=\"stop\"} 1\n\
            vllm:request_success_total{finished_reason=\"length\"} 2\n\
            tread_device_bytes{kind=\"weights\"} 100\ntread_device_bytes{kind=\"kv\"} 20\n";
        let snapshot = Snapshot::from(&Scrape::parse(text));
        assert_eq!(snapshot.running, Some(2.0));
        assert_eq!(snapshot.waiting, None);
        assert_eq!(snapshot.generation_tokens, Some(41.0));
        assert_eq!(snapshot.finished, Some(3.0));
        assert_eq!(snapshot.device_bytes(), Some(120.0));
        assert_eq!(snapshot.prefix_rate(), None);
    }

    #[test]
    fn a_worker_tells_the_same() {
        let standing =
            Standing { blocks: 8, blocks_used: 2, prefix_queries: 10, prefix_hits: 5, ..Standing::default() };
        let snapshot = Snapshot::from(&standing);
        assert_eq!(snapshot.cache_usage, Some(0.25));
        assert_eq!(snapshot.prefix_rate(), Some(0.5));
        assert_eq!(Snapshot::from(&Standing::default()).cache_usage, Some(0.0));
    }
}
