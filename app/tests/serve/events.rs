//! The event stream says what the metrics say.

use std::io::{BufRead as _, BufReader};
use std::time::Duration;

use serde_json::{Value, json};
use tread_core::monitor::{Hello, Standing, StepEvent};

use super::gate::Gate;
use super::{Client, cpu, start};

/// The events of a stream as they come: their names and data.
fn listen(client: &Client, path: &str) -> impl Iterator<Item = (String, Value)> + use<> {
    let mut request = client.agent.get(format!("{}{path}", client.base));
    if let Some(key) = &client.key {
        request = request.header("authorization", format!("Bearer {key}"));
    }
    let response = request.call().unwrap();
    assert_eq!(response.status(), 200);
    assert_eq!(response.headers()["content-type"], "text/event-stream");
    let lines = BufReader::new(response.into_body().into_reader()).lines().map_while(Result::ok);
    let mut name = String::new();
    lines.filter_map(move |line| {
        if let Some(event) = line.strip_prefix("event: ") {
            event.clone_into(&mut name);
        }
        let data = line.strip_prefix("data: ")?;
        Some((name.clone(), serde_json::from_str(data).unwrap()))
    })
}

fn standing(value: &Value) -> Standing {
    serde_json::from_value(value.clone()).unwrap()
}

/// All steps up to where the engine stands as `last` wants it.
fn steps_until(
    events: &mut impl Iterator<Item = (String, Value)>,
    last: impl Fn(&Standing) -> bool,
) -> Vec<StepEvent> {
    let mut steps = vec![];
    for (name, data) in events {
        if name != "steps" {
            continue;
        }
        let told = data.as_array().unwrap();
        steps.extend(told.iter().map(|s| serde_json::from_value::<StepEvent>(s["step"].clone()).unwrap()));
        if last(&standing(&told.last().unwrap()["standing"])) {
            return steps;
        }
    }
    panic!("the stream ended");
}

#[test]
fn steps_add_up_to_the_metrics() {
    let server = start(cpu(), |_| ());
    let client = Client::new(server.address());
    let mut events = listen(&client, "/events");
    let (name, hello) = events.next().unwrap();
    let hello: Hello = serde_json::from_value(hello).unwrap();
    assert_eq!((name.as_str(), hello.model.as_str(), hello.context), ("hello", "nano", 256));
    assert!(hello.device.starts_with("cpu, ") && hello.pools.len() == 1 && hello.pools[0].sides.len() == 2);
    let (name, first) = events.next().unwrap();
    let first = standing(&first);
    assert_eq!(name, "standing");
    assert_eq!(
        first.weight_bytes as f64,
        client.metric("tread_device_bytes") - (first.kv_bytes + first.scratch_bytes) as f64
    );
    assert!(first.blocks == 2048 / 16 && first.running == 0 && first.kv_bytes > 0);

    client.chat("Who goes there?", json!({})).good();
    client.chat("Who goes there?", json!({"n": 3, "temperature": 1, "seed": 5})).good();
    client.complete("To be, or", json!({})).good();
    let tokens = client.metric("vllm:generation_tokens_total");
    let steps = steps_until(&mut events, |s| s.generation_tokens as f64 == tokens && s.running == 0);
    let agree = |metric: &str, found: f64| {
        let expected = client.metric(metric);
        assert!(expected > 0.0 && (found - expected).abs() < 1e-6, "{metric}: {found} of {expected}");
    };
    let all = |times: fn(&StepEvent) -> &[f64]| steps.iter().flat_map(move |s| times(s).iter().copied());
    agree("vllm:time_to_first_token_seconds_count", all(|s| &s.first_tokens_s).count() as f64);
    agree("vllm:time_to_first_token_seconds_sum", all(|s| &s.first_tokens_s).sum());
    agree("vllm:inter_token_latency_seconds_count", all(|s| &s.token_gaps_s).count() as f64);
    agree("vllm:inter_token_latency_seconds_sum", all(|s| &s.token_gaps_s).sum());
    agree("vllm:iteration_tokens_total_count", steps.len() as f64);
    let rows: usize = steps.iter().flat_map(|s| &s.rows).map(|r| r.rows).sum();
    agree("vllm:iteration_tokens_total_sum", rows as f64);
    assert!(steps.iter().map(|s| s.step).eq(1..=steps.len() as u64), "none is missing, none comes twice");
    assert!(steps.iter().all(|s| s.ops.is_empty()), "nobody asked for ops");
    let mut later = listen(&client, "/events");
    later.next().unwrap();
    let now = standing(&later.next().unwrap().1);
    assert_eq!(now.prompt_tokens as f64, client.metric("vllm:prompt_tokens_total"));
    assert_eq!(now.prefix_hits as f64, client.metric("vllm:prefix_cache_hits_total"));
}

#[test]
fn ops_are_measured_while_somebody_asks() {
    let server = start(cpu(), |_| ());
    let client = Client::new(server.address());
    let mut events = listen(&client, "/events?ops=1");
    events.next().unwrap();
    client.chat("Who goes there?", json!({})).good();
    let steps = steps_until(&mut events, |s| s.running == 0);
    let measured = steps.iter().find(|s| !s.ops.is_empty()).unwrap();
    assert!(measured.ops.iter().any(|op| op.name == "attention" && op.layer == Some(0)));
    let sum: f64 = measured.ops.iter().map(|op| op.us).sum();
    assert!(sum > 0.0 && sum <= measured.compute_us as f64 + 1.0, "{sum} of {}", measured.compute_us);
}

#[test]
fn a_change_without_a_step_is_told() {
    let gate = Gate::closed();
    let server = start(gate.device(), |options| options.request_timeout = Duration::from_secs(1));
    let client = Client::new(server.address());
    let mut events = listen(&client, "/events");
    let asked = {
        let client = client.clone();
        std::thread::spawn(move || client.chat("Who goes there?", json!({})))
    };
    gate.wait_for_steps(1);
    std::thread::sleep(Duration::from_millis(1100));
    gate.let_steps(1);
    assert!(asked.join().unwrap().status >= 400, "its time was over");
    let running = |standing: &Value| standing["running"] == json!(1);
    events.find(|(name, data)| name == "steps" && running(&data[0]["standing"])).unwrap();
    events.find(|(name, data)| name == "standing" && !running(data)).unwrap();
}

#[test]
fn a_key_is_asked_for_and_a_server_that_stops_ends_the_stream() {
    let server = start(cpu(), |options| options.api_keys = vec!["secret".to_owned()]);
    let mut client = Client::new(server.address());
    client.get("/events").error(401);
    client.key = Some("secret".to_owned());
    let mut events = listen(&client, "/events");
    assert_eq!(events.next().unwrap().0, "hello");
    server.stop();
    server.wait().unwrap();
    assert!(events.all(|(name, _)| name == "standing"));
}
