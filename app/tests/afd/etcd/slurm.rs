//! The script for Slurm, run by a `srun` that starts its tasks on this machine, each with a port of its own.

use std::fs;
use std::io::Write as _;
use std::net::TcpListener;
use std::os::unix::fs::{OpenOptionsExt as _, symlink};
use std::path::Path;
use std::process::{Child, Command};

use serde_json::{Value, json};
use tread_tests::server::{Server, signal};

use super::cluster::{Cluster, PREFIX, tls, wait};
use crate::refusals::TREAD;

const SRUN: &str = r#"#!/bin/bash
tasks=1
while [[ $1 == --* ]]; do
    [[ $1 == --het-group=1 ]] && tasks=3
    shift
done
for ((SLURM_PROCID = 0; SLURM_PROCID < tasks; SLURM_PROCID++)); do
    export SLURM_PROCID
    "$@" &
    tasks_pids+=($!)
    ((++FFN_PORT))
done
trap 'kill -TERM "${tasks_pids[@]}"' TERM
for pid in "${tasks_pids[@]}"; do
    wait "$pid" || wait "$pid" || status=$?
done
exit "${status:-0}"
"#;

fn program(folder: &Path, name: &str, text: &str) {
    let mut options = fs::OpenOptions::new();
    let mut file = options.write(true).create_new(true).mode(0o755).open(folder.join(name)).unwrap();
    file.write_all(text.as_bytes()).unwrap();
}

/// Ports that are free in a row, as far as that can be known.
fn ports(count: u16) -> u16 {
    loop {
        let first = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let last = first.saturating_add(count - 1);
        if last - first == count - 1
            && (first..=last).all(|port| TcpListener::bind(("0.0.0.0", port)).is_ok())
        {
            return first;
        }
    }
}

fn ask(url: &str, key: &str) -> Option<Value> {
    let body = json!({"prompt": "Who goes there?", "max_tokens": 12, "temperature": 0, "ignore_eos": true});
    let request =
        ureq::post(format!("{url}/v1/completions")).header("Authorization", &format!("Bearer {key}"));
    let mut response = request.send_json(body).ok()?;
    Some(response.body_mut().read_json::<Value>().unwrap()["choices"][0]["text"].clone())
}

/// Ends the job with the test.
struct Job(Child);

impl Drop for Job {
    fn drop(&mut self) {
        if self.0.try_wait().is_ok_and(|status| status.is_none()) {
            let _ = Command::new("kill").args(["-TERM", &self.0.id().to_string()]).status();
            let _ = self.0.wait();
        }
    }
}

#[test]
fn the_script_starts_both_pools_and_ends_them_well() {
    let cluster = Cluster::start();
    let folder = tempfile::tempdir().unwrap();
    let [bin, secrets] = ["bin", "secrets"].map(|name| folder.path().join(name));
    fs::create_dir_all(&bin).unwrap();
    fs::create_dir_all(&secrets).unwrap();
    program(&bin, "srun", SRUN);
    program(&bin, "hostname", "#!/bin/sh\necho localhost\n");
    for (name, file) in [("tls.crt", "cert.pem"), ("ca.crt", "cert.pem"), ("tls.key", "key.pem")] {
        symlink(tls(file), secrets.join(name)).unwrap();
    }
    fs::write(secrets.join("token"), "secret\n").unwrap();
    fs::write(secrets.join("api-key"), "key\n").unwrap();
    let first = ports(4);
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/slurm/tread.sbatch");
    let mut command = Command::new("bash");
    command.arg(script);
    for name in ["HF_ENDPOINT", "HF_TOKEN", "TREAD_MODELS", "RUST_LOG"] {
        command.env_remove(name);
    }
    let path = format!("{}:{}", bin.display(), std::env::var("PATH").unwrap());
    command.env("PATH", path).env("ETCD_PREFIX", PREFIX).env("TREAD", TREAD).env("MODEL", "nano");
    command.env("SECRETS", &secrets).env("ETCD", &cluster.etcd().endpoints[0]);
    command.env("HTTP_PORT", first.to_string()).env("FFN_PORT", (first + 1).to_string());
    command.env("SHAPE", "--sharding=layers --afd-dtype=fp8");
    command.env("WORKER_FLAGS", "--backend=cpu").env("SERVER_FLAGS", "--backend=cpu");
    let mut job = Job(command.spawn().unwrap());

    let url = format!("http://127.0.0.1:{first}");
    let mut answer = None;
    wait("the server answers", || {
        assert!(job.0.try_wait().unwrap().is_none(), "the script has ended");
        answer = ask(&url, "key");
        answer.is_some()
    });
    let whole = Server::start(TREAD, &["nano", "--backend", "cpu", "--afd-dtype", "fp8"]);
    assert_eq!(answer, ask(&whole.url(""), "none"));
    // Three workers hold two shards.
    wait("all workers are there", || cluster.records().len() == 3);
    let mut shards: Vec<_> = cluster.records().iter().map(|record| record.worker.shard).collect();
    shards.sort_unstable();
    assert_eq!(shards, [0, 0, 1]);

    signal(job.0.id(), "TERM");
    assert!(job.0.wait().unwrap().success());
    assert_eq!(cluster.get(PREFIX).len(), 1, "nothing is left but the table");
}
