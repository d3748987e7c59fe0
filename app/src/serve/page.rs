//! The page and the embedded model, as files.

use std::sync::LazyLock;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{Path, Request};
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Redirect, Response};
use axum::routing::get;
use rust_embed::{EmbeddedFile, RustEmbed};
use sha2::{Digest as _, Sha256};

use super::layers;
use crate::embedded;

/// What `cargo xtask web` made, in the only form that is kept of each file: Brotli's. The list of models is small and
/// kept as it is.
#[derive(RustEmbed)]
#[folder = "../web/dist"]
#[include = "*.br"]
#[include = "models/catalog.json"]
struct Dist;

/// How the page's views are called; they live behind `#`.
const VIEWS: [&str; 4] = ["monitor", "models", "device", "bench"];

/// The path under which all of the page is counted.
pub(super) const LABEL: &str = "page";

/// What the page may do: run its own scripts and talk to its own server.
const PAGE_POLICY: &str = "default-src 'none'; script-src 'self' 'wasm-unsafe-eval'; style-src 'self'; \
    img-src 'self' data: blob:; font-src 'self'; connect-src 'self'; worker-src 'self'; manifest-src 'self'; \
    base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// What its worker may do: also fetch models from where the user says.
const WORKER_POLICY: &str = "default-src 'none'; script-src 'self' 'wasm-unsafe-eval'; \
    connect-src 'self' https: http://localhost:* http://127.0.0.1:*";

/// The files of the worker; its policy is that of the first.
const WORKER: [&str; 2] = ["worker.js", "engine.js"];

/// Headers of every answer: what is here is what it says it is, tells nobody where it was, and has no use for a camera.
const HEADERS: [(HeaderName, &str); 5] = [
    (header::CACHE_CONTROL, "no-cache"),
    (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
    (header::REFERRER_POLICY, "no-referrer"),
    (HeaderName::from_static("cross-origin-opener-policy"), "same-origin"),
    (
        HeaderName::from_static("permissions-policy"),
        "camera=(), display-capture=(), geolocation=(), microphone=(), payment=(), usb=()",
    ),
];

const NOT_BUILT: &str = "This tread was built without its page. Run `cargo xtask web` and build it again.\n\
                         The API is there; /docs describes it.\n";

/// The routes: every file by its name, so that all else stays unknown.
pub(super) fn router<S: Clone + Send + Sync + 'static>() -> Router<S> {
    let mut router = Router::new().route("/", get(index)).route("/models/nano/{file}", get(model));
    for view in VIEWS {
        router = router.route(&format!("/{view}"), get(move || to_view(view)));
    }
    for stored in Dist::iter() {
        let name = stored.strip_suffix(".br").unwrap_or(&stored).to_owned();
        let route = format!("/{name}");
        router = router.route(&route, get(move |headers: HeaderMap| file(name.clone(), headers)));
    }
    router.layer(middleware::from_fn(add_headers))
}

/// Whether the path belongs to the page, which has no secrets and cannot send a key for itself.
pub(super) fn contains(path: &str) -> bool {
    let path = path.strip_prefix('/').unwrap_or(path);
    path.is_empty()
        || VIEWS.contains(&path)
        || path.starts_with("models/nano/")
        || Dist::get(&format!("{path}.br")).or_else(|| Dist::get(path)).is_some()
}

async fn add_headers(request: Request, next: Next) -> Response {
    let mut response = next.run(request).await;
    for (name, value) in HEADERS {
        response.headers_mut().entry(name).or_insert(HeaderValue::from_static(value));
    }
    response
}

async fn index(headers: HeaderMap) -> Response {
    file("index.html".to_owned(), headers).await
}

/// Relative, so that a proxy may give the server a folder of its own.
async fn to_view(view: &'static str) -> Redirect {
    Redirect::temporary(&format!("./#/{view}"))
}

/// A file of the page.
async fn file(name: String, request: HeaderMap) -> Response {
    let policy = if WORKER.contains(&name.as_str()) { WORKER_POLICY } else { PAGE_POLICY };
    let mut response = content(&name, &request).await;
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_SECURITY_POLICY, HeaderValue::from_static(policy));
    headers.insert(header::VARY, HeaderValue::from_static("accept-encoding"));
    response
}

async fn content(name: &str, request: &HeaderMap) -> Response {
    if let Some(plain) = Dist::get(name) {
        let tag = format!("\"{}\"", hex(&plain.metadata.sha256_hash()));
        return ranged(name, bytes(plain), &tag, request);
    }
    let Some(packed) = Dist::get(&format!("{name}.br")) else {
        return (StatusCode::NOT_FOUND, NOT_BUILT).into_response();
    };
    let hash = hex(&packed.metadata.sha256_hash());
    let brotli = accepts_brotli(request);
    let tag = if brotli { format!("\"{hash}-br\"") } else { format!("\"{hash}\"") };
    if matches(request, &header::IF_NONE_MATCH, &tag) {
        return (StatusCode::NOT_MODIFIED, [(header::ETAG, tag)]).into_response();
    }
    let about = [(header::CONTENT_TYPE, media_type(name)), (header::ETAG, tag)];
    let packed = bytes(packed);
    if brotli {
        return (about, [(header::CONTENT_ENCODING, "br")], packed).into_response();
    }
    // Browsers ask for Brotli only where nobody can listen; for the others it is a second's work at most.
    let unpack = move || {
        let mut plain = vec![];
        brotli::BrotliDecompress(&mut &packed[..], &mut plain).map(|()| plain)
    };
    match tokio::task::spawn_blocking(unpack).await {
        Ok(Ok(plain)) => (about, plain).into_response(),
        _ => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
    }
}

/// A file of the embedded model.
async fn model(Path(name): Path<String>, request: HeaderMap) -> Response {
    static TAGS: LazyLock<Vec<String>> = LazyLock::new(|| {
        embedded::FILES.iter().map(|(_, bytes)| format!("\"{}\"", hex(&Sha256::digest(bytes)))).collect()
    });
    let Some(index) = embedded::FILES.iter().position(|(file, _)| *file == name) else {
        let path = format!("/models/{}/{name}", embedded::NAME);
        return layers::unknown_path(&path).into_response();
    };
    ranged(&name, Bytes::from_static(embedded::FILES[index].1), &TAGS[index], &request)
}

/// `body`, or the one range of it that is asked for. More than one is answered with the whole, as a server may.
fn ranged(name: &str, body: Bytes, tag: &str, request: &HeaderMap) -> Response {
    let accept = [(header::ETAG, tag), (header::ACCEPT_RANGES, "bytes")];
    if matches(request, &header::IF_NONE_MATCH, tag) {
        return (StatusCode::NOT_MODIFIED, accept).into_response();
    }
    let about = [(header::CONTENT_TYPE, media_type(name))];
    let range = request.get(header::RANGE).and_then(|value| value.to_str().ok());
    let range = range.and_then(|value| http_range_header::parse_range_header(value).ok());
    // A part is of no use to who has the rest of something else.
    let same = !request.contains_key(header::IF_RANGE) || matches(request, &header::IF_RANGE, tag);
    let length = body.len();
    let ranges = range.filter(|_| same).map(|range| range.validate(length as u64));
    match ranges.as_ref().map(|ranges| ranges.as_deref()) {
        Some(Ok([range])) => {
            let (start, end) = (*range.start(), *range.end());
            let place = [(header::CONTENT_RANGE, format!("bytes {start}-{end}/{length}"))];
            // Both lie inside the body, whose length is a usize.
            let part = body.slice(start as usize..=end as usize);
            (StatusCode::PARTIAL_CONTENT, accept, about, place, part).into_response()
        }
        Some(Err(_)) => {
            let place = [(header::CONTENT_RANGE, format!("bytes */{length}"))];
            (StatusCode::RANGE_NOT_SATISFIABLE, accept, place, Body::empty()).into_response()
        }
        Some(Ok(_)) | None => (accept, about, body).into_response(),
    }
}

/// Whether a conditional header names this very version.
fn matches(request: &HeaderMap, header: &HeaderName, tag: &str) -> bool {
    let tags = request.get_all(header).iter().filter_map(|value| value.to_str().ok());
    tags.flat_map(|value| value.split(',')).any(|one| {
        let one = one.trim();
        one == tag || one.strip_prefix("W/") == Some(tag) || one == "*"
    })
}

fn accepts_brotli(request: &HeaderMap) -> bool {
    let values = request.get_all(header::ACCEPT_ENCODING).iter().filter_map(|value| value.to_str().ok());
    values.flat_map(|value| value.split(',')).any(|coding| {
        let (name, weight) = coding.split_once(';').unwrap_or((coding, "q=1"));
        let weight = weight.trim().strip_prefix("q=").and_then(|q| q.parse::<f32>().ok());
        name.trim().eq_ignore_ascii_case("br") && weight.is_some_and(|q| q > 0.0)
    })
}

fn media_type(name: &str) -> String {
    let media = mime_guess::from_path(name).first_or_octet_stream();
    if media.type_() == mime_guess::mime::TEXT {
        format!("{media}; charset=utf-8")
    } else {
        media.to_string()
    }
}

/// What is embedded is never copied.
fn bytes(file: EmbeddedFile) -> Bytes {
    match file.data {
        std::borrow::Cow::Borrowed(bytes) => Bytes::from_static(bytes),
        std::borrow::Cow::Owned(bytes) => bytes.into(),
    }
}

/// Half of a SHA-256: enough to tell versions apart.
fn hex(hash: &[u8]) -> String {
    hash.iter().take(16).map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use axum::http::{HeaderMap, HeaderValue, header};

    use super::accepts_brotli;

    #[test]
    fn brotli_is_sent_to_who_takes_it() {
        let accepts = |value| {
            let header = (header::ACCEPT_ENCODING, HeaderValue::from_static(value));
            accepts_brotli(&HeaderMap::from_iter([header]))
        };
        assert!(accepts("gzip, deflate, br, zstd") && accepts("br;q=0.5") && accepts("BR"));
        assert!(!accepts("gzip") && !accepts("br;q=0") && !accepts("brotli") && !accepts(""));
    }
}
