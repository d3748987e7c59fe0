//! What every transport must do. A new one is added to the tests at the end.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use rand::RngExt as _;
use tokio::runtime::Runtime;
use tread::afd::hello::{Hello, PROTOCOL, Terms};
use tread::afd::host::{Host, Setup};
use tread::afd::pool::{Pool, Static};
use tread::afd::transport::{Carrier, Grpc, GrpcOptions, Inproc, Security, Served, Transport, serve};
use tread::afd::{Place, shape};
use tread_core::afd::{Answer, Call, Ffn as _, Layout, LocalFfn, Sharding, Worker, activations};
use tread_core::config::{ModelConfig, Step3Config};
use tread_core::cpu::Cpu;
use tread_core::graph::{Edge, EdgeDType, Graph};
use tread_core::models;
use tread_core::tensor::{DType, Tensor};
use tread_tests::ops::inv_freq;
use tread_tests::random::{Rng, random_weights, rng};

use crate::models::tls;

const ROWS: usize = 9;
const TOP_K: usize = 3;
const EXPERTS: u32 = 7;
const LAYERS: usize = 5;
/// Fewer than calls in flight.
const SLOTS: usize = 2;
const MICRO_BATCHES: usize = 6;
const HOLD: Duration = Duration::from_secs(60);

/// A way to start workers and to reach them. They run until it is dropped.
pub(crate) trait Kind {
    fn transport(&self) -> Arc<dyn Transport>;
    fn start(&mut self, setup: Setup) -> Place;
}

fn step3() -> (Graph, Vec<Tensor>) {
    let config = Step3Config {
        hidden_size: 160,
        intermediate_size: 48,
        num_layers: LAYERS,
        num_heads: 2,
        num_kv_heads: 1,
        head_dim: 16,
        query_rank: 16,
        vocab_size: 31,
        context_length: 64,
        rms_norm_eps: 1e-5,
        inv_freq: inv_freq(16),
        moe_layers: vec![false, true, true, true, false],
        num_experts: EXPERTS as usize,
        top_k: TOP_K,
        moe_intermediate_size: 24,
        shared_expert_size: 32,
        norm_expert_weight: true,
        tie_word_embeddings: false,
    };
    let graph = models::graph(&ModelConfig::Step3(config));
    let weights = random_weights(&mut rng(1), &graph, |_| DType::F32);
    (graph, weights)
}

/// Calls of all micro-batches: no rows, one, uneven ones, as many as may be.
fn calls(layout: &Layout, rng: &mut Rng, layer: usize) -> Vec<Call> {
    let mut calls = vec![];
    for micro_batch in 0..MICRO_BATCHES {
        let rows = [0, 1, 4, ROWS, 7, ROWS][(micro_batch + layer) % MICRO_BATCHES];
        let edges = layout.edges(layer).0.iter();
        let inputs = edges.map(|edge| input(layout, rng, *edge, rows)).collect();
        calls.push(Call { step: 1 + layer as u64, micro_batch, layer, rows, inputs });
    }
    calls
}

/// Activations that cross their edge unchanged, or what a router chose.
fn input(layout: &Layout, rng: &mut Rng, edge: Edge, rows: usize) -> Vec<f32> {
    let width = layout.graph().value(edge.value).width;
    if width == 2 * TOP_K {
        let mut input = vec![];
        for _ in 0..rows {
            let first = rng.random_range(0..EXPERTS);
            input.extend((0..TOP_K as u32).map(|choice| f32::from_bits((first + 2 * choice) % EXPERTS)));
            input.extend([0.5, 0.3, 0.2]);
        }
        return input;
    }
    let x: Vec<f32> = (0..rows * width).map(|_| rng.random_range(-2.0..2.0)).collect();
    let mut rounded = vec![0.0; x.len()];
    activations::round(edge.dtype, &x, width, &mut rounded);
    rounded
}

fn answers(ffn: &mut dyn tread_core::afd::Ffn, calls: &[Call]) -> BTreeMap<usize, Answer> {
    calls.iter().for_each(|call| ffn.post(call.clone()).unwrap());
    let answers = calls.iter().map(|_| pollster::block_on(ffn.answer()).unwrap());
    let answers: BTreeMap<_, _> = answers.map(|answer| (answer.micro_batch, answer)).collect();
    assert_eq!(answers.len(), calls.len(), "one is answered twice");
    answers
}

/// Pools of so many FFN workers, asked by so many attention workers at the same time, answer as one device does.
fn check(kind: &mut dyn Kind, attention: usize, ffn: usize) {
    let (plain, weights) = step3();
    for (sharding, dtype) in [
        (Sharding::Layers, EdgeDType::F32),
        (Sharding::Layers, EdgeDType::F8),
        (Sharding::Experts, EdgeDType::BF16),
    ] {
        let graph = shape(&plain, sharding, dtype);
        let layout = Arc::new(Layout::new(&graph, sharding, ffn).unwrap());
        let terms =
            Terms { protocol: PROTOCOL, model: "tiny".to_owned(), hidden: 160, dtype, sharding, shards: ffn };
        let setup = |shard| Setup {
            terms: terms.clone(),
            layout: Arc::clone(&layout),
            shard,
            weights: weights.clone(),
            max_rows: ROWS,
            slots: SLOTS,
            open: Box::new(|| Ok(Box::new(Cpu::new()))),
            progress: Box::new(|_, _| {}),
        };
        let places: Vec<_> = (0..ffn).map(|shard| kind.start(setup(shard))).collect();
        let hello = Hello { terms: terms.clone(), max_rows: ROWS, slots: SLOTS };
        let transport = kind.transport();
        let ask = |seed: usize| {
            let members = Arc::new(Static(places.clone()));
            let mut pool =
                Pool::start(Arc::clone(&layout), hello.clone(), members, Arc::clone(&transport), HOLD)
                    .unwrap();
            let worker = |shard| {
                let layout = Arc::clone(&layout);
                pollster::block_on(Worker::new(layout, shard, &weights, &Cpu, ROWS, &mut |_, _| {})).unwrap()
            };
            let mut local = LocalFfn::new(Arc::clone(&layout), (0..ffn).map(worker).collect());
            let mut rng = rng(seed as u64);
            for layer in 0..LAYERS {
                let calls = calls(&layout, &mut rng, layer);
                let (found, expected) = (answers(&mut pool, &calls), answers(&mut local, &calls));
                for (at, expected) in expected {
                    assert_eq!(found[&at].outputs, expected.outputs, "layer {layer}, micro-batch {at}");
                }
            }
            assert!(pool.describe().1 > 0);
        };
        thread::scope(|scope| {
            let ask = &ask;
            for seed in 0..attention {
                scope.spawn(move || ask(seed));
            }
        });
    }
}

/// By channels.
#[derive(Default)]
struct OverChannels {
    transport: Arc<Inproc>,
    count: AtomicUsize,
}

impl Kind for OverChannels {
    fn transport(&self) -> Arc<dyn Transport> {
        Arc::clone(&self.transport) as _
    }

    fn start(&mut self, setup: Setup) -> Place {
        let index = self.count.fetch_add(1, Ordering::Relaxed);
        let place = Place::Device { name: "cpu".to_owned(), index };
        self.transport.put(place.clone(), Host::start(setup).unwrap());
        place
    }
}

/// By gRPC over loopback, activations by what the options say.
pub(crate) struct OverGrpc {
    pub(crate) runtime: Runtime,
    pub(crate) security: Security,
    pub(crate) options: GrpcOptions,
    served: Vec<Served>,
}

impl Default for OverGrpc {
    fn default() -> Self {
        let options = GrpcOptions { carrier: Carrier::Grpc, ..GrpcOptions::default() };
        Self { runtime: Runtime::new().unwrap(), security: Security::default(), options, served: vec![] }
    }
}

impl Kind for OverGrpc {
    fn transport(&self) -> Arc<dyn Transport> {
        Arc::new(Grpc::new(self.options.clone()))
    }

    fn start(&mut self, setup: Setup) -> Place {
        let host = Host::start(setup).unwrap();
        let address = ([127, 0, 0, 1], 0).into();
        let served =
            self.runtime.block_on(serve(host, address, &self.security, self.options.carrier)).unwrap();
        let place = Place::Address(served.address().to_string());
        self.served.push(served);
        place
    }
}

const SHAPES: [(usize, usize); 4] = [(1, 1), (2, 1), (1, 2), (3, 2)];

#[test]
fn channels_conform() {
    SHAPES.iter().for_each(|&(attention, ffn)| check(&mut OverChannels::default(), attention, ffn));
}

#[test]
fn grpc_conforms() {
    SHAPES.iter().for_each(|&(attention, ffn)| check(&mut OverGrpc::default(), attention, ffn));
}

#[test]
fn grpc_conforms_with_certificates_and_tokens() {
    let file = |name: &str| std::fs::read_to_string(tls(name)).unwrap();
    let (certificate, key, token) = (file("cert.pem"), file("key.pem"), Some("secret".to_owned()));
    let mut kind = OverGrpc {
        security: Security { identity: Some((certificate.clone(), key)), token: token.clone() },
        options: GrpcOptions { ca: Some(certificate), token, carrier: Carrier::Grpc },
        ..OverGrpc::default()
    };
    check(&mut kind, 2, 2);
}

#[cfg(all(feature = "cluster", target_os = "linux"))]
#[test]
fn nixl_conforms() {
    for (attention, ffn) in SHAPES {
        let options = GrpcOptions { carrier: Carrier::Nixl, ..GrpcOptions::default() };
        check(&mut OverGrpc { options, ..OverGrpc::default() }, attention, ffn);
    }
}
