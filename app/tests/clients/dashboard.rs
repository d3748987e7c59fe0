//! The Grafana dashboard in docs/ asks for nothing that the server does not export.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use serde_json::Value;
use tread_tests::server::Server;

/// Every string under a key `expr` or `query`.
fn queries<'a>(value: &'a Value, found: &mut Vec<&'a str>) {
    match value {
        Value::Object(fields) => {
            for (key, value) in fields {
                match value.as_str() {
                    Some(text) if key == "expr" || key == "query" => found.push(text),
                    _ => queries(value, found),
                }
            }
        }
        Value::Array(values) => values.iter().for_each(|value| queries(value, found)),
        _ => {}
    }
}

/// The words of a query, or of a line of metrics.
fn words(text: &str) -> impl Iterator<Item = &str> {
    text.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_' || c == ':'))
}

fn is_metric(word: &str) -> bool {
    ["vllm:", "tread_", "http_"].iter().any(|prefix| word.starts_with(prefix))
}

#[test]
fn the_dashboard_finds_its_metrics() {
    let server = Server::start(env!("CARGO_BIN_EXE_tread"), &["nano", "--backend", "cpu"]);
    // Counters with labels appear with the first event of their kind.
    let body = r#"{"messages": [{"role": "user", "content": "Who goes there?"}]}"#;
    let request = ureq::post(server.url("/v1/chat/completions")).header("content-type", "application/json");
    request.send(body).expect("an answer").into_body().read_to_string().expect("the whole answer");
    let metrics = ureq::get(server.url("/metrics")).call().expect("metrics");
    let metrics = metrics.into_body().read_to_string().expect("text");
    let lines: Vec<&str> = metrics.lines().filter(|line| !line.starts_with('#')).collect();

    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/grafana.json");
    let dashboard: Value = serde_json::from_str(&fs::read_to_string(file).unwrap()).unwrap();
    assert_eq!(dashboard["__inputs"][0]["pluginId"], "prometheus", "asks for its data source when imported");
    let mut asked = vec![];
    queries(&dashboard, &mut asked);
    let mut names = BTreeSet::new();
    for query in asked {
        let by = query.split_once(" by (").and_then(|(_, rest)| rest.split(')').next()).unwrap_or_default();
        for name in words(query).filter(|word| is_metric(word)) {
            let line = lines.iter().find(|line| words(line).next() == Some(name));
            let line = line.unwrap_or_else(|| panic!("{query}: no {name} in\n{metrics}"));
            assert!(words(by).all(|label| line.contains(label)), "{query}: no label {by} in {line}");
            names.insert(name);
        }
    }
    assert!(names.len() > 10, "{names:?}");
}
