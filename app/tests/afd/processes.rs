//! Workers that are processes: killed, stopped, drained, added while sixteen streams go on.

use std::fs;
use std::path::PathBuf;
use std::thread;
use std::time::Duration;

use tonic::transport::Endpoint;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;
use tread::afd::transport::{Carrier, Grpc, GrpcOptions};
use tread::afd::{AfdOptions, Members, Place};
use tread_core::afd::Sharding;
use tread_core::graph::EdgeDType;
use tread_tests::server::{Server, signal};

use crate::models::{folder, model};
use crate::refusals::TREAD;
use crate::streams::{engine, executable, expected, run};

/// What may carry activations between processes.
pub(crate) const CARRIERS: &[Carrier] = if cfg!(all(feature = "cluster", target_os = "linux")) {
    &[Carrier::Grpc, Carrier::Nixl]
} else {
    &[Carrier::Grpc]
};

/// A worker of a model's shard that takes activations by any of them.
pub(crate) fn worker(name: &str, shard: &str, more: &[&str]) -> Server {
    let path = folder(name);
    Server::ffn_worker(
        TREAD,
        &[&[path.to_str().unwrap(), "--shard", shard, "--backend", "cpu"], more].concat(),
    )
}

/// Their addresses as a list.
pub(crate) fn addresses(workers: &[&Server]) -> String {
    let addresses: Vec<_> = workers.iter().map(|worker| worker.address().to_string()).collect();
    addresses.join(",")
}

fn members(workers: &[&Server]) -> Members {
    addresses(workers).parse().unwrap()
}

/// These workers, with activations by one way and no other.
pub(crate) fn over(carrier: Carrier, workers: &[&Server]) -> AfdOptions {
    let grpc = GrpcOptions { carrier, ..GrpcOptions::default() };
    AfdOptions { grpc, ..AfdOptions::new(members(workers)) }
}

/// A file that lists workers.
pub(crate) struct List {
    _folder: tempfile::TempDir,
    pub(crate) path: PathBuf,
}

impl List {
    pub(crate) fn of(workers: &[&Server]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let list = Self { path: folder.path().join("workers"), _folder: folder };
        list.write(workers);
        list
    }

    pub(crate) fn write(&self, workers: &[&Server]) {
        let lines: Vec<_> = workers.iter().map(|worker| format!("{}\n", worker.address())).collect();
        fs::write(&self.path, lines.concat()).unwrap();
    }

    fn members(&self) -> Members {
        Members::File(self.path.clone())
    }
}

#[test]
fn processes_say_what_one_device_says() {
    for (name, sharding, dtype, flags) in [
        ("nano", Sharding::Layers, EdgeDType::F32, ["--sharding", "layers", "--afd-dtype", "f32"]),
        ("step3-tiny", Sharding::Experts, EdgeDType::BF16, ["--sharding", "experts", "--afd-dtype", "bf16"]),
        ("step3-tiny-fp8", Sharding::Experts, EdgeDType::F8, ["--sharding", "experts", "--afd-dtype", "fp8"]),
        ("smollm2", Sharding::Layers, EdgeDType::F32, ["--sharding", "layers", "--afd-dtype", "f32"]),
    ] {
        let model = model(name);
        let expected = expected(&model, sharding, dtype);
        for (attention, ffn) in [(1, 1), (2, 1), (1, 2), (3, 2)] {
            let workers: Vec<_> =
                (0..ffn).map(|shard| worker(name, &format!("{shard}/{ffn}"), &flags)).collect();
            let workers: Vec<_> = workers.iter().collect();
            // What takes long goes one way only.
            let carriers = if name == "smollm2" { &CARRIERS[CARRIERS.len() - 1..] } else { CARRIERS };
            for &carrier in carriers {
                let afd = AfdOptions { sharding, dtype, ..over(carrier, &workers) };
                thread::scope(|scope| {
                    for _ in 0..attention {
                        scope.spawn(|| {
                            let mut engine = engine(&model, executable(&model, &afd).unwrap());
                            let found = run(&model, &mut engine, |_| ()).unwrap();
                            assert_eq!(found, expected, "{name}, {attention}A{ffn}F over {carrier:?}");
                        });
                    }
                });
            }
        }
    }
}

/// Workers whose shards two and three devices compute together; their standby is one device, and takes over.
#[test]
fn devices_that_compute_together_say_what_one_says() {
    for (name, sharding, flag, second) in [
        ("nano", Sharding::Layers, "layers", "cpu+cpu"),
        ("step3-tiny", Sharding::Experts, "experts", "cpu+cpu+cpu"),
    ] {
        let model = model(name);
        let path = folder(name);
        let worker = |shard, device| {
            let args = [path.to_str().unwrap(), "--shard", shard, "--device", device, "--sharding", flag];
            Server::ffn_worker(TREAD, &args)
        };
        let workers = [("0/2", "cpu+cpu"), ("1/2", second)].map(|(shard, on)| worker(shard, on));
        assert!(workers[0].log().contains(") + CPU ("), "{}", workers[0].log());
        let list = List::of(&[&workers[0], &workers[1]]);
        let afd = AfdOptions { sharding, ..AfdOptions::new(list.members()) };
        let expected = expected(&model, sharding, EdgeDType::F32);
        let mut engine = engine(&model, executable(&model, &afd).unwrap());
        let mut standby = None;
        let found = run(&model, &mut engine, |step| match step {
            3 => {
                let started = worker("0/2", "cpu");
                list.write(&[&workers[0], &workers[1], &started]);
                standby = Some(started);
            }
            // Calls wait until the standby is found.
            5 => workers[0].signal("KILL"),
            _ => {}
        });
        assert_eq!(found.unwrap(), expected, "{name}");
    }
}

/// One after the other dies without a word, each while a step is under way.
#[test]
fn killed_workers_lose_and_double_nothing() {
    for name in ["nano", "step3-tiny"] {
        let model = model(name);
        let expected = expected(&model, Sharding::Layers, EdgeDType::F32);
        for &carrier in CARRIERS {
            let workers: Vec<_> = (0..4).map(|_| worker(name, "0/1", &[])).collect();
            let afd = over(carrier, &workers.iter().collect::<Vec<_>>());
            let mut engine = engine(&model, executable(&model, &afd).unwrap());
            let mut killers = vec![];
            let found = run(&model, &mut engine, |step| {
                if step % 5 == 3 && step / 5 < 3 {
                    let process = workers[step / 5].id();
                    // Sometimes before the step's first call, sometimes in the midst of its calls.
                    let after = Duration::from_micros(700 * step as u64);
                    killers.push(thread::spawn(move || {
                        thread::sleep(after);
                        signal(process, "KILL");
                    }));
                }
            });
            assert_eq!(killers.len(), 3);
            killers.into_iter().for_each(|killer| killer.join().unwrap());
            assert_eq!(found.unwrap(), expected, "{name} over {carrier:?}");
        }
    }
}

/// A worker that was stopped answers late; that answer does no harm, and it is one of the pool again.
#[test]
fn a_stopped_worker_that_goes_on_corrupts_nothing() {
    let model = model("nano");
    let expected = expected(&model, Sharding::Layers, EdgeDType::F32);
    for &carrier in CARRIERS {
        let [stopped, other] = [0, 1].map(|_| worker("nano", "0/1", &[]));
        let afd = over(carrier, &[&stopped, &other]);
        let mut engine = engine(&model, executable(&model, &afd).unwrap());
        let found = run(&model, &mut engine, |step| match step {
            4 => stopped.signal("STOP"),
            8 => stopped.signal("CONT"),
            // Stopped for so long that its connection is given up.
            12 => stopped.signal("STOP"),
            14 => {
                thread::sleep(Duration::from_secs(4));
                stopped.signal("CONT");
            }
            // What was stopped is all there is.
            18 => other.signal("KILL"),
            _ => {}
        });
        assert_eq!(found.unwrap(), expected, "{carrier:?}");
    }
}

#[test]
fn a_worker_that_drains_finishes_and_ends() {
    let model = model("nano");
    let expected = expected(&model, Sharding::Layers, EdgeDType::F32);
    for &carrier in CARRIERS {
        let [mut drained, other] = [0, 1].map(|_| worker("nano", "0/1", &[]));
        let afd = over(carrier, &[&drained, &other]);
        let mut engine = engine(&model, executable(&model, &afd).unwrap());
        let found = run(&model, &mut engine, |step| {
            if step == 5 {
                drained.terminate();
            }
            if step == 12 {
                // It ends while the streams go on, and well.
                assert!(drained.wait().success(), "{}", drained.log());
            }
        });
        assert_eq!(found.unwrap(), expected, "{carrier:?}");
    }
}

/// What looks after workers asks whether they serve, and may ask for the end.
#[test]
fn a_worker_can_be_asked_over_grpc_how_it_is_and_to_drain() {
    let mut worker = worker("nano", "0/1", &[]);
    let address = worker.address().to_string();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let channel = Endpoint::from_shared(format!("http://{address}")).unwrap().connect().await.unwrap();
        let mut health = HealthClient::new(channel);
        let reply = health.check(HealthCheckRequest::default()).await.unwrap().into_inner();
        assert_eq!(reply.status(), ServingStatus::Serving);
        Grpc::new(GrpcOptions::default()).drain(&Place::Address(address)).await.unwrap();
    });
    assert!(worker.wait().success(), "{}", worker.log());
}

#[test]
fn a_worker_that_is_added_takes_over() {
    let model = model("nano");
    let first = worker("nano", "0/1", &[]);
    let list = List::of(&[&first]);
    let expected = expected(&model, Sharding::Layers, EdgeDType::F32);
    let mut engine = engine(&model, executable(&model, &AfdOptions::new(list.members())).unwrap());
    let mut second = None;
    let found = run(&model, &mut engine, |step| match step {
        4 => {
            let worker = worker("nano", "0/1", &[]);
            list.write(&[&first, &worker]);
            second = Some(worker);
        }
        // Calls wait until the other one is found.
        6 => first.signal("KILL"),
        _ => {}
    });
    assert_eq!(found.unwrap(), expected);
}

/// Calls wait for a worker; when that takes too long, the error says for which shard, and the pool goes on with the next.
#[test]
fn without_a_worker_steps_are_given_up_until_there_is_one() {
    let model = model("nano");
    let workers = ["0/2", "1/2"].map(|shard| worker("nano", shard, &[]));
    let list = List::of(&[&workers[0], &workers[1]]);
    let expected = expected(&model, Sharding::Layers, EdgeDType::F32);
    let afd = AfdOptions { hold: Duration::from_secs(1), ..AfdOptions::new(list.members()) };
    let mut engine = engine(&model, executable(&model, &afd).unwrap());
    let failed = run(&model, &mut engine, |step| {
        if step == 3 {
            workers[1].signal("KILL");
        }
    });
    let error = failed.unwrap_err();
    assert!(matches!(error, tread_core::Error::Unavailable(_)), "{error:?}");
    assert!(error.to_string().contains("shard 1 of 2"), "{error}");
    let next = worker("nano", "1/2", &[]);
    list.write(&[&workers[0], &next]);
    // Until it is found, steps may be given up still.
    let found = (0..20).find_map(|_| run(&model, &mut engine, |_| ()).ok());
    assert_eq!(found.expect("the new worker is found"), expected);
}
