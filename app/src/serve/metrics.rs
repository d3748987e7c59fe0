//! Prometheus metrics: vLLM's names, so that its dashboards work, and a few of our own.

use std::sync::Arc;
use std::time::Duration;

use metrics::{Counter, Gauge, Histogram, counter, describe_counter, describe_gauge, describe_histogram};
use metrics::{gauge, histogram, with_local_recorder};
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle, PrometheusRecorder};
use tread_core::monitor::{Standing, StepEvent};

/// Seconds until a first token, and of whole requests.
const LONG: &[f64] = &[
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0,
    80.0, 160.0, 640.0,
];
/// Seconds between tokens, and of parts of a step.
const SHORT: &[f64] = &[
    0.0001, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0,
    2.5, 5.0, 10.0,
];
/// Tokens.
const COUNTS: &[f64] = &[
    1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 48.0, 64.0, 96.0, 128.0, 192.0, 256.0, 512.0, 1024.0, 2048.0, 4096.0,
    8192.0, 16384.0, 65536.0,
];

/// The metrics of one server.
pub(super) struct Metrics {
    recorder: PrometheusRecorder,
    handle: PrometheusHandle,
    pub(super) live: Live,
}

/// Handles of what is counted at every step or token, so that nothing is looked up there.
pub(super) struct Live {
    running: Gauge,
    waiting: Gauge,
    cache_usage: Gauge,
    prefix_queries: Counter,
    prefix_hits: Counter,
    preemptions: Counter,
    iteration_tokens: Histogram,
    schedule: Histogram,
    compute: Histogram,
    sample: Histogram,
    dispatches: Gauge,
    weight_bytes: Gauge,
    kv_bytes: Gauge,
    scratch_bytes: Gauge,
    ffn_connections: Gauge,
    ffn_calls: Counter,
    ffn_resent: Counter,
    ffn_dropped: Counter,
    pub(super) device_lost: Counter,
    pub(super) prompt_tokens: Counter,
    pub(super) generation_tokens: Counter,
    pub(super) time_to_first_token: Histogram,
    pub(super) inter_token_latency: Histogram,
    /// What older versions of vLLM call the same.
    pub(super) time_per_output_token: Histogram,
    pub(super) e2e_latency: Histogram,
    pub(super) queue_time: Histogram,
    pub(super) prefill_time: Histogram,
    pub(super) decode_time: Histogram,
    pub(super) request_prompt_tokens: Histogram,
    pub(super) request_generation_tokens: Histogram,
}

impl std::fmt::Debug for Metrics {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Metrics").finish_non_exhaustive()
    }
}

impl Metrics {
    /// Every metric carries the model's name as the label `model_name`. Nothing global is installed, so that one process
    /// may hold several servers.
    pub(super) fn new(model_name: &str) -> anyhow::Result<Arc<Self>> {
        let mut builder =
            PrometheusBuilder::new().add_global_label("model_name", model_name).set_buckets(LONG)?;
        for (name, buckets) in [
            ("vllm:inter_token_latency_seconds", SHORT),
            ("vllm:time_per_output_token_seconds", SHORT),
            ("tread_step_seconds", SHORT),
            ("vllm:iteration_tokens_total", COUNTS),
            ("vllm:request_prompt_tokens", COUNTS),
            ("vllm:request_generation_tokens", COUNTS),
        ] {
            builder = builder.set_buckets_for_metric(Matcher::Full(name.to_owned()), buckets)?;
        }
        let recorder = builder.build_recorder();
        let handle = recorder.handle();
        let live = with_local_recorder(&recorder, || {
            describe();
            Live::register()
        });
        Ok(Arc::new(Self { recorder, handle, live }))
    }

    /// The text Prometheus reads.
    pub(super) fn render(&self) -> String {
        self.handle.render()
    }

    /// Folds what was measured into its buckets; until then every value is kept.
    pub(super) fn upkeep(&self) {
        self.handle.run_upkeep();
    }

    /// A choice ended: `stop`, `length`, `abort` or `error`.
    pub(super) fn finished(&self, reason: &'static str) {
        let count = || counter!("vllm:request_success_total", "finished_reason" => reason).increment(1);
        with_local_recorder(&self.recorder, count);
    }

    /// A request was refused before the engine saw it.
    pub(super) fn rejected(&self, reason: &'static str) {
        let count = || counter!("tread_requests_rejected_total", "reason" => reason).increment(1);
        with_local_recorder(&self.recorder, count);
    }

    /// A request was answered. `path` is that of the route, not of the request: its values are few.
    pub(super) fn http(&self, method: &str, path: &str, status: u16, took: Duration) {
        let (method, path, status) = (method.to_owned(), path.to_owned(), status.to_string());
        with_local_recorder(&self.recorder, || {
            let labels = [("method", method.clone()), ("path", path.clone()), ("status", status)];
            counter!("http_requests_total", &labels).increment(1);
            let labels = [("method", method), ("path", path)];
            histogram!("http_request_duration_seconds", &labels).record(took);
        });
    }

    /// A step was made.
    pub(super) fn step(&self, step: &StepEvent) {
        let live = &self.live;
        live.iteration_tokens.record(step.rows.iter().map(|sequence| sequence.rows).sum::<usize>() as f64);
        live.schedule.record(Duration::from_micros(step.schedule_us));
        live.compute.record(Duration::from_micros(step.compute_us));
        live.sample.record(Duration::from_micros(step.sample_us));
        live.dispatches.set(step.dispatches as f64);
    }

    /// Where the engines stand now.
    pub(super) fn standing(&self, standing: &Standing) {
        let live = &self.live;
        live.running.set(standing.running as f64);
        live.waiting.set(standing.waiting as f64);
        live.cache_usage.set(standing.blocks_used as f64 / standing.blocks.max(1) as f64);
        live.prefix_queries.absolute(standing.prefix_queries);
        live.prefix_hits.absolute(standing.prefix_hits);
        live.preemptions.absolute(standing.preemptions);
        live.weight_bytes.set(standing.weight_bytes as f64);
        live.kv_bytes.set(standing.kv_bytes as f64);
        live.scratch_bytes.set(standing.scratch_bytes as f64);
        live.ffn_connections.set(standing.pool.workers as f64);
        live.ffn_calls.absolute(standing.pool.calls);
        live.ffn_resent.absolute(standing.pool.resent);
        live.ffn_dropped.absolute(standing.pool.dropped);
    }
}

impl Live {
    fn register() -> Self {
        let phase = |phase: &'static str| histogram!("tread_step_seconds", "phase" => phase);
        let bytes = |kind: &'static str| gauge!("tread_device_bytes", "kind" => kind);
        Self {
            running: gauge!("vllm:num_requests_running"),
            waiting: gauge!("vllm:num_requests_waiting"),
            cache_usage: gauge!("vllm:kv_cache_usage_perc"),
            prefix_queries: counter!("vllm:prefix_cache_queries_total"),
            prefix_hits: counter!("vllm:prefix_cache_hits_total"),
            preemptions: counter!("vllm:num_preemptions_total"),
            iteration_tokens: histogram!("vllm:iteration_tokens_total"),
            schedule: phase("schedule"),
            compute: phase("compute"),
            sample: phase("sample"),
            dispatches: gauge!("tread_step_dispatches"),
            weight_bytes: bytes("weights"),
            kv_bytes: bytes("kv"),
            scratch_bytes: bytes("scratch"),
            ffn_connections: gauge!("tread_ffn_connections"),
            ffn_calls: counter!("tread_ffn_calls_total"),
            ffn_resent: counter!("tread_ffn_calls_resent_total"),
            ffn_dropped: counter!("tread_ffn_answers_dropped_total"),
            device_lost: counter!("tread_device_lost_total"),
            prompt_tokens: counter!("vllm:prompt_tokens_total"),
            generation_tokens: counter!("vllm:generation_tokens_total"),
            time_to_first_token: histogram!("vllm:time_to_first_token_seconds"),
            inter_token_latency: histogram!("vllm:inter_token_latency_seconds"),
            time_per_output_token: histogram!("vllm:time_per_output_token_seconds"),
            e2e_latency: histogram!("vllm:e2e_request_latency_seconds"),
            queue_time: histogram!("vllm:request_queue_time_seconds"),
            prefill_time: histogram!("vllm:request_prefill_time_seconds"),
            decode_time: histogram!("vllm:request_decode_time_seconds"),
            request_prompt_tokens: histogram!("vllm:request_prompt_tokens"),
            request_generation_tokens: histogram!("vllm:request_generation_tokens"),
        }
    }
}

fn describe() {
    for (name, about) in [
        ("vllm:num_requests_running", "Sequences that are being computed."),
        ("vllm:num_requests_waiting", "Requests that wait to be computed."),
        ("vllm:kv_cache_usage_perc", "Part of the KV cache that running sequences hold; 1 is all."),
        ("tread_step_dispatches", "Kernel launches of the last step."),
        ("tread_device_bytes", "Device memory, by what it is for."),
        ("tread_ffn_connections", "Connections of engines to FFN workers."),
    ] {
        describe_gauge!(name, about);
    }
    for (name, about) in [
        ("vllm:prefix_cache_queries_total", "Prompt tokens looked up in the prefix cache."),
        ("vllm:prefix_cache_hits_total", "Prompt tokens that the prefix cache held."),
        ("vllm:num_preemptions_total", "Sequences that lost their cache blocks and were computed again."),
        ("vllm:prompt_tokens_total", "Tokens of prompts."),
        ("vllm:generation_tokens_total", "Tokens chosen."),
        ("vllm:request_success_total", "Sequences that ended, by reason."),
        ("tread_device_lost_total", "Times the device failed."),
        ("tread_ffn_calls_total", "Calls to FFN workers."),
        ("tread_ffn_calls_resent_total", "Calls sent once more because a worker was late, gone, or refused."),
        ("tread_ffn_answers_dropped_total", "Answers of FFN workers that nobody waited for any more."),
        ("tread_requests_rejected_total", "Requests refused before they were computed, by reason."),
        ("http_requests_total", "HTTP requests answered."),
    ] {
        describe_counter!(name, about);
    }
    for (name, about) in [
        ("vllm:iteration_tokens_total", "Token rows of a step."),
        ("vllm:time_to_first_token_seconds", "From a request's arrival to its first token."),
        ("vllm:inter_token_latency_seconds", "Between two tokens of a sequence."),
        ("vllm:time_per_output_token_seconds", "Older name of vllm:inter_token_latency_seconds."),
        ("vllm:e2e_request_latency_seconds", "From a request's arrival to its end."),
        ("vllm:request_queue_time_seconds", "From a request's arrival to its first step."),
        ("vllm:request_prefill_time_seconds", "From a request's first step to its first token."),
        ("vllm:request_decode_time_seconds", "From a request's first token to its end."),
        ("vllm:request_prompt_tokens", "Tokens of a request's prompt."),
        ("vllm:request_generation_tokens", "Tokens of a sequence's answer."),
        ("tread_step_seconds", "Time of a step, by phase."),
        ("http_request_duration_seconds", "From an HTTP request to the start of its answer."),
    ] {
        describe_histogram!(name, about);
    }
}
