//! The manifests in `app/deploy/kubernetes` say what this program understands.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::time::Duration;

use clap::Parser as _;
use serde_json::Value;

use super::{Cli, Command, FfnWorkerArgs, WorkerCommand};

/// The documents of all files, by file.
fn manifests() -> Vec<(String, Value)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/kubernetes");
    let mut found = vec![];
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap().to_owned();
        let text = fs::read_to_string(&path).unwrap();
        let documents = serde_saphyr::from_multiple::<Value>(&text).unwrap_or_else(|e| panic!("{name}: {e}"));
        found.extend(documents.into_iter().map(|document| (name.clone(), document)));
    }
    found
}

/// The pods of Tread's own image: name, what a pod is, its arguments.
fn pods() -> Vec<(String, Value, Cli)> {
    let mut found = vec![];
    for (file, document) in manifests() {
        let pod = &document["spec"]["template"]["spec"];
        for container in pod["containers"].as_array().into_iter().flatten() {
            if container["image"] != "tread" {
                continue;
            }
            let name = format!("{file}: {}", document["metadata"]["name"]);
            let args = container["args"].as_array().unwrap().iter();
            // What Kubernetes puts in.
            let args = args.map(|arg| arg.as_str().unwrap().replace("$(POD)", "ffn-0-0"));
            let cli = Cli::try_parse_from(std::iter::once("tread".to_owned()).chain(args));
            found.push((name.clone(), document.clone(), cli.unwrap_or_else(|e| panic!("{name}: {e}"))));
        }
    }
    found
}

/// Seconds that pass before SIGTERM comes.
fn before_stop(pod: &Value) -> u64 {
    let command = &pod["containers"][0]["lifecycle"]["preStop"]["exec"]["command"];
    command[1].as_str().map_or(0, |seconds| seconds.parse().unwrap())
}

#[test]
fn command_lines_are_understood_and_there_is_time_to_drain() {
    let (mut shards, mut attention, mut servers) = (BTreeSet::new(), 0, 0);
    for (name, document, cli) in pods() {
        let pod = &document["spec"]["template"]["spec"];
        let drain = match cli.command {
            Some(Command::Worker(WorkerCommand::Ffn(args))) => {
                assert_eq!(document["metadata"]["name"], format!("ffn-{}", args.shard.shard), "{name}");
                shards.insert((args.shard.of, args.shard.shard));
                args.worker.drain_timeout
            }
            Some(Command::Worker(WorkerCommand::Attention(args))) => {
                attention += 1;
                args.worker.drain_timeout
            }
            Some(Command::Serve(args)) => {
                servers += 1;
                args.drain_timeout
            }
            other => panic!("{name}: {other:?}"),
        };
        let grace = Duration::from_secs(pod["terminationGracePeriodSeconds"].as_u64().unwrap());
        let needed = drain + Duration::from_secs(before_stop(pod));
        assert!(grace > needed, "{name}: ends after {grace:?}, but needs {needed:?}");
    }
    assert_eq!((attention, servers), (1, 1));
    let of = shards.first().unwrap().0;
    assert_eq!(
        shards,
        (0..of).map(|shard| (of, shard)).collect::<BTreeSet<_>>(),
        "every shard has its workers"
    );
}

/// All must mean the same, and look at the same place.
#[test]
fn pools_agree() {
    let (mut terms, mut engines) = (BTreeSet::new(), BTreeSet::new());
    for (_, _, cli) in pods() {
        let (model, engine) = match cli.command {
            Some(Command::Worker(WorkerCommand::Ffn(args))) => {
                let FfnWorkerArgs { model, sharding, afd_dtype, etcd, .. } = args;
                terms.insert(format!("{model:?} {sharding:?} {afd_dtype:?} {etcd:?}"));
                continue;
            }
            Some(Command::Worker(WorkerCommand::Attention(args))) => (args.model, args.engine),
            Some(Command::Serve(args)) => (args.model, args.engine),
            other => panic!("{other:?}"),
        };
        let device = engine.device;
        let afd = device.afd;
        terms.insert(format!("{model:?} {:?} {:?} {:?}", afd.sharding, afd.afd_dtype, afd.etcd));
        engines.insert(format!("{:?} {:?} {}", device.kv, device.context, engine.max_sequences));
    }
    assert_eq!((terms.len(), engines.len()), (1, 1), "{terms:?} {engines:?}");
}

#[test]
fn selectors_and_files_fit() {
    let manifests = manifests();
    let labels: Vec<&Value> =
        manifests.iter().map(|(_, d)| &d["spec"]["template"]["metadata"]["labels"]).collect();
    for (file, document) in &manifests {
        if document["kind"] == "Kustomization" {
            for resource in document["resources"].as_array().unwrap() {
                assert!(manifests.iter().any(|(name, _)| resource == name), "{resource} is not there");
            }
        }
        let selector = match document["kind"].as_str() {
            Some("Service") => &document["spec"]["selector"],
            Some("Deployment" | "StatefulSet" | "PodDisruptionBudget") => {
                &document["spec"]["selector"]["matchLabels"]
            }
            _ => continue,
        };
        let selector = selector.as_object().unwrap();
        let meets = |labels: &&&Value| selector.iter().all(|(key, value)| labels[key] == *value);
        assert!(labels.iter().any(|labels| meets(&labels)), "{file} selects nothing: {selector:?}");
    }
}
