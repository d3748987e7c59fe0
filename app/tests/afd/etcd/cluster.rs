//! etcd as a process of its own, and workers that register in it.

use std::fs;
use std::net::TcpListener;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::Duration;

use etcd_client::{Certificate, Client, ConnectOptions, GetOptions, TlsOptions};
use tokio::runtime::Runtime;
use tread::afd::etcd::{Etcd, Record, Table};
use tread::afd::{AfdOptions, Members};
use tread_tests::server::Server;

use crate::models::folder;
use crate::refusals::TREAD;

/// The prefix of all keys in these tests.
pub(crate) const PREFIX: &str = "/tread/test";
/// How long is waited for what must come.
const WAIT: Duration = Duration::from_secs(60);

/// etcd with a data folder of its own, until it is dropped.
pub(crate) struct Cluster {
    pub(crate) runtime: Runtime,
    folder: tempfile::TempDir,
    ports: [u16; 2],
    tls: bool,
    process: Option<Child>,
}

impl Cluster {
    pub(crate) fn start() -> Self {
        Self::with(false)
    }

    pub(crate) fn encrypted() -> Self {
        Self::with(true)
    }

    fn with(tls: bool) -> Self {
        // Ports that were free just now.
        let sockets = [(); 2].map(|()| TcpListener::bind("127.0.0.1:0").unwrap());
        let ports = sockets.map(|socket| socket.local_addr().unwrap().port());
        let runtime = Runtime::new().unwrap();
        let mut cluster = Self { runtime, folder: tempfile::tempdir().unwrap(), ports, tls, process: None };
        cluster.restart();
        cluster
    }

    /// Starts it with the data that it has, and waits until it answers.
    pub(crate) fn restart(&mut self) {
        let [client, peer] = self.ports;
        let (client, peer) = (self.url(client), format!("http://127.0.0.1:{peer}"));
        let cluster = format!("test={peer}");
        let mut command = Command::new("etcd");
        command.args(["--name", "test", "--log-level", "error", "--logger", "zap"]);
        command.arg("--data-dir").arg(self.folder.path().join("data"));
        for (flag, value) in [
            ("--listen-client-urls", &client),
            ("--advertise-client-urls", &client),
            ("--listen-peer-urls", &peer),
            ("--initial-advertise-peer-urls", &peer),
            ("--initial-cluster", &cluster),
        ] {
            command.args([flag, value]);
        }
        if self.tls {
            command.arg("--cert-file").arg(tls("cert.pem")).arg("--key-file").arg(tls("key.pem"));
        }
        let process = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn();
        self.process = Some(process.expect("these tests need etcd: apt-get install etcd-server"));
        wait("etcd answers", || self.runtime.block_on(async { get(&self.etcd(), "/").await.is_ok() }));
    }

    /// Kills it.
    pub(crate) fn kill(&mut self) {
        let mut process = self.process.take().expect("it runs");
        process.kill().unwrap();
        process.wait().unwrap();
    }

    /// Takes all its data away.
    pub(crate) fn forget(&self) {
        fs::remove_dir_all(self.folder.path().join("data")).unwrap();
    }

    fn url(&self, port: u16) -> String {
        format!("{}://127.0.0.1:{port}", if self.tls { "https" } else { "http" })
    }

    /// How it is reached.
    pub(crate) fn etcd(&self) -> Etcd {
        let ca = self.tls.then(|| fs::read_to_string(tls("cert.pem")).unwrap());
        let ttl = Duration::from_secs(2);
        Etcd { ca, ttl, ..Etcd::new(vec![self.url(self.ports[0])], PREFIX) }
    }

    /// Attention whose FFNs are found in it.
    pub(crate) fn afd(&self) -> AfdOptions {
        AfdOptions::new(Members::Etcd(self.etcd()))
    }

    /// What a process needs to know of it.
    pub(crate) fn flags(&self) -> Vec<String> {
        let url = self.url(self.ports[0]);
        ["--etcd", &url, "--etcd-prefix", PREFIX].map(str::to_owned).to_vec()
    }

    /// A worker of a model's shard, once it is registered.
    pub(crate) fn worker(&self, name: &str, shard: &str, more: &[&str]) -> Server {
        let path = folder(name);
        let flags = self.flags();
        let mut args = vec![path.to_str().unwrap(), "--shard", shard, "--backend", "cpu"];
        args.extend(flags.iter().map(String::as_str));
        args.extend(more);
        if !more.contains(&"--etcd-ttl") {
            args.extend(["--etcd-ttl", "2"]);
        }
        let worker = Server::ffn_worker(TREAD, &args);
        wait("the worker is registered", || self.record(&worker).is_some());
        worker
    }

    /// What lies under a key and those that begin with it.
    pub(crate) fn get(&self, key: &str) -> Vec<(String, Vec<u8>)> {
        self.runtime.block_on(get(&self.etcd(), key)).unwrap()
    }

    /// The records of all FFN workers.
    pub(crate) fn records(&self) -> Vec<Record> {
        let items = self.get(&format!("{PREFIX}/ffn/"));
        items.iter().map(|(_, value)| serde_json::from_slice(value).unwrap()).collect()
    }

    /// A worker's record.
    pub(crate) fn record(&self, worker: &Server) -> Option<Record> {
        let address = worker.address().to_string();
        self.records().into_iter().rfind(|record| record.address == address)
    }

    /// The routing table.
    pub(crate) fn table(&self) -> Option<Table> {
        let items = self.get(&self.etcd().table_key());
        items.first().map(|(_, value)| serde_json::from_slice(value).unwrap())
    }

    /// Waits until the table is as it should be.
    pub(crate) fn wait_for_table(&self, mut good: impl FnMut(&Table) -> bool) -> Table {
        let mut found = None;
        wait("the table is as it should be", || {
            found = self.table();
            found.as_ref().is_some_and(&mut good)
        });
        found.unwrap()
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if let Some(mut process) = self.process.take() {
            let _ = process.kill();
            let _ = process.wait();
        }
    }
}

/// A client for what only tests do.
pub(crate) async fn client(etcd: &Etcd) -> Result<Client, etcd_client::Error> {
    let mut options = ConnectOptions::new();
    if let Some(ca) = &etcd.ca {
        options = options.with_tls(TlsOptions::new().ca_certificate(Certificate::from_pem(ca)));
    }
    if let Some((name, password)) = &etcd.user {
        options = options.with_user(name, password);
    }
    Client::connect(&etcd.endpoints, Some(options)).await
}

async fn get(etcd: &Etcd, key: &str) -> Result<Vec<(String, Vec<u8>)>, etcd_client::Error> {
    let found = client(etcd).await?.get(key, Some(GetOptions::new().with_prefix())).await?;
    let item = |kv: &etcd_client::KeyValue| (kv.key_str().unwrap().to_owned(), kv.value().to_vec());
    Ok(found.kvs().iter().map(item).collect())
}

/// A file of the tests' certificate.
pub(crate) fn tls(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/afd/tls").join(name)
}

/// The addresses of each shard's workers.
pub(crate) fn addresses(table: &Table) -> Vec<Vec<String>> {
    let shards = table.shards.iter();
    shards.map(|shard| shard.iter().map(|entry| entry.address.clone()).collect()).collect()
}

/// Waits for what must come.
#[track_caller]
pub(crate) fn wait(what: &str, mut come: impl FnMut() -> bool) {
    let start = std::time::Instant::now();
    while !come() {
        assert!(start.elapsed() < WAIT, "waited in vain: {what}");
        thread::sleep(Duration::from_millis(20));
    }
}
