//! What a request is answered depends on nothing but the request: shown bit for bit with real models on every back end.
//! The engine's own tests (core/src/engine/tests.rs) show the same for its books with a model that is only pretended.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use proptest::prelude::*;
use tread_core::backend::{BLOCK_SIZE, Backend, CompileOptions, Executable, KvDType};
use tread_core::checkpoint::Checkpoint;
use tread_core::cpu::Cpu;
use tread_core::engine::{
    Engine, EngineOptions, Event, Finish, Generate, PromptLogprobs, Request, RequestId, Task,
};
use tread_core::model::Model;
use tread_core::sampling::{SamplingParams, TokenLogprob};
use tread_shaders::{Selector, Wgpu};
use tread_tests::backends::{backends, compile};
use tread_tests::random::rng;

fn model(path: &Path) -> Arc<Model> {
    Arc::new(Model::new("model", Checkpoint::open(path).expect("the checkpoint")).expect("the model"))
}

fn nano() -> Arc<Model> {
    model(&Path::new(env!("CARGO_MANIFEST_DIR")).join("../app/models/nano"))
}

fn smollm2() -> Arc<Model> {
    let file = std::env::var_os("TREAD_SMOLLM2").map(PathBuf::from);
    model(&file.expect("TREAD_SMOLLM2; run `cargo xtask test`, which fetches the model and sets it"))
}

/// How much an engine holds.
#[derive(Clone, Copy, Debug)]
struct Room {
    blocks: usize,
    rows: usize,
    sequences: usize,
    prefix_cache: bool,
}

const ROOMY: Room = Room { blocks: 256, rows: 48, sequences: 16, prefix_cache: true };
/// Two contexts of 256 tokens.
const TIGHT: Room = Room { blocks: 32, ..ROOMY };

impl Room {
    fn executable(self, model: &Model, backend: &dyn Backend) -> Box<dyn Executable> {
        let options = CompileOptions {
            kv_dtype: KvDType::F32,
            kv_blocks: self.blocks,
            max_rows: self.rows,
            max_outputs: 16,
            max_table: self.sequences * 16,
            lanes: 1,
        };
        compile(backend, &model.graph, &model.weights, options)
    }

    fn engine(self, model: &Arc<Model>, backend: &dyn Backend) -> Engine {
        let options = EngineOptions {
            context_length: 16 * BLOCK_SIZE,
            max_sequences: self.sequences,
            prefix_cache: self.prefix_cache,
        };
        Engine::new(Arc::clone(model), self.executable(model, backend), options)
    }
}

/// What one choice was answered: tokens, text, the scores to the last bit, and the end.
type Answer = (Vec<u32>, String, Vec<TokenLogprob>, Option<Finish>);

/// What a request was answered: its prompt's scores and its choices.
#[derive(Clone, Debug, Default, PartialEq)]
struct Answers {
    prompt: Vec<Option<TokenLogprob>>,
    choices: BTreeMap<usize, Answer>,
}

/// Runs the requests, each submitted before the step it names; `at_step` may interfere.
fn run(
    engine: &mut Engine,
    requests: &[(usize, Request)],
    mut at_step: impl FnMut(&mut Engine, usize),
) -> Vec<Answers> {
    let mut answers: HashMap<RequestId, Answers> = HashMap::new();
    for now in 0.. {
        for (id, (arrives, request)) in (0..).map(RequestId).zip(requests) {
            if *arrives == now {
                engine.submit(id, request.clone()).expect("a request that fits");
            }
        }
        at_step(engine, now);
        for (id, event) in pollster::block_on(engine.step()).expect("a step") {
            let answers = answers.entry(id).or_default();
            match event {
                Event::Prompt { logprobs, .. } => answers.prompt = logprobs,
                Event::Delta(delta) => {
                    let (tokens, text, scores, finish) = answers.choices.entry(delta.choice).or_default();
                    tokens.extend(delta.token);
                    text.push_str(&delta.text);
                    scores.extend(delta.logprob);
                    *finish = delta.finish;
                }
                Event::Failed(error) => panic!("{id:?}: {error}"),
                Event::Features(_) | Event::Done => {}
            }
        }
        if !engine.has_work() && requests.iter().all(|(arrives, _)| *arrives <= now) {
            break;
        }
    }
    assert_eq!(engine.stats().blocks_used, 0, "every block came back");
    (0..requests.len() as u64).map(|id| answers.remove(&RequestId(id)).expect("an answer")).collect()
}

fn each_alone(
    room: Room,
    model: &Arc<Model>,
    backend: &dyn Backend,
    requests: &[(usize, Request)],
) -> Vec<Answers> {
    // Without a prefix cache, so that nothing of one request can serve another.
    let mut engine = Room { prefix_cache: false, ..room }.engine(model, backend);
    requests
        .iter()
        .map(|(_, request)| run(&mut engine, &[(0, request.clone())], |_, _| {}).remove(0))
        .collect()
}

fn generate(seed: Option<u64>, n: usize, max_tokens: usize) -> Generate {
    let sampling = match seed {
        None => SamplingParams::greedy(),
        Some(_) => {
            SamplingParams { temperature: 1.2, top_p: 0.98, min_p: 0.0, top_k: 0, seed, ..Default::default() }
        }
    };
    Generate { sampling, n, max_tokens, logprobs: Some(3), ..Generate::default() }
}

fn request(prompt: Vec<u32>, generate: Generate) -> Request {
    Request { prompt, task: Task::Generate(Box::new(generate)) }
}

/// Greedy and seeded requests with prompts that often begin alike, arriving over the first steps.
fn mixed(model: &Model, seed: u64, count: usize, longest: usize) -> Vec<(usize, Request)> {
    let mut rng = rng(seed);
    let vocab = model.config.vocab_size() as u32;
    let common: Vec<u32> = (0..longest).map(|_| rng.random_range(0..vocab)).collect();
    (0..count)
        .map(|i| {
            let shared = rng.random_range(0..longest);
            let own = rng.random_range(1..=longest - shared);
            let mut prompt = common[..shared].to_vec();
            prompt.extend((0..own).map(|_| rng.random_range(0..vocab)));
            let seed = (i % 3 > 0).then(|| rng.random_range(0..1000));
            let n = if i % 5 == 4 { 3 } else { 1 };
            let mut generate = generate(seed, n, rng.random_range(1..24));
            generate.prompt_logprobs =
                (i % 7 == 6).then_some(PromptLogprobs { from: prompt.len() / 2, top: 1 });
            (rng.random_range(0..20), request(prompt, generate))
        })
        .collect()
}

#[test]
fn sixteen_mixed_requests_are_answered_as_each_alone() {
    let model = nano();
    for backend in backends() {
        let requests = mixed(&model, 1, 16, 90);
        let alone = each_alone(ROOMY, &model, &*backend, &requests);
        for room in [ROOMY, Room { prefix_cache: false, ..ROOMY }, TIGHT] {
            let mut engine = room.engine(&model, &*backend);
            let together = run(&mut engine, &requests, |_, _| {});
            for (i, (together, alone)) in together.iter().zip(&alone).enumerate() {
                assert_eq!(together, alone, "request {i} on {} with {room:?}", backend.name());
            }
            let stats = engine.stats();
            assert_eq!(stats.prefix_hits > 0, room.prefix_cache, "the cache was used");
            assert_eq!(stats.preemptions > 0, room.blocks == TIGHT.blocks, "blocks ran out");
        }
    }
}

#[test]
fn a_real_chat_model_too() {
    let model = smollm2();
    let prompts =
        ["The capital of France is", "The capital of France is a city that", "def fib(n):\n", "1, 2, 3,"];
    let tokenizer = model.tokenizer().expect("the tokenizer");
    let requests: Vec<_> = (0..)
        .zip(prompts)
        .map(|(i, text)| {
            let prompt = tokenizer.encode(text, false).expect("tokens");
            (2 * i, request(prompt, generate((i % 2 == 1).then_some(i as u64), 1, 6)))
        })
        .collect();
    for backend in backends() {
        let alone = each_alone(ROOMY, &model, &*backend, &requests);
        let together = run(&mut ROOMY.engine(&model, &*backend), &requests, |_, _| {});
        assert_eq!(together, alone, "{}", backend.name());
        assert!(together[0].choices[&0].1.contains("Paris"), "{:?}", together[0]);
    }
}

#[test]
fn four_choices_are_four_requests_with_the_next_seeds() {
    let model = nano();
    for backend in backends() {
        let mut engine = ROOMY.engine(&model, &*backend);
        let prompt: Vec<u32> = (100..137).collect();
        let four = run(&mut engine, &[(0, request(prompt.clone(), generate(Some(5), 4, 20)))], |_, _| {});
        let distinct: std::collections::BTreeSet<_> = four[0].choices.values().map(|a| &a.0).collect();
        assert!(distinct.len() > 1, "seeds matter");
        for choice in 0..4 {
            let one = request(prompt.clone(), generate(Some(5 + choice as u64), 1, 20));
            let one = run(&mut engine, &[(0, one)], |_, _| {});
            assert_eq!(four[0].choices[&choice], one[0].choices[&0], "{}", backend.name());
        }
    }
}

/// The device is destroyed in the middle, as by a driver crash.
#[test]
fn after_a_lost_device_requests_go_on_on_the_next() {
    let model = nano();
    let open = || pollster::block_on(Wgpu::open(Selector::default())).expect("an adapter");
    let first = open();
    let requests = mixed(&model, 2, 6, 40);
    let alone = each_alone(ROOMY, &model, &first, &requests);
    let mut engine = ROOMY.engine(&model, &first);
    let mut lost = 0;
    let together = run(&mut engine, &requests, |engine, now| {
        if now == 22 {
            assert!(engine.has_work());
            first.destroy();
            let error = pollster::block_on(engine.step()).expect_err("a step on a destroyed device");
            assert!(matches!(error, tread_core::Error::Device(_)), "{error}");
            lost += 1;
            engine.recover(ROOMY.executable(&model, &open()));
        }
    });
    assert_eq!((together, lost), (alone, 1));
}

/// The scores of a text are those that choosing its tokens one by one reports.
#[test]
fn a_text_is_scored_as_it_is_generated() {
    let model = nano();
    for backend in backends() {
        let mut engine = ROOMY.engine(&model, &*backend);
        let start: Vec<u32> = (300..340).collect();
        let written =
            run(&mut engine, &[(0, request(start.clone(), generate(None, 1, 20)))], |_, _| {}).remove(0);
        let (tokens, _, scores, _) = &written.choices[&0];
        let mut text = start.clone();
        text.extend(tokens);
        let prompt_logprobs = Some(PromptLogprobs { from: start.len(), top: 3 });
        let score = Generate { prompt_logprobs, ..generate(None, 1, 0) };
        let scored = run(&mut engine, &[(0, request(text, score))], |_, _| {}).remove(0);
        let scored: Vec<_> = scored.prompt.into_iter().flatten().collect();
        assert_eq!(&scored, scores, "{}", backend.name());
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 6, max_shrink_iters: 8, ..ProptestConfig::default() })]
    /// Random schedules in random rooms.
    #[test]
    fn any_schedule_gives_the_same_answers(seed: u64, blocks in 16..64usize, rows in 8..64usize, sequences in 3..9usize) {
        let model = nano();
        let requests = mixed(&model, seed, 6, 70);
        let alone = each_alone(ROOMY, &model, &Cpu::new(), &requests);
        let room = Room { blocks, rows, sequences, prefix_cache: seed % 2 == 0 };
        let together = run(&mut room.engine(&model, &Cpu::new()), &requests, |_, _| {});
        prop_assert_eq!(together, alone);
    }
}
