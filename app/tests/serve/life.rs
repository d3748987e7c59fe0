//! How a server begins, survives the loss of its device, and ends.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::json;
use tread::serve::{OpenDevice, Server};
use tread_core::backend::{Backend, CompileOptions, Executable, LocalFuture};
use tread_core::graph::Graph;
use tread_core::tensor::Tensor;
use tread_shaders::{Selector, Wgpu};

use super::gate::Gate;
use super::{Client, cpu, nano, options, start, start_on};

const QUESTION: &str = "Who goes there?";
const ANSWER: &str = "I am a man, sir.";

fn ask(client: &Client) -> std::thread::JoinHandle<super::Answer> {
    let client = client.clone();
    std::thread::spawn(move || client.chat(QUESTION, json!({})))
}

fn content(answer: &super::Answer) -> String {
    answer.good()["choices"][0]["message"]["content"].as_str().unwrap().to_owned()
}

#[test]
fn a_server_that_stops_answers_what_it_has() {
    let gate = Gate::closed();
    let server = start(gate.device(), |options| options.limits.max_sequences = 1);
    let client = Client::new(server.address());
    let running = ask(&client);
    gate.wait_for_steps(1);
    let waiting = ask(&client);
    client.until("both are in", |client| {
        client.metric("vllm:num_requests_waiting") == 1.0 || {
            gate.let_steps(1);
            false
        }
    });
    server.stop();
    gate.open();
    server.wait().unwrap();
    assert_eq!(content(&running.join().unwrap()), ANSWER);
    assert_eq!(content(&waiting.join().unwrap()), ANSWER);
    let refused = client.agent.get(format!("{}/health", client.base)).call();
    assert!(refused.is_err(), "nobody listens any more");
}

#[test]
fn what_is_not_answered_in_time_is_told_so() {
    let gate = Gate::closed();
    let server = start(gate.device(), |options| options.drain_timeout = Duration::from_millis(50));
    let client = Client::new(server.address());
    let late = ask(&client);
    gate.wait_for_steps(1);
    server.stop();
    // The step that is being made ends some time after the time is over.
    let release = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(300));
        gate.let_steps(1);
    });
    server.wait().unwrap();
    release.join().unwrap();
    let error = late.join().unwrap().error(503);
    assert_eq!(error["code"], "shutting_down");
}

#[test]
fn requests_outlive_their_device() {
    let gate = Gate::closed();
    let server = start(gate.device(), |_| ());
    let client = Client::new(server.address());
    let before = ask(&client);
    gate.let_steps(3);
    gate.wait_for_steps(4);
    gate.lose(1);
    client.until("the loss is seen", |client| client.get("/health").status == 503);
    assert_eq!(client.get("/ready").status, 503);
    let meanwhile = ask(&client);
    gate.open();
    assert_eq!(content(&before.join().unwrap()), ANSWER);
    assert_eq!(content(&meanwhile.join().unwrap()), ANSWER);
    assert_eq!(client.get("/health").status, 200);
    assert_eq!(client.metric("tread_device_lost_total"), 1.0);
    server.stop();
    server.wait().unwrap();
}

/// As when all workers of a pool are gone for long: whoever waits is sent away, and the server is there for the next.
#[test]
fn who_needs_what_is_not_there_is_told_to_come_again() {
    let gate = Gate::closed();
    let server = start(gate.device(), |_| ());
    let client = Client::new(server.address());
    let first = ask(&client);
    gate.wait_for_steps(1);
    gate.lack();
    let refused = first.join().unwrap();
    let error = refused.error(503);
    assert_eq!(error["code"], "unavailable");
    assert!(error["message"].as_str().unwrap().contains("no FFN worker answered"), "{error}");
    assert_eq!(refused.headers["retry-after"], "5");
    gate.open();
    assert_eq!(content(&ask(&client).join().unwrap()), ANSWER);
    assert_eq!(client.metric("tread_device_lost_total"), 0.0);
    server.stop();
    server.wait().unwrap();
}

#[test]
fn a_device_that_stays_lost_ends_the_server() {
    let gate = Gate::closed();
    let server = start(gate.device(), |_| ());
    let client = Client::new(server.address());
    let asked = ask(&client);
    gate.wait_for_steps(1);
    gate.break_for_good();
    let error = asked.join().unwrap().error(503);
    assert_eq!(error["code"], "device_lost");
    assert!(error["message"].as_str().unwrap().contains("pulled out"), "{error}");
    let error = format!("{:#}", server.wait().unwrap_err());
    assert!(error.contains("could not be opened again"), "{error}");
}

/// Whoever an engine leaves behind when its device is gone for good goes on at another one, in the middle of an answer, as
/// if nothing had happened: tokens, texts and random numbers.
#[test]
fn requests_outlive_their_engine() {
    let fields = || json!({"temperature": 1.0, "seed": 11, "n": 2, "max_tokens": 24, "logprobs": true});
    let expected = {
        let server = start(cpu(), |_| ());
        Client::new(server.address()).chat(QUESTION, fields()).good()["choices"].clone()
    };
    for steps in [0, 1, 2, 9] {
        let gates = [Gate::closed(), Gate::closed()];
        let server = start_on(gates.iter().map(Gate::device).collect(), |_| ());
        let client = Client::new(server.address());
        let asking = client.clone();
        let asked = std::thread::spawn(move || asking.chat(QUESTION, fields()));
        client.until("an engine has it", |_| gates.iter().any(|gate| gate.begun() > 0));
        let [has, other] = if gates[0].begun() > 0 { [0, 1] } else { [1, 0] };
        gates[has].let_steps(steps);
        gates[has].wait_for_steps(steps + 1);
        gates[has].break_for_good();
        gates[other].open();
        let answer = asked.join().unwrap().good();
        assert_eq!(answer["choices"], expected, "after {steps} steps");
        assert_eq!(client.get("/ready").status, 200, "one engine is left");
        assert_eq!(client.metric("vllm:num_requests_running"), 0.0);
        // New requests do not go where there is nobody.
        for question in ["a", "b", "c", "d"] {
            client.chat(question, json!({"max_tokens": 1})).good();
        }
        server.stop();
        server.wait().unwrap();
    }
}

/// A GPU that the test can take away.
#[derive(Debug)]
struct Shared(Arc<Wgpu>);

impl Backend for Shared {
    fn name(&self) -> &'static str {
        self.0.name()
    }

    fn device(&self) -> String {
        self.0.device()
    }

    fn compile<'a>(
        &'a self,
        graph: &'a Graph,
        weights: &'a [Tensor],
        options: CompileOptions,
        progress: &'a mut dyn FnMut(u64, u64),
    ) -> LocalFuture<'a, tread_core::Result<Box<dyn Executable>>> {
        self.0.compile(graph, weights, options, progress)
    }
}

#[test]
fn a_gpu_that_is_lost_is_opened_again() {
    let current: Arc<Mutex<Option<Arc<Wgpu>>>> = Arc::default();
    let opened = Arc::clone(&current);
    let open: OpenDevice = Box::new(move || {
        let gpu = Arc::new(pollster::block_on(Wgpu::open(Selector::Best))?);
        *opened.lock().unwrap() = Some(Arc::clone(&gpu));
        Ok(Box::new(Shared(gpu)) as Box<dyn Backend>)
    });
    let server = start(open, |_| ());
    let client = Client::new(server.address());
    assert_eq!(content(&client.chat(QUESTION, json!({}))), ANSWER);
    current.lock().unwrap().as_ref().unwrap().destroy();
    assert_eq!(content(&client.chat(QUESTION, json!({}))), ANSWER);
    assert_eq!(client.metric("tread_device_lost_total"), 1.0);
}

#[test]
fn a_model_that_cannot_be_loaded_ends_the_server() {
    let model = nano();
    let options = options(&model);
    let server = Server::start(model, vec![Box::new(|| anyhow::bail!("no such device"))], options).unwrap();
    assert_eq!(server.loaded(), None);
    assert!(format!("{:#}", server.wait().unwrap_err()).contains("no such device"));
}

#[test]
fn a_panic_while_the_model_is_loaded_ends_the_server() {
    let model = nano();
    let options = options(&model);
    let open = || -> anyhow::Result<Box<dyn Backend>> { panic!("a driver gone mad") };
    let server = Server::start(model, vec![Box::new(open)], options).unwrap();
    assert_eq!(server.loaded(), None);
    assert!(format!("{:#}", server.wait().unwrap_err()).contains("panicked"));
}

#[test]
fn options_that_contradict_each_other_are_refused() {
    let refused = |change: fn(&mut tread::serve::ServerOptions)| {
        let model = nano();
        let mut options = options(&model);
        change(&mut options);
        format!("{:#}", Server::start(model, vec![cpu()], options).unwrap_err())
    };
    assert!(refused(|o| o.limits.step_tokens = 4).contains("--step-tokens 4"));
    assert!(refused(|o| o.limits.kv_tokens = 100).contains("--kv-tokens 100"));
    assert!(refused(|o| o.limits.context_length = 1 << 20).contains("--context"));
    assert!(refused(|o| o.cors_origins = vec!["a.example".into()]).contains("--cors-origin a.example"));
    let taken = start(cpu(), |_| ());
    let model = nano();
    let options = tread::serve::ServerOptions { address: taken.address(), ..options(&model) };
    assert!(
        format!("{:#}", Server::start(model, vec![cpu()], options).unwrap_err())
            .contains("another --host or --port")
    );
}
