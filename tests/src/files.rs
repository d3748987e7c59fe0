//! A web server for files that fails as it is told.

use std::fs::File;
use std::io::{Read as _, Seek as _, SeekFrom};
use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use futures_util::{StreamExt as _, stream};
use tokio::sync::watch;

use crate::browser::{RUNTIME, wait};

/// Serves folders on a free port, until the process ends.
#[derive(Clone, Debug)]
pub struct Files {
    address: SocketAddr,
    state: Arc<Mutex<Shared>>,
}

#[derive(Debug, Default)]
struct Shared {
    /// What addresses begin with, and what lies there.
    folders: Vec<(String, PathBuf)>,
    /// What is said at a path, whatever is asked.
    answers: Vec<(String, Answer)>,
    faults: Vec<(String, Fault)>,
    isolated: bool,
    sent: Vec<Sent>,
    /// Whether what has halted breaks off.
    cut: watch::Sender<bool>,
}

#[derive(Clone, Debug)]
struct Answer {
    media_type: String,
    pieces: Vec<String>,
    endless: bool,
}

/// What goes wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The next answer that has this byte of the file halts there, and breaks off at [`Files::cut`]: what a browser has
    /// received but not read is lost with the connection, so the test says when enough was read.
    Break(u64),
    /// This byte of the file is always sent with all bits turned.
    Flip(u64),
}

/// An answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sent {
    /// The path asked for.
    pub path: String,
    /// The bytes of the file that were sent.
    pub bytes: std::ops::Range<u64>,
}

impl Files {
    /// Serves each of `folders` under its path, which has no slash at its end.
    ///
    /// # Panics
    /// When there is no free port.
    pub fn start(folders: &[(&str, &Path)]) -> Self {
        let folders = folders.iter().map(|(at, folder)| ((*at).to_owned(), folder.to_path_buf())).collect();
        let state = Arc::new(Mutex::new(Shared { folders, ..Shared::default() }));
        let router = Router::new().fallback(answer).with_state(Arc::clone(&state));
        let listener = wait(tokio::net::TcpListener::bind("127.0.0.1:0")).expect("a free port");
        let address = listener.local_addr().expect("an address");
        RUNTIME.spawn(async move { axum::serve(listener, router).await });
        Self { address, state }
    }

    /// The URL of a path.
    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    /// Says the same at a path, whatever is asked; an endless answer says no more after its pieces, and goes on.
    ///
    /// # Panics
    /// When an answer panicked.
    pub fn answer(&self, path: &str, media_type: &str, pieces: &[String], endless: bool) {
        let answer = Answer { media_type: media_type.to_owned(), pieces: pieces.to_vec(), endless };
        self.state.lock().unwrap().answers.push((path.to_owned(), answer));
    }

    /// Lets answers for a path fail.
    ///
    /// # Panics
    /// When an answer panicked.
    pub fn fail(&self, path: &str, fault: Fault) {
        self.state.lock().unwrap().faults.push((path.to_owned(), fault));
    }

    /// Lets pages from here share memory between threads, as servers do with two headers.
    ///
    /// # Panics
    /// When an answer panicked.
    pub fn isolate(&self) {
        self.state.lock().unwrap().isolated = true;
    }

    /// Breaks all connections that have halted, and from now on those that would.
    ///
    /// # Panics
    /// When an answer panicked.
    pub fn cut(&self) {
        self.state.lock().unwrap().cut.send_replace(true);
    }

    /// Answers nothing wrong any more.
    ///
    /// # Panics
    /// When an answer panicked.
    pub fn mend(&self) {
        self.state.lock().unwrap().faults.clear();
    }

    /// What was sent of the file at a path.
    ///
    /// # Panics
    /// When an answer panicked.
    pub fn sent(&self, path: &str) -> Vec<Sent> {
        self.state.lock().unwrap().sent.iter().filter(|sent| sent.path == path).cloned().collect()
    }
}

async fn answer(State(state): State<Arc<Mutex<Shared>>>, request: Request) -> Response {
    let mut response = respond(&state, &request);
    if state.lock().expect("no answer panics").isolated {
        let headers = response.headers_mut();
        headers.insert("cross-origin-opener-policy", HeaderValue::from_static("same-origin"));
        headers.insert("cross-origin-embedder-policy", HeaderValue::from_static("require-corp"));
    }
    response
}

fn respond(state: &Mutex<Shared>, request: &Request) -> Response {
    let path = request.uri().path().to_owned();
    let mut state = state.lock().expect("no answer panics");
    if let Some((_, answer)) = state.answers.iter().find(|(at, _)| *at == path) {
        return speak(answer.clone());
    }
    let file = state
        .folders
        .iter()
        .find_map(|(at, folder)| Some(folder.join(path.strip_prefix(at)?.strip_prefix('/')?)));
    let Some(file) = file.filter(|file| file.is_file() && !path.contains("..")) else {
        return StatusCode::NOT_FOUND.into_response();
    };
    let Ok(size) = file.metadata().map(|data| data.len()) else {
        return StatusCode::NOT_FOUND.into_response();
    };
    let (status, range) = match range(request.headers(), size) {
        Ok(Some(range)) => (StatusCode::PARTIAL_CONTENT, *range.start()..range.end() + 1),
        Ok(None) => (StatusCode::OK, 0..size),
        Err(()) => return StatusCode::RANGE_NOT_SATISFIABLE.into_response(),
    };
    let mut bytes = vec![0; usize::try_from(range.end - range.start).expect("it fits into memory")];
    let mut open = File::open(&file).expect("it was there");
    open.seek(SeekFrom::Start(range.start)).expect("it can be sought");
    open.read_exact(&mut bytes).expect("it can be read");

    let inside = |at: u64| range.contains(&at).then(|| usize::try_from(at - range.start).unwrap_or_default());
    for (_, fault) in state.faults.iter().filter(|(at, _)| *at == path) {
        if let Fault::Flip(at) = *fault
            && let Some(at) = inside(at)
        {
            bytes[at] = !bytes[at];
        }
    }
    let breaks = state
        .faults
        .iter()
        .position(|(at, fault)| *at == path && matches!(fault, Fault::Break(at) if range.contains(at)));
    let broken = breaks.and_then(|index| match state.faults.remove(index).1 {
        Fault::Break(at) => inside(at),
        Fault::Flip(_) => None,
    });
    let whole = bytes.len();
    bytes.truncate(broken.unwrap_or(whole));
    let sent = Sent { path: path.clone(), bytes: range.start..range.start + bytes.len() as u64 };
    state.sent.push(sent);
    let headers = [
        (header::CONTENT_TYPE, mime_guess::from_path(&path).first_or_octet_stream().to_string()),
        (header::CONTENT_LENGTH, whole.to_string()),
        (header::CONTENT_RANGE, format!("bytes {}-{}/{size}", range.start, range.end.saturating_sub(1))),
        (header::ACCEPT_RANGES, "bytes".to_owned()),
        (header::ETAG, format!("\"{size}\"")),
        (header::CACHE_CONTROL, "no-store".to_owned()),
        (header::ACCESS_CONTROL_ALLOW_ORIGIN, "*".to_owned()),
    ];
    // A body that ends in an error ends the connection.
    let cut = state.cut.subscribe();
    let end = stream::iter(broken).then(move |_| {
        let mut cut = cut.clone();
        async move {
            let _ = cut.wait_for(|cut| *cut).await;
            Err(std::io::Error::other("broken on purpose"))
        }
    });
    let parts = stream::iter([Ok(Bytes::from(bytes))]).chain(end);
    (status, headers, Body::from_stream(parts)).into_response()
}

fn speak(Answer { media_type, pieces, endless }: Answer) -> Response {
    let length = (!endless).then(|| pieces.iter().map(String::len).sum::<usize>());
    let pieces = stream::iter(pieces).map(|piece| Ok::<_, std::io::Error>(Bytes::from(piece)));
    let body =
        if endless { Body::from_stream(pieces.chain(stream::pending())) } else { Body::from_stream(pieces) };
    let mut response = ([(header::CONTENT_TYPE, media_type)], body).into_response();
    // Who loads a file has to know how long it is.
    response.headers_mut().extend(length.map(|length| (header::CONTENT_LENGTH, HeaderValue::from(length))));
    response
}

/// The one range that is asked for.
fn range(headers: &HeaderMap, size: u64) -> Result<Option<RangeInclusive<u64>>, ()> {
    let Some(value) = headers.get(header::RANGE) else { return Ok(None) };
    let parsed = http_range_header::parse_range_header(value.to_str().map_err(|_| ())?).map_err(|_| ())?;
    Ok(parsed.validate(size).map_err(|_| ())?.first().cloned())
}
