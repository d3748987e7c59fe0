//! Downloads, from a hub that this test serves itself and that breaks in all the ways networks do.

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex};

use serde_json::json;
use sha2::{Digest as _, Sha256};
use tread_tests::write::{Gguf, Stored, safetensors, tiny_llama, weights};

use super::{fails, succeeds, tread};

/// One file of the repository.
#[derive(Clone)]
struct Remote {
    /// What the hub says the SHA-256 is.
    etag: String,
    bytes: Vec<u8>,
}

impl Remote {
    fn new(bytes: Vec<u8>) -> Self {
        Self { etag: hex(&bytes), bytes }
    }
}

fn hex(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

#[derive(Default)]
struct State {
    files: BTreeMap<String, Remote>,
    /// After so many bytes of a file the connection breaks, once each; the last first.
    breaks: Vec<usize>,
    /// What all is answered with after the last break.
    then: Option<&'static str>,
    /// Answer everything with this status.
    status: Option<&'static str>,
    /// Request lines with their `Range` and `Authorization`.
    log: Vec<String>,
}

/// A hub on a port of this machine, with one repository, `org/name`.
struct Hub {
    address: String,
    state: Arc<Mutex<State>>,
    home: tempfile::TempDir,
}

impl Hub {
    fn new(files: &[(&str, Vec<u8>)]) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        let files =
            files.iter().map(|(name, bytes)| ((*name).to_owned(), Remote::new(bytes.clone()))).collect();
        let state = Arc::new(Mutex::new(State { files, ..State::default() }));
        let shared = Arc::clone(&state);
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                // The client may hang up at any time.
                let _ = serve(&stream.unwrap(), &shared);
            }
        });
        Self { address, state, home: tempfile::tempdir().unwrap() }
    }

    fn set(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.state.lock().unwrap());
    }

    /// What was asked of the hub since the last call.
    fn take_log(&self) -> Vec<String> {
        std::mem::take(&mut self.state.lock().unwrap().log)
    }

    fn inspect(&self, id: &str) -> Command {
        let mut command = tread(self.home.path(), &["inspect", id]);
        command.env("HF_ENDPOINT", &self.address);
        command
    }

    fn blobs(&self) -> PathBuf {
        self.home.path().join("hf/hub/models--org--name/blobs")
    }
}

/// Answers one request as the hub does.
fn serve(mut stream: &TcpStream, state: &Mutex<State>) -> std::io::Result<()> {
    let mut lines = BufReader::new(stream).lines();
    let request = lines.next().unwrap_or_else(|| Ok(String::new()))?;
    let headers: Vec<String> = lines.map_while(Result::ok).take_while(|line| !line.is_empty()).collect();
    let header = |name: &str| {
        let found = headers.iter().filter_map(|line| line.split_once(": "));
        found.filter(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value.to_owned()).next()
    };
    let (range, token) = (header("range").unwrap_or_default(), header("authorization").unwrap_or_default());
    let mut state = state.lock().unwrap();
    state.log.push(format!("{request} {range} {token}"));
    let url = request.split(' ').nth(1).unwrap_or_default();
    if let Some(status) = state.status {
        return write!(stream, "HTTP/1.1 {status}\r\ncontent-length: 0\r\nconnection: close\r\n\r\n");
    }
    if url.starts_with("/api/models/org/name/revision/") {
        let siblings: Vec<_> = state.files.keys().map(|name| json!({"rfilename": name})).collect();
        let body = json!({"siblings": siblings, "sha": "c0ffee"}).to_string();
        let length = body.len();
        return write!(
            stream,
            "HTTP/1.1 200 OK\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n{body}"
        );
    }
    let name = url.strip_prefix("/org/name/resolve/main/").unwrap_or_default();
    let Some(Remote { etag, bytes }) = state.files.get(name).cloned() else {
        return write!(stream, "HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\nconnection: close\r\n\r\n");
    };
    let (start, end) =
        range.strip_prefix("bytes=").and_then(|r| r.split_once('-')).expect("a range is asked for");
    let start: usize = start.parse().unwrap();
    if start >= bytes.len() {
        return write!(
            stream,
            "HTTP/1.1 416 Range Not Satisfiable\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
        );
    }
    let end = end.parse().map_or(bytes.len(), |last: usize| (last + 1).min(bytes.len()));
    write!(
        stream,
        "HTTP/1.1 206 Partial Content\r\netag: \"{etag}\"\r\nx-repo-commit: c0ffee\r\ncontent-range: bytes {start}-{}/{}\r\n\
         content-length: {}\r\nconnection: close\r\n\r\n",
        end - 1,
        bytes.len(),
        end - start
    )?;
    let whole = end - start;
    let breaks = if whole > 1 { state.breaks.pop() } else { None };
    if breaks.is_some() && state.breaks.is_empty() {
        state.status = state.then.take();
    }
    stream.write_all(&bytes[start..start + breaks.unwrap_or(whole).min(whole)])
}

#[test]
fn a_broken_download_goes_on_where_it_stopped() {
    let file = Gguf::tiny().bytes();
    let size = file.len();
    let hub = Hub::new(&[("tiny.gguf", file.clone()), ("README.md", b"words".to_vec())]);
    hub.set(|state| state.breaks = vec![2000, 5000]);
    let found = succeeds(hub.inspect("org/name").env("HF_TOKEN", "secret"));
    assert!(found.contains("architecture  llama"), "{found}");
    let log = hub.take_log();
    for range in ["bytes=0- ", "bytes=5000- ", "bytes=7000- "] {
        assert_eq!(log.iter().filter(|line| line.contains(range)).count(), 1, "{range}: {log:?}");
    }
    assert!(log.iter().all(|line| line.ends_with("Bearer secret")), "{log:?}");
    assert_eq!(fs::read(hub.blobs().join(hex(&file))).unwrap().len(), size);
    // From now on the cache is enough.
    succeeds(&mut hub.inspect("org/name"));
    succeeds(&mut hub.inspect("org/name:tiny.gguf"));
    assert_eq!(hub.take_log(), Vec::<String>::new());
}

#[test]
fn a_download_is_resumed_by_the_next_start() {
    let file = Gguf::tiny().bytes();
    let hub = Hub::new(&[("tiny.gguf", file.clone())]);
    hub.set(|state| (state.breaks, state.then) = (vec![600], Some("403 Forbidden")));
    fails(&mut hub.inspect("org/name"), &["tiny.gguf of org/name", "HF_TOKEN"]);
    hub.set(|state| state.status = None);
    hub.take_log();
    succeeds(&mut hub.inspect("org/name"));
    let log = hub.take_log();
    assert!(log.iter().any(|line| line.contains("bytes=600- ")), "{log:?}");
}

#[test]
fn a_start_that_ended_before_the_file_was_in_place_is_made_good() {
    let file = Gguf::tiny().bytes();
    let hub = Hub::new(&[("tiny.gguf", file.clone())]);
    fs::create_dir_all(hub.blobs()).unwrap();
    for left in [file.clone(), [&file[..], b"more"].concat()] {
        fs::write(hub.blobs().join(hex(&file)).with_extension("part"), left).unwrap();
        succeeds(&mut hub.inspect("org/name"));
        fs::remove_dir_all(hub.home.path().join("hf/hub/models--org--name/snapshots")).unwrap();
        fs::remove_file(hub.blobs().join(hex(&file))).unwrap();
    }
}

#[test]
fn a_damaged_file_is_refused_and_removed() {
    let file = Gguf::tiny().bytes();
    let hub = Hub::new(&[("tiny.gguf", file.clone())]);
    hub.set(|state| state.files.get_mut("tiny.gguf").unwrap().bytes[9000] ^= 1);
    fails(&mut hub.inspect("org/name"), &["tiny.gguf was damaged", "SHA-256", "try again"]);
    assert!(!hub.blobs().join(hex(&file)).exists());
    hub.set(|state| state.files.get_mut("tiny.gguf").unwrap().bytes[9000] ^= 1);
    succeeds(&mut hub.inspect("org/name"));
}

#[test]
fn a_start_that_ended_before_verifying_is_made_good() {
    let file = Gguf::tiny().bytes();
    let hub = Hub::new(&[("tiny.gguf", file.clone())]);
    succeeds(&mut hub.inspect("org/name"));
    let blob = hub.blobs().join(hex(&file));
    let mut damaged = file.clone();
    damaged[9000] ^= 1;
    fs::write(&blob, damaged).unwrap();
    fs::write(hub.blobs().join("tiny.gguf.unverified"), "").unwrap();
    fails(&mut hub.inspect("org/name"), &["tiny.gguf was damaged"]);
    succeeds(&mut hub.inspect("org/name"));
    assert_eq!(fs::read(&blob).unwrap(), file);
}

#[test]
fn a_sharded_model_is_fetched_once() {
    let config = tiny_llama();
    let tensors = weights(&config);
    let (first, second) = tensors.split_at(5);
    let names =
        |part: &[Stored], file: &str| part.iter().map(|t| (t.name.clone(), json!(file))).collect::<Vec<_>>();
    let (one, two) = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors");
    let map: serde_json::Map<_, _> = names(first, one).into_iter().chain(names(second, two)).collect();
    let hub = Hub::new(&[
        ("config.json", config.to_string().into_bytes()),
        ("model.safetensors.index.json", json!({"weight_map": map}).to_string().into_bytes()),
        (one, safetensors(first)),
        (two, safetensors(second)),
        ("original/consolidated.pth", vec![0; 100]),
    ]);
    let found = succeeds(hub.inspect("org/name").arg("--tensors"));
    assert!(found.contains("model.layers.0.mlp.up_proj.weight"), "{found}");
    let log = hub.take_log();
    assert!(!log.iter().any(|line| line.contains("consolidated")), "only what is used is fetched: {log:?}");
    succeeds(&mut hub.inspect("org/name"));
    succeeds(hub.inspect("org/name").env("HF_HUB_OFFLINE", "1"));
    assert_eq!(hub.take_log(), Vec::<String>::new());
}

#[test]
fn what_the_hub_does_not_give() {
    let hub = Hub::new(&[("a.gguf", Gguf::tiny().bytes()), ("b.gguf", Gguf::tiny().bytes())]);
    fails(&mut hub.inspect("org/name"), &["several GGUF files", "org/name:FILE", "a.gguf, b.gguf"]);
    fails(&mut hub.inspect("org/name:c.gguf"), &["no file c.gguf", "a.gguf, b.gguf"]);
    fails(hub.inspect("org/name").env("HF_HUB_OFFLINE", "1"), &["not in the cache", "HF_HUB_OFFLINE"]);
    succeeds(&mut hub.inspect("org/name:b.gguf"));
    hub.set(|state| state.status = Some("404 Not Found"));
    fails(&mut hub.inspect("org/other"), &["knows no model org/other", &hub.address]);
    for status in ["401 Unauthorized", "403 Forbidden"] {
        hub.set(|state| state.status = Some(status));
        fails(&mut hub.inspect("org/other"), &["org/other", "licence", "HF_TOKEN"]);
    }
    hub.set(|state| state.status = Some("500 Internal Server Error"));
    fails(&mut hub.inspect("org/other"), &["org/other cannot be had", "local file"]);
    let empty = Hub::new(&[("README.md", b"words".to_vec())]);
    fails(&mut empty.inspect("org/name"), &["neither a GGUF file nor config.json"]);
}

#[test]
fn a_hub_that_is_not_there() {
    // A port that was free a moment ago.
    let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let home = tempfile::tempdir().unwrap();
    let mut command = tread(home.path(), &["inspect", "org/name"]);
    command.env("HF_ENDPOINT", format!("http://{address}"));
    fails(
        &mut command,
        &["org/name cannot be had", &address.to_string(), "local file or folder", "./model.gguf"],
    );
    assert!(!Path::new(home.path()).join("hf/hub/models--org--name/snapshots").exists());
}
