//! The page and the embedded model as a browser fetches them.

use std::fs;
use std::path::{Path, PathBuf};

use ureq::http::{HeaderMap, Response};

use super::{Client, cpu, shared, start};

fn dist() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../web/dist")
}

/// Whether `cargo xtask web` was run; a checkout also has to work without.
fn built() -> bool {
    dist().join("index.html.br").exists()
}

fn get(client: &Client, path: &str, headers: &[(&str, &str)]) -> (u16, HeaderMap, Vec<u8>) {
    // Redirects are looked at, not followed.
    let agent = client.agent.get(format!("{}{path}", client.base)).config().max_redirects(0).build();
    let request = headers.iter().fold(agent, |request, (name, value)| request.header(*name, *value));
    let response: Response<ureq::Body> = request.call().unwrap();
    let (parts, mut body) = response.into_parts();
    (parts.status.as_u16(), parts.headers, body.with_config().limit(1 << 30).read_to_vec().unwrap())
}

#[test]
fn the_page_comes_whole_and_locked_up() {
    let client = shared();
    let (status, headers, body) = get(&client, "/", &[]);
    if !built() {
        assert_eq!(status, 404);
        assert!(String::from_utf8(body).unwrap().contains("cargo xtask web"));
        return;
    }
    assert_eq!((status, &headers["content-type"]), (200, &"text/html; charset=utf-8".parse().unwrap()));
    assert_eq!(body, fs::read(dist().join("index.html")).unwrap());
    for (path, media, policy) in [
        ("/page.js", "text/javascript; charset=utf-8", "connect-src 'self';"),
        ("/page_bg.wasm", "application/wasm", "frame-ancestors 'none'"),
        ("/style.css", "text/css; charset=utf-8", "style-src 'self';"),
        ("/icon.svg", "image/svg+xml", "default-src 'none'"),
        ("/worker.js", "text/javascript; charset=utf-8", "connect-src 'self' https:"),
    ] {
        let (status, headers, body) = get(&client, path, &[]);
        assert_eq!((status, headers["content-type"].to_str().unwrap()), (200, media), "{path}");
        assert!(headers["content-security-policy"].to_str().unwrap().contains(policy), "{path}: {headers:?}");
        for (name, value) in [
            ("x-content-type-options", "nosniff"),
            ("referrer-policy", "no-referrer"),
            ("cross-origin-opener-policy", "same-origin"),
            ("cache-control", "no-cache"),
        ] {
            assert_eq!(headers[name], value, "{path}");
        }
        assert_eq!(body, fs::read(dist().join(&path[1..])).unwrap(), "{path}");
    }
    let policy = headers["content-security-policy"].to_str().unwrap();
    assert!(policy.contains("script-src 'self' 'wasm-unsafe-eval';") && !policy.contains("unsafe-inline"));
}

#[test]
fn files_are_sent_packed_and_once() {
    if !built() {
        return;
    }
    let client = shared();
    let packed = [("accept-encoding", "gzip, deflate, br")];
    let (_, headers, body) = get(&client, "/page_bg.wasm", &packed);
    assert_eq!((&headers["content-encoding"], &headers["vary"]), (&"br".parse().unwrap(), &headers["vary"]));
    assert_eq!(body, fs::read(dist().join("page_bg.wasm.br")).unwrap());
    let plain = get(&client, "/page_bg.wasm", &[("accept-encoding", "br;q=0")]).1;
    assert!(plain.get("content-encoding").is_none());
    let (tag, other) = (headers["etag"].to_str().unwrap(), plain["etag"].to_str().unwrap());
    assert_ne!(tag, other, "two forms of a file are two things");
    for (sent, status) in [(tag, 304), (other, 200), ("\"x\"", 200)] {
        let (found, _, body) = get(&client, "/page_bg.wasm", &[packed[0], ("if-none-match", sent)]);
        assert_eq!((found, body.is_empty()), (status, status == 304), "{sent}");
    }
}

#[test]
fn views_have_addresses_and_all_else_is_unknown() {
    let client = shared();
    for view in ["monitor", "models", "device", "bench"] {
        let (status, headers, _) = get(&client, &format!("/{view}"), &[]);
        assert_eq!((status, headers["location"].to_str().unwrap()), (307, &*format!("./#/{view}")));
    }
    for path in
        ["/index.html.br", "/.gitignore", "/pages", "/models/nano/README.md", "/models/nano/..%2Fconfig.json"]
    {
        assert_eq!(client.get(path).error(404)["code"], "unknown_url", "{path}");
    }
    client.post("/", serde_json::json!({})).error(405);
}

#[test]
fn the_model_comes_in_parts() {
    let client = shared();
    let path = "/models/nano/model-00001-of-00001.safetensors";
    let file = fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join(&path[1..])).unwrap();
    let size = file.len();
    let (status, headers, body) = get(&client, path, &[]);
    assert_eq!((status, headers["accept-ranges"].to_str().unwrap()), (200, "bytes"));
    assert!(body == file, "the whole file");
    let tag = headers["etag"].to_str().unwrap();
    for (range, part) in [
        ("bytes=0-99", 0..100),
        ("bytes=1000-", 1000..size),
        ("bytes=-7", size - 7..size),
        ("bytes=5-99999999999", 5..size),
    ] {
        let (status, headers, body) = get(&client, path, &[("range", range), ("if-range", tag)]);
        assert_eq!(status, 206, "{range}");
        let expected = format!("bytes {}-{}/{size}", part.start, part.end - 1);
        assert_eq!(headers["content-range"].to_str().unwrap(), expected);
        assert!(body == file[part], "{range}");
    }
    let (status, headers, _) = get(&client, path, &[("range", &format!("bytes={size}-"))]);
    assert_eq!((status, headers["content-range"].to_str().unwrap()), (416, &*format!("bytes */{size}")));
    // A part of another version would be no use; several parts and nonsense are answered with the whole.
    for other in
        [[("range", "bytes=0-9"), ("if-range", "\"another\"")], [("range", "bytes=0-1,4-5"), ("te", "")]]
    {
        assert!(get(&client, path, &other).2.len() == size, "{other:?}");
    }
    assert_eq!(get(&client, path, &[("range", "bytes=x")]).0, 200);
    assert_eq!(get(&client, path, &[("if-none-match", tag)]).0, 304);
    let head = client.agent.head(format!("{}{path}", client.base)).call().unwrap();
    assert_eq!(head.headers()["content-length"].to_str().unwrap(), size.to_string());
}

#[test]
fn no_key_is_needed_and_paths_are_counted_together() {
    let server = start(cpu(), |options| options.api_keys = vec!["secret".to_owned()]);
    let client = Client::new(server.address());
    assert_eq!(client.get("/models/nano/config.json").status, 200);
    assert_ne!(client.get("/").status, 401);
    client.get("/v1/models").error(401);
    client.get("/models/other/config.json").error(401);
    let metrics = client.get("/metrics").text;
    assert!(metrics.contains("path=\"page\"") && !metrics.contains("config.json"), "{metrics}");
}
